"""Where the keys and values of a context read blockwise are kept: a page for each block, one for all that say the same.

Read blockwise, a block's keys and values depend on its own words and the anchor's, not on where it stands: blocks that
say the same have the same ones, bit for bit, and need to be read and kept once. Where they stand matters when they are
looked at. A key at position start + offset seen from position P is, by the rotary embedding's own law, the key at
offset seen from P - start: so a page is turned as if it began the text, and the queries are turned for each place it
stands at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.errors import BadInput
from models.longrope.attention import Part, attend, fold, merge
from models.longrope.cache import KVCache
from models.longrope.network import LlamaConfig, rotate
from models.longrope.rope import RopeScaling

ROWS = 8192  # query rows, times heads, that look at a page at once


def repeated(tokens: Tensor, block: int) -> dict[int, int]:
    """Whole blocks of a context that say word for word what an earlier one says: where they begin, and where the first
    that says it begins. The first block, which has no anchor before it, is never one of them.

    tokens: int64 (T,).
    """
    words, first = tokens.cpu().numpy(), dict[bytes, int]()
    starts = range(block, len(words) - block + 1, block)
    found = {start: first.setdefault(words[start : start + block].tobytes(), start) for start in starts}
    return {start: earlier for start, earlier in found.items() if earlier != start}


class Pages:
    """The cache of a context.

    tokens: int64 (T,), the context. block: tokens of a block. kv, folder: as in `Reading`. `same`: see `repeated`.
    `kept`: tokens there is room for.
    """

    def __init__(self, tokens: Tensor, block: int) -> None:
        self.tokens, self.block, self.same = len(tokens), block, repeated(tokens, block)
        starts = range(0, len(tokens), block)
        self.kept, place = 0, dict[int, int]()
        for start in starts:
            if start not in self.same:
                place[start] = self.kept
                self.kept += min(block, len(tokens) - start)
        self._places = [place[self.same.get(start, start)] for start in starts]
        self._cache: KVCache | None = None

    def allocate(self, config: LlamaConfig, kv: str, device: str, folder: str | Path | None) -> None:
        """Makes room, in a number format of `cost.KV_BITS`."""
        self._cache = KVCache(config.layers, config.kv_heads, config.head_dim, self.kept, kv, device, folder)

    @property
    def cache(self) -> KVCache:
        """The numbers themselves, page after page."""
        assert self._cache is not None, "there is no room yet"
        return self._cache

    def write(self, layer: int, token: int, keys: Tensor, values: Tensor) -> None:
        """Keys and values (KV heads, T, head_dim) of tokens from `token` on, all in one block."""
        self.cache.write(layer, self._place(token), keys, values)

    def read(self, layer: int, token: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Those of `count` tokens from `token` on, all in one block."""
        at = self._place(token)
        ((keys, values),) = self.cache.read(layer, at, at + count, count, dtype)
        return keys, values

    def places(self, context: int) -> list[tuple[list[int], int]]:
        """Where each page stands in the first `context` tokens: the starts of its blocks, and how many tokens each has
        there (all but the last block, whole ones)."""
        found: dict[tuple[int, int], list[int]] = {}
        for start in range(0, context, self.block):
            found.setdefault((self._place(start), min(self.block, context - start)), []).append(start)
        return [(starts, count) for (_, count), starts in found.items()]

    def _place(self, token: int) -> int:
        return self._places[token // self.block] + token % self.block


def page_rope(rope: RopeScaling, start: int, block: int) -> RopeScaling:
    """The angles of a page, and of queries that look at it, for blocks that begin at `start`: where n-hat first tokens
    keep the original ones, those are in the first block only.

    Raises `BadInput` for an n-hat that reaches beyond it.
    """
    if rope.n_hat > block:
        raise BadInput(
            f"n-hat is {rope.n_hat}, more than the {block} tokens of a block. Choose a smaller one, or exact reading."
        )
    return replace(rope, n_hat=0) if start and rope.n_hat else rope


def look(
    q: Tensor,
    positions: np.ndarray,
    keys: Tensor,
    values: Tensor,
    starts: Sequence[int],
    rope: RopeScaling,
    layer: int,
    tick: Callable[[], None] = lambda: None,
) -> Part:
    """What rows see of a page that stands at several places of a text.

    Args:
        q: (T, heads, head_dim), not rotated. positions: of the rows, int64 (T,), after all places.
        keys: (KV heads, tokens, head_dim), turned as if the page began the text. values: the same shape.
        starts: where it stands. rope: `page_rope`. tick: called often.

    Returns the output (KV heads, group, T, head_dim) and the log-sum-exp (KV heads, group, T), float32.
    """
    rows, heads, _ = q.shape
    at_once = max(ROWS // (rows * heads), 1)
    seen: list[Part] = []
    for low in range(0, len(starts), at_once):
        tick()
        some = np.asarray(starts[low : low + at_once], dtype=np.int64)
        distances = (positions - some[:, None]).reshape(-1)
        cos, sin = (torch.from_numpy(x).to(q.device) for x in rope.cos_sin(distances, layer))
        turned = rotate(q.repeat(len(some), 1, 1), cos, sin)
        out, total = attend(fold(turned, len(keys)), keys, values)
        out, total = out.float().unflatten(2, (len(some), rows)), total.unflatten(2, (len(some), rows))
        both = total.logsumexp(2)
        seen = [merge([*seen, ((out * (total - both[:, :, None]).exp()[..., None]).sum(2), both)])]
    return seen[0]
