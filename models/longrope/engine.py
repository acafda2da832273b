"""Prefill and decoding for contexts of millions of tokens on machines people have.

A prompt is read in chunks. Each chunk's queries attend to stretches of the cache, block by block, and causally to the
chunk itself; the parts are merged exactly. No logits but the last row's, no scores, masks or repeated keys are kept.

exact: every token sees all before it. blockwise: tokens of the context see their own block and the anchor, the first
tokens of the text (after Star Attention, arXiv 2411.17116), as if the block came right after the anchor: a short text
inside the trained window, read with the model's own angles. The question at the end sees everything, at its true
position and with the method's angles. Blocks that say the same are read once (`pages`). streaming: a few first tokens
and a recent window, positions counted inside (StreamingLLM, arXiv 2309.17453), the control that must fail.
"""

from __future__ import annotations

import copy
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import BadInput, OutOfMemory, is_out_of_memory
from models.longrope.attention import Merged, attend, fold, merge, sight, unfold
from models.longrope.cache import KVCache
from models.longrope.cost import KV_BITS
from models.longrope.network import (
    Layer,
    LlamaConfig,
    Weights,
    mlp,
    prepare,
    project,
    read_config,
    rms_norm,
    rotate,
)
from models.longrope.pages import Pages, look, page_rope
from models.longrope.rope import MAX_POSITION, RopeScaling, scaling

