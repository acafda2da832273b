"""Questions, and what SmolLM2 itself answers to them: so that the miniature does not forget how to talk."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

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
        ids = [token for token in generate(model, prompt, rules, PRESET, seed + number) if isinstance(token, int)]
        text = lines.decode([token for token in ids if token not in stop])
        whole = text if ids[-1] in stop else text[: text.rfind(". ") + 1]
        if whole.strip():
            yield question, whole.strip()


def write(path: Path, count: int = 240, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for question, answer in answers(questions(count, seed), seed):
            file.write(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n")


def read(path: Path) -> list[tuple[str, str]]:
    """Questions and answers; none if they were not written."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]
