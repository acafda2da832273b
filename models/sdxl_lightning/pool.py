"""The pictures that training shows, drawn and encoded once: 8 kB of latents each, and the states of their captions.

    python -m models.sdxl_lightning.pool            # fits the latents' basis, writes runs/sdxl_lightning/pool*
    python -m models.sdxl_lightning.pool --vae assets/sdxl_lightning/vae     # for going on with shipped weights

Every scene of `data.Scenes` that is not held out is in it once, of the many pairs a sample.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.runtime import mixed_precision
from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.basis import BASIS, Basis, to_tensor
from models.sdxl_lightning.data import KINDS, Scene, Scenes, drawn, phrased
from models.sdxl_lightning.recipe import RUNS
from models.sdxl_lightning.text import states, text_encoder, tokenizer
from models.weights import read_safetensors, write_safetensors

POOL = RUNS / "pool.safetensors"
PHRASINGS = 3  # of each caption


@dataclass(frozen=True)
class Pool:
    """latents (N, 16, 16, 16) float16; words (N, PHRASINGS, L, 384) float16; empty (L, 384) float16;
    weights (N,) float32: how often each is shown; they sum to 1."""

    latents: Tensor
    words: Tensor
    empty: Tensor
    weights: Tensor

    @staticmethod
    def load(path: Path = POOL) -> Pool:
        return Pool(**read_safetensors(path))

    def draw(self, count: int, no_words: float) -> tuple[Tensor, Tensor]:
        """A random batch: latents (count, 16, 16, 16) and states (count, L, 384), float32.

        no_words: the share that gets the empty prompt instead of its caption.
        """
        chosen = torch.multinomial(self.weights, count, replacement=True)
        words = self.words[chosen, torch.randint(PHRASINGS, (count,))].float()
        words[torch.rand(count) < no_words] = self.empty.float()
        return self.latents[chosen].float(), words


def shown(scenes: Scenes, pairs: int, rng: random.Random) -> list[Scene]:
    """All scenes that training may show, but of the pairs only `pairs`."""
    found = []
    for kind in KINDS:
        allowed = [scene for scene in scenes.every(kind) if not scene.held_out]
        found += rng.sample(allowed, pairs) if kind == "pair" else allowed
    return found


def build(pairs: int, vae: Path | None) -> Pool:
    """Draws and encodes with the autoencoder's basis, or if none is given with the one fitted first."""
    if vae is not None:
        PatchAutoencoder.from_pretrained(vae).float().basis.save(BASIS)
    elif not BASIS.exists():
        Basis.fit(to_tensor(drawn(1500))).save(BASIS)
    basis, scenes, rng = Basis.load(), Scenes(), random.Random(0)
    chosen = shown(scenes, pairs, rng)
    latents = []
    for i in range(0, len(chosen), 64):
        pictures = np.stack([np.asarray(scenes.draw(scene)) for scene in chosen[i : i + 64]])
        latents.append(basis.encode(to_tensor(pictures)).half())
    print(len(chosen), "pictures", flush=True)
    words, encoder = tokenizer(), text_encoder()
    captions = [phrased(scene.caption, rng) for scene in chosen for _ in range(PHRASINGS)]
    distinct = sorted(set(captions))
    place = {caption: i for i, caption in enumerate(distinct)}
    with mixed_precision("cpu"):
        told = states(distinct, words, encoder).half()
    print(len(distinct), "captions", flush=True)
    counts = {kind: sum(scene.kind == kind for scene in chosen) for kind in KINDS}
    weights = torch.tensor([KINDS[scene.kind] / counts[scene.kind] for scene in chosen])
    return Pool(
        torch.cat(latents),
        told[torch.tensor([place[caption] for caption in captions])].unflatten(0, (len(chosen), PHRASINGS)),
        states([""], words, encoder)[0].half(),
        weights / weights.sum(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--vae", type=Path, help="a folder with an autoencoder whose latents are to be used")
    args = parser.parse_args()
    pool = build(args.pairs, args.vae)
    write_safetensors(POOL, vars(pool))


if __name__ == "__main__":
    main()
