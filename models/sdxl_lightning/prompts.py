"""Prompts: what may be written, and their embeddings, each computed once.

Embeddings come from the pipeline's own `encode_prompt`, so they are what a plain diffusers call would use.
"""

from __future__ import annotations

import threading
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from models.errors import BadInput

MOST_CHARACTERS = 1000
KEPT = 128


@dataclass(frozen=True)
class Conditioning:
    """What the network is told: `embeds` (B, L, D); `pooled` (B, P) for SDXL; `notes` for the person who wrote it."""

    embeds: Tensor
    pooled: Tensor | None
    notes: tuple[str, ...] = ()

    def mixed(self, other: Conditioning, share: Tensor) -> Conditioning:
        """On the line from this one (share 0) to the other (share 1); `share` is (B,)."""
        s = share.to(self.embeds)
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.lerp(self.pooled, other.pooled, s[:, None])
        return Conditioning(torch.lerp(self.embeds, other.embeds, s[:, None, None]), pooled, self.notes + other.notes)

    def repeated(self, count: int) -> Conditioning:
        """The same for `count` pictures."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Conditioning(self.embeds.expand(count, -1, -1), pooled, self.notes)


def checked(prompt: object) -> str:
    """The prompt with its white space made single.

    Raises `BadInput` if it is no text, empty, too long, or holds control characters.
    """
    if not isinstance(prompt, str):
        raise BadInput("The prompt must be text. Write what the picture should show, such as: a blue apple.")
    if len(prompt) > MOST_CHARACTERS:
        raise BadInput(f"The prompt has {len(prompt):,} characters; at most {MOST_CHARACTERS:,} are taken. Shorten it.")
    bad = {c for c in prompt if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r"}
    if bad:
        names = ", ".join(f"U+{ord(c):04X}" for c in sorted(bad)[:3])
        raise BadInput(f"The prompt holds control characters ({names}). Remove them; plain words are enough.")
    text = " ".join(prompt.split())
    if not text:
        raise BadInput("The prompt is empty. Write what the picture should show, such as: a blue apple.")
    return text


class Encoder:
    """Prompt to embedding through a diffusers pipeline, the last `KEPT` of them from memory. Safe between threads."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.hits = 0
        self._known: OrderedDict[str, Conditioning] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, prompt: str) -> Conditioning:
        """The embedding of a checked prompt. Raises `BadInput` if the encoder knows no word of it."""
        with self._lock:
            if prompt in self._known:
                self._known.move_to_end(prompt)
                self.hits += 1
                return self._known[prompt]
        made = Conditioning(*self._run(prompt), notes=self._notes(prompt))
        self._keep(prompt, made)
        return made

    def empty(self) -> Conditioning:
        """What guidance moves away from: zeros where the pipeline says so (SDXL), else the empty prompt."""
        if "" not in self._known:
            embeds, pooled = self._run("")
            if getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
                embeds, pooled = torch.zeros_like(embeds), None if pooled is None else torch.zeros_like(pooled)
            self._keep("", Conditioning(embeds, pooled))
        return self._known[""]

    def _keep(self, prompt: str, made: Conditioning) -> None:
        with self._lock:
            self._known[prompt] = made
            while len(self._known) > KEPT:
                self._known.popitem(last=False)

    @torch.no_grad()
    def _run(self, prompt: str) -> tuple[Tensor, Tensor | None]:
        device = self.pipe._execution_device
        found = self.pipe.encode_prompt(
            prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if isinstance(self.pipe, StableDiffusionXLPipeline):
            return found[0], found[2]
        return found[0], None

    def _notes(self, prompt: str) -> tuple[str, ...]:
        """What the encoder will not see of the prompt, in plain words."""
        tokenizer = self.pipe.tokenizer
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        room = tokenizer.model_max_length - 2  # start and end
        notes = []
        if len(ids) > room:
            notes.append(f"The prompt has {len(ids)} tokens; the text encoder reads the first {room}.")
        unknown = tokenizer.unk_token_id
        if unknown not in (None, tokenizer.eos_token_id, tokenizer.pad_token_id) and unknown in ids:
            if all(i == unknown for i in ids):
                raise BadInput("The text encoder knows none of these characters. Write the prompt in English words.")
            notes.append("The text encoder does not know some of these characters.")
        letters = [c for c in prompt if c.isalpha()]
        if letters and sum("LATIN" in unicodedata.name(c, "") for c in letters) < len(letters) / 2:
            notes.append("The text encoder was trained on English; other scripts mean little to it.")
        return tuple(notes)
