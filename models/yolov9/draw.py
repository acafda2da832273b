"""Draws detections with the published palette: supervision's annotators, lowest score first."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import supervision as sv

from models.yolov9.classes import PALETTE
from models.yolov9.detections import Detections


def annotate(image: np.ndarray, detections: Detections, scores: bool = True) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with boxes and labels; line and type grow with the picture."""
    order = np.argsort(detections.scores)  # confident boxes end on top
    found = sv.Detections(
        xyxy=detections.boxes_xyxy[order],
        confidence=detections.scores[order],
        class_id=detections.class_ids[order],
    )
    box, label = _annotators(max(image.shape[:2]))
    # The annotators take BGR; drawing on a flipped view keeps the palette's colours right.
    scene = np.ascontiguousarray(image[..., ::-1])
    scene = box.annotate(scene, found)
    scene = label.annotate(scene, found, captions(detections, order, scores))
    return np.ascontiguousarray(np.asarray(scene)[..., ::-1])


def captions(detections: Detections, order: np.ndarray, scores: bool) -> list[str]:
    """`#3 dog 0.87`: track id where there is one, name, score."""
    texts = []
    for i in order:
        text = detections.names[detections.class_ids[i]]
        if detections.track_ids is not None and detections.track_ids[i] >= 0:
            text = f"#{detections.track_ids[i]} {text}"
        texts.append(f"{text} {detections.scores[i]:.2f}" if scores else text)
    return texts


@lru_cache(maxsize=16)
def _annotators(side: int) -> tuple[sv.BoxAnnotator, sv.RichLabelAnnotator]:
    colours = sv.ColorPalette.from_hex(list(PALETTE))
    thickness = max(2, round(side / 320))
    return (
        sv.BoxAnnotator(color=colours, thickness=thickness),
        sv.RichLabelAnnotator(
            color=colours,
            text_color=sv.Color.BLACK,
            font_size=max(12, round(side / 45)),
            text_padding=max(2, side // 240),
            smart_position=False,
        ),
    )
