"""What may differ between two drawings of one thing: place, size, bend, outline, shading, background, what hides it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.anygpt.embedded.image_codec import DRAWN_SIDE, READ_SIDE


def canonical(drawings: Tensor, side: int = DRAWN_SIDE) -> Tensor:
    """Drawings (B, 4, S, S) uint8 on white with a small margin: (B, 3, side, side) in -1..1, what is to be drawn."""
    inner = side - side // 16
    small = F.interpolate(_premultiplied(drawings), size=(inner, inner), mode="bilinear", antialias=True)
    framed = F.pad(small, (side // 32,) * 4)
    return (framed[:, :3] + 1 - framed[:, 3:]) * 2 - 1


def varied(drawings: Tensor) -> Tensor:
    """Drawings (B, 4, 64, 64) uint8, each changed at random: (B, 3, 64, 64) in -1..1, what the encoder reads."""
    layer = _outlined(_warped(_premultiplied(drawings)))
    colour, alpha = layer[:, :3], layer[:, 3:].clamp(0, 1)
    ground = torch.ones(len(layer), 3, 1, 1)
    ground = torch.where(_some(layer, 0.3), 1 - 0.6 * torch.rand(len(layer), 3, 1, 1) ** 2, ground)
    return (_hidden(_shaded(colour, alpha) + ground * (1 - alpha)) * 2 - 1).clamp(-1, 1)


def recoloured(drawings: Tensor) -> Tensor:
    """Half of the drawings (B, 4, 64, 64) uint8 with all their hues turned by one angle."""
    angle = torch.rand(len(drawings)) * 2 * math.pi
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = cos * torch.eye(3) + sin * cross + (1 - cos) * axis  # about the grey axis
    turned = torch.einsum("bij,bjhw->bihw", turn, drawings[:, :3].float()).clamp(0, 255).byte()
    turned = torch.cat([turned, drawings[:, 3:]], 1)
    return torch.where(_some(drawings, 0.5), turned, drawings)


def _premultiplied(drawings: Tensor) -> Tensor:
    layer = drawings.float() / 255
    return torch.cat([layer[:, :3] * layer[:, 3:], layer[:, 3:]], 1)


def _warped(layer: Tensor) -> Tensor:
    """Moved, scaled, turned, mirrored and bent."""
    n = len(layer)
    angle = torch.randn(n) * 0.17
    size = torch.empty(n).uniform_(0.92, 1.4)  # of the frame, seen from the drawing: above 1 it is smaller
    stretch = torch.exp(torch.randn(n) * 0.08)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    shift = torch.empty(n, 2).uniform_(-0.12, 0.12)
    shear = torch.randn(n) * 0.08
    cos, sin = angle.cos() * size, angle.sin() * size
    matrix = torch.stack(
        [
            torch.stack([mirror * cos * stretch, shear - sin, shift[:, 0]], 1),
            torch.stack([mirror * sin, cos / stretch, shift[:, 1]], 1),
        ],
        1,
    )
    places = F.affine_grid(matrix, [n, 4, READ_SIDE, READ_SIDE], align_corners=False)
    bend = F.interpolate(torch.randn(n, 2, 5, 5) * 0.05, size=(READ_SIDE, READ_SIDE), mode="bicubic")
    bend = torch.where(_some(layer, 0.6), bend, 0.0)
    return F.grid_sample(layer, places + bend.permute(0, 2, 3, 1), align_corners=False)


def _outlined(layer: Tensor) -> Tensor:
    """A third get a dark outline, as some vendors draw, and another part is blurred."""
    alpha = layer[:, 3:]
    grown = F.max_pool2d(alpha, 3, 1, 1)
    ink = torch.rand(len(layer), 3, 1, 1) * 0.3
    outlined = torch.cat([layer[:, :3] + ink * (grown - alpha).clamp(0, 1), grown], 1)
    blurred = F.avg_pool2d(layer, 3, 1, 1, count_include_pad=True)
    layer = torch.where(_some(layer, 0.3), outlined, layer)
    return torch.where(_some(layer, 0.2), blurred, layer)


def _shaded(colour: Tensor, alpha: Tensor) -> Tensor:
    """Other brightness, contrast and saturation, flat tones, light from one side; premultiplied by alpha."""
    n = len(colour)

    def around_one(spread: float) -> Tensor:
        return torch.exp(torch.randn(n, 1, 1, 1) * spread)

    grey = colour.mean(1, keepdim=True)
    colour = grey + (colour - grey) * around_one(0.25)
    colour = (colour / alpha.clamp(min=1e-3)).clamp(0, 1) ** around_one(0.2)
    flat = (colour * 4).round() / 4
    colour = torch.where(_some(colour, 0.15), flat, colour)
    ramp = torch.linspace(-1, 1, READ_SIDE)
    light = torch.randn(n, 1, 1, 1) * 0.15 * ramp[:, None] + torch.randn(n, 1, 1, 1) * 0.15 * ramp
    return ((colour * around_one(0.12) + light).clamp(0, 1)) * alpha


def _hidden(picture: Tensor) -> Tensor:
    """A rectangle over a third of them, and noise."""
    n = len(picture)
    centre, extent = torch.rand(n, 2, 1), torch.empty(n, 2, 1).uniform_(0.08, 0.22)
    inside = ((torch.linspace(0, 1, READ_SIDE) - centre).abs() < extent).float()  # (B, 2, 64)
    box = (inside[:, 0, :, None] * inside[:, 1, None, :])[:, None]
    covered = picture * (1 - box) + torch.rand(n, 3, 1, 1) * box
    picture = torch.where(_some(picture, 0.35), covered, picture)
    return picture + torch.randn_like(picture) * torch.rand(n, 1, 1, 1) * 0.05


def _some(like: Tensor, share: float) -> Tensor:
    return torch.rand(len(like), 1, 1, 1) < share
