"""The lazy model runtime: nothing is loaded before its first use, and everything fits a memory budget.

    runtime = default_runtime()
    handle = runtime.register("yolov9", load_yolov9, estimate_bytes=60_000_000, description="YOLOv9-t")
    with handle.use(progress=lambda fraction, text: print(fraction, text)) as detector:
        detector.detect(image)

What a tab has to do with a model goes through `run`, which says nothing of where that model is: here, or, behind
another handle of the same protocol, in a process or on a machine of its own (deploy/remote.py).

    found = handle.run(lambda detector, report: detector.detect(image))

A model is loaded once however many threads ask for it at the same moment, stays while somebody uses it, and
leaves when memory is needed for another model (least recently used first) or when nobody used it for a while.
One condition variable guards all state; loaders run outside of it, each in a thread of its own.
"""

import copy
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from models.errors import LoadFailed, OutOfMemory, UnsupportedDevice, UserError, is_out_of_memory
from models.heap import give_back

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

M = TypeVar("M")
T = TypeVar("T")
M_co = TypeVar("M_co", covariant=True)

Progress = Callable[[float, str], None]
Report = Callable[[Any], None]
State = Literal["not loaded", "loading", "ready", "failed"]


@dataclass(frozen=True)
class Device:
    """Where a model runs and in which number format.

    `dtype` is the name of the torch dtype that is fast here: "bfloat16", "float16" or "float32".
    """

    type: Literal["cuda", "mps", "cpu"]
    index: int | None
    dtype: str
    native_bf16: bool

    @property
    def name(self) -> str:
        """The name torch knows it by: "cuda:0", "mps", "cpu"."""
        return self.type if self.index is None else f"{self.type}:{self.index}"


@dataclass(frozen=True)
class ModelInfo:
    """What the status line shows about a loaded model."""

    tier: str
    weights: str
    licence: str
    trained_on: str
    parameters: int
    memory_bytes: int
    device: str
    dtype: str


@dataclass
class LoadedModel(Generic[M]):
    """What a loader returns: the object that does the work, and the facts about it."""

    model: M
    info: ModelInfo


Loader = Callable[[Progress, Device], LoadedModel[M]]


@dataclass(frozen=True)
class Status:
    """A snapshot of one handle. `progress` is in 0..1; `error` is a message for the user."""

    state: State
    progress: float = 0.0
    text: str = ""
    info: ModelInfo | None = None
    load_seconds: float | None = None
    error: str | None = None
    users: int = 0


