"""Many visitors at once, on every tab, for some minutes; what they waited for, and what the app needed.

    python -m tests.load.run --users 50 --minutes 10 --out assets/hosting/load.json

Starts the app, lets the visitors of `tests.load.users` arrive one after the other, and sends them home at the end. One
of them reads two million tokens, which is cancelled after two fifths of the time; the webcam is compared with and
without that, and memory is looked at after the warm-up. Every promise of `broken` is checked, and one that is broken
ends in exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from models.records import record
from tests.load import figures
from tests.load.app import App, Meter, running
from tests.load.users import TABS, THINK, Kind, Tally, crowd, tab_of
from tests.load.visitor import LIMITS, Answer, Endpoint, Visitor, endpoints

PATIENCE = 8.0  # seconds that visitors wait for their last result when all go home
ARRIVALS = 0.08  # of the time: by then everybody is there
WARM_UP = 0.25  # of the time
LONG_END = 0.4
SETTLE = 20.0  # seconds after the end of the long run: from then on a webcam is without it
LOSS = 3.0  # times slower a webcam may be beside the long run


async def simulate(
    app: App, users: int, seconds: float, long: bool, seed: int, patience: float = PATIENCE
) -> tuple[Tally, Meter, float]:
    """The visitors' day. Returns what they saw, what the app needed, and this process's mean share of a core."""
    known = await asyncio.to_thread(endpoints, app.url)
    tally, meter = Tally(time.monotonic(), asyncio.Event()), Meter(app)
    if long:
        tally.long_until = LONG_END * seconds
    clock = asyncio.create_task(meter.run(tally.started))
    before, started = sum(os.times()[:2]), time.monotonic()
    timeout = httpx.Timeout(600.0)
    async with httpx.AsyncClient(base_url=app.url, timeout=timeout, limits=LIMITS, trust_env=False) as http:
        kinds = crowd(users, long)
        visits = [
            asyncio.create_task(_visit(http, known, kind, number, tally, ARRIVALS * seconds * number / users, seed))
            for number, kind in enumerate(kinds)
        ]
        await asyncio.sleep(seconds)
        tally.stop.set()
        share = (sum(os.times()[:2]) - before) / (time.monotonic() - started)
        clock.cancel()
        _, late = await asyncio.wait(visits, timeout=patience)
        tally.without_result = patience, len(late)
        for visit in late:
            visit.cancel()
        for ended in await asyncio.gather(*visits, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
    with contextlib.suppress(asyncio.CancelledError):
        await clock
    return tally, meter, share


async def _visit(
    http: httpx.AsyncClient, known: dict[str, Endpoint], kind: Kind, number: int, tally: Tally, after: float, seed: int
) -> None:
    await tally.pause(after)
    if tally.stop.is_set():
        return
    address = f"10.1.{number // 250}.{1 + number % 250}"
    status = tuple(name for name in known if name == f"{kind.tab}_status")
    visitor = Visitor(http, known, address, status)
    async with visitor:
        await kind.live(visitor, tally, random.Random(1000 * seed + number))
    for problem in visitor.problems:
        tally.add(kind.name, tally.now, Answer("error", 0.0, 0.0, f"the open page: {problem}"))


def summary(tally: Tally, meter: Meter, share: float, users: int, seconds: float) -> dict[str, Any]:
    """Everything that is recorded. Times in seconds, memory in MB (10^6 bytes)."""
    warm = WARM_UP * seconds
    end = max(warm, tally.long_run["ended_at_s"] + SETTLE if tally.long_run else 0.0)
    steady = [(at, mb) for at, mb, *_ in meter.rows if at >= warm]
    return {
        "users": users,
        "seconds": seconds,
        "warm_up_s": warm,
        "think_s": THINK,
        "tabs": {tab: _tab(tally, tab, warm) for tab in TABS},
        "without_result_after_s": dict(zip(("waited", "visitors"), tally.without_result, strict=True)),
        "errors": [f"{d.action} at {d.at:.0f} s: {d.why}" for d in tally.done if d.outcome == "error"],
        "webcam": _webcam(tally, warm, end),
        "long_run": tally.long_run,
        "memory": {
            "steady_from_s": warm,
            "slope_mb_per_minute": figures.slope(steady, 60.0),
            "first_mb": meter.rows[0][1],
            "most_mb": max(row[1] for row in meter.rows),
            "last_mb": meter.rows[-1][1],
        },
        "app_cores": figures.mean([row[2] for row in meter.rows if row[0] >= warm]),
        "load_generator_cores": share,
        "load_average": os.getloadavg(),
        "rows": [[round(value, 3) for value in row] for row in meter.rows],
        "webcam_delays": figures.by_bin(tally.shots.delays, 5.0),
    }


def _tab(tally: Tally, tab: str, warm: float) -> dict[str, Any]:
    """Counts of all; times of what began after the warm-up."""
    done = [d for d in tally.done if tab_of(d.action) == tab]
    count = {kind: sum(d.outcome == kind for d in done) for kind in ("done", "queue full", "error", "unfinished")}
    actions: dict[str, Any] = {}
    for name in sorted({d.action for d in done} - {"webcam"}):
        times = [d.seconds for d in done if d.action == name and d.outcome == "done" and d.at >= warm]
        actions[name] = {"done": sum(d.action == name and d.outcome == "done" for d in done),
                         "seconds": figures.percentiles(times)}  # fmt: skip
    return {"asked": len(done), **{kind.replace(" ", "_"): n for kind, n in count.items()}, "actions": actions}


def _webcam(tally: Tally, warm: float, end: float) -> dict[str, Any]:
    """Delays are from a shot to its answer, one shot on its way at a time."""
    shots, run = tally.shots, tally.long_run
    delays = [(at, delay) for at, delay in shots.delays if at >= warm]
    found: dict[str, Any] = {
        "shots": shots.taken,
        "sent": shots.sent,
        "answered": shots.answered,
        "dropped": shots.dropped,
        "answers_to_an_older_frame": shots.stale,
        "delay_s": figures.percentiles([delay for _, delay in delays]),
    }
    if run and run["reading_from_s"] is not None:
        beside = [delay for at, delay in delays if run["reading_from_s"] <= at <= run["ended_at_s"]]
        without = [delay for at, delay in delays if at > end]
        found["beside_the_long_run"] = figures.percentiles(beside)
        found["without_it"] = figures.percentiles(without)
    after = [(at, delay) for at, delay in delays if at >= end]
    found["drift_ms_per_minute"] = figures.slope([(at, 1000 * d) for at, d in figures.by_bin(after, 5.0)], 60.0)
    return found


def broken(result: dict[str, Any], alive: bool) -> list[str]:
    """The promises that were not kept, in words."""
    webcam, tabs, memory = result["webcam"], result["tabs"], result["memory"]
    slope, run = memory["slope_mb_per_minute"], result["long_run"]
    beside, without = webcam.get("beside_the_long_run"), webcam.get("without_it")
    checks = {
        "The app is still there": alive,
        "No error but a full queue": not result["errors"],
        "Every tab gave results": all(tab["done"] for tab in tabs.values()),
        "Every webcam answer is to the newest frame": webcam["answers_to_an_older_frame"] == 0,
        "Webcams were answered": webcam["answered"] > 0,
        "The long run read, and ended when it was cancelled": not run or run["ended_by_cancel"],
        f"A webcam is at most {LOSS:g} times slower beside the long run (median)":
            not (beside and without) or beside["p50"] <= LOSS * without["p50"],
        "Memory does not grow (95 % interval of its slope reaches down to 0)": slope is None or slope["low"] <= 0,
    }  # fmt: skip
    return [what for what, kept in checks.items() if not kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--no-long-run", action="store_true", help="nobody reads two million tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the result is recorded")
    args = parser.parse_args()
    load_before = os.getloadavg()
    with running() as app:
        day = simulate(app, args.users, 60 * args.minutes, not args.no_long_run, args.seed)
        tally, meter, share = asyncio.run(day)
        alive, log = app.process.is_running(), app.log.read_text(errors="replace")
    result = summary(tally, meter, share, args.users, 60 * args.minutes)
    result["load_average_before"] = load_before
    result["log_lines"] = sum("Traceback" in line for line in log.splitlines())
    result["broken"] = broken(result, alive)
    print(figures.report(result))
    if args.out:
        record(args.out, result)
    if result["log_lines"] or result["errors"]:
        print(log[-6000:], file=sys.stderr)
    sys.exit(1 if result["broken"] else 0)


if __name__ == "__main__":
    main()
