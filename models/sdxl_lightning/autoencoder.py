"""The embedded model's own VAE: 256 x 256 pictures to 16 x 16 latents of 16 channels and back.

    python -m models.sdxl_lightning.autoencoder [--steps 4000]       # resumable; writes runs/sdxl_lightning/vae

An ordinary `diffusers.AutoencoderKL`, narrow where the picture is large, without attention, so that decoding a picture
takes about a tenth of a second on two cores. Trained on crops of `data.Scenes` with L1 on values and on differences of
neighbouring values (edges), and a small KL term.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from models.sdxl_lightning.data import Scenes
from models.sdxl_lightning.recipe import RUNS, Run

CHANNELS = (16, 24, 48, 96, 128)
LATENT_CHANNELS = 16
FACTOR = 2 ** (len(CHANNELS) - 1)
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 1.0


def build() -> AutoencoderKL:
    """The untrained VAE."""
    stages = len(CHANNELS)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=256,
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
    """`count` random crops (count, side, side, 3); of three tries the one with most to see."""
    found = []
    for i in rng.integers(0, len(pictures), count):
        tries = [tuple(rng.integers(0, pictures.shape[1] - side + 1, 2)) for _ in range(3)]
        windows = [pictures[i, y : y + side, x : x + side] for y, x in tries]
        found.append(max(windows, key=lambda w: float(w[::4, ::4].std())))
    return np.stack(found)


def train(folder: Path, steps: int, batch: int, side: int, rate: float, pictures: int) -> AutoencoderKL:
    """Trains the VAE; returns it in evaluation mode with `config.scaling_factor` measured."""
    torch.manual_seed(0)
    vae = build().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(folder, {"vae": vae, "optimiser": optimiser}, steps)
    scenes, rng = Scenes(), random.Random(run.step)
    drawn = np.stack([np.asarray(scenes.draw(scenes.sample(rng, False))) for _ in range(pictures)])
    total = 0.0
    for step in run.remaining():
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * max(0.02, 0.5 * (1 + np.cos(np.pi * step / steps)))
        x = to_tensor(crops(drawn, side, batch, np.random.default_rng(step)))
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(out, x) + KL_WEIGHT * posterior.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        total += float(F.mse_loss(out.detach(), x))
        if (step + 1) % 50 == 0:
            run.log(loss=float(loss.detach()), psnr=10 * np.log10(4 / (total / 50)))
            total = 0.0
    vae.eval()
    with torch.inference_mode():
        latents = torch.cat([vae.encode(to_tensor(drawn[i : i + 16])).latent_dist.mean for i in range(0, 256, 16)])
    vae.register_to_config(scaling_factor=1 / float(latents.std()), shift_factor=None)
    vae.save_pretrained(folder / "vae")
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "vae")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128, help="of the crops, in pixels")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--pictures", type=int, default=2500, help="drawn beforehand")
    args = parser.parse_args()
    train(args.out, args.steps, args.batch, args.side, args.rate, args.pictures)


if __name__ == "__main__":
    main()
