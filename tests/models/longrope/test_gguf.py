"""GGUF: closed-form dequantisation, files made by hand, and the packaged SmolLM2 file's shapes (it is never run)."""

import struct

import numpy as np
import pytest
import torch

from models.errors import WeightsCorrupt
from models.longrope.gguf import GGUF, KINDS, PACKAGED, halves, read_llama
from models.weights import resolve

RNG = np.random.default_rng(0)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, value) -> bytes:
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        return text(name) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    if isinstance(value, float):
        return text(name) + struct.pack("<If", 6, value)
    return text(name) + struct.pack("<II", 4, value)


def gguf(metadata: dict, tensors: dict, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    """A file with float32 tensors, or (shape, kind number, bytes)."""
    head = struct.pack("<4sIQQ", magic, version, len(tensors), len(metadata))
    head += b"".join(entry(name, value) for name, value in metadata.items())
    data = b""
    for name, value in tensors.items():
        shape, kind, raw = value if isinstance(value, tuple) else (value.shape, 0, value.astype("<f4").tobytes())
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    return head + bytes(-len(head) % 32) + data


def read_blocks(tmp_path, kind: int, raw: bytes, count: int) -> list[float]:
    path = tmp_path / "one.gguf"
    path.write_bytes(gguf({}, {"x": ((count,), kind, raw)}))
    return GGUF(path).tensor("x").tolist()


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def pack4(numbers) -> bytes:
    return bytes(numbers[i] | numbers[i + 16] << 4 for i in range(16))


def test_plain_numbers(tmp_path):
    values = [1.5, -2.0, 0.25, 1024.0]
    assert read_blocks(tmp_path, 0, struct.pack("<4f", *values), 4) == values
    assert read_blocks(tmp_path, 1, struct.pack("<4e", *values), 4) == values
    high = struct.pack("<4f", *values)
    assert read_blocks(tmp_path, 30, b"".join(high[i + 2 : i + 4] for i in range(0, 16, 4)), 4) == values


def test_four_bits(tmp_path):
    q = RNG.integers(0, 16, 32).tolist()
    assert read_blocks(tmp_path, 2, half(0.5) + pack4(q), 32) == [0.5 * (x - 8) for x in q]
    assert read_blocks(tmp_path, 3, half(0.5) + half(-3) + pack4(q), 32) == [0.5 * x - 3 for x in q]


def test_five_bits(tmp_path):
    q = RNG.integers(0, 32, 32).tolist()
    fifth = struct.pack("<I", sum((x >> 4) << i for i, x in enumerate(q)))
    low = pack4([x & 15 for x in q])
    assert read_blocks(tmp_path, 6, half(0.25) + fifth + low, 32) == [0.25 * (x - 16) for x in q]
    assert read_blocks(tmp_path, 7, half(0.25) + half(2) + fifth + low, 32) == [0.25 * x + 2 for x in q]


def test_eight_bits_in_two_blocks(tmp_path):
    q = RNG.integers(-128, 128, 64)
    raw = half(0.5) + q[:32].astype(np.int8).tobytes() + half(2.0) + q[32:].astype(np.int8).tobytes()
    assert read_blocks(tmp_path, 8, raw, 64) == [x * (0.5 if i < 32 else 2.0) for i, x in enumerate(q)]


def test_six_bits(tmp_path):
    """llama.cpp's own loop, number by number."""
    low, high = RNG.integers(0, 256, 128), RNG.integers(0, 256, 64)
    scales = RNG.integers(-128, 128, 16)
    expected = [0.0] * 256
    for part in range(2):
        ql, qh, sc, y = low[64 * part :], high[32 * part :], scales[8 * part :], 128 * part
        for j in range(32):
            numbers = (
                (ql[j] & 15) | ((qh[j] >> 0) & 3) << 4,
                (ql[j + 32] & 15) | ((qh[j] >> 2) & 3) << 4,
                (ql[j] >> 4) | ((qh[j] >> 4) & 3) << 4,
                (ql[j + 32] >> 4) | ((qh[j] >> 6) & 3) << 4,
            )
            for k, number in enumerate(numbers):
                expected[y + j + 32 * k] = 0.5 * sc[j // 16 + 2 * k] * (int(number) - 32)
    raw = (
        low.astype(np.uint8).tobytes() + high.astype(np.uint8).tobytes() + scales.astype(np.int8).tobytes() + half(0.5)
    )
    assert read_blocks(tmp_path, 14, raw, 256) == expected


def test_block_sizes():
    for kind in KINDS.values():
        blocks = np.zeros((3, kind.size), np.uint8)
        found = kind.read(blocks)
        assert found.size == 3 * kind.numbers and found.dtype == np.float32


def test_rotary_pairs_come_half_a_head_apart():
    side_by_side = torch.arange(12.0)[:, None]  # two heads of six rows: pairs (0,1), (2,3), (4,5)
    assert halves(side_by_side, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.context_length": 64,
    "llama.rope.freq_base": 1000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["a", "Ġb"],
}
SHAPES = {
    "token_embd": (5, 8),
    "output_norm": (8,),
    "blk.0.attn_q": (8, 8),
    "blk.0.attn_k": (4, 8),
    "blk.0.attn_v": (4, 8),
    "blk.0.attn_output": (8, 8),
    "blk.0.ffn_gate": (12, 8),
    "blk.0.ffn_up": (12, 8),
    "blk.0.ffn_down": (8, 12),
    "blk.0.attn_norm": (8,),
    "blk.0.ffn_norm": (8,),
}
TENSORS = {f"{name}.weight": RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_a_small_llama_is_read_and_runs(tmp_path):
    from models.longrope.engine import Engine

    path = tmp_path / "small.gguf"
    path.write_bytes(gguf(METADATA, TENSORS))
    assert GGUF(path).metadata["tokenizer.ggml.tokens"] == ["a", "Ġb"]
    config, tensors = read_llama(path)
    assert (config.layers, config.head_dim, config.group, config.vocabulary, config.base) == (1, 4, 2, 5, 1000.0)
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.down_proj.weight"], TENSORS["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(
        tensors["model.layers.0.self_attn.k_proj.weight"], TENSORS["blk.0.attn_k.weight"][[0, 2, 1, 3]]
    )
    assert len(Engine(config, tensors).complete([0, 1, 2], 2).ids) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too short"),
        (b"\x89PNG" + bytes(100), "does not begin as GGUF"),
        (gguf({}, {}, version=1), "does not begin as GGUF"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 0), "more tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 2**62), "cut off"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("a") + struct.pack("<I", 99), "header"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 2**40), "too long"),
        (gguf({}, {"x": ((8,), 12, bytes(32))}), "type 12, and only F32"),
        (gguf({}, {"x": ((31,), 3, bytes(20))}), "impossible shape"),
        (gguf({}, {"x": ((64, 2**40), 0, b"")}), "impossible shape"),
        (gguf({}, {"x": ((6400,), 0, bytes(100))}), "data of x are cut off"),
        (gguf(METADATA, TENSORS)[:300], "cut off|header"),
    ],
)
def test_damaged_files(tmp_path, content, words):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=words):
        GGUF(path)


