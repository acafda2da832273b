"""Latent consistency distillation, as a rival of the paper's method (its table 2): LCM, Luo et al., arXiv 2310.04378.

One student for every number of steps. It learns to give the same clean picture from two neighbouring points of the
teacher's guided flow, against a slowly following copy of itself; c_skip and c_out make it the identity at t = 0. More
than one step is taken by adding fresh noise to the estimate. Differs from the paper: guidance is one fixed scale, as in
LCM-LoRA (arXiv 2311.05556), not an input of the network; and at T the student starts from pure noise, as ours do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.sdxl_lightning.flow import estimate
from models.sdxl_lightning.schedule import Schedule

SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of the boundary condition, as published
GRID = 50  # solver's timesteps: a step of 20 of the 1000 (the paper's skipping interval)
FOLLOWS = 0.95  # the target's share of itself at each update
HUBER = 1e-3


def solver_times() -> Tensor:
    """(GRID,) timesteps from 19 to 999."""
    width = 1000 // GRID
    return torch.arange(1, GRID + 1) * width - 1


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, (B, 1, 1, 1) each: 1 and 0 at t = 0."""
    scaled = (t.float() * TIME_SCALE)[:, None, None, None]
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def consistent(
    network: nn.Module, schedule: Schedule, x: Tensor, t: Tensor, words: Tensor, prediction: str = "v_prediction"
) -> Tensor:
    """The consistency function f(x_t, t, c): clean latents, of x's shape."""
    skip, out = boundary(t)
    return skip * x + out * estimate(network, prediction, schedule, x, t, words)


def consistency_loss(
    student: nn.Module,
    target: nn.Module,
    teacher: nn.Module,
    schedule: Schedule,
    clean: Tensor,
    words: Tensor,
    empty: Tensor,
    scale: float,
) -> Tensor:
    """Pseudo-Huber distance of f at a random timestep from the target's f one solver step on.

    Args:
        student, target: networks; gradients flow through the student only.
        teacher: makes the step, guided with `scale` against `empty` (L, 384).
        clean: (B, 16, 16, 16). words: (B, L, 384).
    """
    times = solver_times()
    t = times[torch.randint(GRID, (len(clean),))]
    to = (t - 1000 // GRID).clamp(min=0)
    x = schedule.shown(clean, torch.randn_like(clean), t)
    with torch.no_grad():
        guess = estimate(teacher, "v_prediction", schedule, x, t, words, empty, scale)
        there = schedule.moved(x, guess, t, to)
        goal = consistent(target, schedule, there, to, words)
    return pseudo_huber(consistent(student, schedule, x, t, words), goal)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + c^2) - c: |d| for large differences, smooth at 0."""
    return (((a - b) ** 2 + HUBER**2).sqrt() - HUBER).mean()


@torch.no_grad()
def follow(target: nn.Module, student: nn.Module, share: float = FOLLOWS) -> None:
    """Moves the target's weights towards the student's: share * target + (1 - share) * student."""
    for slow, fast in zip(target.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - share)


def sampling_times(steps: int) -> list[int]:
    """Timesteps of the multistep sampler, from 999 down: evenly spread over the solver's, as in diffusers."""
    descending = solver_times().flip(0).tolist()
    return [descending[i * GRID // steps] for i in range(steps)]


@torch.inference_mode()
def restarted(
    network: nn.Module, steps: int, noise: Tensor, words: Tensor, times: list[int] | None = None, bounded: bool = True
) -> Tensor:
    """Clean latents in a number of steps: estimate, add fresh noise, estimate again.

    Args:
        network: predicts v. noise: (B, 16, 16, 16); the fresh noise is that of seed 1, whatever the first was.
        times: where the steps are; by default those of LCM. bounded: whether the boundary condition is used.
    """
    schedule, generator = Schedule(), torch.Generator().manual_seed(1)
    times, x = sampling_times(steps) if times is None else times, noise
    for i, time in enumerate(times):
        t = torch.full((len(x),), time)
        if bounded:
            clean = consistent(network, schedule, x, t, words)
        else:
            clean = estimate(network, "v_prediction", schedule, x, t, words)
        if i + 1 == len(times):
            return clean
        fresh = torch.randn(x.shape, generator=generator)
        x = schedule.noised(clean, fresh, torch.full((len(x),), times[i + 1]))
    raise ValueError("At least one step.")
