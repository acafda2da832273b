"""Questions and what SmolLM2 itself answers to them, and texts as it goes on with them by itself: so that the miniature
forgets neither how to talk nor how to write."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.anygpt import lean
from models.anygpt.decoding import generate
from models.anygpt.embedded import lm
from models.anygpt.grammar import Free
from models.anygpt.sampling import Preset, Sampler

TOKENS = 56
PRESET: Preset = {"text": Sampler(temperature=0.7, top_p=0.9)}
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTIONS = (
    "What is {}?", "Explain {} in simple words.", "Write one sentence about {}.", "Why is {} important?",
    "Give me a fact about {}.", "Tell me about {}.", "How would you describe {} to a child?",
    "What do people say about {}?", "Write a short poem about {}.", "What are two good things about {}?",
)  # fmt: skip
TOPICS = (
    "gravity", "the moon", "rain", "photosynthesis", "democracy", "a computer", "the ocean", "friendship", "bread",
    "the city of Paris", "mathematics", "a good book", "sleep", "the sun", "music", "football", "winter", "history",
    "electricity", "honesty", "learning a language", "cooking", "trees", "a bicycle", "the human heart", "volcanoes",
    "money", "art", "travelling by train", "the Roman Empire", "dogs", "time", "a garden", "science", "reading",
)  # fmt: skip
# How texts begin that SmolLM2 goes on with: of many kinds, old and new.
BEGINNINGS = (
    "{}\n\n", "The history of {}", "Chapter 1: {}\n\n", "CHAPTER XII. Of {}\n\n", "Once upon a time, long before {}",
    '"Do you not see," cried the old captain, "that {}', "Dear friend, I write to you about {}", "Upon {} it is said",
    "I had never thought much about {} until", "It was a cold morning, and {}", "In this article we look at {}",
    "What I remember of that voyage is {}", "O {}! thou", "Studies of {} have shown", "The news today is about {}",
    "She looked at him and spoke of {}.", "Now, as to {}, there was among the sailors", "How to begin with {}:",
)  # fmt: skip
LONG = 512  # tokens of a text
AT_ONCE = 32  # texts


def questions(count: int, seed: int) -> list[str]:
    every = [question.format(topic) for question, topic in itertools.product(QUESTIONS, TOPICS)]
    return random.Random(seed).sample(every, count)


def answers(asked: list[str], seed: int) -> Iterator[tuple[str, str]]:
    """(question, answer): SmolLM2's own chat form, sampled; an answer that gets too long ends with a sentence."""
    lines = lm.words()
    model = lean.quantised(lm.quick(lm.plain()))
    table = lines.tokenizer.get_vocab()
    start, end = table["<|im_start|>"], table["<|im_end|>"]
    stop = [end, table["<|endoftext|>"]]
    for number, question in enumerate(asked):
        prompt: list[int] = []
        for role, text in (("system", SMOLLM), ("user", question)):
            prompt += [start, *lines.encode(f"{role}\n{text}"), end, *lines.encode("\n")]
        prompt += [start, *lines.encode("assistant\n")]
        rules = Free(model.rows, stop, TOKENS)
        ids = list(generate(model, prompt, rules, PRESET, seed + number))
        text = lines.decode([token for token in ids if token not in stop])
        whole = text if ids[-1] in stop else text[: text.rfind(". ") + 1]
        if whole.strip():
            yield question, whole.strip()


def texts(count: int, seed: int) -> Iterator[str]:
    """Texts of SmolLM2's own, sampled as they are likely to it, each up to `LONG` tokens after its beginning."""
    every = [beginning.format(topic) for beginning, topic in itertools.product(BEGINNINGS, TOPICS)]
    begun = random.Random(seed).sample(every, count)
    model: Any = lm.quick(lm.plain())
    stop = [lm.words().tokenizer.get_vocab()[name] for name in ("<|endoftext|>", "<|im_end|>")]
    torch.manual_seed(seed)
    for low in range(0, count, AT_ONCE):
        rows = [lm.words().encode(text) for text in begun[low : low + AT_ONCE]]
        longest = max(map(len, rows))
        ids = torch.tensor([stop[:1] * (longest - len(row)) + row for row in rows])
        there = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        made = model.generate(
            ids, attention_mask=there, max_new_tokens=LONG, do_sample=True, temperature=1.0, top_k=0, top_p=0.95,
            eos_token_id=stop, pad_token_id=stop[0],
        )  # fmt: skip
        yield from (lm.words().decode([token for token in row if token not in stop]) for row in made.tolist())


def write_texts(path: Path, count: int = 192, seed: int = 0) -> None:
    """A file of `texts`, for `models.anygpt.embedded.train`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for text in texts(count, seed):
            file.write(text.strip() + "\n\n")
            file.flush()


def write(path: Path, count: int = 240, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for question, answer in answers(questions(count, seed), seed):
            file.write(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n")


def read(path: Path) -> list[tuple[str, str]]:
    """Questions and answers; none if they were not written."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]
