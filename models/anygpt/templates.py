"""The strings around the parts: chat templates, the base model's form, and the prompts of the tasks.

They are the published ones byte for byte (specification 3), mistakes of grammar included: a model was trained on them.
A message is a list of pieces; a piece is text, a `Token` of the vocabulary or a `Part`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter

from models.anygpt import streams
from models.anygpt.streams import Part
from models.anygpt.vocabulary import (
    ANYGPT,
    END_OF_BOT,
    END_OF_HUMAN,
    END_OF_MACHINE,
    HEARD,
    HUMAN,
    MARKERS,
    MMGPT,
    REPLY,
    Kind,
    Medium,
    Vocabulary,
    Words,
)
from models.errors import BadInput


@dataclass(frozen=True)
class Token:
    """A role, structure or marker token, by spelling."""

    spelling: str


Piece = str | Token | Part


@dataclass(frozen=True)
class Template:
    """A chat format. The name in the system line is also the bot's role."""

    name: str
    bot: str
    bot_end: str

    @property
    def system(self) -> str:
        return (
            f"You are an AI assistant named {self.name} who can understand and generate multimodal content, "
            "including text, speech, images and audio."
        )


# Inference code uses the first, fine-tuning code the second; which one the chat weights want is undocumented.
TEMPLATES = {t.name: t for t in (Template("MMGPT", MMGPT, END_OF_BOT), Template("AnyGPT", ANYGPT, END_OF_MACHINE))}
DEFAULT_TEMPLATE = "MMGPT"

SPEECH_INSTRUCTION = " Please recognize the voice command and give reply and voice"
TASKS = {
    "interleaved": "",  # images, music and speech, then the text; see `message`
    "Speech-Instruction": "{speech}" + SPEECH_INSTRUCTION,
    "Speech-Instruction-Speech": "{speech} Please interpret the user's voice commands, provide text responses, "
    "and generate corresponding voice replies",
    "Speech-Instruction-Text": "{speech} Please interpret the user's voice commands, provide text responses.",
    "Text-Instruction": "{text} Please interpret the user's text input, create a textual response.",
    "Text-to-Image Generation": "{text} Please generation an image.",
    "Multimodal Prompt Image Generation": "{image} {text} Please generation an image.",
    "Image Captioning": "{image} Please provide an accurate and concisedescription of the given image.",
    "Image QA": "{image} {text} Please provide an accurate answer consisting of only one word or phrase.",
    "Image Conversation": "{image} {text}",
    "Multi-Image Understanding": "This is the first image. {image} This is the second image. {image} {text}",
    "Image-to-Text Caption": "{image} Please describe the picture briefly.",
    "Text-to-Speech": "{text} Please read the given text.",
    "Speech-to-Text": "{speech} Please transcribe the given speech.",
    "Text-to-Music": "{text} Please compose a piece of music from the given text.",
    "Music-to-Text": "{music} Please interpret the given music and provide a textual description.",
    "customized": "{text}",
}

# One instruction a direction, from the published pools: each was seen many times, any will do (specification 3.2).
INSTRUCTIONS: dict[tuple[Kind, Kind], str] = {
    ("speech", "text"): "Please transcribe this speech into written text.",
    ("image", "text"): "Write a caption for this image.",
    ("music", "text"): "Describe the instrumentation and arrangement of this music.",
    ("text", "speech"): "Would you kindly read this text out loud so that I can hear it?",
    ("text", "image"): "Can you create an image that conveys the message of the text?",
    ("text", "music"): "Transform this caption into a musical journey.",
}


def message(task: str, parts: Sequence[Part]) -> list[Piece]:
    """A user's message for a task, from the parts of the turn.

    "interleaved" takes any parts: pictures, then music, then speech, a space after each, then the text; with speech
    the whole is wrapped as a spoken instruction. Text parts are joined by spaces.

    Raises:
        BadInput: unknown task; a part the task needs is missing, or one it has no place for; an empty turn.
    """
    if task not in TASKS:
        raise BadInput(f"Unknown task {task!r}. Choose one of {', '.join(TASKS)}.")
    by_kind = {kind: [part for part in parts if part.kind == kind] for kind in ("image", "music", "speech", "text")}
    text = " ".join(part.value for part in by_kind["text"])
    if len(parts) != sum(map(len, by_kind.values())):
        raise BadInput("A turn holds text, pictures, speech and music, nothing else.")
    if not text.strip() and len(by_kind["text"]) == len(parts):
        raise BadInput("The turn is empty. Write something, speak, or attach a picture or a sound.")
    if task == "interleaved":
        media = [*by_kind["image"], *by_kind["music"], *by_kind["speech"]]
        pieces: list[Piece] = [piece for part in media for piece in (part, " ")]
        return [*pieces, text, *([SPEECH_INSTRUCTION] if by_kind["speech"] else [])]
    if task == "Text-to-Image Generation" and not text.endswith((".", "!", "?")):
        text += "."
    return _filled(task, text, by_kind)


