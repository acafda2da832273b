"""What the miniature speaks with: codes to durations, and to the frames of its one voice.

SoundStorm's role and that of SpeechTokenizer's decoder. Like FastSpeech (Ren et al., arXiv 1905.09263), since repeated
codes are merged and their durations have to be guessed, with ConvNeXt blocks as in Vocos (Siuzdak, arXiv 2306.00814).
There is one voice, so nothing is sampled and there is no voice prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.anygpt.embedded.speech_ear import ALPHABET
from models.anygpt.embedded.speech_source import BINS

LONGEST = 120  # frames of one code: 1.5 seconds
FLOOR = -6.0  # log-amplitudes below are as good as silence
_CENTRE, _SCALE = -1.5, 2.5  # of log-amplitudes
_PITCH = 5.2  # log of 181 Hz
_PLACE = 4  # features of a frame's place within its code


@dataclass(frozen=True)
class Frames:
    """harmonic, noise: log-amplitudes (B, n, 401). pitch: log Hz (B, n). voiced: logits (B, n)."""

    harmonic: Tensor
    noise: Tensor
    pitch: Tensor
    voiced: Tensor


class Mouth(nn.Module):
    """Codes (B, m) with a silence at both ends; see `durations` and `frames`."""

    def __init__(self, width: int = 256, reading: int = 4, speaking: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.reading = nn.ModuleList(_Block(width, 5) for _ in range(reading))
        self.duration = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.place = nn.Linear(_PLACE, width)
        self.speaking = nn.ModuleList(_Block(width, 7) for _ in range(speaking))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * BINS + 2))

    def read(self, codes: Tensor, real: Tensor) -> Tensor:
        """Codes (B, m), and which are not padding, (B, m, 1) -> what is known of each, (B, m, 256)."""
        x = self.embedding(codes) * real
        for block in self.reading:
            x = block(x) * real
        return x

    def durations(self, known: Tensor) -> Tensor:
        """-> the log of each code's frames, (B, m)."""
        return self.duration(known).squeeze(-1)

    def frames(self, known: Tensor, counts: Tensor) -> Frames:
        """known (B, m, 256), frames of each code (B, m), int64, -> the frames, n = the largest sum of counts."""
        x = torch.nn.utils.rnn.pad_sequence(
            [
                row.repeat_interleave(count, 0) + self.place(places(count))
                for row, count in zip(known, counts, strict=True)
            ],
            batch_first=True,
        )
        real = (torch.arange(x.shape[1]) < counts.sum(1, keepdim=True))[..., None]
        for block in self.speaking:
            x = block(x) * real
        y = self.out(x).float()
        return Frames(
            harmonic=y[..., :BINS] * _SCALE + _CENTRE,
            noise=y[..., BINS : 2 * BINS] * _SCALE + _CENTRE,
            pitch=y[..., -2] * 0.3 + _PITCH,
            voiced=y[..., -1],
        )

    @torch.inference_mode()
    def speak(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (m,) -> harmonic and noise (401, n) and pitch in Hz (n,), 0 where unvoiced."""
        known = self.read(codes[None], torch.ones(1, len(codes), 1))
        counts = self.durations(known).exp().round().clamp(1, LONGEST).long()
        made = self.frames(known, counts)
        pitch = torch.where(made.voiced[0] > 0, made.pitch[0].exp(), 0.0)
        return made.harmonic[0].T, made.noise[0].T, pitch


def places(counts: Tensor) -> Tensor:
    """Frames of each code (m,) -> (n, 4): how far into its code a frame is, from both ends, and the code's length."""
    total = counts.repeat_interleave(counts).float()
    index = torch.arange(len(total)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.stack(((index + 0.5) / total, index / 10, (total - 1 - index) / 10, total.log()), -1)


class _Block(nn.Module):
    """ConvNeXt in one dimension: each channel along time, then the channels; (B, n, width) both ways."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.along = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 3 * width)
        self.narrow = nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.along(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.narrow(nn.functional.gelu(self.wide(self.norm(y))))
