"""Reads a user's detection data: YOLO format (`data.yaml`) or COCO format (annotation JSON and image folder)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from models.errors import BadInput
from models.images import read_image
from models.yolov9.augment import Labelled
from models.yolov9.classes import COCO_CATEGORY_IDS, COCO_NAMES
from models.yolov9.compose import Sample

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Item:
    """One picture and its labels: rows of class, then centre x, y, w, h or polygon x, y, x, y, ... in 0..1."""

    image: Path
    rows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class DataSet:
    items: tuple[Item, ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, images: Path | None = None, split: str = "train") -> DataSet:
        """`path`: a YOLO data.yaml, or a COCO annotation file with its image folder. Raises BadInput."""
        if not path.is_file():
            raise BadInput(f"There is no file {path.name!r}. Give a YOLO data.yaml or a COCO annotation JSON.")
        found = _coco(path, images) if path.suffix == ".json" else _yolo(path, split)
        if not found.items:
            raise BadInput(f"{path.name} leads to no pictures for {split!r}. Check its paths.")
        return found


def load_labelled(item: Item, long_side: int | None = None) -> Labelled:
    """Reads a picture, scaled so that its longer side is `long_side`, with its labels in pixels."""
    image = np.asarray(read_image(item.image))
    if long_side is not None:
        ratio = long_side / max(image.shape[:2])
        size = tuple(max(1, round(n * ratio)) for n in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    h, w = image.shape[:2]
    polygons = [np.array(row[1:]).reshape(-1, 2) * (w, h) for row in item.rows if len(row) > 5]
    boxes = [_box(row, w, h) for row in item.rows]
    whole = len(polygons) == len(item.rows)
    classes = np.array([int(row[0]) for row in item.rows], np.int64)
    return Labelled(image, classes, np.array(boxes, np.float64).reshape(-1, 4), polygons if whole else [])


def read_samples(path: Path, images: Path | None = None) -> Iterator[Sample]:
    """Every validation picture at its own size, for `evaluate`."""
    for item in DataSet.read(path, images, "val").items:
        yield to_sample(load_labelled(item))


def to_sample(part: Labelled) -> Sample:
    """Normalised labels."""
    h, w = part.image.shape[:2]
    centre = (part.boxes[:, :2] + part.boxes[:, 2:]) / 2 / (w, h)
    size = (part.boxes[:, 2:] - part.boxes[:, :2]) / (w, h)
    return Sample(part.image, np.concatenate((part.classes[:, None], centre, size), 1).astype(np.float32))


def _yolo(path: Path, split: str) -> DataSet:
    data = yaml.safe_load(path.read_text())
    if not isinstance(data, dict) or "names" not in data or split not in data:
        raise BadInput(f"{path.name} needs the keys names, train and val. See models/yolov9/README.md.")
    names = data["names"]
    names = tuple(str(names[i]) for i in range(len(names)))
    root = (path.parent / data.get("path", "")).resolve()
    entries = data[split] if isinstance(data[split], list) else [data[split]]
    pictures: list[Path] = []
    for entry in entries:
        place = root / entry
        if place.suffix == ".txt":
            pictures += [root / line for line in place.read_text().split("\n") if line.strip()]
        else:
            pictures += sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return DataSet(tuple(Item(p, _yolo_rows(p, len(names))) for p in pictures), names)


def _yolo_rows(picture: Path, classes: int) -> tuple[tuple[float, ...], ...]:
    """Labels beside the picture: `.../images/a.jpg` -> `.../labels/a.txt`; no file means no objects."""
    parts = list(picture.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    file = Path(*parts).with_suffix(".txt")
    rows = []
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], start=1):
        if not line.strip():
            continue
        try:
            row = tuple(float(v) for v in line.split())
        except ValueError as error:
            raise BadInput(f"{file.name}, line {number} is not numbers: {line[:60]!r}.") from error
        good = len(row) == 5 or (len(row) >= 7 and len(row) % 2 == 1)
        if not good or not 0 <= row[0] < classes or row[0] % 1 or not all(-0.01 <= v <= 1.01 for v in row[1:]):
            raise BadInput(
                f"{file.name}, line {number} is no label: {line[:60]!r}. Write class (0 to {classes - 1}), then "
                "centre x, centre y, width, height, or a polygon, all divided by the picture's size."
            )
        rows.append(row)
    return tuple(rows)


def _coco(path: Path, images: Path | None) -> DataSet:
    if images is None:
        raise BadInput("A COCO annotation file needs its picture folder: add --images FOLDER.")
    data = json.loads(path.read_text())
    categories = sorted(data["categories"], key=lambda c: c["id"])
    if {c["id"] for c in categories} == set(COCO_CATEGORY_IDS):
        names, index = COCO_NAMES, {c: i for i, c in enumerate(COCO_CATEGORY_IDS)}
    else:
        names, index = tuple(c["name"] for c in categories), {c["id"]: i for i, c in enumerate(categories)}
    rows: dict[int, list[tuple[float, ...]]] = {picture["id"]: [] for picture in data["images"]}
    sizes = {picture["id"]: (picture["width"], picture["height"]) for picture in data["images"]}
    for note in data["annotations"]:
        if note.get("iscrowd"):
            continue
        w, h = sizes[note["image_id"]]
        x, y, bw, bh = note["bbox"]
        box = ((x + bw / 2) / w, (y + bh / 2) / h, bw / w, bh / h)
        polygons = note.get("segmentation")
        if isinstance(polygons, list) and len(polygons) == 1 and len(polygons[0]) >= 6:
            points = np.array(polygons[0]).reshape(-1, 2) / (w, h)
            rows[note["image_id"]].append((index[note["category_id"]], *points.ravel().tolist()))
        else:
            rows[note["image_id"]].append((index[note["category_id"]], *box))
    items = (Item(images / picture["file_name"], tuple(rows[picture["id"]])) for picture in data["images"])
    return DataSet(tuple(items), names)


def _box(row: tuple[float, ...], w: int, h: int) -> tuple[float, float, float, float]:
    if len(row) > 5:
        points = np.array(row[1:]).reshape(-1, 2) * (w, h)
        return (*points.min(0), *points.max(0))
    _, cx, cy, bw, bh = row
    return (cx - bw / 2) * w, (cy - bh / 2) * h, (cx + bw / 2) * w, (cy + bh / 2) * h
