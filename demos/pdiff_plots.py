"""The P-diff tab's figures, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

COLOURS = {
    "originals": "#64748b",
    "generated": "#0f766e",
    "noise": "#d97706",
    "interpolation": "#2563eb",
    "mean of 16": "#7c3aed",
    "gaussian": "#be185d",
}
ENSEMBLE = "#111827"


def latent_figure(latents: np.ndarray, originals: np.ndarray, text: str) -> Figure:
    """Latents (N, 2) on their way from noise, over the originals' (K, 2). The frame does not move."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(originals[:, 0], originals[:, 1], s=10, color=COLOURS["originals"], alpha=0.5, label="originals")
    axes.scatter(latents[:, 0], latents[:, 1], s=14, color=COLOURS["generated"], alpha=0.8, label="generated")
    reach = 1.25 * max(3.0, float(np.abs(originals).max()))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="first direction", ylabel="second direction")
    axes.set_title(text)
    axes.legend(frameon=False, loc="upper right")
    return figure


def accuracy_figure(groups: Mapping[str, np.ndarray], ensemble: float) -> Figure:
    """Histograms of accuracy in percent, one a group; a line marks the ensemble."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    everything = np.concatenate([*groups.values(), [ensemble]])
    bins = np.linspace(everything.min() - 0.05, everything.max() + 0.05, 41).tolist()
    for name, values in groups.items():
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values, bins, weights=weights, alpha=0.55, color=COLOURS[name], label=f"{name} ({len(values)})")
    axes.axvline(ensemble, color=ENSEMBLE, linestyle="--", label="ensemble")
    axes.set(xlabel="test accuracy (%)", ylabel="share of networks (%)", title="Accuracy of every network")
    axes.legend(frameon=False)
    return figure


def novelty_figure(groups: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Accuracy against similarity and against distance. Each group: accuracy, max similarity, nearest distance."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, (accuracy, similar, distance) in groups.items():
        style = {"s": 16, "alpha": 0.6, "color": COLOURS[name], "label": name}
        left.scatter(similar, accuracy, **style)
        right.scatter(distance, accuracy, **style)
    left.set(xlabel="largest IoU of wrong predictions with any original", ylabel="test accuracy (%)")
    left.invert_xaxis()
    right.set(xlabel="distance to the nearest original, in parameters")
    left.set_title("In behaviour: newer to the right")
    right.set_title("In parameters: newer to the right")
    right.legend(frameon=False)
    return figure


def bars_figure(values: Mapping[str, float]) -> Figure:
    """Horizontal bars of IoU between groups."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    names = list(values)
    bars = axes.barh(
        names, list(values.values()), color=[COLOURS["generated"] if "gen" in n else "#94a3b8" for n in names]
    )
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set(xlim=(0, 1.1), xlabel="IoU of wrong predictions")
    axes.invert_yaxis()
    return figure


def curves_figure(losses: Mapping[str, Sequence[float]]) -> Figure:
    """One panel a stage of the pipeline, loss against step, on a log scale."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    titles = {"collect": "1 · Train and collect", "autoencoder": "2 · Autoencoder", "diffusion": "3 · Latent diffusion"}
    for axes, (stage, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = losses.get(stage, [])
        axes.set(title=title, xlabel="step")
        if values:
            axes.semilogy(range(1, len(values) + 1), values, color=COLOURS["generated"], linewidth=1)
        else:
            axes.set(xticks=[], yticks=[])
    figure.axes[0].set_ylabel("loss")
    return figure