T = TypeVar("T")
Mode = Literal["exact", "blockwise", "streaming"]
MODES: tuple[Mode, ...] = ("exact", "blockwise", "streaming")
Progress = Callable[[int, float], None]  # tokens read, tokens/s; may raise Cancelled
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ATTENTION_FLOP = 1e10  # about 0.1 s on two cores: between two of these the user may stop the run
LOGIT_ROWS = 128
REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Reading:
    """How a prompt is read.

    mode: exact, blockwise or streaming. kv: the cache's number format (`cost.KV_BITS`); None is the engine's own.
    chunk: tokens at once.
    block, anchor: tokens of a context block, and of the text's beginning that all blocks see. question: last tokens
    of the prompt that see everything (blockwise). sinks, recent: first and latest tokens kept (streaming).
    folder: where the cache is kept in files instead of memory. jumps: (token, positions skipped before it), in order:
    a short text read as if it were spread over a long one (exact only; the positions of PoSE, arXiv 2309.10400).
    """

    mode: Mode = "exact"
    kv: str | None = None
    chunk: int = 1024
    block: int = 1024
    anchor: int = 256
    question: int = 64
    sinks: int = 4
    recent: int = 2044
    folder: Path | None = None
    jumps: tuple[tuple[int, int], ...] = ()

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Of tokens start to stop - 1, int64."""
        tokens = np.arange(start, stop)
        return tokens + sum(count * (tokens >= at) for at, count in self.jumps)


@dataclass(frozen=True)
class Piece:
    """Tokens start to stop - 1, read at once, and the stretches of the text they see besides themselves.

    block: where the block begins that these tokens of a context belong to (blockwise); None: positions are true ones.
    """

    start: int
    stop: int
    visible: tuple[tuple[int, int], ...]
    block: int | None = None


@dataclass
class Completion:
    """The answer's token ids, how it was made, and seconds. prompt: its tokens; kv_bytes: the cache's size; copied:
    tokens that were not read, for their blocks say what earlier ones say (blockwise)."""

    ids: list[int]
    mode: str
    method: str
    kv: str
    prompt: int
    prefill_seconds: float
    decode_seconds: float
    kv_bytes: int
    notes: tuple[str, ...] = field(default=())
    copied: int = 0


def plan(tokens: int, reading: Reading) -> list[Piece]:
    """The pieces a prompt of so many tokens is read in, in order."""
    r = reading
    if r.mode == "blockwise":
        context = max(tokens - r.question, 0)
        pieces: list[Piece] = []
        for low in range(0, context, r.block):
            high = min(low + r.block, context)
            before = ((0, min(r.anchor, low)),) if low else ()
            pieces += [Piece(a, b, (*before, *_range(low, a)), low) for a, b in _cut(low, high, r.chunk)]
        return pieces + [Piece(a, b, _range(0, a)) for a, b in _cut(context, tokens, r.chunk)]
    size = min(r.chunk, r.recent) if r.mode == "streaming" else r.chunk
    return [Piece(a, b, _range(0, a)) for a, b in _cut(0, tokens, size)]


def _cut(low: int, high: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, high)) for start in range(low, high, size)]


def _range(low: int, high: int) -> tuple[tuple[int, int], ...]:
    return ((low, high),) if high > low else ()


class Block:
    """Keys and values of the anchor and of the block being read, and their rotary angles: one short text.

    Tokens stand at their positions in it: those of the first block where they are, all others after the anchor. The
    model's own angles are used, or, if anchor and block leave the trained window, those of `rope`.
    """

    def __init__(
        self, config: LlamaConfig, rope: RopeScaling, reading: Reading, dtype: torch.dtype, device: str
    ) -> None:
        c, self.reading = config, reading
        size = reading.anchor + reading.block
        self.rope = scaling("none", c.rotary_dim, c.base, c.window, c.window) if size <= c.window else rope
        self.angles = _Angles(replace(reading, jumps=()), device)
        self.kept = torch.empty(c.layers, 2, c.kv_heads, size, c.head_dim, dtype=dtype, device=device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, piece: Piece, first: int) -> Tensor:
        """As `Session.attend`, for a piece of a context; keeps its keys and values for those that follow."""
        assert piece.block is not None
        start = piece.start - piece.block + (self.reading.anchor if piece.block else 0)
        cos, sin = self.angles.get(self.rope, layer, start, start + len(q))
        k, v = rotate(k, cos, sin).transpose(0, 1), v.transpose(0, 1)
        keys, values = self.kept[layer]
        keys[:, start : start + len(q)], values[:, start : start + len(q)] = k, v
        if first == len(q):
            return q.new_empty(0, q.shape[1] * q.shape[2])
        seen = sight(rotate(q[first:], cos[first:], sin[first:]), k, v)
        if start:
            seen.add(keys[:, :start], values[:, :start])
        return seen.result()


class Session:
    """One request: its cache, its rotary table and how far it has read. Exact reading."""

    copied = 0

    def __init__(self, config: LlamaConfig, rope: RopeScaling, reading: Reading, capacity: int, device: str) -> None:
        self.config, self.rope, self.reading, self.device = config, rope, reading, device
        self.capacity, self.length = capacity, 0
        self.cache = KVCache(
            config.layers, config.kv_heads, config.head_dim, capacity, str(reading.kv), device, reading.folder
        )
        self.angles = _Angles(reading, device)

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def begin(self, tokens: Tensor) -> None:
        """See `BlockwiseSession.begin`; here nothing needs to be known before."""

    def skip(self, piece: Piece, keep: int) -> bool:
        """Nothing is: every token sees all before it."""
        return False

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, piece: Piece, first: int, tick: Callable[[], None]
    ) -> Tensor:
        """Attention of the rows from `first` on, of one piece; stores the piece's keys and values.

        q: (T, heads, head_dim), k, v: (T, KV heads, head_dim), not rotated. Returns (T - first, heads * head_dim).
        """
        cos, sin = self.angles.get(self.rope, layer, piece.start, piece.stop)
        k, v = rotate(k, cos, sin).transpose(0, 1), v.transpose(0, 1)
        self.cache.write(layer, piece.start, k, v)
        if first == len(q):
            return q.new_empty(0, q.shape[1] * q.shape[2])
        rows = rotate(q[first:], cos[first:], sin[first:])
        seen = sight(rows, k, v)
        size = max(int(ATTENTION_FLOP / (4 * rows.numel())), 1024)
        for low, high in piece.visible:
            for keys, values in self.cache.read(layer, low, high, size, q.dtype):
                seen.add(keys, values)
                tick()
        return seen.result()


class BlockwiseSession:
    """One request read blockwise. The context is kept in pages, of which blocks that say the same have one."""

    def __init__(
        self,
        config: LlamaConfig,
        rope: RopeScaling,
        reading: Reading,
        capacity: int,
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.rope, self.reading, self.device = config, rope, reading, device
        self.dtype, self.capacity, self.length, self.copied = dtype, capacity, 0, 0
        self.later = page_rope(rope, reading.block, reading.block)  # of all blocks but the first
        self.angles = _Angles(reading, device)
        self.block = Block(config, rope, reading, dtype, device)
        self.pages: Pages | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.pages is None else self.pages.cache.nbytes + self.tail.nbytes

    def begin(self, tokens: Tensor) -> None:
        """Says which prompt is coming, int64 (T,).

        Raises `OutOfMemory` if the pages do not fit.
        """
        c, r = self.config, self.reading
        context = max(len(tokens) - r.question, 0)
        self.pages = Pages(tokens[:context], r.block)
        kept = self.pages.kept + self.capacity - context
        name = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        check_memory(memory_needed(c, kept, r, name, loaded=True), available_bytes(self.device))
        self.pages.allocate(c, str(r.kv), self.device, r.folder)
        self.tail = KVCache(c.layers, c.kv_heads, c.head_dim, self.capacity - context, str(r.kv), self.device)

    def skip(self, piece: Piece, keep: int) -> bool:
        """Whether a piece need not be read: an earlier block says the same, and no hidden state of it is wanted."""
        assert self.pages is not None
        if piece.block not in self.pages.same or keep < piece.block + self.reading.block:
            return False
        self.length, self.copied = piece.stop, self.copied + piece.stop - piece.start
        return True

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, piece: Piece, first: int, tick: Callable[[], None]
    ) -> Tensor:
        """As `Session.attend`. What comes after the context looks at its pages, wherever those stand."""
        assert self.pages is not None
        if piece.block is not None:
            tick()
            start = piece.start - piece.block
            angles = self.angles.get(self.later if piece.block else self.rope, layer, start, start + len(k))
            self.pages.write(layer, piece.start, rotate(k, *angles).transpose(0, 1), v.transpose(0, 1))
            return self.block.attend(layer, q, k, v, piece, first)
        context = self.pages.tokens
        cos, sin = self.angles.get(self.rope, layer, piece.start, piece.stop)
        k, v = rotate(k, cos, sin).transpose(0, 1), v.transpose(0, 1)
        self.tail.write(layer, piece.start - context, k, v)
        rows = q[first:]
        if not len(rows):
            return q.new_empty(0, q.shape[1] * q.shape[2])
        seen = Merged(rotate(rows, cos[first:], sin[first:]), k, v)
        for keys, values in self.tail.read(layer, 0, piece.start - context, 1024, q.dtype):
            seen.add(keys, values)
        positions = np.arange(piece.start + first, piece.stop)
        for starts, count in self.pages.places(context):
            keys, values = self.pages.read(layer, starts[0], count, q.dtype)
            rope = self.later if starts[0] else self.rope
            seen.join(look(rows, positions, keys, values, starts, rope, layer, tick))
        return seen.result()


class StreamingSession:
    """StreamingLLM: the cache holds `sinks` first and `recent` latest tokens, however long the text."""

    copied = 0

    def __init__(self, config: LlamaConfig, rope: RopeScaling, reading: Reading, device: str) -> None:
        self.config, self.rope, self.reading, self.device = config, rope, reading, device
        self.capacity, self.length = MAX_POSITION + 1, 0
        self.angles = _Angles(reading, device)
        dtype = DTYPES[str(reading.kv)]
        nothing = torch.empty(config.kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self.kept = [{"sinks": (nothing, nothing), "recent": (nothing, nothing)} for _ in range(config.layers)]

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for kept in self.kept for pair in kept.values() for x in pair)

    def begin(self, tokens: Tensor) -> None:
        """As `Session.begin`."""

    def skip(self, piece: Piece, keep: int) -> bool:
        """As `Session.skip`."""
        return False

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, piece: Piece, first: int, tick: Callable[[], None]
    ) -> Tensor:
        """As `Session.attend`. Distances to recent tokens are true ones; sinks are never farther than the window."""
        tick()
        start, stop = piece.start, piece.stop
        cos, sin = self.angles.get(self.rope, layer, start, stop)
        k, v = rotate(k, cos, sin).transpose(0, 1), v.transpose(0, 1)
        (sink_k, sink_v), (recent_k, recent_v) = self.kept[layer].values()
        near_k, near_v = torch.cat((recent_k.to(k.dtype), k), 1), torch.cat((recent_v.to(v.dtype), v), 1)
        self._keep(layer, near_k, near_v)
        if first == len(q):
            return q.new_empty(0, q.shape[1] * q.shape[2])
        rows, heads = q[first:], self.config.kv_heads
        mine = torch.arange(start + first, stop, device=self.device)
        theirs = torch.arange(stop - near_k.shape[1], stop, device=self.device)
        seen = (theirs <= mine[:, None]) & (theirs > mine[:, None] - self.reading.recent)
        mask = torch.zeros(seen.shape, dtype=q.dtype, device=self.device).masked_fill_(~seen, -torch.inf)
        parts = [attend(fold(rotate(rows, cos[first:], sin[first:]), heads), near_k, near_v, mask)]
        if sink_k.shape[1]:
            inside = mine.clamp(max=self.reading.sinks + self.reading.recent - 1).cpu().numpy()
            near = [torch.from_numpy(x).to(self.device) for x in self.rope.cos_sin(inside, layer)]
            parts.append(attend(fold(rotate(rows, *near), heads), sink_k.to(k.dtype), sink_v.to(v.dtype)))
        return unfold(merge(parts)[0])

    def _keep(self, layer: int, near_k: Tensor, near_v: Tensor) -> None:
        """Fills up the sinks, then keeps the latest of the rest."""
        r, kept = self.reading, self.kept[layer]
        sink_k, sink_v = kept["sinks"]
        missing = r.sinks - sink_k.shape[1]
        if missing > 0:
            dtype = sink_k.dtype
            sink_k = torch.cat((sink_k, near_k[:, :missing].to(dtype)), 1)
            sink_v = torch.cat((sink_v, near_v[:, :missing].to(dtype)), 1)
            near_k, near_v = near_k[:, missing:], near_v[:, missing:]
        dtype = sink_k.dtype
        kept["sinks"] = (sink_k, sink_v)
        kept["recent"] = (near_k[:, -r.recent :].to(dtype).clone(), near_v[:, -r.recent :].to(dtype).clone())


AnySession = Session | BlockwiseSession | StreamingSession


class Reader(Protocol):
    """Where the keys and values of a piece go, and what its rows see; `Session` is one."""

    length: int  # tokens read

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, piece: Piece, first: int, tick: Callable[[], None]
    ) -> Tensor: ...


class Engine:
    """A model of the Llama family, ready to read long prompts.

    config: its shapes. tensors: a state dict with Hugging Face names. dtype: of the weights and the arithmetic.

    Raises:
        WeightsCorrupt: tensors that do not fit the configuration.
    """

    def __init__(
        self, config: LlamaConfig, tensors: dict[str, Tensor], dtype: str = "float32", device: str = "cpu"
    ) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.weights: Weights = prepare(config, tensors, DTYPES[dtype], device)

    def having(self, weights: Weights) -> Engine:
        """The same with other weights of the same shapes, in place and number format as these."""
        other = copy.copy(self)
        other.weights = weights
        return other

    def open(self, rope: RopeScaling | None, capacity: int, reading: Reading | None = None) -> AnySession:
        """An empty session for up to `capacity` tokens; a rope of None is the plain one.

        Raises:
            BadInput: settings or a table that do not fit this model. OutOfMemory: the cache does not fit.
        """
        reading = self.settled(reading or Reading())
        c = self.config
        if rope is None:
            rope = scaling("none", c.rotary_dim, c.base, c.window, c.window)
        check_rope(c, rope)
        if capacity > MAX_POSITION + 1:
            raise BadInput(f"{capacity:,} tokens are too many. At most {MAX_POSITION + 1:,} can be read.")
        if reading.mode == "blockwise":  # what it needs is known when the prompt is
            return BlockwiseSession(c, rope, reading, capacity, self.device, DTYPES[self.dtype])
        check_memory(memory_needed(c, capacity, reading, self.dtype, loaded=True), available_bytes(self.device))
        if reading.mode == "streaming":
            return StreamingSession(c, rope, reading, self.device)
        return guarded(lambda: Session(c, rope, reading, capacity, self.device))

    def settled(self, reading: Reading) -> Reading:
        """Checked, and with the cache's number format."""
        reading = replace(reading, kv=reading.kv or self.dtype)
        check_reading(reading)
        return reading

    def complete(
        self,
        ids: Sequence[int],
        max_new_tokens: int = 10,
        rope: RopeScaling | None = None,
        reading: Reading | None = None,
        stop: Sequence[int] = (),
        progress: Progress | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Completion:
        """Reads a prompt once and continues it greedily from the cache.

        Args:
            ids: the prompt's tokens. rope: one table for the whole request; None is the plain one.
            stop: ids that end the answer (not part of it). progress: called a few times a second while reading.
            on_token: called with each id of the answer as it appears. Either may raise `Cancelled`.

        Raises:
            BadInput: an empty prompt, ids outside the vocabulary, settings out of range. OutOfMemory: see there.
        """
        if max_new_tokens < 1:
            raise BadInput(f"{max_new_tokens} new tokens were asked for. Give a whole number from 1.")
        return guarded(
            lambda: self._complete(ids, max_new_tokens, rope, reading or Reading(), stop, progress, on_token)
        )

    def _complete(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        rope: RopeScaling | None,
        reading: Reading,
        stop: Sequence[int],
        progress: Progress | None,
        on_token: Callable[[int], None] | None,
    ) -> Completion:
        started = time.perf_counter()
        session = self.open(rope, len(ids) + max_new_tokens, reading)
        logits = self.prefill(session, ids, progress)
        prefilled = time.perf_counter()
        answer: list[int] = []
        for token in self.greedy(session, logits, max_new_tokens, stop):
            answer.append(token)
            if on_token is not None:
                on_token(token)
        return Completion(
            answer,
            reading.mode,
            session.rope.method,
            str(session.reading.kv),
            len(ids),
            prefilled - started,
            time.perf_counter() - prefilled,
            session.nbytes,
            session.rope.notes,
            session.copied,
        )

    @torch.inference_mode()
    def prefill(self, session: AnySession, ids: Sequence[int], progress: Progress | None = None) -> Tensor:
        """Reads a prompt into an empty session. Returns the last token's logits, float32 (vocabulary,)."""
        hidden = self._read(session, self.tokens(ids), len(ids) - 1, progress)
        return self.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def step(self, session: AnySession, token: int) -> Tensor:
        """Reads one more token. Returns its logits, float32 (vocabulary,)."""
        if session.length >= session.capacity:
            raise BadInput(f"The cache is full: {session.capacity:,} tokens. Open a session for more.")
        piece = Piece(session.length, session.length + 1, _range(0, session.length))
        return self.logits(self.read_piece(session, self.tokens([token]), piece, 0, lambda: None))[0]

    def greedy(self, session: AnySession, logits: Tensor, count: int, stop: Sequence[int] = ()) -> Iterator[int]:
        """The likeliest next tokens, one at a time, until one of `stop` or `count` of them."""
        for index in range(count):
            token = int(logits.argmax())
            if token in stop:
                return
            yield token
            if index + 1 < count:
                logits = self.step(session, token)

    @torch.inference_mode()
    def losses(
        self,
        ids: Sequence[int],
        first: int = 1,
        rope: RopeScaling | None = None,
        reading: Reading | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Negative log-likelihood of ids[first:], nats, float32 (len(ids) - first,).

        The mean over a window and exp give perplexity; over the answer's digits only, needle perplexity.
        """
        return self.forced(ids, first, rope, reading, progress)[0]

    @torch.inference_mode()
    def forced(
        self,
        ids: Sequence[int],
        first: int = 1,
        rope: RopeScaling | None = None,
        reading: Reading | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`losses` of ids[first:], and whether each was the likeliest token, bool: all are where greedy decoding
        would have said the same."""
        if not 1 <= first < len(ids):
            raise BadInput(f"The first token to score is {first} of {len(ids)}. Give 1 to {len(ids) - 1}.")
        return guarded(lambda: self._forced(self.tokens(ids), first, self.open(rope, len(ids), reading), progress))

    def _forced(
        self, tokens: Tensor, first: int, session: AnySession, progress: Progress | None
    ) -> tuple[Tensor, Tensor]:
        hidden = self._read(session, tokens[:-1], first - 1, progress)
        losses, likeliest = [], []
        for part, labels in zip(hidden.split(LOGIT_ROWS), tokens[first:].split(LOGIT_ROWS), strict=True):
            logits = self.logits(part)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            likeliest.append(logits.argmax(-1) == labels)
        return torch.cat(losses).cpu(), torch.cat(likeliest).cpu()

    def tokens(self, ids: Sequence[int]) -> Tensor:
        """Checked ids on the device, int64 (T,)."""
        if len(ids) == 0:
            raise BadInput("The prompt is empty. Give at least one token of text.")
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocabulary:
            wrong = low if low < 0 else high
            raise BadInput(f"Token {wrong} is outside the vocabulary of {self.config.vocabulary}. Use its tokenizer.")
        return tokens.to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 (rows, vocabulary) of hidden states (rows, width)."""
        return F.linear(rms_norm(hidden, self.weights.norm, self.config.eps), self.weights.head).float()

    def _read(self, session: AnySession, tokens: Tensor, keep: int, progress: Progress | None) -> Tensor:
        """Reads a prompt piece by piece. Returns hidden states of the positions from `keep` on."""
        if session.length:
            raise BadInput("This session has already read a prompt. Open a new one.")
        if len(tokens) > session.capacity:
            raise BadInput(f"The prompt has {len(tokens):,} tokens and the session holds {session.capacity:,}.")
        report = _Report(progress)
        kept = []
        session.begin(tokens)
        for piece in plan(len(tokens), session.reading):
            first = min(max(keep - piece.start, 0), piece.stop - piece.start)
            report.begin(piece, self.config.layers)
            if not session.skip(piece, keep):
                kept.append(self.read_piece(session, tokens[piece.start : piece.stop], piece, first, report.tick))
            report.end(piece)
        return torch.cat(kept)

    def read_piece(self, session: Reader, tokens: Tensor, piece: Piece, first: int, tick: Callable[[], None]) -> Tensor:
        """All layers over one piece. Returns the rows from `first` on; the last layer computes no others."""
        x = F.embedding(tokens, self.weights.embedding)
        for index, layer in enumerate(self.weights.layers):
            tick()
            x = self._layer(
                session, index, layer, x, piece, first if index + 1 == len(self.weights.layers) else 0, tick
            )
        session.length = piece.stop
        return x

    def _layer(
        self,
        session: Reader,
        index: int,
        layer: Layer,
        x: Tensor,
        piece: Piece,
        first: int,
        tick: Callable[[], None],
    ) -> Tensor:
        q, k, v = project(layer, self.config, x)
        seen = session.attend(index, q, k, v, piece, first, tick)
        return mlp(layer, self.config, torch.addmm(x[first:], seen.to(x.dtype), layer.output.T))


def load_folder(path: str | Path, dtype: str = "float32", device: str = "cpu") -> Engine:
    """A local Llama, Mistral, Qwen2 or Phi-3 folder: `config.json` and safetensors files.

    Raises:
        BadInput: no such folder or another architecture. WeightsCorrupt: a file that is damaged or does not fit.
    """
    from models.weights import read_safetensors

    folder = Path(path)
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise BadInput(f"{folder.name} is no model folder. Choose one with config.json and .safetensors files.")
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = read_config(content)
    except ValueError as error:
        raise BadInput("config.json is not JSON. Choose a folder with a complete model.") from error
    check_memory(memory_needed(config, 1, Reading(chunk=1), dtype), available_bytes())
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(file)
    return Engine(config, tensors, dtype, device)


def check_reading(reading: Reading) -> None:
    """Raises `BadInput` for settings no prompt can be read with."""
    r = reading
    if r.mode not in MODES:
        raise BadInput(f"Unknown mode {r.mode!r}. Choose one of {', '.join(MODES)}.")
    if r.kv is not None and r.kv not in KV_BITS:
        raise BadInput(f"Unknown cache format {r.kv!r}. Choose one of {', '.join(KV_BITS)}.")
    if min(r.chunk, r.block, r.recent) < 1 or min(r.anchor, r.question, r.sinks) < 0:
        raise BadInput("Chunk, block and recent window are at least 1 token; anchor, question and sinks at least 0.")
    if r.mode == "blockwise" and not (r.anchor <= r.block and r.question):
        raise BadInput(
            f"The anchor has {r.anchor} tokens, a block {r.block}, the question {r.question}. The anchor "
            "is at most a block, the question at least 1 token."
        )
    places = [at for at, _ in r.jumps]
    if r.jumps and (r.mode != "exact" or places != sorted(set(places)) or min(n for jump in r.jumps for n in jump) < 1):
        raise BadInput("Jumps are (token, positions) from 1, in the order of the text, and for exact reading only.")
    if r.mode == "streaming" and ((r.kv is not None and r.kv not in DTYPES) or r.sinks > r.recent):
        raise BadInput(
            "Streaming keeps few tokens: choose float32 or bfloat16, and a window no smaller than the sinks."
        )


def check_rope(config: LlamaConfig, rope: RopeScaling) -> None:
    """Raises `BadInput` for a table made for another model."""
    if rope.rotary_dim != config.rotary_dim:
        raise BadInput(
            f"The factor table has {rope.pairs} numbers; this model needs {config.rotary_dim // 2} (rotary_dim/2). "
            "Choose a table made for this model."
        )
    if rope.rescale_factors.ndim == 2 and len(rope.rescale_factors) != config.layers:
        raise BadInput(f"The table has {len(rope.rescale_factors)} rows; this model has {config.layers} layers.")


def memory_needed(
    config: LlamaConfig, tokens: int, reading: Reading, dtype: str = "float32", loaded: bool = False
) -> int:
    """Bytes a request will take: weights (unless `loaded`), cache, and what one chunk needs."""
    size = DTYPES[dtype].itemsize
    weights = 0 if loaded else config.parameters * size
    kept = min(tokens, reading.sinks + 2 * reading.recent) if reading.mode == "streaming" else tokens
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * KV_BITS[reading.kv or dtype] / 8
    chunk = min(reading.chunk, tokens)
    heads = config.heads * config.head_dim
    working = chunk * (4 * config.width + 6 * heads + 3 * config.hidden) * max(size, 4) + 4 * config.vocabulary
    in_memory = 0 if reading.folder is not None else kept * per_token
    return int(weights + in_memory + working + 8 * tokens)


def available_bytes(device: str = "cpu") -> int:
    """Free memory of the card, or of this machine or container."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    import psutil

    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return max(free, 0)


def check_memory(needed: int, available: int) -> None:
    """Raises `OutOfMemory` naming both numbers, before anything is loaded."""
    if needed > available:
        raise OutOfMemory(
            f"This text needs about {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are available. Use a shorter "
            "text, an int8 or int4 cache, or a cache on disk."
        )


def guarded(run: Callable[[], T]) -> T:
    """What `run` returns. Running out of memory becomes a message, and the memory is given back."""
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) and "allocate memory" not in str(error):
            raise
    gc.collect()  # outside of the handler: the error's frames, which hold the cache, are gone
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemory(
        "The memory was not enough for this text, so the run was stopped. Use a shorter text, or an int8 or int4 cache."
    )


class _Angles:
    """cos and sin of a piece, made once for all layers that share a row of factors."""

    def __init__(self, reading: Reading, device: str) -> None:
        self.reading, self.device = reading, device
        self.made: tuple[object, ...] = ()
        self.cos_sin: tuple[Tensor, Tensor] | None = None

    def get(self, rope: RopeScaling, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        row = layer if rope.rescale_factors.ndim == 2 else 0
        wanted = (rope, row, start, stop)  # a table equals itself only
        if self.cos_sin is None or self.made != wanted:
            cos, sin = (torch.from_numpy(x) for x in rope.cos_sin(self.reading.positions(start, stop), row))
            self.made, self.cos_sin = wanted, (cos.to(self.device), sin.to(self.device))
        return self.cos_sin


class _Report:
    """Tells how far the reading is, a few times a second and after every piece."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.started = self.last = time.perf_counter()
        self.piece, self.layers, self.ticks = Piece(0, 0, ()), 1, 0

    def begin(self, piece: Piece, layers: int) -> None:
        self.piece, self.layers = piece, layers

    def tick(self) -> None:
        """Called many times a piece, at least ten times a second: where the user may stop the run."""
        if self.progress is not None and time.perf_counter() - self.last >= REPORT_SECONDS:
            self._send(self.piece.start)

    def end(self, piece: Piece) -> None:
        if self.progress is not None:
            self._send(piece.stop)

    def _send(self, done: int) -> None:
        assert self.progress is not None
        self.last = time.perf_counter()
        self.progress(done, done / max(self.last - self.started, 1e-9))
