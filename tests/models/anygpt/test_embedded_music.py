"""Music codec of the miniature: what it promises for any sound, and what its synthesiser is in closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.anygpt.audio import Audio
from models.anygpt.embedded import language, music_codec, music_data
from models.anygpt.embedded.layout import MUSIC_FRAMES, MUSIC_LEAD, RULES
from models.anygpt.embedded.music_codec import (
    BEATS,
    LOWEST,
    NEAR_COLOURS,
    NOISES,
    PITCHES,
    RATE,
    SECONDS,
    SIZE,
    TIMBRES,
    Score,
    spectra,
)
from models.errors import BadInput, WeightsCorrupt, WeightsNotFound
from models.weights import ASSETS

FOLDER = ASSETS / "anygpt"


@pytest.fixture(scope="module")
def codec() -> music_codec.MusicCodec:
    return music_codec.load(FOLDER)


def tone(frequency: float, seconds: float = SECONDS, loudness: float = 0.3) -> Audio:
    """A note with a few harmonics that swells and dies away, as instruments do."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * frequency * k * time) * 0.5**k for k in range(1, 5))
    envelope = np.minimum(1, time / 0.03) * np.exp(-time / 2)
    return Audio((loudness * wave * envelope).astype(np.float32), RATE)


def peak(audio: Audio) -> float:
    """The strongest frequency, Hz."""
    spectrum = np.abs(np.fft.rfft(audio.samples * np.hanning(len(audio.samples)), 4 * len(audio.samples)))
    return float(np.argmax(spectrum) * audio.rate / (4 * len(audio.samples)))


def beating(beats: float, frequency: float = 440) -> Audio:
    """A note struck so many times a minute."""
    strike = tone(frequency, 0.3).samples
    samples = np.zeros(round(SECONDS * RATE) + len(strike), np.float32)
    for start in np.arange(0, SECONDS, 60 / beats):
        samples[round(start * RATE) : round(start * RATE) + len(strike)] += strike
    return Audio(samples[: round(SECONDS * RATE)], RATE)


def test_a_clip_is_a_frame_about_it_and_fifty_of_sound(codec: music_codec.MusicCodec) -> None:
    codes = codec.encode(tone(440))
    assert codes.shape == (2, 1 + MUSIC_FRAMES) and codes.dtype == np.int64
    assert codes[:, 0].min() >= SIZE and codes[:, 0].max() < SIZE + MUSIC_LEAD
    assert codes[:, 1:].min() >= 0 and codes[:, 1:].max() < SIZE
    assert codes.size == RULES["music"].least == RULES["music"].most
    sound = codec.decode(codes)
    assert sound.rate == RATE and len(sound.samples) == round(SECONDS * RATE)
    assert np.isfinite(sound.samples).all()


def test_the_same_sound_gives_the_same_codes_and_they_the_same_sound(codec: music_codec.MusicCodec) -> None:
    first, second = codec.encode(tone(392)), codec.encode(tone(392))
    assert np.array_equal(first, second)
    assert np.array_equal(codec.decode(first).samples, codec.decode(second).samples)


@pytest.mark.parametrize("frequency", [261.63, 329.63, 440.0, 587.33])
def test_the_pitch_of_a_note_survives(codec: music_codec.MusicCodec, frequency: float) -> None:
    found = peak(codec.decode(codec.encode(tone(frequency))))
    octaves = 12 * np.log2(found / frequency)
    assert abs(octaves) < 0.5


