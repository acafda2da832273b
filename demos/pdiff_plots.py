"""The P-diff tab's figures, as matplotlib figures: transparent, in greys that can be read on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "originals": "#64748b",
    "generated": "#0d9488",
    "noise": "#d97706",
    "interpolation": "#3b82f6",
    "mean of 16": "#8b5cf6",
    "gaussian": "#db2777",
}
ENSEMBLE = "#dc2626"
INK = "#6b7a90"  # at least 4:1 on white and on the dark page
LEGEND: dict[str, Any] = {"frameon": False, "labelcolor": INK}


def latent_figure(latents: np.ndarray, originals: np.ndarray, text: str) -> Figure:
    """Latents (N, 2) on their way from noise, over the originals' (K, 2). The frame does not move."""
    figure, (axes,) = _figure(5.6, 4.2)
    axes.scatter(originals[:, 0], originals[:, 1], s=10, color=COLOURS["originals"], alpha=0.5, label="originals")
    axes.scatter(latents[:, 0], latents[:, 1], s=14, color=COLOURS["generated"], alpha=0.8, label="generated")
    reach = 1.25 * max(3.0, float(np.abs(originals).max()))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), title=text)
    axes.set(xlabel="latents, first direction", ylabel="second direction")
    axes.legend(loc="upper right", **LEGEND)
    return figure


def accuracy_figure(groups: Mapping[str, np.ndarray], ensemble: float) -> Figure:
    """Histograms of accuracy in percent, one a group; a line marks the ensemble."""
    figure, (axes,) = _figure(5.6, 4.2)
    everything = np.concatenate([*groups.values(), [ensemble]])
    bins = np.linspace(everything.min() - 0.05, everything.max() + 0.05, 31).tolist()
    for name, values in groups.items():
        weights = np.full(len(values), 100 / len(values))
        label = f"{name} ({len(values)})"
        if name == "noise":  # an outline, so that three groups can be told apart
            axes.hist(values, bins, weights=weights, histtype="step", linewidth=1.5, color=COLOURS[name], label=label)
        else:
            axes.hist(values, bins, weights=weights, alpha=0.6, color=COLOURS[name], label=label)
    axes.axvline(ensemble, color=ENSEMBLE, linestyle="--", label="ensemble")
    axes.set(xlabel="test accuracy (%)", ylabel="share of networks (%)", title="Accuracy of every network")
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(ncols=2, loc="upper left", fontsize=10, **LEGEND)
    return figure


def novelty_figure(groups: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Accuracy against similarity and against distance. Each group: accuracy, max similarity, nearest distance."""
    figure, (left, right) = _figure(11.5, 4.4, 2, sharey=True)
    for name, (accuracy, similar, distance) in groups.items():
        left.scatter(similar, accuracy, s=16, alpha=0.6, color=COLOURS[name], label=name)
        right.scatter(distance, accuracy, s=16, alpha=0.6, color=COLOURS[name])
    left.set(xlabel="largest IoU of wrong predictions with any original", ylabel="test accuracy (%)")
    left.invert_xaxis()
    left.locator_params(axis="x", nbins=6)
    right.set(xlabel="distance to the nearest original, in parameters")
    left.set_title("In behaviour: newer to the right")
    right.set_title("In parameters: newer to the right")
    figure.legend(loc="outside right center", markerscale=2, **LEGEND)
    return figure


def bars_figure(values: Mapping[str, float]) -> Figure:
    """Horizontal bars of IoU between groups."""
    figure, (axes,) = _figure(7, 3.2)
    names = list(values)
    colours = [COLOURS["generated"] if "gen" in name else "#94a3b8" for name in names]
    axes.bar_label(axes.barh(names, list(values.values()), color=colours), fmt="%.3f", padding=3, color=INK)
    axes.set(xlim=(0, 1.1), xlabel="IoU of wrong predictions")
    axes.invert_yaxis()
    return figure


def curves_figure(losses: Mapping[str, Sequence[float]]) -> Figure:
    """One panel a stage of the pipeline, loss against step, on a log scale."""
    titles = {"collect": "1 · Train and collect", "autoencoder": "2 · Autoencoder", "diffusion": "3 · Latent diffusion"}
    figure, panels = _figure(11, 3.6, 3)
    for axes, (stage, title) in zip(panels, titles.items(), strict=True):
        values = losses.get(stage, [])
        axes.set(title=title, xlabel="step")
        if values:
            axes.semilogy(range(1, len(values) + 1), values, color=COLOURS["generated"], linewidth=1)
        else:
            axes.set(xticks=[], yticks=[])
    panels[0].set_ylabel("loss")
    return figure


def _figure(width: float, height: float, panels: int = 1, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Not through matplotlib's defaults, which other threads share."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    every = list(figure.subplots(1, panels, sharey=sharey, squeeze=False)[0])
    for axes in every:
        axes.set_facecolor("none")
        axes.tick_params(which="both", colors=INK)
        for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
            part.set_color(INK)
        for side, spine in axes.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom"))
    return figure, every
