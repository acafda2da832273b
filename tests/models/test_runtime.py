"""The runtime with real threads and real (tiny) torch modules."""

import threading
import time
import weakref
from collections.abc import Callable

import pytest
import torch

from models.errors import BadInput, Cancelled, LoadFailed, OutOfMemory, UnsupportedDevice
from models.runtime import (
    Device,
    Handle,
    LoadedModel,
    ModelInfo,
    Progress,
    Runtime,
    choose_device,
    configure,
    default_runtime,
)

CPU = Device("cpu", None, "float32", False)
WAIT = 30.0  # seconds; only reached when a test fails


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make_runtime():
    made: list[Runtime] = []

    def make(memory_limit_bytes: int = 1000, **settings) -> Runtime:
        settings = {"device": CPU, "idle_seconds": None} | settings
        made.append(Runtime(memory_limit_bytes, **settings))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


def loader(memory_bytes: int = 100, on_load: Callable[[Progress], None] = lambda report: None):
    def load(report: Progress, device: Device) -> LoadedModel[torch.nn.Linear]:
        on_load(report)
        model = torch.nn.Linear(4, 2).to(device.name)
        info = ModelInfo("embedded", "tiny", "MIT", "nothing", 10, memory_bytes, device.name, device.dtype)
        return LoadedModel(model, info)

    return load


def register(runtime: Runtime, name: str, memory_bytes: int = 100, **more) -> Handle[torch.nn.Linear]:
    return runtime.register(name, loader(memory_bytes, **more), estimate_bytes=memory_bytes)


def touch(handle: Handle) -> None:
    with handle.use():
        pass


def in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


class TestLoading:
    def test_nothing_is_loaded_before_the_first_use(self, make_runtime):
        loads = []
        handle = register(make_runtime(), "a", on_load=lambda report: loads.append(1))
        assert handle.status().state == "not loaded" and not loads

        with handle.use() as model:
            assert model(torch.ones(1, 4)).shape == (1, 2)
            assert handle.status().users == 1
        status = handle.status()
        assert (status.state, status.users, loads) == ("ready", 0, [1])
        assert status.info is not None and status.info.weights == "tiny"
        assert status.load_seconds is not None and status.load_seconds >= 0

    def test_many_threads_share_one_load_and_all_see_its_progress(self, make_runtime):
        count = 16
        loads, everybody_waits = [], threading.Event()

        def slowly(report: Progress) -> None:
            loads.append(1)
            report(0.5, "half way")
            assert everybody_waits.wait(WAIT)

        handle = register(make_runtime(), "a", on_load=slowly)
        barrier, models, seen = threading.Barrier(count), [], [[] for _ in range(count)]
        half_way = threading.Semaphore(0)

        def user(index: int) -> None:
            def progress(fraction: float, text: str) -> None:
                seen[index].append(fraction)
                if text == "half way" and fraction == 0.5:
                    half_way.release()

            barrier.wait(WAIT)
            with handle.use(progress) as model:
                models.append(model)

        threads = [in_thread(lambda i=i: user(i)) for i in range(count)]
        for _ in range(count):
            assert half_way.acquire(timeout=WAIT)
        assert handle.status().state == "loading" and handle.status().text == "half way"
        everybody_waits.set()
        join(*threads)

        assert loads == [1]
        assert len(models) == count and len(set(map(id, models))) == 1
        assert all(progress[-1] == 1.0 and progress == sorted(progress) for progress in seen)

    def test_a_user_who_leaves_does_not_stop_the_load_for_others(self, make_runtime):
        go_on, left = threading.Event(), threading.Event()

        def slowly(report: Progress) -> None:
            report(0.2, "")
            assert go_on.wait(WAIT)

        handle = register(make_runtime(), "a", on_load=slowly)

        def impatient() -> None:
            def leave(fraction: float, text: str) -> None:
                raise Cancelled("Stopped.")

            with pytest.raises(Cancelled), handle.use(leave):
                pass
            left.set()

        join(in_thread(impatient))
        assert left.is_set() and handle.status().state == "loading" and handle.status().users == 0
        patient = in_thread(lambda: touch(handle))
        go_on.set()
        join(patient)
        assert handle.status().state == "ready"

    def test_the_model_is_made_outside_of_the_callers_inference_mode(self, make_runtime):
        handle = register(make_runtime(), "a")
        with torch.inference_mode(), handle.use() as model:
            assert not model.weight.is_inference()

    def test_a_name_can_be_registered_once(self, make_runtime):
        runtime = make_runtime()
        register(runtime, "a")
        with pytest.raises(ValueError, match="already"):
            register(runtime, "a")


