"""The embedded model's network: diffusers' UNet2DConditionModel on 16 x 16 x 16 latents, told MiniLM's states.

Narrow and without attention at 16 x 16, where a layer costs most; cross-attention at 8 x 8 and 4 x 4. That is what two
processor cores can train in an hour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.sdxl_lightning.text import WIDTH

CHANNELS = (48, 96, 192)
LATENT = (16, 16, 16)  # channels, height, width
IDS = 6  # SDXL's sizes: original height and width, top and left of the crop, target height and width


def build_unet() -> nn.Module:
    """The untrained network: (B, 16, 16, 16), (B,) timesteps and (B, L, 384) states to (B, 16, 16, 16)."""
    network: Any = UNet2DConditionModel(
        sample_size=LATENT[1], in_channels=LATENT[0], out_channels=LATENT[0], block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, attention_head_dim=(2, 2, 4), cross_attention_dim=WIDTH, norm_num_groups=8,
        use_linear_projection=True,
    )  # fmt: skip
    return network


def pack(embeds: Tensor, pooled: Tensor, ids: Tensor) -> Tensor:
    """All that SDXL's network is told as one tensor (B, 1 + L, D): a row of pooled text (B, P) and size ids (B, 6),
    then the words' states (B, L, D). P + 6 must fit into D."""
    first = torch.zeros_like(embeds[:, :1])
    first[:, 0, : pooled.shape[1]] = pooled
    first[:, 0, -IDS:] = ids
    return torch.cat([first, embeds], dim=1)


def told(network: nn.Module, words: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What a UNet is to be called with after x and t: states, and for SDXL what `pack` put before them."""
    config = getattr(network, "config", None)
    if config is None or config.get("addition_embed_type") != "text_time":
        return words, {}
    width = config["projection_class_embeddings_input_dim"] - IDS * config["addition_time_embed_dim"]
    added = {"text_embeds": words[:, 0, :width], "time_ids": words[:, 0, -IDS:]}
    return words[:, 1:], {"added_cond_kwargs": added}


def read_unet(folder: Path) -> nn.Module:
    """The network that a folder in diffusers' layout holds, float32, ready to be trained."""
    network: Any = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    return network.train()
