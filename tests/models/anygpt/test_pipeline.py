"""Chat over a small random model, with codecs simple enough to check by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from models.anygpt.audio import Audio
from models.anygpt.codecs import Codecs, Encoded, Missing, Rendering
from models.anygpt.decoding import LanguageModel, Retract
from models.anygpt.grammar import Rule
from models.anygpt.pipeline import AnyGPT, Reply, Settings
from models.anygpt.sampling import GREEDY, Sampler
from models.anygpt.streams import Part, flatten
from models.errors import BadInput, Cancelled, WeightsNotFound
from tests.models.anygpt.tiny import kept

RULES = {"image": Rule(4, 4, 2), "speech": Rule(1, 6, 2), "music": Rule(4, 12, 1)}
SETTINGS = Settings(tokens=40, sampling="repository")


def see(value: Image.Image) -> Encoded:
    """Four grey levels of 16."""
    return Encoded(np.asarray(value.convert("L").resize((4, 1))) // 16, value, "seen")


def draw(codes: np.ndarray, rendering: Rendering) -> Image.Image:
    return Image.fromarray((codes * 16).astype(np.uint8))


def hear(value: Audio) -> Encoded:
    return Encoded((np.abs(value.samples[None, :6]) * 11.99).astype(int), value)


def sound(codes: np.ndarray, rendering: Rendering) -> Audio:
    return Audio(codes.reshape(-1).astype(np.float32) / 12, 16000)


CODECS = Codecs({"image": see, "speech": hear}, {"image": draw, "speech": sound, "music": sound})
PICTURE = Image.fromarray(np.array([[0, 80, 160, 255]], np.uint8))


@pytest.fixture(scope="module")
def anygpt(model, words) -> AnyGPT:
    return AnyGPT(LanguageModel(model), words, CODECS, RULES, SETTINGS)


def prompts_of(anygpt: AnyGPT, work) -> list[int]:
    """The ids that the language model read first."""
    seen: list[int] = []
    hook = anygpt.lm.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    try:
        work()
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("medium", ["image", "speech", "music"])
def test_a_forced_medium_comes_first_and_can_be_decoded(anygpt, medium):
    reply = anygpt.chat(["make something"], replace(SETTINGS, output=medium))
    parts = list(reply)
    first = parts[0]
    assert first.kind == medium
    assert isinstance(first.value, Image.Image if medium == "image" else Audio)
    assert first.note == ""
    if medium == "image":
        np.testing.assert_array_equal(
            np.asarray(first.value).reshape(-1) // 16,
            [anygpt.words.vocabulary.unit(token)[1] for token in first.token_ids[1:-1]],
        )
    assert reply.turn.parts == tuple(parts)


def test_the_next_round_reads_exactly_what_was_generated(anygpt):
    first = anygpt.user_turn([Part("image", PICTURE), Part("text", "what is it?")])
    reply = anygpt.chat([first], replace(SETTINGS, output="image"))
    read = prompts_of(anygpt, lambda: list(reply))
    again = prompts_of(anygpt, lambda: next(anygpt.chat([first, reply.turn, "and now?"])))
    whole = [t for part in reply.turn.parts for t in part.token_ids]
    assert set(whole) <= set(reply.turn.ids)
    # The prompt, then the reply, token by token as they were; nothing was encoded again.
    assert again[: len(read)] == read
    begun = len(anygpt.words.begin)
    assert again[begun:].index(reply.turn.ids[0]) >= 0
    start = next(i for i in range(len(again)) if tuple(again[i : i + len(reply.turn.ids)]) == reply.turn.ids)
    assert tuple(again[start - len(first.ids) : start]) == first.ids


def test_parts_stream_in_their_order(anygpt, words):
    vocabulary = words.vocabulary
    stream = [
        vocabulary.id("<-Ins->"), *words.encode("hi"), vocabulary.id("<-Res->"), *words.encode("look"),
        *flatten(vocabulary, "image", np.array([[1, 2, 3, 4]])), *words.encode(" "),
        *flatten(vocabulary, "music", np.array([[1], [2], [3], [4]])),
        *flatten(vocabulary, "speech", np.array([[5, 6]])), vocabulary.id("<eos>"),
    ]  # fmt: skip
    produced = []
    ids = (produced.append(token) or token for token in stream)
    reply = Reply(anygpt, SETTINGS, (), (), ids, lambda token: None, 0)
    parts, at = [], []
    for part in reply:
        parts.append(part)
        at.append(len(produced))
    assert [(part.kind, part.label) for part in parts] == [
        ("text", "heard"), ("text", "reply"), ("image", ""), ("music", ""), ("speech", "")
    ]  # fmt: skip
    assert [part.value for part in parts[:2]] == ["hi", "look"]
    assert at == sorted(at)
    assert at[2] < at[3] < at[4] < len(stream)  # each is shown as it closes
    assert list(reply.turn.ids[: len(stream) - 1]) == stream[:-1]


def test_a_picture_that_was_sent_is_encoded_once(anygpt):
    calls = []
    codecs = Codecs({"image": lambda value: calls.append(1) or see(value)}, {})
    model = AnyGPT(anygpt.lm, anygpt.words, codecs, RULES, SETTINGS)
    turn = model.user_turn([Part("image", PICTURE), Part("text", "hi")])
    assert (turn.parts[0].note, turn.parts[0].value) == ("seen", PICTURE)
    list(model.chat([turn], replace(SETTINGS, output="text")))
    list(model.chat([list(turn.parts)], replace(SETTINGS, output="text")))
    assert len(calls) == 1


def test_text_output_and_missing_codecs_stay_text(anygpt):
    model = AnyGPT(anygpt.lm, anygpt.words, Codecs({}, {"image": Missing("Needs a file.")}), RULES, SETTINGS)
    for chat in (anygpt.chat(["hi"], replace(SETTINGS, output="text")), model.chat(["hi"])):
        assert {part.kind for part in chat} <= {"text"}
    with pytest.raises(WeightsNotFound, match="Needs a file"):
        model.chat(["hi"], replace(SETTINGS, output="image"))
    with pytest.raises(WeightsNotFound, match="cannot read speech"):
        model.chat([[Part("speech", Audio(np.ones(9, np.float32), 16000))]])


def test_a_codec_that_fails_leaves_a_note(anygpt):
    def fails(codes: np.ndarray, rendering: Rendering) -> Image.Image:
        raise WeightsNotFound("The decoder is gone.")

    model = AnyGPT(anygpt.lm, anygpt.words, Codecs({}, {"image": fails}), RULES, SETTINGS)
    reply = model.chat(["hi"], replace(SETTINGS, output="image"))
    parts = list(reply)
    assert (parts[0].kind, parts[0].value, parts[0].note) == ("image", None, "The decoder is gone.")
    assert len(reply.turn.ids) > 6


def test_stopping_in_the_middle_of_music_keeps_what_was_whole(anygpt):
    count = 0

    def watch(token: int) -> None:
        nonlocal count
        count += 1
        if count == 7:
            raise Cancelled("Stopped.")

    reply = anygpt.chat(["play"], replace(SETTINGS, output="music"), watch)
    with pytest.raises(Cancelled):
        list(reply)
    assert reply.turn.parts == ()
    follow = anygpt.chat(["play", reply.turn, "again"], replace(SETTINGS, output="image"))
    assert next(follow).kind == "image"
    follow.close()
    assert list(follow) == []
    assert len(follow.turn.parts) == 1


def test_the_codec_chooses_among_candidates_and_the_reply_is_the_one_it_chose(model, words):
    """The judge wants the most of code 3, which it is told about in codes, not ids."""
    judged: list[np.ndarray] = []

    def judge(codes: np.ndarray) -> float:
        judged.append(codes)
        return float((codes == 3).mean()) / 2

    codecs = Codecs({}, {"music": sound}, {"music": judge})
    settings = replace(SETTINGS, output="music", sampling={"text": GREEDY, "music": Sampler(3.0, candidates=4)})
    events: list[int | Retract] = []
    reply = AnyGPT(LanguageModel(model), words, codecs, RULES, settings).chat(["play"], on_token=events.append)
    part = next(reply)
    assert len(judged) == 4
    best = max(judged, key=lambda codes: (codes == 3).mean())
    assert part.token_ids == flatten(words.vocabulary, "music", best)
    np.testing.assert_array_equal(part.value.samples, sound(best, Rendering()).samples)
    list(reply)
    shown = [token for run in reply.turn.parts for token in run.token_ids]
    assert [token for token in kept(events) if token not in reply._model.stop] == shown


def test_two_users_at_once_get_what_each_gets_alone(anygpt):
    def reply(question: str) -> list:
        parts = list(anygpt.chat([question], replace(SETTINGS, output="speech")))
        return [(part.kind, part.token_ids) for part in parts]

    questions = ["one apple", "two pears", "three figs", "four plums"]
    alone = [reply(question) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reply, questions)) == alone
    assert alone[0] != alone[1]


def test_fifty_turns_in_a_row(anygpt):
    turns = []
    left_out = []
    for _ in range(25):
        turns.append(anygpt.user_turn("tell me more about it"))
        reply = anygpt.chat(turns, replace(SETTINGS, tokens=12))
        list(reply)
        turns.append(reply.turn)
        left_out.append(reply.left_out)
    assert left_out[0] == 0
    assert left_out[-1] > 20
    assert all(count % 2 == 0 for count in left_out)


def test_what_cannot_be_answered_is_refused(anygpt):
    with pytest.raises(BadInput, match="last turn has to be the user's"):
        anygpt.chat([])
    with pytest.raises(BadInput, match="last turn has to be the user's"):
        anygpt.chat([anygpt.chat(["hi"]).turn])
    with pytest.raises(BadInput, match="empty"):
        anygpt.chat([" "])
    with pytest.raises(BadInput, match="Unknown template"):
        anygpt.chat(["hi"], replace(SETTINGS, template="Vicuna"))
    with pytest.raises(BadInput, match="Unknown sampling preset"):
        anygpt.chat(["hi"], replace(SETTINGS, sampling="wild"))
    with pytest.raises(BadInput, match="This turn takes"):
        anygpt.chat(["word " * 400])
    with pytest.raises(BadInput, match="holds text, not int"):
        anygpt.chat([[Part("text", 7)]])


def test_seeds_and_streaming(anygpt):
    settings = replace(SETTINGS, output="speech", seed=5)
    first = next(islice(anygpt.chat(["hi"], settings), 1))
    assert first.token_ids == next(anygpt.chat(["hi"], settings)).token_ids
    assert first.token_ids != next(anygpt.chat(["hi"], replace(settings, seed=6))).token_ids
