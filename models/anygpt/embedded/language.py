"""The small world of the miniature AnyGPT: its things, colours and music, and the sentences people say about them.

About three hundred words. Everything else (captions, spoken sentences, dialogues) is made from the tables here, by
seed, and every sentence belongs to one side of a fixed split.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]
Speaker = Literal["user", "bot"]

# What six or more emoji vendors draw alike.
OBJECTS = (
    "apple", "banana", "pear", "lemon", "strawberry", "cherry", "elephant", "mushroom", "tree", "flower",
    "cat", "dog", "rabbit", "turtle", "whale", "butterfly", "car", "bus", "boat", "rocket",
    "balloon", "house", "ball", "heart", "star", "moon", "umbrella", "hat", "book", "bell",
    "guitar", "key",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
FAMILIES = ("piano", "guitar", "violin", "flute")
TEMPI = ("slow", "medium", "fast")
MOODS = ("calm", "lively")

SLOTS: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "object": OBJECTS,
    "family": FAMILIES,
    "tempo": TEMPI,
    "mood": MOODS,
    "size": ("big", "small", "little", "old", "new", "beautiful", "bright", "clean", "heavy", "strange"),
    "person": ("mother", "father", "sister", "brother", "friend", "teacher", "baby", "doctor", "neighbour", "family"),
    "place": (
        "in the garden", "in the kitchen", "in the park", "at school", "in the city", "on the street", "by the river",
        "on the beach", "in the forest", "on the mountain", "near the shop", "at the station", "under the table",
        "behind the door", "near the window", "in my room", "on the grass", "under the bridge", "in the sky",
    ),
    "time": (
        "today", "tomorrow", "now", "in the morning", "in the evening", "at night", "every day", "after lunch",
        "before dinner", "again", "this week", "next year", "on monday", "on tuesday", "on wednesday", "on thursday",
        "on friday", "on saturday", "on sunday", "in summer", "in winter", "in spring",
    ),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"),
    "verb": ("see", "find", "want", "like", "love", "need", "have", "bring", "buy", "remember", "know", "keep"),
    "activity": (
        "sing a song", "read a story", "go home", "drink some water", "eat fresh bread", "cook dinner", "go for a walk",
        "sleep well", "dance together", "work hard", "play a game", "open the box", "close the door", "write a letter",
        "watch the rain", "learn more words", "wait a minute", "listen to the wind", "make hot tea", "call the doctor",
        "visit my friend", "turn off the light", "run very fast", "swim in the sea",
    ),
    "weather": ("sunny", "cloudy", "windy", "cold", "warm", "dark", "quiet", "rainy"),
    "feeling": ("happy", "sad", "tired", "hungry", "ready", "busy", "fine", "sorry", "late", "glad"),
    "phrase": (
        "good morning", "good evening", "good night", "hello", "hello my friend", "thank you", "thank you very much",
        "goodbye", "see you tomorrow", "see you soon", "have a nice day", "how are you", "nice to meet you", "welcome",
        "happy birthday", "good luck", "well done", "yes please", "no thank you", "of course", "let us go",
        "i am here", "sleep well", "come back soon",
    ),
}  # fmt: skip

# {a_thing} is "a red apple" or "an apple", {music} is "slow calm piano music" or part of it.
REQUESTS = (
    "draw {a_thing}",
    "please draw {a_thing}",
    "can you draw {a_thing} for me",
    "show me {a_thing}",
    "make a picture of {a_thing}",
    "i want a picture of {a_thing}",
    "play something {mood}",
    "play {music}",
    "please play some {music}",
    "i want to hear {music}",
    "can you play {music} for me",
    "draw {a_thing} and play something {mood}",
    "draw {a_thing} and play {music}",
    "show me {a_thing} and play {music}",
    "play {music} and draw {a_thing}",
    "say {phrase}",
    "please say {phrase}",
    "say {phrase} and draw {a_thing}",
    "what is in this picture",
    "what is this",
    "what do you see",
    "what do you see here",
    "what colour is this {object}",
    "what do you hear",
    "describe this picture",
    "describe this music",
    "how does this music sound",
    "which instrument is this",
    "is this music fast or slow",
    "what music goes with this picture",
    "play music that goes with this picture",
    "draw a picture that goes with this music",
    "what could this sound like",
    "how does {music} sound",
    "which instrument plays {music}",
    "which {object} goes with {music}",
    "describe the {size} {object} {place}",
    "is it {a_thing} or {a_thing}",
    "is this {object} {colour} or {colour}",
    "could this be {music}",
)
REPLIES = (
    "here is {a_thing}",
    "this is {a_thing}",
    "i see {a_thing}",
    "i see {a_thing} in the picture",
    "it is {a_thing}",
    "here is {music}",
    "this is {music}",
    "i hear {music}",
    "here is {a_thing} and {music}",
    "i see {a_thing} so here is {music}",
    "i hear {music} so here is {a_thing}",
    "the {object} is {colour}",
    "{phrase}",
    "of course here is {a_thing}",
    "with pleasure here is {music}",
    "yes it is {a_thing}",
    "no it is {a_thing}",
    "this {object} goes with {music}",
    "it does sound {mood} and {tempo}",
    "the instrument is a {family}",
)
STATEMENTS = (
    "the {size} {colour} {object} is {place}",
    "my {person} has {a_thing}",
    "my {person} is {feeling} {time}",
    "i am {feeling} {time}",
    "are you {feeling} {time}",
    "we {verb} {a_thing} {place}",
    "they {verb} {music} {time}",
    "i {verb} this {size} {object}",
    "do you {verb} my {size} {colour} {object}",
    "let us {activity} {time}",
    "i will {activity} with my {person}",
    "can we {activity} {time}",
    "your {person} can {activity} {place}",
    "it is {weather} {place} {time}",
    "there are {number} people {place}",
    "{number} and {number} children {activity}",
    "he has {number} {colour} things {place}",
    "she said {phrase} to her {person}",
    "where is the {size} {object}",
    "why is the {object} {colour}",
    "his {person} plays {music} {time}",
    "is it {weather} and {weather} {place}",
    "welcome back my {feeling} {person}",
    "no luck {time} but come back soon",
    "it is very nice to meet your {person}",
    "yes my {person} has a birthday {time}",
    "how much more {weather} can it be {time}",
    "goodbye my {person} and well done",
)


@dataclass(frozen=True)
class Sentence:
    """text: lower case, no punctuation, as it is spoken."""

    text: str
    speaker: Speaker
    split: Split


def split_of(text: str) -> Split:
    """The side of the split a sentence is on: one in ten is held out, whoever generates it and whenever."""
    return "held_out" if hashlib.sha256(plain(text).encode()).digest()[0] < 26 else "train"


def plain(text: str) -> str:
    """A sentence as the spoken tables have it: lower case, without punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def written(text: str) -> str:
    """A spoken sentence as a person writes it: a capital and a stop or question mark."""
    first, *rest = [word if word != "i" else "I" for word in text.split()]
    asks = first in {"what", "which", "where", "why", "how", "is", "are", "do", "can"} and text != "how are you"
    return " ".join([first[0].upper() + first[1:], *rest]) + ("?" if asks or text == "how are you" else ".")