def test_every_cut_is_a_message(tmp_path):
    whole = gguf(METADATA, TENSORS)
    path = tmp_path / "cut.gguf"
    for size in range(0, len(whole) - 32, 37):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsCorrupt):
            read_llama(path)


def test_other_models(tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(gguf({"general.architecture": "gpt2"}, {}))
    with pytest.raises(WeightsCorrupt, match="'gpt2'"):
        read_llama(path)
    path.write_bytes(gguf({key: v for key, v in METADATA.items() if "head_count" not in key}, TENSORS))
    with pytest.raises(WeightsCorrupt, match="head_count"):
        read_llama(path)
    path.write_bytes(gguf(METADATA, {key: v for key, v in TENSORS.items() if "ffn_up" not in key}))
    with pytest.raises(WeightsCorrupt, match="ffn_up"):
        read_llama(path)
    with pytest.raises(WeightsCorrupt, match="no file"):
        GGUF(tmp_path / "nothing.gguf")


def test_the_packaged_model():
    path = resolve(PACKAGED).path
    file = GGUF(path)
    assert len(file.entries) == 272
    assert {e.kind.name for e in file.entries.values()} == {"F32", "Q4_1", "Q8_0"}
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49_152
    config, tensors = read_llama(path)
    assert (config.layers, config.width, config.heads, config.kv_heads, config.head_dim) == (30, 576, 9, 3, 64)
    assert (config.vocabulary, config.window, config.base, config.hidden) == (49_152, 8192, 100_000.0, 1536)
    assert "lm_head.weight" not in tensors  # tied
    assert sum(tensor.numel() for tensor in tensors.values()) == config.parameters == 134_515_008
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())

    def alike(weight):  # the two rows of a rotary pair have alike norms, if they are the pair
        first, second = weight.unflatten(0, (3, 2, 32)).norm(dim=-1).unbind(1)
        return float(torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1])

    keys = [alike(tensors[f"model.layers.{i}.self_attn.k_proj.weight"]) for i in range(30)]
    stored = [alike(file.tensor(f"blk.{i}.attn_k.weight")) for i in range(30)]
    assert sum(keys) > 1.5 * sum(stored)
