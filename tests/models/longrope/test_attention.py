"""Both ways of attending against plain softmax attention in float64."""

import math

import pytest
import torch
from torch import Tensor

from models.longrope.attention import TILE_KEYS, TILE_TOKENS, Merged, Tiled, _math, attend, attend_causal, merge, sight

SHAPES = ((9, 3, 64), (4, 4, 32), (8, 1, 16))  # query heads, KV heads, head_dim
LENGTHS = (  # rows, the piece's other tokens, far keys
    (2, 0, 0),
    (TILE_TOKENS, 0, TILE_KEYS),
    (TILE_TOKENS + 1, 0, 3 * TILE_KEYS + 5),
    (70, 300, 700),
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def piece(shape: tuple[int, int, int], lengths: tuple[int, int, int], scale: float = 1.0) -> tuple[Tensor, ...]:
    """Rows, the piece's keys and values, far keys and values, bfloat16."""
    (heads, kv_heads, width), (rows, others, far) = shape, lengths
    sizes = [(rows, heads, width), *[(kv_heads, rows + others, width)] * 2, *[(kv_heads, far, width)] * 2]
    made = [random(*size, seed=i) for i, size in enumerate(sizes)]
    made[0] *= scale
    return tuple(x.bfloat16() for x in made)


def reference(q: Tensor, k: Tensor, v: Tensor, far_k: Tensor, far_v: Tensor) -> Tensor:
    """float64 (T, heads * head_dim)."""
    group, count, before = q.shape[1] // len(k), k.shape[1], k.shape[1] - len(q)
    keys, values = (torch.cat(x, 1).double().repeat_interleave(group, 0) for x in ((far_k, k), (far_v, v)))
    scores = q.double().transpose(0, 1) @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])
    later = torch.ones(len(q), count).triu(before + 1).bool()
    scores[..., -count:].masked_fill_(later, -math.inf)
    return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


def error(seen: Merged | Tiled, far_k: Tensor, far_v: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the size of the outputs, after the far keys came in two parts."""
    cut = far_k.shape[1] // 3
    for part in (slice(0, cut), slice(cut, None)):
        seen.add(far_k[:, part], far_v[:, part])
    return ((seen.result().double() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_tiles_are_softmax_attention(shape, lengths):
    q, k, v, *far = piece(shape, lengths)
    assert error(Tiled(q, k, v), *far, reference(q, k, v, *far)) < 0.02


def test_merged_parts_are_softmax_attention():
    q, k, v, *far = (x.float() for x in piece(SHAPES[0], LENGTHS[3]))
    assert error(Merged(q, k, v), *far, reference(q, k, v, *far)) < 1e-5


def test_tiles_hold_peaked_attention():
    q, k, v, *far = piece(SHAPES[0], LENGTHS[2], scale=4.0)  # a few keys take all, as in trained models
    assert error(Tiled(q, k, v), *far, reference(q, k, v, *far)) < 0.02


def test_far_keys_may_outweigh_the_near_ones_beyond_the_number_format():
    q, k, v, far_k, far_v = piece(SHAPES[0], LENGTHS[1])
    q = q.abs()
    k, far_k = -k.abs() * 8, far_k.abs() * 8  # hundreds of powers of two apart
    far_k[:, 7] *= 2
    assert error(Tiled(q, k, v), far_k, far_v, reference(q, k, v, far_k, far_v)) < 0.02


def test_which_way_is_taken():
    q, k, v, *_ = piece(SHAPES[0], LENGTHS[0])
    assert isinstance(sight(q, k, v), Tiled)
    assert isinstance(sight(q.float(), k.float(), v.float()), Merged)
    assert isinstance(sight(q[1:], k, v), Merged)  # one row reads the cache once: nothing to gain


def test_plain_attention_is_the_fused_one():
    q, k, v = random(2, 3, 300, 16), random(2, 300, 16, seed=1), random(2, 300, 16, seed=2)
    out, total = attend_causal(q, k, v)
    shared = (k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1))
    other, its_total = _math(q.transpose(0, 1), *shared, True, None)
    torch.testing.assert_close(out, other.transpose(0, 1))
    torch.testing.assert_close(total, its_total.transpose(0, 1))
    halves = [attend(q, k[:, :100], v[:, :100]), attend(q, k[:, 100:], v[:, 100:])]
    torch.testing.assert_close(merge(halves), attend(q, k, v))
