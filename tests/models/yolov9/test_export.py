"""Exports and drawing on detections made by hand."""

import csv
import io
import json

import numpy as np
import pytest

from models.errors import BadInput
from models.yolov9.classes import COCO_CATEGORY_IDS, COCO_NAMES, PALETTE
from models.yolov9.draw import annotate
from models.yolov9.export import export
from models.yolov9.pipeline import Detections
from models.yolov9.track import Tracker


def found(boxes, classes, scores=None, size=(200, 100)) -> Detections:
    n = len(boxes)
    scores = np.linspace(0.9, 0.5, n) if scores is None else np.array(scores)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        scores.astype(np.float32),
        np.array(classes, np.int64),
        COCO_NAMES,
        size,
    )


ONE = found([(20, 10, 60, 50), (100, 20, 180, 90)], [16, 79])


def test_json_and_csv_say_the_same():
    rows = json.loads(export([ONE], "JSON"))[0]["detections"]
    table = list(csv.DictReader(io.StringIO(export([ONE], "CSV"))))
    assert [r["name"] for r in rows] == [r["name"] for r in table] == ["dog", "toothbrush"]
    assert rows[0]["box"] == [float(table[0][k]) for k in ("x1", "y1", "x2", "y2")] == [20, 10, 60, 50]


def test_coco_uses_category_ids_and_width_height():
    rows = json.loads(export([ONE, ONE], "COCO"))
    assert [r["image_id"] for r in rows] == [0, 0, 1, 1]
    assert rows[0]["bbox"] == [20, 10, 40, 40]
    assert [r["category_id"] for r in rows[:2]] == [COCO_CATEGORY_IDS[16], 90]


def test_yolo_is_normalised():
    line = export([ONE], "YOLO").splitlines()[0].split()
    assert [float(v) for v in line] == pytest.approx([16, 0.2, 0.3, 0.2, 0.4, 0.9])


def test_no_detections_and_unknown_formats():
    none = found([], [])
    assert export([none], "YOLO") == "" and json.loads(export([none], "COCO")) == []
    with pytest.raises(BadInput):
        export([none], "XML")


def test_counts():
    assert found([(0, 0, 9, 9)] * 3, [0, 16, 16]).counts() == {"dog": 2, "person": 1}


def test_boxes_are_drawn_in_the_published_colour_where_they_are():
    image = np.zeros((100, 200, 3), np.uint8)
    drawn = annotate(image, found([(20, 40, 60, 80)], [2]))
    assert not image.any()  # the original stays as it was
    assert tuple(drawn[60, 20]) == tuple(bytes.fromhex(PALETTE[2][1:]))
    assert not drawn[45:75, 30:55].any() and not drawn[:, 120:].any()


def test_drawing_nothing_changes_nothing():
    image = np.full((20, 30, 3), 7, np.uint8)
    assert (annotate(image, found([], [])) == 7).all()


def test_a_moving_object_keeps_its_number():
    tracker, ids = Tracker(), []
    for k in range(12):
        boxes = [(10 + 4 * k, 10, 60 + 4 * k, 60), (150, 5, 190, 95)]
        ids.append(tracker.update(found(boxes, [16, 0], [0.9, 0.8])).track_ids.tolist())
    assert len({tuple(pair) for pair in ids[3:]}) == 1
    a, b = ids[-1]
    assert a >= 0 and b >= 0 and a != b


def test_trackers_do_not_share_numbers_or_state():
    first, second = Tracker(), Tracker()
    for _ in range(5):
        a = first.update(found([(10, 10, 60, 60)], [16]))
    b = second.update(found([], []))
    assert a.track_ids[0] >= 0 and len(b.track_ids) == 0
