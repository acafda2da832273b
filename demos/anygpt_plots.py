"""The AnyGPT tab's figure, as a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from demos.anygpt_evidence import Task

GOOD, BAD = "#0f766e", "#b45309"


def against_targets(measured: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task]) -> Figure:
    """Each measured share in percent with its 95 % interval; a line marks the target, which is to the left or right.

    measured: records' results by the names of `tasks`.
    """
    from demos.anygpt_evidence import met

    names = [name for name in reversed(list(tasks)) if name in measured and "interval, %" in measured[name]]
    figure = Figure(figsize=(9, 0.8 + 0.45 * max(1, len(names))), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        task, result = tasks[name], measured[name]
        value, (low, high) = result[task.key], result["interval, %"]
        axes.barh(row, value, height=0.55, color=GOOD if met(task, result) else BAD)
        axes.plot([low, high], [row, row], color="#111827", linewidth=1.2)
        limit = float((task.least if task.least is not None else task.most) or 0)
        axes.plot([limit, limit], [row - 0.4, row + 0.4], color="#111827", linewidth=3)
        axes.text(101, row, f"{'at least' if task.least is not None else 'at most'} {limit:g} %", va="center")
    axes.set_yticks(range(len(names)), [tasks[name].title for name in names])
    axes.set(xlim=(0, 100), xlabel="percent; thick line: target; thin line: 95 % interval; teal: met, brown: missed")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
