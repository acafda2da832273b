"""One haystack, many needles: the same as reading every prompt by itself, in blockwise mode."""

import pytest
import torch
from torch import Tensor

from models.errors import BadInput, Cancelled
from models.longrope.engine import Engine, Reading
from models.longrope.haystack import Haystack
from models.longrope.network import LlamaConfig
from models.longrope.rope import scaling
from tests.models.longrope.test_engine import CONFIG, random_weights

TEXT = torch.randint(0, 97, (70,), generator=torch.Generator().manual_seed(3)).tolist()
QUESTION = [5, 9, 2, 11, 60]
READING = Reading(mode="blockwise", chunk=5, block=16, anchor=8, question=len(QUESTION))
YARN = scaling("yarn", 16, 1e4, 32, 128)
PI = scaling("pi", 16, 1e4, 32, 128)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CONFIG, random_weights(CONFIG, tied=False))


@pytest.fixture(scope="module")
def haystack(engine) -> Haystack:
    return read(engine, TEXT)


def read(engine: Engine, ids: list[int], reading: Reading = READING) -> Haystack:
    found = Haystack(engine, ids, reading)
    found.read_to(len(ids))
    return found


def hidden(at: int, needle=(90, 91, 92), length: int = len(TEXT)) -> list[int]:
    return [*TEXT[:at], *needle, *TEXT[at + len(needle) :]][:length]


@pytest.mark.parametrize("rope", [YARN, PI])
def test_answers_are_those_of_each_prompt_read_by_itself(engine, haystack, rope):
    contexts = [TEXT, hidden(8), hidden(14), hidden(33), hidden(67)]  # one lies in two blocks
    changes = [haystack.changed(context) for context in contexts]
    found = haystack.answers(rope, len(TEXT), changes, QUESTION, 6)
    alone = [engine.complete([*context, *QUESTION], 6, rope, READING).ids for context in contexts]
    assert found == alone and len({tuple(answer) for answer in alone}) > 1


def whole(one: Haystack, layer: int, change) -> list[Tensor]:
    """All keys and values a prompt has in a layer."""
    blocks = []
    for start in range(0, len(TEXT), 16):
        its = change if change is not None and change.start <= start < change.stop else None
        blocks.append(one.stored(layer, start, min(16, len(TEXT) - start), its, torch.float32))
    return [torch.cat(part, 1) for part in zip(*blocks, strict=True)]


@pytest.mark.parametrize("kv", ["float32", "int8", "int4"])
@pytest.mark.parametrize("at", [8, 14, 33, 50])
def test_the_cache_with_a_needle_is_that_of_a_fresh_reading_bit_for_bit(engine, kv, at):
    reading = Reading(mode="blockwise", chunk=5, block=16, anchor=8, question=5, kv=kv)
    shared = read(engine, TEXT, reading)
    change = shared.changed(hidden(at))
    fresh = read(engine, hidden(at), reading)
    for layer in range(CONFIG.layers):
        mine, its = (whole(one, layer, c) for one, c in ((shared, change), (fresh, None)))
        assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))
    assert shared.changed(TEXT) is None  # and reading a needle leaves the haystack as it was
    again = read(engine, TEXT, reading)
    for layer in range(CONFIG.layers):
        pair = zip(shared.pages.cache.stores[layer], again.pages.cache.stores[layer], strict=True)
        assert all(torch.equal(a.numbers, b.numbers) for a, b in pair)


def test_losses_are_the_engines_and_say_what_greedy_decoding_says(engine, haystack):
    contexts = [hidden(20), hidden(40, (1, 2, 3))]
    changes = [haystack.changed(context) for context in contexts]
    greedy = haystack.answers(YARN, len(TEXT), changes, QUESTION, 4)
    losses, likeliest = haystack.forced(YARN, len(TEXT), changes, QUESTION, [greedy[0], [7, 8, 9, 10]])
    assert likeliest[0].all() and not likeliest[1].all()
    for context, answer, row in zip(contexts, (greedy[0], [7, 8, 9, 10]), losses, strict=True):
        prompt = [*context, *QUESTION]
        reading = Reading(
            mode="blockwise", chunk=5, block=16, anchor=8, question=len(QUESTION) + 3
        )  # the last is not read
        alone = engine.losses([*prompt, *answer], len(prompt), YARN, reading)
        assert torch.allclose(row, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [16, 37, 64])
