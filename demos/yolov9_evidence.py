"""The YOLOv9 tab's Evidence panel: recorded figures from `assets/yolov9/evidence/`, the paper's beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from demos.parts import EvidenceRow, evidence_table


def show_evidence(folder: Path) -> None:
    """Tables and pictures of whatever was recorded; what is missing is named as not measured yet."""
    gr.Markdown("soon")
