"""A conversation: what a visitor sends becomes a turn, the reply comes part by part, and both are kept as ids."""

from __future__ import annotations

import mimetypes
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.data_classes import FileData

from demos import anygpt_media as media
from demos import parts
from demos.anygpt_parts import MIXED, MUSIC, NAMES, SOUNDS, SPEECH, Choices, one_of
from demos.anygpt_tokens import EMPTY, TokenView
from models.errors import BadInput, Cancelled
from models.runtime import ModelHandle, Report

if TYPE_CHECKING:
    from models.anygpt.decoding import Retract
    from models.anygpt.grammar import Rule
    from models.anygpt.pipeline import AnyGPT
    from models.anygpt.streams import Part, Turn
    from models.anygpt.vocabulary import Medium, Words

MOST_FILES, MOST_TEXT, MOST_TURNS = 6, 20_000, 400
MICROPHONE = "audio.wav"  # what Gradio calls every recording
HEARD = "Heard"  # over what the model understood of speech
OFTEN = 0.12  # seconds between two pictures of a reply that is being written
START = "Write, speak, drop a picture or a sound, or click an example."

Message = dict[str, Any]  # of `gr.Chatbot`


@dataclass(frozen=True)
class Talk:
    """One visitor's conversation. turns: as the model reads them. messages: as the page shows them. folder: files."""

    turns: tuple[Turn, ...] = ()
    messages: tuple[Message, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Screen:
    """What changes on the page; None leaves a thing as it is. Tuple order is that of the events' outputs."""

    messages: Sequence[Message] | None = None
    box: dict[str, Any] | None = None
    tokens: str | None = None
    said: str | None = None
    archive: Path | None = None
    talk: Talk | None = None

    def outputs(self) -> tuple[Any, ...]:
        archive = gr.skip() if self.archive is None else gr.DownloadButton(value=str(self.archive), interactive=True)
        messages = None if self.messages is None else list(self.messages)
        shown = [gr.skip() if value is None else value for value in (messages, self.box, self.tokens, self.said)]
        return (*shown, archive, gr.skip() if self.talk is None else self.talk)


def cleared() -> tuple[Any, ...]:
    """The page as it opens."""
    return [], empty_box(), EMPTY, said(START), gr.DownloadButton(value=None, interactive=False), Talk()


def forget(talk: Talk) -> None:
    """Removes a conversation's files."""
    if talk.folder is not None:
        shutil.rmtree(talk.folder, ignore_errors=True)


def empty_box() -> dict[str, Any]:
    return {"text": "", "files": []}


def said(*lines: str) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines if line)


def answer(
    handle: ModelHandle[AnyGPT], talk: Talk, message: Any, choices: Choices, cancel: parts.Cancel
) -> Iterator[tuple[Any, ...]]:
    """Sends a turn and shows the reply while it is written; outputs as `Screen` orders them.

    A turn that the model cannot read changes nothing: it stays in the box.

    Raises:
        BadInput: an empty, too long or unreadable turn, or a value that no control offers. WeightsNotFound.
    """
    try:
        yield from _answer(handle, talk, message, choices, cancel)
    except Exception:
        yield Screen(talk.messages, message, said=said(START)).outputs()
        raise


def _answer(
    handle: ModelHandle[AnyGPT], talk: Talk, message: Any, choices: Choices, cancel: parts.Cancel
) -> Iterator[tuple[Any, ...]]:
    sent = _parts(message, choices.sounds)
    if len(talk.turns) >= MOST_TURNS:
        raise BadInput(f"This conversation has {len(talk.turns)} turns. Save it, and start a new one.")
    yield Screen(said=said("Reading what you sent")).outputs()
    choices = replace(choices, voice=Path(choices.voice) if choices.voice else None)
    facts = _facts(handle)
    job = parts.Job(handle, partial(_chat, talk.turns, sent, choices), cancel)
    shown: _Shown | None = None
    last = ""
    try:
        for kind, value in job:
            if kind == "begun":
                shown = _Shown(facts, _asked(talk, value.turn), value)
                # The turn was read: the box is free for the next one.
                yield replace(shown.screen(), box=empty_box()).outputs()
            elif shown is not None and shown.take(kind, value):
                yield shown.screen().outputs()
    except Cancelled as stop:
        last = str(stop)
    if cancel.get("cleared"):  # in the meantime
        forget(talk if shown is None else shown.asked)
        yield cleared()
    elif shown is None:  # stopped before the reply began
        yield Screen(talk.messages, message, said=said(last)).outputs()
    else:
        if not last:
            shown.reply = job.result
        yield shown.kept(last or shown.summary(), handle).outputs()


