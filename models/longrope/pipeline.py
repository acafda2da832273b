"""A language model that reads long texts: tokenizer, engine and rotary methods in one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.longrope.adapter import TABLES
from models.longrope.engine import Completion, Engine, Progress, Reading
from models.longrope.network import LlamaConfig
from models.longrope.rope import RopeScaling, scaling
from models.longrope.served import ServedEngine
from models.longrope.tables import searched, searched_lengths, stretched
from models.longrope.tokenizer import Tokenizer

__all__ = ["Answer", "Model", "Reading"]


@dataclass(frozen=True)
class Answer:
    """The continuation as text, and how it was made."""

    text: str
    completion: Completion


class Model:
    """What `models.longrope.load` returns. `name` as published; `window`: tokens it was trained for."""

    def __init__(self, name: str, engine: Engine, tokenizer: Tokenizer, tables: str = "") -> None:
        self.name, self.engine, self.tokenizer = name, engine, tokenizer
        self.tables = tables or name  # how its searched tables' files begin
        self.tuned: Model | None = None  # the same after the second stage (`finetune`), with tables of its own

    @property
    def is_tuned(self) -> bool:
        """Whether this is a model after the second stage."""
        return self.tables == TABLES

    @property
    def config(self) -> LlamaConfig:
        return self.engine.config

    @property
    def window(self) -> int:
        return self.config.window

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def scaling(
        self,
        method: str,
        target_length: int,
        table: Sequence[float] | np.ndarray | None = None,
        magnitude: str | float | None = None,
        n_hat: int = 0,
    ) -> RopeScaling:
        """Rotary factors for this model's dimensions; see `models.longrope.rope.scaling`."""
        c = self.config
        return scaling(method, c.rotary_dim, c.base, c.window, target_length, magnitude, table, n_hat)

    def scaling_at(self, method: str, length: int) -> RopeScaling:
        """The factors a method has for a prompt of `length` tokens: plain within the trained window, as LongRoPE's
        readjustment for short inputs wants (paper section 3.3); for longrope the table searched for that length, or
        beyond those the longest of them stretched, with a note. A server has only "server", its own."""
        if isinstance(self.engine, ServedEngine):
            return self.engine.scaling(method)
        if length <= self.window:
            return self.scaling("none", self.window)
        if method == "longrope":
            pairs = self.config.rotary_dim // 2
            if length > max(searched_lengths(self.tables), default=length):
                (shorter, factors), *_ = stretched(self.tables, self.window, length, pairs)
                rope = self.scaling("longrope", length, factors)
                note = f"No table was searched for {length:,} tokens: the one for {shorter:,} is stretched to them."
                return replace(rope, notes=(*rope.notes, note))
            target, factors = searched(self.tables, length, pairs)
            return self.scaling("longrope", target, factors)
        return self.scaling(method, length)

    def complete(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 16,
        rope: RopeScaling | None = None,
        reading: Reading | None = None,
        progress: Progress | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Continues a text (or its token ids) greedily.

        Args:
            rope: one table for the whole request; None is the plain one. reading: exact, blockwise or streaming.
            progress: called with (tokens read, tokens/s) while reading; may raise `Cancelled`.
            on_token: called with each new piece of text.

        Raises:
            BadInput, OutOfMemory, ServerUnavailable: see `Engine.complete` and `ServedEngine.complete`.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        show = None if on_token is None else (lambda token: on_token(self.decode([token])))
        done = self.engine.complete(ids, max_new_tokens, rope, reading, self.tokenizer.stop, progress, show)
        return Answer(self.decode(done.ids), done)
