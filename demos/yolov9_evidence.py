"""The YOLOv9 tab's Evidence panel: recorded figures, with the paper's beside them.

Everything is read from `assets/yolov9/evidence/*.json`, which commands of this repository write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from demos.parts import EvidenceRow, evidence_table

# README and paper, COCO val2017: parameters (M), GFLOPs, AP. Specification, section 13.
PAPER = {
    "gelan-t": ("2.0", "7.7", "38.3"),
    "gelan-s": ("7.1", "26.4", "46.8"),
    "gelan-m": ("20.0", "76.3", "51.4"),
    "gelan-c": ("25.3", "102.1", "53.0"),
    "gelan-e": ("57.3", "189.0", "55.6"),
}
BARELY_TRAINED = 0.2  # AP50 below which an order of variants means little
PAPER_PGI = "AP of GELAN-S 46.7 to 46.8, M 51.1 to 51.4, C 52.5 to 53.0, E 55.0 to 55.6 with PGI"


def show_evidence(folder: Path) -> None:
    """One table a recorded file; a file that is missing says how to make it."""
    for name in ("embedded", "embedded-128"):
        _embedded(_read(folder, name))
    _ablation(_read(folder, "ablation"), folder / "ablation.png")
    _speed(_read(folder, "speed"), _read(folder, "webcam"))
    _photos(_read(folder, "photos"))
    _networks(_read(folder, "networks"))


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _caption(text: str, data: dict[str, Any]) -> str:
    source = data["provenance"]
    return f"{text} ({source['date']}, {source['machine']}: {source['command']})"


def _embedded(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("the embedded weights' quality", "models.yolov9.evaluate")
        return
    result = data["result"]
    held_out, seen, cards = (result[k] for k in ("held_out_composites", "training_vendors_new_composites", "cards"))
    vendor = result["held_out_vendor"]
    note = "own target: 0.80"
    evidence_table(
        [
            EvidenceRow(
                f"AP50, new composites of a vendor never trained on ({vendor})", None, _f(held_out["AP50"]), note
            ),
            EvidenceRow("AP50:95, the same", None, _f(held_out["AP"])),
            EvidenceRow("AP50, new composites of the training vendors", None, _f(seen["AP50"])),
            EvidenceRow(
                f"Right top label on {cards['cards']} printed cards of that vendor, through a camera model",
                None,
                f"{cards['accuracy']:.0%} (mean over classes {cards['class_mean']:.0%})",
                "own target: 80 %",
            ),
            EvidenceRow("Classes with training pictures", "80", str(len(result["classes_trained"]))),
        ],
        _caption(f"Embedded weights at {result['size']} px: YOLOv9-T trained here on clip art", data),
    )


def _ablation(data: dict[str, Any] | None, picture: Path) -> None:
    if data is None:
        _missing("the paper's claim in small", "models.yolov9.ablation")
        return
    setting = data["result"]["setting"]
    rows = [
        EvidenceRow(
            row["title"],
            PAPER_PGI if row["variant"] == "pgi" else None,
            f"AP50 {row['AP50']:.3f} ± {row.get('AP50_interval', float('nan')):.3f}, "
            f"AP {row['AP']:.3f} ± {row.get('AP_interval', float('nan')):.3f}",
            f"{row['parameters'] / 1e6:.2f} M parameters at inference, {row['seeds']} seeds",
        )
        for row in data["result"]["summary"]
    ]
    text = (
        f"PGI and GELAN's block, same pictures and steps: {len(setting['classes'])} classes, "
        f"{setting['size']} px, {setting['steps']} steps of {setting['batch']}; ± is a 95 % interval over seeds"
    )
    evidence_table(rows, _caption(text, data))
    gr.Markdown(verdict(data["result"]["summary"]))
    if picture.exists():
        gr.Image(
            str(picture), show_label=False, interactive=False, alt_text="Loss curves and AP50 of the four variants"
        )


def verdict(summary: list[dict[str, Any]]) -> str:
    """What the ablation's intervals allow to be said of PGI, and whether the runs were long enough to matter."""
    rows = {row["variant"]: row for row in summary}
    with_pgi, without = rows["pgi"], rows["gelan"]
    difference = with_pgi["AP50"] - without["AP50"]
    # One seed gives no interval: nothing can be said then.
    doubt = sum(row.get("AP50_interval", float("inf")) for row in (with_pgi, without))
    if abs(difference) <= doubt:
        said = "The intervals with and without PGI overlap: **this says nothing for or against the paper's claim.**"
    else:
        said = f"With PGI, AP50 is {abs(difference):.3f} {'higher' if difference > 0 else 'lower'}: more than chance."
    best = max(row["AP50"] for row in summary)
    if best < BARELY_TRAINED:
        said += f" The best of the four reaches AP50 {best:.3f}: all are barely trained after so few steps."
    return said


def _speed(data: dict[str, Any] | None, webcam: dict[str, Any] | None) -> None:
    if data is None:
        _missing("the speed", "tests/benchmarks/bench_yolov9_speed.py")
    else:
        rows = [
            EvidenceRow(
                f"{row['input']}: {row['mode']}",
                None,
                f"{row['frames_per_s']:.1f} frames/s, {row['ratio']:.2f}x",
            )
            for row in data["result"]["rows"]
        ]
        evidence_table(rows, _caption("Network only, batch 1; ratios to eager unfused float32 in the same run", data))
    if webcam is None:
        _missing("the webcam's delay", "tests/benchmarks/bench_yolov9_webcam.py")
        return
    rows = [
        EvidenceRow(
            f"Camera 640x480, input {row['size']} px",
            None,
            f"{row['frames_per_s']:.1f} frames/s drawn, delay median {row['delay_ms_median']:.0f} ms, "
            f"95 % under {row['delay_ms_p95']:.0f} ms",
            "own target: 10 frames/s, 250 ms",
        )
        for row in webcam["result"]["rows"]
    ]
    evidence_table(rows, _caption("From the frame leaving the camera to its boxes drawn, in Chromium", webcam))


def _photos(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("real photographs", "models.yolov9.photos")
        return
    result = data["result"]
    rows = [
        EvidenceRow(
            f"{row['photo']}: {', '.join(row['present'])}",
            None,
            ", ".join(f"{label} {score:.2f}" for label, score in row["found"]) or "nothing found",
        )
        for row in result["photos"]
    ]
    text = (
        f"Real photographs, which these weights never saw: {result['classes_found']} of "
        f"{result['classes_present']} classes found. Use the official weights for photographs"
    )
    evidence_table(rows, _caption(text, data))


def _networks(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("the networks' sizes", "models.yolov9.count")
        return
    rows = [
        EvidenceRow(
            f"YOLOv9-{row['network'][-1].upper()}",
            "{} M parameters, {} GFLOPs, AP {}".format(*PAPER[row["network"]]),
            f"{row['parameters_fused'] / 1e6:.1f} M parameters, {row['gflops_640']:.1f} GFLOPs",
            "AP on COCO is not measured here: no COCO, no official weights on this machine",
        )
        for row in data["result"]
    ]
    evidence_table(rows, _caption("Networks as built here, fused, against the published table", data))


def _f(value: float) -> str:
    return f"{value:.3f}"


def _missing(what: str, command: str) -> None:
    gr.Markdown(f"Not measured yet: {what}. `{command}` records it.")
