"""Attention to more keys than one call should see: a block of keys at a time, put together exactly.

Query heads of one KV head are folded into the rows of the query: keys are never repeated. `sight` chooses how:

Merged: torch's fused kernels give each block's output with the log-sum-exp of its logits; any device and dtype.
Tiled: bfloat16 on the CPU, where matrix products are several times faster than the fused kernel. A tile of scores stays
in the processor's cache: product, exp2 in place, row sums, product. Scores are taken relative to the weight of the
nearest keys inside the first product, before they are rounded, so that those that matter are rounded least.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]
MATH_ROWS = 256  # query rows of the fallback attention at once
TILE_TOKENS, TILE_KEYS = 256, 512  # with 3 query heads a KV head: 0.8 MB of scores each
LARGEST_WEIGHT = 2.0**32  # relative to the nearest keys; above it weights could leave the number format


def sight(q: Tensor, k: Tensor, v: Tensor) -> Merged | Tiled:
    """The attention of a piece's rows, so far among the piece itself; add what else they see.

    q: (T, heads, head_dim), rotated: the last T of the piece's tokens. k, v: (KV heads, T or more, head_dim), the
    whole piece.
    """
    tiled = q.device.type == "cpu" and q.dtype == torch.bfloat16 and len(q) > 1
    return Tiled(q, k, v) if tiled else Merged(q, k, v)


class Merged:
    """Fused attention, block by block; see `sight`."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.q, before = fold(q, len(k)), k.shape[1] - len(q)
        if len(q) == 1:
            self.part = attend(self.q, k, v)
            return
        self.part = attend_causal(self.q, k[:, before:], v[:, before:])
        if before:
            self.add(k[:, :before], v[:, :before])

    def add(self, k: Tensor, v: Tensor) -> None:
        """Keys and values (KV heads, S, head_dim) that all rows see."""
        self.join(attend(self.q, k, v))

    def join(self, part: Part) -> None:
        """What all rows saw elsewhere."""
        self.part = merge([self.part, part])

    def result(self) -> Tensor:
        """(T, heads * head_dim)."""
        return unfold(self.part[0])


class Tiled:
    """Attention as matrix products over tiles; see `sight`."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.scratch = q.new_empty(q.shape[1] * TILE_TOKENS * max(TILE_KEYS, TILE_TOKENS))
        self.tiles = []
        before = k.shape[1] - len(q)
        for start in range(0, len(q), TILE_TOKENS):
            rows = q[start : start + TILE_TOKENS]
            low, high = before + start, before + start + len(rows)
            tile = _Tile(rows, k[:, low:high], v[:, low:high], self.scratch)
            tile.add(k[:, :low], v[:, :low])
            self.tiles.append(tile)

    def add(self, k: Tensor, v: Tensor) -> None:
        """Keys and values (KV heads, S, head_dim) that all rows see."""
        for tile in self.tiles:
            tile.add(k, v)

    def result(self) -> Tensor:
        """(T, heads * head_dim)."""
        return torch.cat([tile.result() for tile in self.tiles])


class _Tile:
    """Some rows: the weight of the keys seen and their weighted values so far, in units of 2 ** shift.

    Starts with the rows among themselves. scratch: room for a tile of scores.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scratch: Tensor) -> None:
        self.tokens, self.scratch = len(q), scratch
        self.q = fold(q, len(k)).flatten(1, 2)  # (KV heads, rows, head_dim)
        self.scale = 1 / (math.log(2) * math.sqrt(q.shape[-1]))  # of q k, for scores to be powers of two
        self.shift = self.q.new_zeros(*self.q.shape[:2], 1)
        self.product = torch.empty_like(self.q)
        self.shift = self._square(self._scores(k)).add_(_later(self.tokens, q.dtype)).amax(-1).flatten(1)[..., None]
        weights = self._scores(k).exp2_()
        self._square(weights).tril_()
        self.weight = weights.sum(-1, keepdim=True).float()
        self.sum = torch.bmm(weights, v.contiguous(), out=self.product).float()

    def add(self, k: Tensor, v: Tensor) -> None:
        for start in range(0, k.shape[1], TILE_KEYS):
            keys = k[:, start : start + TILE_KEYS].contiguous()
            weights = self._scores(keys).exp2_()
            total = weights.sum(-1, keepdim=True)
            if not float(total.max()) < LARGEST_WEIGHT:
                self._raise(keys)
                weights = self._scores(keys).exp2_()
                total = weights.sum(-1, keepdim=True)
            self.weight += total
            self.sum += torch.bmm(weights, v[:, start : start + TILE_KEYS].contiguous(), out=self.product)

    def result(self) -> Tensor:
        out = (self.sum / self.weight).to(self.q.dtype)
        return unfold(out.unflatten(1, (-1, self.tokens)))

    def _scores(self, k: Tensor) -> Tensor:
        """(KV heads, rows, keys) in base 2, less the shift; rounded once. Overwritten by the next."""
        shape = (len(k), self.q.shape[1], k.shape[1])
        scores = self.scratch[: math.prod(shape)].view(shape)
        return torch.baddbmm(self.shift.neg(), self.q, k.transpose(1, 2), alpha=self.scale, out=scores)

    def _square(self, scores: Tensor) -> Tensor:
        """(KV heads, group, tokens, tokens) of scores among the rows themselves, as a view."""
        return scores.unflatten(1, (-1, self.tokens))

    def _raise(self, k: Tensor) -> None:
        """Takes scores relative to the largest of these keys, where that is larger."""
        shift = self.shift + self._scores(k).amax(-1, keepdim=True).clamp_(min=0)
        share = torch.exp2(self.shift.float() - shift.float())
        self.shift, self.weight, self.sum = shift, self.weight * share, self.sum * share


