"""Composites for the embedded detector: cut-outs on backgrounds, seen through a simulated camera.

Every picture is made from an integer seed, so a data set is a range of seeds and can be regenerated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from models.yolov9 import art
from models.yolov9.classes import COCO_NAMES

VISIBLE = 0.35  # an object hidden by more than 65 % loses its label
cv2.setNumThreads(1)


@dataclass(frozen=True)
class Sample:
    """`image (S, S, 3)` uint8 RGB; `labels (n, 5)` float32: class, then centre x, y, width, height in 0..1."""

    image: np.ndarray
    labels: np.ndarray


class Composer:
    """Makes composites. `cutouts`: class -> RGBA pictures; `distractors`: RGBA; `photos`: RGB backgrounds."""

    def __init__(
        self, cutouts: dict[int, list[np.ndarray]], distractors: list[np.ndarray], photos: list[np.ndarray]
    ) -> None:
        self.cutouts = cutouts
        self.classes = sorted(cutouts)
        self.distractors = distractors
        self.photos = photos

    @classmethod
    def from_art(cls, folder: Path, vendors: tuple[str, ...] = art.TRAINING_VENDORS) -> Composer:
        return cls(
            art.load_cutouts(folder, vendors),
            art.load_pictures(folder / art.DISTRACTORS, "RGBA"),
            art.load_pictures(folder / "photos", "RGB"),
        )

    def scene(self, seed: int, size: int, most: int = 6, extent: tuple[float, float] = (0.09, 0.85)) -> Sample:
        """One to `most` objects and distractors on a background, partly hiding one another.

        `extent`: range of an object's longer side, as a share of the picture's.
        """
        rng = np.random.default_rng(seed)
        canvas = self.background(rng, size)
        layers: list[tuple[int, np.ndarray, int]] = []  # class, visible mask, full area
        for _ in range(rng.integers(1, most + 1)):
            is_object = rng.random() < 0.8
            label = int(rng.choice(self.classes)) if is_object else -1
            pictures = self.cutouts[label] if is_object else self.distractors
            picture = pictures[rng.integers(len(pictures))]
            side = size * float(np.exp(rng.uniform(*np.log(extent))))
            placed = _place(canvas, picture, side, rng, card=rng.random() < 0.3)
            if placed is None:
                continue
            cover, mask = placed
            layers = [(c, m & ~cover, area) for c, m, area in layers]
            layers.append((label, mask, int(mask.sum())))
        labels = [_label(c, m) for c, m, area in layers if c >= 0 and area > 20 and m.sum() > VISIBLE * area]
        image = camera(canvas, rng)
        return Sample(image, np.array(labels, np.float32).reshape(-1, 5))

    def card(self, seed: int, size: int, label: int, picture: np.ndarray) -> Sample:
        """One printed card of `picture`, held up before the camera: the flash-card test."""
        rng = np.random.default_rng(seed)
        canvas = self.background(rng, size)
        placed = _place(canvas, picture, size * rng.uniform(0.35, 0.7), rng, card=True, centred=True)
        assert placed is not None
        return Sample(camera(canvas, rng), np.array([_label(label, placed[1])], np.float32))

    def background(self, rng: np.random.Generator, size: int) -> np.ndarray:
        if self.photos and rng.random() < 0.45:
            photo = self.photos[rng.integers(len(self.photos))]
            h, w = photo.shape[:2]
            side = int(min(h, w) * rng.uniform(0.4, 1))
            y, x = rng.integers(h - side + 1), rng.integers(w - side + 1)
            canvas = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
            if rng.random() < 0.5:
                canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 6))
            return np.ascontiguousarray(canvas[:, :: rng.choice((-1, 1))])
        return procedural_background(rng, size)


def procedural_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A wall, a room, clutter or noise. `(size, size, 3)` uint8."""
    base, other = rng.uniform(0, 255, (2, 3))
    if rng.random() < 0.4:  # mostly greyish, as rooms are
        base, other = base.mean() + rng.normal(0, 12, 3), other.mean() + rng.normal(0, 12, 3)
    ramp = np.linspace(0, 1, size)[:, None] * rng.uniform(-1, 1) + np.linspace(0, 1, size) * rng.uniform(-1, 1)
    paint = base + ramp[..., None] * (other - base)
    for cells in (3, 9, 31):  # soft texture at several scales
        noise = rng.normal(0, rng.uniform(0, 22), (cells, cells, rng.choice((1, 3)))).astype(np.float32)
        grain = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, -1)
        paint = paint + grain
    canvas: np.ndarray = np.clip(paint, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 9)):  # furniture-like rectangles, discs, lines and stripes
        colour = tuple(float(c) for c in rng.uniform(0, 255, 3))
        p, q = ((int(a), int(b)) for a, b in rng.integers(-size // 4, size + size // 4, (2, 2)))
        kind = rng.integers(4)
        if kind == 0:
            cv2.rectangle(canvas, p, q, colour, -1)
        elif kind == 1:
            cv2.circle(canvas, p, int(rng.integers(4, size // 3)), colour, -1)
        elif kind == 2:
            cv2.line(canvas, p, q, colour, int(rng.integers(1, size // 16)))
        else:
            step = int(rng.integers(6, 40))
            for k in range(p[0], p[0] + step * 8, step):
                cv2.line(canvas, (k, p[1]), (k + (q[0] - p[0]) // 4, q[1]), colour, int(rng.integers(1, 6)))
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 4))


def camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lighting, white balance, blur, sensor noise and JPEG, as a webcam adds them."""
    size = image.shape[0]
    x: np.ndarray = image.astype(np.float32) / 255
    if rng.random() < 0.6:
        low = rng.uniform(0.45, 1.0, (2, 2)).astype(np.float32)
        x *= cv2.resize(low, (size, size), interpolation=cv2.INTER_LINEAR)[..., None] * rng.uniform(1, 1.4)
    x = np.clip(x, 0, 1) ** np.float32(rng.uniform(0.7, 1.4))
    x = x * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    if rng.random() < 0.5:
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * np.float32(rng.uniform(0.45, 1.3))
    blur = rng.random()
    if blur < 0.25:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, size / 220))
    elif blur < 0.4:
        x = cv2.filter2D(x, -1, _motion_kernel(rng, int(rng.integers(3, max(4, size // 40)))))
    x = x + rng.standard_normal(x.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.05))
    out: np.ndarray = np.clip(x * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        coded = cv2.imencode(".jpg", out, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))))[1]
        out = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    return out


def _place(
    canvas: np.ndarray,
    picture: np.ndarray,
    extent: float,
    rng: np.random.Generator,
    card: bool,
    centred: bool = False,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pastes `picture` onto `canvas` in place; returns the covered and the picture's own masks, (S, S) bool."""
    size = canvas.shape[0]
    scale = extent / max(picture.shape[:2])
    w, h = (max(2, int(n * scale)) for n in picture.shape[1::-1])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(picture, (w, h), interpolation=how)
    if rng.random() < 0.5 and not card:
        picture = picture[:, ::-1]
    sheet = _card(picture, rng) if card else picture
    top, left = (a - b for a, b in zip(sheet.shape[:2], (h, w), strict=True)) if card else (0, 0)
    inner = np.zeros(sheet.shape[:2], np.uint8)
    inner[top // 2 : top // 2 + h, left // 2 : left // 2 + w] = picture[..., 3]

    # Rotation and perspective: the four corners, turned, then each moved on its own.
    sh, sw = sheet.shape[:2]
    corners = np.array([(0, 0), (sw, 0), (sw, sh), (0, sh)], np.float32)
    angle = np.deg2rad(rng.normal(0, 12))
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))], np.float32)
    moved = (corners - (sw / 2, sh / 2)) @ turn.T * (rng.uniform(0.85, 1.15, 2))
    moved += rng.uniform(-0.12, 0.12, (4, 2)) * min(sw, sh)
    spread = 0.12 if centred else 0.5
    centre = size * (0.5 + rng.uniform(-spread, spread, 2))
    moved = (moved + centre).astype(np.float32)
    x0, y0 = np.floor(moved.min(0)).astype(int).clip(0, size)
    x1, y1 = np.ceil(moved.max(0)).astype(int).clip(0, size)
    if x1 - x0 < 3 or y1 - y0 < 3:
        return None
    matrix = cv2.getPerspectiveTransform(corners, moved - np.array((x0, y0), np.float32))
    shape = (int(x1 - x0), int(y1 - y0))
    # Premultiplied, so that the transparent pixels' colour never bleeds into the edge.
    alpha = sheet[..., 3:].astype(np.float32) / 255
    layer = np.concatenate((sheet[..., :3] * alpha, alpha * 255), 2).astype(np.uint8)
    warped = cv2.warpPerspective(layer, matrix, shape, flags=cv2.INTER_LINEAR).astype(np.float32)
    own = cv2.warpPerspective(inner, matrix, shape, flags=cv2.INTER_LINEAR)
    light = np.float32(rng.uniform(0.75, 1.15))
    opacity = warped[..., 3:] / 255
    region = canvas[y0:y1, x0:x1]
    if rng.random() < 0.3:  # a soft shadow
        shade = cv2.GaussianBlur(opacity, (0, 0), 1 + extent / 30)[..., None] * rng.uniform(0.1, 0.5)
        region[:] = (region * (1 - shade)).astype(np.uint8)
    region[:] = np.clip(region * (1 - opacity) + warped[..., :3] * light, 0, 255).astype(np.uint8)
    cover, mask = np.zeros((2, size, size), bool)
    cover[y0:y1, x0:x1] = opacity[..., 0] > 0.5
    mask[y0:y1, x0:x1] = own > 127
    return (cover, mask) if mask.sum() > 12 else None


def _card(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sheet of paper or a screen with `picture` in its middle, some with a word below. RGBA."""
    h, w = picture.shape[:2]
    side = max(h, w)
    ch, cw = int(max(h, side * 0.8) * rng.uniform(1.2, 1.7)), int(max(w, side * 0.8) * rng.uniform(1.15, 1.6))
    sheet = np.full((ch, cw, 4), 255, np.uint8)
    sheet[..., :3] = 255 - rng.uniform(0, 30) if rng.random() < 0.8 else rng.uniform(60, 255, 3)
    if rng.random() < 0.4:
        cv2.rectangle(sheet, (2, 2), (cw - 3, ch - 3), (*rng.uniform(0, 200, 3), 255), max(1, side // 40))
    y, x = (ch - h) // 2, (cw - w) // 2
    alpha = picture[..., 3:].astype(np.float32) / 255
    spot = sheet[y : y + h, x : x + w, :3]
    spot[:] = (spot * (1 - alpha) + picture[..., :3] * alpha).astype(np.uint8)
    if rng.random() < 0.5:  # any class's name, so that reading it cannot help
        word = COCO_NAMES[rng.integers(len(COCO_NAMES))]
        cv2.putText(sheet, word, (cw // 10, ch - 3), cv2.FONT_HERSHEY_SIMPLEX, cw / 300, (30, 30, 30, 255), 1)
    return sheet


def _label(label: int, mask: np.ndarray) -> tuple[float, float, float, float, float]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    size = mask.shape[0]
    x0, x1, y0, y1 = xs[0], xs[-1] + 1, ys[0], ys[-1] + 1
    return label, (x0 + x1) / 2 / size, (y0 + y1) / 2 / size, (x1 - x0) / size, (y1 - y0) / size


def _motion_kernel(rng: np.random.Generator, length: int) -> np.ndarray:
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    half = (length - 1) / 2
    dx, dy = np.cos(angle) * half, np.sin(angle) * half
    start, end = (round(half - dx), round(half - dy)), (round(half + dx), round(half + dy))
    cv2.line(kernel, start, end, 1.0, 1)
    return kernel / kernel.sum()
