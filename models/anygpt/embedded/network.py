"""SmolLM2 as it is trained here: its own weights frozen, low-rank adapters and the new rows in float32.

The adapters are LoRA's (arXiv 2106.09685), one a matrix, with queries, keys and values as one matrix and gate and up
as another. The head is tied: a new row is learnt as what is read and as what is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.longrope.network import LlamaConfig, Weights

PARTS = ("qkv", "output", "gate_up", "down")  # the matrices of a layer


class Network(nn.Module):
    """Trainable parameters: `rows` (new, width), and for each matrix of each layer `down.*` (rank, in), `up.*`
    (out, rank).

    Args:
        weights: of the language model, any float dtype; computed with in that dtype.
        rows: how many new tokens there are; their ids follow the language model's.
    """

    def __init__(self, config: LlamaConfig, weights: Weights, rows: Tensor, rank: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.weights, self.rank = config, weights, rank
        self.rows = nn.Parameter(rows.clone().float())
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.watch: Callable[[str, Tensor], None] | None = None  # sees the inputs of every matrix, by its name here
        for i, layer in enumerate(weights.layers):
            for part in PARTS:
                out, into = getattr(layer, part).shape
                start = torch.randn((rank, into), generator=generator) / math.sqrt(into)
                self.down[f"{i}_{part}"] = nn.Parameter(start)
                self.up[f"{i}_{part}"] = nn.Parameter(torch.zeros(out, rank))

    def forward(self, ids: Tensor, adapted: bool = True) -> Tensor:
        """ids (B, T) -> final hidden states (B, T, width), normalised; not `adapted`: of the model as it was."""
        c, w = self.config, self.weights
        x = F.embedding(ids, torch.cat((w.embedding, self.rows.to(w.embedding.dtype))))
        cos, sin = rotation(c, ids.shape[1], x.dtype)
        unseen = torch.full((ids.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1).repeat(c.group, 1)
        for i in range(c.layers):
            x = self._layer(i, x, cos, sin, unseen, adapted)
        return F.rms_norm(x, (c.width,), w.norm, c.eps)

    def _layer(self, i: int, x: Tensor, cos: Tensor, sin: Tensor, unseen: Tensor, adapted: bool) -> Tensor:
        c, layer = self.config, self.weights.layers[i]
        heads = self._linear(i, "qkv", adapted, F.rms_norm(x, (c.width,), layer.attention_norm, c.eps))
        heads = heads.unflatten(-1, (-1, c.head_dim)).transpose(1, 2)  # (B, heads + 2 KV heads, T, head_dim)
        turning, v = heads.split((c.heads + c.kv_heads, c.kv_heads), 1)
        a, b = turning.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        q, k = turned.split((c.heads, c.kv_heads), 1)
        # Plain products: with so many short sequences they are much faster here than the fused kernel for CPUs.
        q = q.unflatten(1, (c.kv_heads, c.group)).flatten(0, 1).flatten(1, 2)  # (B * KV heads, group * T, head_dim)
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        chances = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=c.head_dim**-0.5).softmax(-1)
        seen = (chances @ v).unflatten(1, (c.group, -1)).unflatten(0, (-1, c.kv_heads)).flatten(1, 2)
        x = x + self._linear(i, "output", adapted, seen.transpose(1, 2).flatten(2))
        gate, up = self._linear(i, "gate_up", adapted, F.rms_norm(x, (c.width,), layer.mlp_norm, c.eps)).chunk(2, -1)
        return x + self._linear(i, "down", adapted, F.silu(gate) * up)

    def _linear(self, i: int, part: str, adapted: bool, x: Tensor) -> Tensor:
        weight, key = getattr(self.weights.layers[i], part), f"{i}_{part}"
        if self.watch is not None:
            self.watch(key, x)
        if not adapted:
            return F.linear(x, weight)
        low = F.linear(x, self.down[key].to(x.dtype))
        return F.linear(x, weight) + F.linear(low, self.up[key].to(x.dtype))


def rotation(config: LlamaConfig, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (length, head_dim / 2)."""
    powers = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.outer(torch.arange(length).float(), config.base**-powers)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def change(trained: Mapping[str, Tensor], i: int, part: str) -> Tensor:
    """What the adapter of one matrix adds to it: (out, in), float32; `trained` named as in `Network.state_dict`."""
    return trained[f"up.{i}_{part}"].float() @ trained[f"down.{i}_{part}"].float()
