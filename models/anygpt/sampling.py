"""Choosing a token: temperature, top-k, top-p and repetition penalty, one setting for each medium."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.anygpt.vocabulary import Kind
from models.errors import BadInput


@dataclass(frozen=True)
class Sampler:
    """temperature: 0 takes the likeliest. top_k: 0 keeps all. repetition: 1 is none.

    guidance: how far scores are taken away from those of the same stream without the request (classifier-free guidance,
    arXiv 2207.12598, as MusicGen has it for codes, arXiv 2306.05284); 1 is none.
    candidates: how often a run of a medium may be written until it is good enough (`decoding.Fit`); the best one is
    kept (as DALL-E, arXiv 2102.12092, keeps the best of many pictures).

    Raises:
        BadInput: a value outside its range, or several candidates that would all be the same.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition: float = 1.0
    guidance: float = 1.0
    candidates: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise BadInput(f"The temperature is {self.temperature}; it can be 0 to 10.")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"Top-p is {self.top_p}; it can be above 0, up to 1.")
        if self.top_k < 0:
            raise BadInput(f"Top-k is {self.top_k}; it can be 0 (all) or more.")
        if not 0.1 <= self.repetition <= 10:
            raise BadInput(f"The repetition penalty is {self.repetition}; it can be 0.1 to 10, and 1 is none.")
        if not 0 <= self.guidance <= 20:
            raise BadInput(f"The guidance is {self.guidance}; it can be 0 to 20, and 1 is none.")
        if not 1 <= self.candidates <= 16:
            raise BadInput(f"The number of candidates is {self.candidates}; it can be 1 to 16.")
        if self.candidates > 1 and self.temperature == 0:
            raise BadInput("Candidates at temperature 0 are all the same. Ask for one, or for a higher temperature.")


GREEDY = Sampler(temperature=0.0)
Preset = Mapping[Kind, Sampler]

# Specification 4. "repository": the shipped files; the 50 is what their library did where they are silent. Its text
# used five sampled beams; "paper" says beam search for text. A stream cannot take a word back, so beams are not used:
# text is sampled, or greedy, instead. "embedded": ours, for a small model.
PRESETS: dict[str, Preset] = {
    "repository": {
        "text": Sampler(top_k=50),
        "image": Sampler(top_k=50),
        "speech": Sampler(top_k=50, repetition=1.05),
        "music": Sampler(top_k=200, repetition=1.15),
        "audio": Sampler(top_k=200, repetition=1.15),
    },
    "paper": {
        "text": GREEDY,
        "image": Sampler(top_p=0.7),
        "speech": Sampler(top_p=0.7),
        "music": Sampler(repetition=1.15),
        "audio": Sampler(repetition=1.15),
    },
    "embedded": {
        "text": GREEDY,
        "image": Sampler(temperature=0.5, top_p=0.9),
        "speech": Sampler(temperature=0.5, top_p=0.9, candidates=3),
        "music": Sampler(temperature=0.8, top_p=0.9, guidance=2.0, candidates=4),
        "audio": Sampler(temperature=0.9, top_p=0.95),
    },
}


def choose(scores: Tensor, seen: Tensor, sampler: Sampler, generator: torch.Generator) -> int:
    """The index of the chosen score.

    scores: (n,) float32, logits. seen: (n,) bool, tokens that came before. generator: on the CPU.
    """
    scores = _penalised(scores, seen, sampler.repetition)
    if sampler.temperature == 0:
        return int(scores.argmax())
    chances, indices = distribution(scores, sampler)
    return int(indices[torch.multinomial(chances.cpu(), 1, generator=generator)])


def distribution(scores: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Probabilities (k,) and the indices they belong to; in transformers' order: temperature, top-k, top-p."""
    scores = scores / sampler.temperature
    if 0 < sampler.top_k < len(scores):
        scores, indices = scores.topk(sampler.top_k)
    elif sampler.top_p < 1:
        scores, indices = scores.sort(descending=True)
    else:
        return scores.softmax(0), torch.arange(len(scores))
    if sampler.top_p < 1:
        chances = scores.softmax(0)
        before = chances.cumsum(0) - chances
        scores = scores[before < sampler.top_p]  # the first always stays
    return scores.softmax(0), indices[: len(scores)].cpu()


def _penalised(scores: Tensor, seen: Tensor, repetition: float) -> Tensor:
    if repetition == 1:
        return scores
    return torch.where(seen, torch.where(scores < 0, scores * repetition, scores / repetition), scores)
