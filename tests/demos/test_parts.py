"""What long jobs tell the page, in order, and what is left out when the page is slow."""

import threading

import pytest

from demos.parts import streamed, turn
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


def test_a_job_cancelled_while_it_waited_does_no_work():
    cancel, done = {"asked": True, "waiting": True}, []
    with turn(cancel), pytest.raises(Cancelled):
        list(streamed(lambda report: done.append(1), cancel))
    assert not done
    assert not cancel["waiting"] and not cancel["running"]


def test_an_earlier_cancel_does_not_stop_a_job_that_did_not_wait():
    cancel, done = {"asked": True}, []
    with turn(cancel):
        list(streamed(lambda report: done.append(cancel["running"]), cancel))
    assert done == [True]
