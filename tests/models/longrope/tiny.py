"""A model folder as people bring them, of a tiny random Llama: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

END = 256  # the id that ends an answer


def tiny_folder(folder: Path, seed: int = 0, window: int = 1024, **changes: object) -> Path:
    """Writes the folder; every byte is a token."""
    torch.manual_seed(seed)
    settings: dict = {
        "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": window,
        "bos_token_id": None, "eos_token_id": END, "tie_word_embeddings": False, "initializer_range": 0.2,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)} | {"<end>": END}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return folder
