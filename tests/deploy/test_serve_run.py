"""`serve run deploy.ray_app:app` as it is typed: all five demos on real Ray, each asked by its example script."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

from tests.conftest import free_port, wait_for_page  # noqa: E402
from tests.deploy.test_api import SLUGS, assert_example_works  # noqa: E402

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
        process = psutil.Popen(
            [SERVE, "run", "deploy.ray_app:app", f"port={port}"],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_page(url, process, log, time.perf_counter() + PATIENCE)
        yield url
    finally:
        started = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGINT)  # as Ctrl+C does
        _, left = psutil.wait_procs(started, timeout=PATIENCE)
        for each in left:
            each.kill()
    assert not left


@pytest.mark.parametrize("slug", SLUGS)
def test_a_demo_answers_from_its_own_processes(url, slug):
    assert_example_works(slug, url)
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any(f"ServeReplica:default:{slug}" in command for command in commands)
