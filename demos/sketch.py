"""A canvas to draw on, whose value is the drawing's file, unopened."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gradio as gr

MOST_DRAWINGS, MOST_BYTES = 64, 5_000_000  # waiting at a time, over all visitors; of one drawing


def sketchpad(**options: Any) -> gr.Sketchpad:
    """A sketchpad; handlers get the composite as bytes (from the page), as a path (over the API), or None.

    `gr.Sketchpad` itself opens every layer that is sent, however many and however large, and keeps drawings that
    nobody asks for. Never make it an output: Gradio then replaces it by a plain one. (A subclass would make Gradio
    write a stub beside this file.)
    """
    pad = gr.Sketchpad(**options)
    drawings: OrderedDict[str, bytes] = OrderedDict()

    def accept_blobs(data: Any) -> None:
        """Called by the page once for each part of a drawing; only the whole counts."""
        content = data.files[0][1]
        if data.data["type"] == "composite" and len(content) <= MOST_BYTES:
            drawings[str(data.data["id"])[:64]] = content
            if len(drawings) > MOST_DRAWINGS:
                drawings.popitem(last=False)

    def preprocess(payload: Any) -> bytes | str | None:
        if payload is None:
            return None
        if payload.id is not None:
            return drawings.pop(payload.id[:64], None)
        return payload.composite.path if payload.composite else None

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    pad.accept_blobs = accept_blobs  # type: ignore[method-assign]
    pad.preprocess = preprocess  # type: ignore[assignment, method-assign]
    return pad
