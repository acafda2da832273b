"""The Blocks of the app: what arrives over the API is checked before any component opens it."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import get_upload_folder
from gradio.queueing import Queue
from gradio.utils import LRUCache

from models.errors import BadInput, UserError

logger = logging.getLogger(__name__)
SESSIONS = 2000  # whose messages are kept


class GuardedBlocks(gr.Blocks):
    """`gr.Blocks` whose inputs name only uploaded files, and whose refusals say so.

    Gradio 6.31 opens any file of the machine for a picture whose description lacks its "meta", fetches web addresses
    named instead of files, and takes a list where a `Dropdown` has one choice.
    """

    def queue(self, *args: Any, **more: Any) -> GuardedBlocks:
        super().queue(*args, **more)
        self._queue.pending_messages_per_session = Inboxes(self._queue, SESSIONS)
        return self

    async def process_api(self, block_fn: Any, *args: Any, **more: Any) -> Any:
        try:
            return await super().process_api(block_fn, *args, **more)
        except gr.Error:
            raise
        except Exception as error:  # of an event that is Gradio's own, such as an example's; ours have words for theirs
            name = str(getattr(block_fn, "api_name", None) or "This").replace("_", " ")
            logger.warning("Event %s failed", name, exc_info=error)
            raise gr.Error(f"“{name}” cannot be done with these inputs.", print_exception=False) from error

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **more: Any) -> list[Any]:
        try:
            _check_files(inputs)
            _check_choices(block_fn.inputs, inputs)
            return await super().preprocess_data(block_fn, inputs, *args, **more)
        except gr.Error:
            raise
        except Exception as error:
            known = error if isinstance(error, UserError) else error.__cause__  # Gradio wraps what a component raises
            if isinstance(known, UserError):
                raise gr.Error(escape(str(known), quote=False), title=known.title, print_exception=False) from error
            logger.info("Inputs of %s could not be used: %r", block_fn.api_name, error)
            raise gr.Error(
                "An input is missing or has a form that its control does not take. The page's “Use via API” lists "
                "what each takes.",
                title=BadInput.title,
                print_exception=False,
            ) from error


class Inboxes(LRUCache[str, Any]):
    """Where messages to each session wait to be read: the newest sessions', and of all that wait or run.

    Gradio 6.31 forgets the oldest session, even one that waits; and the next message to it, or to one that has just
    left, ends the queue for everybody.
    """

    def __init__(self, queue: Queue, max_size: int) -> None:
        super().__init__(max_size)
        self._queue = queue

    def __setitem__(self, session: str, inbox: Any) -> None:
        OrderedDict.__setitem__(self, session, inbox)
        if (many := len(self) - self.max_size) > 0:
            kept = {event.session_hash for event in self._queue.event_ids_to_events.values()} | {session}
            for idle in [each for each in self if each not in kept][:many]:
                del self[idle]

    def __missing__(self, session: str) -> Any:
        return asyncio.Queue()  # nobody reads it


def _check_choices(components: Any, inputs: list[Any]) -> None:
    for component, value in zip(components, inputs, strict=False):  # their number is checked with them
        if isinstance(component, gr.Dropdown) and not component.multiselect and isinstance(value, list):
            raise ValueError(f"a list for {component.label!r}, which takes one choice")


def _check_files(inputs: Any) -> None:
    """Raises `BadInput` for a file that was not uploaded to this app, or is gone. Symbolic links count as what they
    point to."""
    for path in _named_files(inputs):
        if "://" in path[:16]:
            raise BadInput("A web address was given in place of a file. Upload the file: this app fetches nothing.")
        try:
            known = Path(path).resolve().is_relative_to(_upload_folder())
        except (OSError, ValueError, RuntimeError):
            known = False
        if not known:
            raise BadInput("A file was named that was not uploaded here. Upload it first.")
        if not Path(path).is_file():
            raise BadInput("This file is no longer here: uploads are deleted after ten minutes. Upload it again.")


def _named_files(value: Any) -> Iterator[str]:
    """Every path in a payload, however deep."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if isinstance(path := each.get("path"), str) and path:
                yield path
            left.extend(each.values())
        elif isinstance(each, list | tuple):
            left.extend(each)


def _upload_folder() -> Path:
    return Path(get_upload_folder()).resolve()
