"""Models in other processes: the handle that a tab holds, and what stands at its other end.

What a tab does with a model is a function (`ModelHandle.run`). It is pickled with its arguments and called beside the
model; what it reports comes back in a stream while it works. Pickles run code when they are read: they go between the
processes of one Ray cluster only, as all of Ray's own messages do.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ray import cloudpickle, exceptions
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from models.errors import Cancelled, LoadFailed, UserError, WorkerLost
from models.runtime import Loader, Progress, Report, Runtime, Status

logger = logging.getLogger(__name__)

M = TypeVar("M")
T = TypeVar("T")

TRIES = 3  # of work whose process died before it reported anything
STATUS_SECONDS = 4.0  # a status that is older is asked for again; the page asks every five seconds
LOST = (
    exceptions.RayActorError,
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
    exceptions.ObjectLostError,
)
BEST_STATE = ("ready", "loading", "failed", "not loaded")


# ---- the end where the models are -------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What is needed to make a model's handle. loader: pickled by value, as loaders are functions inside functions."""

    name: str
    loader: Loader[Any]
    estimate_bytes: int
    description: str


class Replica:
    """The models of one demo in one process; a Ray Serve deployment.

    Args:
        memory_limit, device: as `models.runtime.Runtime` has them.
        environment: variables to set before anything heavy is imported.
    """

    def __init__(
        self, models: Iterable[Model], memory_limit: int | None, device: str, environment: Mapping[str, str]
    ) -> None:
        os.environ.update(environment)
        if "OMP_NUM_THREADS" not in environment and _cpus() < 1:
            os.environ.pop("OMP_NUM_THREADS", None)  # Ray's own 1, for a replica that reserves less than a core
        self._runtime = Runtime(memory_limit, device)
        self._handles = {
            m.name: self._runtime.register(m.name, m.loader, estimate_bytes=m.estimate_bytes, description=m.description)
            for m in models
        }
        self._copies = Copies()

    async def run(self, name: str, packed: bytes) -> AsyncIterator[list[bytes]]:
        """Does packed work, and yields what happens as lists of pickled (kind, value), see `RemoteHandle.run`."""
        loop, events, gone = asyncio.get_running_loop(), asyncio.Queue[bytes | None](), threading.Event()

        def send(kind: str, value: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, pickle.dumps((kind, value)))

        def work() -> None:
            try:
                send("result", self._work(name, packed, send, gone))
            except BaseException as error:  # handed over: it must not end in this thread
                if not isinstance(error, UserError):
                    logger.exception("Work for %s failed", name)
                send("error", _portable(error))
            finally:
                loop.call_soon_threadsafe(events.put_nowait, None)

        threading.Thread(target=work, name=f"work-{name}", daemon=True).start()
        try:
            ended = False
            while not ended:
                batch = [await events.get()]
                while not events.empty():
                    batch.append(events.get_nowait())
                ended = batch[-1] is None
                yield [event for event in batch if event is not None]
        finally:
            gone.set()  # ended, or nobody listens any more

    async def status(self, name: str) -> Status:
        return self._handles[name].status()

    async def unload(self, name: str) -> bool:
        return self._handles[name].unload()

    def _work(self, name: str, packed: bytes, send: Callable[[str, Any], None], gone: threading.Event) -> Any:
        handle = self._handles[name]

        def tell(kind: str, value: Any) -> None:
            if gone.is_set():
                raise Cancelled("Stopped, as you asked. What was finished before is kept.")
            send(kind, value)

        with self._copies.unpacked(packed) as work:

            def begin(model: Any, report: Report) -> Any:
                tell("status", handle.status())
                return work(model, report)

            return handle.run(
                begin, lambda event: tell("event", event), lambda share, text: tell("progress", (share, text))
            )


def _cpus() -> float:
    import ray

    return ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)


def _portable(error: BaseException) -> BaseException:
    """The error, or its text where its class cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# ---- work on its way --------------------------------------------------------------------------------------


def pack(work: Callable[..., Any]) -> bytes:
    """Work with its arguments. Every `Path` among them that is a file of this machine takes its content along."""
    stream = io.BytesIO()
    _Packer(stream).dump(work)
    return stream.getvalue()


class _Packer(cloudpickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Path) and value.is_file():
            return value.name, value.read_bytes(), value.stat().st_mtime_ns
        return None


class Copies:
    """Files that came with work: the same path for the same file, there as long as any work needs it."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock, self._needed = threading.Lock(), Counter[Path]()

    @contextmanager
    def unpacked(self, packed: bytes):
        """The work inside `packed`; its files are there until the block ends."""
        taken: list[Path] = []
        try:
            yield _Unpacker(io.BytesIO(packed), self, taken).load()
        finally:
            with self._lock:
                self._needed.subtract(taken)
                for path in [path for path in set(taken) if self._needed[path] <= 0]:
                    del self._needed[path]
                    shutil.rmtree(path.parent, ignore_errors=True)

    def take(self, name: str, content: bytes, changed: int) -> Path:
        """A file with that name, content and time of change (ns)."""
        with self._lock:
            self._folder = self._folder or Path(tempfile.mkdtemp(prefix="live-papers-work-"))
            digest = hashlib.sha256(f"{changed} {name}\0".encode() + content).hexdigest()
            path = self._folder / digest / name
            self._needed[path] += 1
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
                os.utime(path, ns=(changed, changed))
        return path


