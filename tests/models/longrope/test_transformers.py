"""cos and sin beside those of transformers itself, for the three families that know `rope_type: longrope`."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from models.longrope.rope import RopeScaling, pinned, scaling
from models.longrope.tables import write_json

WINDOW, FACTOR, PAIRS, BASE = 64, 8, 8, 1e4
SHORT = scaling("longrope", 2 * PAIRS, BASE, WINDOW, WINDOW * FACTOR, table=np.linspace(1, 1.5, PAIRS))
LONG = scaling("longrope", 2 * PAIRS, BASE, WINDOW, WINDOW * FACTOR, table=np.linspace(1, 9, PAIRS))
FAMILIES = {
    "llama": (LlamaConfig, LlamaRotaryEmbedding),
    "mistral": (MistralConfig, MistralRotaryEmbedding),
    "phi3": (Phi3Config, Phi3RotaryEmbedding),
}


def theirs(family: str, position: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (pairs,) at one position of a tiny model with what we export as its `rope_parameters`."""
    make, embedding = FAMILIES[family]
    config = make(
        hidden_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, intermediate_size=16,
        vocab_size=32, pad_token_id=0, max_position_embeddings=WINDOW * FACTOR,
        rope_parameters=json.loads(write_json(LONG, SHORT)),
    )  # fmt: skip
    config.original_max_position_embeddings = WINDOW
    cos, sin = embedding(config)(torch.zeros(1, 1, 32), torch.tensor([[position]]))
    return cos[0, 0, :PAIRS].numpy(), sin[0, 0, :PAIRS].numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [WINDOW, WINDOW + 1, 2 * WINDOW])
def test_the_last_token_of_a_text_turns_as_in_transformers(family, length):
    ours: RopeScaling = pinned(SHORT, LONG, length)
    assert ours is (SHORT if length == WINDOW else LONG)
    for mine, other in zip(ours.cos_sin(np.array([length - 1])), theirs(family, length - 1), strict=True):
        np.testing.assert_allclose(mine[0], other, atol=1e-3)
