"""SpeechTokenizer (Zhang et al., arXiv 2308.16692), the variant with Snake activations that AnyGPT uses.

A convolutional encoder, eight residual codebooks at 50 Hz and a decoder, all of EnCodec's kind (Defossez et al., arXiv
2210.13438); the first codebook was distilled from HuBERT and holds what is said. Names are those of the published state
dict (specification 7.3), weight normalisation in the old form included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anygpt import checkpoint
from models.errors import BadInput, WeightsCorrupt

KERNEL = 7  # of the first and last convolutions
_TRAINING = ("inited", "cluster_size", "embed_avg")  # the codebooks' running statistics


@dataclass(frozen=True)
class Config:
    """The published config.json; its other fields are for training."""

    n_filters: int = 64
    strides: tuple[int, ...] = (8, 5, 4, 2)
    dimension: int = 1024
    residual_kernel_size: int = 3
    lstm_layers: int = 2
    codebook_size: int = 1024
    n_q: int = 8
    sample_rate: int = 16000

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.strides)


class SpeechTokenizer(nn.Module):
    """encode: (B, 1, T) -> codes (n_q, B, ceil(T / hop)). decode: codes -> (B, 1, hop * n)."""

    def __init__(self, config: Config = Config()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.quantizer = _Quantizer(config)
        self.decoder = _Decoder(config)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """Samples (B, 1, T), T at least 1, -> codes (n_q, B, n), int64; layer 0 is the semantic one."""
        return self.quantizer.encode(self.encoder(x))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes of the first 1 to n_q layers, (k, B, n), -> samples (B, 1, hop * n)."""
        if codes.shape[-1] == 0:
            raise BadInput("There are no speech codes to decode.")
        return self.decoder(self.quantizer.decode(codes))


def load(weights: str | Path, config: str | Path) -> SpeechTokenizer:
    """The published `ckpt.dev` and `config.json`.

    Raises:
        WeightsCorrupt: names or shapes differ, or the configuration is of another variant. UnsafeCheckpoint.
    """
    settings = read_config(json.loads(Path(config).read_text(encoding="utf-8")))
    network, _ = checkpoint.load(
        lambda: SpeechTokenizer(settings), checkpoint.read(weights), Path(weights).name, unused=unused
    )
    return network


def read_config(content: Mapping[str, Any]) -> Config:
    """Raises `WeightsCorrupt` for a variant that is not built here."""
    expected = {"activation": "Snake", "bidirectional": True, "n_residual_layers": 1}
    for key, value in expected.items():
        if content.get(key) != value:
            raise WeightsCorrupt(f"The speech tokenizer's config has {key} {content.get(key)!r}; expected {value!r}.")
    known = {field.name: content[field.name] for field in fields(Config) if field.name in content}
    return Config(**known | ({"strides": tuple(known["strides"])} if "strides" in known else {}))


def unused(key: str) -> bool:
    """Tensors of the published file that only training needs."""
    return key.startswith("transform.") or key.rpartition(".")[2] in _TRAINING