def _later(tokens: int, dtype: torch.dtype) -> Tensor:
    """(tokens, tokens): -inf for keys after the query, else 0."""
    return torch.full((tokens, tokens), -torch.inf, dtype=dtype).triu_(1)


def fold(q: Tensor, kv_heads: int) -> Tensor:
    """Queries (T, heads, head_dim) as (KV heads, group, T, head_dim)."""
    return q.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Part:
    """Attention of every query to every key (where the mask is 0, not -inf).

    Args:
        q: (KV heads, group, T, head_dim). k, v: (KV heads, S, head_dim). mask: (T, S), added to the logits.

    Returns the output like q and the log-sum-exp of the logits, float32 (KV heads, group, T).
    """
    if mask is None:
        out, total = _part(q.reshape(1, q.shape[0], -1, q.shape[-1]), k[None], v[None])
        return out[0].reshape(q.shape), total[0].reshape(q.shape[:3])
    heads, group = q.shape[:2]
    out, total = _part(q.transpose(0, 1), _shared(k, group), _shared(v, group), mask=mask)
    return out.transpose(0, 1), total.transpose(0, 1)


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Part:
    """Attention among T tokens, each to itself and those before. q: (KV heads, group, T, head_dim); k, v as above."""
    group = q.shape[1]
    out, total = _part(q.transpose(0, 1), _shared(k, group), _shared(v, group), causal=True)
    return out.transpose(0, 1), total.transpose(0, 1)


def merge(parts: list[Part]) -> Part:
    """The attention over all parts' keys together, as one part."""
    out, total = parts[0]
    for other, its_total in parts[1:]:
        both = torch.logaddexp(total, its_total)
        share, its_share = (total - both).exp()[..., None], (its_total - both).exp()[..., None]
        out, total = (out * share + other * its_share).to(out.dtype), both
    return out, total


def unfold(out: Tensor) -> Tensor:
    """(KV heads, group, T, head_dim) back to (T, heads * head_dim)."""
    return out.permute(2, 0, 1, 3).flatten(1)


def _shared(x: Tensor, group: int) -> Tensor:
    """Keys seen by every query head of a group, as a view."""
    return x.expand(group, *x.shape)


def _part(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Part:
    """(B, heads, T, head_dim) attention with its log-sum-exp (B, heads, T), by torch's fused kernels."""
    if q.device.type == "cpu":
        extra = None if mask is None else mask.to(q.dtype)
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, total = op(q, k, v, 0.0, causal, attn_mask=extra)
        return out, total.float()
    if q.device.type == "cuda" and mask is None and q.dtype in (torch.float16, torch.bfloat16):
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False)
        return found[0], found[1]
    return _math(q, k, v, causal, mask)


def _math(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> Part:
    """The same written out, a few query rows at a time."""
    out, total = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    columns = torch.arange(k.shape[2], device=q.device)
    for start in range(0, q.shape[2], MATH_ROWS):
        rows = slice(start, start + MATH_ROWS)
        logits = (q[:, :, rows] @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
        if causal:
            logits.masked_fill_(
                columns > torch.arange(start, start + logits.shape[2], device=q.device)[:, None], -math.inf
            )
        if mask is not None:
            logits += mask[rows]
        total[:, :, rows] = logits.logsumexp(-1)
        out[:, :, rows] = logits.softmax(-1).to(v.dtype) @ v
    return out, total
