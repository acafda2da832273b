"""Single drawings before a simulated camera, whole batches at once: what the backbone is pretrained on.

The same kinds of change as `compose` makes (scale, rotation, perspective, occlusion, paper cards, lighting, blur,
noise), and changes of style besides: another hue, another outline, softer or harder detail, bent shapes. They stand
for the vendors that training has not seen. All of a batch is drawn with a few tensor operations, about a
millisecond a picture on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models import clipart
from models.yolov9 import art
from models.yolov9.classes import COCO_NAMES
from models.yolov9.compose import Composer

BANK = 80  # pixels of a stored drawing's side
NOTHING = len(COCO_NAMES)  # label of a drawing outside COCO's classes
SHARE_OF_NOTHING = 0.06


class Crops:
    """Drawings of a folder of cut-outs, each class and in it each vendor as often as the others."""

    def __init__(self, folder: Path, vendors: Sequence[str], backgrounds: int = 400, seed: int = 0) -> None:
        pictures: list[np.ndarray] = []
        self.by_class: dict[int, list[np.ndarray]] = {}  # class -> indices of each vendor's drawings
        for vendor in vendors:
            for label, found in art.load_cutouts(folder, (vendor,)).items():
                self.by_class.setdefault(label, []).append(np.arange(len(pictures), len(pictures) + len(found)))
                pictures += [_squared(picture) for picture in found]
        others = art.load_pictures(folder / art.DISTRACTORS, "RGBA")
        self.by_class[NOTHING] = [np.arange(len(pictures), len(pictures) + len(others))]
        pictures += [_squared(picture) for picture in others]
        self.pictures = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # (N, 4, BANK, BANK)
        scenery = Composer({}, [], art.load_pictures(folder / "photos", "RGB"))
        rng = np.random.default_rng(seed)
        walls = np.stack([scenery.background(rng, 128) for _ in range(backgrounds)])
        self.backgrounds = torch.from_numpy(walls).permute(0, 3, 1, 2).contiguous()
        self.labels = sorted(set(self.by_class) - {NOTHING})

    def batch(self, seed: tuple[int, ...], count: int, size: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """`images (count, 3, size, size)` float32 in 0..1 and `labels (count,)` int64, by the arguments alone.

        `strength`, 0 to 1: how often and how far drawings are changed, covered and turned.
        """
        rng = np.random.default_rng(seed)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        labels = np.where(rng.random(count) < SHARE_OF_NOTHING, NOTHING, rng.choice(self.labels, count))
        chosen = []
        for label in labels:
            vendors = self.by_class[int(label)]
            chosen.append(rng.choice(vendors[rng.integers(len(vendors))]))
        draw = _Draw(torch_rng, count, strength)
        styled = _styled(self.pictures[torch.tensor(np.array(chosen))].float() / 255, draw)
        walls = self.backgrounds[torch.from_numpy(rng.integers(len(self.backgrounds), size=count))].float() / 255
        image = _scenery(walls, size, draw)
        image = _pasted(image, styled, size, draw)
        return _camera(image, draw), torch.from_numpy(labels.astype(np.int64))


class _Draw:
    """Random numbers, one a picture: `(count, 1, 1, 1)` unless told otherwise."""

    def __init__(self, generator: torch.Generator, count: int, strength: float = 1.0) -> None:
        self.generator, self.count, self.strength = generator, count, strength

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        shape = shape or (1, 1, 1)
        return torch.rand(self.count, *shape, generator=self.generator) * (high - low) + low

    def normal(self, scale: float, *shape: int) -> Tensor:
        return torch.randn(self.count, *(shape or (1, 1, 1)), generator=self.generator) * (scale * self.strength)

    def often(self, share: float) -> Tensor:
        """0 or 1, 1 for `share` of the pictures (at full strength)."""
        return (torch.rand(self.count, 1, 1, 1, generator=self.generator) < share * self.strength).float()


def restyled(
    folder: Path, vendors: Sequence[str], per_class: int = 96, pixels: int = 128, seed: int = 0
) -> dict[int, list[np.ndarray]]:
    """Cut-outs for `compose.Composer`: of each class `per_class` RGBA drawings, each vendor's as often as the
    others', all in changed styles and bent a little."""
    rng = np.random.default_rng(seed)
    by_vendor = [art.load_cutouts(folder, (vendor,)) for vendor in vendors]
    made: dict[int, list[np.ndarray]] = {}
    for label in sorted({label for found in by_vendor for label in found}):
        choices = [found[label] for found in by_vendor if label in found]
        chosen = [choices[i % len(choices)] for i in range(per_class)]
        squares = np.stack([_squared(found[rng.integers(len(found))], pixels - 16) for found in chosen])
        rgba = F.pad(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255, (8, 8, 8, 8))
        draw = _Draw(torch.Generator().manual_seed(int(rng.integers(1 << 62))), per_class)
        styled = F.grid_sample(_styled(rgba, draw), _plane(pixels) + _bend(pixels, draw), align_corners=False)
        styled[:, :3] /= styled[:, 3:].clamp(min=1e-3)
        pictures = (styled.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
        made[label] = [np.asarray(clipart.cropped(Image.fromarray(picture))) for picture in pictures]
    return made


def _squared(picture: np.ndarray, pixels: int = BANK) -> np.ndarray:
    """An RGBA drawing in the middle of a transparent square."""
    image = Image.fromarray(picture)
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    if max(image.size) < pixels:
        scale = pixels / max(image.size)
        image = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    square = Image.new("RGBA", (pixels, pixels))
    square.paste(image, ((pixels - image.width) // 2, (pixels - image.height) // 2))
    return np.asarray(square)


def _styled(rgba: Tensor, draw: _Draw) -> Tensor:
    """Another vendor's hand: hue, saturation, contrast, shading, detail and outline. Premultiplied RGBA."""
    colour, alpha = rgba[:, :3], rgba[:, 3:]
    colour = _recoloured(colour, draw)
    blurred = _coarse(colour * alpha) / _coarse(alpha).clamp(min=0.04)
    detail = torch.where(draw.often(0.5) > 0, draw.uniform(-1, 1.5), torch.zeros(1))  # -1: none, above 0: sharper
    colour = colour + detail * (colour - blurred)
    span = torch.linspace(-1, 1, rgba.shape[-1])
    shade = 1 + draw.normal(0.15) * span[:, None] + draw.normal(0.15) * span
    colour = (colour * shade).clamp(0, 1)
    # An outline around the drawing, dark more often than not.
    wide = F.max_pool2d(alpha, 5, 1, 2)
    ring = (wide - alpha) * draw.often(0.25)
    ink = draw.uniform(0, 0.35) + draw.often(0.2) * 0.65
    return torch.cat((colour * alpha + ring * ink, alpha + ring), 1)


def _coarse(picture: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(picture, 5), size=picture.shape[2:], mode="bilinear")


def _recoloured(colour: Tensor, draw: _Draw) -> Tensor:
    """Hue turned (a little often, anyhow seldom), saturation, contrast and brightness changed."""
    angle = draw.normal(0.3)[:, 0, 0, 0]
    anyhow = draw.often(0.2)[:, 0, 0, 0]
    angle = angle * (1 - anyhow) + anyhow * draw.uniform(-3.14, 3.14)[:, 0, 0, 0]
    cos, sin = angle.cos(), angle.sin()
    third, root = 1 / 3, 1 / 3**0.5
    diagonal = cos + third * (1 - cos)
    plus, minus = third * (1 - cos) + root * sin, third * (1 - cos) - root * sin
    rows = (diagonal, minus, plus, plus, diagonal, minus, minus, plus, diagonal)  # a turn about the grey axis
    turn = torch.stack(rows, 1).view(-1, 3, 3)
    colour = torch.einsum("nij,njhw->nihw", turn, colour)
    grey = colour.mean(1, keepdim=True)
    saturation = draw.uniform(0.4, 1.5) * (1 - draw.often(0.06))
    colour = grey + (colour - grey) * saturation
    return ((colour - 0.5) * draw.uniform(0.6, 1.25) + 0.5 + draw.normal(0.08)).clamp(0, 1)


def _scenery(walls: Tensor, size: int, draw: _Draw) -> Tensor:
    """A piece of each wall, or a plain sheet of paper instead."""
    zoom = draw.uniform(0.4, 1.0, 2) * (draw.often(0.5)[:, :, 0, 0] * 2 - 1)  # some mirrored
    grid = _plane(size) * zoom[:, None, None] + draw.uniform(-0.3, 0.3, 1, 1, 2)
    piece = F.grid_sample(walls, grid, padding_mode="reflection", align_corners=False)
    paper = torch.where(draw.often(0.75) > 0, 1 - draw.uniform(0, 0.15), draw.uniform(0.2, 1, 3, 1, 1))
    return torch.where(draw.often(0.35) > 0, paper.expand_as(piece), piece)


def _pasted(image: Tensor, styled: Tensor, size: int, draw: _Draw) -> Tensor:
    """The drawing, and with some a second one partly behind or before it."""
    main = F.grid_sample(styled, _placement(size, draw, (0.5, 1.02), 0.12), align_corners=False)
    angle = draw.uniform(-3.14, 3.14, 1, 1)
    side = torch.cat((angle.cos(), angle.sin()), 2) * draw.uniform(0.7, 1.1, 1, 1)
    grid = _placement(size, draw, (0.4, 0.9), 0.0, side)
    other = F.grid_sample(styled.roll(1, 0), grid, align_corners=False) * draw.often(0.4)
    before = draw.often(0.5)
    first, second = torch.where(before > 0, main, other), torch.where(before > 0, other, main)
    for layer in (first, second):
        image = image * (1 - layer[:, 3:]) + layer[:, :3]
    return image


def _placement(
    size: int, draw: _Draw, extent: tuple[float, float], spread: float, side: Tensor | None = None
) -> Tensor:
    """Sampling grid `(n, size, size, 2)`: turned, stretched, sheared, seen aslant, bent; some mirrored."""
    angle = draw.normal(0.22, 1) + draw.often(0.1)[:, 0, 0] * draw.normal(0.8, 1)
    angle = angle[:, 0]
    scale = 1 / draw.uniform(*extent, 1)[:, 0]
    stretch = draw.normal(0.13, 1)[:, 0].exp()
    flip = draw.often(0.5)[:, 0, 0, 0] * 2 - 1
    shear = draw.normal(0.1, 1)[:, 0]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack(
        (flip * stretch * cos, flip * stretch * (sin + shear * cos), -sin / stretch, (cos - shear * sin) / stretch), 1
    ).view(-1, 1, 2, 2)
    centre = draw.uniform(-spread, spread, 1, 1, 2) if side is None else side[:, None]
    plane = _plane(size)[None] - centre
    tilt = draw.normal(0.12, 1, 1, 2)
    plane = plane / (1 + (plane * tilt).sum(-1, keepdim=True)).clamp(min=0.4)
    return (matrix @ plane.flatten(1, 2)[..., None]).view(len(plane), size, size, 2) + _bend(size, draw)


def _bend(size: int, draw: _Draw) -> Tensor:
    coarse = draw.normal(0.05, 2, 5, 5)
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)


def _plane(size: int) -> Tensor:
    span = (torch.arange(size) + 0.5) * (2 / size) - 1
    return torch.stack(torch.meshgrid(span, span, indexing="xy"), -1)


def _camera(image: Tensor, draw: _Draw) -> Tensor:
    """Lighting, white balance, saturation, blur and noise, as `compose.camera` adds them."""
    size = image.shape[-1]
    corners = torch.where(draw.often(0.6) > 0, draw.uniform(0.45, 1.0, 1, 2, 2) * draw.uniform(1, 1.4), torch.ones(1))
    image = image * F.interpolate(corners, size=(size, size), mode="bilinear", align_corners=True)
    image = image.clamp(1e-4, 1) ** draw.uniform(0.7, 1.4) * draw.uniform(0.85, 1.15, 3, 1, 1)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * torch.where(draw.often(0.5) > 0, draw.uniform(0.45, 1.3), torch.ones(1))
    # Blur by a smaller picture enlarged again; by groups, because a group shares its scale.
    parts = list(image.chunk(4))
    for i in (0, 1):
        scale = float(torch.rand((), generator=draw.generator)) * 0.6 + 0.35
        small = F.interpolate(parts[i], scale_factor=scale, mode="bilinear", antialias=True)
        parts[i] = F.interpolate(small, size=(size, size), mode="bilinear")
    image = torch.cat(parts)
    noise = torch.randn(image.shape, generator=draw.generator) * draw.uniform(0, 0.05)
    return (image + noise).clamp(0, 1)
