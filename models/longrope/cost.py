"""What a long context costs: memory of the key-value cache, prefill and decoding time (specification section 9).

KV bytes per token = 2 * layers * KV heads * head dim * bytes a number. Prefill FLOP = 2 N T for the weights and
2 T^2 * width * layers for causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import BadInput

GIB = 2**30
MAX_TOKENS = 2**31
GROUPS = {"int8": 64, "int4": 32}  # numbers that share one 16-bit scale (int4: and minimum) in a quantised cache


@dataclass(frozen=True)
class ModelShape:
    """What the costs of a model depend on. width: all query heads together; parameters: N, embeddings included."""

    name: str
    layers: int
    width: int
    kv_heads: int
    head_dim: int
    parameters: float


MODELS = {
    model.name: model
    for model in (
        ModelShape("SmolLM2-135M", 30, 576, 3, 64, 134.5e6),
        ModelShape("LLaMA-2-7B", 32, 4096, 32, 128, 6.74e9),
        ModelShape("Mistral-7B", 32, 4096, 8, 128, 7.24e9),
        ModelShape("LLaMA-3-8B", 32, 4096, 8, 128, 8.03e9),
        ModelShape("Phi-3-mini", 32, 3072, 32, 96, 3.82e9),
        ModelShape("Phi-3.5-mini", 32, 3072, 32, 96, 3.82e9),
        ModelShape("Phi-4-mini", 32, 3072, 8, 128, 3.84e9),
        ModelShape("LLaMA-3.1-70B", 80, 8192, 8, 128, 70.6e9),
    )
}

KV_BITS = {
    "float32": 32.0,
    "bfloat16": 16.0,
    "float16": 16.0,
    "int8": 8 + 16 / GROUPS["int8"],
    "int4": 4 + 32 / GROUPS["int4"],
}


@dataclass(frozen=True)
class Gpu:
    """memory_bytes; flops: what prefill really reaches, FLOP/s; bandwidth: of its memory, bytes/s."""

    name: str
    memory_bytes: float
    flops: float
    bandwidth: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100 80 GB", 80e9, 190e12, 2.0e12),
        Gpu("H100 80 GB, FlashAttention 2", 80e9, 350e12, 3.35e12),
        Gpu("H100 80 GB, FlashAttention 3", 80e9, 600e12, 3.35e12),
    )
}


@dataclass(frozen=True)
class Cost:
    """Bytes, FLOP and seconds of one request on perfectly scaling GPUs. fits: weights (16-bit) and KV fit together."""

    kv_bytes: float
    weight_bytes: float
    prefill_flop: float
    prefill_seconds: float
    decode_seconds_per_token: float
    attention_share: float
    fits: bool


def kv_bytes_per_token(model: ModelShape, dtype: str = "bfloat16") -> float:
    """Bytes the cache grows by with every token."""
    if dtype not in KV_BITS:
        raise BadInput(f"Unknown cache format {dtype!r}. Choose one of {', '.join(KV_BITS)}.")
    return 2 * model.layers * model.kv_heads * model.head_dim * KV_BITS[dtype] / 8


def prefill_flop(model: ModelShape, tokens: int, block: int | None = None, anchor: int = 0) -> float:
    """Floating-point operations to read a prompt once.

    block, anchor: tokens of the blockwise mode, where a token sees its own block and the anchor only; None is exact.
    """
    weights = 2.0 * model.parameters * tokens
    if block is None or block >= tokens:
        return weights + 2.0 * tokens**2 * model.width * model.layers
    seen = block / 2 + min(anchor, block)
    return weights + 4.0 * tokens * seen * model.width * model.layers


def estimate(model: str, tokens: int, dtype: str = "bfloat16", gpu: str = "A100 80 GB", gpus: int = 1) -> Cost:
    """Memory and time of one request.

    Args:
        model, gpu: names in `MODELS` and `GPUS`. tokens: prompt and answer. dtype: of the cache. gpus: from 1.

    Raises:
        BadInput: an unknown name or a number out of range.
    """
    if model not in MODELS:
        raise BadInput(f"Unknown model {model!r}. Choose one of {', '.join(MODELS)}.")
    if gpu not in GPUS:
        raise BadInput(f"Unknown GPU {gpu!r}. Choose one of {', '.join(GPUS)}.")
    if not 1 <= tokens <= MAX_TOKENS or not 1 <= gpus <= 4096:
        raise BadInput(f"{tokens} tokens on {gpus} GPUs. Give 1 to {MAX_TOKENS:,} tokens and 1 to 4096 GPUs.")
    shape, card = MODELS[model], GPUS[gpu]
    kv, weights = kv_bytes_per_token(shape, dtype) * tokens, 2 * shape.parameters
    flop = prefill_flop(shape, tokens)
    return Cost(
        kv_bytes=kv,
        weight_bytes=weights,
        prefill_flop=flop,
        prefill_seconds=flop / (card.flops * gpus),
        decode_seconds_per_token=(kv + weights) / (card.bandwidth * gpus),
        attention_share=1 - 2 * shape.parameters * tokens / flop,
        fits=kv + weights <= card.memory_bytes * gpus,
    )
