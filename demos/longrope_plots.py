"""The LongRoPE tab's figures, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLOURS = {"PI": "#d97706", "NTK": "#2563eb", "YaRN": "#7c3aed", "found": "#0f766e"}
PANELS = 3  # of a heat map, side by side


def heat_map(answered: Sequence[dict[str, Any]], titles: dict[str, str]) -> Figure:
    """Share of right answers by length and depth (in fifths), one panel a method.

    answered: rows with method, target, depth and either correct (bool), or trials and correct (counts). A cell says
    right of asked, and the 95 % Wilson interval.
    """
    from models.longrope.retrieval import wilson

    methods = sorted({r["method"] for r in answered}, key=list(titles).index)
    lengths = sorted({r["target"] for r in answered})
    columns = min(len(methods), PANELS)
    rows = -(-len(methods) // columns)
    size = max(4.0, 1.6 + columns * max(2.6, 1.1 * len(lengths))), 3.6 * rows
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(methods) :]:
        axes.remove()
    for axes, method in zip(panels.flat, methods, strict=False):
        right, asked = np.zeros((2, 5, len(lengths)))
        for r in answered:
            if r["method"] == method:
                cell = min(int(r["depth"] * 5), 4), lengths.index(r["target"])
                asked[cell] += r.get("trials", 1)
                right[cell] += r["correct"]
        share = np.divide(right, asked, out=np.full_like(right, np.nan), where=asked > 0)
        axes.imshow(share, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto", alpha=0.6)  # words stay legible
        for (row, column), count in np.ndenumerate(asked):
            if count:
                low, high = wilson(int(right[row, column]), int(count))
                text = f"{right[row, column]:.0f} of {count:.0f}\n{low:.0%} to {high:.0%}"
                axes.text(column, row, text, ha="center", va="center", fontsize=9)
        axes.set_title(titles[method])
        axes.set_xticks(range(len(lengths)), [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
        axes.set_yticks(range(5), ["0-20 %", "20-40 %", "40-60 %", "60-80 %", "80-100 %"])
        axes.set_xlabel("tokens")
    for axes in panels[:, 0]:
        axes.set_ylabel("depth of the key")
    return figure


def search_figure(
    curve: Sequence[float], factors: Sequence[float], others: Mapping[str, np.ndarray], scale: float
) -> Figure:
    """Best loss after each evaluation, and the best factors beside PI, NTK and YaRN: `others`, by title."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(curve) + 1), curve, color=COLOURS["found"], linewidth=2)
    left.set(xlabel="tables tried", ylabel="best loss (nats a token)")
    left.set_ylim(bottom=0)
    for title, theirs in others.items():
        right.plot(theirs, color=COLOURS[title], label=title)
    right.plot(factors, color=COLOURS["found"], label="best found", linewidth=2.5)
    right.set(xlabel="rotary pair, fast to slow", ylabel="factor")
    right.legend(frameon=False)
    return figure
