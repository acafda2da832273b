"""Draws the tab's pictures: how it works from the network's own shapes, the evidence from the recorded data.

python -m models.yolov9.figures --assets assets/yolov9
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from models.yolov9.network import Network, build

# Where each layer of yolov9-t stands: (row, strides are the columns). Rows from bottom to top.
ROWS = {"backbone": 3, "top-down": 2, "bottom-up": 1, "auxiliary": 4}
PART = {
    **dict.fromkeys(range(9), "backbone"),
    **dict.fromkeys(range(9, 16), "top-down"),
    **dict.fromkeys(range(16, 22), "bottom-up"),
    **dict.fromkeys(range(22, 29), "auxiliary"),
}
COLOURS = {"backbone": "#0f766e", "top-down": "#2563eb", "bottom-up": "#7c3aed", "auxiliary": "#d97706"}
SHOWN = ("Conv", "ELAN1", "RepNCSPELAN4", "SPPELAN")


def how_it_works(target: Path) -> None:
    """YOLOv9-T in training form at 640 x 640: blocks with their output shapes, the PGI branch above."""
    network = build("yolov9-t", training=True, class_width=80)
    shapes = layer_shapes(network, 640)
    figure, axes = plt.subplots(figsize=(15, 7.5))
    place = {}
    for i, layer in enumerate(network.model):
        kind = type(layer).__name__
        if kind in SHOWN and i in PART and i != 1:  # the stem's second convolution would cover ELAN1
            c, h, _ = shapes[i]
            place[i] = (np.log2(640 / h) + (0.0 if kind != "SPPELAN" else 0.62), ROWS[PART[i]])
            name = {"RepNCSPELAN4": "GELAN block"}.get(kind, kind)
            _box(axes, *place[i], f"{name}\n{c} x {h} x {h}", COLOURS[PART[i]])
    for i, end in place.items():
        for j in _visible_sources(network, i, place):
            _arrow(axes, place[j], end, COLOURS[PART[i]])
    for row, main in ((0.05, True), (4.95, False)):
        text = "Main head: boxes and classes at strides 8, 16, 32" if main else "Auxiliary head: only in training"
        _box(axes, 4, row, text, "#111827" if main else "#b45309", width=2.6)
    for i in (15, 18, 21):
        _arrow(axes, place[i], (4, 0.05), "#111827")
    for i in (28, 25, 22):
        _arrow(axes, place[i], (4, 4.95), "#b45309")
    parts = sum(p.numel() for i in range(22) for p in network.model[i].parameters())
    auxiliary = sum(p.numel() for i in range(22, 29) for p in network.model[i].parameters())
    axes.set_title(
        f"YOLOv9-T: backbone and neck {parts / 1e6:.2f} M parameters; the PGI branch (orange) adds "
        f"{auxiliary / 1e6:.2f} M and its head, and is cut off after training",
        fontsize=13,
    )
    for part, row in ROWS.items():
        axes.text(0.35, row, part, ha="right", va="center", fontsize=12, color=COLOURS[part], fontweight="bold")
    axes.set_xlim(-0.2, 6.4)
    axes.set_ylim(-0.4, 5.4)
    axes.axis("off")
    figure.savefig(target, dpi=110, bbox_inches="tight")
    plt.close(figure)


def layer_shapes(network: Network, size: int) -> dict[int, tuple[int, int, int]]:
    """Layer index -> (C, H, W) of its output, read off a forward pass."""
    shapes: dict[int, tuple[int, int, int]] = {}

    def note(i: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                shapes[i] = (output.shape[1], output.shape[2], output.shape[3])

        return hook

    handles = [layer.register_forward_hook(note(i)) for i, layer in enumerate(network.model)]
    with torch.no_grad():
        network(torch.zeros(2, 3, size, size))
    for handle in handles:
        handle.remove()
    return shapes


def _visible_sources(network: Network, i: int, place: dict[int, Any]) -> set[int]:
    """The drawn layers that feed layer i, looking through pools, concatenations and up-sampling."""
    found: set[int] = set()
    todo = list(network.sources[i])
    while todo:
        j = todo.pop()
        if j in place:
            found.add(j)
        elif j >= 0:
            todo += network.sources[j]
    return found


def _box(axes: Any, x: float, y: float, text: str, colour: str, width: float = 0.56) -> None:
    patch = FancyBboxPatch(
        (x - width / 2, y - 0.2), width, 0.4, boxstyle="round,pad=0.02", fc="white", ec=colour, lw=2, zorder=3
    )
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=9, zorder=4)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    gap = 38 if start[1] == end[1] else 24  # points from a box's centre to beyond its edge
    bend = 0.12 if start[1] == end[1] and abs(start[0] - end[0]) > 1.1 else 0.0
    arrow = FancyArrowPatch(
        start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=12, color=colour,
        lw=1.2, alpha=0.65, shrinkA=gap, shrinkB=gap, zorder=2,
    )  # fmt: skip
    axes.add_patch(arrow)


def ablation(data: dict[str, Any], target: Path) -> None:
    """Loss curves of every variant (mean over seeds, band: least to most) and AP50 with intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), gridspec_kw={"width_ratios": (3, 2)})
    runs, rows = data["result"]["runs"], data["result"]["summary"]
    colours = {"pgi": "#d97706", "gelan": "#0f766e", "elan": "#2563eb", "csp": "#9ca3af"}
    for row in rows:
        found = [r["curve"] for r in runs if r["variant"] == row["variant"]]
        steps = [point[0] for point in found[0]]
        # A PGI run logs both heads' terms: its loss is not comparable, so the class term is scaled to the main head.
        share = 1 / 1.25 if row["variant"] == "pgi" else 1.0
        values = np.array([[point[2] * share for point in curve] for curve in found])
        left.plot(steps, values.mean(0), color=colours[row["variant"]], label=row["title"])
        left.fill_between(steps, values.min(0), values.max(0), color=colours[row["variant"]], alpha=0.15)
    left.set(xlabel="step", ylabel="class loss (PGI: divided by 1.25 heads)")
    left.legend(frameon=False)
    names = [row["title"] for row in rows][::-1]
    means = [row["AP50"] for row in rows][::-1]
    errors = [row.get("AP50_interval", 0) for row in rows][::-1]
    right.barh(names, means, xerr=errors, color=[colours[row["variant"]] for row in rows][::-1], capsize=4)
    right.set(xlabel="AP50 on the held-out vendor (95 % interval over seeds)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path("assets/yolov9"))
    args = parser.parse_args()
    how_it_works(args.assets / "how_it_works.png")
    recorded = args.assets / "evidence" / "ablation.json"
    if recorded.exists():
        ablation(json.loads(recorded.read_text()), args.assets / "evidence" / "ablation.png")


if __name__ == "__main__":
    main()