def test_a_shorter_prompt_is_the_beginning_of_the_haystack(engine, haystack, length):
    context = hidden(10, length=length)
    found = haystack.answers(YARN, length, [haystack.changed(context)], QUESTION, 5)
    assert found == [engine.complete([*context, *QUESTION], 5, YARN, READING).ids]


def test_answers_end_at_a_stop_token(engine, haystack):
    (whole,) = haystack.answers(YARN, len(TEXT), [None], QUESTION, 6)
    at = next(i for i, token in enumerate(whole) if token not in whole[:i] and i)
    assert haystack.answers(YARN, len(TEXT), [None], QUESTION, 6, stop=(whole[at],)) == [whole[:at]]


def test_reading_goes_on_and_what_was_read_is_asked(engine, haystack):
    part, seen = Haystack(engine, TEXT, READING), []

    def stop(read: int, speed: float) -> None:
        seen.append(read)
        if read > 20 and speed > 0:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        part.read_to(len(TEXT), stop)
    assert part.read == seen[-1] == 21
    context = hidden(9, length=21)
    found = part.answers(PI, 21, [part.changed(context)], QUESTION, 4)
    assert found == [engine.complete([*context, *QUESTION], 4, PI, READING).ids]
    with pytest.raises(BadInput, match="were read"):
        part.answers(PI, 22, [None], QUESTION, 4)
    with pytest.raises(BadInput, match="were read"):
        part.changed(TEXT)
    part.read_to(30)
    assert part.read == 32  # whole blocks
    part.read_to(len(TEXT))
    for layer in range(CONFIG.layers):
        pair = zip(part.pages.cache.stores[layer], haystack.pages.cache.stores[layer], strict=True)
        assert all(torch.equal(a.numbers, b.numbers) for a, b in pair)
    with pytest.raises(BadInput, match="the text has"):
        part.read_to(len(TEXT) + 1)


def test_needles_in_the_anchor_and_other_modes_are_refused(engine, haystack):
    with pytest.raises(BadInput, match="inside the anchor"):
        haystack.changed(hidden(7))
    with pytest.raises(BadInput, match="blockwise"):
        Haystack(engine, TEXT, Reading())
    with pytest.raises(BadInput, match="trained for"):
        Haystack(engine, TEXT, Reading(mode="blockwise", block=30, anchor=8))
    other = LlamaConfig(**{**vars(CONFIG), "rotary_dim": 8})
    with pytest.raises(BadInput, match="rotary_dim"):
        read(Engine(other, random_weights(other)), TEXT).answers(YARN, 20, [None], QUESTION, 1)


def test_a_haystack_of_repeated_words_keeps_each_block_once(engine):
    unit = TEXT[:24]
    text = [*TEXT[24:40], *unit * 5]  # after the first block two kinds of block alternate: 24 and 16 have 48 in common
    reading = Reading(mode="blockwise", chunk=5, block=16, anchor=8, question=5)
    found = read(engine, text, reading)
    assert found.pages.kept == 16 + 3 * 16 + 8 and len(text) == 136
    prompt = [*text[:70], 90, 91, 92, *text[73:]]
    for context in (text, prompt, text[:100], prompt[:100]):
        mine = found.answers(YARN, len(context), [found.changed(context)], QUESTION, 6)
        plain = Haystack(engine, context, reading)
        plain.pages.same.clear()  # reads every block, into the page it shares
        plain.read_to(len(context))
        assert mine == plain.answers(YARN, len(context), [None], QUESTION, 6)
        assert mine == [engine.complete([*context, *QUESTION], 6, YARN, reading).ids]
