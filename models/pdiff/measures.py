"""Accuracy of many checkpoints at once, and how alike checkpoints are (specification D.4, E.4)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.errors import BadInput
from models.pdiff.networks import split
from models.pdiff.vectors import Layout, check_finite, unflatten

CACHE_BYTES = 6e6  # activations of one piece, the largest layer counted
FRONT_CHUNK = 1000
Report = Callable[[int, int], None]


class Evaluator:
    """Runs many checkpoints of one network on one set of pictures.

    Everything before the first generated parameter runs once for all. Behind it one checkpoint after the other
    runs over the pictures, channels last and in pieces the cache holds: on a CPU that was faster than `vmap` over
    checkpoints for every network here, 1.1 to 8 times (tests/benchmarks/bench_pdiff.py).

    Args:
        network: a chain of stages with the base weights; used in eval mode, so a checkpoint's result does not
            depend on which others run beside it.
        layout: which parameters a vector holds.
        x: (n, C, H, W) pictures. y: (n,) labels.
    """

    def __init__(self, network: nn.Sequential, layout: Layout, x: Tensor, y: Tensor) -> None:
        self.layout, self.y = layout, y
        front, self._back = split(network.eval(), layout)
        with torch.inference_mode():
            self.features = torch.cat([_channels_last(front(part)) for part in x.split(FRONT_CHUNK)])
            self._piece = max(1, int(CACHE_BYTES / _largest_activation(self._back, self.features[:1])))

    @torch.inference_mode()
    def logits(self, vectors: Tensor, report: Report = lambda done, total: None) -> Tensor:
        """(N, D) -> (N, n, classes) float32. `report(done, total)` may raise to stop. Raises `BadInput` for NaN."""
        check_finite(vectors, "Checkpoints")
        tensors = unflatten(vectors, self.layout)
        pieces = self.features.split(self._piece)
        found = []
        for i in range(len(vectors)):
            one = {name: _channels_last(tensor[i]) for name, tensor in tensors.items()}
            found.append(torch.cat([functional_call(self._back, one, (piece,)) for piece in pieces]))
            report(i + 1, len(vectors))
        return torch.stack(found)

    def wrong(self, vectors: Tensor, report: Report = lambda done, total: None) -> Tensor:
        """(N, D) -> (N, n) bool: which test pictures each checkpoint gets wrong."""
        found: list[Tensor] = []
        for chunk in vectors.split(50):  # logits are not kept
            before = sum(map(len, found))
            logits = self.logits(chunk, functools.partial(_report_after, report, before, len(vectors)))
            found.append(logits.argmax(-1) != self.y)
        return torch.cat(found)


def accuracies(wrong: Tensor) -> Tensor:
    """(N, n) bool -> (N,) percent right, float32."""
    return 100 * (1 - wrong.float().mean(1))


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """IoU of wrong predictions, (N, n) and (M, n) bool -> (N, M) float32. Two faultless networks count as 1."""
    if a.shape[1] != b.shape[1]:
        raise BadInput(f"Both must be evaluated on the same pictures; got {a.shape[1]} and {b.shape[1]}.")
    both = a.float() @ b.float().T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries of a square (N, N) matrix that compare two different rows."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def max_similarity(similarities: Tensor, among_themselves: bool = False) -> Tensor:
    """(N, M) -> (N,): the largest similarity to any original; an original's similarity to itself does not count."""
    if among_themselves:
        similarities = similarities.masked_fill(torch.eye(len(similarities), dtype=torch.bool), -1)
    return similarities.max(1).values


def nearest(vectors: Tensor, originals: Tensor, among_themselves: bool = False) -> Tensor:
    """(N, D), (K, D) -> (N,) float32: the Euclidean distance to the nearest original (not itself)."""
    distances = torch.cdist(vectors.double(), originals.double(), compute_mode="use_mm_for_euclid_dist")
    if among_themselves:
        distances.fill_diagonal_(torch.inf)
    return distances.min(1).values.float()


def between_share(originals: Tensor) -> float:
    """Which share of all variance is between checkpoints; the rest is the fixed pattern all of them have."""
    total = (originals - originals.mean()).square().mean()
    return float((originals - originals.mean(0)).square().mean() / total)


# ---- baselines of the later critique ----------------------------------------------------------------------


def noised(originals: Tensor, count: int, scale: float, seed: int) -> Tensor:
    """Random originals plus noise of `scale` times each parameter's spread over the originals."""
    generator = torch.Generator().manual_seed(seed)
    chosen = originals[torch.randint(len(originals), (count,), generator=generator)]
    return chosen + scale * originals.std(0, correction=0) * torch.randn(chosen.shape, generator=generator)


def averages(originals: Tensor, count: int, of: int, seed: int) -> Tensor:
    """Means of `of` different random originals each."""
    generator = torch.Generator().manual_seed(seed)
    of = min(of, len(originals))
    return torch.stack(
        [originals[torch.randperm(len(originals), generator=generator)[:of]].mean(0) for _ in range(count)]
    )


def gaussian(originals: Tensor, count: int, seed: int) -> Tensor:
    """Each parameter on its own from a normal distribution with the originals' mean and spread."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn((count, originals.shape[1]), generator=generator)
    return originals.mean(0) + originals.std(0, correction=0) * draws


def interpolated(originals: Tensor, count: int, seed: int) -> Tensor:
    """Random points on the line between two random originals."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(len(originals), (2, count), generator=generator)
    share = torch.rand((count, 1), generator=generator)
    return originals[first] * share + originals[second] * (1 - share)


def _report_after(report: Report, before: int, total: int, done: int, _: int) -> None:
    report(before + done, total)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _largest_activation(network: nn.Sequential, x: Tensor) -> int:
    """Bytes of the largest intermediate tensor for one example."""
    largest = x.numel()
    for stage in network:
        x = stage(x)
        largest = max(largest, x.numel())
    return 4 * largest
