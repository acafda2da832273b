"""Draws the tab's picture from the shapes of the networks it uses.

python -m models.pdiff.figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn

from models import pdiff
from models.pdiff.diffusion import STEPS
from models.pdiff.train import Generator
from models.weights import ASSETS

COLOURS = {"data": "#64748b", "autoencoder": "#2563eb", "diffusion": "#0f766e", "result": "#7c3aed"}


def how_it_works(target: Path) -> None:
    """Checkpoints, autoencoder with its real shapes, denoiser with its real widths, new networks."""
    zoo = pdiff.load().zoo
    generator, vectors = zoo.generator, zoo.collection.vectors
    encoder = _shapes(generator.autoencoder.encoder, torch.zeros(1, 1, generator.normaliser.length), nn.Conv1d)
    decoder = _shapes(generator.autoencoder.decoder, _folded(generator), nn.ConvTranspose1d)
    latent = len(generator.latent_mean)
    widths = [layer.out_channels for layer in generator.denoiser.layers]
    figure, axes = plt.subplots(figsize=(15, 5.6))
    axes.set(xlim=(-0.9, 15), ylim=(-0.3, 5.6))
    axes.axis("off")
    up, down = 4.0, 1.0  # the two rows
    checkpoints = f"{len(vectors)} checkpoints\nof {vectors.shape[1]} parameters\n{zoo.collection.network}"
    _box(axes, 0.4, up, checkpoints, "data")
    for i, (channels, length) in enumerate(encoder):
        _box(axes, 2.6 + 1.35 * i, up, f"conv\n{channels} x {length}", "autoencoder", 1.1, 1.9 - 0.3 * i)
    _box(axes, 9.9, up, f"latents\n{latent} numbers", "diffusion", 1.5, 1.0)
    _box(axes, 12.9, up, f"diffusion learns them:\n{STEPS} noise levels, 8 convolutions\n"
         + "-".join(map(str, widths)), "diffusion", 3.3, 1.5)  # fmt: skip
    _box(axes, 13.7, down, f"noise\n{latent} numbers", "data", 1.7, 1.0)
    _box(axes, 9.9, down, f"new latents\n{latent} numbers", "diffusion", 1.6, 1.0)
    for i, (channels, length) in enumerate(decoder):
        _box(axes, 8.1 - 1.35 * i, down, f"up\n{channels} x {length}", "autoencoder", 1.1, 0.7 + 0.3 * i)
    _box(axes, 0.4, down, f"new networks\n{vectors.shape[1]} parameters each", "result", 2.0, 1.2)
    right, left = ((1.45, 2.0), (8.55, 9.1), (10.7, 11.2)), ((12.8, 10.75), (9.05, 8.7), (2.1, 1.45))
    for y, spans in ((up, right), (down, left)):
        for start, end in spans:
            arrow = FancyArrowPatch((start, y), (end, y), arrowstyle="-|>", mutation_scale=16, color="#111827")
            axes.add_patch(arrow)
    axes.add_patch(FancyArrowPatch((11.75, up - 0.8), (11.75, down + 0.05), arrowstyle="-|>", mutation_scale=16,
                                   color=COLOURS["diffusion"], linestyle="--"))  # fmt: skip
    axes.text(11.95, 2.3, "denoises, step by step", color=COLOURS["diffusion"], fontsize=12)
    axes.text(-0.6, 5.25, "Learning: an autoencoder, then a diffusion model on its latents", fontsize=14)
    axes.text(-0.6, 2.4, "Generating: noise, latents, parameters", fontsize=14)
    figure.tight_layout()
    figure.savefig(target, dpi=80)


def _folded(generator: Generator) -> torch.Tensor:
    return generator.autoencoder.unfold(torch.zeros(1, len(generator.latent_mean)))


def _shapes(network: nn.Sequential, x: torch.Tensor, kind: type[nn.Module]) -> list[tuple[int, int]]:
    """(channels, length) after each layer of a kind."""
    found = []
    for layer in network:
        x = layer(x)
        if isinstance(layer, kind):
            found.append((x.shape[1], x.shape[2]))
    return found


def _box(axes: plt.Axes, x: float, y: float, text: str, part: str, width: float = 2.1, height: float = 1.5) -> None:
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", color=COLOURS[part], alpha=0.92))
    axes.text(x, y, text, ha="center", va="center", color="white", fontsize=11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=ASSETS / "pdiff")
    how_it_works(parser.parse_args().assets / "how_it_works.png")


if __name__ == "__main__":
    main()
