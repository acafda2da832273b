"""Other methods beside the shipped students, in the Evidence panel: what `models.sdxl_lightning.compare` recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

COMMAND = "python -m models.sdxl_lightning.compare"
METHODS = (
    "**Other methods, measured here.** Students by other methods, of the same teacher and trained on the same pictures "
    "and captions. *LCM-style*: consistency distillation with the teacher's guidance inside and a slow copy of the "
    "student as target; noise is added again between steps. *Turbo-style*: an adversarial loss on pictures, in the "
    "features of this project's YOLOv9 detector, and score distillation from the teacher. *Adversarial only*: a stage "
    "without its squared error. *Merged and trained whole*: the shipped LoRA merged, then the unconditional "
    "objective on the whole network, the paper's last step."
)
READING = (
    "LCM-style and Turbo-style students are one network for all step counts; theirs are training steps of as many "
    "pictures as the shipped student's, of whose number they had the share shown. Those of the others are what they "
    "took on top of, or instead of, the shipped student's own stage. In brackets: how much more than the shipped "
    "student of the same step count, the middle 95 % over {} resamplings of the captions; where that holds 0, the "
    "{} captions do not tell them apart. A caption nearly fixes the picture here, so that the undistilled teacher at "
    "as many steps does as well: this compares the methods on an easy task, not on photographs."
)
HEAD = ("Method", "Steps", "Training steps", "Processor minutes", "FID", "Patch FID", "Right caption")
MEASURES = {"fid": "FID", "patch_fid": "Patch FID", "match": "Right caption"}


def show_rivals(folder: Path) -> None:
    """Plots and a table of `rivals.json`, or how to make it; the teacher's rows come from `quality.json`."""
    path = folder / "rivals.json"
    gr.Markdown(METHODS)
    if not path.is_file():
        gr.Markdown(f"Not measured here yet: other methods. `{COMMAND}` records it.")
        return
    data = json.loads(path.read_text())
    result, source = data["result"], data["provenance"]
    rows = sorted(result["rows"], key=lambda row: row["steps"])
    teacher = _teacher(folder, {row["steps"] for row in rows})
    _curves([*rows, *teacher])
    origin = f"Other methods on {result['captions']} held-out captions "
    origin += f"({source['date']}, {source['machine']}: {source['command']})"
    gr.HTML(table([*rows, *teacher], origin))
    gr.Markdown(READING.format(result["resampled"], result["captions"]))


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Rows by step count as HTML; distances with how they differ from the shipped student's."""
    body = "".join(
        f'<tr><th scope="row">{escape(row["name"])}</th>'
        + "".join(f'<td class="lp-here">{escape(cell)}</td>' for cell in _cells(row))
        + "</tr>"
        for row in sorted(rows, key=lambda row: row["steps"])
    )
    head = "".join(f'<th scope="col">{title}</th>' for title in HEAD)
    return (
        f'<div class="lp-evidence"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    taken, share = row.get("training_steps"), row.get("share")
    trained = "–" if taken is None else f"{taken} ({share:.0%})" if share is not None else str(taken)
    minutes = row.get("cpu_minutes")
    against = row.get("against_shipped") or {}
    cells = [str(row["steps"]), trained, "–" if minutes is None else f"{minutes:.1f}"]
    for name in MEASURES:
        scale, form = (100, "%") if name == "match" else (1, "")
        cell = f"{row[name] * scale:.0f}{form}"
        if name in against:
            low, high = (value * scale for value in against[name])
            cell += f" ({low:+.0f} to {high:+.0f})"
        cells.append(cell)
    return cells


def _teacher(folder: Path, steps: set[int]) -> list[Mapping[str, Any]]:
    """The undistilled teacher at these step counts, where it was measured."""
    path = folder / "quality.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text())["result"]["rows"]
    return [row for row in rows if row["name"] == "teacher" and row["steps"] in steps]


def _curves(rows: Sequence[Mapping[str, Any]]) -> None:
    """Each measure against the number of steps, a line a method."""
    import pandas as pd

    steps = [str(n) for n in sorted({row["steps"] for row in rows})]
    frame = pd.DataFrame(
        {"steps": str(row["steps"]), "model": row["name"].partition(", full")[0].partition(", LoRA")[0]}
        | {name: row[name] for name in MEASURES}
        for row in rows
    )
    with gr.Row():
        for name, said in MEASURES.items():
            gr.LinePlot(
                frame, x="steps", y=name, color="model", title=said, x_title="steps", sort=steps, height=300,
                y_title=said, buttons=["export", "fullscreen"],
            )  # fmt: skip
