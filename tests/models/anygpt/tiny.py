"""A tokenizer of LLaMA's kind and a language model, both of any size, made on the spot."""

from __future__ import annotations

import string
from collections.abc import Iterable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, LogitsProcessor, PreTrainedTokenizerBase

from models.anygpt.decoding import Retract
from models.anygpt.grammar import Allowed, Rules
from models.anygpt.vocabulary import Codes, Layout

SMALL = Layout(image=Codes(16), speech=Codes(12), music=Codes(8, layers=4), audio=None)


def llama_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """Of LLaMA's own kind: byte fallback, a space before each chunk, characters, then fillers up to `size`."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for character in "▁" + string.printable[:95].replace(" ", ""):
        vocabulary[character] = len(vocabulary)
    merges = []
    for pair in ("▁▁", "▁t", "th", "he", "an", "in"):
        vocabulary[pair] = len(vocabulary)
        merges.append((pair[0], pair[1]))
    while len(vocabulary) < size:
        vocabulary[f"filler{len(vocabulary)}"] = len(vocabulary)
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=True)


def tiny_llama(size: int, seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings: dict = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def kept(events: Iterable[int | Retract]) -> list[int]:
    """The ids of a reply that were not taken back."""
    ids: list[int] = []
    for event in events:
        if isinstance(event, Retract):
            del ids[len(ids) - event.count :]
        else:
            ids.append(event)
    return ids


class MaskingProcessor(LogitsProcessor):
    """A grammar the usual way: `transformers.generate` computes all logits, and those not allowed are masked."""

    def __init__(self, rules: Rules, prompt: list[int]) -> None:
        self.rules, self.state, self.read = rules, rules.begin(prompt), len(prompt)
        self.masks: dict[Allowed, torch.Tensor] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in input_ids[0, self.read :].tolist():
            self.state = self.rules.advance(self.state, token)
        self.read = input_ids.shape[1]
        allowed = self.rules.allowed(self.state)
        if allowed not in self.masks:
            mask = torch.ones(scores.shape[1], dtype=torch.bool)
            for low, high in allowed.spans:
                mask[low:high] = False
            self.masks[allowed] = mask
        return scores.masked_fill(self.masks[allowed], -torch.inf)
