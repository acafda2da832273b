"""Denoising diffusion over latents: the published denoiser, DDPM and DDIM sampling (specification C.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from models.errors import BadInput
from models.pdiff.activation import FastElu

STEPS = 1000
BETAS = (1e-4, 0.02)
WIDTHS = (64, 128, 256, 512)
TIME_FEATURES, TIME_HIDDEN = 256, 128
Epsilon = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> predicted noise


class Denoiser(nn.Module):
    """(B, d), (B,) -> (B, d): the noise in x_t. Eight convolutions over the latent seen as a sequence.

    Without down-sampling; the time embedding is added before each convolution, and the outputs of the first
    three are added before the last three. At d = 128 and the published widths: 2 462 977 parameters.
    """

    def __init__(self, latent: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d = widths
        sizes = (1, a, b, c, d, c, b, a, 1)
        self.layers = nn.ModuleList(nn.Conv1d(i, o, 7, 1, 3) for i, o in zip(sizes, sizes[1:], strict=False))
        self.norms = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(o), FastElu()) for o in sizes[1:-1])
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, TIME_HIDDEN), nn.SiLU(), nn.Linear(TIME_HIDDEN, latent))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time(time_features(t))[:, None]
        x = x[:, None]
        skips: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if i >= 5:
                x = x + skips.pop()
            x = layer(x + time)
            if i < 7:
                x = self.norms[i](x)
            if i < 3:
                skips.append(x)
        return x[:, 0]


def time_features(t: Tensor) -> Tensor:
    """(B,) integer times -> (B, 256) sines and cosines."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), 1)


def alphas_bar(steps: int = STEPS) -> Tensor:
    """(T,) float64: the share of signal left at each time, linear betas."""
    return torch.cumprod(1 - torch.linspace(*BETAS, steps, dtype=torch.float64), 0)


def add_noise(x: Tensor, noise: Tensor, t: Tensor, bars: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
    bar = bars[t][:, None].to(x.dtype)
    return bar.sqrt() * x + (1 - bar).sqrt() * noise


def timesteps(count: int, steps: int = STEPS) -> list[int]:
    """`count` times from T - 1 down to 0, evenly spread. Raises `BadInput` outside 1..T."""
    if not 1 <= count <= steps:
        raise BadInput(f"Sample in 1 to {steps} steps; got {count}.")
    if count == 1:
        return [steps - 1]
    return [round(i) for i in torch.linspace(steps - 1, 0, count, dtype=torch.float64).tolist()]


def sample(
    epsilon: Epsilon, noise: Tensor, count: int = 50, eta: float = 0.0, generator: torch.Generator | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Denoises (N, d) noise in `count` steps; yields `(t, x)` after each, the last being the sample.

    eta: 0 is DDIM; 1 with all 1000 steps is the paper's ancestral DDPM with the posterior variance.
    The same noise gives the same sample whatever stands beside it in the batch (for eta 0).
    """
    bars = alphas_bar()
    times = timesteps(count)
    x = noise
    for i, t in enumerate(times):
        bar = float(bars[t])
        bar_next = float(bars[times[i + 1]]) if i + 1 < len(times) else 1.0
        e = epsilon(x, torch.full((len(x),), t))
        clean = (x - math.sqrt(1 - bar) * e) / math.sqrt(bar)
        variance = eta**2 * (1 - bar_next) / (1 - bar) * (1 - bar / bar_next)
        x = math.sqrt(bar_next) * clean + math.sqrt(max(1 - bar_next - variance, 0.0)) * e
        if variance > 0:
            x = x + math.sqrt(variance) * torch.randn(x.shape, generator=generator)
        yield t, x
