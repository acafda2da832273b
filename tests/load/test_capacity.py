"""The capacity page: its arithmetic, and that its tables are those of the recorded measurements."""

import random

import pytest

from tests.load.capacity import PAGE, RECORDS, Load, most_within, written


def test_the_page_shows_what_was_recorded():
    page = PAGE.read_text()
    assert written(page, RECORDS) == page, "python -m tests.load.capacity"


@pytest.mark.parametrize(("seconds", "bound", "users"), [(1.0, 10.0, 10), (3.0, 10.0, 3), (11.0, 10.0, 0)])
def test_visitors_who_never_pause_wait_for_all_others(seconds, bound, users):
    assert most_within(seconds, 0.0, bound) == users


@pytest.mark.parametrize(("seconds", "think", "users"), [(1.0, 9.0, 5), (2.0, 20.0, 12), (5.0, 20.0, 8)])
def test_mean_time_to_a_result_is_that_of_a_simulated_lane(seconds, think, users):
    """Exponential times, as mean value analysis assumes."""
    chance, bound = random.Random(0), 0.0
    for tries in (users, users + 1):
        free, waits = 0.0, []
        due = sorted(chance.expovariate(1 / think) for _ in range(tries))
        for _ in range(30_000):
            asked = due.pop(0)
            free = max(free, asked) + chance.expovariate(1 / seconds)
            waits.append(free - asked)
            back = free + chance.expovariate(1 / think)
            due.insert(next((i for i, other in enumerate(due) if other > back), len(due)), back)
        mean = sum(waits) / len(waits)
        if tries == users:
            bound = 1.04 * mean
        else:
            assert mean > bound  # one visitor more is one too many
    assert most_within(seconds, think, bound) == users


def test_the_processor_limits_visitors_too():
    assert Load("webcam", 0.027, 0.0).users == 10  # 5 frames a second of 27 ms each, 1.4 cores
    assert Load("picture", 0.1, 1.0).users == 15 < most_within(0.1, 1.0, 2.0)
