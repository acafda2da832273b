"""One thread for tests of many small tensors; a small data set and collection made on the spot."""

import pytest
import torch

from models.pdiff.collect import Collection, Schedule, collect
from models.pdiff.data import Data
from tests.one_thread import one_thread

__all__ = ["one_thread"]

QUICK = Schedule(base_lr=5e-3, base_epochs=2, lr=0.02, batch=32)


@pytest.fixture(scope="session")
def blobs() -> Data:
    """Three classes of 1 x 4 x 4 pictures: a bright corner each, under noise."""
    generator = torch.Generator().manual_seed(0)

    def part(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(n) % 3
        x = 0.6 * torch.randn((n, 1, 4, 4), generator=generator)
        for label, (row, column) in enumerate(((0, 0), (0, 3), (3, 0))):
            x[y == label, :, row, column] += 1.5
        return x, y

    return Data("blobs", *part(640), *part(60), *part(300), ("a", "b", "c"))


@pytest.fixture(scope="session")
def small(blobs: Data) -> Collection:
    """Forty checkpoints of a small network with layer normalisation, all its parameters."""
    return collect("mlp-ln", blobs, "all", 40, seed=1, schedule=QUICK)
