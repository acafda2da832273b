"""The one stream a language model reads and writes: parts to ids and ids to parts.

Codes are flattened frame by frame, the layers of a frame one after another (specification 2.3), between the medium's
markers. Everything is read back from ids, never from decoded text: decoding and encoding again corrupts media runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from models.anygpt.vocabulary import HEARD, MARKERS, REPLY, Kind, Medium, Vocabulary, unit_spelling
from models.errors import BadInput

Role = Literal["user", "assistant"]
Label = Literal["", "heard", "reply"]


@dataclass(frozen=True)
class Part:
    """One piece of a turn.

    value: the text (str), a Pillow picture, or `models.anygpt.audio.Audio`; None where it could not be made.
    token_ids: the ids it has in the stream, markers included; empty before it is encoded.
    note: a sentence for the reader where `value` is None or incomplete.
    label: for text of a spoken turn: what the model heard, or its reply (`<-Ins->`, `<-Res->`).
    """

    kind: Kind
    value: Any
    token_ids: tuple[int, ...] = ()
    note: str = ""
    label: Label = ""


@dataclass(frozen=True)
class Turn:
    """A whole turn as it stands in the stream: `ids` with role, separators and all; encoded once."""

    role: Role
    parts: tuple[Part, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """Consecutive ids of one kind. closed: False for a media run that had no end marker."""

    kind: Kind
    ids: tuple[int, ...]
    closed: bool = True
    label: Label = ""


def flatten(vocabulary: Vocabulary, medium: Medium, codes: np.ndarray) -> tuple[int, ...]:
    """Codes, integers (layers, n), as ids between the medium's markers.

    Raises:
        BadInput: the codes do not fit the vocabulary, so codec and model do not belong together; or n is 0.
    """
    units = vocabulary.units(medium)
    layers, size = units.codes.layers, units.codes.size
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[0] != layers or not np.issubdtype(codes.dtype, np.integer):
        raise BadInput(
            f"{medium} codes of shape {codes.shape} and type {codes.dtype}; expected ({layers}, n) integers."
        )
    if codes.shape[1] == 0:
        raise BadInput(f"There is nothing in this {medium}: it gave no codes. Use a longer one.")
    if codes.min() < 0 or codes.max() >= size:
        raise BadInput(
            f"The {medium} tokenizer gave the code {int(codes.max())} and the model knows 0 to {size - 1}. "
            "They do not belong together."
        )
    stream = (codes + size * np.arange(layers)[:, None]).T.reshape(-1)
    return (units.start, *(units.ids[unit] for unit in stream), units.end)


def unflatten(vocabulary: Vocabulary, medium: Medium, ids: Iterable[int]) -> tuple[np.ndarray, int]:
    """The codes in a run, int64 (layers, n), and how many units were in no whole frame.

    A unit says which layer it belongs to, so after a missing or extra token the next frame is found again
    (the published inverse goes by position and shifts all that follows).
    """
    units = vocabulary.units(medium)
    layers, size = units.codes.layers, units.codes.size
    frames: list[list[int]] = []
    frame: list[int] = []
    seen = 0
    for token in ids:
        found = vocabulary.unit(token)
        if found is None or found[0] != medium:
            continue  # a marker
        seen += 1
        layer, code = divmod(found[1], size)
        if layer != len(frame):
            frame = []
        if layer == len(frame):
            frame.append(code)
        if len(frame) == layers:
            frames.append(frame)
            frame = []
    codes = np.array(frames, dtype=np.int64).reshape(-1, layers).T
    return codes, seen - codes.size


def spell(vocabulary: Vocabulary, medium: Medium, ids: Iterable[int]) -> str:
    """A run as AnyGPT's data files write it, without spaces."""
    units = vocabulary.units(medium)
    spelled = {units.start: MARKERS[medium][0], units.end: MARKERS[medium][1]}
    return "".join(spelled[token] if token in spelled else unit_spelling(*_unit(vocabulary, token)) for token in ids)


class Splitter:
    """Cuts a stream into runs while it comes in. The ids of all runs, in order, are the stream.

    kind, ids, label: of the run that is open.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.kind: Kind = "text"
        self.ids: list[int] = []
        self.label: Label = ""
        tokens = vocabulary.tokens
        self._labels: dict[int | None, Label] = {tokens.get(HEARD): "heard", tokens.get(REPLY): "reply"}

    def push(self, token: int) -> list[Run]:
        """The runs that this id closes: none, one or two."""
        runs: list[Run] = []
        opened = self.vocabulary.starts(token)
        found = self.vocabulary.unit(token)
        ended = self.vocabulary.ends(token)
        if self.kind != "text":
            if ended == self.kind:
                self.ids.append(token)
                return [self._close()]
            if found is not None and found[0] == self.kind:
                self.ids.append(token)
                return []
            runs.append(self._close(whole=False))
        if opened is not None:
            if self.ids:
                runs.append(self._close())
            self.kind, self.label = opened, ""
        elif token in self._labels:
            if self.ids:
                runs.append(self._close())
            self.label = self._labels[token]
        self.ids.append(token)
        return runs

    def retract(self, count: int) -> None:
        """Takes back the last ids of the run that is open. Raises ValueError for more units than it has."""
        if self.kind == "text" or not 0 <= count < len(self.ids):
            raise ValueError(f"{count} of the {len(self.ids)} ids of {self.kind} cannot be taken back")
        del self.ids[len(self.ids) - count :]

    def finish(self) -> list[Run]:
        """What is left at the end of the stream."""
        return [self._close(whole=self.kind == "text")] if self.ids else []

    def _close(self, whole: bool = True) -> Run:
        run = Run(self.kind, tuple(self.ids), whole, self.label)
        self.kind, self.ids, self.label = "text", [], ""
        return run


def split(vocabulary: Vocabulary, ids: Iterable[int]) -> Iterator[Run]:
    """All runs of a stream."""
    splitter = Splitter(vocabulary)
    for token in ids:
        yield from splitter.push(token)
    yield from splitter.finish()


def trim(system: Sequence[int], turns: Sequence[Turn], budget: int) -> tuple[list[int], int]:
    """The stream of a conversation within a budget, and how many turns were left out to get there.

    Whole turns go, the oldest first; what is left begins with a user's turn. The last turn always stays.

    Raises:
        BadInput: the last turn alone is over the budget.
    """
    first = 0
    while len(system) + sum(len(turn.ids) for turn in turns[first:]) > budget:
        later = [i for i in range(first + 1, len(turns)) if turns[i].role == "user"]
        if not later:
            raise BadInput(
                f"This turn takes {len(turns[-1].ids)} tokens and {max(0, budget - len(system))} are left beside the "
                "reply. Use a shorter sound or text, or fewer attachments."
            )
        first = later[0]
    return [*system, *(token for turn in turns[first:] for token in turn.ids)], first


def _unit(vocabulary: Vocabulary, token: int) -> tuple[Medium, int]:
    found = vocabulary.unit(token)
    if found is None:
        raise ValueError(f"{token} is no unit of any medium")
    return found
