"""SoundStorm (Borsos et al., arXiv 2305.09636) as AnyGPT uses it: from what is said to how it sounds.

A Conformer (Gulati et al., arXiv 2005.08100) sees the semantic codes and guesses SpeechTokenizer's seven other layers,
masked ones from known ones. Names are those of the published state dict (specification 7.4).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anygpt import checkpoint
from models.errors import BadInput

KEEP = 0.3  # share of the codes among which the first level is sampled
_UPSTREAM = {"0": "net1.0", "2": "net1.2", "4": "ds_conv", "6": "net2.1", "7": "net2.2"}


@dataclass(frozen=True)
class Config:
    width: int = 1024
    depth: int = 12
    heads: int = 8
    head_width: int = 128
    expansion: int = 4
    conv_expansion: int = 2
    conv_kernel: int = 31
    codes: int = 1024
    levels: int = 7
    semantic_codes: int = 1024


class SoundStorm(nn.Module):
    """`logits` for one pass, `generate` for the whole."""

    def __init__(self, config: Config = Config()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.config = config
        self.net = _Network(config)
        self.semantic_token_emb = nn.Embedding(config.semantic_codes, config.width)

    @property
    def mask(self) -> int:
        """The code that stands for "not known yet"."""
        return self.config.codes

    def logits(self, semantic: Tensor, acoustic: Tensor) -> Tensor:
        """semantic (B, n), acoustic (B, n, levels) with masks -> (B, n, levels, codes)."""
        return self.net(acoustic, self.semantic_token_emb(semantic))

    @torch.inference_mode()
    def generate(
        self,
        semantic: Tensor,
        prompt: Tensor | None = None,
        steps: int = 3,
        seed: int = 0,
        on_pass: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """All layers of the speech: (n, 1 + levels), the semantic one first.

        The first level takes `steps` + 1 passes: each keeps the surest guesses, more and more of them, by a cosine
        schedule. Each other level is one pass; levels after the open one stay masked, as they were in training.

        Args:
            semantic: (n,) codes. prompt: (m, 1 + levels), another recording's codes, whose voice is continued.
            on_pass: sees the passes done and their number, and may raise to stop.

        Raises:
            BadInput: no codes, or no steps.
        """
        if semantic.numel() == 0:
            raise BadInput("There are no speech codes to speak.")
        if steps < 1:
            raise BadInput(f"Speech takes at least 1 step; got {steps}.")
        c, n = self.config, len(semantic)
        known = semantic.new_empty((0, 1 + c.levels)) if prompt is None else prompt
        said = torch.cat([known[:, 0], semantic])[None]
        codes = torch.cat([known[:, 1:], semantic.new_full((n, c.levels), self.mask)])[None]
        new = slice(len(known), None)
        generator = torch.Generator().manual_seed(seed % 2**63)
        total = steps + c.levels
        for i in range(steps + 1):
            logits = self.logits(said, codes)[0, new, 0]
            open_frames = codes[0, new, 0] == self.mask
            codes[0, new, 0] = self._guess(logits, codes[0, new, 0], open_frames, i, steps, generator)
            on_pass(i + 1, total)
        for level in range(1, c.levels):
            codes[0, new, level] = self.logits(said, codes)[0, new, level].argmax(-1)
            on_pass(steps + 1 + level, total)
        return torch.cat([semantic[:, None], codes[0, new]], 1)

    def _guess(
        self, logits: Tensor, before: Tensor, free: Tensor, i: int, steps: int, generator: torch.Generator
    ) -> Tensor:
        """One pass over the first level, (n, codes) -> (n,): free frames guessed, the least sure masked again."""
        if i == steps:
            return torch.where(free, logits.argmax(-1), before)
        kept = math.ceil(KEEP * logits.shape[-1])
        values, indices = logits.topk(kept)
        uniform = torch.rand(values.shape, generator=generator).clamp(1e-10, 1 - 1e-7).to(values.device)
        noise = -torch.log(-torch.log(uniform))
        # Gumbel noise is added to logits divided by the temperature i / steps, so the first pass is greedy.
        picked = (values / max(i / steps, 1e-10) + noise).argmax(-1, keepdim=True)
        guesses = torch.where(free, indices.gather(-1, picked)[:, 0], before)
        sureness = values.softmax(-1).gather(-1, picked)[:, 0].masked_fill(~free, math.inf)
        again = min(int(len(logits) * math.cos(math.pi / 2 * i / steps)), int(free.sum()))
        guesses[sureness.topk(again, largest=False).indices] = self.mask
        return guesses


def load(path: str | Path) -> SoundStorm:
    """The published file, in this or in upstream's naming of the convolution.

    Raises:
        WeightsCorrupt: names or shapes differ. UnsafeCheckpoint.
    """
    network, _ = checkpoint.load(SoundStorm, renamed(checkpoint.read(path)), Path(path).name)
    return network


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's `conv.net.{0,2,4,6,7}` as AnyGPT's `conv.{net1,ds_conv,net2}`; other names as they are."""
    return {
        re.sub(r"\.conv\.net\.(\d)\.", lambda found: f".conv.{_UPSTREAM[found[1]]}.", key): tensor
        for key, tensor in state.items()
    }