class TestFailure:
    def test_a_user_error_is_passed_on_recorded_and_retried(self, make_runtime):
        results: list[Exception | None] = [BadInput("The size is 0. Give one above 0."), None]

        def fail_first(report: Progress) -> None:
            if (error := results.pop(0)) is not None:
                raise error

        handle = register(make_runtime(), "a", on_load=fail_first)
        with pytest.raises(BadInput, match="The size is 0"), handle.use():
            pass
        status = handle.status()
        assert status.state == "failed" and status.error == "The size is 0. Give one above 0."
        assert status.users == 0

        touch(handle)
        assert handle.status().state == "ready" and handle.status().error is None

    def test_an_unexpected_error_becomes_advice_and_is_logged(self, make_runtime, caplog):
        def fail(report: Progress) -> None:
            raise KeyError("/secret/place/model.22")

        runtime = make_runtime()
        handle = register(runtime, "a", on_load=fail)
        with pytest.raises(LoadFailed, match="Try again") as caught, handle.use():
            pass
        assert "/secret" not in str(caught.value) and isinstance(caught.value.__cause__, KeyError)
        assert "/secret/place" in caplog.text
        assert runtime.memory_used() == 0

    @pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
    def test_running_out_of_memory_is_named(self, make_runtime, error):
        def fail(report: Progress) -> None:
            raise error

        handle = register(make_runtime(), "a", on_load=fail)
        with pytest.raises(OutOfMemory, match="smaller model"), handle.use():
            pass

    def test_all_who_wait_get_the_failure_and_it_is_tried_once(self, make_runtime):
        loads, fail_now = [], threading.Event()

        def fail(report: Progress) -> None:
            loads.append(1)
            report(0.1, "")
            assert fail_now.wait(WAIT)
            raise BadInput("No.")

        handle = register(make_runtime(), "a", on_load=fail)
        errors, waiting = [], threading.Semaphore(0)

        def user() -> None:
            try:
                with handle.use(lambda fraction, text: waiting.release() if fraction == 0.1 else None):
                    pass
            except BadInput as error:
                errors.append(error)

        threads = [in_thread(user) for _ in range(8)]
        for _ in range(8):
            assert waiting.acquire(timeout=WAIT)
        fail_now.set()
        join(*threads)
        assert loads == [1] and len(errors) == 8 and len(set(map(id, errors))) == 8


class TestMemory:
    def test_the_least_recently_used_model_leaves_first(self, make_runtime):
        clock = Clock()
        runtime = make_runtime(300, clock=clock)
        a, b, c, d = (register(runtime, name) for name in "abcd")
        for handle in (a, b, c, a):
            clock.now += 1
            touch(handle)
        touch(d)
        assert [h.status().state for h in (a, b, c, d)] == ["ready", "not loaded", "ready", "ready"]
        assert runtime.memory_used() == 300

    def test_a_model_in_use_is_never_evicted(self, make_runtime):
        clock = Clock()
        runtime = make_runtime(200, clock=clock)
        a, b, c = (register(runtime, name) for name in "abc")
        with a.use() as model:
            clock.now += 1
            touch(b)
            touch(c)
            assert a.status().state == "ready" and b.status().state == "not loaded"
            assert model(torch.ones(1, 4)).shape == (1, 2)
            assert a.unload() is False
        assert a.unload() is True

    def test_waits_until_a_model_in_use_is_released(self, make_runtime):
        runtime = make_runtime(100, wait_seconds=WAIT)
        a, b = register(runtime, "a"), register(runtime, "b")
        asked, texts = threading.Event(), []

        def progress(fraction: float, text: str) -> None:
            texts.append(text)
            if "a in use" in text:
                asked.set()

        def use_b() -> None:
            with b.use(progress):
                pass

        with a.use():
            thread = in_thread(use_b)
            assert asked.wait(WAIT)
            assert b.status().state == "loading"
        join(thread)
        assert (a.status().state, b.status().state) == ("not loaded", "ready")

    def test_gives_up_waiting_with_advice(self, make_runtime):
        runtime = make_runtime(100, wait_seconds=0.05)
        a, b = register(runtime, "a"), register(runtime, "b")
        with a.use():
            with pytest.raises(OutOfMemory, match=r"in use: a.*--memory-limit"), b.use():
                pass
            assert a.status().state == "ready" and b.status().state == "failed"
        touch(b)

    def test_a_model_above_the_whole_budget_is_refused_at_once(self, make_runtime):
        runtime = make_runtime(100)
        small, large = register(runtime, "small"), register(runtime, "large", 101)
        touch(small)
        with pytest.raises(OutOfMemory, match="--memory-limit"), large.use():
            pass
        assert small.status().state == "ready"

    def test_an_estimate_that_was_too_low_is_made_good(self, make_runtime):
        runtime = make_runtime(300)
        a = register(runtime, "a", 200)
        b = runtime.register("b", loader(250), estimate_bytes=50)
        touch(a)
        touch(b)
        assert a.status().state == "not loaded" and runtime.memory_used() == 250

    def test_unloading_frees_the_tensors(self, make_runtime):
        handle = register(make_runtime(), "a")
        with handle.use() as model:
            weight = weakref.ref(model.weight)
        del model
        assert weight() is not None
        assert handle.unload() is True and weight() is None
        assert handle.unload() is False

    def test_a_failed_load_keeps_no_tensors(self, make_runtime):
        made = []

        def fail(report: Progress, device: Device) -> LoadedModel[torch.nn.Linear]:
            model = torch.nn.Linear(4, 2)
            made.append(weakref.ref(model))
            try:
                raise KeyError("conv.weight")
            except KeyError as error:
                raise BadInput("The file is broken.") from error

        handle = make_runtime().register("a", fail, estimate_bytes=1)
        with pytest.raises(BadInput), handle.use():
            pass
        assert handle.status().state == "failed" and made[0]() is None

    def test_many_threads_and_models_stay_within_the_budget(self, make_runtime):
        runtime = make_runtime(250, wait_seconds=WAIT)
        handles = [register(runtime, str(i)) for i in range(4)]
        peaks = []

        def user(seed: int) -> None:
            for step in range(10):
                with handles[(seed + step * (seed + 1)) % 4].use() as model:
                    model(torch.ones(1, 4))
                    peaks.append(runtime.memory_used())

        join(*[in_thread(lambda i=i: user(i)) for i in range(6)])
        assert max(peaks) <= 250 and len(peaks) == 60


