"""The pieces every tab is made of: paper card, status line, evidence table, error mapping."""

import base64
import contextvars
import functools
import inspect
import logging
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import gradio as gr

from demos.registry import AppOptions, Demo
from models.errors import BadInput, Cancelled, DiskFull, OutOfMemory, UserError, is_disk_full, is_out_of_memory
from models.runtime import ModelHandle, ModelInfo, Report, Status

__all__ = [
    "AppOptions",
    "Cancel",
    "Demo",
    "EvidenceRow",
    "Job",
    "bar",
    "camera",
    "cancel_by",
    "drawing",
    "evidence_html",
    "evidence_table",
    "image_file",
    "paper_card",
    "private_folder",
    "status_html",
    "status_line",
    "streamed",
    "turn",
    "user_errors",
    "whole",
]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M")
T = TypeVar("T")


def paper_card(demo: Demo) -> gr.HTML:
    """Title, paper and link, and in five lines what the paper claims."""
    claims = "".join(f"<li>{escape(claim)}</li>" for claim in demo.claims)
    return gr.HTML(
        f'<section class="lp-card" aria-label="About the paper"><h2>{escape(demo.title)}</h2>'
        f'<p>{escape(demo.paper)} · <a href="{escape(demo.url)}" target="_blank" rel="noopener">'
        f"Read the paper</a></p><ul>{claims}</ul></section>",
        elem_id=f"{demo.slug}-card",
    )


def status_line(handle: ModelHandle[Any], refresh_seconds: float = 5.0) -> gr.HTML:
    """One line about the model behind a tab, kept fresh; screen readers hear its changes.

    A tab may also use it as an output of its own events: return `status_html(handle)`.
    Must be called inside a `gr.Blocks`.
    """
    line = gr.HTML(status_html(handle), elem_id=f"{handle.name}-status", padding=False)
    timer = gr.Timer(refresh_seconds)
    # Not queued: the line must move while a long job of the same visitor holds the queue.
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False}
    timer.tick(lambda: status_html(handle), None, line, api_name=f"{handle.name}_status", **quiet)
    # When the page opens, too: what is in it is from when the app was built.
    gr.on(None, lambda: status_html(handle), None, line, api_visibility="private", **quiet)
    return line


def status_html(handle: ModelHandle[Any]) -> str:
    """The status line's content, as HTML."""
    status = handle.status()
    return (
        f'<div class="lp-status" role="status" aria-live="polite" data-state="{escape(status.state)}">'
        f"{escape(_status_text(handle, status))}</div>"
    )


def image_file(**options: Any) -> gr.Image:
    """An image input whose value is the uploaded file's path, unopened.

    `gr.Image` opens the file itself, and a damaged one ends in a message nobody can act on;
    `models.images.read_image` says what is wrong. (A subclass would make Gradio write a stub beside this file.)
    """
    image = gr.Image(type="filepath", image_mode=None, **options)
    image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    return image


def camera(**options: Any) -> gr.Image:
    """A webcam whose value is the current frame, (H, W, 3) uint8 RGB, read by `models.images`.

    `gr.Image` by itself decodes whatever size is sent. For why this is no subclass see `image_file`.
    """
    image = gr.Image(sources=["webcam"], streaming=True, type="numpy", **options)

    def preprocess(payload: Any) -> Any:
        import numpy as np

        from models.images import read_image

        if payload is None:
            return None
        if payload.url and payload.url.startswith("data:"):
            return np.asarray(read_image(_data_of(payload.url)))
        return np.asarray(read_image(payload.path)) if payload.path else None

    image.preprocess = preprocess  # type: ignore[method-assign]
    return image


def _data_of(url: str) -> bytes:
    """What a "data:" address holds. Raises `BadInput`."""
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except ValueError as error:
        raise BadInput("The frame is not a picture in base64. Send a JPEG or a PNG.") from error


# One visitor's, shared by a job and its buttons. "asked": to stop; "waiting": in the queue; or else "running".
Cancel = dict[str, bool]


