"""Two measures of music that know nothing of the codec: its tempo, and which family of instruments plays.

Tempo: librosa's onset strength and its autocorrelation, 50 to 180 beats a minute. Autocorrelation cannot tell a beat
from two; the octave rule is: the fastest regular pulse counts, that is the shortest lag whose peak reaches `ENOUGH` of
the highest. (All tunes here play their melody once a beat.)
Family: logistic regression on librosa's features, fitted to original renderings of training tunes. It never hears a
sound that went through the codec before it has to judge one.

Needs librosa and scikit-learn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.anygpt.audio import Audio
from models.anygpt.embedded import music_data
from models.anygpt.embedded.music_codec import RATE, SECONDS, MusicCodec, spectra

SLOWEST, FASTEST = 50.0, 180.0  # beats a minute
ENOUGH = 0.75
TOLERANCE = 0.15  # of the tempo asked for (the table)
HOP = 160


def tempo(audio: Audio) -> float:
    """Beats a minute; NaN where nothing starts."""
    import librosa

    strength = librosa.onset.onset_strength(
        y=audio.samples.astype(np.float32), sr=audio.rate, hop_length=HOP, n_fft=1024
    )
    frames = audio.rate / HOP
    strength = strength - strength.mean()
    longest = int(60 * frames / SLOWEST)
    # Unbiased: a lag of a second has only three seconds to be seen in.
    whole = np.correlate(strength, strength, "full")[len(strength) - 1 :]
    whole = whole[: longest + 2] / (len(strength) - np.arange(longest + 2))
    whole = np.convolve(np.pad(whole, 2, mode="edge"), [0.1, 0.2, 0.4, 0.2, 0.1], "valid")
    first = int(np.ceil(60 * frames / FASTEST))
    lags = np.arange(first, longest + 1)
    peaks = [lag for lag in lags if whole[lag] > 0 and whole[lag] >= max(whole[lag - 1], whole[lag + 1])]
    if not peaks:
        return float("nan")
    highest = max(whole[lag] for lag in peaks)
    lag = next(lag for lag in peaks if whole[lag] >= ENOUGH * highest)
    left, middle, right = whole[lag - 1], whole[lag], whole[lag + 1]
    curve = left - 2 * middle + right
    return 60 * frames / (lag + (0.5 * (left - right) / curve if curve < 0 else 0.0))


def right_tempo(heard: float, asked: float) -> bool:
    """Whether a tempo is within `TOLERANCE` of what was asked for."""
    return bool(abs(heard - asked) <= TOLERANCE * asked)


def features(audio: Audio) -> np.ndarray:
    """(n,) of timbre and of how notes begin and end; loudness does not matter, nor what is 45 dB below the loudest."""
    import librosa

    sound = audio.samples.astype(np.float32)
    power = np.abs(librosa.stft(sound, n_fft=1024, hop_length=256)) ** 2
    power = np.maximum(power, power.max() * 10**-4.5)
    mels = librosa.power_to_db(librosa.feature.melspectrogram(S=power, sr=audio.rate, n_mels=40, fmax=6000), top_db=45)
    level = librosa.power_to_db(power.sum(0), top_db=45)
    # Timbre is that of the louder half of the frames.
    loud = mels[:, level >= np.median(level)]
    shape = librosa.feature.mfcc(S=loud, n_mfcc=14)[1:]
    # How fast the sound swells and dies away, in all and in four parts of the spectrum, in dB a frame.
    parts = np.stack([level, *(librosa.power_to_db(part.sum(0), top_db=45) for part in np.array_split(power, 4))])
    moves = np.percentile(np.diff(parts, axis=1), (3, 10, 25, 50, 75, 90, 97), axis=1).ravel()
    return np.concatenate([shape.mean(1), loud.mean(1) - loud.mean(), moves])


class FamilyJudge:
    """Logistic regression over standardised features; small enough to be kept as JSON."""

    def __init__(
        self, families: tuple[str, ...], mean: np.ndarray, scale: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ):
        self.families, self.mean, self.scale, self.weight, self.bias = families, mean, scale, weight, bias

    @classmethod
    def fit(cls, found: np.ndarray, names: list[str]) -> FamilyJudge:
        """found: (clips, n) of `features`; names: the family of each."""
        from sklearn.linear_model import LogisticRegression

        mean, scale = found.mean(0), found.std(0) + 1e-6
        model = LogisticRegression(C=0.1, max_iter=2000).fit((found - mean) / scale, names)
        return cls(tuple(model.classes_), mean, scale, model.coef_, model.intercept_)

    def family(self, audio: Audio) -> str:
        return self.name(features(audio))

    def name(self, found: np.ndarray) -> str:
        """The family for features (n,)."""
        return self.families[int(np.argmax(self.weight @ ((found - self.mean) / self.scale) + self.bias))]

    def save(self, path: Path) -> None:
        numbers = {key: np.round(value, 5).tolist() for key, value in vars(self).items() if key != "families"}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"families": self.families, **numbers}) + "\n")

    @classmethod
    def load(cls, path: Path) -> FamilyJudge:
        values = json.loads(path.read_text())
        return cls(tuple(values.pop("families")), **{key: np.array(value) for key, value in values.items()})


def fit_family(folder: Path, every: int = 3) -> FamilyJudge:
    """A judge from original renderings of training clips, one in `every`."""
    clips, sounds = music_data.read(folder, "train")
    found = [features(_clip(sound)) for sound in sounds[::every]]
    return FamilyJudge.fit(np.stack(found), [clip.family for clip in clips[::every]])


def measure(codec: MusicCodec, judge: FamilyJudge, folder: Path) -> dict[str, Any]:
    """Held-out clips, as they are and through the codec: shares judged right, error of spectra, use of the codes."""
    clips, sounds = music_data.read(folder, "held_out")
    originals = [_clip(sound) for sound in sounds]
    codes = [codec.encode(audio) for audio in originals]
    decoded = [codec.decode(each) for each in codes]
    distance = [10 * (_spectra(a) - _spectra(b)).abs().mean().item() for a, b in zip(originals, decoded, strict=True)]
    layers = np.concatenate(codes, 1)
    return {
        "clips": len(clips),
        "original": _judged(clips, originals, judge),
        "through the codec": _judged(clips, decoded, judge),
        "spectral error, dB": round(float(np.mean(distance)), 2),
        "codes used": [len(np.unique(layer)) for layer in layers],
        "perplexity": [round(_perplexity(layer), 1) for layer in layers],
    }


def _judged(clips: Sequence[music_data.Clip], sounds: Sequence[Audio], judge: FamilyJudge) -> dict[str, Any]:
    """Shares in percent. tempo: within `TOLERANCE` of the true one. both: tempo and family."""
    tempi = [right_tempo(tempo(audio), clip.bpm) for clip, audio in zip(clips, sounds, strict=True)]
    families = [judge.family(audio) == clip.family for clip, audio in zip(clips, sounds, strict=True)]
    both = [a and b for a, b in zip(tempi, families, strict=True)]

    def by(attribute: str) -> dict[str, float]:
        names = [getattr(clip, attribute) for clip in clips]
        return {
            name: _percent([right for right, other in zip(both, names, strict=True) if other == name])
            for name in dict.fromkeys(names)
        }

    return {
        "tempo": _percent(tempi), "family": _percent(families), "both": _percent(both),
        **{f"both, by {attribute}": by(attribute) for attribute in ("family", "tempo", "mood")},
    }  # fmt: skip


def _percent(right: Sequence[bool]) -> float:
    return round(100 * float(np.mean(right)), 1)


def _perplexity(codes: np.ndarray) -> float:
    share = np.bincount(codes) / len(codes)
    return float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))


def _clip(sound: np.ndarray) -> Audio:
    return Audio(sound[: round(SECONDS * RATE)].astype(np.float32) / 32768, RATE)


def _spectra(audio: Audio) -> torch.Tensor:
    return spectra(torch.from_numpy(audio.samples)[None])
