"""The state machine, fuzzed: whatever is chosen among the allowed ids, the reply can be decoded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.anygpt.grammar import OFFICIAL_RULES, Free, Grammar, Rule
from models.anygpt.streams import split, unflatten
from models.anygpt.vocabulary import Vocabulary, extend, stop_ids
from models.errors import BadInput
from tests.models.anygpt.tiny import SMALL, llama_tokenizer

TOKENIZER = llama_tokenizer(400)
VOCABULARY = extend(TOKENIZER, layout=SMALL)
STOP = stop_ids(TOKENIZER, VOCABULARY)
RULES = {"image": Rule(5, 5, 2), "speech": Rule(1, 7, 2), "music": Rule(4, 12, 1)}


def grammar(tokens: int, rules: dict | None = None) -> Grammar:
    return Grammar(VOCABULARY, RULES if rules is None else rules, STOP, tokens)


def drive(rules: Grammar, prompt: list[int], seed: int, eager: float = 0.5) -> list[int]:
    """Random allowed ids until the reply is done; markers are taken more often than their share."""
    rng = np.random.default_rng(seed)
    state, ids = rules.begin(prompt), []
    while not state.done:
        allowed = rules.allowed(state)
        assert len(allowed) > 0
        choices = [token for low, high in allowed.spans for token in range(low, high)]
        markers = [token for token in choices if VOCABULARY.starts(token) or VOCABULARY.ends(token)]
        token = int(rng.choice(markers if markers and rng.random() < eager else choices))
        ids.append(token)
        state = rules.advance(state, token)
    return ids


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_every_reply_can_be_decoded(tokens, seed, eager):
    ids = drive(grammar(tokens), [], seed, eager)
    assert 1 <= len(ids) <= tokens
    assert not set(ids[:-1]) & set(STOP)
    seen: dict[str, int] = {}
    for run in split(VOCABULARY, [token for token in ids if token not in STOP]):
        assert run.closed
        if run.kind == "text":
            unwanted = {VOCABULARY.id(role) for role in ("[MMGPT]", "[AnyGPT]", "<eoh>")} | {1, 0}
            assert not unwanted & set(run.ids)
            continue
        seen[run.kind] = seen.get(run.kind, 0) + 1
        codes, lost = unflatten(VOCABULARY, run.kind, run.ids)
        assert lost == 0
        assert RULES[run.kind].least <= codes.size <= RULES[run.kind].most
    assert all(count <= RULES[kind].runs for kind, count in seen.items())


@given(st.sampled_from(["image", "speech", "music"]), st.integers(6, 40), st.integers(0, 2**32 - 1))
def test_a_forced_medium_comes_first(medium, tokens, seed):
    start = VOCABULARY.media[medium].start
    ids = drive(grammar(tokens), [5, start], seed)
    first = next(split(VOCABULARY, [start, *ids]))
    assert (first.kind, first.closed) == (medium, True)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_what_is_not_allowed_is_refused(tokens, seed):
    rules = grammar(tokens)
    ids = drive(rules, [], seed)
    at = seed % len(ids)
    allowed = rules.after(ids[:at])
    wrong = [token for token in range(VOCABULARY.size) if token not in allowed]
    assert ids[at] in allowed
    assert wrong
    with pytest.raises(ValueError, match="may not follow"):
        rules.after([*ids[:at], wrong[seed % len(wrong)]])


def test_music_follows_its_layers_and_ends_only_between_frames():
    rules, music = grammar(100), VOCABULARY.media["music"]
    ids = [music.start]
    for unit in range(12):
        allowed = rules.after(ids)
        layer = set(music.layer(unit % 4))
        may_end = unit in (4, 8)
        assert {t for t in range(VOCABULARY.size) if t in allowed} == layer | ({music.end} if may_end else set())
        ids.append(music.layer(unit % 4)[unit % 8])
    assert rules.after(ids).spans == ((music.end, music.end + 1),)  # the cap
    assert music.start not in rules.after([*ids, music.end])  # one piece a reply


def test_a_picture_has_exactly_its_codes():
    rules, image = grammar(100), VOCABULARY.media["image"]
    ids = [image.start]
    for unit in range(5):
        assert rules.after(ids).spans == ((image.ids[0], image.ids[-1] + 1),)
        ids.append(image.ids[unit])
    assert rules.after(ids).spans == ((image.end, image.end + 1),)
    assert rules.after(ids).kind == "image"


def test_official_rules_fit_the_official_vocabulary(official):
    tokenizer, vocabulary = official
    rules = Grammar(vocabulary, OFFICIAL_RULES, stop_ids(tokenizer, vocabulary), 1100)
    state = rules.begin([vocabulary.media["music"].start])
    for frame in range(1000):
        state = rules.advance(state, vocabulary.media["music"].layer(frame % 4)[0])
    assert rules.allowed(state).spans == ((49417, 49418),)
    assert 53518 in rules.after([])  # <-Res->
    assert 49418 not in rules.after([])  # the abandoned audio


def test_impossible_rules_and_budgets_are_refused():
    with pytest.raises(BadInput, match="multiples of 4"):
        grammar(10, {"music": Rule(1, 12, 1)})
    with pytest.raises(BadInput, match="no audio tokens"):
        grammar(10, {"audio": Rule(4, 4, 1)})
    with pytest.raises(BadInput, match="at least 1"):
        grammar(0)
    with pytest.raises(BadInput, match="needs 6"):
        grammar(5).begin([VOCABULARY.media["image"].start])
    with pytest.raises(BadInput, match="generates no music"):
        grammar(50, {"image": Rule(5, 5, 1)}).begin([VOCABULARY.media["music"].start])


def test_without_rules_all_ids_may_follow_until_a_stop():
    free = Free(50, [7], 3)
    state = free.advance(free.begin([1]), 49)
    assert free.allowed(state).spans == ((0, 50),)
    assert free.advance(state, 7).done
    assert free.advance(free.advance(state, 1), 1).done


def test_codes_of_a_first_frame_come_first_and_only_there(vocabulary: Vocabulary) -> None:
    units = vocabulary.units("music")
    size, layers = units.codes.size, units.codes.layers
    rule = Rule(layers, 3 * layers, 1, codes=size - 2, lead=2)
    grammar = Grammar(vocabulary, {"music": rule}, [], 40)
    state = grammar.begin([units.start])
    for unit in range(3 * layers):
        allowed = grammar.allowed(state)
        lead, sound = units.layer(unit % layers)[-2:], units.layer(unit % layers)[:-2]
        wanted, other = (lead, sound) if unit < layers else (sound, lead)
        assert all(token in allowed for token in wanted) and not any(token in allowed for token in other)
        state = grammar.advance(state, wanted[unit % 2])
    with pytest.raises(BadInput, match="too few"):
        Grammar(vocabulary, {"music": Rule(layers, layers, 1, lead=1)}, [], 40)


def test_a_guiding_stream_reads_what_says_nothing_only_where_the_first_frame_begins(vocabulary: Vocabulary) -> None:
    units = vocabulary.units("music")
    size, layers = units.codes.size, units.codes.layers
    grammar = Grammar(vocabulary, {"music": Rule(layers, 3 * layers, 1, size - 2, 2, unsaid=size - 1)}, [], 40)
    state = grammar.begin([units.start])
    for unit in range(3 * layers):
        token = units.layer(unit % layers)[size - 2 if unit < layers else 0]
        assert grammar.unsaid(state, token) == (token if unit else units.layer(0)[size - 1])
        state = grammar.advance(state, token)
    assert grammar.unsaid(grammar.advance(state, units.end), units.start) == units.start
    with pytest.raises(BadInput, match="none of those of music's first frame"):
        Grammar(vocabulary, {"music": Rule(layers, layers, 1, size - 2, 2, unsaid=0)}, [], 40)


def test_codes_that_are_only_room_are_never_generated(vocabulary: Vocabulary) -> None:
    units = vocabulary.units("speech")
    grammar = Grammar(vocabulary, {"speech": Rule(1, 4, 1, codes=3)}, [], 20)
    allowed = grammar.after([units.start])
    assert [token in allowed for token in units.ids[:5]] == [True, True, True, False, False]
