"""Passkey retrieval: a number hidden in a long, dull text (paper section 4.2, specification section 5).

The published prompt, with three of its flaws repaired: the key always has five digits, so that chance is the same for
all; the filler is never cut inside a word; and the length is counted in tokens, not characters.
"""

from __future__ import annotations

import bisect
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from models.errors import BadInput
from models.longrope.engine import Progress, Reading, plan
from models.longrope.pages import repeated
from models.longrope.pipeline import Model
from models.longrope.rope import MAX_POSITION, RopeScaling

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
SHORTEST = 256
ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids. `needle`: first and one past the last token of the hidden sentence; `depth`: where it
    lies, 0 (beginning) to 1; `question_tokens`: the prompt's last tokens, from the question on."""

    ids: tuple[int, ...]
    needle: tuple[int, int]
    key: str
    depth: float
    seed: int
    question_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        return len(self.ids)

    def spread(self, length: int) -> tuple[tuple[int, int], ...]:
        """Jumps (`Reading.jumps`) that put needle and question where they would stand in a text of `length` tokens:
        positions are skipped in the middle of the filler on both sides of the needle, in proportion to its depth."""
        missing, (first, last) = length - self.length, self.needle
        before, end = round(missing * self.depth), self.length - self.question_tokens
        jumps = ((first // 2, before), ((last + end) // 2, missing - before))
        return tuple((at, count) for at, count in jumps if count)

    def answered(self, model: Model) -> tuple[list[int], int]:
        """The prompt with its right answer, and which token begins the key: for digits the one after the space."""
        answer = model.encode(f" {self.key}")
        before = len(answer) - len(self.key) if self.key.isdecimal() else 0  # a digit is a token
        return [*self.ids, *answer], self.length + before

    def excerpt(self, model: Model, around: int = 160) -> tuple[str, str, str]:
        """Up to `around` characters before the needle, the needle, and as many after it."""
        first, last = self.needle
        before = model.decode(self.ids[max(0, first - around) : first])[-around:]
        after = model.decode(self.ids[last : last + around])[:around]
        return before, model.decode(self.ids[first:last]), after


@dataclass(frozen=True)
class Trial:
    """One prompt, one method, one answer. copied: tokens that were not read, see `engine.Completion`."""

    method: str
    mode: str
    kv: str
    length: int
    depth: float
    seed: int
    key: str
    answer: str
    correct: bool
    prefill_seconds: float
    tokens_per_second: float
    seconds: float
    kv_bytes: int
    copied: int = 0


def make_prompt(
    model: Model,
    length: int,
    depth: float | None = None,
    seed: int = 0,
    haystack: str | None = None,
    needle: str | None = None,
    question: str | None = None,
    key: str | None = None,
) -> Prompt:
    """A prompt of at most `length` tokens, short of it by less than one unit of filler.

    Args:
        depth: where the needle goes, 0 to 1; None draws it. seed: draws the key (and the depth).
        haystack: a text of your own instead of the filler; it is repeated if it is too short.
        needle, question, key: a sentence of your own, what asks for it (the model continues it) and the words that a
            right answer holds. All three or none.

    Raises:
        BadInput: a length below 256 or above 2 097 152, a depth outside 0 to 1, an empty or binary haystack, or only
        a part of needle, question and key.
    """
    if not SHORTEST <= length <= MAX_POSITION + 1:
        raise BadInput(f"A context of {length} tokens was asked for. Choose {SHORTEST} to {MAX_POSITION + 1:,}.")
    if depth is not None and not 0 <= depth <= 1:
        raise BadInput(f"The depth is {depth}. Give a number from 0 (beginning) to 1 (end).")
    own = [bool(part and part.strip()) for part in (needle, question, key)]
    if any(own) and not all(own):
        raise BadInput("For a needle of your own give the sentence, the question and the expected answer, all three.")
    rng = random.Random(f"passkey {seed}")
    drawn_key, drawn_depth = str(rng.randrange(10_000, 100_000)), rng.random()
    depth = drawn_depth if depth is None else depth
    if not all(own):
        key, question, needle = drawn_key, QUESTION, NEEDLE.format(key=drawn_key)
    assert key and question and needle
    start = model.encode(TASK)
    hidden, end = model.encode(f"\n{needle.strip()}\n"), model.encode(f"\n{question.strip()}")
    longest = MAX_POSITION + 1 - _answer_tokens(model, key)  # the answer has positions, too
    room = min(length, longest) - len(start) - len(hidden) - len(end)
    if room < 0:
        raise BadInput(f"The needle and question alone are longer than {length} tokens. Shorten them.")
    before, after, notes = _filling(model, room, depth, haystack)
    ids = [*start, *before, *hidden, *after, *end]
    first = len(start) + len(before)
    return Prompt(tuple(ids), (first, first + len(hidden)), key, depth, seed, len(end), notes)


def context(model: Model, length: int) -> list[int]:
    """The task and filler of a prompt of at most `length` tokens, without the question; nothing is hidden in it.

    A longer one begins with the shorter ones.
    """
    length -= len(model.encode(f"\n{QUESTION}"))
    start, first, unit = model.encode(TASK), model.encode("\n" + FILLER), model.encode(" " + FILLER)
    return [*start, *first, *unit * ((length - len(start) - len(first)) // len(unit))]


def hide(model: Model, text: Sequence[int], depth: float, seed: int, after: int = 0) -> Prompt:
    """A prompt with a key instead of as many tokens of a text, so that all prompts of one text differ nowhere else.

    Args:
        text: what to hide it in, such as `context`'s; the question follows it. depth: 0 is the first end of a sentence
            from token `after` on, 1 the text's end. seed: draws the key, the same as in `make_prompt`.

    The prompt's own depth is where the needle is in the whole prompt. Raises `BadInput` for a text that is too short.
    """
    key = str(random.Random(f"passkey {seed}").randrange(10_000, 100_000))
    hidden, end = model.encode(f"\n{NEEDLE.format(key=key)}\n"), model.encode(f"\n{QUESTION}")
    room = len(text) - after - len(hidden)
    if room < len(hidden):
        raise BadInput(f"The text has {len(text):,} tokens, too few to hide a key after {after:,}. Give a longer one.")
    first = min(max(_sentence_end(model, text, after + round(depth * room)), after), len(text) - len(hidden))
    ids = (*text[:first], *hidden, *text[first + len(hidden) :], *end)
    return Prompt(ids, (first, first + len(hidden)), key, first / len(ids), seed, len(end))


def run(
    model: Model,
    prompt: Prompt,
    rope: RopeScaling,
    reading: Reading,
    progress: Progress | None = None,
    on_token: Callable[[str], None] | None = None,
) -> Trial:
    """Asks once, greedily. `progress(tokens read, tokens/s)` may raise `Cancelled`."""
    started = time.perf_counter()
    reading = replace(reading, question=prompt.question_tokens)
    answer = model.complete(prompt.ids, _answer_tokens(model, prompt.key), rope, reading, progress, on_token)
    done = answer.completion
    return Trial(
        method="streaming" if reading.mode == "streaming" else rope.method,
        mode=done.mode,
        kv=done.kv,
        length=prompt.length,
        depth=prompt.depth,
        seed=prompt.seed,
        key=prompt.key,
        answer=answer.text,
        correct=is_right(answer.text, prompt.key),
        prefill_seconds=done.prefill_seconds,
        tokens_per_second=prompt.length / done.prefill_seconds,
        seconds=time.perf_counter() - started,
        kv_bytes=done.kv_bytes,
        copied=done.copied,
    )


def _answer_tokens(model: Model, key: str) -> int:
    return max(ANSWER_TOKENS, len(model.encode(key)) + 8)


def is_right(answer: str, key: str) -> bool:
    """Whether the answer's first number is the key (digits may stand apart: "1 7 8 6 5"); for words, whether it has
    them."""
    if not key.isdecimal():
        return key.casefold().strip() in answer.casefold()
    found = re.search(r"(?:\d )+\d(?!\d)|\d+", answer)
    return found is not None and found.group().replace(" ", "") == key


def wilson(correct: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share, 0 to 1 (Wilson)."""
    if trials == 0:
        return 0.0, 1.0
    z, p = 1.959964, correct / trials
    middle, spread = p + z * z / (2 * trials), z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return max(0.0, (middle - spread) / (1 + z * z / trials)), min(1.0, (middle + spread) / (1 + z * z / trials))


def share_done(model: Model, prompt: Prompt, reading: Reading) -> Callable[[int], float]:
    """The share of a reading's floating-point operations that is done once so many tokens are read: later tokens see
    more than early ones, and a block that says what an earlier one said costs nothing."""
    c, reading = model.config, replace(reading, question=prompt.question_tokens)
    ends, done, total = [0], [0.0], 0.0
    same: dict[int, int] = {}
    if reading.mode == "blockwise":
        same = repeated(torch.tensor(prompt.ids[: -reading.question]), reading.block)
    for piece in plan(prompt.length, reading):
        if piece.block not in same:
            rows = piece.stop - piece.start
            seen = sum(high - low for low, high in piece.visible) + rows / 2
            total += 2.0 * c.parameters * rows + 4.0 * c.layers * c.heads * c.head_dim * rows * seen
        ends.append(piece.stop)
        done.append(total)

    def share(tokens: int) -> float:
        return done[bisect.bisect_right(ends, tokens) - 1] / total

    return share


def _filling(
    model: Model, room: int, depth: float, haystack: str | None
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Tokens before and after the needle, together at most `room`."""
    if haystack is None:
        # Words and their leading spaces are tokenised apart, so units can be joined as tokens.
        first, unit = model.encode("\n" + FILLER), model.encode(" " + FILLER)
        units = max((room - 2 * len(first)) // len(unit) + 2, 0)
        left = round(depth * units)
        parts = [first + unit * (count - 1) if count else [] for count in (left, units - left)]
        return parts[0], parts[1][1:], ()  # the needle brings its own line break
    if not haystack.strip():
        raise BadInput("Your text is empty. Paste some, upload a .txt file, or use the standard filler.")
    tokens = model.encode("\n" + haystack.strip())
    if len(tokens) < room:
        notes = (f"Your text has {len(tokens):,} tokens; it is repeated to fill {room:,}.",)
        tokens = tokens * (room // len(tokens) + 1)
    else:
        notes = (
            f"Your text has {len(tokens):,} tokens; the first {room:,} are read. Choose a longer context for more.",
        )
    tokens = tokens[:room]
    cut = _sentence_end(model, tokens, round(depth * len(tokens)))
    return tokens[:cut], tokens[cut:], notes


def _sentence_end(model: Model, tokens: Sequence[int], wanted: int, reach: int = 200) -> int:
    """The end of a sentence nearest to a place, or the place itself if there is none nearby."""
    near = sorted(range(max(wanted - reach, 0), min(wanted + reach, len(tokens)) + 1), key=lambda i: abs(i - wanted))

    def ends(i: int) -> bool:
        return i in (0, len(tokens)) or model.decode([tokens[i - 1]]).rstrip(" ").endswith((".", "!", "?", "\n"))

    return next(filter(ends, near), wanted)
