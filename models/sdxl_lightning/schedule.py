"""SDXL's noise schedule and the arithmetic of predictions (paper, section 3): x_t = a_t x_0 + s_t noise.

`a` and `s` are the roots of the cumulative alpha and of its rest. All functions take t as (B,) integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from models.sdxl_lightning.schedulers import SDXL_BASE

LAST = 999  # T


def scheduler_config() -> dict[str, Any]:
    """The embedded model's `scheduler_config.json`: SDXL's, but v-prediction."""
    return {**SDXL_BASE, "prediction_type": "v_prediction"}


def _alphas() -> Tensor:
    return EulerDiscreteScheduler.from_config(scheduler_config()).alphas_cumprod


@dataclass(frozen=True)
class Schedule:
    """alphas: (1000,) cumulative, float32."""

    alphas: Tensor = field(default_factory=_alphas)

    def on(self, device: torch.device) -> Schedule:
        """The same on a device."""
        return Schedule(self.alphas.to(device))

    def a(self, t: Tensor) -> Tensor:
        """Factor of the signal, (B, 1, 1, 1)."""
        return self.alphas[t].sqrt()[:, None, None, None]

    def s(self, t: Tensor) -> Tensor:
        """Factor of the noise, (B, 1, 1, 1)."""
        return (1 - self.alphas[t]).sqrt()[:, None, None, None]

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio, (B,)."""
        return self.alphas[t] / (1 - self.alphas[t])

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        return self.a(t) * clean + self.s(t) * noise

    def shown(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network sees in training: x_t, but pure noise at T."""
        return torch.where((t == LAST)[:, None, None, None], noise, self.noised(clean, noise, t))

    def v(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The target of v-prediction."""
        return self.a(t) * noise - self.s(t) * clean

    def clean_of(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """x_0 that v stands for at x_t."""
        return self.a(t) * x - self.s(t) * v

    def clean_without(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_0 that the noise stands for at x_t (epsilon-prediction)."""
        return (x - self.s(t) * noise) / self.a(t)

    def noise_of(self, x: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t."""
        return (x - self.a(t) * clean) / self.s(t)

    def moved(self, x: Tensor, clean: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """The paper's equation 3: the flow's next point, from x_t and its estimate of x_0; `to` -1 is clean."""
        end = to < 0
        there = self.noised(clean, self.noise_of(x, clean, t), to.clamp(min=0))
        return torch.where(end[:, None, None, None], clean, there)


def trailing(steps: int) -> list[int]:
    """The sampler's timesteps for a number of steps, then -1: 4 gives 999, 749, 499, 249, -1."""
    return [round(LAST + 1 - i * (LAST + 1) / steps) - 1 for i in range(steps)] + [-1]
