"""Adversarial diffusion distillation, as a rival of the paper's method (its table 2): Turbo, arXiv 2311.17042.

One student for 1 to 4 steps, started as the teacher. Its estimates at {249, 499, 749, 999} are judged as pictures, by
small heads on the frozen features of a network that knows pictures from elsewhere, against real ones: hinge losses,
with a gradient penalty on what the heads read, told the caption by projection. Beside that, the guided teacher denoises
the noised estimate, and the student is drawn to what it finds (score distillation).

Differs from the paper: the features are those of this project's YOLOv9 detector (the paper's is DINOv2), on quarters of
the picture, cut at random as latents; the distillation distance is taken between latents. More than one step is taken
by adding fresh noise, as in training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.sdxl_lightning.flow import estimate
from models.sdxl_lightning.schedule import Schedule, trailing
from models.sdxl_lightning.text import WIDTH
from models.weights import resolve
from models.yolov9.checkpoint import load_network
from models.yolov9.network import fuse
from models.yolov9.tiers import EMBEDDED

TIMES = trailing(4)[:-1]  # where the student starts: {249, 499, 749, 999}
DISTILL = 2.5  # weight of the distillation loss beside the adversarial one
PENALTY = 1e-5  # weight of the gradient penalty
CROP = 8  # side of the latents that are shown to the heads as pictures, of 16
LEVELS = (4, 6, 8)  # the detector's layers after its second, third and fourth stage
INNER = 64


class Features(nn.Module):
    """The detector's frozen stages. Pictures (B, 3, H, W) in -1..1, sides multiples of 32, to three maps at 8, 16, 32.

    Args:
        path: a YOLOv9 checkpoint; by default the embedded tier's. Raises `WeightsNotFound` without it.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        network, _, _ = load_network(resolve(EMBEDDED).path if path is None else path)
        fuse(network)
        self.layers = network.model[: LEVELS[-1] + 1].float().eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x, found = pictures / 2 + 0.5, []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in LEVELS:
                found.append(x)
        return found


class Heads(nn.Module):
    """One small network a map, each giving a logit for every place: its own, and one of the words by projection.

    Args:
        channels: of the maps. width: of the words' states.
    """

    def __init__(self, channels: list[int], width: int = WIDTH) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(c, INNER, 1)), nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(INNER, INNER, 3, padding=1)), nn.LeakyReLU(0.2),
            )
            for c in channels
        )  # fmt: skip
        self.alone = nn.ModuleList(spectral_norm(nn.Conv2d(INNER, 1, 1)) for _ in channels)
        self.told = nn.ModuleList(spectral_norm(nn.Linear(width, INNER)) for _ in channels)

    def forward(self, maps: list[Tensor], words: Tensor) -> Tensor:
        """Maps and words (B, L, width) to logits (B, N) of all places of all maps."""
        said, logits = words.mean(1), []
        for x, trunk, alone, told in zip(maps, self.trunks, self.alone, self.told, strict=True):
            y = trunk(x)
            logits.append(alone(y).flatten(1) + torch.einsum("bchw,bc->bhw", y, told(said)).flatten(1) / INNER**0.5)
        return torch.cat(logits, 1)


def heads_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge: mean max(0, 1 - real) + mean max(0, 1 + fake)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def student_loss(fake: Tensor) -> Tensor:
    """-mean of the logits."""
    return -fake.mean()


def gradient_penalty(heads: Heads, maps: list[Tensor], words: Tensor) -> Tensor:
    """R1 on the heads' inputs: mean over pictures of the squared gradient of the logits' sum."""
    given = [x.detach().requires_grad_(True) for x in maps]
    gradients = torch.autograd.grad(heads(given, words).sum(), given, create_graph=True)
    total = torch.stack([g.square().flatten(1).sum(1) for g in gradients]).sum(0)
    return total.mean()


def distillation_loss(
    teacher: nn.Module, schedule: Schedule, found: Tensor, words: Tensor, empty: Tensor, scale: float
) -> Tensor:
    """c(t) |x_student - x_teacher(noised x_student)|^2 with c(t) = a_t: noisier looks count less.

    Args:
        found: the student's estimates (B, 16, 16, 16), with gradient. The teacher, guided with `scale`, gets none.
    """
    t = torch.randint(0, len(schedule.alphas), (len(found),))
    with torch.no_grad():
        x = schedule.noised(found, torch.randn_like(found), t)
        goal = estimate(teacher, "v_prediction", schedule, x, t, words, empty, scale)
    return (schedule.a(t) * (found - goal) ** 2).mean()


def cut(latents: Tensor, side: int = CROP) -> tuple[slice, slice]:
    """A random square of latents, as slices of the last two dimensions."""
    top, left = (int(torch.randint(size - side + 1, ())) for size in latents.shape[-2:])
    return slice(top, top + side), slice(left, left + side)
