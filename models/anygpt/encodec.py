"""EnCodec (Defossez et al., arXiv 2210.13438) through transformers: music as four layers of codes at 50 Hz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.anygpt.audio import Audio
from models.errors import BadInput, WeightsCorrupt

Model = Any  # transformers' EncodecModel, whose outputs mypy cannot follow
RATE, LAYERS = 32_000, 4


def load(folder: str | Path) -> Model:
    """A local copy of `facebook/encodec_32khz`.

    Its config.json is believed, mirrors differ in `use_conv_shortcut`; then every tensor has to be there.

    Raises:
        WeightsCorrupt: tensors are missing or left over, or it is another EnCodec.
    """
    from transformers import EncodecModel

    folder = Path(folder)
    try:
        found: Any = EncodecModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise WeightsCorrupt(
            f"{folder.name} is no complete EnCodec folder. Copy facebook/encodec_32khz again."
        ) from error
    model, report = found
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise WeightsCorrupt(
            f"{folder.name}: config.json and weights differ in {len(wrong)} tensors, such as {wrong[0]}. "
            "Take both from facebook/encodec_32khz (use_conv_shortcut is true there)."
        )
    config = model.config
    if (config.sampling_rate, config.audio_channels, model.quantizer.num_quantizers) != (RATE, 1, LAYERS):
        raise WeightsCorrupt(
            f"{folder.name} is an EnCodec of {config.sampling_rate} Hz with {model.quantizer.num_quantizers} layers; "
            f"music needs {RATE} Hz, mono, {LAYERS} layers: facebook/encodec_32khz."
        )
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def encode(model: Model, audio: Audio) -> np.ndarray:
    """Codes (layers, ceil(samples / 640)), int64. The sound has the model's rate."""
    if audio.rate != model.config.sampling_rate:
        raise BadInput(f"The sound has {audio.rate} Hz and the codec {model.config.sampling_rate}.")
    x = torch.from_numpy(audio.samples)[None, None].to(model.device, model.dtype)
    return model.encode(x).audio_codes[0, 0].cpu().numpy().astype(np.int64)


@torch.inference_mode()
def decode(model: Model, codes: np.ndarray) -> Audio:
    """(layers, n) -> 640 n samples at the model's rate."""
    if codes.shape[-1] == 0:
        raise BadInput("There are no music codes to play.")
    x = torch.from_numpy(codes)[None, None].to(model.device)
    samples = model.decode(x, [None]).audio_values[0, 0]
    return Audio(samples.float().cpu().numpy(), model.config.sampling_rate)
