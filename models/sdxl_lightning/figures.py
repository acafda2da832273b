"""Draws the tab's picture from the shapes of the networks it uses and the sampler's own timesteps.

python -m models.sdxl_lightning.figures
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn

from models import sdxl_lightning
from models.runtime import choose_device
from models.sdxl_lightning.pipeline import TEACHER, Family
from models.sdxl_lightning.schedulers import STEPS, plan, student_scheduler, teacher_scheduler
from models.sdxl_lightning.text import LENGTH, WIDTH
from models.weights import ASSETS

COLOURS = {"text": "#64748b", "network": "#0f766e", "decoder": "#2563eb", "picture": "#7c3aed"}
TEACHER_STEPS = 32


def how_it_works(target: Path, folder: Path | None = None) -> None:
    """Above: words, noise, network, decoder, picture. Below: where each student and the teacher stop on the way."""
    family = sdxl_lightning.loader("embedded", folder)(lambda *_: None, choose_device("cpu")).model
    figure, (above, below) = plt.subplots(2, 1, figsize=(15, 8), height_ratios=(3, 2))
    _networks(above, family)
    _jumps(below, family)
    figure.tight_layout()
    figure.savefig(target, dpi=80)


def _networks(axes: plt.Axes, family: Family) -> None:
    axes.set(xlim=(0, 15), ylim=(0, 5.2))
    axes.axis("off")
    config = family.read(TEACHER).config
    side, channels = config.sample_size, config.in_channels
    _box(axes, 1.2, 3.9, f"your words\n{LENGTH} tokens\n{WIDTH} numbers each\n(MiniLM, frozen)", "text", 2.0, 1.7)
    _box(axes, 1.2, 1.3, f"noise\n{channels} x {side} x {side}\nfrom the seed", "text", 2.0, 1.3)
    levels = list(config.block_out_channels)
    heights = [2.9 - 0.7 * i for i in range(len(levels))]
    places = [3.4 + 1.15 * i for i in range(2 * len(levels) - 1)]
    order = [*range(len(levels)), *range(len(levels) - 2, -1, -1)]
    for x, level in zip(places, order, strict=True):
        _box(axes, x, 1.9, f"{levels[level]}\n{side >> level} x {side >> level}", "network", 1.0, heights[level])
    axes.text(places[0] - 0.5, 4.35, "Network: predicts the clean latents, reads the words", fontsize=12)
    parameters = sum(p.numel() for p in family.read(TEACHER).parameters())
    axes.text(
        places[0] - 0.5, 4.0, f"{parameters / 1e6:.1f} M parameters, passed through 1, 2, 4 or 8 times", fontsize=11
    )
    x = places[-1] + 1.5
    for i, (width, size) in enumerate(_decoder_shapes(family)):
        _box(axes, x + 1.05 * i, 1.9, f"{width}\n{size} x {size}", "decoder", 0.95, 1.1 + 0.45 * i)
    axes.text(x - 0.5, 4.35, "Decoder: once, at the end", fontsize=12)
    last = x + 1.05 * len(_decoder_shapes(family)) + 0.5
    _box(axes, last, 1.9, f"picture\n3 x {family.native[1]} x {family.native[0]}", "picture", 1.5, 1.5)
    _arrow(axes, (2.25, 1.5), (2.85, 1.8))
    _arrow(axes, (2.25, 3.7), (places[1] - 0.4, 3.1))
    _arrow(axes, (places[-1] + 0.55, 1.9), (x - 0.5, 1.9))


def _jumps(axes: plt.Axes, family: Family) -> None:
    """Noise levels where each sampler evaluates its network, on a logarithmic axis."""
    rows: list[tuple[str, list[float], str]] = []
    teacher = plan(teacher_scheduler(family.base), TEACHER_STEPS)
    rows.append((f"teacher, {TEACHER_STEPS} steps", teacher.sigmas[:-1].tolist(), COLOURS["text"]))
    for steps in reversed(STEPS):
        sigmas = plan(student_scheduler(family.base, steps), steps).sigmas[:-1].tolist()
        rows.append((f"student, {steps} step{'s' * (steps > 1)}", sigmas, COLOURS["network"]))
    clean = min(rows[0][1]) / 2
    for y, (_, sigmas, colour) in enumerate(reversed(rows)):
        stops = [*sigmas, clean]
        axes.plot(sigmas, [y] * len(sigmas), "o", color=colour, markersize=6)
        for start, end in zip(stops, stops[1:], strict=False):
            bend = 0.0 if len(sigmas) > max(STEPS) else -0.09 / math.log10(start / end)  # arcs of one height
            arrow = FancyArrowPatch(
                (start, y), (end, y), arrowstyle="-|>", mutation_scale=10, color=colour, shrinkA=0, shrinkB=2,
                connectionstyle=f"arc3,rad={bend:.3f}",
            )  # fmt: skip
            axes.add_patch(arrow)
    axes.set_xscale("log")
    axes.set_xlim(max(rows[0][1]) * 1.3, clean / 1.3)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.set_xlabel("noise level (sigma): from pure noise on the left to a picture on the right")
    axes.set_title("Each dot is a pass through the network, each arc the jump that follows", loc="left", fontsize=12)
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)


def _decoder_shapes(family: Family) -> list[tuple[int, int]]:
    """(channels, side) after the decoder's first convolution and after each widening, by running it."""
    found: list[tuple[int, int]] = []
    vae = family.pipe.vae
    kinds = (nn.ConvTranspose2d, nn.PixelShuffle)
    hooks = [
        layer.register_forward_hook(lambda _, given, out: found.append((given[0].shape[1], given[0].shape[2])))
        for layer in vae.modules()
        if isinstance(layer, kinds)
    ]
    side = family.native[0] // family.grid
    with torch.inference_mode():
        vae.decode(torch.zeros(1, family.read(TEACHER).config.in_channels, side, side, dtype=vae.dtype))
    for hook in hooks:
        hook.remove()
    return found


def _box(axes: plt.Axes, x: float, y: float, text: str, part: str, width: float, height: float) -> None:
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", color=COLOURS[part], alpha=0.92))
    axes.text(x, y, text, ha="center", va="center", color="white", fontsize=9.5)


def _arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color="#111827"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=ASSETS / "sdxl_lightning")
    parser.add_argument("--folder", type=Path, help="networks to draw; by default the shipped ones")
    args = parser.parse_args()
    how_it_works(args.assets / "how_it_works.png", args.folder)


if __name__ == "__main__":
    main()
