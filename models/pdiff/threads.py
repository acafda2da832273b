"""How many threads small networks run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets PyTorch work on one thread inside the block, then on as many as before.

    For thousands of operations on small tensors: at the end of each the threads wait for one another, and on a
    machine that does anything else besides, that waiting takes two to ten times as long as the work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
