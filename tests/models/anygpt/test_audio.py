"""Sounds of every kind, as real files."""

import io
import wave

import av
import numpy as np
import pytest

from models.anygpt import audio
from models.anygpt.audio import Audio, read_music, read_speech
from models.errors import BadInput


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, codec: str, container: str) -> bytes:
    """samples: (channels, T) float32."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        layout = {1: "mono", 2: "stereo"}[len(samples)]
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format.name, layout, rate, frame_size=stream.frame_size or None)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def pitch(sound: Audio) -> float:
    spectrum = np.abs(np.fft.rfft(sound.samples * np.hanning(len(sound.samples))))
    return float(spectrum.argmax() * sound.rate / len(sound.samples))


@pytest.mark.parametrize(
    ("codec", "container", "rate"),
    [
        ("pcm_s16le", "wav", 16000), ("pcm_u8", "wav", 8000), ("pcm_f32le", "wav", 96000), ("flac", "flac", 44100),
        ("mp3", "mp3", 44100), ("libopus", "ogg", 48000), ("aac", "adts", 22050), ("libopus", "webm", 48000),
    ],
)  # fmt: skip
def test_any_format_and_rate(codec, container, rate, tmp_path):
    path = tmp_path / "sound.bin"
    path.write_bytes(encoded(tone(1.5, rate)[None], rate, codec, container))
    for source in (path, path.read_bytes()):
        sound = read_speech(source, 16000)
        assert sound.rate == 16000
        assert sound.samples.dtype == np.float32
        assert abs(sound.seconds - 1.5) < 0.1
        assert abs(pitch(sound) - 440) < 2
        assert abs(np.abs(sound.samples).max() - 0.5) < 0.06
        assert sound.notes == ()


def test_a_file_at_the_wanted_rate_keeps_every_sample():
    samples = tone(16001 / 16000, 16000)
    sound = read_speech(encoded(samples[None], 16000, "pcm_f32le", "wav"), 16000)
    np.testing.assert_array_equal(sound.samples, samples)


def test_channels_are_averaged():
    left, right = tone(1, 16000, 300, 0.4), tone(1, 16000, 500, 0.4)
    data = encoded(np.stack([left, right]), 16000, "pcm_f32le", "wav")
    np.testing.assert_allclose(read_speech(data, 16000).samples, (left + right) / 2, atol=1e-6)
    both = np.stack([left, right], 1)
    np.testing.assert_allclose(read_speech((16000, both), 16000).samples, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_microphone_arrays(dtype):
    samples = tone(2.5, 48000)
    if np.issubdtype(dtype, np.unsignedinteger):
        values = np.round(samples * 127 + 128).astype(dtype)
    elif np.issubdtype(dtype, np.integer):
        values = (samples * np.iinfo(dtype).max).astype(dtype)
    else:
        values = samples.astype(dtype)
    sound = read_speech((48000, values), 16000)
    assert abs(len(sound.samples) - 40000) <= 2
    assert abs(pitch(sound) - 440) < 2
    assert abs(np.abs(sound.samples).max() - 0.5) < 0.02


def test_music_is_the_first_five_seconds():
    early = np.concatenate([tone(5, 8000, 300), tone(5, 8000, 900)])
    sound = read_music((8000, early), 32000)
    assert len(sound.samples) == 160_000
    assert abs(pitch(sound) - 300) < 2
    assert sound.notes == ("Only the first 5 seconds are heard.",)
    assert read_music((8000, early[:30000]), 32000).notes == ()


def test_an_hour_is_refused_without_reading_it(monkeypatch):
    decoded = []
    real = audio._mono
    monkeypatch.setattr(audio, "_mono", lambda frame: decoded.append(frame.samples) or real(frame))
    hour = np.zeros((3600 * 8000,), np.int16)
    hour[::100] = 9000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(hour.tobytes())
    with pytest.raises(BadInput, match="longer than 20 seconds"):
        read_speech(buffer.getvalue(), 16000)
    assert sum(decoded) < 25 * 16000


def test_a_clipped_sound_is_taken_with_a_note():
    loud = np.clip(tone(1, 16000, level=3.0), -1, 1)
    sound = read_speech((16000, loud), 16000)
    assert "clipped" in sound.notes[0]
    assert read_speech((16000, loud * 0.5), 16000).notes == ()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ((16000, np.zeros(16000, np.float32)), "silent"),
        ((16000, np.zeros(0, np.int16)), "0.00 seconds"),
        ((16000, tone(0.05, 16000)), "0.05 seconds"),
        ((16000, np.full(16000, np.nan)), "not numbers"),
        ((100, tone(1, 16000)), "100 samples a second"),
        ((16000, np.zeros((16000, 20))), "shape"),
        ((16000, np.array(["a"] * 10)), "<U1"),
        (b"", "empty"),
        (b"RIFF" + bytes(100), "damaged"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "damaged|Playlists"),
        ("nowhere.wav", "no sound file called 'nowhere.wav'"),
    ],
)
def test_what_cannot_be_used_is_refused(source, said):
    with pytest.raises(BadInput, match=said):
        read_speech(source, 16000)


def test_a_cut_off_file_and_a_silent_picture_are_refused(tmp_path):
    from fractions import Fraction

    from models import video

    data = encoded(tone(3, 44100)[None], 44100, "flac", "flac")
    with pytest.raises(BadInput, match="damaged|seconds long"):
        read_speech(data[:60], 16000)
    path = tmp_path / "mute.mp4"
    with video.Writer(path, 64, 48, Fraction(25)) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(BadInput, match="no sound"):
        read_speech(path, 16000)


def test_wav_out_is_turned_down_rather_than_cut():
    loud = Audio(tone(0.5, 32000, level=2.0), 32000)
    back = read_music(audio.wav(loud), 32000)
    np.testing.assert_allclose(back.samples, loud.samples / np.abs(loud.samples).max(), atol=1e-4)
    quiet = Audio(tone(0.5, 32000, level=0.25), 32000)
    np.testing.assert_allclose(read_music(audio.wav(quiet), 32000).samples, quiet.samples, atol=1e-4)
