"""Grids with fixed captions and fixed noise, to look at while training."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from models.sdxl_lightning.basis import Basis
from models.sdxl_lightning.flow import sampled
from models.sdxl_lightning.network import LATENT
from models.sdxl_lightning.text import states, text_encoder, tokenizer

PROMPTS = (  # fixed before the first training; four of them (fox, stars, rocket, black cat) are held out
    "apple", "blue apple", "cat", "cat with sunglasses", "dog with a hat", "purple car", "red car", "fox with a crown",
    "panda with a bow", "two pears", "three stars", "four hearts", "house on a pink background", "green tree",
    "rocket on a black background", "car and tree", "dog and ball", "yellow umbrella", "pink elephant", "pizza",
    "robot with a hat", "black cat", "fish on a blue background", "moon and star",
)  # fmt: skip


class Preview:
    """The fixed captions' states and noise, drawn with the basis alone: soft pictures, but there from the start."""

    def __init__(self) -> None:
        words, encoder = tokenizer(), text_encoder()
        self.words = states(PROMPTS, words, encoder)
        self.empty = states([""], words, encoder)[0]
        self.noise = torch.randn((len(PROMPTS), *LATENT), generator=torch.Generator().manual_seed(0))
        self.basis = Basis.load()

    def guided(self, network: nn.Module, steps: int = 16, scale: float = 3.0) -> Image.Image:
        """The teacher's grid."""
        return self.grid(sampled(network, "v_prediction", steps, self.noise, self.words, self.empty, scale))

    def student(self, network: nn.Module, prediction: str, steps: int) -> Image.Image:
        """A student's grid, without guidance."""
        return self.grid(sampled(network, prediction, steps, self.noise, self.words))

    def grid(self, latents: Tensor) -> Image.Image:
        """Latents of all captions as 4 rows of 6."""
        return tiled(self.basis.decode(latents), 6)


def tiled(pictures: Tensor, columns: int) -> Image.Image:
    """(B, 3, H, W) in -1..1 as one picture; B must fill its rows."""
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(pixels[i : i + columns]), 1) for i in range(0, len(pixels), columns)]
    return Image.fromarray(np.concatenate(rows, 0))
