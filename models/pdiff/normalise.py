"""Checkpoints to numbers of about unit size, and back (specification A.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import BadInput
from models.pdiff.vectors import Layout

KINDS = ("coordinate", "tensor")
PADDING = 64  # vectors are padded with zeros to a multiple of this (A.4)


@dataclass(frozen=True)
class Normaliser:
    """(N, D) parameters <-> (N, L) normalised numbers, L = D padded to a multiple of 64.

    mean, std: (D,) float32.
    """

    mean: Tensor
    std: Tensor

    @property
    def length(self) -> int:
        """L."""
        return -(-len(self.mean) // PADDING) * PADDING

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, L)."""
        normalised = (vectors - self.mean) / self.std
        return torch.nn.functional.pad(normalised, (0, self.length - len(self.mean)))

    def inverse(self, normalised: Tensor) -> Tensor:
        """(N, L) -> (N, D)."""
        return normalised[:, : len(self.mean)] * self.std + self.mean


def fit(vectors: Tensor, layout: Layout, kind: str) -> Normaliser:
    """ "tensor": the 2025 code's scalars, one mean and one spread a tensor. "coordinate": one a parameter.

    The first keeps the fixed pattern all checkpoints share, which is nearly all the variance; the second leaves
    only what differs. A parameter that never changes keeps a small spread, so it comes back as it was.
    """
    if kind not in KINDS:
        raise BadInput(f"Unknown normalisation {kind!r}. Choose {' or '.join(KINDS)}.")
    if kind == "coordinate":
        std = vectors.std(0, correction=0)
        return Normaliser(vectors.mean(0), std.clamp(min=max(1e-6 * float(std.max()), 1e-12)))
    parts = vectors.split(layout.sizes, 1)
    means = [part.mean().expand(part.shape[1]) for part in parts]
    # A tensor of one number has no spread within itself; its spread over the checkpoints stands in.
    spreads = [part.std(1).mean() if part.shape[1] > 1 else part.std() for part in parts]
    stds = [s.clamp(min=1e-12).expand(part.shape[1]) for s, part in zip(spreads, parts, strict=True)]
    return Normaliser(torch.cat(means), torch.cat(stds))
