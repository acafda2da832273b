"""The embedded model's VAE: 256 x 256 pictures to 16 x 16 latents of 16 channels and back.

    python -m models.sdxl_lightning.autoencoder [--steps 3000]   # resumable; writes runs/sdxl_lightning/vae

The latents are fixed before anything is trained: the 16 principal components of 16 x 16 patches (`Basis`), which
alone keep 25.6 dB of new scenes. An ordinary `diffusers.AutoencoderKL`, narrow where the picture is large and without
attention, then learns both ways: its decoder to draw the picture from these latents, with the edges that a linear
projection loses (L1 on values and on differences of neighbouring values), its encoder to compute them. So the teacher
can be trained while the VAE still is.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from models.sdxl_lightning.data import SIDE, Scenes
from models.sdxl_lightning.recipe import RUNS, Run, rate_at
from models.weights import read_safetensors, write_safetensors

CHANNELS = (16, 24, 48, 96, 128)
LATENT_CHANNELS = 16
FACTOR = 2 ** (len(CHANNELS) - 1)
BASIS = RUNS / "basis.safetensors"
EDGE_WEIGHT = 1.0
NOISE = 0.05  # on the decoder's latents in training: those of a generated picture are not exact
LOG_VARIANCE = -12.0  # the encoder's: next to none


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


def build() -> AutoencoderKL:
    """The untrained VAE."""
    stages = len(CHANNELS)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=SIDE, scaling_factor=1.0,
        down_block_types=("DownEncoderBlock2D",) * stages, up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=CHANNELS, layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False,
        force_upcast=False,
    )  # fmt: skip


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in -1..1, channels last."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


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


def drawn(count: int, held_out: bool = False, seed: int = 0) -> np.ndarray:
    """Random scenes (count, SIDE, SIDE, 3) uint8."""
    scenes, rng = Scenes(), random.Random(seed)
    return np.stack([np.asarray(scenes.draw(scenes.sample(rng, held_out))) for _ in range(count)])


def train(folder: Path, steps: int, batch: int, side: int, rate: float, pictures: int) -> AutoencoderKL:
    """Trains the VAE towards the basis of `BASIS`; saves it to `folder/vae` and returns it in evaluation mode."""
    torch.manual_seed(0)
    vae, basis = build().to(memory_format=torch.channels_last), Basis.load()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(folder, {"vae": vae, "optimiser": optimiser}, steps)
    shown = drawn(pictures, seed=run.step)
    total = 0.0
    for step in run.remaining():
        for group in optimiser.param_groups:
            group["lr"] = rate_at(rate, step, steps)
        # The last quarter sees whole pictures: the norms' statistics are those of whole pictures in use.
        whole = step >= 0.75 * steps
        count, size = (max(1, batch * side**2 // SIDE**2), SIDE) if whole else (batch, side)
        x = to_tensor(crops(shown, size, count, np.random.default_rng(step)))
        latents = basis.encode(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = vae.decode(latents + NOISE * torch.randn_like(latents)).sample.float()
            posterior = vae.encode(x).latent_dist
        loss = reconstruction_loss(out, x)
        encoding = F.mse_loss(posterior.mean.float(), latents)
        spread = F.mse_loss(posterior.logvar.float(), torch.tensor(LOG_VARIANCE).expand_as(latents))
        optimiser.zero_grad()
        (loss + 0.1 * encoding + 1e-3 * spread).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        total += float(F.mse_loss(out.detach(), x))
        if (step + 1) % 50 == 0:
            run.log(loss=float(loss.detach()), psnr=10 * np.log10(4 / (total / 50)), encoding=float(encoding.detach()))
            total = 0.0
    vae.eval().save_pretrained(folder / "vae")
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "vae16")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64, help="of the crops, in pixels")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--pictures", type=int, default=2500, help="drawn beforehand")
    args = parser.parse_args()
    train(args.out, args.steps, args.batch, args.side, args.rate, args.pictures)


if __name__ == "__main__":
    main()
