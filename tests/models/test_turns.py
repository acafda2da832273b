"""Turns with real threads."""

import threading

import pytest

from models.errors import Cancelled
from models.turns import Turns

WAIT = 30.0  # seconds; only reached when a test fails


def nobody(before: int) -> None:
    """Waits without leaving."""


def in_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_a_short_job_ends_before_a_long_one_that_came_first():
    turns, order, waits = Turns(seconds=0.0), [], threading.Event()

    def short():
        with turns.job(lambda before: waits.set()):
            order.append("short")

    with turns.job(nobody) as offer:
        other = in_thread(short)
        assert waits.wait(WAIT)
        offer()
        order.append("long")
    other.join(WAIT)
    assert order == ["short", "long"]


def test_one_at_a_time_and_in_order():
    turns, seen, all_wait = Turns(seconds=0.0), [], threading.Event()
    at_work = threading.Semaphore(1)

    def job(name: int):
        with turns.job(lambda before: all_wait.set() if before == 4 else None) as offer:
            for _ in range(50):
                assert at_work.acquire(blocking=False)
                seen.append(name)
                at_work.release()
                offer()

    with turns.job(nobody):
        threads = [in_thread(lambda name=name: job(name)) for name in range(4)]
        assert all_wait.wait(WAIT)
    for thread in threads:
        thread.join(WAIT)
    assert len(seen) == 200
    order = seen[:4]
    assert sorted(order) == [0, 1, 2, 3] and seen == order * 50


def test_a_job_keeps_its_turn_for_a_while():
    now, waits = [0.0], threading.Event()
    turns, order = Turns(seconds=2.0, clock=lambda: now[0]), []

    def other():
        with turns.job(lambda before: waits.set()):
            order.append("other")

    with turns.job(nobody) as offer:
        thread = in_thread(other)
        assert waits.wait(WAIT)
        now[0] = 1.9
        offer()
        order.append("first")
        now[0] = 2.0
        offer()
        order.append("first again")
    thread.join(WAIT)
    assert order == ["first", "other", "first again"]


def test_who_leaves_while_waiting_holds_nobody_up():
    turns, asked = Turns(seconds=0.0), []

    def leaves(before: int) -> None:
        asked.append(before)
        raise Cancelled("left")

    def waits():
        with pytest.raises(Cancelled), turns.job(leaves):
            asked.append("never")

    with turns.job(nobody) as offer:
        in_thread(waits).join(WAIT)
        offer()
    assert asked == [1]
    with turns.job(nobody):  # the lane is free
        pass


def test_a_job_that_leaves_in_the_middle_gives_the_lane_back():
    turns, there = Turns(seconds=0.0), threading.Event()

    def second():
        with turns.job(lambda before: there.set()) as offer:
            there.set()
            release.wait(WAIT)
            offer()

    def leaves(before: int) -> None:
        release.set()
        raise Cancelled("left")

    release = threading.Event()
    with pytest.raises(Cancelled), turns.job(leaves) as offer:
        other = in_thread(second)
        assert there.wait(WAIT)
        offer()
    other.join(WAIT)
    assert not other.is_alive()
    with turns.job(nobody):
        pass
