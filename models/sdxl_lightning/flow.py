"""Following the probability flow: one network's estimate of the picture, and Euler steps along it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.runtime import mixed_precision
from models.sdxl_lightning.network import told
from models.sdxl_lightning.schedule import Schedule, trailing


def estimate(
    network: nn.Module,
    prediction: str,
    schedule: Schedule,
    x: Tensor,
    t: Tensor,
    words: Tensor,
    empty: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The network's estimate of the clean latents, (B, 16, 16, 16) float32.

    Args:
        prediction: "v_prediction", "epsilon" or "sample": what the network's output means.
        x: (B, 16, 16, 16) at times t (B,). words: (B, L, 384), or for SDXL as `network.pack` has them.
        empty: (L, 384) states of no words, for guidance with `scale`; None without guidance.
    """
    with mixed_precision(x.device.type):
        if empty is None:
            states, added = told(network, words)
            out = network(x, t, states, **added).sample.float()
        else:
            states, added = told(network, torch.cat([empty.float().expand_as(words), words]))
            both = network(x.repeat(2, 1, 1, 1), t.repeat(2), states, **added).sample.float()
            without, with_words = both.chunk(2)
            out = without + scale * (with_words - without)
    if prediction == "epsilon":
        return schedule.clean_without(x, out, t)
    return out if prediction == "sample" else schedule.clean_of(x, out, t)


@torch.inference_mode()
def sampled(
    network: nn.Module,
    prediction: str,
    steps: int,
    noise: Tensor,
    words: Tensor,
    empty: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Pictures' latents from noise in a number of Euler steps with trailing timesteps; see `estimate`."""
    schedule, times, x = Schedule(), trailing(steps), noise
    for t, to in zip(times[:-1], times[1:], strict=True):
        now, then = (torch.full((len(x),), value) for value in (t, to))
        x = schedule.moved(x, estimate(network, prediction, schedule, x, now, words, empty, scale), now, then)
    return x
