"""The cost calculator against the specification's figures (section 9)."""

import pytest

from models.errors import BadInput
from models.longrope.cost import GIB, GPUS, MODELS, estimate, kv_bytes_per_token, prefill_flop


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        *(("LLaMA-2-7B", 1024), ("Mistral-7B", 256), ("Phi-4-mini", 256), ("LLaMA-3-8B", 256)),
        *(("Phi-3-mini", 768), ("LLaMA-3.1-70B", 640)),
    ],
)
def test_cache_of_two_million_tokens(model, gib):
    assert estimate(model, 2_097_152, "float16").kv_bytes == gib * GIB


@pytest.mark.parametrize(
    ("model", "tokens", "flop"),
    [
        *(("LLaMA-2-7B", 2**17, 6.3e15), ("LLaMA-2-7B", 2**18, 2.2e16), ("LLaMA-2-7B", 2**21, 1.18e18)),
        *(("Phi-3-mini", 2**17, 4.4e15), ("Phi-3-mini", 2**18, 1.6e16), ("Phi-4-mini", 2**21, 8.8e17)),
    ],
)
def test_prefill_flop(model, tokens, flop):
    assert estimate(model, tokens).prefill_flop == pytest.approx(flop, rel=0.04)


def test_two_million_tokens_of_a_7b():
    cost = estimate("LLaMA-2-7B", 2**21)
    assert cost.prefill_seconds / 60 == pytest.approx(104, abs=1)
    assert cost.attention_share == pytest.approx(0.98, abs=0.005)
    eight = estimate("LLaMA-2-7B", 2**21, gpu="H100 80 GB, FlashAttention 2", gpus=8)
    assert eight.prefill_seconds / 60 == pytest.approx(7, abs=0.1)
    assert eight.decode_seconds_per_token == pytest.approx(0.0415, abs=0.0005)
    assert not eight.fits and estimate("Mistral-7B", 2**18).fits


def test_quantised_caches():
    shape = MODELS["Mistral-7B"]
    exact = kv_bytes_per_token(shape)
    assert kv_bytes_per_token(shape, "float32") == 2 * exact
    assert kv_bytes_per_token(shape, "int8") == exact * 8.25 / 16
    assert kv_bytes_per_token(shape, "int4") == exact * 5 / 16


def test_blockwise_is_linear():
    shape = MODELS["SmolLM2-135M"]
    one, two = (prefill_flop(shape, tokens, 4096, 1024) for tokens in (2**20, 2**21))
    assert two == 2 * one and one < prefill_flop(shape, 2**20) / 20
    assert prefill_flop(shape, 4096, 4096) == prefill_flop(shape, 4096)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "GPT-2"}, "Mistral-7B"),
        ({"gpu": "T4"}, "A100"),
        ({"dtype": "int2"}, "int4"),
        ({"tokens": 0}, "tokens"),
        ({"gpus": 0}, "GPUs"),
    ],
)
def test_bad_settings(change, words):
    with pytest.raises(BadInput, match=words):
        estimate(**({"model": "Mistral-7B", "tokens": 4096} | change))
    assert len(GPUS) == 3
