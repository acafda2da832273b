"""Independent jobs, one after another in this process or side by side as Ray tasks; the results are the same.

    with workers("auto") as pool:
        for result in pool.map(make, jobs):
            ...

`make()` is called once in every process that works, and gives the function that does a job: what is heavy, such as a
model, is made there and never sent. Ray is imported only where an address is given.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from models.errors import BadInput, RayUnavailable, WorkerLost

Job = TypeVar("Job")
Result = TypeVar("Result")
Make = Callable[[], Callable[[Job], Result]]

ADVICE = (
    "auto (the cluster this machine is part of), local (one that is started here and ends with the command) or "
    "HOST:PORT, as ray.init takes it"
)
TRIES = 4  # of a job whose worker was lost; an error that the job itself raises is not tried again
STORE_BYTES = 100_000_000  # for "local": what is sent are settings, tables and small data sets


class Pool(Protocol):
    """Where jobs are done."""

    def map(self, make: Make[Job, Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """One result for each job, in the order of the jobs, each as soon as it and those before it are there.

        Closing the iterator stops the work. Raises what a job raises, or `WorkerLost`.
        """
        ...


class InProcess:
    """This process, one job after another; a job begins when its result is asked for."""

    def __init__(self) -> None:
        self._made: tuple[Any, Any] | None = None

    def map(self, make: Make[Job, Result], jobs: Iterable[Job]) -> Iterator[Result]:
        if self._made is None or self._made[0] is not make:
            self._made = (make, make())
        return map(self._made[1], jobs)


@contextmanager
def workers(address: str | None = None, at_once: int | None = None) -> Iterator[Pool]:
    """A pool for as long as the block lasts.

    Args:
        address: None is this process; else "auto", "local" or "HOST:PORT" (`ADVICE`). Where this process is connected
            to Ray already, that connection is used, and left as it is.
        at_once: jobs in flight; None is two for each job that the cluster's processors can do at the same time.

    Raises:
        RayUnavailable: Ray is not installed, nothing answers at the address, or no machine has enough processors.
    """
    if address is None:
        yield InProcess()
        return
    if at_once is not None and at_once < 1:
        raise BadInput(f"{at_once} jobs at once were asked for. Give a whole number from 1.")
    if importlib.util.find_spec("ray") is None:
        raise RayUnavailable(
            "Ray is not installed. Install it with `pip install -r requirements-ray.txt`, or leave out --ray: the "
            "results are the same."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    begun = not ray.is_initialized()
    if begun:
        _connect(address)
    try:
        yield RayTasks(at_once)
    finally:
        if begun:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    options: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": False}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise RayUnavailable(
            f"No Ray cluster could be used at {address!r} ({_first_line(error)}). Give {ADVICE}."
        ) from error


class RayTasks:
    """The machines that this process is connected to. Made by `workers`.

    A job has as many threads as this process has now, and is given as many processors: sums are then added in the same
    order, so results are the same to the last bit on processors of one kind. The project has to be at the same path,
    with the same packages, on every machine.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self.threads = _threads()
        self._given = at_once
        self._sent: tuple[Any, str, Any] | None = None

    @property
    def at_once(self) -> int:
        """Jobs in flight."""
        import ray

        if self._given is not None:
            return self._given
        return max(2 * int(ray.cluster_resources().get("CPU", 0) // self.threads), 1)

    def map(self, make: Make[Job, Result], jobs: Iterable[Job]) -> Iterator[Result]:
        import ray

        self._check_processors()
        if self._sent is None or self._sent[0] is not make:
            self._sent = (make, uuid.uuid4().hex, ray.put(make))
        _, name, reference = self._sent
        task = ray.remote(_do).options(num_cpus=self.threads, max_retries=TRIES - 1, retry_exceptions=False)
        # In a list Ray leaves the reference as it is: a worker that has made its function does not fetch it again.
        return self._results(lambda job: task.remote(name, [reference], self.threads, job), iter(jobs))

    def _results(self, send: Callable[[Any], Any], jobs: Iterator[Any]) -> Iterator[Any]:
        import ray

        waiting: deque[Any] = deque()
        try:
            while True:
                waiting.extend(map(send, itertools.islice(jobs, self.at_once - len(waiting))))
                if not waiting:
                    return
                yield _result(waiting[0])
                waiting.popleft()
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def _check_processors(self) -> None:
        """Ray would wait for ever for a machine that is large enough."""
        import ray

        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if 0 < largest < self.threads:
            raise RayUnavailable(
                f"A job uses {self.threads} threads, as this process does, and the largest machine of the cluster has "
                f"{largest:g} processors. Start with fewer, such as OMP_NUM_THREADS={int(largest)}."
            )


def _do(name: str, reference: list[Any], threads: int, job: Any) -> Any:
    """One job, in a worker; the function that does it is kept for the next ones."""
    import ray

    if name not in _MADE:
        _MADE.clear()
        import torch

        torch.set_num_threads(threads)
        _MADE[name] = ray.get(reference[0])()
    return _MADE[name](job)


_MADE: dict[str, Callable[[Any], Any]] = {}  # of a worker: one, the latest


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception) and not isinstance(error.cause, RayError):
            raise error.cause from error  # as without Ray
        raise
    except RayError as error:
        raise WorkerLost(
            f"A job was lost {TRIES} times with the process that did it ({_first_line(error)}). Often its machine has "
            "too little memory: start Ray with fewer processors (ray start --num-cpus N). Started again, the command "
            "goes on where it stopped."
        ) from error


def _threads() -> int:
    """Of torch in this process."""
    import torch

    return torch.get_num_threads()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
