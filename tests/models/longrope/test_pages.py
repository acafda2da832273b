"""Blocks that say the same share a page; what is seen of it is what would be seen of each block where it stands."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import BadInput, OutOfMemory
from models.longrope import engine as engine_module
from models.longrope.attention import attend, fold
from models.longrope.engine import Engine, Reading
from models.longrope.network import rotate
from models.longrope.pages import Pages, look, page_rope, repeated
from models.longrope.rope import scaling
from tests.models.longrope.test_engine import CONFIG, random_weights

UNIT = torch.randint(0, 97, (12,), generator=torch.Generator().manual_seed(3)).tolist()
READING = Reading(mode="blockwise", chunk=5, block=16, anchor=8, question=4)
QUESTION = [5, 9, 2, 11]
TEXT = [*UNIT[:5], *UNIT * 12]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CONFIG, random_weights(CONFIG, tied=False))


def table(n_hat: int = 0):
    factors = np.linspace(1, 4, 8)
    return scaling("longrope", 16, 1e4, 32, 128, None, factors, n_hat)


def test_blocks_that_say_the_same_are_found():
    tokens = torch.tensor([1, 1, 2, 3, 1, 1, 2, 3, 2, 3, 2, 3, 2])
    assert repeated(tokens, 2) == {6: 2, 8: 2, 10: 2}  # not the first, not the last, which is short
    assert repeated(tokens[:5], 2) == {} and repeated(tokens[:0], 2) == {}
    pages = Pages(tokens, 2)
    assert pages.kept == 7 and pages.places(13) == [([0], 2), ([2, 6, 8, 10], 2), ([4], 2), ([12], 1)]
    assert pages.places(9) == [([0], 2), ([2, 6], 2), ([4], 2), ([8], 1)]


@pytest.mark.parametrize("n_hat", [0, 7, 16])
def test_a_page_is_seen_wherever_it_stands(n_hat):
    """Against every key turned at its own position."""
    rope, starts = table(n_hat), [0, 48, 80]
    generator = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(n, heads, 16, generator=generator) for n, heads in ((3, 4), (16, 2), (16, 2)))
    positions = np.arange(120, 123)
    turned = rotate(q, *both(rope, positions))
    all_keys = torch.cat([rotate(keys, *both(rope, start + np.arange(16))) for start in starts]).transpose(0, 1)
    all_values = torch.cat([values] * 3).transpose(0, 1)
    wanted = attend(fold(turned, 2), all_keys, all_values)
    weighed = []
    for some in ([0], [48, 80]):
        own = page_rope(rope, some[0], 16)
        page = rotate(keys, *both(own, np.arange(16))).transpose(0, 1)
        weighed.append(look(q, positions, page, values.transpose(0, 1), some, own, 0))
    (a, x), (b, y) = weighed
    total = torch.logaddexp(x, y)
    torch.testing.assert_close(total, wanted[1])
    out = a * (x - total).exp()[..., None] + b * (y - total).exp()[..., None]
    torch.testing.assert_close(out, wanted[0], rtol=1e-4, atol=1e-5)


def both(rope, positions: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(x) for x in rope.cos_sin(positions)]


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("keep", [None, 100])
def test_not_reading_them_again_changes_nothing(engine, monkeypatch, kv, keep):
    reading, ids = replace(READING, kv=kv), [*TEXT, *QUESTION]
    first = len(ids) - 1 if keep is None else keep
    found = engine.losses(ids, first, table(), reading)
    answer = engine.complete(ids, 5, table(), reading)
    assert answer.copied == 16 * (9 - 1 - 3) and answer.kv_bytes < 16 * 8 * 3 * 2 * 2 * 16 * 4
    monkeypatch.setattr("models.longrope.pages.repeated", lambda tokens, block: {})
    assert torch.allclose(found, engine.losses(ids, first, table(), reading), rtol=1e-5, atol=1e-6)
    slow = engine.complete(ids, 5, table(), reading)
    assert slow.ids == answer.ids and slow.copied == 0 and slow.kv_bytes > answer.kv_bytes


def test_a_text_that_repeats_needs_no_more_memory_than_its_pages(engine, monkeypatch):
    unit = torch.randint(0, 97, (20_000,), generator=torch.Generator().manual_seed(1)).tolist()
    monkeypatch.setattr(engine_module, "available_bytes", lambda device: 8_000_000)
    reading = Reading(mode="blockwise", block=16, anchor=8, question=4, chunk=16)
    assert len(engine.complete(UNIT * 3000, 2, table(), reading).ids) == 2
    with pytest.raises(OutOfMemory, match="available"):
        engine.complete(unit, 2, table(), reading)


def test_an_n_hat_beyond_the_first_block_is_refused(engine):
    with pytest.raises(BadInput, match="n-hat is 17"):
        engine.complete([*TEXT, *QUESTION], 1, table(17), READING)
    assert engine.complete([*TEXT, *QUESTION], 1, table(17)).ids