class _Unpacker(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, copies: Copies, taken: list[Path]) -> None:
        super().__init__(stream)
        self._copies, self._taken = copies, taken

    def persistent_load(self, pid: Any) -> Path:
        self._taken.append(self._copies.take(*pid))
        return self._taken[-1]


# ---- the tab's end ----------------------------------------------------------------------------------------


class RemoteRuntime:
    """Gives tabs handles of models that are elsewhere. deployments: of `Replica`, by the demo's slug."""

    def __init__(self, deployments: Mapping[str, DeploymentHandle]) -> None:
        self._deployments = deployments
        self._handles: list[RemoteHandle] = []

    def register(self, name: str, loader: Loader[M], *, estimate_bytes: int, description: str = "") -> RemoteHandle[M]:
        """The handle of a model that the deployment knows by its name; the loader is not used here."""
        handle: RemoteHandle[M] = RemoteHandle(self._deployments[slug_of(name)], name, estimate_bytes, description)
        self._handles.append(handle)
        return handle

    def handles(self) -> list[RemoteHandle]:
        return list(self._handles)


def slug_of(name: str) -> str:
    """The demo a model belongs to."""
    return name.partition("-")[0]


class RemoteHandle(Generic[M]):
    """A model in the replicas of a deployment; which of them does a piece of work is Ray Serve's choice."""

    def __init__(self, deployment: DeploymentHandle, name: str, estimate_bytes: int, description: str) -> None:
        self.name, self.estimate_bytes, self.description = name, estimate_bytes, description
        self._deployment = deployment
        self._lock = threading.Lock()
        self._status, self._asking, self._asked = Status("not loaded"), False, float("-inf")

    def run(self, work: Callable[[M, Report], T], report: Report | None = None, progress: Progress | None = None) -> T:
        """Does the work beside the model; see `ModelHandle.run`.

        If the process that does it dies, it is done again elsewhere, unless something was reported already: then
        `WorkerLost` is raised, as it is after `TRIES` processes.
        """
        packed = pack(work)
        for attempt in range(1, TRIES + 1):
            call = _Call(self._deployment, self.name, packed)
            try:
                return call.follow(report, progress, self._learn)
            except LOST as error:
                logger.warning("The process that worked for %s died, try %d: %s", self.name, attempt, error)
                if call.reported:
                    raise WorkerLost(
                        f"The process that worked for {self.name} stopped in the middle. What was shown so far is not "
                        "complete. Start it again: another process takes it."
                    ) from error
        raise WorkerLost(f"{TRIES} processes stopped while they worked for {self.name}. Try a smaller input, or later.")

    def status(self) -> Status:
        """What was last heard of the replicas, of several the one that is furthest; asks again in the background."""
        with self._lock:
            due = not self._asking and time.monotonic() - self._asked > STATUS_SECONDS
            self._asking |= due
        if due:
            threading.Thread(target=self._ask, name=f"status-{self.name}", daemon=True).start()
        return self._status

    def unload(self) -> bool:
        """In every replica where nobody uses it; True if there was one."""
        return any(self._all("unload"))

    def _learn(self, status: Status) -> None:
        self._status = status

    def _ask(self) -> None:
        try:
            heard: list[Status] = self._all("status")
            self._learn(min(heard, key=lambda status: BEST_STATE.index(status.state), default=Status("not loaded")))
        except Exception as error:  # whatever it is, the page shows what it knew
            logger.info("The status of %s is not known: %s", self.name, error)
        finally:
            self._asking, self._asked = False, time.monotonic()

    def _all(self, method: str) -> list[Any]:
        """What every replica answers; nothing if there is none."""
        try:
            return self._deployment.broadcast(method, self.name).results(timeout_s=30)
        except DeploymentUnavailableError:
            return []


class _Call:
    """One try at a piece of work. reported: whether the caller has heard of it."""

    def __init__(self, deployment: DeploymentHandle, name: str, packed: bytes) -> None:
        self._name, self.reported = name, False
        stream: Any = deployment.options(method_name="run", stream=True).remote(name, packed)
        self._stream = stream

    def follow(self, report: Report | None, progress: Progress | None, learn: Callable[[Status], None]) -> Any:
        """Hands on what the replica sends until there is a result. If a listener raises, the work is stopped.

        Kinds: "progress" (share, text) of a load; "status" once it is loaded; "event", what the work reports; at the
        end "result" or "error".
        """
        try:
            for batch in self._stream:
                for kind, value in map(pickle.loads, batch):
                    if kind == "result":
                        return value
                    if kind == "error":
                        raise value
                    if kind == "status":
                        learn(value)
                    elif kind == "progress":
                        learn(Status("loading", *value))
                        if progress is not None:
                            progress(*value)
                    elif report is not None:
                        self.reported = True
                        report(value)
        except DeploymentUnavailableError as error:
            raise LoadFailed(f"No process for {self._name} could be started. The details are in Ray's log.") from error
        except LOST:
            raise
        except BaseException:
            self._stream.cancel()
            raise
        raise WorkerLost(f"The work for {self._name} ended without a result. Start it again.")