class ModelHandle(Protocol[M_co]):
    """What a tab needs of a model, wherever that model runs."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def estimate_bytes(self) -> int: ...

    def run(
        self, work: Callable[[M_co, Report], T], report: Report | None = None, progress: Progress | None = None
    ) -> T:
        """Calls `work(model, report)` where the model is, loading it first if need be, and returns what it returns.

        The work may be done in another process. So it is a function of a module, or a `functools.partial` of one, all
        that goes in and comes out can be pickled, and files go in as `Path`: the work then finds a copy of each.

        report: gets what the work reports, in order, in the caller's thread. If it raises, the work is stopped: its own
            next report raises, at once here, a little later elsewhere. The caller gets what `report` raised.
        progress: gets (fraction, text) while the model loads. If it raises, this caller leaves.

        Raises what the work raises, and `UserError` if the model cannot be loaded.
        """

    def status(self) -> Status:
        """A snapshot; never waits."""

    def unload(self) -> bool:
        """Drops the model from memory. False, and nothing done, while somebody uses it."""


class ModelRuntime(Protocol):
    """Where a tab registers its models: `Runtime`, or one whose models are elsewhere."""

    def register(
        self, name: str, loader: "Loader[M]", *, estimate_bytes: int, description: str = ""
    ) -> ModelHandle[M]: ...

    def handles(self) -> Sequence[ModelHandle[Any]]: ...


class _Load:
    """One attempt at loading; everybody who waits for it looks at the same object."""

    def __init__(self) -> None:
        self.progress = 0.0
        self.text = ""
        self.done = False
        self.error: UserError | None = None


class Handle(Generic[M]):
    """A model that may or may not be in memory. Made by `Runtime.register`; safe to share between threads."""

    def __init__(self, runtime: "Runtime", name: str, loader: Loader[M], estimate_bytes: int, description: str) -> None:
        self.name = name
        self.description = description
        self.estimate_bytes = estimate_bytes
        self.loader = loader
        self._runtime = runtime
        # The rest is guarded by the runtime's condition.
        self._load: _Load | None = None
        self._loaded: LoadedModel[M] | None = None
        self._reserved_bytes = 0
        self._users = 0  # threads that use the model, or wait for it
        self._last_used = 0.0
        self._load_seconds: float | None = None
        self._error: str | None = None

    @contextmanager
    def use(self, progress: Progress | None = None) -> Iterator[M]:
        """Gives the model, loading it first if need be; it stays in memory until the block ends.

        `progress(fraction, text)` is called in the caller's own thread while the model loads. If it raises,
        this caller leaves and the load goes on for the others.
        Raises `UserError`: what the loader raised, `OutOfMemory`, or `LoadFailed` for anything unexpected.
        """
        loaded = self._runtime._acquire(self, progress)
        self._runtime._share_processor()
        try:
            yield loaded.model
        finally:
            del loaded  # or this frame would keep the model alive after an unload
            self._runtime._release(self)

    def run(self, work: Callable[[M, Report], T], report: Report | None = None, progress: Progress | None = None) -> T:
        """Does the work in this thread; see `ModelHandle.run`."""
        heard = report or _unheard

        def shared(*said: Any) -> None:
            self._runtime._share_processor(more=False)
            heard(*said)

        with self.use(progress) as model:
            return work(model, shared)

    def status(self) -> Status:
        """A snapshot; never waits for a load."""
        with self._runtime._changed:
            if self._loaded is not None:
                info = self._loaded.info
                return Status("ready", 1.0, info=info, load_seconds=self._load_seconds, users=self._users)
            if self._load is not None:
                return Status("loading", self._load.progress, self._load.text, users=self._users)
            if self._error is not None:
                return Status("failed", error=self._error)
            return Status("not loaded")

    def unload(self) -> bool:
        """Drops the model from memory. False, and nothing done, while somebody uses it."""
        return self._runtime._unload([self]) != []


class Runtime:
    """All models of one process: one device, one memory budget.

    memory_limit_bytes: budget over all models; None takes 80 % of the device's memory.
    device: "auto", "cuda", "cuda:1", "mps", "cpu" or a `Device`; looked at on the first load, not before.
    idle_seconds: a model that nobody used for so long is unloaded; None keeps models until memory is short.
    wait_seconds: how long a load waits for other models to be released before it gives up.
    clock: seconds, monotonic; a test brings its own.
    """

    def __init__(
        self,
        memory_limit_bytes: int | None = None,
        device: "str | Device | None" = "auto",
        idle_seconds: float | None = 900.0,
        wait_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = threading.Condition()
        self._handles: dict[str, Handle] = {}
        self._limit = memory_limit_bytes
        self._requested_device = device
        self._device: Device | None = device if isinstance(device, Device) else None
        self._idle_seconds = idle_seconds
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._closed = threading.Event()
        self._idle_thread: threading.Thread | None = None
        self._threads: int | None = None  # of the processor that PyTorch takes for one caller, at first

    def register(self, name: str, loader: Loader[M], *, estimate_bytes: int, description: str = "") -> Handle[M]:
        """Makes the handle of a model; loads nothing.

        estimate_bytes: memory the model will take, reserved while it loads; afterwards `ModelInfo` counts.
        Raises ValueError for a name that is taken.
        """
        handle = Handle(self, name, loader, estimate_bytes, description)
        with self._changed:
            if name in self._handles:
                raise ValueError(f"A model named {name!r} is already registered.")
            self._handles[name] = handle
        return handle

    def device(self) -> Device:
        """The device all models of this runtime are loaded on. Imports torch."""
        if self._device is None:
            requested = self._requested_device
            assert not isinstance(requested, Device)  # then it would be set
            self._device = choose_device(requested)
        return self._device

    def handles(self) -> list[Handle]:
        """Every model that was registered, in that order, loaded or not."""
        with self._changed:
            return list(self._handles.values())

    def memory_used(self) -> int:
        """Bytes reserved by models that are loaded or loading."""
        with self._changed:
            return sum(handle._reserved_bytes for handle in self._handles.values())

    def unload_idle(self) -> list[str]:
        """Unloads what nobody used for `idle_seconds`; returns the names. The idle thread calls this."""
        if self._idle_seconds is None:
            return []
        with self._changed:
            oldest = self._clock() - self._idle_seconds
            idle = [handle for handle in self._handles.values() if handle._last_used <= oldest]
        return self._unload(idle)

    def close(self) -> None:
        """Stops the idle thread and unloads what is not in use. Later uses raise `LoadFailed`."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            thread, handles = self._idle_thread, list(self._handles.values())
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._unload(handles)

    # What follows is for `Handle` and for this class.

    def _acquire(self, handle: Handle[M], progress: Progress | None) -> LoadedModel[M]:
        with self._changed:
            # Counted before the load, so that nothing evicts the model between its load and our wake-up.
            handle._users += 1
        try:
            while True:
                with self._changed:
                    if handle._loaded is not None:
                        handle._last_used = self._clock()
                        return handle._loaded
                    load = handle._load or self._start_load(handle)
                self._wait_for(load, progress)
                if load.error is not None:
                    # A copy each: raising one object in many threads would mix their tracebacks.
                    raise copy.copy(load.error) from load.error.__cause__
        except BaseException:
            self._release(handle)
            raise

    def _release(self, handle: Handle) -> None:
        with self._changed:
            handle._users -= 1
            handle._last_used = self._clock()
            self._changed.notify_all()
        if self._closed.is_set():
            self._unload([handle])

    def _share_processor(self, more: bool = True) -> None:
        """Gives this thread's products as many processor threads as are its share among all who use a model now.

        Threads of one product wait for one another, so with more of them than cores a model of many small products,
        such as AnyGPT's, comes to a stand beside long runs. more: False only takes threads away, for work that has
        chosen fewer by itself.
        """
        torch = sys.modules.get("torch")
        if torch is None:  # the model is a server
            return
        with self._changed:
            if self._threads is None:
                self._threads = torch.get_num_threads()
            share = max(self._threads // max(sum(handle._users for handle in self._handles.values()), 1), 1)
        if share < torch.get_num_threads() or (more and share > torch.get_num_threads()):
            torch.set_num_threads(share)

    def _wait_for(self, load: _Load, progress: Progress | None) -> None:
        """Waits until the load is over and hands its progress on, outside the lock."""
        seen = None
        while True:
            with self._changed:
                while not load.done and seen == (load.progress, load.text):
                    self._changed.wait()
                done, seen = load.done, (load.progress, load.text)
            if progress is not None:
                progress(*seen)
            if done:
                return

    def _start_load(self, handle: Handle) -> _Load:
        """Starts the one load of a handle. Called with the lock held."""
        if self._closed.is_set():
            raise LoadFailed(f"{handle.name} was not loaded: the app is shutting down. Start it again.")
        handle._load = load = _Load()
        handle._error = None
        # A thread of its own: no caller's cancellation, context or inference mode gets into the model.
        threading.Thread(target=self._run_load, args=(handle, load), name=f"load-{handle.name}", daemon=True).start()
        if self._idle_thread is None and self._idle_seconds is not None:
            self._idle_thread = threading.Thread(target=self._unload_idle_forever, name="idle-unload", daemon=True)
            self._idle_thread.start()
        return load

    def _run_load(self, handle: Handle, load: _Load) -> None:
        def report(fraction: float, text: str) -> None:
            with self._changed:
                load.progress, load.text = min(max(float(fraction), 0.0), 1.0), text
                self._changed.notify_all()

        loaded, error, started = None, None, self._clock()
        try:
            self._reserve(handle, report)
            loaded = handle.loader(report, self.device())
        except UserError as caught:
            error = caught
        except Exception as caught:
            logger.exception("Loading %s failed", handle.name)
            error = _explain(handle, caught)

        if error is not None:
            _drop_frames(error)
        with self._changed:
            handle._loaded, handle._load = loaded, None
            handle._reserved_bytes = loaded.info.memory_bytes if loaded else 0
            handle._load_seconds = self._clock() - started if loaded else None
            handle._last_used = self._clock()
            handle._error = str(error) if error else None
            load.done, load.error, load.progress = True, error, 1.0 if loaded else load.progress
            self._changed.notify_all()
        if loaded is None:
            _free_memory()
        else:
            self._evict_down_to(self._memory_limit())  # if the estimate was too low
        if self._closed.is_set():
            self._unload([handle])

    def _reserve(self, handle: Handle, report: Progress) -> None:
        """Makes room for a model: evicts idle ones, then waits for those in use. Raises `OutOfMemory`."""
        limit, needed = self._memory_limit(), handle.estimate_bytes
        if needed > limit:
            raise OutOfMemory(
                f"{handle.name} needs about {_megabytes(needed)} and the limit for models is "
                f"{_megabytes(limit)}. Raise --memory-limit or choose a smaller model."
            )
        deadline = time.monotonic() + self._wait_seconds
        while True:
            self._evict_down_to(limit - needed)
            with self._changed:
                others = [other for other in self._handles.values() if other._reserved_bytes]
                if sum(other._reserved_bytes for other in others) + needed <= limit:
                    handle._reserved_bytes = needed
                    return
                names = ", ".join(sorted(other.name for other in others))
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._closed.is_set():
                    raise OutOfMemory(
                        f"{handle.name} needs about {_megabytes(needed)}, but the limit of "
                        f"{_megabytes(limit)} is taken by models in use: {names}. "
                        "Wait until they are done and try again, or raise --memory-limit."
                    )
                if any(other._users == 0 and other._loaded is not None for other in others):
                    continue  # released since we looked: evict it now
                report(0.0, f"Waiting for memory: {names} in use")
                self._changed.wait(remaining)

    def _evict_down_to(self, target_bytes: int) -> None:
        """Unloads idle models, least recently used first, until at most `target_bytes` are reserved."""
        with self._changed:
            idle = [h for h in self._handles.values() if h._loaded is not None and h._users == 0]
            idle.sort(key=lambda h: h._last_used)
        for handle in idle:
            if self.memory_used() <= target_bytes:
                return
            logger.info("Unloading %s to make room", handle.name)
            self._unload([handle])

    def _unload(self, handles: list[Handle]) -> list[str]:
        """Unloads those of the handles that are loaded and not in use; returns their names."""
        dropped = []
        with self._changed:
            for handle in handles:
                if handle._loaded is not None and handle._users == 0:
                    handle._loaded, handle._reserved_bytes = None, 0
                    dropped.append(handle.name)
            self._changed.notify_all()
        if dropped:
            _free_memory()
        return dropped

    def _unload_idle_forever(self) -> None:
        assert self._idle_seconds is not None
        while not self._closed.wait(min(self._idle_seconds / 4, 30.0)):
            self.unload_idle()
            give_back()

    def _memory_limit(self) -> int:
        if self._limit is None:
            self._limit = int(0.8 * _device_memory(self.device()))
        return self._limit


_default: Runtime | None = None
_default_lock = threading.Lock()


def default_runtime() -> Runtime:
    """The runtime of this process, made with default settings unless `configure` was called before."""
    global _default  # noqa: PLW0603 - the one global of the project
    with _default_lock:
        if _default is None:
            _default = Runtime()
        return _default


def configure(
    memory_limit_bytes: int | None = None,
    device: "str | Device | None" = "auto",
    idle_seconds: float | None = 900.0,
) -> Runtime:
    """Replaces the runtime of this process by a new, empty one and returns it; the old one is closed."""
    global _default  # noqa: PLW0603
    with _default_lock:
        old, _default = _default, Runtime(memory_limit_bytes, device, idle_seconds)
    if old is not None:
        old.close()
    return _default


def choose_device(requested: str | None = "auto") -> Device:
    """The device to run on: CUDA, else MPS, else CPU, or the one asked for ("cuda", "cuda:1", "mps", "cpu").

    The dtype is bfloat16 where the hardware computes in it, float16 on older CUDA cards and on MPS, else
    float32. Raises `UnsupportedDevice` for a device that is not there.
    """
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    wanted = (requested or "auto").strip().lower()
    if wanted == "auto":
        wanted = "cuda" if cards else "mps" if mps else "cpu"

    present = [f"cuda:{card}" for card in range(cards)] + ["mps"] * mps + ["cpu"]
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in present:
        raise UnsupportedDevice(
            f"The device {requested!r} is not available here. Available: {', '.join(present)}. "
            "Start with --device auto, or with one of those."
        )
    if name == "cpu":
        bf16 = _cpu_computes_bf16()
        return Device("cpu", None, "bfloat16" if bf16 else "float32", bf16)
    if name == "mps":
        return Device("mps", None, "float16", False)
    index = int(name.removeprefix("cuda:"))
    bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
    return Device("cuda", index, "bfloat16" if bf16 else "float16", bf16)


def mixed_precision(device: str) -> "torch.autocast":
    """bfloat16 autocast where the hardware computes in it; CPUs without it would emulate, seven times slower."""
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=choose_device(device).native_bf16)


