"""What the search minimises: the loss on hidden keys, or on plain text, at the length to be reached.

LongRoPE searches on perplexity (paper section 3.2); LongRoPE2 on the answer's tokens alone, which long-range errors
cannot hide from (specification sections 2.2 and 6.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.errors import BadInput
from models.longrope.engine import Progress, Reading
from models.longrope.pipeline import Model
from models.longrope.retrieval import Prompt, make_prompt


class NeedleFitness:
    """Mean negative log-likelihood (nats a token) of the right answers to `prompts` passkey prompts.

    Depths are spread evenly; seeds `seed, seed + 1, ...` must differ from those that are scored later.

    sparse: read only about so many tokens, with positions skipped before and after the needle, so that the needle and
    the question stand where they would in `length` tokens. Cheap enough to watch; it tests distances, not the
    dispersion of attention over many tokens, so what it finds is checked on whole prompts.
    """

    def __init__(
        self,
        model: Model,
        length: int,
        prompts: int = 4,
        seed: int = 1_000_000,
        reading: Reading | None = None,
        magnitude: str | float = "su",
        progress: Progress | None = None,
        sparse: int | None = None,
    ) -> None:
        if prompts < 1:
            raise BadInput(f"{prompts} prompts were asked for. Give a whole number from 1.")
        self.model, self.length, self.reading = model, length, reading or Reading()
        self.magnitude, self.progress = magnitude, progress
        depths = [(i + 0.5) / prompts for i in range(prompts)]
        made = [make_prompt(model, sparse or length, depth, seed + i) for i, depth in enumerate(depths)]
        self.prompts = [(p, model.encode(f" {p.key}"), self._spread(p) if sparse else self.reading) for p in made]

    def __call__(self, factors: Sequence[float], n_hat: int = 0) -> float:
        rope = self.model.scaling("longrope", self.length, factors, self.magnitude, n_hat)
        total = count = 0.0
        for prompt, answer, reading in self.prompts:
            ids = [*prompt.ids, *answer]
            losses = self.model.engine.losses(ids, prompt.length, rope, reading, self.progress)
            total, count = total + float(losses.sum()), count + len(losses)
        return total / count

    def _spread(self, prompt: Prompt) -> Reading:
        """Jumps in the middle of the filler on both sides of the needle, in proportion to its depth."""
        missing = self.length - prompt.length
        first, last = prompt.needle
        before, after = round(missing * prompt.depth), missing - round(missing * prompt.depth)
        end = prompt.length - prompt.question_tokens
        jumps = ((first // 2, before), ((last + end) // 2, after))
        return replace(self.reading, jumps=tuple((at, count) for at, count in jumps if count))


class PerplexityFitness:
    """Mean negative log-likelihood (nats a token) over the second half of windows of `length` tokens of a text."""

    def __init__(
        self,
        model: Model,
        text: str,
        length: int,
        windows: int = 1,
        reading: Reading | None = None,
        magnitude: str | float = "su",
        progress: Progress | None = None,
    ) -> None:
        tokens = model.encode(text)
        if len(tokens) < length * windows:
            raise BadInput(f"The text has {len(tokens):,} tokens; {windows} windows need {length * windows:,}.")
        self.model, self.length, self.reading = model, length, reading or Reading()
        self.magnitude, self.progress = magnitude, progress
        self.windows = [tokens[i * length : (i + 1) * length] for i in range(windows)]

    def __call__(self, factors: Sequence[float], n_hat: int = 0) -> float:
        rope = self.model.scaling("longrope", self.length, factors, self.magnitude, n_hat)
        engine, half = self.model.engine, self.length // 2
        parts = [engine.losses(ids, half, rope, self.reading, self.progress) for ids in self.windows]
        return float(sum(p.mean() for p in parts) / len(parts))
