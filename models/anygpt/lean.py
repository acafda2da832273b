"""Llama without anything between its products: what a small model on a CPU spends its time on otherwise.

`exact` computes what transformers computes. `quantised` keeps each matrix in 8 bits for single tokens, one scale a row:
half the memory traffic, which is what a token costs. Prompts are read with the matrices as they are in both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anygpt.decoding import PREFILL, check_window
from models.anygpt.grammar import Allowed
from models.errors import BadInput
from models.longrope.network import prepare, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOGETHER = 4  # streams: two candidates, each with the one that guides it


class Matrix:
    """x (T, in) -> (T, out)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def rows(self, x: Tensor, low: int, high: int) -> Tensor:
        """Only outputs low to high - 1."""
        return F.linear(x, self.weight[low:high])


class Int8Matrix(Matrix):
    """The same from 8-bit weights where x has few rows."""

    NUMBERS = torch.bfloat16  # of the rows; the kernel for float32 is ten times slower

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
        self.small = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.scale = scale.to(self.NUMBERS)

    def __call__(self, x: Tensor) -> Tensor:
        return self.rows(x, 0, len(self.scale)) if len(x) <= TOGETHER else super().__call__(x)

    def rows(self, x: Tensor, low: int, high: int) -> Tensor:
        return torch._weight_int8pack_mm(x.to(self.NUMBERS), self.small[low:high], self.scale[low:high]).to(x.dtype)


class LeanLlama:
    """Stands in for `decoding.LanguageModel`. Made by `exact` or `quantised`."""

    together = TOGETHER

    def __init__(self, model: PreTrainedModel, window: int | None, matrix: Callable[[Tensor], Matrix]) -> None:
        content = model.config.to_dict()
        rope = content.get("rope_parameters") or {}
        if content.get("model_type") != "llama" or rope.get("rope_type", "default") != "default":
            raise BadInput(
                f"A model of type {content.get('model_type')!r}, rotary type {rope.get('rope_type')!r}, is not plain "
                "Llama. Use LanguageModel for it."
            )
        if content.get("attention_bias") or content.get("mlp_bias"):
            raise BadInput("This Llama has biases. Use LanguageModel for it.")
        self.config = c = read_config(content)
        self.device, self.window = model.device, window or c.window
        weights = prepare(c, model.state_dict(), model.dtype, model.device)
        self.rows, self.embedding, self.norm = c.vocabulary, weights.embedding, weights.norm
        self.layers = [
            (w.attention_norm, matrix(w.qkv), matrix(w.output), w.mlp_norm, matrix(w.gate_up), matrix(w.down))
            for w in weights.layers
        ]
        self.head = matrix(weights.head)
        self.frequencies = c.base ** (-torch.arange(0, c.head_dim, 2, device=self.device).float() / c.head_dim)

    def open(self) -> LeanSession:
        return LeanSession(self)

    @torch.inference_mode()
    def read(self, pieces: Sequence[tuple[LeanSession, Sequence[int]]]) -> list[Tensor]:
        """Reads at least one id in each of some streams; the last position's final hidden state (1, width) of each.

        One pass over the matrices for all: they are most of what a single token costs.

        Raises:
            BadInput: a stream would be longer than the model's window.
        """
        c, lengths = self.config, [len(ids) for _, ids in pieces]
        if sum(lengths) > PREFILL:
            return [session.read(ids) for session, ids in pieces]
        for session, ids in pieces:
            check_window(session.length + len(ids), self.window)
            session.reserve(len(ids))
        x = F.embedding(torch.tensor([token for _, ids in pieces for token in ids], device=self.device), self.embedding)
        places = torch.cat([torch.arange(len(ids), device=self.device) + session.length for session, ids in pieces])
        angles = torch.outer(places.float(), self.frequencies).repeat(1, 2)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        seen = [session.seen(len(ids)) for session, ids in pieces]
        for i, (attention_norm, qkv, output, mlp_norm, gate_up, down) in enumerate(self.layers):
            heads = qkv(self._normed(x, attention_norm)).view(len(x), -1, c.head_dim)
            turning, v = heads.split((c.heads + c.kv_heads, c.kv_heads), 1)
            a, b = turning.chunk(2, -1)
            turned = turning * cos + torch.cat((-b, a), -1) * sin
            rows = zip(pieces, turned.split(lengths), v.split(lengths), seen, strict=True)
            x = x + output(torch.cat([session.attend(i, *row) for (session, _), *row in rows]))
            gate, up = gate_up(self._normed(x, mlp_norm)).chunk(2, -1)
            x = x + down(F.silu(gate) * up)
        for session, ids in pieces:
            session.length += len(ids)
        return [self._normed(part[-1:], self.norm) for part in x.split(lengths)]

    @torch.inference_mode()
    def scores(self, hidden: Tensor, allowed: Allowed) -> Tensor:
        """Logits of the allowed ids, (n,) float32, for a hidden state (1, width)."""
        return torch.cat([self.head.rows(hidden, low, high) for low, high in allowed.spans], 1)[0].float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.eps)


