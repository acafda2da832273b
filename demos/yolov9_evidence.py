"""The YOLOv9 tab's Evidence panel: recorded figures from `assets/yolov9/evidence/`, the paper's beside them."""

from __future__ import annotations

from pathlib import Path

import gradio as gr


def show_evidence(folder: Path) -> None:
    """Tables and pictures of whatever was recorded; what is missing is named as not measured yet."""
    gr.Markdown("soon")