def test_any_codes_can_be_played(codec: music_codec.MusicCodec) -> None:
    random = np.random.default_rng(0)
    for length in (1, 7, MUSIC_FRAMES):
        lead = random.integers(SIZE, SIZE + MUSIC_LEAD, (2, 1))
        sound = codec.decode(np.concatenate([lead, random.integers(0, SIZE, (2, length))], 1))
        assert len(sound.samples) == length * 4 * music_codec.HOP
        assert np.isfinite(sound.samples).all() and np.abs(sound.samples).max() < 4


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((1, 51), int),
        np.zeros((51,), int),
        np.full((2, 1), SIZE),
        np.zeros((2, 51), int),
        np.full((2, 3), SIZE),
        np.array([[SIZE, 0], [SIZE + MUSIC_LEAD, 0]]),
        np.array([[SIZE, -1], [SIZE, 0]]),
    ],
)
def test_codes_that_are_none_are_refused(codec: music_codec.MusicCodec, codes: np.ndarray) -> None:
    with pytest.raises(BadInput):
        codec.decode(codes)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (Audio(np.zeros(RATE, np.float32), RATE), "silent"),
        (tone(440, 0.05), "at least"),
        (Audio(np.zeros(0, np.float32), RATE), "at least"),
        (Audio(tone(440).samples, 22_050), "16000"),
    ],
)
def test_sounds_that_cannot_be_read_are_refused(codec: music_codec.MusicCodec, audio: Audio, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        codec.encode(audio)


def test_a_short_sound_is_followed_by_silence_and_of_a_long_one_the_first_seconds_count(
    codec: music_codec.MusicCodec,
) -> None:
    short = tone(440, 1.0)
    padded = Audio(np.concatenate([short.samples, np.zeros(3 * RATE, np.float32)]), RATE)
    assert np.array_equal(codec.encode(short), codec.encode(padded))
    long = tone(440, 6.0)
    first = Audio(long.samples[: round(SECONDS * RATE)], RATE)
    assert np.array_equal(codec.encode(long), codec.encode(first))


def test_reading_a_long_file_says_that_only_its_start_is_heard() -> None:
    long, short = tone(440, 7.0), tone(440, 2.0)
    heard = music_codec.read((RATE, long.samples))
    assert heard.seconds == SECONDS and "first 4 seconds" in heard.notes[0]
    assert music_codec.read((RATE, short.samples)).notes == ()


@pytest.mark.parametrize("beats", [55.0, 62.5, 80.0, 93.75, 120.0, 150.0, 170.0])
def test_the_first_code_tells_the_tempo(codec: music_codec.MusicCodec, beats: float) -> None:
    told = BEATS[codec.encode(beating(beats))[0, 0] - SIZE]
    assert abs(np.log(told / beats)) < 0.05  # the next tempo that can be told is 4 % away


def test_a_held_note_has_no_tempo(codec: music_codec.MusicCodec) -> None:
    assert np.isnan(music_codec.tempo(torch.zeros(200, sum(music_codec.BANDS))))
    time = np.arange(round(SECONDS * RATE)) / RATE
    held = Audio((0.2 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), RATE)
    assert codec.encode(held)[0, 0] == SIZE + MUSIC_LEAD - 1


def test_the_colour_is_of_the_sound_and_not_of_the_tune(codec: music_codec.MusicCodec) -> None:
    plucked = {int(codec.encode(beating(93.75, pitch))[1, 0]) for pitch in (392.0, 440.0)}
    noise = np.random.default_rng(0).normal(0, 0.05, round(SECONDS * RATE)).astype(np.float32)
    assert int(codec.encode(Audio(noise, RATE))[1, 0]) not in plucked


@pytest.mark.parametrize("beats", [60, 90, 140])
def test_sound_keeps_to_its_first_frame_and_not_to_that_of_another(codec: music_codec.MusicCodec, beats: float) -> None:
    codes = codec.encode(beating(beats))
    latent = codec.latent(spectra(torch.from_numpy(codec.decode(codes).samples)[None]))
    nearest = torch.cdist(music_codec.overall(latent), codec.colours)[0].argsort()
    told = [codes.copy() for _ in nearest]
    for colour, one in zip(nearest, told, strict=True):
        one[1, 0] = SIZE + int(colour)
    fits = [codec.fit(one) for one in told]
    assert fits[:NEAR_COLOURS] == [1] * NEAR_COLOURS and fits == sorted(fits, reverse=True) and fits[NEAR_COLOURS] < 1
    faster, both = told[0].copy(), told[-1].copy()
    faster[0, 0] = both[0, 0] = SIZE + (codes[0, 0] - SIZE + 12) % len(BEATS)
    assert 0 <= codec.fit(both) < min(codec.fit(faster), fits[-1]) < 1


def test_a_beat_that_is_not_there_does_not_fit(codec: music_codec.MusicCodec) -> None:
    codes = codec.encode(beating(90))
    codes[0, 0] = SIZE + MUSIC_LEAD - 1
    assert codec.fit(codes) <= 0.5


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound):
        music_codec.load(tmp_path)