@dataclass(frozen=True)
class Facts:
    """What the page has to know of a model to show its stream."""

    words: Words
    window: int
    rules: dict[Medium, Rule]


@dataclass(frozen=True)
class Begun:
    """A reply that has begun. turn: the visitor's, as it was read. reply: the model's, so far. Else as in `Reply`."""

    turn: Turn
    reply: Turn
    prompt: tuple[int, ...]
    left_out: int


_known: WeakKeyDictionary[Any, Facts] = WeakKeyDictionary()  # a vocabulary is large, and the same for every turn


def _facts(handle: ModelHandle[AnyGPT]) -> Facts:
    if handle not in _known:
        _known[handle] = handle.run(_read_facts, progress=gr.Progress())
    return _known[handle]


def _read_facts(model: AnyGPT, report: Report) -> Facts:
    """Runs where the model is."""
    return Facts(model.words, model.lm.window, model.rules)


def _chat(turns: tuple[Turn, ...], sent: list[Part], choices: Choices, model: AnyGPT, report: Report) -> Turn:
    """Runs where the model is: the reply as a turn.

    Reports ("begun", `Begun`), then ("token", id or `Retract`) and ("part", (part, the reply so far)) as they come.
    """
    settings = choices.settings(model, any(part.kind == "image" for part in sent))
    turn = media.smaller(model.user_turn(sent, settings.task, settings.template))
    reply = model.chat((*turns, turn), settings, lambda token: report(("token", token)))
    report(("begun", Begun(turn, reply.turn, reply.prompt, reply.left_out)))
    for part in reply:
        report(("part", (part, reply.turn)))
    return reply.turn


def _asked(talk: Talk, turn: Turn) -> Talk:
    """The conversation with one more turn of the visitor's, its files written."""
    folder = talk.folder or parts.private_folder()
    messages = (*talk.messages, *_messages(turn.parts, len(talk.turns) + 1, folder))
    return Talk((*talk.turns, turn), messages, folder)


