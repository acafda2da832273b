"""Training batches: composites for the embedded weights, or a user's own YOLO- or COCO-format data.

A batch is `images (B, 3, S, S)` uint8 RGB and `targets (T, 6)` float32: image index, class, then centre x,
centre y, width, height in 0..1. A batch depends only on the seed and its step, so a resumed run sees what an
uninterrupted one would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.yolov9.classes import COCO_NAMES
from models.yolov9.compose import Composer, Sample


class Batches(Protocol):
    classes: int
    steps_per_epoch: int

    def from_step(self, start: int, total: int) -> Dataset: ...


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).contiguous()
    rows = [np.insert(s.labels, 0, i, axis=1) for i, s in enumerate(samples)]
    return images, torch.from_numpy(np.concatenate(rows).astype(np.float32))


class _Steps(torch.utils.data.Dataset):
    """One item a step."""

    def __init__(self, make, start: int, total: int) -> None:
        self.make, self.start, self.total = make, start, total

    def __len__(self) -> int:
        return self.total - self.start

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.make(self.start + i)


class CompositeBatches:
    """Endless composites: pictures of 192 to 256 px for the first 60 % of the run, then around `size`."""

    classes = len(COCO_NAMES)
    steps_per_epoch = 100

    def __init__(self, art: Path, size: int, batch: int, epochs: int, seed: int) -> None:
        self.composer = Composer.from_art(art)
        self.size, self.batch, self.seed = size, batch, seed
        self.small_until = 0.6 * epochs * self.steps_per_epoch

    def from_step(self, start: int, total: int) -> Dataset:
        return _Steps(self.make, start, total)

    def make(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        small = step < self.small_until
        size = int(rng.choice((192, 224, 256) if small else (self.size - 64, self.size, self.size + 96)))
        first = (self.seed * 1_000_000 + step) * self.batch
        return collate([self.composer.scene(first + i, size) for i in range(self.batch)])


class FolderBatches:
    @classmethod
    def read(cls, path, images, recipe):
        raise NotImplementedError
