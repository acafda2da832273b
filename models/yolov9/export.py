"""Detections as text: JSON, CSV, COCO results and YOLO labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from models.errors import BadInput
from models.yolov9.classes import COCO_CATEGORY_IDS, COCO_NAMES
from models.yolov9.detections import Detections

FORMATS = ("JSON", "CSV", "COCO", "YOLO")


def export(frames: Sequence[Detections], kind: str) -> str:
    """All frames' detections as one text; frame numbers start at 0.

    COCO: a results list with `image_id` = frame number and `bbox` x, y, width, height in pixels.
    YOLO: `class cx cy w h score`, normalised; for more than one frame each starts with a `# frame n` line.
    """
    if kind not in FORMATS:
        raise BadInput(f"Unknown format {kind!r}. Choose one of {', '.join(FORMATS)}.")
    writers = {"JSON": _json, "CSV": _csv, "COCO": _coco, "YOLO": _yolo}
    return writers[kind](frames)


def as_dict(found: Detections) -> dict[str, Any]:
    """Plain numbers and text, as the web page and the JSON export use them."""
    return {
        "width": found.image_size[0],
        "height": found.image_size[1],
        "detections": [
            {
                "box": [round(float(v), 2) for v in box],
                "score": round(float(score), 4),
                "class_id": int(class_id),
                "name": found.names[class_id],
                "track_id": None if found.track_ids is None else int(found.track_ids[i]),
            }
            for i, (box, score, class_id) in enumerate(
                zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True)
            )
        ],
    }


def _json(frames: Sequence[Detections]) -> str:
    return json.dumps([{"frame": i, **as_dict(found)} for i, found in enumerate(frames)], indent=1)


def _csv(frames: Sequence[Detections]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("frame", "x1", "y1", "x2", "y2", "score", "class_id", "name", "track_id"))
    for i, found in enumerate(frames):
        for d in as_dict(found)["detections"]:
            writer.writerow((i, *d["box"], d["score"], d["class_id"], d["name"], d["track_id"]))
    return out.getvalue()


def _coco(frames: Sequence[Detections]) -> str:
    rows = []
    for i, found in enumerate(frames):
        for d in as_dict(found)["detections"]:
            x1, y1, x2, y2 = d["box"]
            box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            category = COCO_CATEGORY_IDS[d["class_id"]] if found.names == COCO_NAMES else d["class_id"]
            rows.append({"image_id": i, "category_id": category, "bbox": box, "score": d["score"]})
    return json.dumps(rows, indent=1)


def _yolo(frames: Sequence[Detections]) -> str:
    lines = []
    for i, found in enumerate(frames):
        if len(frames) > 1:
            lines.append(f"# frame {i}")
        w, h = found.image_size
        for box, score, class_id in zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True):
            x1, y1, x2, y2 = (float(v) for v in box)
            numbers = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h, float(score))
            lines.append(f"{class_id} " + " ".join(f"{n:.6f}" for n in numbers))
    return "\n".join(lines) + "\n" if lines else ""