def a(thing: str) -> str:
    """With its article."""
    return ("an " if thing[0] in "aeiou" else "a ") + thing


def picture_captions(thing: str, colour: str = "") -> list[str]:
    """Wordings for one picture; the first is the plain one."""
    named = a(f"{colour} {thing}".strip())
    return [named, f"a picture of {named}", f"a drawing of {named}", f"this is {named}", f"i see {named}"]


def music_captions(family: str, tempo: str, mood: str) -> list[str]:
    """Wordings for one piece of music; the first is the plain one."""
    return [
        f"{tempo} {mood} {family} music",
        f"{mood} {tempo} {family} music",
        f"{mood} {family} music at a {tempo} tempo",
        f"a {tempo} and {mood} piece for {family}",
        f"{mood} {family} music that is {tempo}",
        f"{tempo} music for {family} that sounds {mood}",
    ]


def sentences(count: int = 1500, seed: int = 0) -> list[Sentence]:
    """Different sentences, most of three to ten words; the same for the same arguments.

    Patterns and the fillings of each slot come up by turns, so every word is spoken often.
    """
    decks = Decks(seed)
    groups: list[tuple[Speaker, Sequence[str]]] = [
        ("user", REQUESTS), ("bot", REPLIES), ("user", STATEMENTS), ("bot", STATEMENTS),
    ]  # fmt: skip
    found: dict[str, Sentence] = {}
    for number in itertools.count():
        speaker, patterns = groups[number % len(groups)]
        text = decks.fill(decks.draw(patterns))
        found.setdefault(text, Sentence(text, speaker, split_of(text)))
        if len(found) >= count:
            return list(found.values())
        if number > 100 * count:
            raise ValueError(f"there are fewer than {count} sentences")
    raise AssertionError  # the count never ends


class Decks:
    """Random choices that come up equally often: each table is shuffled and dealt out, then shuffled again."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._decks: dict[Sequence[str], Iterator[str]] = {}

    def draw(self, table: Sequence[str]) -> str:
        if table not in self._decks:
            self._decks[table] = self._deal(table)
        return next(self._decks[table])

    def fill(self, pattern: str) -> str:
        """A pattern with every slot filled."""
        pieces = []
        for literal, slot, _, _ in string.Formatter().parse(pattern):
            pieces.append(literal)
            if slot == "a_thing":
                pieces.append(self.a_thing())
            elif slot == "music":
                pieces.append(self.music())
            elif slot:
                pieces.append(self.draw(SLOTS[slot]))
        return "".join(pieces)

    def a_thing(self) -> str:
        """With a colour three times out of four."""
        thing = self.draw(OBJECTS)
        return a(f"{self.draw(COLOURS)} {thing}" if self.random.random() < 0.75 else thing)

    def music(self) -> str:
        """All three words, or some of them, in the order people use."""
        form = self.draw(("{tempo} {mood} {family} music", "{mood} {family} music", "{tempo} {family} music",
                          "{tempo} {mood} music", "{mood} music"))  # fmt: skip
        return form.format(tempo=self.draw(TEMPI), mood=self.draw(MOODS), family=self.draw(FAMILIES))

    def _deal(self, table: Sequence[str]) -> Iterator[str]:
        while True:
            yield from self.random.sample(table, len(table))
