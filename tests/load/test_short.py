"""The load measurement in small: a visitor on every tab at once, for some seconds, and nothing goes wrong.

The visitors come only with LIVE_PAPERS_LOAD=1: all models of a second app are loaded for them.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.load import figures
from tests.load.app import running
from tests.load.run import broken, simulate, summary
from tests.load.users import TABS, Done

USERS, SECONDS = 6, 20.0
TIMING = ("slower beside the long run", "Memory does not grow", "Every tab gave results")  # not of twenty seconds


asked = pytest.mark.skipif(os.environ.get("LIVE_PAPERS_LOAD") != "1", reason="asked for with LIVE_PAPERS_LOAD=1")


@pytest.fixture(scope="module")
def short():
    """What is recorded of a short day, and whether the app was there at its end."""
    with running() as app:
        day = simulate(app, USERS, SECONDS, long=False, seed=0, patience=400.0)
        with ThreadPoolExecutor(1) as pool:  # Playwright leaves an event loop in the main thread
            tally, meter, share = pool.submit(asyncio.run, day).result()
        return summary(tally, meter, share, USERS, SECONDS), app.process.is_running()


@asked
def test_everybody_is_answered_without_an_error(short):
    result, alive = short
    assert [what for what in broken(result, alive) if not what.startswith(TIMING)] == [], result["errors"]
    for tab in TABS:
        told = result["tabs"][tab]
        assert told["asked"] > 0 and told["done"] + told["queue_full"] == told["asked"], (tab, told)


@asked
def test_a_webcam_sends_a_frame_only_after_the_last_answer(short):
    webcam = short[0]["webcam"]
    assert webcam["sent"] == webcam["answered"] and webcam["answers_to_an_older_frame"] == 0
    assert webcam["shots"] == webcam["sent"] + webcam["dropped"]


def test_slope_finds_growth_and_tells_it_from_noise():
    growing = [(float(s), 1000 + 0.5 * s + (s * 7919 % 13)) for s in range(300)]
    found = figures.slope(growing, 60.0)
    assert 29 < found["low"] < 30 < found["high"] < 31
    still = figures.slope([(at, mb - 0.5 * at) for at, mb in growing], 60.0)
    assert still["low"] < 0 < still["high"]


def test_a_broken_promise_is_named():
    result = {
        "webcam": {"answers_to_an_older_frame": 1, "answered": 5, "beside_the_long_run": {"p50": 1.0},
                   "without_it": {"p50": 0.1}},
        "tabs": {tab: {"done": 1} for tab in TABS},
        "memory": {"slope_mb_per_minute": {"low": 0.1}},
        "errors": [Done("picture", 0.0, 1.0, 1.0, "error", "no").why],
        "long_run": {"ended_by_cancel": False},
    }  # fmt: skip
    assert len(broken(result, alive=False)) == 6
