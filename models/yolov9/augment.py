"""The official training augmentations (`hyp.scratch-high`; specification, section 11).

Everything works on `Labelled`: boxes in pixels, so that geometry stays simple, and polygons where the data
has them (copy-paste needs them, and a turned polygon gives a tighter box than a turned box).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

GREY = 114


@dataclass(frozen=True)
class Augmentation:
    """Strengths; the defaults are the published ones."""

    mosaic: float = 1.0
    mixup: float = 0.15
    copy_paste: float = 0.3
    hsv: tuple[float, float, float] = (0.015, 0.7, 0.4)
    translate: float = 0.1
    scale: float = 0.9
    fliplr: float = 0.5


@dataclass
class Labelled:
    """`image (H, W, 3)` uint8 RGB; `classes (n,)` int; `boxes (n, 4)` xyxy pixels; one polygon (k, 2) a box or none."""

    image: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    polygons: list[np.ndarray] = field(default_factory=list)


Pick = Callable[[], Labelled]


def augmented(
    first: Labelled, pick: Pick, size: int, rng: np.random.Generator, how: Augmentation, mosaic: bool = True
) -> Labelled:
    """One training picture of `size` x `size`. `pick` draws another picture of the data set (long side `size`)."""
    if mosaic and rng.random() < how.mosaic:
        result = _mosaic_and_affine([first, pick(), pick(), pick()], size, rng, how)
        if rng.random() < how.mixup:
            other = _mosaic_and_affine([pick() for _ in range(4)], size, rng, how)
            result = mixup(result, other, rng)
    else:
        result = affine(centred(first, size), size, rng, how)
    result.image = jitter_hsv(result.image, rng, how.hsv)
    return flipped(result) if rng.random() < how.fliplr else result


def mosaic_of(parts: list[Labelled], size: int, rng: np.random.Generator) -> Labelled:
    """Four pictures around a random centre on a grey canvas of twice the size."""
    canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
    cx, cy = (int(v) for v in rng.uniform(0.5 * size, 1.5 * size, 2))
    placed = []
    for k, part in enumerate(parts):
        h, w = part.image.shape[:2]
        x, y = (cx - w, cx)[k % 2], (cy - h, cy)[k // 2]  # top left corner: may lie outside
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, 2 * size), min(y + h, 2 * size)
        if x1 > x0 and y1 > y0:
            canvas[y0:y1, x0:x1] = part.image[y0 - y : y1 - y, x0 - x : x1 - x]
        placed.append(_shifted(part, x, y))
    return _joined(canvas, placed)


def affine(part: Labelled, size: int, rng: np.random.Generator, how: Augmentation) -> Labelled:
    """Random scale and translation about the centre onto a canvas of `size` (the rest is off by default)."""
    h, w = part.image.shape[:2]
    s = rng.uniform(1 - how.scale, 1 + how.scale)
    tx, ty = rng.uniform(0.5 - how.translate, 0.5 + how.translate, 2) * size
    matrix = np.array([(s, 0, tx - s * w / 2), (0, s, ty - s * h / 2)], np.float64)
    image = cv2.warpAffine(part.image, matrix, (size, size), borderValue=(GREY,) * 3)
    polygons = [(p @ matrix[:, :2].T + matrix[:, 2]).clip(0, size) for p in part.polygons]
    if polygons:
        boxes = np.array([(*p.min(0), *p.max(0)) for p in polygons])
    else:
        boxes = part.boxes.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]
        boxes = boxes.reshape(-1, 4).clip(0, size)
    return _kept(Labelled(image, part.classes, boxes, polygons), part.boxes * s)


def mixup(a: Labelled, b: Labelled, rng: np.random.Generator) -> Labelled:
    """Both pictures over each other in a Beta(32, 32) ratio, with both sets of boxes."""
    share = rng.beta(32, 32)
    image = (a.image * share + b.image * (1 - share)).astype(np.uint8)
    return _joined(image, [a, b])


def copy_paste(part: Labelled, rng: np.random.Generator, share: float) -> Labelled:
    """Mirrored copies of a share of the objects, where they hide no other by more than 30 %."""
    n = len(part.polygons)
    if n == 0 or share == 0:
        return part
    h, w = part.image.shape[:2]
    image, mirrored = part.image.copy(), part.image[:, ::-1]
    classes, boxes, polygons = list(part.classes), list(part.boxes), list(part.polygons)
    for j in rng.permutation(n)[: round(share * n)]:
        x0, y0, x1, y1 = part.boxes[j]
        box = np.array((w - x1, y0, w - x0, y1))
        if _covered(box, np.array(boxes)).max() < 0.30:
            polygon = part.polygons[j].copy()
            polygon[:, 0] = w - polygon[:, 0]
            mask = np.zeros((h, w), np.uint8)
            cv2.fillPoly(mask, [polygon.round().astype(np.int32)], 1)
            image[mask > 0] = mirrored[mask > 0]
            classes.append(part.classes[j])
            boxes.append(box)
            polygons.append(polygon)
    return Labelled(image, np.array(classes), np.array(boxes), polygons)


def jitter_hsv(image: np.ndarray, rng: np.random.Generator, gains: tuple[float, float, float]) -> np.ndarray:
    """Scales hue, saturation and value by 1 +- gain."""
    r = rng.uniform(-1, 1, 3) * gains + 1
    x = np.arange(256)
    tables = ((x * r[0]) % 180, np.clip(x * r[1], 0, 255), np.clip(x * r[2], 0, 255))
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    hsv = [cv2.LUT(c, t.astype(np.uint8)) for c, t in zip(channels, tables, strict=True)]
    return cv2.cvtColor(cv2.merge(hsv), cv2.COLOR_HSV2RGB)


def flipped(part: Labelled) -> Labelled:
    """Left to right."""
    w = part.image.shape[1]
    boxes = part.boxes.copy()
    boxes[:, (0, 2)] = w - boxes[:, (2, 0)]
    polygons = [np.stack((w - p[:, 0], p[:, 1]), 1) for p in part.polygons]
    return Labelled(np.ascontiguousarray(part.image[:, ::-1]), part.classes, boxes, polygons)


def centred(part: Labelled, size: int) -> Labelled:
    """On a grey square of `size`."""
    h, w = part.image.shape[:2]
    y, x = (size - h) // 2, (size - w) // 2
    canvas = np.full((size, size, 3), GREY, np.uint8)
    canvas[y : y + h, x : x + w] = part.image
    return _joined(canvas, [_shifted(part, x, y)])


def _mosaic_and_affine(parts: list[Labelled], size: int, rng: np.random.Generator, how: Augmentation) -> Labelled:
    four = copy_paste(mosaic_of(parts, size, rng), rng, how.copy_paste)
    return affine(four, size, rng, how)


def _shifted(part: Labelled, x: int, y: int) -> Labelled:
    polygons = [p + (x, y) for p in part.polygons]
    return Labelled(part.image, part.classes, part.boxes + (x, y, x, y), polygons)


def _joined(image: np.ndarray, parts: list[Labelled]) -> Labelled:
    """All labels on one picture, clipped to it; polygons only if every part with boxes has them."""
    h, w = image.shape[:2]
    boxes = np.concatenate([p.boxes for p in parts]).clip(0, (w, h, w, h))
    whole = all(len(p.polygons) == len(p.boxes) for p in parts)
    polygons = [p.clip(0, (w, h)) for part in parts for p in part.polygons] if whole else []
    return Labelled(image, np.concatenate([p.classes for p in parts]), boxes, polygons)


def _kept(part: Labelled, before: np.ndarray) -> Labelled:
    """Drops boxes that became too small, too thin or too little of what they were."""
    size = part.boxes[:, 2:] - part.boxes[:, :2]
    original = (before[:, 2:] - before[:, :2]).prod(1)
    aspect = np.maximum(size[:, 0] / (size[:, 1] + 1e-9), size[:, 1] / (size[:, 0] + 1e-9))
    least = 0.01 if part.polygons else 0.1
    good = (size > 2).all(1) & (size.prod(1) / (original + 1e-9) > least) & (aspect < 100)
    polygons = [p for p, g in zip(part.polygons, good, strict=True) if g] if part.polygons else []
    return Labelled(part.image, part.classes[good], part.boxes[good], polygons)


def _covered(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Share of each of `boxes` that `box` covers."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return overlap.clip(0).prod(1) / (area + 1e-9)
