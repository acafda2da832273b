"""The evolutionary search: constraints, counts, determinism, and going on after a kill."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from models.errors import BadInput
from models.longrope.evolution import (
    SearchSettings,
    Seed,
    Space,
    best_of,
    default_seeds,
    demo,
    paper,
    read_log,
    repository_upper,
    search,
)

SMALL = SearchSettings(pairs=8, scale=4.0, population=12, mutations=4, crossovers=4, parents=6, iterations=5, seed=7)
TARGET = np.linspace(1, 4, 8) ** 1.2
SEEDS = default_seeds(16, 1e4, 256, 4.0)


def distance(factors, n_hat):
    """Lowest at `TARGET` with n-hat 8."""
    return float(np.abs(np.array(factors) - TARGET).sum()) + (0 if n_hat == 8 else 1) + 2


class Killed(Exception):
    pass


def killed_after(count):
    calls = []

    def fitness(factors, n_hat):
        if len(calls) == count:
            raise Killed
        calls.append((factors, n_hat))
        return distance(factors, n_hat)

    return fitness, calls


@pytest.mark.parametrize("critical", [None, 4])
def test_every_individual_is_monotone_bounded_and_unique(critical):
    settings = replace(SMALL, critical=critical)
    seen = [event.latest for event in search(distance, settings, SEEDS)]
    assert len(seen) == settings.total == 12 + 5 * 8
    assert len({(one.factors, one.n_hat) for one in seen}) == len(seen)
    for one in seen:
        factors = np.array(one.factors)
        assert (np.diff(factors) >= 0).all() and factors[0] >= 1 and factors[-1] <= 5
        np.testing.assert_allclose(factors, np.round(factors, 2), atol=1e-9)
        if critical:
            assert (factors[critical:] >= 4).all()
            curve = factors[critical] ** (np.arange(critical) / critical)
            np.testing.assert_allclose(factors[:critical], curve, atol=0.0051)


def test_paper_preset_evaluates_1344():
    settings = paper(32, 8.0)
    events = list(search(lambda factors, n_hat: sum(factors), settings, default_seeds(64, 1e5, 8192, 8.0)))
    assert len(events) == settings.total == 1344
    assert len({event.latest.factors for event in events}) == 1344
    assert max(max(event.latest.factors) for event in events) <= 10.0
    assert demo(32, 8.0).total == 152


def test_it_finds_a_better_table_than_its_seeds():
    events = list(search(distance, replace(SMALL, iterations=30), SEEDS))
    assert [event.phase for event in events[:12]] == ["start"] * 12
    assert events[-1].best.fitness < 0.6 * min(event.latest.fitness for event in events[:3]) + 1
    bests = [event.best.fitness for event in events]
    assert bests == sorted(bests, reverse=True)
    assert [event.evaluated for event in events] == list(range(1, len(events) + 1))


def test_same_seed_same_result():
    first, second = (best_of(search(distance, SMALL, SEEDS)) for _ in range(2))
    assert first == second
    assert best_of(search(distance, replace(SMALL, seed=8), SEEDS)) != first


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13, 17, 20, 51, 55, 70])
def test_killed_and_resumed_is_the_same_search(tmp_path, count):
    settings = replace(SMALL, n_hat_options=(4, 8))
    whole = list(search(distance, settings, SEEDS, tmp_path / "whole.jsonl"))
    fitness, first_calls = killed_after(count)
    log = tmp_path / "killed.jsonl"
    if count < settings.total:
        with pytest.raises(Killed):
            list(search(fitness, settings, SEEDS, log))
    else:
        list(search(fitness, settings, SEEDS, log))
    fitness, calls = killed_after(10**9)
    resumed = list(search(fitness, settings, SEEDS, log))
    assert [(event.latest, event.best) for event in resumed] == [(event.latest, event.best) for event in whole]
    assert len(first_calls) + len(calls) == settings.total  # nothing evaluated twice
    assert [event.replayed for event in resumed].count(True) == len(first_calls)
    assert log.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_cut_off_last_line_is_done_again(tmp_path):
    log = tmp_path / "log.jsonl"
    whole = list(search(distance, SMALL, SEEDS, log))
    content = log.read_bytes()
    log.write_bytes(content[: len(content) // 2])
    assert len(read_log(log)[1]) < len(whole)
    assert list(search(distance, SMALL, SEEDS, log))[-1].best == whole[-1].best
    assert log.read_bytes() == content


def test_closing_stops_and_keeps_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    events = search(distance, SMALL, SEEDS, log)
    for _ in range(15):
        next(events)
    events.close()
    settings, found = read_log(log)
    assert settings == SMALL and len(found) == 15
    assert best_of(search(distance, SMALL, SEEDS, log)) == best_of(search(distance, SMALL, SEEDS))


def test_logs_hold_the_generators_state(tmp_path):
    log = tmp_path / "log.jsonl"
    list(search(distance, SMALL, SEEDS, log))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    states = [row["rng"]["state"]["state"] for row in rows if "rng" in row]
    assert len(states) == 1 + 2 * 5 and len(set(states)) == 1 + 5


@pytest.mark.parametrize("change", [{"seed": 8}, {"population": 13}])
def test_another_searchs_log_is_refused(tmp_path, change):
    log = tmp_path / "log.jsonl"
    list(search(distance, SMALL, SEEDS, log))
    with pytest.raises(BadInput, match="other settings"):
        list(search(distance, replace(SMALL, **change), SEEDS, log))
    with pytest.raises(BadInput, match="other settings"):
        list(search(distance, SMALL, SEEDS[:1], log))


def test_damaged_logs_are_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    list(search(distance, SMALL, SEEDS, log))
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:5], "{", *lines[6:]]) + "\n")
    with pytest.raises(BadInput, match="Line 6.*damaged"):
        read_log(log)
    swapped = [lines[0], lines[2], lines[1], *lines[3:]]
    log.write_text("\n".join(swapped) + "\n")
    with pytest.raises(BadInput, match="another version"):
        list(search(distance, SMALL, SEEDS, log))
    log.write_text("")
    with pytest.raises(BadInput, match="not the log"):
        read_log(log)


def test_nan_is_infinitely_bad(tmp_path):
    log = tmp_path / "log.jsonl"
    values = iter([math.nan, *range(1000)])
    events = list(search(lambda factors, n_hat: next(values), SMALL, SEEDS, log))
    assert events[0].latest.fitness == math.inf and events[-1].best.fitness == 0
    assert read_log(log)[1][0].fitness == math.inf


def test_n_hat_replaces_only_where_it_helps():
    settings = replace(SMALL, n_hat_options=(4, 8, 16))
    events = list(search(distance, settings, SEEDS))
    assert [event.phase for event in events[52:]] == ["n-hat"] * 15
    assert events[-1].best.n_hat == 8
    worse = list(search(lambda factors, n_hat: distance(factors, 8) + n_hat, settings, SEEDS))
    assert worse[-1].best.n_hat == 0


def test_early_stop():
    settings = replace(SMALL, iterations=50, patience=3)
    events = list(search(lambda factors, n_hat: 1.0, settings, SEEDS))
    assert events[-1].iteration == 3


def test_bounds():
    assert Space(SMALL).top == 400
    assert Space(replace(SMALL, upper=repository_upper(4.0))).top == 400
    assert Space(replace(SMALL, scale=8.0)).top == 900
    space = Space(SMALL)
    assert space.snap([0.5, 1.004, 1.006, 3, 2, 9, 9, 9]) == (0, 0, 1, 200, 200, 400, 400, 400)
    assert not space.holds((0, 2, 1, 3, 4, 5, 6, 7)) and not space.holds((0, 1, 2, 3, 4, 5, 6, 401))


def test_seeds():
    by_name = {seed.name: seed.factors for seed in SEEDS}
    assert by_name["PI"] == (4.0,) * 8
    np.testing.assert_allclose(by_name["NTK"], 4.0 ** (2 * np.arange(8) / 14))
    assert by_name["YaRN"][0] == 1 and by_name["YaRN"][-1] == 4
    first = next(search(distance, SMALL))
    assert first.latest.factors == (4.0,) * 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"population": 0}, "population"),
        ({"mutations": -1}, "0 or more"),
        ({"scale": 0.5}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"step": 0.0}, "step"),
        ({"probability": 0.0}, "probability"),
        ({"upper": 3.0}, "largest factor"),
        ({"critical": 8}, "critical pair"),
        ({"n_hat_options": (0,)}, "n-hat"),
    ],
)
def test_bad_settings(change, words):
    with pytest.raises(BadInput, match=words):
        search(distance, replace(SMALL, **change), SEEDS)


def test_bad_seeds():
    with pytest.raises(BadInput, match="mine has 3 factors; give 8"):
        search(distance, SMALL, [Seed("mine", (1.0, 2.0, 3.0))])


def test_a_space_that_is_too_small_says_so():
    with pytest.raises(BadInput, match="run out"):
        list(search(distance, replace(SMALL, pairs=1, step=1.0), [Seed("PI", (4.0,))]))