class _Shown:
    """A reply while it is written."""

    def __init__(self, facts: Facts, asked: Talk, begun: Begun) -> None:
        from models.anygpt.streams import Splitter

        assert asked.folder is not None
        self._facts, self.asked, self._folder = facts, asked, asked.folder
        self.reply, self._left_out = begun.reply, begun.left_out
        self._view = TokenView(facts.words, begun.prompt, begun.left_out, facts.window)
        self._open = Splitter(facts.words.vocabulary)
        self._candidate = 1  # of the open run
        self._closed = ""  # the medium whose codes are there and whose picture or sound is being made
        self._parts: list[Part] = []
        self._messages: list[Message] = []
        self._started = self._last = time.monotonic()

    def take(self, kind: str, value: Any) -> bool:
        """A "token" or a "part" that came; True if it is time to show the reply again."""
        now = time.monotonic()
        if kind == "token":
            self._take_token(value)
            if now - self._last < OFTEN:
                return False
        else:
            part, self.reply = value
            self._parts.append(part)
            self._closed = ""
            number = len(self.asked.turns) + 1
            self._messages += _message(self._parts, len(self._parts) - 1, number, self._folder, "assistant")
        self._last = now
        return True

    def _take_token(self, token: int | Retract) -> None:
        if isinstance(token, int):
            self._view.push(token)
            closed = [run.kind for run in self._open.push(token)]
            self._closed = next((kind for kind in closed if kind != "text"), self._closed)
            self._candidate = 1 if closed else self._candidate
        else:
            self._view.retract(token.count)
            self._open.retract(token.count)
            self._candidate = token.candidate

    def screen(self) -> Screen:
        messages = (*self.asked.messages, *self._messages, *self._draft())
        return Screen(messages, None, self._view.html(), self._progress())

    def kept(self, last: str, handle: ModelHandle[AnyGPT]) -> Screen:
        """The conversation with the reply in it, as far as it came."""
        talk = replace(
            self.asked,
            turns=(*self.asked.turns, self.reply),
            messages=(*self.asked.messages, *self._messages),
        )
        info = handle.status().info
        model = {"tier": info.tier, "weights": info.weights} if info else {}
        archive = media.archive(talk.turns, model, self._folder)
        return Screen(talk.messages, None, self._view.html(), said(last), archive, talk)

    def summary(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = self._view.written / seconds
        named = ", ".join(dict.fromkeys(NAMES[part.kind] for part in self._parts)) or "nothing to show"
        text = f"{named[0].upper()}{named[1:]}: {self._view.written} tokens in {seconds:.1f} s, {rate:.0f} a second."
        if self._left_out:
            text += f" The oldest {self._left_out} turns no longer fit into the model's window and were not read."
        return text

    def _progress(self) -> str:
        medium = self._open.kind
        if self._closed:
            return said(f"Making the {NAMES[self._closed]} from its tokens")
        if medium == "text":
            return said("Writing" if self._view.written else "Reading the conversation")
        units, rule = len(self._open.ids) - 1, self._facts.rules[medium]
        text = f"Writing {NAMES[medium]}: {units} tokens"
        if self._candidate > 1:
            text = f"Candidate {self._candidate}, {text[0].lower()}{text[1:]}"
        return parts.bar(f"{text} of {rule.most}", units, rule.most) if rule.least == rule.most else said(text)

    def _draft(self) -> list[Message]:
        """The text that is being written."""
        if self._open.kind != "text" or not self._open.ids:
            return []
        text = self._facts.words.plain(self._open.ids).strip()
        return [_text(text, "assistant", self._open.label)] if text else []


def _parts(message: Any, sounds: Any) -> list[Part]:
    """What the box holds, as parts that are not read yet: files in their order, then the text."""
    from models.anygpt.streams import Part

    one_of("A sound file", sounds, [value for _, value in SOUNDS])
    text, files = (message or {}).get("text") or "", (message or {}).get("files") or []
    if len(text) > MOST_TEXT:
        raise BadInput(f"The text has {len(text):,} characters; at most {MOST_TEXT:,} can be sent at once.")
    if len(files) > MOST_FILES:
        raise BadInput(f"There are {len(files)} files; at most {MOST_FILES} can be sent at once.")
    if not text.strip() and not files:
        raise BadInput("The turn is empty. Write something, speak, or attach a picture or a sound.")
    found, heard = [], 0
    for file in files:
        kind = _kind(file)
        if kind == "sound":
            music = sounds == MUSIC or (sounds == MIXED and heard > 0)
            kind = MUSIC if music and Path(file).name != MICROPHONE else SPEECH
            heard += 1
        found.append(Part(kind, Path(file)))  # type: ignore[arg-type]
    return [*found, *([Part("text", text.strip())] if text.strip() else [])]


def _kind(file: str) -> str:
    """ "image" or "sound", by the file's name; what is inside is checked where it is read."""
    kind, _ = mimetypes.guess_type(file)
    if kind and kind.startswith("image/"):
        return "image"
    if kind and (kind.startswith("audio/") or kind in ("video/webm", "video/mp4", "video/ogg")):
        return "sound"
    raise BadInput(f"{Path(file).name} is neither a picture nor a sound. Use PNG, JPEG, WebP, WAV, MP3, FLAC or OGG.")


def _messages(sent: Sequence[Part], number: int, folder: Path) -> list[Message]:
    return [message for i in range(len(sent)) for message in _message(sent, i, number, folder, "user")]


def _message(among: Sequence[Part], index: int, number: int, folder: Path, role: str) -> list[Message]:
    """One part as the page shows it, its file written; a note stands under it."""
    part = among[index]
    if part.kind == "text":
        return [_text(part.value, role, part.label)]
    if part.value is None:
        return [_text(f"The {NAMES[part.kind]} could not be made. {part.note}", role)]
    path = media.file_of(folder, number, among, index)
    media.save(part, path)
    whose = "sent" if role == "user" else "made by the model"
    shown: Message = {"role": role, "content": _player(part.kind, path, f"{NAMES[part.kind].capitalize()}, {whose}")}
    return [shown, *([_text(part.note, role)] if part.note else [])]


def _player(kind: str, path: Path, label: str) -> dict[str, Any]:
    """A picture or a sound player inside a message, in the form that `gr.Chatbot` sends to the page.

    A plain file would be shown too, but without words for people who cannot see it.
    """
    image = kind == "image"
    mime = "image/png" if image else "audio/wav"
    return {
        "type": "component",
        "component": "image" if image else "audio",
        "value": FileData(path=str(path), orig_name=path.name, mime_type=mime).model_dump(),
        "constructor_args": {},
        "props": {"alt_text": label} if image else {"label": label},
    }


def _text(text: str, role: str, label: str = "") -> Message:
    # `gr.Chatbot` lays out HTML even where it is told not to render Markdown: what is written stays as it is written.
    message: Message = {"role": role, "content": escape(text, quote=False)}
    return message | {"metadata": {"title": HEARD}} if label == "heard" else message
