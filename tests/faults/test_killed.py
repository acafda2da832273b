"""kill -9 in the middle of a long run; the same command goes on to the same result."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from models.longrope import evolution

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 400.0  # seconds; a busy machine is slow, not wrong
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # sums in another order are other sums
SETTINGS = evolution.demo(8, 4.0, 7)


class SlopeFitness:
    """A real objective that costs nothing: the distance to a slope. Counts how often it is asked."""

    total: ClassVar[int] = 152

    def __init__(self, pause: float = 0.0) -> None:
        self.calls, self.pause = 0, pause

    def __call__(self, factors, n_hat=0):
        self.calls += 1
        time.sleep(self.pause)
        return sum((factor - 1 - 3 * k / 8) ** 2 for k, factor in enumerate(factors)) + n_hat


def seeds():
    return evolution.default_seeds(16, 10_000.0, 8192, 4.0)


def kill_when(command: list[str], ready) -> None:
    """Starts it, and kills it -9 as soon as `ready()`; it must not have ended by itself."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ONE_THREAD,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


def test_the_search_for_factors(tmp_path):
    log = tmp_path / "search.jsonl"
    script = """
import sys
from models.longrope import evolution
from tests.faults.test_killed import SETTINGS, SlopeFitness, seeds
for _ in evolution.search(SlopeFitness(0.02), SETTINGS, seeds(), sys.argv[1]): pass
"""
    kill_when([sys.executable, "-c", script, str(log)], lambda: log.exists() and log.read_bytes().count(b"genes") > 20)
    fitness, fresh = SlopeFitness(), SlopeFitness()
    resumed = evolution.best_of(evolution.search(fitness, SETTINGS, seeds(), log))
    assert resumed == evolution.best_of(evolution.search(fresh, SETTINGS, seeds()))
    assert fitness.calls <= fresh.calls - 20  # nothing of what was logged is done twice


def test_the_training_of_a_zoo(tmp_path):
    """The real command on the real digits, small; killed in each stage, it gives the file of an unbroken run."""

    def command(name: str) -> list[str]:
        return [
            sys.executable, "-m", "models.pdiff.train", "--network", "mlp-bn-128", "--data", "digits", "--kind", "norm",
            "--count", "20", "--preset", "live", "--out", str(tmp_path / f"{name}.safetensors"),
            "--work", str(tmp_path / name),
        ]  # fmt: skip

    work = tmp_path / "killed"
    for stage in ("autoencoder", "diffusion"):
        kill_when(command("killed"), (work / f"{stage}.pt").exists)
    for name in ("killed", "unbroken"):
        subprocess.run(command(name), cwd=ROOT, env=ONE_THREAD, check=True, capture_output=True)
    import torch

    from models.weights import read_safetensors

    killed, unbroken = (read_safetensors(tmp_path / f"{name}.safetensors") for name in ("killed", "unbroken"))
    assert killed.keys() == unbroken.keys()
    assert all(torch.equal(killed[name], unbroken[name]) for name in killed)
