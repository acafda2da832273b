"""Numbers from samples, in the forms in which they are recorded and printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK_SECONDS = 15.0  # means of so long are taken as independent of one another
# Two-sided 95 % quantiles of Student's t, degrees of freedom 1 to 30.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Count, median, 95th and 99th percentile and maximum; None of nothing."""
    if not len(seconds):
        return None
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return {"n": len(seconds), "p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(max(seconds))}


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def by_bin(points: Sequence[tuple[float, float]], width: float) -> list[tuple[float, float]]:
    """(second, median) of every stretch of so many seconds that has points."""
    bins: dict[int, list[float]] = {}
    for at, value in points:
        bins.setdefault(int(at // width), []).append(value)
    return [(number * width, round(float(np.median(values)), 4)) for number, values in sorted(bins.items())]


def slope(points: Sequence[tuple[float, float]], per: float) -> dict[str, float] | None:
    """Least-squares slope per `per` seconds through means of `BLOCK_SECONDS`, with its 95 % interval.

    None of fewer than four blocks.
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for at, value in points:
        bins.setdefault(int(at // BLOCK_SECONDS), []).append((at, value))
    if len(bins) < 4:
        return None
    x, y = np.array([np.mean(each, axis=0) for _, each in sorted(bins.items())]).T
    x = x - x.mean()
    rate = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - rate * x
    free = len(x) - 2
    error = float(np.sqrt((rest**2).sum() / free / (x * x).sum()))
    reach = T95[min(free, len(T95)) - 1] * error
    return {"slope": per * rate, "low": per * (rate - reach), "high": per * (rate + reach), "blocks": len(x)}


def report(result: dict[str, Any]) -> str:
    """What to read on a terminal."""
    lines = [f"{result['users']} users, {result['seconds'] / 60:g} minutes"]
    for tab, told in result["tabs"].items():
        lines.append(f"{tab}: {told['asked']} asked, {told['done']} done, {told['queue_full']} queue full, "
                     f"{told['error']} errors, {told['unfinished']} unfinished")  # fmt: skip
        for name, action in told["actions"].items():
            lines.append(f"    {name}: {action['done']} done{_times(action['seconds'])}")
    webcam = result["webcam"]
    lines.append(f"webcam: {webcam['answered']} of {webcam['sent']} sent frames answered, {webcam['dropped']} of "
                 f"{webcam['shots']} shots dropped, {webcam['answers_to_an_older_frame']} answers to an older frame"
                 f"{_times(webcam['delay_s'])}")  # fmt: skip
    for name in ("beside_the_long_run", "without_it"):
        if name in webcam:
            lines.append(f"    {name.replace('_', ' ')}{_times(webcam[name])}")
    lines.append(f"    drift {webcam['drift_ms_per_minute']} ms a minute; long run {result['long_run']}")
    memory = result["memory"]
    lines.append(f"memory: {memory['first_mb']:.0f} MB at first, {memory['most_mb']:.0f} at most, "
                 f"{memory['last_mb']:.0f} at the end; {memory['slope_mb_per_minute']} MB a minute")  # fmt: skip
    before, after = result["load_average_before"][0], result["load_average"][0]
    lines.append(f"cores: the app {result['app_cores']}, the load generator {result['load_generator_cores']:.2f}; "
                 f"load average {before:.1f} before, {after:.1f} after")  # fmt: skip
    left = result["without_result_after_s"]
    lines.append(f"{left['visitors']} visitors had no result {left['waited']:.0f} s after the end")
    lines += [f"ERROR {error}" for error in result["errors"][:20]]
    lines += [f"BROKEN {promise}" for promise in result["broken"]]
    return "\n".join(lines)


def _times(seconds: dict[str, float] | None) -> str:
    if seconds is None:
        return ""
    return ": " + ", ".join(f"{name} {seconds[name]:.2f} s" for name in ("p50", "p95", "max"))
