"""Tokenizers and language models made on the spot, with AnyGPT's tokens in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from models.anygpt.vocabulary import Vocabulary, Words, extend
from tests.models.anygpt.tiny import SMALL, llama_tokenizer, tiny_llama


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Threads only wait for one another here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
