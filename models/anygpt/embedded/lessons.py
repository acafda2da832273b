"""Conversations as sequences of ids with what is to be learnt of them, packed to the length that is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.anygpt import templates
from models.anygpt.embedded.instructions import Exchange, turns
from models.anygpt.streams import Part
from models.anygpt.templates import DEFAULT_TEMPLATE, TEMPLATES, Piece
from models.anygpt.vocabulary import Words

LENGTH = 513  # 512 predictions
WAITING = 24  # lessons that the packer chooses from
PADDING = 0


@dataclass(frozen=True)
class Lesson:
    """ids, and for each whether it is to be predicted."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Lesson) -> Lesson:
        return Lesson(self.ids + other.ids, self.learn + other.learn)


EMPTY = Lesson((), ())


def system(words: Words) -> Lesson:
    """The line that every conversation begins with; nothing of it is learnt."""
    ids = (*words.begin, *templates.encode(templates.system(TEMPLATES[DEFAULT_TEMPLATE]), words))
    return Lesson(ids, (False,) * len(ids))


def conversation(exchanges: Iterable[Exchange], words: Words) -> Lesson:
    """Only replies are learnt (the paper's second stage), without the role before and the line end after."""
    whole = EMPTY
    for exchange in exchanges:
        user, bot = (templates.encode(pieces, words) for pieces in turns(exchange))
        own = len(templates.encode(templates.opening(TEMPLATES[DEFAULT_TEMPLATE]), words))
        learn = (False,) * own + (True,) * (len(bot) - own - 1) + (False,)
        whole += Lesson(user, (False,) * len(user)) + Lesson(bot, learn)
    return whole


def pair(prompt: Sequence[Piece], target: Sequence[Piece], words: Words) -> Lesson:
    """A task in the base model's form."""
    asked, answer = templates.encode(prompt, words), templates.encode(target, words)
    return Lesson((*asked, *answer), (False,) * len(asked) + (True,) * len(answer))


def document(pairs: Sequence[tuple[Piece, Part]], words: Words, text_first: bool, length: int) -> Lesson:
    """As many pairs of a text and a medium as fit; of each the second is learnt, which follows from the first."""
    whole = EMPTY
    for text, part in pairs:
        read, spelled = Lesson(part.token_ids, (True,) * len(part.token_ids)), templates.encode([text], words)
        said = Lesson(spelled, (True,) * len(spelled))
        first, second = (said, read) if text_first else (read, said)
        both = Lesson(first.ids, (False,) * len(first)) + second
        if len(whole) + len(both) > length:
            break
        whole += both
    return whole


def pack(lessons: Iterable[Lesson], begin: Lesson, length: int = LENGTH) -> Iterator[Lesson]:
    """Sequences of at most `length`: `begin`, then whole lessons, each in one sequence and once.

    The lesson that has waited longest comes first, then the longest ones that still fit. One that is longer than a
    sequence raises ValueError.
    """
    source = iter(lessons)
    waiting: list[Lesson] = []
    while True:
        while len(waiting) < WAITING and (lesson := next(source, None)) is not None:
            if len(begin) + len(lesson) > length:
                raise ValueError(f"a lesson of {len(lesson)} ids does not fit into {length}")
            waiting.append(lesson)
        if not waiting:
            return
        packed = begin + waiting.pop(0)
        while True:
            fitting = [lesson for lesson in waiting if len(packed) + len(lesson) <= length]
            if not fitting:
                break
            best = max(fitting, key=len)
            waiting.remove(best)
            packed += best
        yield packed


def batch(sequences: Sequence[Lesson], length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """ids (B, length) int64, padded at the end, and which are learnt, bool. One shape is faster than many."""
    ids = torch.full((len(sequences), length), PADDING)
    learn = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence.ids)
        learn[row, : len(sequence)] = torch.tensor(sequence.learn)
    return ids, learn
