"""Checkpoints as rows of one matrix, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.errors import BadInput


@dataclass(frozen=True)
class Layout:
    """Which parameters a vector holds, in order, and their shapes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers in each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """D, the length of a vector."""
        return sum(self.sizes)


def layout_of(network: nn.Module, names: Sequence[str]) -> Layout:
    """The layout of some of a network's parameters. Raises `BadInput` for a name that is no parameter."""
    parameters = dict(network.named_parameters())
    missing = [name for name in names if name not in parameters]
    if missing or not names:
        raise BadInput(f"No such parameter: {', '.join(missing)}." if missing else "No parameter was chosen.")
    return Layout(tuple(names), tuple(tuple(parameters[name].shape) for name in names))


def flatten(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Stacked tensors, each (K, *shape), as (K, D) float32. Raises `BadInput` if a tensor is missing or misshapen."""
    columns = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in tensors or tuple(tensors[name].shape[1:]) != shape:
            got = tuple(tensors[name].shape[1:]) if name in tensors else "nothing"
            raise BadInput(f"Parameter {name} should have the shape {shape}; got {got}.")
        columns.append(tensors[name].reshape(len(tensors[name]), -1).to(torch.float32))
    return torch.cat(columns, 1)


def unflatten(vectors: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Rows of (K, D) as tensors (K, *shape) by name. Raises `BadInput` for another D."""
    if vectors.dim() != 2 or vectors.shape[1] != layout.size:
        raise BadInput(f"Vectors of {layout.size} numbers are needed; got a tensor of shape {tuple(vectors.shape)}.")
    parts = vectors.split(layout.sizes, 1)
    return {
        name: part.reshape(-1, *shape) for name, shape, part in zip(layout.names, layout.shapes, parts, strict=True)
    }


def check_finite(vectors: Tensor, what: str) -> None:
    """Raises `BadInput` naming the first row that holds NaN or infinity."""
    bad = (~vectors.isfinite()).any(1).nonzero()
    if len(bad):
        raise BadInput(f"{what}: number {int(bad[0])} holds NaN or infinite parameters. Leave it out.")
