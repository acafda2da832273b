"""The Llama architecture as plain functions over plain tensors: what the engine runs, layer by layer.

RMSNorm, rotary grouped-query attention, SwiGLU (arXiv 2302.13971, 2307.09288). Reads state dicts with Hugging Face
names of Llama and Mistral, with biases (Qwen2) and fused projections (Phi-3, Phi-4-mini).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import BadInput, WeightsCorrupt

MLP_ROWS = 2048  # rows of the hidden state that pass the MLP at once


@dataclass(frozen=True)
class LlamaConfig:
    """Shapes of a model. window: tokens it was trained for. rotary_dim: less than head_dim with partial rotary."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    base: float
    window: int
    rotary_dim: int
    eps: float = 1e-5

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def parameters(self) -> int:
        """How many numbers the weights have, with a tied head."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.width * self.hidden + 2 * self.width
        return self.layers * layer + self.vocabulary * self.width + self.width


def read_config(content: Mapping[str, Any]) -> LlamaConfig:
    """Shapes from a Hugging Face `config.json`. Rotary scaling it may state is not applied: choose a `RopeScaling`.

    Raises:
        BadInput: another architecture, a missing field, or shapes that do not go together.
    """
    kind = content.get("model_type")
    if kind not in ("llama", "mistral", "qwen2", "phi3"):
        raise BadInput(f"The model type is {kind!r}. This engine reads llama, mistral, qwen2 and phi3.")
    if content.get("hidden_act", "silu") != "silu":
        raise BadInput(f"The activation is {content['hidden_act']!r}. This engine computes silu.")
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    try:
        heads, width = int(content["num_attention_heads"]), int(content["hidden_size"])
        head_dim = int(content.get("head_dim") or width // heads)
        largest = int(content["max_position_embeddings"])
        original = content.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
        partial = content.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
        found = LlamaConfig(
            layers=int(content["num_hidden_layers"]),
            width=width,
            heads=heads,
            kv_heads=int(content.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            hidden=int(content["intermediate_size"]),
            vocabulary=int(content["vocab_size"]),
            base=float(content.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
            window=int(original or largest),
            rotary_dim=int(head_dim * float(partial)),
            eps=float(content.get("rms_norm_eps", 1e-6)),
        )
    except KeyError as error:
        raise BadInput(f"config.json has no {error.args[0]!r}. Choose a folder with a complete model.") from None
    except (TypeError, ValueError, AttributeError):
        raise BadInput("config.json has a field that is not a number. Choose a folder with a complete model.") from None
    if min(vars(found).values()) <= 0 or found.heads % found.kv_heads or found.rotary_dim % 2:
        raise BadInput(
            f"config.json states {found.heads} heads and {found.kv_heads} for keys, {found.rotary_dim} rotary "
            "dimensions; they do not go together. Choose a folder with a complete model."
        )
    return found


@dataclass
class Layer:
    """One layer's weights, each (out, in); queries, keys and values in one matrix, gate and up in another."""

    qkv: Tensor
    qkv_bias: Tensor | None
    output: Tensor
    gate_up: Tensor
    down: Tensor
    attention_norm: Tensor
    mlp_norm: Tensor


@dataclass
class Weights:
    """A whole model. head: (vocabulary, width), the embedding itself where they are tied."""

    embedding: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Tensor

    @property
    def nbytes(self) -> int:
        tensors = [self.embedding, self.norm] + ([] if self.head is self.embedding else [self.head])
        tensors += [x for layer in self.layers for x in vars(layer).values() if x is not None]
        return sum(x.numel() * x.element_size() for x in tensors)


def prepare(
    config: LlamaConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Weights:
    """Weights from a state dict with Hugging Face names, projections joined.

    Raises:
        WeightsCorrupt: a tensor is missing or has another shape than the configuration says.
    """
    c = config
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def take(name: str, *shape: int) -> Tensor:
        if name not in tensors:
            raise WeightsCorrupt(f"The weights have no {name!r}. Choose a complete model of the Llama family.")
        if tuple(tensors[name].shape) != shape:
            given = " x ".join(map(str, tensors[name].shape))
            raise WeightsCorrupt(f"{name} is {given}; expected {' x '.join(map(str, shape))}. Choose a matching file.")
        return tensors[name].to(device, dtype)

    def layer(prefix: str) -> Layer:
        attention, mlp = f"{prefix}.self_attn.", f"{prefix}.mlp."
        rows = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
        if f"{attention}qkv_proj.weight" in tensors:
            qkv = take(f"{attention}qkv_proj.weight", queries + 2 * keys, c.width)
        else:
            qkv = torch.cat([take(f"{attention}{name}.weight", count, c.width) for name, count in rows])
        bias = None
        if f"{attention}q_proj.bias" in tensors:
            bias = torch.cat([take(f"{attention}{name}.bias", count) for name, count in rows])
        if f"{mlp}gate_up_proj.weight" in tensors:
            gate_up = take(f"{mlp}gate_up_proj.weight", 2 * c.hidden, c.width)
        else:
            gate_up = torch.cat([take(f"{mlp}{name}_proj.weight", c.hidden, c.width) for name in ("gate", "up")])
        return Layer(
            qkv=qkv,
            qkv_bias=bias,
            output=take(f"{attention}o_proj.weight", c.width, queries),
            gate_up=gate_up,
            down=take(f"{mlp}down_proj.weight", c.width, c.hidden),
            attention_norm=take(f"{prefix}.input_layernorm.weight", c.width),
            mlp_norm=take(f"{prefix}.post_attention_layernorm.weight", c.width),
        )

    embedding = take("model.embed_tokens.weight", c.vocabulary, c.width)
    layers = [layer(f"model.layers.{index}") for index in range(c.layers)]
    norm = take("model.norm.weight", c.width)
    head = take("lm_head.weight", c.vocabulary, c.width) if "lm_head.weight" in tensors else embedding
    return Weights(embedding, layers, norm, head)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, pair i being dimensions i and i + pairs; the rest passes. x: (T, heads, head_dim).

    cos, sin: float32 (T, pairs).
    """
    pairs = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    a, b = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    out = torch.empty_like(x)
    out[..., :pairs] = a * cos - b * sin
    out[..., pairs : 2 * pairs] = b * cos + a * sin
    out[..., 2 * pairs :] = x[..., 2 * pairs :]
    return out


def project(layer: Layer, config: LlamaConfig, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, heads, head_dim), keys and values (T, KV heads, head_dim) of hidden states (T, width)."""
    normed = rms_norm(x, layer.attention_norm, config.eps)
    qkv = F.linear(normed, layer.qkv, layer.qkv_bias).unflatten(-1, (-1, config.head_dim))
    q, k, v = qkv.split((config.heads, config.kv_heads, config.kv_heads), 1)
    return q, k, v


def mlp(layer: Layer, config: LlamaConfig, x: Tensor) -> Tensor:
    """x + down(silu(gate) * up) of hidden states (T, width), some rows at a time."""
    out = torch.empty_like(x)
    for start in range(0, len(x), MLP_ROWS):
        rows = x[start : start + MLP_ROWS]
        gate, up = F.linear(rms_norm(rows, layer.mlp_norm, config.eps), layer.gate_up).chunk(2, -1)
        out[start : start + MLP_ROWS] = torch.addmm(rows, F.silu(gate).mul_(up), layer.down.T)
    return out
