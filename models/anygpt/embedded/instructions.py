"""A miniature AnyInstruct: tasks in both directions for every medium, and conversations that interleave them.

Made as the paper's data were (section 3.3; specification 8.2), with tables in the place of GPT-4 and the codecs' own
data in the place of DALL-E 3, MusicGen and a text-to-speech service: at most one piece of music and two pictures in a
conversation, short utterances, and where a picture becomes music or the other way round, the reply first says what was
understood. Everything follows from a seed.

    python -m models.anygpt.embedded.instructions        # the sample of 100 in assets/anygpt/instructions_sample.jsonl
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from models.anygpt import templates
from models.anygpt.embedded import language
from models.anygpt.embedded.language import COLOURS, FAMILIES, MOODS, OBJECTS, TEMPI, Decks, a, plain, written
from models.anygpt.embedded.library import Codes, Library, Sound, slips
from models.anygpt.streams import Part, flatten
from models.anygpt.templates import DEFAULT_TEMPLATE, TEMPLATES, Piece
from models.anygpt.vocabulary import Medium, Vocabulary

SAMPLE = Path("assets/anygpt/instructions_sample.jsonl")
ANSWERS = {
    "hello": "hello my friend",
    "hello my friend": "hello",
    "good morning": "good morning",
    "good evening": "good evening",
    "good night": "good night sleep well",
    "how are you": "i am fine thank you",
    "thank you": "you are welcome",
    "thank you very much": "you are welcome",
    "goodbye": "goodbye see you soon",
    "see you tomorrow": "see you tomorrow",
    "nice to meet you": "nice to meet you",
    "happy birthday": "thank you very much",
    "have a nice day": "thank you",
}
LOOKING = (
    "what is in this picture",
    "what is this",
    "what do you see",
    "what do you see here",
    "describe this picture",
)
LISTENING = ("what do you hear", "describe this music", "how does this music sound")
TO_MUSIC = ("what music goes with this picture", "play music that goes with this picture", "what could this sound like")
TO_PICTURE = ("draw a picture that goes with this music",)
OPENING, BEATS = 2, 26  # tokens of music: the first frame, which tells of the whole; that and a second of sound
_THING = re.compile(rf"\ban? (?:({'|'.join(COLOURS)}) )?({'|'.join(OBJECTS)})\b")


@dataclass(frozen=True)
class Exchange:
    """A user's message and the reply to it, as pieces."""

    user: tuple[Piece, ...]
    bot: tuple[Piece, ...]


@dataclass(frozen=True)
class Wish:
    """What a request asks for: things to draw, and words about music; `phrase` is to be said."""

    thing: tuple[str, str] | None = None
    music: tuple[str, ...] | None = None
    phrase: str = ""


@cache
def wish(text: str) -> Wish:
    """What a request in the words of `language.REQUESTS` asks to be made."""
    text = plain(text)
    said = re.match(r"(?:please )?say (.*?)(?: and draw .*)?$", text)
    drawn = _THING.search(text) if re.search(r"\b(draw|show|picture of)\b", text) else None
    plays = re.search(r"\b(play|hear)\b(.*?)(?: and draw .*)?$", text)
    about = tuple(w for w in plays[2].split() if w in (*TEMPI, *MOODS, *FAMILIES)) if plays else ()
    return Wish((drawn[2], drawn[1] or "") if drawn else None, about or None, said[1] if said else "")


def goes_with(thing: str) -> str:
    """The mood of a thing: what music suits its picture, and the other way round."""
    return MOODS[OBJECTS.index(thing) % len(MOODS)]


