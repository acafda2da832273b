"""The real app in a process of its own, and what it costs: memory and processor time, second by second."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.conftest import serving


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
    command = [sys.executable, "app.py", "--proxies", "1"]
    with (
        tempfile.TemporaryDirectory(prefix="load-") as folder,
        serving(command, Path(folder), variables=environment) as server,
    ):
        yield App(server.url, psutil.Process(server.process.pid), server.log, server.seconds_to_page)


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
