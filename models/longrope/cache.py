"""The key-value cache: one growing buffer a layer and KV head, in full, half or quantised numbers.

Numbers are quantised in groups along the head dimension, each token by itself, so that nothing stored changes when
more text is read: int8 with one 16-bit scale, int4 with a 16-bit scale and minimum, two numbers a byte.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from models.errors import BadInput
from models.longrope.cost import GROUPS, KV_BITS

PLAIN = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8_TOP, INT4_TOP = 127, 15


class KVCache:
    """Rotated keys and values of one request.

    capacity: tokens it can hold. dtype: one of `cost.KV_BITS`. folder: the buffers are files there that vanish with
    the process, for caches larger than memory; None keeps them in memory (or on the device).

    Raises:
        BadInput: an unknown dtype.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        if dtype not in KV_BITS:
            raise BadInput(f"Unknown cache format {dtype!r}. Choose one of {', '.join(KV_BITS)}.")
        shape = (kv_heads, capacity, head_dim)
        self.capacity = capacity
        self.stores = [
            tuple(_Store(shape, dtype, torch.device(device), folder) for _ in ("keys", "values")) for _ in range(layers)
        ]

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> None:
        """Stores keys and values (KV heads, T, head_dim) of positions start, start + 1, ..."""
        keys, values = self.stores[layer]
        keys.write(start, k)
        values.write(start, v)

    def read(self, layer: int, low: int, high: int, size: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values (KV heads, at most size, head_dim) of positions low to high - 1; no copy if `dtype` fits."""
        keys, values = self.stores[layer]
        for start in range(low, high, size):
            stop = min(start + size, high)
            yield keys.read(start, stop, dtype), values.read(start, stop, dtype)

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for pair in self.stores for store in pair)


class _Store:
    """Keys or values of one layer: (KV heads, capacity, head_dim)."""

    def __init__(
        self, shape: tuple[int, int, int], dtype: str, device: torch.device, folder: str | Path | None
    ) -> None:
        heads, capacity, width = shape
        self.dtype, self.width = dtype, width
        self.minima: Tensor | None = None
        if dtype in PLAIN:
            self.numbers = _empty(shape, PLAIN[dtype], device, folder)
            return
        self.group = math.gcd(width, GROUPS[dtype])
        packed = width if dtype == "int8" else width // 2
        self.numbers = _empty((heads, capacity, packed), torch.int8 if dtype == "int8" else torch.uint8, device, folder)
        groups = (heads, capacity, width // self.group)
        self.scales = _empty(groups, torch.float16, device, folder)
        if dtype == "int4":
            self.minima = _empty(groups, torch.float16, device, folder)

    def write(self, start: int, x: Tensor) -> None:
        here = slice(start, start + x.shape[1])
        if self.dtype in PLAIN:
            self.numbers[:, here] = x
            return
        grouped = x.float().unflatten(-1, (-1, self.group))
        if self.minima is None:
            scale = (grouped.abs().amax(-1) / INT8_TOP).clamp(min=1e-7).half()
            self.scales[:, here] = scale
            self.numbers[:, here] = (
                (grouped / scale.float()[..., None]).round().clamp(-INT8_TOP, INT8_TOP).flatten(-2).char()
            )
            return
        low = grouped.amin(-1).half()
        scale = ((grouped.amax(-1) - low.float()) / INT4_TOP).clamp(min=1e-7).half()
        self.minima[:, here], self.scales[:, here] = low, scale
        steps = ((grouped - low.float()[..., None]) / scale.float()[..., None]).round().clamp(0, INT4_TOP)
        steps = steps.flatten(-2).byte()
        self.numbers[:, here] = steps[..., 0::2] | (steps[..., 1::2] << 4)

    def read(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        numbers = self.numbers[:, start:stop]
        if self.dtype in PLAIN:
            return numbers.to(dtype)
        if self.minima is not None:
            numbers = torch.stack((numbers & INT4_TOP, numbers >> 4), -1).flatten(-2)
        x = numbers.to(dtype).unflatten(-1, (-1, self.group)) * self.scales[:, start:stop, :, None].to(dtype)
        if self.minima is not None:
            x += self.minima[:, start:stop, :, None].to(dtype)
        return x.flatten(-2)

    @property
    def nbytes(self) -> int:
        extra = [] if self.dtype in PLAIN else [self.scales, self.minima]
        return sum(x.numel() * x.element_size() for x in (self.numbers, *extra) if x is not None)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, folder: str | Path | None) -> Tensor:
    """Untouched memory; pages are taken only when they are written to."""
    if folder is None:
        return torch.empty(shape, dtype=dtype, device=device)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="kv-") as file:  # stays until the tensor goes
        return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
