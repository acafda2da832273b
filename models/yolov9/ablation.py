"""The paper's claims in small: with and without PGI, and GELAN's block against plain ELAN and plain CSP.

    python -m models.yolov9.ablation --out assets/yolov9/evidence/ablation.json

Every run sees the same pictures in the same order for the same number of steps; only the network (and the
seed of its initial weights) differs. Runs resume; the result is rewritten after each.
Paper: tables 2 (GELAN's computational blocks) and 3 to 5 (PGI).
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.records import record
from models.runtime import Device
from models.yolov9 import art
from models.yolov9.blocks import Conv, RepNCSP, RepNCSPELAN4
from models.yolov9.classes import COCO_NAMES
from models.yolov9.compose import Composer
from models.yolov9.data import CompositeBatches, Stage
from models.yolov9.evaluate import VALIDATION_SEED, mean_average_precision
from models.yolov9.network import Network, build, fuse
from models.yolov9.pipeline import Detector
from models.yolov9.train import EMBEDDED, Recipe, train

# Few classes and small pictures, so that twelve runs fit into half an hour on two cores.
CLASSES = (
    "banana",
    "apple",
    "carrot",
    "pizza",
    "donut",
    "cat",
    "dog",
    "bus",
    "airplane",
    "book",
    "scissors",
    "chair",
)
SIZE, BATCH, EPOCHS, PICTURES = 128, 16, 3, 300
SEEDS = (0, 1, 2)


class PlainELAN(nn.Module):
    """ELAN with stacked 3x3 convolutions where GELAN puts CSP blocks."""

    def __init__(self, i: int, o: int, split: int, branch: int, width: int) -> None:
        super().__init__()
        self.cv1 = Conv(i, split)
        self.cv2 = nn.Sequential(Conv(split // 2, width, 3), Conv(width, branch, 3))
        self.cv3 = nn.Sequential(Conv(branch, width, 3), Conv(width, branch, 3))
        self.cv4 = Conv(split + 2 * branch, o)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).chunk(2, 1)
        c = self.cv2(b)
        return self.cv4(torch.cat((a, b, c, self.cv3(c)), 1))


class PlainCSP(nn.Module):
    """One CSP block of the same kind, without ELAN's aggregation of intermediate outputs."""

    def __init__(self, i: int, o: int, width: int, n: int) -> None:
        super().__init__()
        self.csp = RepNCSP(i, width, n)
        self.out = Conv(width, o)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.csp(x))


def variant(name: str, classes: int) -> Network:
    """`"pgi"`, `"gelan"` (the same without PGI), `"elan"` or `"csp"` (its blocks swapped, equal parameters)."""
    network = build("yolov9-t" if name == "pgi" else "gelan-t", classes, training=True, class_width=80)
    if name in ("elan", "csp"):
        for i, layer in enumerate(network.model):
            if isinstance(layer, RepNCSPELAN4):
                network.model[i] = _equal_size(layer, _elan if name == "elan" else _csp)
    return network


def _elan(block: RepNCSPELAN4, width: int) -> nn.Module:
    split = block.cv1.conv.out_channels
    branch = (block.cv4.conv.in_channels - split) // 2
    return PlainELAN(block.cv1.conv.in_channels, block.cv4.conv.out_channels, split, branch, width)


def _csp(block: RepNCSPELAN4, width: int) -> nn.Module:
    inner = block.cv2[0]
    assert isinstance(inner, RepNCSP)
    repeats = len(inner.m)
    return PlainCSP(block.cv1.conv.in_channels, block.cv4.conv.out_channels, 2 * (width // 2), repeats)


def _equal_size(block: RepNCSPELAN4, make: Callable[[RepNCSPELAN4, int], nn.Module]) -> nn.Module:
    """The plain block whose width brings its parameter count nearest to GELAN's."""
    wanted = parameters(block)
    return min((make(block, w) for w in range(8, 400, 2)), key=lambda m: abs(parameters(m) - wanted))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


VARIANTS = {
    "pgi": "GELAN-T trained with PGI",
    "gelan": "GELAN-T without PGI",
    "elan": "plain ELAN blocks, equal size",
    "csp": "plain CSP blocks, equal size",
}


def run(name: str, seed: int, composer: Composer, validation: Composer, out: Path) -> dict[str, Any]:
    """Trains one variant and measures it on new composites of the held-out vendor."""
    recipe: Recipe = replace(
        EMBEDDED, size=SIZE, batch=BATCH, epochs=EPOCHS, seed=seed, warmup_epochs=0.5, warmup_steps=50,
        ema_decay=0.99, ema_ramp=50, save_every=100,
    )  # fmt: skip
    recipe = replace(recipe, network="yolov9-t" if name == "pgi" else "gelan-t")
    data = CompositeBatches(composer, [Stage(1, (SIZE,))], BATCH, EPOCHS, seed)
    folder = out / f"{name}-{seed}"
    torch.manual_seed(seed)
    network = train(recipe, data, folder, network=variant(name, data.classes))
    detector = Detector(fuse(network), COCO_NAMES, Device("cpu", None, "float32", False))  # type: ignore[arg-type]
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + PICTURES)
    metrics = mean_average_precision(detector, (validation.scene(s, SIZE) for s in seeds), SIZE)
    with (folder / "log.csv").open() as file:
        curve = [(int(row["step"]), float(row["box"]), float(row["class"])) for row in csv.DictReader(file)]
    return {"variant": name, "seed": seed, "AP": metrics["AP"], "AP50": metrics["AP50"], "curve": curve}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds with a 95 % interval (Student's t)."""
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % quantiles by number of seeds
    rows = []
    for name, title in VARIANTS.items():
        found = [r for r in runs if r["variant"] == name]
        if found:
            row: dict[str, Any] = {"variant": name, "title": title, "seeds": len(found)}
            row["parameters"] = parameters(variant("gelan" if name == "pgi" else name, len(COCO_NAMES)))
            for metric in ("AP", "AP50"):
                values = np.array([r[metric] for r in found])
                row[metric] = float(values.mean())
                if len(found) in t:
                    row[f"{metric}_interval"] = float(t[len(found)] * values.std(ddof=1) / math.sqrt(len(found)))
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, default=Path("runs/yolov9/art"))
    parser.add_argument("--runs", type=Path, default=Path("runs/yolov9/ablation"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wanted = {COCO_NAMES.index(name) for name in CLASSES}
    training, validation = Composer.from_art(args.art), Composer.from_art(args.art, (art.HELD_OUT_VENDOR,))
    for composer in (training, validation):
        composer.cutouts = {k: v for k, v in composer.cutouts.items() if k in wanted}
        composer.classes = sorted(composer.cutouts)
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        for name in VARIANTS:
            runs.append(run(name, seed, training, validation, args.runs))
            setting = {
                "classes": CLASSES,
                "size": SIZE,
                "batch": BATCH,
                "steps": EPOCHS * 100,
                "pictures": PICTURES,
            }
            record(args.out, {"setting": setting, "summary": summary(runs), "runs": runs})
            print(f"{name} seed {seed}: AP {runs[-1]['AP']:.3f}, AP50 {runs[-1]['AP50']:.3f}", flush=True)


if __name__ == "__main__":
    main()
