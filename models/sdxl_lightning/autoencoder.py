"""The embedded model's autoencoder: 256 x 256 pictures to 16 x 16 latents of 16 channels and back.

    python -m models.sdxl_lightning.autoencoder [--steps 3000]   # resumable; writes runs/sdxl_lightning/vae

Both ways are linear first (`Basis`: components of patches). The encoder is only that. The decoder adds what residual
convolutions learn: the edges that a linear projection loses, without its seams. Its heavy layers work at a quarter of
the side or less, so that decoding takes hundredths of a second. Trained on crops of `data.Scenes` with L1 on values and
on differences of neighbouring values.

A diffusers model with the surface of `AutoencoderTiny` (`encode(x).latents`, `decode(z).sample`).
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from models.runtime import mixed_precision
from models.sdxl_lightning.basis import FACTOR, LATENT_CHANNELS, Basis, to_tensor
from models.sdxl_lightning.data import SIDE, drawn
from models.sdxl_lightning.recipe import RUNS, Run, rate_at

WIDTHS = (48, 96, 160)  # at a quarter of the side, an eighth, a sixteenth
BLOCKS = (2, 2, 2)
EDGE_WEIGHT = 1.0
NOISE = 0.2  # at most, on the latents in training: those of a generated picture are not exact


@dataclass
class Encoded(BaseOutput):
    """latents: (B, 16, H / 16, W / 16)."""

    latents: Tensor


@dataclass
class Decoded(BaseOutput):
    """sample: (B, 3, H, W) in about -1..1."""

    sample: Tensor


class Block(nn.Module):
    """A residual pair of convolutions that starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = _zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Patches' components and a residual decoder.

    The configuration also has what diffusers' pipelines read of an autoencoder's: `scaling_factor`, `force_upcast`,
    and `block_out_channels`, from whose number they get the factor of 16.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = LATENT_CHANNELS,
        widths: tuple[int, ...] = WIDTHS,
        blocks: tuple[int, ...] = BLOCKS,
        block_out_channels: tuple[int, ...] = (3, 12, *WIDTHS),
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
        sample_size: int = SIDE,
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.register_buffer("mean", torch.zeros(3 * FACTOR**2))
        self.register_buffer("components", torch.zeros(3 * FACTOR**2, latent_channels))
        self.register_buffer("scale", torch.ones(latent_channels))
        self.residual = nn.Sequential(
            nn.Conv2d(latent_channels, coarse, 3, padding=1),
            *(Block(coarse) for _ in range(blocks[2])),
            nn.ConvTranspose2d(coarse, middle, 2, stride=2),
            *(Block(middle) for _ in range(blocks[1])),
            nn.ConvTranspose2d(middle, fine, 2, stride=2),
            *(Block(fine) for _ in range(blocks[0])),
            _zero(nn.Conv2d(fine, 3 * 4**2, 3, padding=1)),
            nn.PixelShuffle(4),
        )

    @property
    def basis(self) -> Basis:
        """The linear part."""
        return Basis(self.mean, self.components, self.scale)

    def set_basis(self, basis: Basis) -> None:
        """Takes the linear part over."""
        for name, value in vars(basis).items():
            getattr(self, name).copy_(value)

    def encode(self, x: Tensor, return_dict: bool = True) -> Encoded | tuple[Tensor]:
        """(B, 3, H, W) in -1..1, sides multiples of 16, to latents of variance about 1."""
        latents = self.basis.encode(x)
        return Encoded(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> Decoded | tuple[Tensor]:
        """Latents (B, 16, h, w) to pictures (B, 3, 16 h, 16 w). `generator` is for the pipelines' sake."""
        sample = self.basis.decode(z) + self.residual(z)
        return Decoded(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor) -> Tensor:
        """There and back."""
        return self.decode(self.encode(sample, False)[0], False)[0]


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def reconstruction_loss(out: Tensor, x: Tensor) -> Tensor:
    """L1 on values and on horizontal and vertical differences, which keeps edges sharp; both (B, 3, H, W)."""
    across = F.l1_loss(out.diff(dim=3), x.diff(dim=3)) + F.l1_loss(out.diff(dim=2), x.diff(dim=2))
    return F.l1_loss(out, x) + EDGE_WEIGHT * across


def crops(pictures: np.ndarray, side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` random crops (count, side, side, 3) on the patches' grid; of three tries the one with most to see."""
    found = []
    places = (pictures.shape[1] - side) // FACTOR + 1
    for i in rng.integers(0, len(pictures), count):
        tries = [tuple(FACTOR * rng.integers(0, places, 2)) for _ in range(3)]
        windows = [pictures[i, y : y + side, x : x + side] for y, x in tries]
        found.append(max(windows, key=lambda w: float(w[::4, ::4].std())))
    return np.stack(found)


def train(
    folder: Path, steps: int, batch: int, side: int, rate: float, pictures: int, init: Path | None
) -> PatchAutoencoder:
    """Trains the decoder on the latents of `basis.BASIS`; saves to `folder` and returns it in evaluation mode."""
    torch.manual_seed(0)
    vae: Any = PatchAutoencoder() if init is None else PatchAutoencoder.from_pretrained(init).float().train()
    vae.set_basis(Basis.load())
    vae.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    run = Run(folder.with_name(f"{folder.name}_run"), {"vae": vae, "optimiser": optimiser}, steps)
    shown = drawn(pictures, seed=run.step)
    total = 0.0
    for step in run.remaining():
        for group in optimiser.param_groups:
            group["lr"] = rate_at(rate, step, steps)
        x = to_tensor(crops(shown, side, batch, np.random.default_rng(step)))
        z = vae.encode(x).latents
        with mixed_precision("cpu"):
            given = z + NOISE * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
            residual = vae.residual(given)
        out = vae.basis.decode(given) + residual.float()
        loss = reconstruction_loss(out, x)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        total += float(F.mse_loss(out.detach(), x))
        if (step + 1) % 50 == 0:
            run.log(loss=float(loss.detach()), psnr=10 * np.log10(4 / (total / 50)))
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            _save(vae, folder)
    return vae.eval()


@torch.inference_mode()
def psnr(vae: PatchAutoencoder, pictures: np.ndarray) -> float:
    """Of whole pictures (B, SIDE, SIDE, 3) uint8 there and back, in decibels over all of them."""
    errors = [F.mse_loss(vae.forward(x).clamp(-1, 1), x) for x in to_tensor(pictures).split(8)]
    return float(10 * torch.log10(4 / torch.stack(errors).mean()))


def _save(vae: PatchAutoencoder, folder: Path) -> None:
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    vae.save_pretrained(fresh)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "vae")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=96, help="of the crops, in pixels")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--pictures", type=int, default=2000, help="drawn beforehand")
    parser.add_argument("--init", type=Path, help="a folder with an autoencoder to go on from")
    args = parser.parse_args()
    vae = train(args.out, args.steps, args.batch, args.side, args.rate, args.pictures, args.init)
    print(f"held-out scenes: {psnr(vae, drawn(100, held_out=True)):.2f} dB")


if __name__ == "__main__":
    main()
