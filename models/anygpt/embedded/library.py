"""The media of the miniature's domain as codes, in the order a lesson asks for them: what the codecs' recipes wrote."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.anygpt.embedded.language import OBJECTS, Split, plain, split_of
from models.errors import WeightsNotFound

FAMILY_WORDS = {"strings": "violin"}  # the music recipe's name of a family, and the word people say
HELD_OUT_VOICE = "flite-slt"
SLIPS = 0.06  # of the codes of a made-up utterance are heard wrongly

Thing = tuple[str, str]  # (thing, colour); the colour may be ""
Sound = tuple[str, str, str]  # family, tempo, mood
Codes = np.ndarray  # (layers, n)
Spell = Callable[[str], list[list[int]]]


@dataclass
class Library:
    """One side of the split. heard: utterances by sentence. said: the own voice's by sentence.

    spell: the codes of each word of any sentence as the own voice would say it, for what nobody recorded.
    """

    pictures: dict[Thing, list[Codes]] = field(default_factory=dict)
    composed: dict[Sound, list[Codes]] = field(default_factory=dict)  # may be asked for
    listened: dict[Sound, list[Codes]] = field(default_factory=dict)  # only heard: other tempi, cut anywhere
    heard: dict[str, list[Codes]] = field(default_factory=dict)
    said: dict[str, Codes] = field(default_factory=dict)
    spell: Spell | None = None

    @cached_property
    def recorded(self) -> tuple[str, ...]:
        """The sentences that somebody was recorded saying."""
        return tuple(sorted(self.heard))

    @cached_property
    def things(self) -> tuple[Thing, ...]:
        return tuple(sorted(self.pictures))

    @cached_property
    def lexicon(self) -> dict[str, list[list[int]]]:
        """The codes of every word, as they are in sentences; none without `spell`."""
        found: dict[str, list[list[int]]] = defaultdict(list)
        if self.spell is None:
            return {}
        for text in sorted(self.said):
            spelled = self.spell(text)
            if len(spelled) == len(text.split()):
                for word, codes in zip(text.split(), spelled, strict=True):
                    found[word].append(codes)
        return dict(sorted(found.items()))

    def picture(self, rng: random.Random, thing: str, colour: str = "") -> Codes:
        return rng.choice(self.pictures[thing, colour])

    def music(self, rng: random.Random, wish: Callable[[Sound], bool], heard: bool = False) -> tuple[Sound, Codes]:
        """A piece that fulfils a wish; of those to be heard as well, or only of those to be composed."""
        table = self.listened if heard and self.listened else self.composed
        sound = rng.choice(sorted(key for key in table if wish(key)))
        return sound, rng.choice(table[sound])

    def speech(self, text: str) -> Codes:
        """What the own voice says; one reading a sentence, so that it can be learnt."""
        text = plain(text)
        if text in self.said:
            return self.said[text]
        return np.array([self._spelled(text)])

    def utterance(self, rng: random.Random, text: str) -> Codes:
        """What somebody says: a recording, or else the spelling with slips of the ear."""
        text = plain(text)
        if text in self.heard:
            return rng.choice(self.heard[text])
        return np.array([slips(rng, self._spelled(text))])

    def can_say(self, text: str) -> bool:
        return self.spell is not None or plain(text) in self.said

    def _spelled(self, text: str) -> list[int]:
        if self.spell is None:
            raise KeyError(text)
        return [code for word in self.spell(text) for code in word]


def read(folder: Path, split: Split, spell: Spell | None = None) -> Library:
    """What the codecs' recipes left in a folder; each of image.jsonl, speech.jsonl and music.jsonl may be absent.

    Sentences of the other side of the split are left out, those with words from outside of the domain and, for
    training, the voice that is held out.

    Raises:
        WeightsNotFound: there is none of the three.
    """
    files = [folder / f"{medium}.jsonl" for medium in ("image", "speech", "music")]
    if not any(file.exists() for file in files):
        raise WeightsNotFound(f"{folder.name} holds no codes. Run the recipes of the three codecs first.")
    pictures: dict[Thing, list[Codes]] = defaultdict(list)
    heard: dict[str, list[Codes]] = defaultdict(list)
    composed: dict[Sound, list[Codes]] = defaultdict(list)
    listened: dict[Sound, list[Codes]] = defaultdict(list)
    said: dict[str, Codes] = {}
    for row in _rows(files[0], split):
        if row["object"] in OBJECTS:
            pictures[row["object"], row["color"]].append(np.array([row["codes"]]).reshape(1, -1))
    for row in _rows(files[1], split):
        text, codes = plain(row["text"]), np.array([row["codes"]]).reshape(1, -1)
        if (
            row.get("kind") == "other"
            or split_of(text) != split
            or (row["voice"] == HELD_OUT_VOICE and split == "train")
        ):
            continue
        if row["use"] == "out":
            said[text] = codes
        else:
            heard[text].append(codes)
    for row in _rows(files[2], split):
        sound = (FAMILY_WORDS.get(row["family"], row["family"]), row["tempo"], row["mood"])
        codes = np.array(row["codes"])
        listened[sound].append(codes)
        if row.get("use", "out") == "out":
            composed[sound].append(codes)
    return Library(dict(pictures), dict(composed), dict(listened), dict(heard), said, spell)


def _rows(file: Path, split: Split) -> Iterator[dict[str, Any]]:
    lines: Iterable[str] = file.read_text(encoding="utf-8").splitlines() if file.exists() else ()
    return (row for row in map(json.loads, lines) if row["split"] == split)


def slips(rng: random.Random, codes: Sequence[int]) -> list[int]:
    """Codes as an ear makes mistakes: some are taken for another, some are not heard; at least one is left."""
    heard = [rng.choice(codes) if rng.random() < SLIPS else code for code in codes]
    return [code for code in heard if rng.random() >= SLIPS / 2] or heard


def speller() -> Spell:
    """The own voice's pronunciation rules. Needs hibari-tts (recipe only)."""
    from models.anygpt.embedded import speech_data

    return cache(speech_data.spelled)