class Author:
    """Writes conversations; each method but the last is one kind of them."""

    def __init__(self, library: Library, vocabulary: Vocabulary, split: language.Split, seed: int) -> None:
        self.library, self.vocabulary, self.split = library, vocabulary, split
        self.random, self.decks = random.Random(seed), Decks(seed)
        self._spoken_requests = tuple(text for text in library.recorded if self._can_make(wish(text)))
        self.ready = kinds(self)

    # Single tasks, with the published prompts.

    def draw(self) -> list[Exchange]:
        thing, colour = self._thing()
        caption = self._wording(language.picture_captions(thing, colour))
        return [self._task("Text-to-Image Generation", [self._image(thing, colour)], text=caption)]

    def caption(self) -> list[Exchange]:
        thing, colour = self._thing()
        task = self.random.choice(("Image Captioning", "Image-to-Text Caption"))
        said = written(language.picture_captions(thing, colour)[0])
        return [self._task(task, [said], self._image(thing, colour))]

    def look(self) -> list[Exchange]:
        """Questions about one or two pictures."""
        (thing, colour), (other, its) = self._thing(), self._thing()
        picture, second = self._image(thing, colour), self._image(other, its)
        form = self.random.choice(("object", "colour", "second", "change"))
        if form == "second":
            number, answer = self.random.choice((("first", (thing, colour)), ("second", (other, its))))
            content = templates.message(
                "Multi-Image Understanding",
                [picture, second, Part("text", f"What is in the {number} picture?")],
            )
            return [Exchange(tuple(content), (written(_named("i see ", answer)),))]
        if form == "change" and colour:
            new = self.random.choice([c for c in COLOURS if c != colour and (thing, c) in self.library.pictures])
            ask = self.random.choice((f"Make it {new}.", f"Now in {new}.", f"Draw it in {new}."))
            reply = self._image(thing, new)
            return [self._task("Multimodal Prompt Image Generation", [reply], picture, text=ask)]
        asked, word = ("What colour is it?", colour) if form == "colour" and colour else ("What is this?", thing)
        return [self._task("Image QA", [word], picture, text=asked)]

    def read_aloud(self) -> list[Exchange]:
        text = self._sentence()
        shown = self.random.choice((text, written(text)))
        return [self._task("Text-to-Speech", [self._said(text)], text=shown)]

    def transcribe(self) -> list[Exchange]:
        text = self.decks.draw(self.library.recorded) if self.library.recorded else self._sentence()
        return [self._task("Speech-to-Text", [text], self._heard(text))]

    def compose(self) -> list[Exchange]:
        sound, codes = self.library.music(self.random, lambda _: True)
        caption = self._wording(language.music_captions(*sound))
        return [self._task("Text-to-Music", [self._part("music", codes)], text=caption)]

    def describe(self) -> list[Exchange]:
        sound, codes = self.library.music(self.random, lambda _: True, heard=True)
        said = written(language.music_captions(*sound)[0])
        return [self._task("Music-to-Text", [said], self._part("music", codes))]

    # Conversations.

    def ask(self) -> list[Exchange]:
        """Text in; text and what it asks for come back. A second round may go on from the first."""
        text = self._request()
        first = self._answered(text)
        content = templates.message("interleaved", [Part("text", self.random.choice((text, written(text))))])
        turns = [Exchange(tuple(content), tuple(first))]
        wanted = wish(text)
        if wanted.thing and not wanted.music and self.random.random() < 0.5:
            thing, colour = wanted.thing
            new = self.random.choice([c for c in COLOURS if c != colour and (thing, c) in self.library.pictures])
            more = self.random.choice((f"And a {new} one?", f"Now a {new} one.", f"Make it {new}."))
            reply = (written(f"here is {a(f'{new} {thing}')}"), " ", self._image(thing, new))
            turns.append(Exchange((more,), reply))
        return turns

    def speak(self) -> list[Exchange]:
        """Speech in; what was heard, a reply, the same aloud, and what was asked for."""
        while True:
            form = self.random.random()
            made: list[Part] = []
            if form < 0.25:
                text, answer = self.random.choice(sorted(ANSWERS.items()))
            else:
                recorded = form < 0.6 and self._spoken_requests
                text = self.decks.draw(self._spoken_requests) if recorded else self._request()
                wanted = wish(text)
                answer, made = self._reply(wanted), self._media(wanted)
            if self._may_be_spoken(text, answer):
                return [self._spoken([], text, answer, made)]

    def show_and_ask(self) -> list[Exchange]:
        """A picture and a question, typed or spoken; the answer, or music that suits it."""
        thing, colour = self._thing()
        picture = self._image(thing, colour)
        music: list[Part] = []
        if self.random.random() < 0.5:
            question, answer = self.random.choice(LOOKING), _named("i see ", (thing, colour))
        else:
            mood = goes_with(thing)
            question = self.random.choice(TO_MUSIC)
            answer = _named("i see ", (thing, colour)) + f" so here is {mood} music"
            music = [self._music((mood,))]
        return [self._either([picture], question, answer, music)]

    def play_and_ask(self) -> list[Exchange]:
        """Music and a question, typed or spoken; the answer, or a picture that suits it."""
        sound, codes = self.library.music(self.random, lambda _: True, heard=True)
        piece = self._part("music", codes)
        family, tempo, mood = sound
        drawn: list[Part] = []
        form = self.random.random()
        if form < 0.35:
            question, answer = self.random.choice(LISTENING), f"i hear {tempo} {mood} {family} music"
        elif form < 0.5:
            question, answer = "which instrument is this", f"the instrument is a {family}"
        elif form < 0.6:
            question, answer = "is this music fast or slow", f"it is {tempo}"
        else:
            suits = [pair for pair in self.library.things if goes_with(pair[0]) == mood]
            thing, colour = self.random.choice(suits)
            question = self.random.choice(TO_PICTURE)
            answer = f"i hear {mood} {family} music so here is {_named('', (thing, colour))}"
            drawn = [self._image(thing, colour)]
        return [self._either([piece], question, answer, drawn)]

    def base(self) -> list[tuple[tuple[Piece, ...], tuple[Piece, ...]]]:
        """A pair in the base model's form, without a system line: (prompt, target)."""
        source, target = self.random.choice(sorted(templates.INSTRUCTIONS))
        thing, colour = self._thing()
        sound, codes = self.library.music(self.random, lambda _: True)
        text = self._sentence()
        medium = source if source != "text" else target
        media, caption = {
            "image": lambda: (self._image(thing, colour), written(_named("", (thing, colour)))),
            "music": lambda: (self._part("music", codes), written(language.music_captions(*sound)[0])),
            "speech": lambda: (self._heard(text) if source == "speech" else self._said(text), text),
        }[medium]()
        written_part = Part("text", caption)
        given, wanted = (media, written_part) if source == medium else (written_part, media)
        return [
            (tuple(templates.base_prompt(source, target, given)), tuple(templates.base_target([wanted]))),
        ]

    def document(self, text_first: bool, pairs: int = 60) -> list[tuple[Piece, Part]]:
        """Words and what they are in one medium, by turns, as interleaved pages have them: (text, part).

        Words of speech are in any order, so that they have to be listened to and read: what people say in this small
        world is easily guessed. Music that follows its caption is only begun, so that a page has many captions.
        """
        kind = self.random.random()
        if kind < 0.2 and self.library.pictures:
            return self.captioned_pictures(pairs)
        if kind > 0.8 and self.library.composed:
            return self.captioned_music(pairs, BEATS if text_first else None, heard=not text_first)
        return [self._spelled_words(heard=not text_first) for _ in range(pairs)]

    def captioned_pictures(self, pairs: int) -> list[tuple[Piece, Part]]:
        things = [self._thing() for _ in range(pairs)]
        return [(" " + _named("", thing), self._image(*thing)) for thing in things]

    def captioned_music(self, pairs: int, tokens: int | None, heard: bool) -> list[tuple[Piece, Part]]:
        """Captions and music, all of it or the first `tokens`: as it may be composed, or as it may be `heard`, and
        then the run is closed."""
        played = [self.library.music(self.random, lambda _: True, heard) for _ in range(pairs)]
        captions = [" " + self._wording(language.music_captions(*sound)) for sound, _ in played]
        parts = [self._part("music", codes) for _, codes in played]
        if tokens is not None:
            end = (self.vocabulary.units("music").end,) if heard else ()
            parts = [Part("music", None, part.token_ids[: 1 + tokens] + end) for part in parts]
        return list(zip(captions, parts, strict=True))

    # Pieces of them.

    def _task(self, task: str, reply: Sequence[Piece], *media: Part, text: str = "") -> Exchange:
        parts = [*media, *([Part("text", text)] if text else [])]
        return Exchange(tuple(templates.message(task, parts)), tuple(reply))

    def _either(self, media: list[Part], question: str, answer: str, made: Sequence[Part]) -> Exchange:
        """Typed three times out of five, spoken otherwise."""
        if self.random.random() < 0.4 and self._may_be_spoken(question, answer):
            return self._spoken(media, question, answer, made)
        parts = [*media, Part("text", self.random.choice((question, written(question))))]
        reply: list[Piece] = [written(answer)]
        for part in made:
            reply += [" ", part]
        return Exchange(tuple(templates.message("interleaved", parts)), tuple(reply))

    def _spoken(self, media: list[Part], text: str, answer: str, made: Sequence[Part] = ()) -> Exchange:
        """The reply of a spoken turn (specification 3.3), then what it made."""
        other = not media and self.random.random() < 0.15
        task = "Speech-Instruction-Speech" if other else "interleaved"
        content = templates.message(task, [*media, self._heard(text)])
        reply: list[Piece] = templates.spoken_reply(text, written(answer), self._said(answer))
        for part in made:
            reply += [" ", part]
        return Exchange(tuple(content), tuple(reply))

    def _may_be_spoken(self, *texts: str) -> bool:
        """Whether sentences are on this side of the split, so that no held-out one is heard in training."""
        return all(language.split_of(text) == self.split and self.library.can_say(text) for text in texts)

    def _answered(self, text: str) -> list[Piece]:
        wanted = wish(text)
        pieces: list[Piece] = [written(self._reply(wanted))]
        if wanted.phrase and self._may_be_spoken(self._reply(wanted)):
            pieces += [" ", self._said(self._reply(wanted))]
        for part in self._media(wanted):
            pieces += [" ", part]
        return pieces

    def _reply(self, wanted: Wish) -> str:
        made = [_named("", wanted.thing)] if wanted.thing else []
        made += [" ".join((*wanted.music, "music"))] if wanted.music else []
        parts = [wanted.phrase] if wanted.phrase else []
        return " ".join([*parts, *([f"here is {' and '.join(made)}"] if made else [])])

    def _media(self, wanted: Wish) -> list[Part]:
        parts = [self._image(*wanted.thing)] if wanted.thing else []
        return parts + ([self._music(wanted.music)] if wanted.music else [])

    def _request(self) -> str:
        """A request on this side of the split that can be fulfilled."""
        while True:
            text = self.decks.fill(self.decks.draw(language.REQUESTS))
            wanted = wish(text)
            if self._can_make(wanted) and language.split_of(text) == self.split:
                return text

    def _can_make(self, wanted: Wish) -> bool:
        known = wanted.thing is None or wanted.thing in self.library.pictures
        return wanted != Wish() and known

    def _sentence(self) -> str:
        """Something to read aloud, on this side of the split."""
        while True:
            patterns = self.decks.draw(("replies", "statements", "requests"))
            table = {"replies": language.REPLIES, "statements": language.STATEMENTS, "requests": language.REQUESTS}
            text = self.decks.fill(self.decks.draw(table[patterns]))
            if language.split_of(text) == self.split and self.library.can_say(text):
                return text

    def _wording(self, captions: Sequence[str]) -> str:
        """One on this side of the split, or the plain one where none is."""
        return self.random.choice([text for text in captions if language.split_of(text) == self.split] or captions[:1])

    def _thing(self) -> tuple[str, str]:
        return self.random.choice(self.library.things)

    def _spelled_words(self, heard: bool) -> tuple[Piece, Part]:
        lexicon = self.library.lexicon
        count = self.random.choices((1, 2, 3, 4, 5, 6), (8, 4, 3, 2, 1, 1))[0]
        words = [self.decks.draw(tuple(lexicon)) for _ in range(count)]
        codes = [code for word in words for code in self.random.choice(lexicon[word])]
        codes = slips(self.random, codes) if heard else codes
        text = " ".join(words)
        shown = text if self.random.random() < 0.75 else written(text)
        return " " + shown, self._part("speech", np.array([codes]))

    def _image(self, thing: str, colour: str) -> Part:
        return self._part("image", self.library.picture(self.random, thing, colour))

    def _music(self, about: tuple[str, ...]) -> Part:
        def suits(sound: Sound) -> bool:
            return set(about) <= set(sound)

        return self._part("music", self.library.music(self.random, suits)[1])

    def _heard(self, text: str) -> Part:
        return self._part("speech", self.library.utterance(self.random, text))

    def _said(self, text: str) -> Part:
        return self._part("speech", self.library.speech(text))

    def _part(self, medium: Medium, codes: Codes) -> Part:
        return Part(medium, None, flatten(self.vocabulary, medium, codes))


