"""Pictures as a tokenizer wants them: square, upright, RGB."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# CLIP's, in which SEED's encoder was trained (specification 5.1).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Fit = Callable[[Image.Image, int], Image.Image]


def stretched(picture: Image.Image, size: int) -> Image.Image:
    """The whole picture, its aspect ratio lost: what AnyGPT's own code does."""
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def letterboxed(picture: Image.Image, size: int) -> Image.Image:
    """The whole picture in its proportions, on grey of the training pictures' mean."""
    scale = size / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), tuple(round(255 * mean) for mean in MEAN))
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return square


def normalised(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 in CLIP's scale."""
    values = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
