"""Draws a recorded load measurement: `python -m tests.load.plot assets/hosting/load.json assets/hosting/load.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

APP, WEBCAM, ROBOT, SHADE = "#0d9488", "#3b82f6", "#d97706", "#e2e8f0"
NAMES = {
    "yolov9": "YOLOv9", "pdiff": "P-diff", "longrope": "LongRoPE", "sdxl_lightning": "SDXL-Lightning",
    "anygpt": "AnyGPT",
}  # fmt: skip


def draw(result: dict[str, Any], title: str) -> Figure:
    """Memory, webcam delay and cores over time; seconds to a result by action."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    memory, cores, webcam, actions = figure.subplots(2, 2).flat
    figure.suptitle(title)
    at, mb, app, robot = np.array(result["rows"]).T
    memory.plot(at / 60, mb / 1000, color=APP)
    slope, start = result["memory"]["slope_mb_per_minute"], result["memory"]["steady_from_s"] / 60
    if slope is not None:
        memory.axvline(start, color="#64748b", linestyle=":")
        told = (
            f"from here: {slope['slope']:+.1f} MB a minute\n95 % interval {slope['low']:+.1f} to {slope['high']:+.1f}"
        )
        memory.annotate(told, (start, memory.get_ylim()[0]), (4, 6), textcoords="offset points", fontsize=8)
    memory.set(title="Memory of the app", ylabel="GB resident")
    cores.plot(at / 60, app, color=APP, label="app")
    cores.plot(at / 60, robot, color=ROBOT, label="load generator")
    cores.set(title="Processor", ylabel="cores in use", ylim=(0, None))
    cores.legend(frameon=False)
    if result["webcam_delays"]:
        when, delay = np.array(result["webcam_delays"]).T
        webcam.plot(when / 60, 1000 * delay, color=WEBCAM)
    webcam.set(title="Webcam: from a shot to its boxes", ylabel="ms", ylim=(0, None))
    run = result["long_run"]
    for axes in (memory, cores, webcam):
        axes.set_xlabel("minutes")
        if run and run["reading_from_s"] is not None:
            axes.axvspan(run["reading_from_s"] / 60, run["ended_at_s"] / 60, color=SHADE, zorder=0)
    _actions(actions, result)
    return figure


def _actions(axes: Axes, result: dict[str, Any]) -> None:
    rows = [
        (f"{NAMES[tab]}: {name}", action["seconds"])
        for tab, told in result["tabs"].items()
        for name, action in told["actions"].items()
        if action["seconds"] is not None
    ]
    for place, (_, seconds) in enumerate(rows):
        axes.plot([seconds["p50"], seconds["p95"]], [place, place], color=APP, linewidth=3, alpha=0.4)
        axes.plot(seconds["p50"], place, "o", color=APP)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(title="Waiting for a result: median to 95 %", xscale="log", xlabel="s")
    axes.grid(axis="x", alpha=0.3)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    record = json.loads(source.read_text())
    result, made = record["result"], record["provenance"]
    title = f"{result['users']} visitors on every tab, {result['seconds'] / 60:g} minutes · {made['machine']}"
    draw(result, title).savefig(target, dpi=80)


if __name__ == "__main__":
    main()
