"""`serve run deploy.ray_app:app` as it is typed: all five demos on real Ray, each asked by its example script."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

from tests.conftest import free_port  # noqa: E402
from tests.deploy.test_api import SAID, SLUGS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SERVE = Path(sys.executable).with_name("serve")
PATIENCE = 300.0  # seconds; a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    # Ray would have its workers wait for all other processes of this machine.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [SERVE, "run", "deploy.ray_app:app", f"port={port}"],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    whole = psutil.Process(process.pid)
    try:
        _wait(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        started = [whole, *whole.children(recursive=True)]
        process.send_signal(signal.SIGINT)  # as Ctrl+C does
        _, left = psutil.wait_procs(started, timeout=PATIENCE)
        for each in left:
            each.kill()
    assert not left, [" ".join(each.cmdline()) for each in left if each.is_running()]


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until the page is there: before, Serve answers for it, that there is none."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                if b"Live Papers" in page.read():
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"no page at {url}; the log:\n{log.read_text(errors='replace')[-4000:]}")


@pytest.mark.parametrize("slug", SLUGS)
def test_a_demo_answers_from_its_own_processes(url, slug):
    command = [sys.executable, f"examples/{slug}.py", url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    assert SAID[slug] in done.stdout
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any(f"ServeReplica:default:{slug}" in command for command in commands)
