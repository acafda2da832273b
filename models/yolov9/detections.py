"""What was found in a picture, as plain arrays; nothing heavy is imported, so that a page can show it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Milliseconds spent: letterbox and copy, network, NMS and mapping back."""

    pre_ms: float
    network_ms: float
    nms_ms: float

    @property
    def total_ms(self) -> float:
        return self.pre_ms + self.network_ms + self.nms_ms


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, best first.

    boxes_xyxy: float32 (N, 4), left, top, right, bottom in the picture's pixels. scores: float32 (N,) in 0..1.
    class_ids: int64 (N,), indices into names. track_ids: int64 (N,), -1 where not tracked, or None.
    image_size: the picture's (width, height).
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    names: tuple[str, ...]
    image_size: tuple[int, int]
    timing: Timing = field(default=Timing(0, 0, 0), compare=False)
    track_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def labels(self) -> list[str]:
        return [self.names[i] for i in self.class_ids]

    def counts(self) -> dict[str, int]:
        """How many of each class, most frequent first."""
        return dict(Counter(self.labels).most_common())