class _Network(nn.Module):
    """acoustic (B, n, levels), condition (B, n, width) -> logits (B, n, levels, codes)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.levels, self.codes = c.levels, c.codes
        self.conformer = _Conformer(c)
        self.code_embeds = nn.Embedding(c.levels * (c.codes + 1), c.width)
        self.heads = nn.Sequential(nn.Linear(c.width, c.width * c.levels))
        self.to_logits = nn.ModuleList([nn.LayerNorm(c.width), nn.Identity(), _Heads(c)])

    def forward(self, acoustic: Tensor, condition: Tensor) -> Tensor:
        offsets = torch.arange(self.levels, device=acoustic.device) * (self.codes + 1)
        x = self.conformer(self.code_embeds(acoustic + offsets).sum(-2) + condition)
        x = self.heads(x).unflatten(-1, (self.levels, -1))
        return self.to_logits[2](self.to_logits[0](x))


class _Heads(nn.Module):
    """An output layer a level."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c.levels, c.width, c.codes) / math.sqrt(c.width))
        self.bias = nn.Parameter(torch.zeros(1, 1, c.levels, c.codes))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bnqd,qdl->bnql", x, self.weight) + self.bias


class _Conformer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.head_width = c.head_width
        self.layers = nn.ModuleList(_Block(c) for _ in range(c.depth))

    def forward(self, x: Tensor) -> Tensor:
        frequencies = 10000.0 ** (-torch.arange(0, self.head_width, 2, device=x.device) / self.head_width)
        angles = torch.outer(torch.arange(x.shape[1], device=x.device), frequencies).repeat(1, 2)
        for layer in self.layers:
            x = layer(x, angles)
        return x


class _Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.ff1 = _Half(_Normed(c.width, _FeedForward(c)))
        self.attn = _Normed(c.width, _Attention(c))
        self.conv = _Convolution(c)
        self.ff2 = _Half(_Normed(c.width, _FeedForward(c)))
        self.post_norm = nn.LayerNorm(c.width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.ff1(x)
        x = x + self.attn(x, angles)
        x = x + self.conv(x)
        return self.post_norm(x + self.ff2(x))


class _Normed(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(width)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.fn(self.norm(x), *more)


class _Half(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) / 2


class _FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        inner = c.width * c.expansion
        self.net = nn.Sequential(nn.Linear(c.width, inner), nn.SiLU(), nn.Identity(), nn.Linear(inner, c.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Attention(nn.Module):
    """All frames see all frames; positions by rotation."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        inner = c.heads * c.head_width
        self.heads = c.heads
        self.to_q = nn.Linear(c.width, inner, bias=False)
        self.to_kv = nn.Linear(c.width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, c.width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), *self.to_kv(x).chunk(2, -1))
        )
        out = F.scaled_dot_product_attention(_rotated(q, angles), _rotated(k, angles), v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class _Convolution(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        inner = c.width * c.conv_expansion
        self.net1 = nn.ModuleList([nn.LayerNorm(c.width), nn.Identity(), nn.Conv1d(c.width, 2 * inner, 1)])
        depthwise = nn.Conv1d(inner, inner, c.conv_kernel, padding=c.conv_kernel // 2, groups=inner)
        self.ds_conv = nn.ModuleDict({"conv": depthwise})
        self.net2 = nn.Sequential(nn.SiLU(), _ChannelNorm(inner), nn.Conv1d(inner, c.width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.net1[2](self.net1[0](x).transpose(1, 2))
        return self.net2(self.ds_conv["conv"](F.glu(x, 1))).transpose(1, 2)


class _ChannelNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) * variance.clamp(min=1e-6).rsqrt() * self.gamma


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-high, low], -1) * angles.sin()
