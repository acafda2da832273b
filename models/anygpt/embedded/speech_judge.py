"""An independent listener: Whisper tiny.en, whole, through faster-whisper (recipe only), and the word error rate."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np

from models.anygpt.audio import Audio
from models.anygpt.embedded import language
from models.anygpt.embedded.speech_whisper import tiny_en

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SPELLINGS = {"color": "colour", "neighbor": "neighbour"}  # the miniature writes British English


class Listener:
    """Writes down what it hears."""

    def __init__(self) -> None:
        from faster_whisper import WhisperModel

        from models.pdiff.threads import one_thread

        logging.getLogger("faster_whisper").setLevel(logging.ERROR)
        with one_thread():  # it would leave PyTorch its one thread
            self._whisper = WhisperModel(str(tiny_en()), device="cpu", compute_type="float32", cpu_threads=1)

    def words(self, audio: Audio) -> list[str]:
        """The words of a clip at 16 kHz, as `language.plain` has them; numbers are spelled out."""
        padded = np.pad(audio.samples, (4000, 8000)).astype(np.float32)
        pieces, _ = self._whisper.transcribe(padded, beam_size=5, language="en", condition_on_previous_text=False)
        return normalised(" ".join(piece.text for piece in pieces))


def normalised(text: str) -> list[str]:
    """Words without the choices of spelling that cannot be heard."""
    text = re.sub(r"\d+", lambda found: f" {_number(found.group())} ", text)
    return [_SPELLINGS.get(word, word) for word in language.plain(text.replace("-", " ")).split()]


def error_rate(heard: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> float:
    """Insertions, deletions and replacements, over the words that were said."""
    wrong = sum(distance(one, other) for one, other in zip(heard, right, strict=True))
    return wrong / sum(map(len, right))


def distance(one: Sequence, other: Sequence) -> int:
    """Insertions, deletions and replacements between two sequences (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def _number(digits: str) -> str:
    return _NUMBERS[int(digits)] if int(digits) < len(_NUMBERS) else digits
