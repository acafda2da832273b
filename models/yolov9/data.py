"""Training batches: composites for the embedded weights, or a user's own YOLO- or COCO-format data.

A batch is `images (B, 3, S, S)` uint8 RGB and `targets (T, 6)` float32: image index, class, then centre x,
centre y, width, height in 0..1. A batch depends only on the seed and its step, so a resumed run sees what an
uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.yolov9.augment import Augmentation, Labelled, augmented
from models.yolov9.classes import COCO_NAMES
from models.yolov9.compose import Composer, Sample
from models.yolov9.datasets import DataSet, load_labelled, to_sample


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

    def __init__(self, make: Callable[[int], tuple[Tensor, Tensor]], start: int, total: int) -> None:
        self.make, self.start, self.total = make, start, total

    def __len__(self) -> int:
        return self.total - self.start

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.make(self.start + i)


@dataclass(frozen=True)
class Stage:
    """A part of a run on composites, up to the share `until` of its steps: `sizes` of the pictures, `most` objects
    in one, and the `extent` of an object's longer side as a share of the picture's."""

    until: float
    sizes: tuple[int, ...]
    most: int = 9
    extent: tuple[float, float] = (0.09, 0.85)


class CompositeBatches:
    """Endless composites, stage by stage."""

    classes = len(COCO_NAMES)
    steps_per_epoch = 100

    def __init__(self, composer: Composer, stages: Sequence[Stage], batch: int, epochs: int, seed: int) -> None:
        self.composer, self.stages, self.batch, self.seed = composer, tuple(stages), batch, seed
        self.total = epochs * self.steps_per_epoch

    def from_step(self, start: int, total: int) -> Dataset:
        return _Steps(self.make, start, total)

    def make(self, step: int) -> tuple[Tensor, Tensor]:
        stage = next(s for s in self.stages if step < s.until * self.total)
        size = int(np.random.default_rng((self.seed, step)).choice(stage.sizes))
        first = (self.seed * 1_000_000 + step) * self.batch
        scenes = (self.composer.scene(first + i, size, stage.most, stage.extent) for i in range(self.batch))
        return collate(list(scenes))


class FolderBatches:
    """A user's own pictures, shuffled each epoch, with the official augmentations."""

    def __init__(
        self,
        data: DataSet,
        size: int,
        batch: int,
        seed: int,
        mosaic_until: int,
        how: Augmentation | None = None,
    ) -> None:
        self.data, self.size, self.batch, self.seed = data, size, batch, seed
        self.how = how or Augmentation()
        self.classes = len(data.names)
        self.steps_per_epoch = max(1, math.ceil(len(data.items) / batch))
        self.mosaic_until = mosaic_until  # first epoch without mosaic

    def from_step(self, start: int, total: int) -> Dataset:
        return _Steps(self.make, start, total)

    def make(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self.steps_per_epoch)
        count = len(self.data.items)
        order = np.random.default_rng((self.seed, epoch)).permutation(count)
        # A data set smaller than a batch, or its last batch, wraps around.
        chosen = [order[(place * self.batch + i) % count] for i in range(self.batch)]
        samples = []
        for i, index in enumerate(chosen):
            rng = np.random.default_rng((self.seed, step, i))

            def pick(rng: np.random.Generator = rng) -> Labelled:
                return load_labelled(self.data.items[rng.integers(count)], self.size)

            first = load_labelled(self.data.items[index], self.size)
            part = augmented(first, pick, self.size, rng, self.how, epoch < self.mosaic_until)
            samples.append(to_sample(part))
        return collate(samples)
