"""The speech codec of the miniature AnyGPT: parts against closed forms, then the shipped codec on spoken files."""

import itertools
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from models.anygpt.audio import Audio, read_speech, wav
from models.anygpt.embedded import speech_align, speech_codec, speech_ear, speech_judge, speech_source, speech_whisper
from models.anygpt.embedded.speech_ear import ALPHABET, RATE, SILENCE
from models.anygpt.embedded.speech_mouth import Mouth, places
from models.errors import BadInput, UnsafeCheckpoint, WeightsCorrupt, WeightsNotFound
from models.weights import ASSETS

EXAMPLES = ASSETS / "anygpt/examples"
SPOKEN = EXAMPLES / "draw_a_red_apple_and_play_something_calm.wav"


@pytest.fixture(scope="module")
def codec():
    return speech_codec.load(ASSETS / "anygpt")


def test_log_mel_is_whispers():
    samples = np.random.default_rng(0).normal(0, 0.1, 480_000).astype(np.float32)
    expected = WhisperFeatureExtractor(feature_size=80)(samples, sampling_rate=RATE, return_tensors="pt")
    ours = speech_ear.log_mel(torch.from_numpy(samples)[None])
    torch.testing.assert_close(ours, expected.input_features, atol=1e-4, rtol=0)


def test_features_are_those_of_whispers_encoder():
    torch.manual_seed(0)
    encoder = WhisperEncoder(
        WhisperConfig(d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64)
    ).eval()
    mel = torch.randn(1, 80, 3000)
    with torch.no_grad():
        torch.testing.assert_close(speech_ear.features(encoder, mel), encoder(mel).last_hidden_state)


@pytest.mark.parametrize("seed", range(5))
def test_best_path_is_the_best_of_all(seed):
    scores = np.random.default_rng(seed).normal(size=(5, 3))
    paths = list(itertools.product(range(3), repeat=5))
    values = [scores[range(5), path].sum() - 0.7 * np.count_nonzero(np.diff(path)) for path in paths]
    assert tuple(speech_ear.best_path(scores, 0.7)) == paths[int(np.argmax(values))]


def test_merging_drops_repeats_and_outer_silence():
    codes, lengths = speech_ear.merged(np.array([0, 0, 5, 5, 5, 0, 7, 5, 0]))
    assert codes.tolist() == [5, 0, 7, 5]
    assert lengths.tolist() == [3, 1, 1, 1]
    assert len(speech_ear.merged(np.zeros(4, int))[0]) == 0


def test_alignment_loss_sums_all_alignments():
    scores = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    targets = [speech_align.states([[1, 2], [2]]), speech_align.states([[3]])]

    def allowed(states, path):
        """`path` gives the state of each frame."""
        steps = list(itertools.pairwise(path))
        return (
            path[0] in (0, 1)
            and path[-1] >= len(states) - 2
            and all(b - a in (0, 1) or (b - a == 2 and states[a + 1] == SILENCE) for a, b in steps)
        )

    total = 0.0
    for row, states in enumerate(targets):
        paths = itertools.product(range(len(states)), repeat=6)
        likely = [
            sum(scores[row, frame, states[state]].item() for frame, state in enumerate(path))
            for path in paths
            if allowed(states, path)
        ]
        total -= torch.logsumexp(torch.tensor(likely), 0).item()
    assert speech_align.alignment_loss(scores, targets).item() == pytest.approx(total / 2 / 6, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_best_alignment_is_the_best_of_all(seed):
    scores = np.random.default_rng(seed).normal(size=(6, 4))
    codes = [0, 2, 1]
    splits = [counts for counts in itertools.product(range(1, 5), repeat=3) if sum(counts) == 6]
    values = [scores[range(6), np.repeat(codes, counts)].sum() for counts in splits]
    assert tuple(speech_align.best_alignment(scores, codes)) == splits[int(np.argmax(values))]


def test_pulses_are_a_sum_of_harmonics():
    pitch = torch.full((20,), 1000.0)
    phase = 2 * math.pi * 1000 * (torch.arange(4000).double() + 1) / speech_source.RATE
    expected = sum((h * phase).cos() for h in range(1, 8))
    torch.testing.assert_close(speech_source.pulses(pitch), expected.float(), atol=1e-3, rtol=0)
    assert not speech_source.pulses(torch.zeros(20)).any()


def test_noise_keeps_its_level_and_its_seed():
    quiet = torch.full((speech_source.BINS, 100), -20.0)
    loud = torch.full((speech_source.BINS, 100), 1.0)
    none = torch.zeros(100)
    first = speech_source.synthesise(quiet, loud, none)
    assert len(first) == 100 * speech_source.HOP
    torch.testing.assert_close(first, speech_source.synthesise(quiet, loud, none))
    assert speech_source.synthesise(quiet, loud + 1, none).std() == pytest.approx(math.e * first.std().item(), rel=0.01)


def test_places_of_frames_in_their_codes():
    found = places(torch.tensor([1, 3]))
    assert found[:, 0].tolist() == pytest.approx([0.5, 1 / 6, 0.5, 5 / 6])
    assert (10 * found[:, 1]).tolist() == pytest.approx([0, 0, 1, 2])
    assert (10 * found[:, 2]).tolist() == pytest.approx([0, 2, 1, 0])


def test_words_as_the_judge_counts_them():
    assert speech_judge.normalised("I see 2 ice-cold colors!") == ["i", "see", "two", "ice", "cold", "colors"]
    assert speech_judge.normalised("My neighbor's color.") == ["my", "neighbors", "colour"]
    assert speech_judge.distance("kitten", "sitting") == 3
    assert speech_judge.error_rate([["a", "b"], []], [["a"], ["c"]]) == 1.0


def test_ctranslate2_file(tmp_path: Path):
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1)
    content += text("a") + struct.pack("<BIIBI", 2, 2, 3, 4, array.nbytes) + array.tobytes()
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    np.testing.assert_array_equal(speech_whisper.read(path)["a"], array)
    for damaged in (content[:-1], content[:30], content.replace(b"Whisper", b"Whisker"), b""):
        path.write_bytes(damaged)
        with pytest.raises(WeightsCorrupt):
            speech_whisper.read(path)


