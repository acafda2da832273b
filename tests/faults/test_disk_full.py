"""A disk without space, by the limit the kernel sets to one process: what was there stays whole, and it is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.calls import Caller

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 200_000  # bytes; larger files fail to be written
LIMITED = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))\n"


def run(script: str, *arguments: object) -> str:
    """The output of a script in a process that can write no large file."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + script, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_weights_that_were_there_stay_whole(tmp_path):
    import torch

    from models.weights import read_safetensors, write_safetensors

    target = tmp_path / "w.safetensors"
    write_safetensors(target, {"a": torch.ones(3)})
    script = """
import sys, torch
from models.errors import is_disk_full
from models.weights import write_safetensors
try:
    write_safetensors(sys.argv[1], {"a": torch.zeros(100_000)})
except OSError as error:
    print(is_disk_full(error))
"""
    assert run(script, target) == "True"
    assert read_safetensors(target)["a"].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_evidence_that_was_there_stays_whole(tmp_path):
    from models.records import record

    target = tmp_path / "evidence.json"
    record(target, {"accuracy": 1})
    script = """
import sys
from pathlib import Path
from models.records import record
try:
    record(Path(sys.argv[1]), ["x" * 1000] * 1000)
except OSError:
    print("failed")
"""
    assert run(script, target) == "failed"
    assert json.loads(target.read_text())["result"] == {"accuracy": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["evidence.json"]


def test_the_last_stage_of_a_training_stays_whole(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from models.pdiff import train
train._save({"step": 1}, Path(sys.argv[1]))
try:
    train._save({"step": 2, "w": torch.zeros(100_000)}, Path(sys.argv[1]))
except (OSError, RuntimeError):
    print(torch.load(sys.argv[1], weights_only=True)["step"])
"""
    assert run(script, tmp_path / "stage.pt") == "1"


def test_a_search_keeps_what_it_had_and_goes_on(tmp_path):
    """The log of a search that hit the limit is replayed once there is space."""
    from models.longrope import evolution
    from tests.faults.test_killed import SETTINGS, SlopeFitness, seeds

    log = tmp_path / "search.jsonl"
    script = f"""
import resource, sys
from models.longrope import evolution
from tests.faults.test_killed import SETTINGS, SlopeFitness, seeds
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, {LIMIT}))
try:
    for event in evolution.search(SlopeFitness(), SETTINGS, seeds(), sys.argv[1]):
        done = event.evaluated
except OSError:
    print(done)
"""
    done = int(run(script, log))
    assert done > 0 and log.stat().st_size <= 6000
    fitness = SlopeFitness()
    whole = evolution.best_of(evolution.search(SlopeFitness(), SETTINGS, seeds()))
    assert evolution.best_of(evolution.search(fitness, SETTINGS, seeds(), log)) == whole
    assert fitness.calls < SlopeFitness.total


def test_a_handler_says_that_the_disk_is_full():
    import errno

    import gradio as gr

    from demos.parts import user_errors

    @user_errors
    def save() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(gr.Error, match="disk of this app is full") as caught:
        save()
    assert caught.value.title == "Disk full"


def test_an_upload_is_answered_in_words(start_server, tmp_path):
    script = tmp_path / "limited.py"
    script.write_text(f"{LIMITED}import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport app\napp.main()\n")
    with start_server([sys.executable, str(script), "--demos", "longrope"]) as server:
        caller = Caller(server.url)
        with pytest.raises(Exception, match="507"):
            caller.upload("large.txt", b"x" * (LIMIT + 1))
        assert Path(caller.upload("small.txt", b"x")).read_bytes() == b"x"
        assert caller.call("longrope_length", 10)[0] == "complete"