class _Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, an alpha a channel (Ziyin et al., arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


class _WeightNorm(nn.Module):
    """weight = weight_g * weight_v / |weight_v|, the norm over all but the first dimension."""

    def __init__(self, first: int, second: int, kernel: int, biases: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(first, 1, 1))
        self.weight_v = nn.Parameter(torch.randn(first, second, kernel) / math.sqrt(second * kernel))
        self.bias = nn.Parameter(torch.zeros(biases))

    def weight(self) -> Tensor:
        return torch._weight_norm(self.weight_v, self.weight_g, 0)


class _Conv(nn.Module):
    """A convolution with reflected borders: (B, in, T) -> (B, out, ceil(T / stride))."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.ModuleDict({"conv": _WeightNorm(channels_out, channels_in, kernel, channels_out)})

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel - self.stride
        frames = math.ceil(x.shape[-1] / self.stride)
        right = padding // 2 + frames * self.stride - x.shape[-1]
        inner = cast(_WeightNorm, self.conv["conv"])
        return F.conv1d(_reflected(x, padding - padding // 2, right), inner.weight(), inner.bias, self.stride)


class _TransposedConv(nn.Module):
    """(B, in, T) -> (B, out, stride * T)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convtr = nn.ModuleDict({"convtr": _WeightNorm(channels_in, channels_out, 2 * stride, channels_out)})

    def forward(self, x: Tensor) -> Tensor:
        inner = cast(_WeightNorm, self.convtr["convtr"])
        x = F.conv_transpose1d(x, inner.weight(), inner.bias, self.stride)
        right = self.stride // 2
        return x[..., self.stride - right : x.shape[-1] - right]


class _Residual(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        half = channels // 2
        self.block = nn.Sequential(
            _Snake(channels), _Conv(channels, half, kernel), _Snake(half), _Conv(half, channels, 1)
        )
        self.shortcut = _Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class _LSTM(nn.Module):
    """(B, C, T) -> (B, C or 2 C, T): an LSTM and what went into it."""

    def __init__(self, channels: int, layers: int, both_ways: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, bidirectional=both_ways)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        y, _ = self.lstm(x)
        return (y + x.repeat(1, 1, y.shape[-1] // x.shape[-1])).permute(1, 2, 0)


class _Encoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width = c.n_filters
        layers: list[nn.Module] = [_Conv(1, width, KERNEL)]
        for stride in reversed(c.strides):
            layers += [_Residual(width, c.residual_kernel_size), _Snake(width)]
            layers += [_Conv(width, 2 * width, 2 * stride, stride)]
            width *= 2
        layers += [
            _LSTM(width, c.lstm_layers, both_ways=True),
            _Snake(2 * width),
            _Conv(2 * width, c.dimension, KERNEL),
        ]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Decoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width = c.n_filters * 2 ** len(c.strides)
        layers: list[nn.Module] = [_Conv(c.dimension, width, KERNEL), _LSTM(width, c.lstm_layers, both_ways=False)]
        for stride in c.strides:
            layers += [_Snake(width), _TransposedConv(width, width // 2, stride)]
            width //= 2
            layers += [_Residual(width, c.residual_kernel_size)]
        layers += [_Snake(width), _Conv(width, 1, KERNEL)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Codebook(nn.Module):
    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.randn(size, dimension))
        self.embed: Tensor

    def nearest(self, x: Tensor) -> Tensor:
        """x: (B, n, D) -> (B, n)."""
        return (self.embed.square().sum(1) - 2 * x @ self.embed.T).argmin(-1)


class _Layer(nn.Module):
    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self._codebook = _Codebook(size, dimension)


class _Quantizer(nn.Module):
    """Residual vector quantisation: each layer quantises what the ones before left over."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        layers = nn.ModuleList(_Layer(c.codebook_size, c.dimension) for _ in range(c.n_q))
        self.vq = nn.ModuleDict({"layers": layers})

    def _codebooks(self) -> list[_Codebook]:
        return [layer._codebook for layer in self.vq["layers"]]  # type: ignore[attr-defined, union-attr]

    def encode(self, x: Tensor) -> Tensor:
        """(B, D, n) -> (n_q, B, n)."""
        rest = x.transpose(1, 2)
        codes = []
        for book in self._codebooks():
            codes.append(book.nearest(rest))
            rest = rest - F.embedding(codes[-1], book.embed)
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """(k, B, n) -> (B, D, n)."""
        books = self._codebooks()[: len(codes)]
        return sum(F.embedding(c, book.embed) for c, book in zip(codes, books, strict=True)).transpose(1, 2)  # type: ignore[union-attr]


def _reflected(x: Tensor, left: int, right: int) -> Tensor:
    """Mirrors the borders; a sound shorter than them is first continued with zeros, as EnCodec does it."""
    short = max(0, max(left, right) - x.shape[-1] + 1)
    padded = F.pad(F.pad(x, (0, short)), (left, right), "reflect")
    return padded[..., : padded.shape[-1] - short]
