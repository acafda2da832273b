"""Reads sound from people: any format FFmpeg knows, checked, mono, at the rate a codec wants."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from models.errors import BadInput
from models.files import check_given

SHORTEST = 0.1  # seconds
SILENCE = 1e-3  # -60 dB: below, it is room noise and not a recording of something
CLIPPED = 0.01  # share of samples at full scale from which a sound is called clipped
SPEECH_SECONDS = 20.0  # of the model's window of about 80 (specification 11)
MUSIC_SECONDS = 5.0
RATES = (4_000, 384_000)  # Hz; beyond, the numbers of the file are nonsense
_PLAYLISTS = ("hls", "concat", "concatf", "dash", "tty", "image2", "lrc")

Source = str | Path | bytes | tuple[int, np.ndarray]


@dataclass(frozen=True)
class Audio:
    """samples: mono float32 (T,), mostly in [-1, 1]. rate: Hz. notes: what a listener should know of the source."""

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def int16(self) -> np.ndarray:
        """Samples (T,) for a sound file; a sound that goes beyond full scale is turned down, not cut."""
        peak = float(np.abs(self.samples).max(initial=1.0))
        return np.round(self.samples * (32767 / peak)).astype(np.int16)


def read_speech(source: Source, rate: int) -> Audio:
    """A recording of at most `SPEECH_SECONDS`. Raises `BadInput`: longer, shorter than a tenth, silent, damaged."""
    audio = _read(source, rate, SPEECH_SECONDS)
    if audio.seconds > SPEECH_SECONDS:
        raise BadInput(f"The recording is longer than {SPEECH_SECONDS:g} seconds. Speak a shorter sentence, or cut it.")
    return _checked(audio)


def read_music(source: Source, rate: int) -> Audio:
    """The first `MUSIC_SECONDS` of a piece; a note says so. Raises `BadInput`: too short, silent there, damaged."""
    audio = _read(source, rate, MUSIC_SECONDS)
    most = round(MUSIC_SECONDS * rate)
    if len(audio.samples) > most:
        audio = Audio(audio.samples[:most], rate, (f"Only the first {MUSIC_SECONDS:g} seconds are heard.",))
    return _checked(audio)


def already_read(value: Source | Audio, read: Callable[[Source, int], Audio], rate: int) -> Audio:
    """A sound as a codec wants it; what was read before at that rate is taken as it is."""
    if not isinstance(value, Audio):
        return read(value, rate)
    return value if value.rate == rate else read((value.rate, value.samples), rate)


def wav(audio: Audio) -> bytes:
    """A WAV file, 16 bits, mono."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.rate)
        file.writeframes(audio.int16().tobytes())
    return buffer.getvalue()


def _read(source: Source, rate: int, enough: float) -> Audio:
    """All of a sound, or the first `enough` seconds and a little more."""
    frames = _from_array(*source) if isinstance(source, tuple) else _decoded(source)
    blocks: list[np.ndarray] = []
    length = 0
    for block in _resampled(frames, rate):
        blocks.append(block)
        length += len(block)
        if length > (enough + 0.5) * rate:
            break
    return Audio(np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate)


def _checked(audio: Audio) -> Audio:
    if audio.seconds < SHORTEST:
        raise BadInput(f"The sound is {audio.seconds:.2f} seconds long; at least {SHORTEST:g} are needed.")
    if not np.isfinite(audio.samples).all():
        raise BadInput("The sound holds values that are not numbers. Save it again as 16-bit WAV.")
    loudness = np.abs(audio.samples)
    if loudness.max() < SILENCE:
        raise BadInput("The sound is silent. Check the microphone, or choose another file.")
    # Counted just under full scale: resampling moves flat tops a little.
    if (loudness > 0.98).mean() > CLIPPED:
        return Audio(audio.samples, audio.rate, (*audio.notes, "The sound is clipped: it was recorded too loudly."))
    return audio


def _resampled(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[np.ndarray]:
    """Mono blocks (T,). Channels are averaged here: FFmpeg's own mix is louder."""
    # The layout stays that of the source, so a file that changes it midway starts a new resampler.
    resampler: av.AudioResampler | None = None
    shape = None
    for frame in frames:
        if shape != (frame.layout.name, frame.sample_rate, frame.format.name):
            if resampler is not None:
                yield from map(_mono, resampler.resample(None))
            shape = (frame.layout.name, frame.sample_rate, frame.format.name)
            resampler = av.AudioResampler(format="fltp", layout=None, rate=rate)
        assert resampler is not None
        frame.pts = None
        yield from map(_mono, resampler.resample(frame))
    if resampler is not None:
        yield from map(_mono, resampler.resample(None))


def _mono(frame: av.AudioFrame) -> np.ndarray:
    return frame.to_ndarray().mean(0, dtype=np.float32)


def _decoded(source: str | Path | bytes) -> Iterator[av.AudioFrame]:
    check_given(source, "sound file")
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        # A demuxer may follow references to other files or addresses (playlists): only this file is read.
        with av.open(file, "r", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            if container.format.name in _PLAYLISTS:
                raise BadInput("Playlists and text files are not sounds. Use WAV, MP3, FLAC, OGG or M4A.")
            if not container.streams.audio:
                raise BadInput("The file has no sound. Use WAV, MP3, FLAC, OGG or M4A.")
            for frame in container.decode(audio=0):
                _check_rate(frame.sample_rate)
                yield frame
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInput(
            "The sound is damaged, or not a sound file. Use WAV, MP3, FLAC, OGG or M4A, or record it again."
        ) from error


def _from_array(rate: int, samples: np.ndarray) -> Iterator[av.AudioFrame]:
    """What a microphone widget gives: rate and (T,) or (T, channels) of integers or floats."""
    _check_rate(rate)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= 8):
        raise BadInput(f"An array of shape {samples.shape} is not a sound. Use (T,) or (T, channels).")
    if np.issubdtype(samples.dtype, np.unsignedinteger):
        middle = (np.iinfo(samples.dtype).max + 1) / 2
        values = (samples.astype(np.float64) - middle) / middle
    elif np.issubdtype(samples.dtype, np.integer):
        values = samples / (np.iinfo(samples.dtype).max + 1.0)
    elif np.issubdtype(samples.dtype, np.floating):
        values = samples
    else:
        raise BadInput(f"An array of {samples.dtype} is not a sound. Use integers or floats.")
    mono = (values if values.ndim == 1 else values.mean(1)).astype(np.float32)
    for low in range(0, len(mono), rate):
        frame = av.AudioFrame.from_ndarray(mono[None, low : low + rate], format="fltp", layout="mono")
        frame.sample_rate = rate
        yield frame


def _check_rate(rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise BadInput(f"The sound has {rate} samples a second; {RATES[0]} to {RATES[1]} can be read.")
