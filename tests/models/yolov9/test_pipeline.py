"""Letterbox, mapping back, NMS and the shipped detector, against the specification's tables."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from models import yolov9
from models.errors import BadInput
from models.yolov9.compose import Composer
from models.yolov9.pipeline import letterbox, suppress, unletterbox


@pytest.mark.parametrize(
    ("image", "target", "square", "network", "padding"),
    [
        ((640, 480), 640, False, (640, 480), (0, 0, 0, 0)),
        ((640, 480), 640, True, (640, 640), (80, 80, 0, 0)),
        ((1280, 720), 640, False, (640, 384), (12, 12, 0, 0)),
        ((1280, 720), 640, True, (640, 640), (140, 140, 0, 0)),
        ((1920, 1080), 640, False, (640, 384), (12, 12, 0, 0)),
        ((500, 333), 640, False, (640, 448), (11, 11, 0, 0)),
        ((333, 500), 640, False, (448, 640), (0, 0, 11, 11)),
        ((320, 240), 640, False, (640, 480), (0, 0, 0, 0)),
        ((640, 480), 320, False, (320, 256), (8, 8, 0, 0)),
        ((640, 360), 320, False, (320, 192), (6, 6, 0, 0)),
        ((640, 480), 416, False, (416, 320), (4, 4, 0, 0)),
    ],
)
def test_letterbox_table(image, target, square, network, padding):
    found, pads = letterbox(np.zeros((image[1], image[0], 3), np.uint8), target, square)
    assert found.shape[1::-1] == network
    assert pads == padding


def test_odd_padding_goes_to_the_bottom():
    _, pads = letterbox(np.zeros((611, 640, 3), np.uint8), 640, square=True)
    assert pads[:2] == (14, 15)


def test_padding_is_grey_114():
    found, _ = letterbox(np.zeros((100, 640, 3), np.uint8), 640, square=True)
    assert (found[0] == 114).all() and (found[320] == 0).all()


def test_boxes_map_back():
    boxes = unletterbox(torch.tensor([[100.0, 50, 300, 200]]), (384, 640), (720, 1280))
    assert boxes.tolist() == [[200, 76, 600, 376]]


def test_boxes_are_clipped_to_the_picture():
    boxes = unletterbox(torch.tensor([[-50.0, -50, 9000, 9000]]), (384, 640), (720, 1280))
    assert boxes.tolist() == [[0, 0, 1280, 720]]


BOXES = [
    (50, 50, 40, 40),
    (52, 51, 40, 42),
    (50, 50, 40, 40),
    (120, 80, 60, 30),
    (121, 80, 60, 30),
    (200, 200, 10, 10),
]
SCORES = [
    (0.9, 0.1, 0.3),
    (0.8, 0.05, 0.02),
    (0.2, 0.7, 0.1),
    (0.3, 0.6, 0.1),
    (0.1, 0.55, 0.5),
    (0.2, 0.1, 0.24),
]
DEFAULT = [(30, 30, 70, 70, 0.9, 0), (30, 30, 70, 70, 0.7, 1), (90, 65, 150, 95, 0.6, 1)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, DEFAULT),
        ({"agnostic": True}, [DEFAULT[0], DEFAULT[2]]),
        (
            {"multi_label": True},
            [*DEFAULT, (91, 65, 151, 95, 0.5, 2), (30, 30, 70, 70, 0.3, 2), (90, 65, 150, 95, 0.3, 0)],
        ),
        ({"classes": [1]}, DEFAULT[1:]),
        ({"max_detections": 2}, DEFAULT[:2]),
    ],
    ids=["default", "agnostic", "multi-label", "class 1", "two at most"],
)
def test_nms_vector(options, expected):
    prediction = torch.cat((torch.tensor(BOXES).float(), torch.tensor(SCORES)), 1).T
    boxes, scores, classes = suppress(prediction, 0.25, 0.45, **options)
    rows = torch.cat((boxes, scores[:, None], classes[:, None].float()), 1)
    order = [tuple(round(v, 4) for v in row) for row in rows.tolist()]
    # Equal scores may come in either order.
    assert sorted(order, key=lambda r: (-r[4], r)) == sorted(expected, key=lambda r: (-r[4], r))


@pytest.fixture(scope="module")
def detector():
    return yolov9.load("embedded", device="cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"confidence": math.nan},
        {"confidence": -0.1},
        {"iou": 1.5},
        {"iou": math.inf},
        {"size": 0},
        {"size": 100_000},
        {"max_detections": 0},
        {"classes": [80]},
        {"classes": [-1]},
    ],
)
def test_settings_out_of_range_are_refused(detector, settings):
    with pytest.raises(BadInput):
        detector.detect(np.zeros((64, 64, 3), np.uint8), **settings)


def test_a_size_off_the_grid_is_rounded_up_with_a_warning(detector):
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match="320"):
        rounded = detector.detect(image, size=300, confidence=0.01)
    exact = detector.detect(image, size=320, confidence=0.01)
    assert np.array_equal(rounded.boxes_xyxy, exact.boxes_xyxy)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (31, 33)])
def test_any_shape_of_picture_works(detector, shape):
    found = detector.detect(np.zeros((*shape, 3), np.uint8), size=320)
    assert found.image_size == (shape[1], shape[0])
    assert found.boxes_xyxy.shape == (len(found), 4) and found.boxes_xyxy.dtype == np.float32


def test_shipped_weights_find_what_they_were_trained_for(detector, flash_card_pictures):
    """Flash cards on plain grey: the share with the right top label is 85 % at 128 px, the tab's choice."""
    right = 0
    for name, picture in flash_card_pictures:
        canvas = Image.new("RGB", (320, 320), (150, 155, 160))
        canvas.paste(picture.resize((160, 160)), (80, 80))
        found = detector.detect(canvas, size=128, confidence=0.05)
        right += len(found) > 0 and found.labels[0] == name
    assert right / len(flash_card_pictures) >= 0.8


