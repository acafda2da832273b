"""Fixtures for all tests: the real app in a process of its own, on a free port."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Server:
    """A running app. `seconds_to_page`: from the start of the process to the first served page."""

    url: str
    process: subprocess.Popen
    log: Path
    seconds_to_page: float

    def memory(self) -> int:
        """Resident bytes of the process and its children."""
        parent = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in [parent, *parent.children(recursive=True)])


@contextmanager
def serving(
    command: Sequence[str],
    folder: Path,
    page_timeout: float = 120.0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Runs `command + ["--port", N]` until the block ends.

    folder: for its log and its temporary files. variables: of the environment, besides those of this process.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LIVE_PAPERS_")}
    environment |= {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's second start finds byte code, and so do these
    log = folder / "log.txt"
    with open(log, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            env={**environment, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_page(url, process, log, started + page_timeout)
        yield Server(url, process, log, time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """`with start_server(command) as server`: see `serving`."""

    def start(command: Sequence[str], page_timeout: float = 120.0) -> AbstractContextManager[Server]:
        return serving(command, tmp_path_factory.mktemp("server"), page_timeout)

    return start


@pytest.fixture(scope="session")
def app_server(start_server: Callable[..., object]) -> Iterator[Server]:
    """The app as `python app.py` starts it, with all demos and the embedded tier; shared by all tests."""
    with start_server([sys.executable, "app.py"]) as server:
        yield server


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_page(url: str, process: subprocess.Popen, log: Path, deadline: float) -> None:
    """Returns once the page is served; fails the test with the log if the process ends or `deadline` passes.

    deadline: of `time.perf_counter`.
    """
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                if page.status == 200 and page.read():
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    pytest.fail(f"no page at {url}; the app's log:\n{log.read_text(errors='replace')[-4000:]}")