def cancel_by(
    button: gr.Button, api_name: str, said: gr.HTML, starts: Sequence[Any], after: Sequence[Any] = ()
) -> gr.State:
    """A state whose `"asked"` turns True when `button` is pressed; a long job looks at it and ends itself.

    Gradio's own `cancels=` marks the outputs as failed and swallows the next press of the job's button.

    starts: the events that start the job, such as `run.click`, and `after`: the dependencies it starts after. A press
        of `button` while the job waits in Gradio's queue then holds when its turn comes, and `said` says so.
    The job is done within `turn`.
    """
    state = gr.State({"asked": False})
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

    def ask(cancel: Cancel) -> None:
        cancel["asked"] = True

    def tell(cancel: Cancel) -> Any:
        if not cancel.get("waiting"):
            return gr.skip()
        return "<p>It has not begun. It will be cancelled when its turn comes.</p>"

    button.click(ask, state, None, **quiet, api_name=api_name)
    button.click(tell, state, said, **quiet, api_visibility="private")
    gr.on(list(starts), _wait, state, None, **quiet, api_visibility="private")
    for done in after:
        done.then(_wait, state, None, **quiet, api_visibility="private")
    return state


def _wait(cancel: Cancel) -> None:
    if not cancel.get("running"):
        cancel.update(dict.fromkeys(cancel, False), waiting=True)


@contextmanager
def turn(cancel: Cancel) -> Iterator[None]:
    """A job, whose turn has come: `asked` is True if it was cancelled while it waited. Over the API nothing waits."""
    if not cancel.get("waiting"):
        cancel.update(dict.fromkeys(cancel, False))
    cancel.update(waiting=False, running=True)
    try:
        yield
    finally:
        cancel["running"] = False


Passing = Callable[[Any], bool]


class Job(Generic[M, T]):
    """Work at a model: iterate over what `work(model, report)` reports; `result` is then what it returned.

    The model is loaded first if need be, with Gradio's progress bar. Ends as `streamed` does; for `passing` see there,
    for what `work` can be `ModelHandle.run`. Made and iterated in an event handler.
    """

    result: T

    def __init__(
        self, handle: ModelHandle[M], work: Callable[[M, Report], T], cancel: Cancel, passing: Passing | None = None
    ) -> None:
        self._handle, self._work, self._cancel, self._passing = handle, work, cancel, passing

    def __iter__(self) -> Iterator[Any]:
        progress = gr.Progress()

        def run(report: Report) -> None:
            self.result = self._handle.run(self._work, report, progress)

        return streamed(run, self._cancel, self._passing)


def streamed(work: Callable[[Report], None], cancel: Cancel, passing: Passing | None = None) -> Iterator[Any]:
    """Runs `work(report)` in a thread and yields what it reports, in order.

    passing: says of an event that nobody needs it once there is a later one, as of progress. On a busy machine events
    come faster than pages take them: without this a visitor would watch the past, and a cancelled job would go on.

    Once `cancel["asked"]` is set, or the visitor has gone, `report` raises `Cancelled`, which ends the work; it is
    raised here too, as any other error of the work is.
    """
    if cancel["asked"]:
        raise Cancelled("Stopped, as you asked, before it began.")
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def report(event: Any) -> None:
        if cancel["asked"]:
            raise Cancelled("Stopped, as you asked. What was finished before is kept.")
        events.put(("event", event))

    def run() -> None:
        try:
            work(report)
        except BaseException as error:  # handed over: it must not end in this thread
            events.put(("error", error))
        else:
            events.put(("end", None))

    # Gradio knows by the context whose progress bar it is.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        while True:
            kind, value = events.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            if passing is not None and not events.empty() and passing(value):
                continue
            yield value
    finally:
        cancel["asked"] = True  # the visitor may have left in the middle
        thread.join()


def whole(what: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """A whole number, within `low` to `high` if given, which over the API anything can be.

    Raises `BadInput` naming `what`.
    """
    asked = "a whole number" if low is None else f"a whole number from {low} to {high}"
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{what} must be {asked}.") from error
    if number != value or (low is not None and number < low) or (high is not None and number > high):
        raise BadInput(f"{what} must be {asked}; got {value}.")
    return number


def bar(text: str, done: int, total: int) -> str:
    """A progress bar with words beside it. HTML."""
    return (
        f'<p><progress max="{total}" value="{done}" style="accent-color: var(--color-accent)"></progress> '
        f"{escape(text)}</p>"
    )


def drawing(path: Path, alt: str, **options: Any) -> None:
    """The picture of how a paper works, where one was made. options: of `gr.Image`."""
    if path.exists():
        gr.Image(str(path), show_label=False, interactive=False, alt_text=alt, **options)


def private_folder() -> Path:
    """A new folder only this process reads, where Gradio may serve files from."""
    return Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))


