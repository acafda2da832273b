"""The sampling loop: Euler steps on latents, one network pass a step, and nothing else.

The arithmetic is EulerDiscreteScheduler's without its bookkeeping; latents stay in float32 whatever the network's type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.sdxl_lightning.prompts import Conditioning
from models.sdxl_lightning.schedulers import Plan

OnStep = Callable[[int, int, Tensor], None]


def noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """One standard normal latent a seed, (B, C, h, w) float32 on the CPU: the same on every device."""
    return torch.cat([torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def sample(
    network: nn.Module,
    plan: Plan,
    latents: Tensor,
    condition: Conditioning,
    *,
    extra: Mapping[str, Tensor] | None = None,
    guidance: tuple[float, Conditioning, Mapping[str, Tensor] | None] | None = None,
    dtype: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoises.

    Args:
        network: a UNet2DConditionModel on the latents' device.
        latents: (B, C, h, w) float32 with noise of `plan.sigmas[0]`.
        condition: for B pictures.
        extra: SDXL's added conditioning.
        guidance: (scale, condition, extra) of the empty prompt: two network passes a step; None for one.
        dtype: the network's.
        on_step: gets (step from 1, steps, present estimate of the picture's latents); may raise to stop.

    Returns:
        (B, C, h, w) float32.
    """
    x = latents.float()
    embeds, added = condition.embeds.to(dtype), _cast(extra, dtype)
    if guidance is not None:
        scale, empty, empty_extra = guidance
        embeds = torch.cat([empty.embeds.to(dtype), embeds])
        added = _joined(_cast(empty_extra, dtype), added)
    for i, t in enumerate(plan.timesteps.to(x.device)):
        sigma, following = float(plan.sigmas[i]), float(plan.sigmas[i + 1])
        given = x / (sigma**2 + 1) ** 0.5
        if guidance is not None:
            given = torch.cat([given, given])
        given = given.to(dtype, memory_format=torch.channels_last)
        out = network(given, t, embeds, added_cond_kwargs=added, return_dict=False)[0].float()
        if guidance is not None:
            without, with_prompt = out.chunk(2)
            out = without + scale * (with_prompt - without)
        clean = _clean(plan.prediction, out, x, sigma)
        x = x + (x - clean) / sigma * (following - sigma)
        if on_step is not None:
            on_step(i + 1, plan.steps, clean)
    return x


def _clean(prediction: str, out: Tensor, x: Tensor, sigma: float) -> Tensor:
    """The picture's latents that a network output stands for."""
    if prediction == "sample":
        return out
    if prediction == "epsilon":
        return x - sigma * out
    assert prediction == "v_prediction", prediction
    return x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1) ** 0.5


def _cast(extra: Mapping[str, Tensor] | None, dtype: torch.dtype) -> dict[str, Any] | None:
    return None if extra is None else {name: tensor.to(dtype) for name, tensor in extra.items()}


def _joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return None
    return {name: torch.cat([first[name], second[name]]) for name in second}
