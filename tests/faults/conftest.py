"""An app with one demo whose job the tests hold in their hands, served in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import gradio as gr
import pytest

import app
from demos.registry import AppOptions, Demo
from models.runtime import Device, Handle, LoadedModel, ModelInfo, Runtime

PATIENCE = 300.0  # seconds; a busy machine is slow, not wrong


@dataclass
class Job:
    """The one job of the app, seen and steered from the tests."""

    handle: Handle | None = None
    loading: threading.Event = field(default_factory=threading.Event)
    may_load: threading.Event = field(default_factory=threading.Event)
    runs: list[str] = field(default_factory=list)  # names, as they start
    ended: list[str] = field(default_factory=list)
    fail_with: list[BaseException] = field(default_factory=list)  # what loading raises, first one first


class Held(Demo):
    """A demo whose build function is at hand."""

    job: Job

    def load_build(self) -> Callable[[AppOptions, Runtime], None]:
        return lambda options, runtime: build(self.job, runtime)


def build(job: Job, runtime: Runtime) -> None:
    from demos.parts import streamed, user_errors

    def load(report, device: Device) -> LoadedModel:
        job.loading.set()
        assert job.may_load.wait(PATIENCE)
        if job.fail_with:
            raise job.fail_with.pop(0)
        return LoadedModel("model", ModelInfo("embedded", "none", "MIT", "", 1, 1000, device.name, "float32"))

    job.handle = runtime.register("held", load, estimate_bytes=1000)

    def work(name: str, report: Callable[[str], None]) -> None:
        job.runs.append(name)
        try:
            while True:
                report(name)
                time.sleep(0.01)
        finally:
            job.ended.append(name)

    @user_errors
    def forever(name: str) -> Iterator[str]:
        with job.handle.use():
            yield from streamed(lambda report: work(name, report), {"asked": False})

    @user_errors
    def once(name: str) -> str:
        with job.handle.use():
            return name

    box, result = gr.Textbox(), gr.Textbox()
    gr.Button().click(forever, box, result, api_name="forever", concurrency_limit=1)
    gr.Button().click(once, box, result, api_name="once")


@pytest.fixture
def held(tmp_path, monkeypatch) -> Iterator[tuple[str, Job]]:
    """The address of the app, and its job."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    job = Job()
    demo = Held("held", "Held", "Nobody: Nothing", "https://example.org", ("a",), "unused:unused")
    object.__setattr__(demo, "job", job)
    options = AppOptions(demos=("held",), port=None)  # type: ignore[arg-type]
    runtime = Runtime(10**9, device=Device("cpu", None, "float32", False))
    blocks = app.build_app(options, runtime, [demo])
    _, url, _ = blocks.launch(**app.launch_arguments(options), prevent_thread_lock=True)
    yield url, job
    job.may_load.set()
    blocks.close()
    runtime.close()


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for it, up to `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.02)