def system(template: Template) -> list[Piece]:
    return [template.system + "\n"]


def user(template: Template, content: Iterable[Piece]) -> list[Piece]:
    """A user's whole turn."""
    return [Token(HUMAN), ": ", *content, Token(END_OF_HUMAN), "\n"]


def opening(template: Template, medium: Medium | None = None, prefix: str | None = None) -> list[Piece]:
    """What asks for a reply; with a medium it begins with that medium's start marker. No space at the end otherwise."""
    pieces: list[Piece] = [Token(template.bot), ":"]
    if prefix is not None:
        pieces.append(" " + prefix)
    return [*pieces, " ", Token(MARKERS[medium][0])] if medium else pieces


def assistant(template: Template, content: Iterable[Piece], last: bool = False) -> list[Piece]:
    """A reply's whole turn, as training data has it; no line end after the last of a dialogue."""
    return [*opening(template), " ", *content, Token(template.bot_end), *([] if last else ["\n"])]


def spoken_reply(transcript: str, reply: str, speech: Part) -> list[Piece]:
    """The content of a spoken turn: heard, answered, said aloud (specification 3.3)."""
    return [Token(HEARD), f" {transcript}\n ", Token(REPLY), f" {reply} ", speech]


def base_prompt(source: Kind, target: Kind, part: Part) -> list[Piece]:
    """AnyGPT-base's form: one turn, no system line (specification 3.2).

    Raises:
        BadInput: a direction that the base model was not trained for.
    """
    if (source, target) not in INSTRUCTIONS:
        known = ", ".join(f"{a} to {b}" for a, b in INSTRUCTIONS)
        raise BadInput(f"The base model has no task {source} to {target}. It has: {known}.")
    instruction = INSTRUCTIONS[source, target]
    content: list[Piece] = [f" This is input: {part.value}"] if source == "text" else [" ", part]
    return [Token(HUMAN), f": {instruction}", *content, Token(END_OF_HUMAN), " ", Token(MMGPT), ":"]


def base_target(content: Iterable[Piece]) -> list[Piece]:
    """What follows `base_prompt` in training data."""
    return [" ", *content, Token(END_OF_BOT)]


def spell(pieces: Iterable[Piece], vocabulary: Vocabulary) -> str:
    """The pieces as one string, in the published spelling."""
    return "".join(_spelled(piece, vocabulary) for piece in pieces)


def encode(pieces: Iterable[Piece], words: Words) -> tuple[int, ...]:
    """The pieces as ids. Text between two tokens is encoded at once, as the published tokenizer does it."""
    ids: list[int] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif isinstance(piece, Part) and piece.kind == "text":
            text += piece.value
        else:
            ids += words.encode(text)
            text = ""
            ids += [_token(piece, words.vocabulary)] if isinstance(piece, Token) else piece.token_ids
    return (*ids, *words.encode(text))


def _filled(task: str, text: str, by_kind: dict[str, list[Part]]) -> list[Piece]:
    waiting = {kind: list(parts) for kind, parts in by_kind.items() if kind != "text"}
    pieces: list[Piece] = []
    placed = False
    for literal, field, _, _ in Formatter().parse(TASKS[task]):
        pieces.append(literal)
        if field == "text":
            placed = True
            pieces.append(text)
        elif field:
            if not waiting[field]:
                raise BadInput(f"The task {task} needs {_a(field)}. Attach one, or choose another task.")
            pieces.append(waiting[field].pop(0))
    if placed and not text.strip():
        raise BadInput(f"The task {task} needs a text. Write one, or choose another task.")
    over = [kind for kind, parts in waiting.items() if parts] + ["text"] * (bool(text.strip()) and not placed)
    if over:
        raise BadInput(f"The task {task} has no place for this {over[0]}. Remove it, or choose interleaved.")
    return [piece for piece in pieces if piece != ""]


def _a(kind: str) -> str:
    return {"image": "a picture", "speech": "speech", "music": "music"}[kind]


def _token(token: Token, vocabulary: Vocabulary) -> int:
    for medium, (start, end) in MARKERS.items():
        if token.spelling in (start, end):
            units = vocabulary.units(medium)
            return units.start if token.spelling == start else units.end
    return vocabulary.id(token.spelling)


def _spelled(piece: Piece, vocabulary: Vocabulary) -> str:
    if isinstance(piece, str):
        return piece
    if isinstance(piece, Token):
        return piece.spelling
    if piece.kind == "text":
        return piece.value
    return streams.spell(vocabulary, piece.kind, piece.token_ids)
