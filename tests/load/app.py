"""The real app in a process of its own, and what it costs: memory and processor time, second by second."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.conftest import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE_SECONDS = 120


@dataclass(frozen=True)
class App:
    """A running app; `log` is what it printed. seconds_to_page: from the start of the process to the first page."""

    url: str
    process: psutil.Process
    log: Path
    seconds_to_page: float


@contextmanager
def running(environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[App]:
    """`python app.py` on a free port of the loopback, believing the address that each simulated visitor says it has.

    environment: variables besides those of this process.
    """
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        url = f"http://127.0.0.1:{(port := free_port())}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("LIVE_PAPERS_")}
        variables = {**inherited, "TMPDIR": folder, "PYTHONUNBUFFERED": "1", **environment}
        command = [sys.executable, "app.py", "--port", str(port), "--proxies", "1"]
        log = Path(folder) / "log.txt"
        started = time.perf_counter()
        with open(log, "wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_for_page(url, process, log)
            yield App(url, psutil.Process(process.pid), log, time.perf_counter() - started)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_page(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PAGE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                page.read()
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    raise RuntimeError(f"There is no page at {url}. The app's log:\n{log.read_text(errors='replace')[-4000:]}")


@dataclass
class Meter:
    """Samples of the app and of this process, one row each: seconds, megabytes, cores of the app, cores of this one."""

    app: App
    every: float = 1.0
    rows: list[tuple[float, float, float, float]] = field(default_factory=list)

    async def run(self, started: float) -> None:
        """Until cancelled. started: `time.monotonic()` of second 0."""
        before = self._seconds()
        when = time.monotonic()
        while True:
            await asyncio.sleep(self.every)
            seconds, now = self._seconds(), time.monotonic()
            app, mine = ((b - a) / (now - when) for a, b in zip(before, seconds, strict=True))
            self.rows.append((now - started, self.app.process.memory_info().rss / 1e6, app, mine))
            before, when = seconds, now

    def _seconds(self) -> tuple[float, float]:
        return sum(self.app.process.cpu_times()[:2]), sum(os.times()[:2])
