"""A network recorded once and replayed: on a CPU half of a pass on small latents is Python, which replaying leaves out.

`torch.compile` would also do it, but needs a C++ compiler where the app runs; `torch.jit.trace` needs nothing. The
recording holds for one shape, so it is made for single pictures of the native size; every other shape runs as usual,
where Python weighs less.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WARM = 2  # the first replays optimise the recording


class Replayed(nn.Module):
    """Called like the UNet2DConditionModel inside it, and answers the same.

    Args:
        network: ready to use, on the CPU.
        side: of the latents. words: (L, D) of the text's states.
    """

    def __init__(self, network: Any, side: int, words: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.shape = (1, network.config.in_channels, side, side)
        x = torch.zeros(self.shape, dtype=network.dtype).to(memory_format=torch.channels_last)
        given = (x, torch.tensor(0.0), torch.zeros(1, *words, dtype=network.dtype))
        # Not a submodule: it shares the network's weights.
        self.recording = [_recorded(network, given)]

    @property
    def config(self) -> Any:
        return self.network.config

    def forward(
        self, x: Tensor, t: Tensor, words: Tensor, added_cond_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        """x (B, C, h, w), t (), words (B, L, D) to a tuple of (B, C, h, w)."""
        if x.shape == self.shape:
            return (self.recording[0](x, t, words),)
        return self.network(x, t, words, added_cond_kwargs=added_cond_kwargs, return_dict=False)


class _Plain(nn.Module):
    """The network with nothing but tensors in its signature."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        return self.network(x, t, words, return_dict=False)[0]


@torch.inference_mode()
def _recorded(network: nn.Module, given: tuple[Tensor, ...]) -> Any:
    with warnings.catch_warnings():
        # Deprecated in favour of torch.compile; and shapes become constants, as they should.
        warnings.simplefilter("ignore")
        recording = torch.jit.trace(_Plain(network).eval(), given, check_trace=False)
        for _ in range(WARM):
            recording(*given)
    return recording
