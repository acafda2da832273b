"""Tokenizers and language models made on the spot, with AnyGPT's tokens in them."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from models.anygpt.vocabulary import Vocabulary, Words, extend
from tests.models.anygpt.tiny import SMALL, llama_tokenizer, tiny_llama
from tests.one_thread import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def official() -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    """The whole chat vocabulary, on a tokenizer of 32 000 entries."""
    tokenizer = llama_tokenizer(32_000)
    return tokenizer, extend(tokenizer)


@pytest.fixture(scope="session")
def small() -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    """The same code with few codes."""
    tokenizer = llama_tokenizer(400)
    return tokenizer, extend(tokenizer, layout=SMALL)


@pytest.fixture(scope="session")
def words(small: tuple[PreTrainedTokenizerBase, Vocabulary]) -> Words:
    return Words(*small)


@pytest.fixture(scope="session")
def vocabulary(words: Words) -> Vocabulary:
    return words.vocabulary


@pytest.fixture(scope="session")
def model(vocabulary: Vocabulary) -> LlamaForCausalLM:
    return tiny_llama(vocabulary.size)
