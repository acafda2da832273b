"""Track ids over the frames of one stream, by ByteTrack from the `trackers` package."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import supervision as sv
from trackers import ByteTrackTracker

from models.yolov9.detections import Detections


class Tracker:
    """State of one user's stream. Frames must come in order; nothing is shared between trackers."""

    def __init__(self, frame_rate: float = 30.0) -> None:
        self.tracker = ByteTrackTracker(frame_rate=frame_rate)

    def update(self, found: Detections) -> Detections:
        """The same detections with `track_ids` (N,), -1 where a track is not confirmed yet."""
        ids = np.full(len(found), -1, np.int64)
        tracked = self.tracker.update(
            sv.Detections(
                xyxy=found.boxes_xyxy.astype(np.float32),
                confidence=found.scores,
                class_id=found.class_ids,
                data={"row": np.arange(len(found))},  # the tracker may reorder
            )
        )
        if len(tracked) and tracked.tracker_id is not None:
            ids[np.asarray(tracked.data["row"], int)] = tracked.tracker_id
        return replace(found, track_ids=ids)