@cache
def _cpu_computes_bf16() -> bool:
    """Whether the CPU has bfloat16 instructions (AVX512-BF16, AMX or Arm's), not just emulation."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(key, False) for key in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def _device_memory(device: Device) -> int:
    """Bytes of the card, or of the RAM that this process may use."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device.index or 0).total_memory
    import psutil

    total = psutil.virtual_memory().total
    cgroup = Path("/sys/fs/cgroup/memory.max")  # a container's own limit; "max" when there is none
    if cgroup.exists() and (text := cgroup.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def _explain(handle: Handle, error: Exception) -> UserError:
    if is_out_of_memory(error):
        return OutOfMemory(
            f"There was not enough memory to load {handle.name} (about {_megabytes(handle.estimate_bytes)}). "
            "Close other programs or choose a smaller model, then try again."
        )
    failed = LoadFailed(
        f"{handle.name} could not be loaded ({type(error).__name__}). The details are in the app's log. "
        "Try again; if it fails again, check the weights file or restart the app."
    )
    failed.__cause__ = error
    return failed


def _drop_frames(error: BaseException) -> None:
    """Removes tracebacks all along the chain: their frames would keep the loader's tensors alive."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")  # never the first to import it
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    give_back()


def _unheard(event: Any) -> None:
    """Takes reports that nobody asked for."""


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
