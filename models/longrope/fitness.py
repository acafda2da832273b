"""What the search minimises: the loss on hidden keys, or on plain text, at the length to be reached.

LongRoPE searches on perplexity (paper section 3.2); LongRoPE2 on the answer's tokens alone, which long-range errors
cannot hide from (specification sections 2.2 and 6.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.errors import BadInput
from models.longrope.engine import Progress, Reading
from models.longrope.haystack import Haystack
from models.longrope.pipeline import Model
from models.longrope.retrieval import context, hide, make_prompt


class NeedleFitness:
    """Mean negative log-likelihood (nats a token) of the keys of `prompts` passkey prompts.

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
        self.prompts = []
        for i, depth in enumerate(depths):
            prompt = make_prompt(model, sparse or length, depth, seed + i)
            jumps = prompt.spread(length) if sparse else ()
            self.prompts.append((prompt, replace(self.reading, jumps=jumps)))

    def __call__(self, factors: Sequence[float], n_hat: int = 0) -> float:
        rope = self.model.scaling("longrope", self.length, factors, self.magnitude, n_hat)
        total = count = 0.0
        for prompt, reading in self.prompts:
            losses = self.model.engine.losses(*prompt.answered(self.model), rope, reading, self.progress)
            total, count = total + float(losses.sum()), count + len(losses)
        return total / count


@dataclass(frozen=True)
class Needles:
    """`NeedleFitness` for `models.tasks`: each process that works reads the model itself, and then scores candidates.

    tier, path, device: as `models.longrope.load` takes them. length, prompts, sparse: as `NeedleFitness` does.
    """

    tier: str
    path: Path | None
    device: str | None
    length: int
    prompts: int
    sparse: int | None

    def __call__(self) -> Callable[[tuple[Sequence[float], int]], float]:
        from models import longrope

        model = longrope.load(self.tier, self.path, self.device)
        fitness = NeedleFitness(model, self.length, self.prompts, sparse=self.sparse)
        return lambda candidate: fitness(*candidate)


class HaystackFitness:
    """`NeedleFitness` on whole prompts, read blockwise: the haystack once, the needles' blocks once, and for each table
    only the question and the answer. It sees what attention loses among many tokens.

    reading: blockwise. Needles lie after its anchor.
    """

    def __init__(
        self,
        model: Model,
        length: int,
        prompts: int = 4,
        seed: int = 1_000_000,
        reading: Reading | None = None,
        magnitude: str | float = "su",
    ) -> None:
        if prompts < 1:
            raise BadInput(f"{prompts} prompts were asked for. Give a whole number from 1.")
        self.model, self.length, self.magnitude = model, length, magnitude
        reading = reading or Reading(mode="blockwise")
        self.text = context(model, length)
        self.haystack = Haystack(model.engine, self.text, reading)
        self.haystack.read_to(len(self.text))
        hidden = [hide(model, self.text, (i + 0.5) / prompts, seed + i, reading.anchor) for i in range(prompts)]
        self.changes = [self.haystack.changed(prompt.ids[: len(self.text)]) for prompt in hidden]
        self.question = hidden[0].ids[len(self.text) :]
        self.answers = [model.encode(f" {prompt.key}") for prompt in hidden]

    def __call__(self, factors: Sequence[float], n_hat: int = 0) -> float:
        rope = self.model.scaling("longrope", self.length, factors, self.magnitude, n_hat)
        losses, _ = self.haystack.forced(rope, len(self.text), self.changes, self.question, self.answers)
        return float(losses.mean())


class PerplexityFitness:
    """Mean negative log-likelihood (nats a token) over the second half of windows of `length` tokens of a text.

    sparse: windows of only so many tokens, with the positions between their halves skipped, as in `NeedleFitness`.
    """

    def __init__(
        self,
        model: Model,
        text: str,
        length: int,
        windows: int = 1,
        reading: Reading | None = None,
        magnitude: str | float = "su",
        progress: Progress | None = None,
        sparse: int | None = None,
    ) -> None:
        tokens, size = model.encode(text), sparse or length
        if len(tokens) < size * windows:
            raise BadInput(
                f"The text has {len(tokens):,} tokens; {windows} windows need {size * windows:,}. Give a longer one."
            )
        self.model, self.length, self.magnitude, self.progress = model, length, magnitude, progress
        jumps = ((size // 2, length - size),) if length > size else ()
        self.reading = replace(reading or Reading(), jumps=jumps)
        self.windows = [tokens[i * size : (i + 1) * size] for i in range(windows)]

    def __call__(self, factors: Sequence[float], n_hat: int = 0) -> float:
        rope = self.model.scaling("longrope", self.length, factors, self.magnitude, n_hat)
        engine = self.model.engine
        parts = [engine.losses(ids, len(ids) // 2, rope, self.reading, self.progress) for ids in self.windows]
        return float(sum(p.mean() for p in parts) / len(parts))
