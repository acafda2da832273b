"""Frames to samples: a pulse train shaped by one spectrum, noise shaped by another, added up.

The vocoder of hibari (Apache-2.0), whose frames the miniature's voice learns, brought to 16 kHz and without the two
phases, which are not learnt: the harmonics are in phase, the noise is random. Source and filter, no training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RATE, N_FFT, HOP = 16_000, 800, 200  # 80 frames a second, bins 20 Hz apart
BINS = N_FFT // 2 + 1
VOICED = 40.0  # Hz; below, there are no pulses
TOP = 7_500.0  # Hz; the highest harmonic


def synthesise(harmonic: Tensor, noise: Tensor, pitch: Tensor, seed: int = 0) -> Tensor:
    """Log-amplitudes of the pulses' and of the noise's spectrum, (401, n) each, and Hz (n,) -> samples (200 n,)."""
    window = torch.hann_window(N_FFT)
    frames = harmonic.shape[1]
    source = torch.stft(pulses(pitch), N_FFT, HOP, window=window / (N_FFT / 4), return_complex=True)[:, :frames]
    phase = torch.rand(noise.shape, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    spectrum = source * harmonic.exp() + torch.polar(noise.exp(), phase)
    # One more frame, so that the last samples are in the middle of a window, too.
    return torch.istft(F.pad(spectrum, (0, 1)), N_FFT, HOP, window=window, length=HOP * frames)


def pulses(pitch: Tensor) -> Tensor:
    """Hz a frame, (n,) -> samples (200 n,): all harmonics below 7.5 kHz with amplitude 1; nothing where unvoiced."""
    frequency = F.interpolate(pitch[None, None].double(), scale_factor=HOP, mode="linear")[0, 0]
    voiced = frequency > VOICED
    frequency = frequency.clamp_min(VOICED)
    phase = (frequency.cumsum(0) / RATE).frac() * 2 * math.pi
    # The sum of cos(h * phase) for h = 1 to H, in closed form; its limit is H where the phase is 0.
    most = (TOP / frequency).floor()
    half = 2 * (phase / 2).sin()
    near = half.abs() < 2e-3
    total = torch.where(near, most, ((most + 0.5) * phase).sin() / torch.where(near, 1.0, half) - 0.5)
    return torch.where(voiced, total, 0.0).float()
