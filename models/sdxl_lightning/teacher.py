"""Trains the teacher: the embedded model's network as an ordinary latent diffusion model with SDXL's noise schedule.

    python -m models.sdxl_lightning.teacher [--steps 6000] [--init assets/sdxl_lightning/teacher_unet]

Resumable; writes `runs/sdxl_lightning/teacher` (state, log, grids with fixed noise) and the pipeline folder
`runs/sdxl_lightning/pipeline`. The network predicts v: SDXL's schedule leaves a signal of 0.068 at its end, where
dividing by it would multiply an epsilon-predicting small network's error by 14.6. As the paper's section 3.5 has it,
the network is shown pure noise at t = T and the schedule stays as it is for sampling.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from models.runtime import mixed_precision
from models.sdxl_lightning.network import build_unet, read_unet
from models.sdxl_lightning.pool import Pool
from models.sdxl_lightning.preview import Preview
from models.sdxl_lightning.recipe import RUNS, Average, Run, rate_at
from models.sdxl_lightning.schedule import LAST, Schedule, scheduler_config

PIPELINE = RUNS / "pipeline"
NO_WORDS = 0.12  # share of captions left out, for guidance
AT_LAST = 0.05  # share of samples at t = T, where every sampler starts
GAMMA = 5.0  # min-SNR: the weight of nearly clean samples falls above this signal-to-noise ratio
DECAY = 0.999


def loss_of(network: nn.Module, schedule: Schedule, clean: Tensor, words: Tensor) -> Tensor:
    """Min-SNR weighted squared error of v at random timesteps; clean (B, 16, 16, 16), words (B, L, 384)."""
    count = len(clean)
    t = torch.randint(0, LAST + 1, (count,))
    t[torch.rand(count) < AT_LAST] = LAST
    noise = torch.randn_like(clean)
    with mixed_precision("cpu"):
        v = network(schedule.shown(clean, noise, t), t, words).sample.float()
    error = F.mse_loss(v, schedule.v(clean, noise, t), reduction="none").mean((1, 2, 3))
    return (error * (GAMMA / schedule.snr(t)).clamp(max=1)).mean()


def train(folder: Path, steps: int, batch: int, rate: float, init: Path | None) -> None:
    """Trains and leaves the average in the pipeline folder's `unet`."""
    torch.manual_seed(0)
    network = build_unet() if init is None else read_unet(init)
    average = Average(network, DECAY)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    run = Run(folder, {"network": network, "average": average, "optimiser": optimiser}, steps)
    pool, schedule, preview = Pool.load(), Schedule(), Preview()
    total = 0.0
    for step in run.remaining():
        for group in optimiser.param_groups:
            group["lr"] = rate_at(rate, step, steps)
        loss = loss_of(network, schedule, *pool.draw(batch, NO_WORDS))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update(network)
        total += float(loss.detach())
        if (step + 1) % 100 == 0:
            run.log(loss=total / 100, rate=optimiser.param_groups[0]["lr"])
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            smooth = build_unet()
            average.copy_to(smooth)
            look(preview, smooth, folder / f"grid{step + 1:06d}.png")
            publish(smooth, PIPELINE / "unet")


def look(preview: Preview, network: nn.Module, path: Path) -> None:
    """Saves the grid with fixed noise."""
    preview.guided(network.eval()).save(path)


def publish(network: Any, folder: Path) -> None:
    """Puts the network and its scheduler into a pipeline folder, half precision, each whole or not at all."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    network.half().save_pretrained(fresh)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    EulerDiscreteScheduler.from_config(scheduler_config()).save_pretrained(folder.parent / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "teacher")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--init", type=Path, help="a folder with a network to go on from")
    args = parser.parse_args()
    train(args.out, args.steps, args.batch, args.rate, args.init)


if __name__ == "__main__":
    main()