class TestIdle:
    def test_an_idle_model_leaves_and_a_used_one_stays(self, make_runtime):
        clock = Clock()
        runtime = make_runtime(idle_seconds=600, clock=clock)
        a, b = register(runtime, "a"), register(runtime, "b")
        touch(a)
        with b.use():
            clock.now += 599
            assert runtime.unload_idle() == []
            clock.now += 2
            assert runtime.unload_idle() == ["a"]
            assert b.status().state == "ready"
        assert runtime.unload_idle() == []  # the release counts as use
        touch(a)

    def test_the_idle_thread_does_it_and_stops_with_the_runtime(self, make_runtime):
        clock = Clock()
        runtime = make_runtime(idle_seconds=0.02, clock=clock)
        handle = register(runtime, "a")
        touch(handle)
        clock.now += 1
        deadline = time.monotonic() + WAIT
        while handle.status().state != "not loaded":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        thread = runtime._idle_thread
        assert thread is not None and thread.is_alive()
        runtime.close()
        assert not thread.is_alive()

    def test_a_closed_runtime_loads_nothing(self, make_runtime):
        runtime = make_runtime()
        handle = register(runtime, "a")
        with handle.use():
            runtime.close()
            assert handle.status().state == "ready"  # still in use
        assert handle.status().state == "not loaded"
        with pytest.raises(LoadFailed, match="shutting down"), handle.use():
            pass


class TestDevice:
    def test_auto_gives_a_device_that_computes_in_its_dtype(self):
        for requested in ("auto", None, "cpu"):
            device = choose_device(requested)
            x = torch.ones(2, 2, device=device.name, dtype=getattr(torch, device.dtype))
            assert (x @ x).sum().item() == 8
            assert device.native_bf16 == (device.dtype == "bfloat16")

    def test_auto_prefers_cuda(self):
        expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        assert choose_device("auto").type == expected

    @pytest.mark.parametrize("requested", ["cuda:99", "tpu", "cpu:1"])
    def test_an_absent_device_is_refused_naming_what_is_there(self, requested):
        with pytest.raises(UnsupportedDevice, match=rf"'{requested}'.*Available: .*cpu"):
            choose_device(requested)

    def test_a_bad_device_shows_up_as_a_failed_load(self, make_runtime):
        handle = register(make_runtime(device="cuda:99"), "a")
        with pytest.raises(UnsupportedDevice), handle.use():
            pass
        assert handle.status().state == "failed"

    def test_without_a_limit_the_budget_comes_from_the_machine(self, make_runtime):
        runtime = make_runtime(None)
        touch(register(runtime, "a"))
        with pytest.raises(OutOfMemory), register(runtime, "b", 10**15).use():
            pass


class TestProcessor:
    @pytest.fixture(autouse=True)
    def four_threads(self):
        before = torch.get_num_threads()
        torch.set_num_threads(4)
        yield
        torch.set_num_threads(before)

    def test_users_share_the_threads(self, make_runtime):
        """Whoever comes gets a share, and whoever was there gives theirs up at the next report."""
        runtime = make_runtime()
        first, second = register(runtime, "first"), register(runtime, "second")
        there, came, seen = threading.Event(), threading.Event(), []

        def early(model, report):
            seen.append(torch.get_num_threads())
            there.set()
            assert came.wait(WAIT)
            report("half way")
            return torch.get_num_threads()

        def late(model, report):
            seen.append(torch.get_num_threads())
            came.set()
            join(worker)

        worker = in_thread(lambda: seen.append(first.run(early)))
        assert there.wait(WAIT)
        second.run(late)
        assert seen == [4, 2, 2]

    def test_work_that_chose_fewer_threads_keeps_them(self, make_runtime):
        def work(model, report):
            torch.set_num_threads(1)
            report("on")
            return torch.get_num_threads()

        assert register(make_runtime(), "small").run(work) == 1


def test_configure_replaces_the_default_runtime():
    first = configure(memory_limit_bytes=1000, device=CPU)
    assert default_runtime() is first
    handle = register(first, "a")
    touch(handle)
    second = configure(device=CPU)
    assert default_runtime() is second is not first
    assert handle.status().state == "not loaded"
