"""The discriminator (paper, section 3.4): the teacher's own encoder and middle block, all trained, and a small head.

The backbone reads x_t and the point where the step lands, each with its time and the words, with shared weights;
their features are joined on channels. The head halves them by 4 x 4 convolutions, each with GroupNorm of 32 groups and
SiLU, until one value is left: SDXL's are 32 x 32, the embedded model's 4 x 4, so that there is one such block there.
Spectral normalisation of the head keeps small adversarial runs from collapsing; the paper does without.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.runtime import mixed_precision
from models.sdxl_lightning.network import told


class Backbone(nn.Module):
    """The first half of a UNet2DConditionModel: down blocks and middle block, copied with their weights."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        half = copy.deepcopy(network).requires_grad_(True)
        self.time_proj, self.time_embedding, self.conv_in = half.time_proj, half.time_embedding, half.conv_in
        self.down_blocks, self.mid_block = half.down_blocks, half.mid_block
        self.width: int = network.config["block_out_channels"][-1]
        self.side: int = network.config["sample_size"] >> (len(self.down_blocks) - 1)
        self.has_sizes = network.config.get("addition_embed_type") == "text_time"
        if self.has_sizes:
            self.config = network.config  # for `told`
            self.add_time_proj, self.add_embedding = half.add_time_proj, half.add_embedding

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """Latents, times (B,) and words to (B, width, side, side); for the embedded model (B, 192, 4, 4)."""
        time = self.time_embedding(self.time_proj(t).to(x.dtype))
        words, added = told(self, words)
        if self.has_sizes:
            pooled, ids = added["added_cond_kwargs"].values()
            sizes = self.add_time_proj(ids.flatten()).to(x.dtype).view(len(x), -1)
            time = time + self.add_embedding(torch.cat([pooled, sizes], dim=1))
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
        network: where the backbone's weights come from. Its features' side is a power of 2, at least 4.
        pairs: whether x_t is seen too: the conditional objective, which keeps the flow.
        normed: whether the head is spectrally normalised.
    """

    def __init__(self, network: nn.Module, pairs: bool, normed: bool = True) -> None:
        super().__init__()
        self.backbone, self.pairs = Backbone(network), pairs
        norm = spectral_norm if normed else nn.Identity()
        layers: list[nn.Module] = []
        width, given, side = self.backbone.width, self.backbone.width * (1 + pairs), self.backbone.side
        while side > 2:
            layers += [norm(nn.Conv2d(given, width, 4, stride=2, padding=1)), nn.GroupNorm(32, width), nn.SiLU()]
            given, side = width, side // 2
        self.head = nn.Sequential(*layers, norm(nn.Conv2d(width, 1, 2)))

    def forward(self, landed: Tensor, landed_t: Tensor, words: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """landed, x: latents at times landed_t, t (B,); a clean picture's time is 0."""
        with mixed_precision(x.device.type):
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
