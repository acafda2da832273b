"""The shipped miniature, whole: SmolLM2 from its package, the codecs and the language model from assets/anygpt."""

from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from models import anygpt
from models.anygpt.decoding import Retract
from models.anygpt.embedded import language, tier
from models.anygpt.sampling import PRESETS, Sampler
from models.anygpt.streams import Part
from models.weights import ASSETS

FOLDER = ASSETS / "anygpt"
EXAMPLES = FOLDER / "examples"


@pytest.fixture(scope="module")
def model():
    return anygpt.load("embedded", device="cpu")


def chat(model, parts: list[Part], **settings):
    return list(model.chat([parts], replace(tier.SETTINGS, **settings)))


def test_its_files_are_small():
    assert (FOLDER / "lm.safetensors").stat().st_size <= 20e6
    assert sum(path.stat().st_size for path in Path(FOLDER).glob("*.safetensors")) <= 70e6


def test_one_spoken_request_brings_all_media_back_in_the_trained_order(model):
    voice = EXAMPLES / "draw_a_red_apple_and_play_something_calm.wav"
    parts = chat(model, [Part("speech", voice)])
    assert [part.label or part.kind for part in parts] == ["heard", "reply", "speech", "image", "music"]
    assert parts[0].value == "draw a red apple and play something calm"
    assert parts[1].value == "Here is a red apple and calm music."
    assert parts[3].value.size == (128, 128)
    assert parts[4].value.seconds == pytest.approx(4, abs=0.1)
    assert all(part.value is not None and not part.note for part in parts)


def test_of_several_utterances_it_keeps_the_one_that_it_understands_best(model):
    """Three blurred ones; what each is heard as is asked the usual way."""
    text, units = "is it windy and sunny under the bridge", model.words.vocabulary.units("speech")
    runs: list[list[int]] = [[]]

    def watch(token: int | Retract) -> None:
        if isinstance(token, Retract):
            runs.append([])
        elif token in units.ids:
            runs[-1].append(token)

    blurred = PRESETS["embedded"] | {"speech": Sampler(temperature=2.5, candidates=3)}
    settings = replace(tier.SETTINGS, task="Text-to-Speech", output="speech", seed=1, sampling=blurred)
    (said,) = model.chat([[Part("text", text)]], settings, watch)

    def understood(run: list[int]) -> float:
        speech = Part("speech", None, (units.start, *run, units.end))
        (heard,) = chat(model, [speech], task="Speech-to-Text", output="text")
        return SequenceMatcher(None, text.split(), language.plain(heard.value).split(), autojunk=False).ratio()

    assert len(runs) >= 3
    kept = [token for token in said.token_ids if token in units.ids]
    assert understood(kept) == max(understood(run) for run in runs)
    assert len({understood(run) for run in runs}) > 1


def test_a_drawing_of_its_own_is_named(model):
    (drawn,) = chat(model, [Part("text", "a red apple")], task="Text-to-Image Generation", output="image")
    said = chat(model, [Part("image", drawn.value)], task="Image-to-Text Caption", output="text")
    assert "apple" in language.plain(said[0].value).split()


def test_an_instrument_is_heard(model):
    music = EXAMPLES / "music_fast_lively_flute.wav"
    (said,) = chat(model, [Part("music", music)], task="Music-to-Text", output="text")
    assert "flute" in language.plain(said.value).split()


def test_a_typed_request_is_followed(model):
    parts = chat(model, [Part("text", "Draw a blue star.")])
    assert [part.kind for part in parts] == ["text", "image"]
    assert parts[0].value == "Here is a blue star."


def test_it_still_talks_and_the_same_way_twice(model):
    one, other = (chat(model, [Part("text", "What is the capital of France?")], tokens=40) for _ in range(2))
    assert [part.kind for part in one] == ["text"]
    assert "Paris" in one[0].value
    assert one == other