def test_padding_does_not_change_a_sentence():
    mouth = Mouth(width=16, reading=1, speaking=1).eval()
    codes, counts = torch.tensor([[0, 3, 0]]), torch.tensor([[2, 4, 1]])
    padded, more = torch.tensor([[0, 3, 0, 0], [0, 3, 4, 0]]), torch.tensor([[2, 4, 1, 0], [3, 3, 3, 3]])
    with torch.no_grad():
        alone = mouth.frames(mouth.read(codes, torch.ones(1, 3, 1)), counts)
        beside = mouth.frames(mouth.read(padded, (more > 0)[..., None]), more)
    torch.testing.assert_close(alone.noise[0], beside.noise[0, :7])
    torch.testing.assert_close(alone.pitch[0], beside.pitch[0, :7])


def test_codes_of_a_spoken_file(codec):
    codes = codec.encode(read_speech(SPOKEN, RATE))
    assert codes.shape[0] == 1
    assert codes.dtype == np.int64
    assert codes.min() >= 0 and codes.max() < len(ALPHABET)
    assert not (codes[0, 1:] == codes[0, :-1]).any()
    assert SILENCE not in (codes[0, 0], codes[0, -1])
    assert 5 < codes.shape[1] / read_speech(SPOKEN, RATE).seconds < 20
    heard = "".join(ALPHABET[code] for code in codes[0]).replace("ˈ", "").replace("_", "")
    assert "ɹɛdæpəl" in heard  # a red apple


def test_spoken_codes_are_heard_as_themselves(codec):
    codes = codec.encode(read_speech(SPOKEN, RATE))
    spoken = codec.decode(codes)
    assert spoken.rate == RATE
    assert 0.6 < spoken.seconds / read_speech(SPOKEN, RATE).seconds < 1.6
    assert np.abs(spoken.samples).max() == pytest.approx(0.5)
    again = codec.encode(spoken)
    assert speech_judge.distance(codes[0], again[0]) < 0.3 * len(codes[0])
    np.testing.assert_array_equal(spoken.samples, codec.decode(codes).samples)


def test_recordings_of_other_kinds_give_much_the_same_codes(codec):
    audio = read_speech(SPOKEN, RATE)
    codes = codec.encode(audio)[0].tolist()
    stereo = np.stack((audio.samples, audio.samples), 1)
    eight_bit = np.round(audio.samples * 127 + 128).astype(np.uint8)
    fast = np.interp(np.arange(6 * len(audio.samples)) / 6, np.arange(len(audio.samples)), audio.samples)
    assert codec.encode(read_speech((RATE, stereo), RATE))[0].tolist() == codes
    for source in ((RATE, eight_bit), (96_000, fast.astype(np.float32))):
        other = codec.encode(read_speech(source, RATE))[0].tolist()
        assert speech_judge.distance(codes, other) < 0.15 * len(codes)


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros(RATE), RATE, "silent"),
        (np.ones(RATE), 8000, "8000 samples a second"),
        (np.ones(100), RATE, "0.01 seconds"),
        (np.ones(21 * RATE), RATE, "21.00 seconds"),
    ],
)
def test_sounds_that_cannot_be_heard(codec, samples, rate, reason):
    with pytest.raises(BadInput, match=reason):
        codec.encode(Audio(samples.astype(np.float32), rate))


@pytest.mark.parametrize("codes", [np.zeros((2, 3), int), np.zeros((1, 0), int), np.array([[56]]), np.array([[-1]])])
def test_codes_that_cannot_be_spoken(codec, codes):
    with pytest.raises(BadInput):
        codec.decode(codes)


def test_every_code_can_be_spoken(codec):
    spoken = codec.decode(np.arange(len(ALPHABET))[None])
    assert np.isfinite(spoken.samples).all()
    assert spoken.seconds > 2


def test_files_that_are_missing_or_wrong(tmp_path: Path):
    with pytest.raises(WeightsNotFound):
        speech_codec.load(tmp_path)
    (tmp_path / speech_codec.FILE).write_bytes(b"no weights")
    with pytest.raises(UnsafeCheckpoint):
        speech_codec.load(tmp_path)


def test_a_wav_file_of_ours_is_read_back(codec):
    spoken = codec.decode(np.array([[4, 31, 5]]))
    assert read_speech(wav(spoken), RATE).samples == pytest.approx(spoken.samples, abs=1e-4)