def test_class_filter_and_order(detector, flash_card_pictures):
    name, picture = flash_card_pictures[0]
    every = detector.detect(picture, size=320, confidence=0.01)
    assert (np.diff(every.scores) <= 0).all()
    label = int(every.class_ids[0])
    only = detector.detect(picture, size=320, confidence=0.01, classes=[label])
    assert set(only.class_ids.tolist()) == {label}


def test_threads_share_one_detector(detector):
    from concurrent.futures import ThreadPoolExecutor

    images = [np.random.default_rng(i).integers(0, 255, (200 + 32 * i, 320, 3), dtype=np.uint8) for i in range(4)]
    alone = [detector.detect(i, size=320, confidence=0.001).boxes_xyxy for i in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: detector.detect(i, size=320, confidence=0.001).boxes_xyxy, images))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_composites_can_be_made_again():
    """The data set is its seeds: the same seed gives the same picture and labels."""
    rng = np.random.default_rng(0)
    cutouts = {3: [np.dstack((rng.integers(0, 255, (40, 50, 3)), np.full((40, 50), 255))).astype(np.uint8)]}
    composer = Composer(cutouts, [], [])
    a, b, other = composer.scene(5, 128), composer.scene(5, 128), composer.scene(6, 128)
    assert np.array_equal(a.image, b.image) and np.array_equal(a.labels, b.labels)
    assert not np.array_equal(a.image, other.image)


def test_composite_boxes_hold_the_object():
    """A bright square on dark: its pixels lie inside the box, and fill it."""
    cutouts = {0: [np.dstack((np.zeros((60, 60, 2)), np.full((60, 60, 2), 255))).astype(np.uint8)]}  # pure blue
    sample = Composer(cutouts, [], []).card(1, 256, 0, cutouts[0][0])
    (_, cx, cy, w, h) = sample.labels[0]
    blue = sample.image[..., 2].astype(int) - sample.image[..., :2].max(2) > 60
    ys, xs = np.nonzero(blue)
    x0, x1, y0, y1 = (cx - w / 2) * 256, (cx + w / 2) * 256, (cy - h / 2) * 256, (cy + h / 2) * 256
    inside = (xs > x0 - 3) & (xs < x1 + 3) & (ys > y0 - 3) & (ys < y1 + 3)
    assert inside.mean() > 0.95
    assert blue.sum() > 0.4 * w * h * 256 * 256
