"""Small composites, a batch at a time: what `compose.Composer` draws one by one, cheaply enough for pretraining.

Cut-outs are warped, pasted and photographed as batched tensor operations. A batch depends only on its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.yolov9 import art
from models.yolov9.compose import VISIBLE, procedural_background

SPRITE = 96  # px, side of a stored cut-out
BACKGROUND = 160  # px
BACKGROUNDS = 500


class Scenes:
    """Draws batches from `pictures` (RGBA arrays) with one label each; label -1 is pasted without a box.

    Labels are drawn with equal probability, then one of the label's pictures; `favoured` labels, where
    given, make up half of all draws.
    """

    def __init__(
        self,
        pictures: Sequence[np.ndarray],
        labels: Sequence[int],
        photos: Sequence[np.ndarray],
        favoured: Sequence[int] = (),
    ) -> None:
        self.sprites = torch.stack([_sprite(p) for p in pictures])
        self.labels = torch.tensor(labels)
        self.backgrounds = _backgrounds(photos)
        count = torch.bincount(self.labels + 1)[self.labels + 1].double()
        self.chances = 1 / count
        if favoured:
            liked = torch.isin(self.labels, torch.tensor(favoured))
            self.chances[liked] /= self.chances[liked].sum()
            self.chances[~liked] /= self.chances[~liked].sum()

    @classmethod
    def from_art(cls, folder: Path) -> Scenes:
        """The training vendors' drawings with their COCO classes, and distractors."""
        named = [(p, label) for label, group in art.load_cutouts(folder, art.TRAINING_VENDORS).items() for p in group]
        named += [(p, -1) for p in art.load_pictures(folder / art.DISTRACTORS, "RGBA")]
        pictures, labels = zip(*named, strict=True)
        scenes = cls(pictures, labels, art.load_pictures(folder / "photos", "RGB"))
        scenes.chances[scenes.labels == -1] *= 10  # every seventh or so is a distractor
        return scenes

    def make(
        self, seed: int, batch: int, size: int, most: int = 1, extent: tuple[float, float] = (0.4, 1.0)
    ) -> tuple[Tensor, Tensor]:
        """Images `(B, 3, size, size)` uint8 and targets `(T, 6)` float32: image, class, centre x, y, width, height
        in 0..1. Each image has one to `most` pictures, whose longer sides are `extent` of the image's."""
        rng = torch.Generator().manual_seed(seed)
        canvas = self._background(rng, batch, size)
        layers = [self._layer(rng, batch, size, extent) for _ in range(most)]
        present = _uniform(rng, 1, most + 1, (batch,)).floor()
        seen: list[Tensor] = []  # (B, S, S) bool: what is still visible of each layer
        for i, (colour, opacity, own, _) in enumerate(layers):
            there = (i < present).view(-1, 1, 1, 1)
            canvas = canvas * (1 - opacity * there) + colour * there
            seen = [s & ~((opacity > 0.5) & there)[:, 0] for s in seen] + [own & there[:, 0]]
        rows = [_targets(s, own, label) for s, (_, _, own, label) in zip(seen, layers, strict=True)]
        targets = torch.cat(rows)
        targets = targets[targets[:, 0].argsort(stable=True)]
        return _camera(canvas, rng), targets

    def _background(self, rng: torch.Generator, batch: int, size: int) -> Tensor:
        chosen = self.backgrounds[torch.randint(len(self.backgrounds), (batch,), generator=rng)].float() / 255
        side = int(_uniform(rng, 0.6, 1, (1,)) * BACKGROUND)
        y, x = torch.randint(BACKGROUND - side + 1, (2,), generator=rng).tolist()
        chosen = chosen[..., y : y + side, x : x + side]
        chosen = chosen.flip(3) if torch.rand(1, generator=rng) < 0.5 else chosen
        chosen = chosen[:, torch.randperm(3, generator=rng)]
        return F.interpolate(chosen, (size, size), mode="bilinear", align_corners=False)

    def _layer(
        self, rng: torch.Generator, batch: int, size: int, extent: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Premultiplied colour `(B, 3, S, S)`, opacity `(B, 1, S, S)`, the picture's own mask, labels `(B,)`."""
        chosen = torch.multinomial(self.chances, batch, replacement=True, generator=rng)
        uv = _warp(rng, batch, size, extent, self.labels[chosen] >= 0)
        drawn = F.grid_sample(self.sprites[chosen].float() / 255, uv, align_corners=False)
        own = drawn[:, 3] > 0.5
        # Every third picture is on a card: what lies around the picture, in its own plane, is paper.
        card = (torch.rand(batch, generator=rng) < 0.35).view(-1, 1, 1)
        reach = _uniform(rng, 1.02, 1.5, (2, batch, 1, 1))
        edge = (reach[0] - uv[..., 0].abs()).minimum(reach[1] - uv[..., 1].abs())
        paper = ((edge * size / 4).clamp(0, 1) * card)[:, None] * (1 - drawn[:, 3:])
        white = _uniform(rng, 0.86, 1, (batch, 1, 1, 1)).expand(-1, 3, -1, -1)
        tinted = _uniform(rng, 0.2, 1, (batch, 3, 1, 1))
        shade = torch.where(torch.rand(batch, 1, 1, 1, generator=rng) < 0.8, white, tinted)
        light = _uniform(rng, 0.75, 1.15, (batch, 1, 1, 1))
        return (drawn[:, :3] + paper * shade) * light, drawn[:, 3:] + paper, own, self.labels[chosen]


def _warp(rng: torch.Generator, batch: int, size: int, extent: tuple[float, float], mirror: Tensor) -> Tensor:
    """Where each output pixel looks in its sprite: `(B, S, S, 2)` in -1..1, by a random homography."""
    low, high = np.log(extent)
    scale = _uniform(rng, low, high, (batch,)).exp()
    angle = torch.randn(batch, generator=rng) * 0.22
    stretch = _uniform(rng, 0.85, 1.15, (2, batch))
    free = (1 - scale * 0.8).clamp(min=0.08)
    centre = _uniform(rng, -1, 1, (2, batch)) * free
    flip = torch.where((torch.rand(batch, generator=rng) < 0.4) & mirror, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    dx, dy = x - centre[0].view(-1, 1, 1), y - centre[1].view(-1, 1, 1)

    def each(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)

    u = (dx * each(cos) + dy * each(sin)) / each(scale * stretch[0] * flip)
    v = (dy * each(cos) - dx * each(sin)) / each(scale * stretch[1])
    tilt = torch.randn(2, batch, generator=rng) * 0.12
    depth = (1 + u * each(tilt[0]) + v * each(tilt[1])).clamp(min=0.3)
    return torch.stack((u / depth, v / depth), -1)


def _targets(seen: Tensor, own: Tensor, labels: Tensor) -> Tensor:
    """Rows of the pictures that have a label and are visible enough."""
    size = seen.shape[-1]
    area = seen.sum((1, 2))
    keep = ((labels >= 0) & (area > 12) & (area > VISIBLE * own.sum((1, 2)))).nonzero()[:, 0]
    columns, rows = seen[keep].any(1).int(), seen[keep].any(2).int()
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1, y1 = size - columns.flip(1).argmax(1), size - rows.flip(1).argmax(1)
    parts = (keep, labels[keep], (x0 + x1) / 2 / size, (y0 + y1) / 2 / size, (x1 - x0) / size, (y1 - y0) / size)
    return torch.stack([p.float() for p in parts], 1)


def _camera(x: Tensor, rng: torch.Generator) -> Tensor:
    """Lighting, contrast, white balance, saturation, lost resolution and noise. Returns uint8."""
    batch, _, size, _ = x.shape
    shape = (batch, 1, 1, 1)
    light = _uniform(rng, 0.5, 1.2, (batch, 1, 2, 2))
    light = torch.where(torch.rand(shape, generator=rng) < 0.5, light, torch.ones(()))
    x = x * F.interpolate(light, (size, size), mode="bilinear", align_corners=True)
    x = x * _uniform(rng, 0.85, 1.15, (batch, 3, 1, 1))
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(rng, 0.5, 1.3, shape)
    x = 0.5 + (x - 0.5) * _uniform(rng, 0.7, 1.25, shape) + _uniform(rng, -0.1, 0.1, shape)
    soft = torch.randperm(batch, generator=rng)[: batch // 3]
    less = int(size * _uniform(rng, 0.35, 0.9, (1,)))
    low = F.interpolate(x[soft], (less, less), mode="bilinear", antialias=True)
    x[soft] = F.interpolate(low, (size, size), mode="bilinear", align_corners=False)
    x = x + torch.randn(x.shape, generator=rng) * _uniform(rng, 0, 0.05, shape)
    return (x.clamp(0, 1) * 255).to(torch.uint8)


def _uniform(rng: torch.Generator, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def _sprite(picture: np.ndarray) -> Tensor:
    """`(4, SPRITE, SPRITE)` uint8, premultiplied, the picture as large as fits, centred."""
    image = Image.fromarray(picture, "RGBA").convert("RGBa")
    image.thumbnail((SPRITE, SPRITE), Image.Resampling.BOX)
    factor = SPRITE / max(image.size)
    image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    sheet = Image.new("RGBa", (SPRITE, SPRITE))
    sheet.paste(image, ((SPRITE - image.width) // 2, (SPRITE - image.height) // 2))
    return torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)


def _backgrounds(photos: Sequence[np.ndarray]) -> Tensor:
    rng = np.random.default_rng(0)
    made = []
    for i in range(BACKGROUNDS):
        if photos and i % 5 < 2:
            photo = Image.fromarray(photos[rng.integers(len(photos))])
            side = int(min(photo.size) * rng.uniform(0.3, 1))
            x, y = rng.integers(photo.width - side + 1), rng.integers(photo.height - side + 1)
            crop = photo.crop((x, y, x + side, y + side)).resize((BACKGROUND, BACKGROUND))
            made.append(np.asarray(crop))
        else:
            made.append(procedural_background(rng, BACKGROUND))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()
