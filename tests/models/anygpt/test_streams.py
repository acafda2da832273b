"""Flattening, reading back, cutting into runs and trimming (specification 2.3, 11)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.anygpt import streams
from models.anygpt.streams import Splitter, Turn, flatten, split, trim, unflatten
from models.anygpt.vocabulary import Vocabulary, extend
from models.errors import BadInput
from tests.models.anygpt.tiny import SMALL, llama_tokenizer

VOCABULARY = extend(llama_tokenizer(400), layout=SMALL)  # hypothesis wants no fixtures


def test_the_specifications_vectors(official):
    _, vocabulary = official
    spelled = {
        "image": ([[3, 4]], "<soim><👀3><👀4><eoim>"),
        "speech": ([[1, 32]], "<sosp><\U0001f5e3\ufe0f1><\U0001f5e3\ufe0f32><eosp>"),
    }
    for medium, (codes, text) in spelled.items():
        assert streams.spell(vocabulary, medium, flatten(vocabulary, medium, np.array(codes))) == text
    music = np.array([[1, 32, 23], [0, 32, 23], [0, 32, 23], [0, 32, 23]])
    ids = flatten(vocabulary, "music", music)
    units = [vocabulary.unit(token)[1] for token in ids[1:-1]]
    assert units == [1, 2048, 4096, 6144, 32, 2080, 4128, 6176, 23, 2071, 4119, 6167]
    back, lost = unflatten(vocabulary, "music", ids)
    assert lost == 0
    np.testing.assert_array_equal(back, music)


@given(st.sampled_from(["image", "speech", "music"]), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_codes_come_back(medium, frames, seed):
    codes = VOCABULARY.media[medium].codes
    values = np.random.default_rng(seed).integers(0, codes.size, (codes.layers, frames))
    ids = flatten(VOCABULARY, medium, values)
    assert len(ids) == 2 + codes.layers * frames
    back, lost = unflatten(VOCABULARY, medium, ids)
    assert lost == 0
    np.testing.assert_array_equal(back, values)


@given(st.integers(0, 39), st.booleans())
def test_one_wrong_token_costs_one_frame_of_music(at, dropped):
    values = np.random.default_rng(0).integers(0, 8, (4, 10))
    ids = list(flatten(VOCABULARY, "music", values))
    if dropped:
        del ids[1 + at]
    else:
        ids.insert(1 + at, ids[1 + at])
    back, lost = unflatten(VOCABULARY, "music", ids)
    kept = [frame for frame in range(10) if frame != at // 4]
    whole = {tuple(column) for column in back.T.tolist()}
    assert {tuple(values[:, frame].tolist()) for frame in kept} <= whole
    assert back.shape[1] in (9, 10)
    assert lost == len(ids) - 2 - back.size > 0


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (np.array([[16]]), "do not belong together"),
        (np.array([[-1]]), "do not belong together"),
        (np.zeros((1, 0), int), "nothing in this image"),
        (np.zeros((2, 3), int), "shape"),
        (np.zeros((1, 3)), "float64"),
    ],
)
def test_codes_that_do_not_fit_are_refused(vocabulary, codes, said):
    with pytest.raises(BadInput, match=said):
        flatten(vocabulary, "image", codes)


@given(st.lists(st.integers(300, VOCABULARY.size - 1), max_size=80))
def test_any_stream_is_cut_without_loss(ids):
    runs = list(split(VOCABULARY, ids))
    assert [token for run in runs for token in run.ids] == ids
    for run in runs:
        assert run.ids
        if run.kind == "text":
            assert not any(VOCABULARY.starts(token) for token in run.ids)
        else:
            units = VOCABULARY.media[run.kind]
            assert run.ids[0] == units.start
            assert run.closed == (run.ids[-1] == units.end)
            assert all(VOCABULARY.unit(token)[0] == run.kind for token in run.ids[1 : -1 if run.closed else None])


def test_units_of_the_open_run_can_be_taken_back(vocabulary):
    start, *units, end = flatten(vocabulary, "image", np.array([[3, 1, 4, 1]]))
    splitter = Splitter(vocabulary)
    for token in (start, *units[:3]):
        splitter.push(token)
    splitter.retract(2)
    splitter.retract(0)
    runs = [run for token in (*units, end) for run in splitter.push(token)]
    assert [run.ids for run in runs] == [(start, units[0], *units, end)]
    for token in (40, start, units[0]):
        splitter.push(token)
    with pytest.raises(ValueError, match="2 of the 2 ids of image"):
        splitter.retract(2)  # its marker


def test_parts_come_in_their_order_and_spoken_text_is_labelled(words):
    vocabulary = words.vocabulary
    picture = flatten(vocabulary, "image", np.array([[1, 2]]))
    tune = flatten(vocabulary, "music", np.array([[1], [2], [3], [4]]))
    heard, reply = vocabulary.id("<-Ins->"), vocabulary.id("<-Res->")
    ids = [heard, *words.encode("hi"), reply, *words.encode("yes"), *picture, *tune, *picture, *tune[:-2]]
    runs = list(split(vocabulary, ids))
    assert [(run.kind, run.label, run.closed) for run in runs] == [
        ("text", "heard", True), ("text", "reply", True), ("image", "", True), ("music", "", True),
        ("image", "", True), ("music", "", False),
    ]  # fmt: skip
    back, lost = unflatten(vocabulary, "music", runs[-1].ids)
    assert (back.shape, lost) == ((4, 0), 3)


def turns(*lengths: int) -> list[Turn]:
    return [Turn("user" if i % 2 == 0 else "assistant", (), tuple([i] * n)) for i, n in enumerate(lengths)]


@pytest.mark.parametrize(("budget", "left_out"), [(100, 0), (42, 0), (41, 2), (33, 2), (32, 2), (31, 4), (12, 4)])
def test_oldest_turns_go_first_and_ids_are_kept_as_they_are(budget, left_out):
    conversation = turns(5, 5, 10, 10, 10)
    ids, dropped = trim([9, 9], conversation, budget)
    assert dropped == left_out
    assert ids == [9, 9, *(token for turn in conversation[left_out:] for token in turn.ids)]
    assert len(ids) <= budget


def test_fifty_turns_fit_any_window_and_one_long_turn_is_refused():
    ids, dropped = trim([0], turns(*[7] * 49), 60)
    assert len(ids) <= 60
    assert dropped % 2 == 0
    with pytest.raises(BadInput, match="takes 61 tokens and 59"):
        trim([0], turns(5, 5, 61), 60)


def test_vocabularies_are_told_apart(official):
    _, big = official
    assert isinstance(big, Vocabulary)
    with pytest.raises(BadInput, match="no audio tokens"):
        VOCABULARY.units("audio")
