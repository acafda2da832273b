"""Stable Diffusion 2.1 unCLIP through diffusers: a CLIP image embedding as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from models.errors import WeightsCorrupt

Pipeline = Any  # diffusers' StableUnCLIPImg2ImgPipeline, which mypy cannot look into
OnStep = Callable[[int, int], None]
_SMALLEST: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """A local copy of `stabilityai/stable-diffusion-2-1-unclip` or of its mirror.

    The image encoder (2.5 GB) is not loaded: embeddings come from SEED.

    Raises:
        WeightsCorrupt: the folder is not complete, or is another pipeline.
    """
    from diffusers import StableUnCLIPImg2ImgPipeline
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = Path(folder)
    # The stock pipeline asks its image encoder for a dtype even when it gets embeddings: a very small one answers.
    answering: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**_SMALLEST))
    parts: dict[str, Any] = {"image_encoder": answering.to(dtype), "feature_extractor": None}
    try:
        pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **parts)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsCorrupt(
            f"{folder.name} is no complete unCLIP folder. Copy stable-diffusion-2-1-unclip again."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def draw(
    pipe: Pipeline,
    embedding: Tensor,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 10.0,
    on_step: OnStep = lambda done, total: None,
) -> Image.Image:
    """A picture of an embedding (1, 1024); the same one for the same seed (specification 5.2: empty prompt, noise 0).

    on_step: sees the steps done and their number, and may raise to stop.
    """

    def callback(index: int, time: int, latents: Tensor) -> None:
        on_step(index + 1, len(pipe.scheduler.timesteps))  # the scheduler repeats one

    out = pipe(
        prompt="", image_embeds=embedding.to(pipe.device, pipe.unet.dtype), noise_level=0, guidance_scale=guidance,
        num_inference_steps=steps, generator=torch.Generator().manual_seed(seed % 2**63), callback=callback,
    )  # fmt: skip
    return out.images[0]
