"""What long jobs tell the page, in order, and what is left out when the page is slow."""

import threading

import pytest

from demos.parts import streamed
from models.errors import Cancelled

WAIT = 30.0  # seconds, for a thread that is about to answer


def progress(event: dict) -> bool:
    return set(event) == {"progress"}


@pytest.mark.parametrize(("passing", "rest"), [(progress, [2]), (None, [1, 2, 3])])
def test_progress_that_was_overtaken_is_not_shown(passing, rest):
    taken, sent = threading.Event(), threading.Event()
    events = [{"progress": "a"}, {"trial": 1, "progress": "b"}, {"progress": "c"}]

    def work(report) -> None:
        report({"progress": "first"})
        assert taken.wait(WAIT)
        for event in events:
            report(event)
        sent.set()

    seen = streamed(work, {"asked": False}, passing)
    assert next(seen) == {"progress": "first"}
    taken.set()
    assert sent.wait(WAIT)
    assert list(seen) == [events[number - 1] for number in rest]


def test_a_cancelled_job_does_not_show_what_it_said_before():
    taken, sent, cancel = threading.Event(), threading.Event(), {"asked": False}

    def work(report) -> None:
        report({"progress": 0})
        assert taken.wait(WAIT)
        for number in range(1, 1000):
            report({"progress": number})
        cancel["asked"] = True
        sent.set()
        report({"progress": 1000})

    seen = streamed(work, cancel, progress)
    next(seen)
    taken.set()
    assert sent.wait(WAIT)
    with pytest.raises(Cancelled):
        next(seen)
