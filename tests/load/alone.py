"""Every action by itself, one after the other on an app that does nothing else: what one costs.

    python -m tests.load.alone --times 5 --out assets/hosting/alone.json

Gives for each the seconds until its result and the processor seconds that the app spent on it, on one thread: from the
latter, which other work on the machine hardly changes, users per replica follow (docs/CAPACITY.md).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from models.records import record
from tests.load.app import App, running
from tests.load.users import KINDS, THINK, Tally, answered_size, camera
from tests.load.visitor import LIMITS, Shots, Visitor, endpoints

FILM_SECONDS = 6.0
LOADED = ("typing", "drawing")  # kinds whose model is there: they come after others of their tab
NEWCOMERS = 25  # sessions opened, each of which the app remembers


async def measure(app: App, times: int) -> dict[str, Any]:
    """{kind of visitor: what one action of it costs}, and "webcam" by frame."""
    known = endpoints(app.url)
    told: dict[str, Any] = {}
    async with httpx.AsyncClient(base_url=app.url, timeout=600.0, limits=LIMITS, trust_env=False) as http:
        for kind in KINDS.values():
            if kind.name == "long run":
                continue
            async with Visitor(http, known, "10.2.0.1") as visitor:
                told[kind.name] = await (_film(app, visitor) if kind.name == "webcam" else
                                         _repeat(app, visitor, kind.name, times))  # fmt: skip
            print(kind.name, told[kind.name], flush=True)
        async with Visitor(http, known, "10.2.0.1", ("yolov9_status",)):  # an open page that is only looked at
            before, started = _cpu(app), time.monotonic()
            await asyncio.sleep(FILM_SECONDS)
            told["open page"] = {"cores": (_cpu(app) - before) / (time.monotonic() - started)}
        before, megabytes = _cpu(app), app.process.memory_info().rss / 1e6
        for _ in range(NEWCOMERS):
            async with Visitor(http, known, "10.2.0.1") as visitor:
                await visitor.run("yolov9_status")
        told["new visitor"] = {
            "core_seconds": (_cpu(app) - before) / NEWCOMERS,
            "megabytes": (app.process.memory_info().rss / 1e6 - megabytes) / NEWCOMERS,
        }
    return told


async def _repeat(app: App, visitor: Visitor, name: str, times: int) -> dict[str, Any]:
    """Over actions after the first, which loads the model unless another action of the same tab did."""
    chance, rows = random.Random(0), []
    loading = 0 if name in LOADED else 1
    for _ in range(times + loading):
        stop = asyncio.Event()
        stop.set()  # no pauses, one turn of a conversation
        tally, before = Tally(time.monotonic(), stop), _cpu(app)
        await KINDS[name].act(visitor, tally, chance)
        if wrong := [done.why for done in tally.done if done.outcome != "done"]:
            raise RuntimeError(f"{name} failed: {wrong}")
        rows.append((tally.now, _cpu(app) - before, {done.action: done.seconds for done in tally.done}))
    rows = rows[loading:]
    actions = sorted({action for _, _, parts in rows for action in parts})
    by_action = {a: statistics.median(parts[a] for _, _, parts in rows if a in parts) for a in actions}
    return {
        "times": times,
        "seconds": statistics.median(row[0] for row in rows),
        "seconds_most": max(row[0] for row in rows),
        "core_seconds": statistics.mean(row[1] for row in rows),
        "seconds_of": by_action,
    }


async def _film(app: App, visitor: Visitor) -> dict[str, Any]:
    async def film(seconds: float) -> Shots:
        shots = Shots()
        answer = await visitor.film(
            "yolov9_webcam", camera, answered_size, seconds, shots, time.monotonic(), asyncio.Event()
        )
        if answer.outcome != "done":
            raise RuntimeError(f"the webcam failed: {answer.why}")
        return shots

    await film(2.0)
    before, started = _cpu(app), time.monotonic()
    shots = await film(FILM_SECONDS)
    seconds = time.monotonic() - started
    delays = [delay for _, delay in shots.delays]
    return {
        "frames_a_second": shots.answered / seconds,
        "seconds": statistics.median(delays),
        "core_seconds": (_cpu(app) - before) / shots.answered,
        "cores": (_cpu(app) - before) / seconds,
    }


def _cpu(app: App) -> float:
    return sum(app.process.cpu_times()[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load_before = os.getloadavg()
    with running({"OMP_NUM_THREADS": "1"}) as app:
        told = asyncio.run(measure(app, args.times))
        megabytes = app.process.memory_info().rss / 1e6
    result = {"think_s": THINK, "actions": told, "threads": 1, "all_models_loaded_mb": megabytes,
              "load_average_before": load_before, "load_average": os.getloadavg()}  # fmt: skip
    if args.out:
        record(args.out, result)


if __name__ == "__main__":
    main()