@dataclass(frozen=True)
class EvidenceRow:
    """One line of an evidence table; a value of None is shown as a dash."""

    what: str
    paper: str | None = None
    here: str | None = None
    note: str = ""


def evidence_table(rows: Sequence[EvidenceRow], caption: str) -> gr.HTML:
    """A table that keeps the paper's figures apart from those measured with this code."""
    return gr.HTML(evidence_html(rows, caption))


def evidence_html(rows: Sequence[EvidenceRow], caption: str) -> str:
    """The evidence table as HTML; all text is escaped."""
    notes = any(row.note for row in rows)
    head = ["What", "Paper", "Measured here"] + ["Note"] * notes
    body = "".join(
        f'<tr><th scope="row">{escape(row.what)}</th>'
        f'<td class="lp-paper">{escape(row.paper or "–")}</td>'
        f'<td class="lp-here">{escape(row.here or "–")}</td>'
        + (f"<td>{escape(row.note)}</td>" if notes else "")
        + "</tr>"
        for row in rows
    )
    columns = "".join(f'<th scope="col">{title}</th>' for title in head)
    return (
        f'<div class="lp-evidence"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def user_errors(fn: F) -> F:
    """Decorates an event handler, plain or generator, so that its errors reach the user as `gr.Error`.

    A `UserError` shows its own message. Anything else is logged in full and shown without details.
    """
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def generate(*args: Any, **kwargs: Any) -> Any:
            try:
                return (yield from fn(*args, **kwargs))
            except Exception as error:
                _raise_for_user(fn, error)

        return generate  # type: ignore[return-value]

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            _raise_for_user(fn, error)

    return call  # type: ignore[return-value]


def _raise_for_user(fn: Callable[..., Any], error: Exception) -> NoReturn:
    if isinstance(error, gr.Error):
        raise error
    if is_out_of_memory(error):
        logger.exception("Out of memory in %s", fn.__qualname__)
        error = OutOfMemory("The input is too large for the memory left. Try a smaller one, or fewer at a time.")
    if is_disk_full(error):
        logger.exception("Disk full in %s", fn.__qualname__)
        error = DiskFull("The disk of this app is full, so the result was not kept. Old files go after ten minutes.")
    if isinstance(error, UserError):
        # Gradio renders the message as HTML, and messages quote what the user gave.
        message, title = escape(str(error), quote=False), error.title
    else:
        logger.error("Unexpected error in %s", fn.__qualname__, exc_info=error)
        what = fn.__name__.strip("_").replace("_", " ")
        message, title = (
            f"Something went wrong in “{what}”; it is logged. Please try again.",
            "Unexpected error",
        )
    raise gr.Error(message, title=title, print_exception=False) from error


def _status_text(handle: ModelHandle[Any], status: Status) -> str:
    if status.info is not None:
        return _ready_text(status.info, status.load_seconds)
    if status.state == "loading":
        return f"Loading {status.progress:.0%}" + (f" · {status.text}" if status.text else "")
    if status.state == "failed":
        return f"Loading failed: {status.error} It is tried again at the next use."
    what = f"{handle.description} · " if handle.description else ""
    return f"{what}not loaded yet; loads at first use, about {_megabytes(handle.estimate_bytes)}"


def _ready_text(info: ModelInfo, load_seconds: float | None) -> str:
    parts = [
        f"{info.tier.capitalize()} tier",
        f"weights {info.weights}",
        f"trained on {info.trained_on}" if info.trained_on else "",
        f"licence {info.licence}",
        info.device,
        info.dtype,
        f"{info.parameters / 1e6:.1f} M parameters" if info.parameters else "",
        _megabytes(info.memory_bytes) if info.memory_bytes else "",
        f"loaded in {load_seconds:.1f} s" if load_seconds is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
