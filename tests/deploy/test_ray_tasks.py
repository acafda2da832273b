"""Jobs as tasks of a real Ray: the results of this process, and a worker that dies in the middle.

Asked for with LIVE_PAPERS_RAY_TASKS=1: after workers were killed and jobs cancelled, Ray 2.60.0 can end the process
that asked ("Tried to complete task that was not pending"), and with it every test that was to follow.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from models import longrope
from models.errors import BadInput, RayUnavailable, WorkerLost
from models.longrope import evaluate
from models.longrope.evolution import SearchSettings, default_seeds, search
from models.longrope.fitness import NeedleFitness, Needles
from models.pdiff import collect as collecting
from models.pdiff.collect import Schedule, collect, collect_independent
from models.pdiff.data import Data
from models.tasks import InProcess, Pool, workers
from tests.models.longrope.tiny import tiny_folder
from tests.one_thread import one_thread

__all__ = ["one_thread"]

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(
    os.environ.get("LIVE_PAPERS_RAY_TASKS") != "1", reason="asked for with LIVE_PAPERS_RAY_TASKS=1"
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Ray, started on this machine for the tests of this file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
        patch.setenv("RAY_worker_niceness", "0")  # on a busy machine workers would never come to their turn
        with workers("local") as pool:
            yield pool
    torch.set_num_threads(threads)


def squares() -> Callable[[int], tuple[int, int]]:
    return lambda number: (number * number, os.getpid())


def test_results_come_in_the_order_of_the_jobs_from_other_processes(pool):
    found = list(pool.map(squares, range(9)))
    assert [square for square, _ in found] == [number * number for number in range(9)]
    assert os.getpid() not in {process for _, process in found}
    assert [square for square, _ in InProcess().map(squares, range(9))] == [square for square, _ in found]


def test_a_function_is_made_once_in_a_process(pool, tmp_path):
    def make() -> Callable[[int], int]:
        (tmp_path / str(os.getpid())).open("a").write("made\n")
        return lambda number: number

    assert list(pool.map(make, range(12))) == list(range(12))
    assert list(pool.map(make, range(3))) == [0, 1, 2]
    assert {file.read_text() for file in tmp_path.iterdir()} == {"made\n"}


def test_a_job_has_the_threads_of_this_process(pool):
    def make() -> Callable[[int], int]:
        return lambda _: torch.get_num_threads()

    assert list(pool.map(make, range(2))) == [torch.get_num_threads()] * 2


def test_at_most_so_many_jobs_are_in_flight(pool):
    sent = []

    def jobs() -> Iterator[int]:
        for number in range(8):
            sent.append(number)
            yield number

    with workers("auto", at_once=3) as few:
        results = few.map(squares, jobs())
        assert next(results)[0] == 0
        assert len(sent) <= 4  # three in flight, one of which is answered
        results.close()
    assert len(sent) <= 4


def test_a_worker_that_is_killed_is_replaced_and_its_job_done_again(pool, tmp_path):
    def make() -> Callable[[int], int]:
        def work(number: int) -> int:
            mark = tmp_path / str(number)
            if number in (1, 4) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        return work

    assert list(pool.map(make, range(6))) == list(range(6))
    assert {mark.name for mark in tmp_path.iterdir()} == {"1", "4"}


def test_a_job_that_kills_every_worker_ends_with_advice(pool):
    def make() -> Callable[[int], None]:
        return lambda _: os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerLost, match="lost 4 times.*goes on where it stopped"):
        list(pool.map(make, [0]))


def test_an_error_of_a_job_is_the_jobs_own(pool):
    def make() -> Callable[[int], int]:
        def work(number: int) -> int:
            if number == 1:
                raise BadInput("One is not allowed. Give another.")
            return number

        return work

    with pytest.raises(BadInput, match="^One is not allowed. Give another.$"):
        list(pool.map(make, range(3)))
    assert list(pool.map(make, [0, 2])) == [0, 2]  # and the workers go on


def test_a_job_that_no_machine_can_take_is_refused(pool):
    torch.set_num_threads(64)
    try:
        with workers("auto") as many, pytest.raises(RayUnavailable, match="64 threads.*OMP_NUM_THREADS"):
            next(many.map(squares, [1]))
    finally:
        torch.set_num_threads(1)


# The search


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_the_search_finds_the_same_with_and_without(pool, folder, tmp_path):
    model = longrope.load("official", folder, "cpu")
    pairs, scale = model.config.rotary_dim // 2, 4.0
    settings = SearchSettings(
        pairs, scale, population=6, mutations=3, crossovers=3, parents=4, iterations=2, n_hat_options=(4, 8),
        n_hat_best=2,
    )  # fmt: skip
    seeds = default_seeds(model.config.rotary_dim, model.config.base, model.window, scale)
    fitness = NeedleFitness(model, 4096, 2, sparse=448)
    measure = partial(pool.map, Needles("official", folder, "cpu", 4096, 2, 448))
    here = list(search(fitness, settings, seeds, tmp_path / "here.jsonl"))
    there = list(search(fitness, settings, seeds, tmp_path / "there.jsonl", measure))
    assert there == here and len(here) == settings.total == 22
    assert len({event.latest.fitness for event in here}) > 10  # tables differ in what they score
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()

    # Begun in this process and stopped in a generation, ended as tasks.
    stopped = search(fitness, settings, seeds, tmp_path / "both.jsonl")
    for _ in range(8):
        next(stopped)
    stopped.close()
    both = list(search(fitness, settings, seeds, tmp_path / "both.jsonl", measure))
    assert [replace(event, replayed=False) for event in both] == here
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_the_searchs_command_writes_the_same_table(pool, folder, tmp_path, monkeypatch):
    small = partial(SearchSettings, population=4, mutations=2, crossovers=2, parents=3, iterations=1)
    monkeypatch.setattr(evaluate, "demo", lambda pairs, scale, seed: small(pairs, scale, seed=seed))
    written = {}
    for name, ray in (("here", []), ("there", ["--ray", "auto"])):
        out = tmp_path / name / "search.json"
        monkeypatch.setattr(evaluate, "SEARCHED", tmp_path / name)
        monkeypatch.setattr(sys, "argv", [
            "evaluate", "search", "--lengths", "2048", "--seed", "3", "--prompts", "1", "--sparse", "448",
            "--iterations", "1", "--tier", "official", "--path", str(folder), "--device", "cpu",
            "--runs", str(tmp_path / name), "--out", str(out), *ray,
        ])  # fmt: skip
        evaluate.main()
        (run,) = json.loads(out.read_text())["result"]["runs"]
        written[name] = (next((tmp_path / name).glob("*.csv")).read_bytes(), run["after"], run["curve"])
    assert written["here"] == written["there"]


# The zoo


def blobs() -> Data:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(192) % 3
    x = 0.6 * torch.randn((192, 1, 4, 4), generator=generator) + y[:, None, None, None]
    return Data("blobs", x, y, x[:30], y[:30], x[:30], y[:30], ("a", "b", "c"))


@pytest.mark.parametrize("group", [20, 2])
def test_a_zoo_is_the_same_with_and_without(pool, monkeypatch, group):
    monkeypatch.setattr(collecting, "GROUP", group)
    quick = Schedule(base_lr=5e-3, base_epochs=2, lr=0.02, batch=32)
    told: list[tuple[int, int]] = []
    for make in (
        partial(collect_independent, "mlp-ln", blobs(), 5, 3, quick),
        partial(collect, "mlp-ln", blobs(), "all", 12, 3, 3, quick),
    ):
        here = make()
        there = make(report=lambda step, total, loss: told.append((step, total)), pool=pool)
        assert torch.equal(here.vectors, there.vectors)
        assert here.base.keys() == there.base.keys() and here.layout == there.layout
        assert all(torch.equal(here.base[name], there.base[name]) for name in here.base)
        assert len(here.vectors.unique(dim=0)) == len(here.vectors)
        assert told[-1][0] == told[-1][1]


# Without a cluster


def test_no_ray_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(RayUnavailable, match="requirements-ray.txt`, or leave out --ray"), workers("auto"):
        pass


def test_no_cluster_at_the_address_is_said_with_what_is_possible():
    script = (
        "from models.tasks import workers\nfrom models.errors import RayUnavailable\n"
        "try:\n    with workers('no such address'): pass\n"
        "except RayUnavailable as error: print('SAID', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "SAID No Ray cluster could be used at 'no such address'" in done.stdout and "HOST:PORT" in done.stdout


def test_without_an_address_ray_is_not_imported():
    script = (
        "import sys\nfrom models.tasks import workers\n"
        "with workers(None) as pool: print(list(pool.map(lambda: abs, [-1, 2])), 'ray' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1, 2] False"


def test_nothing_in_flight_is_refused():
    with pytest.raises(BadInput, match="0 jobs at once"), workers("auto", at_once=0):
        pass