def test_the_synthesiser_sounds_as_its_closed_form_says() -> None:
    synthesiser = music_codec.Synthesiser()
    power = torch.zeros(1, 200, PITCHES)
    power[:, 40:160, 69 - LOWEST] = 0.04  # A4
    timbres = torch.zeros(1, 200, TIMBRES)
    timbres[..., 3] = 1
    noise = torch.full((1, 200, NOISES), 1e-9)
    noise[..., 7] = 1e-3
    score = Score(power, timbres, noise, power)
    with torch.inference_mode():
        expected = synthesiser.expected(score).clamp(min=music_codec.FLOOR).log10()
        found = spectra(synthesiser.play(score))
    # Noise is random and edges are ramps; both average out.
    assert (expected - found)[0, 50:150].abs().mean() < 0.1
    assert (expected - found)[0, 50:150].mean().abs() < 0.05


def test_spectra_of_a_sine_peak_at_its_pitch_with_its_power() -> None:
    time = torch.arange(RATE) / RATE
    found = spectra(0.1 * torch.sin(2 * torch.pi * 440 * time)[None])[0, 25]
    long = found[: music_codec.BANDS[0]]
    centres = np.geomspace(65.4, 0.47 * RATE, music_codec.BANDS[0])
    assert abs(12 * np.log2(centres[int(long.argmax())] / 440)) < 0.5
    assert long.max() == pytest.approx(-2, abs=0.15)  # 0.1 squared
    assert spectra(torch.zeros(1, RATE)).max() == pytest.approx(np.log10(music_codec.FLOOR))


def test_the_words_for_music_are_those_of_the_language() -> None:
    assert set(music_data.FAMILIES) == set(language.FAMILIES)
    assert tuple(music_data.TEMPI) == language.TEMPI
    assert set(music_data.MOODS) == set(language.MOODS)


def test_beats_of_clips_to_be_composed_fit_the_frames_of_the_codec() -> None:
    frame = SECONDS / MUSIC_FRAMES
    for bpm in music_data.TEMPI.values():
        assert (60 / bpm / frame) == pytest.approx(round(60 / bpm / frame))


def test_something_starts_on_every_beat_and_lively_is_louder_and_shorter() -> None:
    excerpt = music_data.Excerpt("a scale", "train", (60, 62, 64, 65, 67, 69, 71) * 2, (None,) * 14, ("C",) * 7)
    loudness, lengths = {}, {}
    for mood in music_data.MOODS:
        clip = music_data.Clip(excerpt, "piano", 0, music_data.FONTS[0], "medium", 93.75, mood, True)
        notes = music_data.notes(clip)
        beat = 60 / clip.bpm
        starts = {round(start / beat, 6) for start, *_ in notes}
        assert starts >= {float(k) for k in range(int(music_data.SECONDS / beat))}
        loudness[mood] = np.mean([velocity for *_, velocity in notes])
        lengths[mood] = np.mean([length for _, length, *_ in notes])
    assert loudness["lively"] > loudness["calm"] and lengths["lively"] < lengths["calm"]


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / music_codec.FILE).write_bytes((FOLDER / "image.safetensors").read_bytes())
    with pytest.raises(WeightsCorrupt, match="not the file that was expected"):
        music_codec.load(tmp_path)
