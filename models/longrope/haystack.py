"""A long text read once and asked many times: for tests of many needles, and of many methods, at one price.

Blocks are read as in blockwise mode, so a needle changes nothing but the rest of its own block: only that is read again
for each prompt. Keys are kept as they are before rotation and turned when they are looked at. Each block was read at
positions inside the trained window with the model's own angles; the method's angles and the true positions are what the
question sees. So one reading serves every method, and every length up to its own; and a block that says what an earlier
one said, as those of the usual filler do, has the same keys and values: it is neither read nor kept again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import BadInput
from models.longrope.attention import Part, attend, attend_causal, fold, merge
from models.longrope.cache import KVCache
from models.longrope.engine import (
    DTYPES,
    Block,
    Engine,
    Piece,
    Progress,
    Reading,
    available_bytes,
    check_memory,
    check_rope,
    memory_needed,
    plan,
)
from models.longrope.network import mlp, project, rotate
from models.longrope.pages import Pages, look, page_rope
from models.longrope.rope import MAX_POSITION, RopeScaling, scaling


@dataclass
class Change:
    """What a prompt has instead of the haystack's tokens start to stop - 1: their keys, not rotated, and values."""

    start: int
    stop: int
    cache: KVCache


@dataclass
class _Branch:
    """One prompt: the context's tokens it sees, what is changed there, and each layer's keys and values since."""

    context: int
    change: Change | None
    tail: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.context + (self.tail[0][0].shape[1] if self.tail else 0)

    def has_changed(self, start: int) -> bool:
        """Whether the block that begins there is another one in this prompt."""
        return self.change is not None and self.change.start <= start < self.change.stop

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values since the context, with these (KV heads, T, head_dim) at the end."""
        if layer == len(self.tail):
            self.tail.append((keys, values))
        else:
            old_keys, old_values = self.tail[layer]
            self.tail[layer] = torch.cat((old_keys, keys), 1), torch.cat((old_values, values), 1)
        return self.tail[layer]


class Haystack:
    """The context of many prompts. Nothing is read before `read_to`; `read` says how many tokens were.

    ids: the text, without a question. reading: blockwise; its cache is what takes memory.

    Raises:
        BadInput: another mode, blocks that with their anchor leave the trained window, an empty or too long text.
        OutOfMemory: the cache does not fit.
    """

    def __init__(self, engine: Engine, ids: Sequence[int], reading: Reading) -> None:
        reading = engine.settled(reading)
        c = engine.config
        if reading.mode != "blockwise":
            raise BadInput(f"A haystack is read blockwise, not in mode {reading.mode}.")
        if reading.anchor + reading.block > c.window:
            raise BadInput(
                f"An anchor of {reading.anchor} and a block of {reading.block} tokens are more than the {c.window} the "
                "model was trained for. Choose smaller ones."
            )
        if len(ids) > MAX_POSITION + 1:
            raise BadInput(f"{len(ids):,} tokens are too many. At most {MAX_POSITION + 1:,} can be read.")
        self.engine, self.reading = engine, reading
        self.tokens = engine.tokens(ids)
        self.pages = Pages(self.tokens, reading.block)  # keys are kept there as they are before rotation
        needed = memory_needed(c, self.pages.kept, reading, engine.dtype, loaded=True)
        check_memory(needed, available_bytes(engine.device))
        self.pages.allocate(c, str(reading.kv), engine.device, reading.folder)
        self.read = self.length = 0
        plain = scaling("none", c.rotary_dim, c.base, c.window, c.window)
        self.block = Block(c, plain, reading, DTYPES[engine.dtype], engine.device)
        self.change: Change | None = None  # being read now

    @torch.inference_mode()
    def read_to(self, tokens: int, progress: Progress | None = None) -> None:
        """Reads on, block by block, until so many tokens are read. progress: called after every piece with how many
        were read and how many a second; may raise `Cancelled`, and what was read by then can be asked."""
        if tokens > len(self.tokens):
            raise BadInput(f"{tokens:,} tokens were asked for; the text has {len(self.tokens):,}.")
        started, before = time.perf_counter(), self.read // self.reading.block * self.reading.block
        block_end = min(-(-tokens // self.reading.block) * self.reading.block, len(self.tokens))
        for piece in self._pieces(block_end):
            if piece.start < before:  # a block that was begun begins anew: changes were read since, perhaps
                continue
            if piece.block not in self.pages.same:
                self._piece(self.tokens, piece)
            self.read = piece.stop
            if progress is not None:
                progress(piece.stop, (piece.stop - before) / (time.perf_counter() - started))

    def _pieces(self, tokens: int) -> list[Piece]:
        question = self.reading.question
        return [piece for piece in plan(tokens + question, self.reading) if piece.start < tokens]

    def _piece(self, tokens: Tensor, piece: Piece) -> None:
        rows = piece.stop - piece.start
        self.engine.read_piece(self, tokens[piece.start : piece.stop], piece, rows, lambda: None)

    # ---- reading ----------------------------------------------------------------------------------------------

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, piece: Piece, first: int, tick: Callable[[], None]
    ) -> Tensor:
        """As `Session.attend`, for pieces of the context; keys are stored as they are before rotation."""
        keys, values = k.transpose(0, 1), v.transpose(0, 1)
        if self.change is None:
            self.pages.write(layer, piece.start, keys, values)
        else:
            self.change.cache.write(layer, piece.start - self.change.start, keys, values)
        return self.block.attend(layer, q, k, v, piece, first)

    def stored(
        self, layer: int, start: int, count: int, change: Change | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys, not rotated, and values (KV heads, count, head_dim) of the block at `start`, or of what a prompt
        has there."""
        if change is None:
            return self.pages.read(layer, start, count, dtype)
        at = start - change.start
        ((keys, values),) = change.cache.read(layer, at, at + count, count, dtype)
        return keys, values

    @torch.inference_mode()
    def changed(self, ids: Sequence[int]) -> Change | None:
        """Reads anew what a context that differs from the haystack in some place has there: its block.

        Raises `BadInput` if it is longer than what was read, or differs within the anchor, which every block sees.
        """
        if len(ids) > self.read:
            raise BadInput(f"The context has {len(ids):,} tokens; {self.read:,} of the haystack were read.")
        tokens = self.engine.tokens(ids)
        places = (tokens != self.tokens[: len(ids)]).nonzero()
        if not len(places):
            return None
        first, last = int(places[0]), int(places[-1])
        if first < self.reading.anchor:
            raise BadInput(f"Token {first} differs, inside the anchor of {self.reading.anchor}. Hide needles after it.")
        size = self.reading.block
        begin, end = first // size * size, (last // size + 1) * size
        pieces = [piece for piece in self._pieces(len(ids)) if begin <= piece.start < end]
        start, stop = pieces[0].start, pieces[-1].stop
        c = self.engine.config
        room = KVCache(c.layers, c.kv_heads, c.head_dim, stop - start, str(self.reading.kv), self.engine.device)
        self.change = Change(start, stop, room)
        try:
            for piece in pieces:
                self._piece(tokens, piece)
            return self.change
        finally:
            self.change = None

    # ---- asking -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answers(
        self,
        rope: RopeScaling,
        context: int,
        changes: Sequence[Change | None],
        question: Sequence[int],
        count: int,
        stop: Sequence[int] = (),
    ) -> list[list[int]]:
        """Greedy answers of up to `count` tokens to one question at position `context`, one for each of `changes`."""
        branches = self._branches(rope, context, changes)
        hidden = self._read(rope, branches, self.engine.tokens(question).expand(len(branches), -1))
        found: list[list[int]] = [[] for _ in branches]
        going = list(range(len(branches)))
        for index in range(count):
            likeliest = self.engine.logits(hidden[:, -1]).argmax(-1).tolist()
            for at, token in zip(going, likeliest, strict=True):
                found[at].append(token)
            going = [at for at in going if found[at][-1] not in stop]
            if not going or index + 1 == count:
                break
            latest = torch.tensor([[found[at][-1]] for at in going], device=self.engine.device)
            hidden = self._read(rope, [branches[at] for at in going], latest)
        return [[token for token in answer if token not in stop] for answer in found]

    @torch.inference_mode()
    def forced(
        self,
        rope: RopeScaling,
        context: int,
        changes: Sequence[Change | None],
        question: Sequence[int],
        answers: Sequence[Sequence[int]],
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each answer's tokens, nats, float32 (answers, tokens), all equally long; and
        whether each was the likeliest, bool: all are where greedy decoding would say the same."""
        branches = self._branches(rope, context, changes)
        rows = [[*question, *answer] for answer in answers]
        tokens = torch.stack([self.engine.tokens(row) for row in rows])
        hidden = self._read(rope, branches, tokens[:, :-1])[:, len(question) - 1 :]
        logits = self.engine.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        wanted = tokens[:, len(question) :]
        return F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").cpu(), (
            logits.argmax(-1) == wanted
        ).cpu()

    def _branches(self, rope: RopeScaling, context: int, changes: Sequence[Change | None]) -> list[_Branch]:
        check_rope(self.engine.config, rope)
        if not 0 < context <= self.read:
            raise BadInput(f"A context of {context:,} tokens was asked for; {self.read:,} were read.")
        return [_Branch(context, change) for change in changes]

    def _read(self, rope: RopeScaling, branches: Sequence[_Branch], tokens: Tensor) -> Tensor:
        """One more piece of every branch. tokens: (branches, T). Returns hidden states (branches, T, width)."""
        engine, (count, rows) = self.engine, tokens.shape
        start = branches[0].length
        x = F.embedding(tokens.flatten(), engine.weights.embedding)
        for index, layer in enumerate(engine.weights.layers):
            cos, sin = _angles(rope, np.arange(start, start + rows), index, engine.device)
            queries, parts = [], []
            for branch, q, k, v in zip(
                branches, *(y.split(rows) for y in project(layer, engine.config, x)), strict=True
            ):
                keys, values = branch.extend(index, rotate(k, cos, sin).transpose(0, 1), v.transpose(0, 1))
                queries.append(q)
                turned = fold(rotate(q, cos, sin), engine.config.kv_heads)
                parts.append(attend(turned, keys, values) if rows == 1 else attend_causal(turned, keys, values))
            seen = self._look(rope, index, branches, torch.stack(queries), _stacked(parts))
            x = mlp(layer, engine.config, torch.addmm(x, seen.to(x.dtype), layer.output.T))
        return x.unflatten(0, (count, rows))

    def _look(self, rope: RopeScaling, layer: int, branches: Sequence[_Branch], queries: Tensor, seen: Part) -> Tensor:
        """All branches look at the context; what they share is looked at by all at once.

        queries: (branches, T, heads, head_dim), not rotated. seen: what they saw of themselves, (KV heads, group,
        branches, T, head_dim). Returns hidden states (branches * T, heads * head_dim).
        """
        context, rows = branches[0].context, queries.shape[1]
        position = np.arange(branches[0].length - rows, branches[0].length)

        def by(members: list[int], starts: list[int], count: int, change: Change | None) -> None:
            own = page_rope(rope, starts[0], self.reading.block)
            cos, sin = _angles(own, np.arange(count), layer, self.engine.device)
            keys, values = self.stored(layer, starts[0], count, change, queries.dtype)
            keys = rotate(keys.transpose(0, 1), cos, sin).transpose(0, 1).contiguous()
            looking, positions = queries[members].flatten(0, 1), np.tile(position, len(members))
            part = look(looking, positions, keys, values.contiguous(), starts, own, layer)
            out, total = (x.unflatten(2, (len(members), rows)) for x in part)
            merged = merge([(seen[0][:, :, members], seen[1][:, :, members]), (out, total)])
            seen[0][:, :, members], seen[1][:, :, members] = merged

        for starts, count in self.pages.places(context):
            changed = {start: [i for i, branch in enumerate(branches) if branch.has_changed(start)] for start in starts}
            if alike := [start for start in starts if not changed[start]]:
                by(list(range(len(branches))), alike, count, None)
            for start, those in changed.items():
                for index in those:
                    by([index], [start], count, branches[index].change)
                if those and (others := [i for i in range(len(branches)) if i not in those]):
                    by(others, [start], count, None)
        return seen[0].permute(2, 3, 0, 1, 4).flatten(2).flatten(0, 1)


def _angles(rope: RopeScaling, positions: np.ndarray, layer: int, device: str) -> tuple[Tensor, Tensor]:
    row = layer if rope.rescale_factors.ndim == 2 else 0
    cos, sin = rope.cos_sin(positions, row)
    return torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device)


def _stacked(parts: Sequence[Part]) -> Part:
    """Parts of branches as one, float32: (KV heads, group, branches, T, head_dim) and without head_dim."""
    return torch.stack([out for out, _ in parts], 2).float(), torch.stack([total for _, total in parts], 2)
