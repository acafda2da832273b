"""The official tier from a folder in the published layout, with small networks of the published kinds."""

import json

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from models import anygpt
from models.anygpt import official, soundstorm, speechtokenizer
from models.anygpt.audio import Audio
from models.anygpt.pipeline import Settings
from models.anygpt.streams import Part
from models.errors import BadInput, WeightsCorrupt, WeightsNotFound
from models.runtime import choose_device
from tests.models.anygpt.tiny import llama_tokenizer, tiny_llama

STORM = soundstorm.Config(width=8, depth=1, heads=1, head_width=8, conv_kernel=3)
SHORT = Settings(tokens=30, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, official_tokenizer):
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    lm = root / "anygpt/chat"
    official_tokenizer.save_pretrained(lm)
    tiny_llama(53_520, hidden_size=16, intermediate_size=16, num_hidden_layers=1).save_pretrained(lm)

    (root / "speechtokenizer").mkdir()
    config = speechtokenizer.Config(n_filters=2, dimension=8)
    torch.save(speechtokenizer.SpeechTokenizer(config).state_dict(), root / "speechtokenizer/ckpt.dev")
    published = {"n_filters": 2, "dimension": 8, "bidirectional": True, "n_residual_layers": 1, "activation": "Snake"}
    (root / "speechtokenizer/config.json").write_text(json.dumps(published))

    (root / "soundstorm").mkdir()
    storm = soundstorm.SoundStorm(STORM).state_dict()
    torch.save(storm, root / "soundstorm/speechtokenizer_soundstorm_mls.pt")

    music = EncodecConfig(
        sampling_rate=32000, audio_channels=1, codebook_size=2048, codebook_dim=128, hidden_size=128, num_filters=2,
        upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[2.2], use_causal_conv=False,
    )  # fmt: skip
    EncodecModel(music).save_pretrained(root / "encodec_32khz")
    return root


@pytest.fixture(scope="module")
def official_tokenizer():
    from models.anygpt.vocabulary import extend

    tokenizer = llama_tokenizer(32_000)
    extend(tokenizer)
    return tokenizer


@pytest.fixture(autouse=True)
def small_storm(monkeypatch):
    monkeypatch.setattr(soundstorm.SoundStorm.__init__, "__defaults__", (STORM,))


@pytest.fixture(scope="module")
def model(folder):
    return anygpt.load("official", folder, "cpu")


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(np.arange(round(seconds * rate)) * 0.1)).astype(np.float32)


def test_speech_and_music_in_speech_and_music_out(model):
    turn = model.user_turn([Part("speech", (48000, tone(1, 48000))), Part("music", (22050, tone(8, 22050)))])
    music, speech = (next(part for part in turn.parts if part.kind == kind) for kind in ("music", "speech"))
    assert (len(speech.token_ids), len(music.token_ids)) == (52, 1002)
    assert "first 5 seconds" in music.note
    for kind, rate, samples in (("speech", 16000, 320), ("music", 32000, 640)):
        part = next(model.chat([turn], Settings(tokens=30, output=kind)))
        assert (part.kind, part.note) == (kind, "")
        units = len(part.token_ids) - 2
        assert part.value.rate == rate
        assert len(part.value.samples) == samples * (units if kind == "speech" else units // 4)


def test_a_voice_changes_how_it_sounds_not_what_is_said(model):
    from models.anygpt.codecs import Rendering

    def spoken(voice: Audio | None) -> Part:
        how = Settings(tokens=30, output="speech", rendering=Rendering(voice=voice))
        return next(model.chat(["read this"], how))

    plain, voiced = spoken(None), spoken(Audio(tone(1, 16000), 16000))
    assert plain.token_ids == voiced.token_ids
    assert not np.array_equal(plain.value.samples, voiced.value.samples)


def test_missing_files_switch_off_what_needs_them_and_only_that(model, folder):
    assert model.codecs.reason("read", "speech") is None
    assert "seed-tokenizer-2/seed_quantizer.pt" in model.codecs.reason("make", "image")
    paths = official.Paths.inside(folder)
    fewer = official.Paths({name: path for name, path in paths.files.items() if name != "soundstorm"})
    codecs = official.codecs(fewer, choose_device("cpu"))
    assert codecs.reason("read", "speech") is None
    assert "speechtokenizer_soundstorm_mls.pt" in codecs.reason("make", "speech")
    assert codecs.reason("make", "music") is None
    with pytest.raises(WeightsNotFound, match=r"seed_quantizer\.pt.*AILab-CVC"):
        model.chat(["draw"], Settings(output="image"))


def test_other_template_and_base_like_vocabulary(model):
    assert {part.kind for part in model.chat(["hi"], Settings(tokens=5, template="AnyGPT", output="text"))} <= {"text"}


def test_folders_that_do_not_fit_are_named(folder, tmp_path):
    with pytest.raises(WeightsNotFound, match=r"anygpt/chat.*fnlp/AnyGPT-chat"):
        anygpt.load("official", tmp_path, "cpu")
    lm = tmp_path / "anygpt/chat"
    lm.mkdir(parents=True)
    (lm / "config.json").write_text("{}")
    (lm / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsCorrupt, match="no complete tokenizer"):
        anygpt.load("official", tmp_path, "cpu")
    llama_tokenizer(400).save_pretrained(lm)
    tiny_llama(400).save_pretrained(lm)
    with pytest.raises(WeightsCorrupt, match="not AnyGPT's"):
        anygpt.load("official", tmp_path, "cpu")
    with pytest.raises(BadInput, match="reads a weights folder"):
        anygpt.load("official", None, "cpu")
    with pytest.raises(BadInput, match="Unknown tier"):
        anygpt.load("huge", None, "cpu")


def test_the_embedded_tier_without_its_weights_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("models.weights.ASSETS", tmp_path)
    with pytest.raises(WeightsNotFound, match=r"anygpt/lm\.safetensors in the repository"):
        anygpt.load("embedded")


def test_a_published_pickle_with_attributes_on_tensors_is_read(tmp_path):
    """The published language model's file rebuilds tensors with `_rebuild_from_type_v2`."""
    from models.weights import read_state_dict

    tensor = torch.arange(4.0)
    tensor.note = "kept"
    torch.save({"a": tensor}, tmp_path / "pytorch_model.bin")
    assert b"_rebuild_from_type_v2" in (tmp_path / "pytorch_model.bin").read_bytes()
    assert torch.equal(read_state_dict(tmp_path / "pytorch_model.bin")["a"], torch.arange(4.0))
