"""The discriminator (paper, section 3.4): the teacher's own encoder and middle block, all trained, and a small head.

The backbone reads x_t and the point where the step lands, each with its time and the words, with shared weights;
their features are joined on channels. The paper's head halves 32 x 32 features by 4 x 4 convolutions until one value is
left. Our features are 4 x 4, so one such convolution (with GroupNorm of 32 groups and SiLU) is left before the last.
Spectral normalisation of the head keeps small adversarial runs from collapsing; the paper does without.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class Backbone(nn.Module):
    """The first half of a UNet2DConditionModel: down blocks and middle block, copied with their weights."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        half = copy.deepcopy(network).requires_grad_(True)
        self.time_proj, self.time_embedding, self.conv_in = half.time_proj, half.time_embedding, half.conv_in
        self.down_blocks, self.mid_block = half.down_blocks, half.mid_block
        self.width: int = network.config["block_out_channels"][-1]

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """(B, 16, 16, 16), (B,), (B, L, 384) to (B, width, 4, 4)."""
        time = self.time_embedding(self.time_proj(t).to(x.dtype))
        x = self.conv_in(x)
        for block in self.down_blocks:
            if getattr(block, "has_cross_attention", False):
                x, _ = block(hidden_states=x, temb=time, encoder_hidden_states=words)
            else:
                x, _ = block(hidden_states=x, temb=time)
        return self.mid_block(x, time, encoder_hidden_states=words)


class Discriminator(nn.Module):
    """D(x_t, x_landed, t, landed, c), or with `pairs` off D'(x_landed, landed, c). Gives logits (B,).

    Args:
        network: where the backbone's weights come from.
        pairs: whether x_t is seen too: the conditional objective, which keeps the flow.
    """

    def __init__(self, network: nn.Module, pairs: bool) -> None:
        super().__init__()
        self.backbone, self.pairs = Backbone(network), pairs
        width = self.backbone.width
        self.head = nn.Sequential(
            spectral_norm(nn.Conv2d(width * (1 + pairs), width, 4, stride=2, padding=1)),
            nn.GroupNorm(32, width),
            nn.SiLU(),
            spectral_norm(nn.Conv2d(width, 1, 2)),
        )

    def forward(self, landed: Tensor, landed_t: Tensor, words: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """landed, x: (B, 16, 16, 16) at times landed_t, t (B,); a clean picture's time is 0."""
        with torch.autocast(x.device.type, torch.bfloat16):
            features = self.backbone(landed, landed_t.clamp(min=0), words)
            if self.pairs:
                features = torch.cat([self.backbone(x, t, words), features], dim=1)
        return self.head(features.float()).flatten()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)), means over logits (B,)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating: -log D(fake), the mean over logits (B,)."""
    return F.softplus(-fake).mean()