def exact(model: PreTrainedModel, window: int | None = None) -> LeanLlama:
    """A plain Llama of transformers, its numbers as they are. Raises `BadInput` for another architecture."""
    return LeanLlama(model, window, Matrix)


def quantised(model: PreTrainedModel, window: int | None = None) -> LeanLlama:
    """The same with 8-bit matrices, one scale a row, for single tokens. CPU only."""
    return LeanLlama(model, window, Int8Matrix)


class LeanSession:
    """One stream being read. keys, values: (layers, KV heads, capacity, head_dim), doubled when full."""

    def __init__(self, lm: LeanLlama) -> None:
        c = lm.config
        self.lm, self.length = lm, 0
        self.keys, self.values = (
            torch.empty((c.layers, c.kv_heads, 256, c.head_dim), dtype=lm.embedding.dtype, device=lm.device)
            for _ in range(2)
        )

    def fork(self) -> LeanSession:
        """Another stream that has read the same."""
        other = copy.copy(self)
        other.keys, other.values = self.keys.clone(), self.values.clone()
        return other

    def read(self, ids: Sequence[int]) -> Tensor:
        """Reads at least one id; the last position's final hidden state (1, width). See `decoding.Session.read`."""
        check_window(self.length + len(ids), self.lm.window)
        hidden = torch.empty(0)
        for low in range(0, len(ids), PREFILL):
            (hidden,) = self.lm.read([(self, ids[low : low + PREFILL])])
        return hidden

    def attend(self, layer: int, turned: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """What the next tokens see in a layer: (T, heads * d). Their keys and values are kept.

        turned: (T, heads + KV heads, d), queries and keys with their positions. v: (T, KV heads, d). seen: `seen`.
        """
        heads, start, end = self.lm.config.heads, self.length, self.length + len(turned)
        self.keys[layer, :, start:end] = turned[:, heads:].transpose(0, 1)
        self.values[layer, :, start:end] = v.transpose(0, 1)
        q, k, v = turned[:, :heads], self.keys[layer, :, :end], self.values[layer, :, :end]
        if seen is None:  # one token: the heads that share a key are rows of one query
            grouped = q.view(len(k), -1, q.shape[-1])
            return F.scaled_dot_product_attention(grouped[None], k[None], v[None]).view(1, -1)
        out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None], seen, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)

    def seen(self, count: int) -> Tensor | None:
        """(count, length + count) bool, what each of the next tokens may look at; None where there is only one."""
        if count == 1:
            return None
        return torch.ones((count, self.length + count), dtype=torch.bool, device=self.keys.device).tril(self.length)

    def reserve(self, count: int) -> None:
        """Makes room for the next tokens."""
        have, end = self.keys.shape[2], self.length + count
        if end > have:
            grown = (0, 0, 0, max(end, 2 * have) - have)
            self.keys, self.values = F.pad(self.keys, grown), F.pad(self.values, grown)