Kind = Callable[[], list[Exchange]]


def kinds(author: Author) -> tuple[dict[str, Kind], dict[str, Kind]]:
    """Single tasks and conversations by name, as far as the library has their media."""
    library = author.library
    seen, played, spoken = bool(library.pictures), bool(library.composed), bool(library.said) or library.spell
    tasks: dict[str, Kind] = {}
    if seen:
        tasks |= {"draw": author.draw, "caption": author.caption, "look": author.look}
    if spoken:
        tasks |= {"read aloud": author.read_aloud, "transcribe": author.transcribe}
    if played:
        tasks |= {"compose": author.compose, "describe": author.describe}
    talks: dict[str, Kind] = {}
    if seen and played and spoken:
        talks = {
            "ask": author.ask, "speak": author.speak, "show and ask": author.show_and_ask,
            "play and ask": author.play_and_ask,
        }  # fmt: skip
    return tasks, talks


def turns(exchange: Exchange) -> tuple[list[Piece], list[Piece]]:
    """An exchange as it stands in the stream: the user's turn, the model's."""
    template = TEMPLATES[DEFAULT_TEMPLATE]
    return templates.user(template, exchange.user), templates.assistant(template, exchange.bot)


def sample(author: Author, count: int = 100) -> Iterator[dict]:
    """Conversations as AnyGPT's own data files have them, in the published spelling."""
    _, talks = author.ready
    for number in range(count):
        name = sorted(talks)[number % len(talks)]
        exchanges = talks[name]()
        conversation = []
        for exchange in exchanges:
            for role, pieces in (("user", exchange.user), ("assistant", exchange.bot)):
                conversation.append({"role": role, "message": templates.spell(pieces, author.vocabulary)})
        yield {"id": number, "kind": name, "conversation": conversation}


def _named(before: str, thing: tuple[str, str]) -> str:
    return before + a(f"{thing[1]} {thing[0]}".strip())


def main() -> None:
    from models.anygpt.embedded import library, lm

    author = Author(library.read(Path("runs/anygpt"), "train", library.speller()), lm.words().vocabulary, "train", 0)
    SAMPLE.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"seed": 0, **row}, ensure_ascii=False) + "\n" for row in sample(author)]
    SAMPLE.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
