"""SEED tokenizer 2 (Ge et al., arXiv 2310.01218): a picture as 32 codes in causal order, and back to CLIP's space.

    picture -> EVA ViT-g -> causal Q-Former, 32 queries -> nearest of 8192 codes
    codes -> a small transformer -> a CLIP ViT-H image embedding -> unCLIP (models/anygpt/unclip.py)

Names are those of the published state dicts (specification 7.2). `seed_quantizer.pt` lacks the 511 tensors of
`visual_encoder`, which are in `eva_vit_g.pth`, and holds a text branch that nothing here uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anygpt import checkpoint
from models.errors import BadInput, WeightsCorrupt

VISION = "visual_encoder."


@dataclass(frozen=True)
class Config:
    """The published sizes."""

    image: int = 224
    patch: int = 14
    vision_width: int = 1408
    vision_depth: int = 39
    vision_heads: int = 16
    vision_mlp: int = 6144
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    queries: int = 32
    codes: int = 8192
    code_width: int = 32
    decoder_depth: int = 4
    down: tuple[int, ...] = (256, 128, 32)
    embedding: int = 1024

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


class Seed(nn.Module):
    """encode: pictures -> codes. embed: codes -> CLIP image embeddings."""

    def __init__(self, config: Config = Config()) -> None:  # noqa: B008 - frozen
        super().__init__()
        c = self.config = config
        self.visual_encoder = _Vision(c)
        self.ln_vision = nn.LayerNorm(c.vision_width)
        self.query_tokens = nn.Parameter(torch.randn(1, c.queries, c.width) * 0.02)
        self.Qformer = nn.ModuleDict({"bert": _QFormer(c)})
        self.encode_task_layer = nn.Sequential(nn.Linear(c.width, c.width), nn.Tanh(), nn.Linear(c.width, c.code_width))
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(c.codes, c.code_width)})
        self.decode_task_layer = nn.Sequential(
            nn.Linear(c.code_width, c.code_width), nn.Tanh(), nn.Linear(c.code_width, c.width)
        )
        self.pos_embed_image = nn.Parameter(torch.randn(1, c.queries, c.width) * 0.02)
        self.blocks_image = nn.ModuleList(_Block(c.width, c.heads, c.mlp) for _ in range(c.decoder_depth))
        a, b, last = c.down
        self.image_down = nn.Sequential(
            nn.Linear(c.width, a, bias=False), nn.ReLU(), nn.Linear(a, b, bias=False), nn.ReLU(),
            nn.Linear(b, last, bias=False),
        )  # fmt: skip
        self.distill_image_proj = nn.Linear(c.queries * last, c.embedding)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, image, image) in CLIP's scale -> codes (B, queries), int64."""
        x = self.features(pictures)
        table = self.quantize["embedding"].weight
        return (table.square().sum(1) - 2 * x @ table.T).argmin(-1)  # type: ignore[operator, union-attr]

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, image, image) -> what is quantised, (B, queries, code_width)."""
        seen = self.ln_vision(self.visual_encoder(pictures))
        asked = self.query_tokens.expand(len(pictures), -1, -1)
        return self.encode_task_layer(self.Qformer["bert"](asked, seen))

    @torch.inference_mode()
    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, queries) -> CLIP ViT-H image embeddings (B, embedding).

        Raises:
            BadInput: another number of codes than a picture has.
        """
        if codes.ndim != 2 or codes.shape[1] != self.config.queries:
            raise BadInput(f"A picture has {self.config.queries} codes; got {tuple(codes.shape)}.")
        x = self.decode_task_layer(self.quantize["embedding"](codes)) + self.pos_embed_image
        for block in self.blocks_image:
            x = block(x)
        return self.distill_image_proj(self.image_down(x).flatten(1))


def load(path: str | Path, eva: str | Path | None = None) -> Seed:
    """The published quantizer and, to read pictures, `eva_vit_g.pth`; without it only `embed` works.

    Raises:
        WeightsCorrupt: other tensors are missing, or shapes differ. UnsafeCheckpoint.
    """
    state = checkpoint.read(path)
    if eva is not None:
        state |= {VISION + key: tensor for key, tensor in checkpoint.read(eva).items()}
    network, missing = assemble(state, Path(path).name)
    if eva is not None and missing:
        raise WeightsCorrupt(
            f"{Path(eva).name} is not EVA ViT-g: it lacks {len(missing)} of its tensors, such as "
            f"{missing[0].removeprefix(VISION)}. Get eva_vit_g.pth again."
        )
    return network


def assemble(state: dict[str, Tensor], name: str, config: Config = Config()) -> tuple[Seed, list[str]]:  # noqa: B008
    """A network and the names it still lacks, all of them `visual_encoder.*`; see `checkpoint.load`."""
    return checkpoint.load(
        lambda: Seed(config), state, name, unused=lambda key: True, elsewhere=lambda key: key.startswith(VISION)
    )


class _Vision(nn.Module):
    """EVA ViT-g without its last block, norm and head: (B, 3, H, W) -> (B, 1 + patches, vision_width)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, c.vision_width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + c.patches, c.vision_width) * 0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, c.vision_width, c.patch, c.patch)})
        self.blocks = nn.ModuleList(
            _Block(c.vision_width, c.vision_heads, c.vision_mlp, _EvaAttention) for _ in range(c.vision_depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class _Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _EvaAttention(_Attention):
    """Biases on queries and values, none on keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def project(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, bias)


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp: int, attention: type[_Attention] = _Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp), "fc2": nn.Linear(mlp, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _QFormer(nn.Module):
    """BERT (post-norm) over queries only: (B, queries, width), (B, patches, vision_width) -> (B, queries, width)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"LayerNorm": nn.LayerNorm(c.width, eps=1e-12)})
        layers = nn.ModuleList(_QLayer(c, crosses=i % 2 == 0) for i in range(c.depth))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        x = self.embeddings["LayerNorm"](queries)
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined, union-attr]
            x = layer(x, seen)
        return x


class _QLayer(nn.Module):
    def __init__(self, c: Config, crosses: bool) -> None:
        super().__init__()
        self.attention = _BertAttention(c, c.width)
        self.crossattention = _BertAttention(c, c.vision_width) if crosses else None
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(c.width, c.mlp)})
        self.output_query = _BertOutput(c.mlp, c.width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        # Each query sees only those before it: what makes the codes a sentence that a language model can write.
        x = self.attention(x, x, causal=True)
        if self.crossattention is not None:
            x = self.crossattention(x, seen, causal=False)
        return self.output_query(F.gelu(self.intermediate_query["dense"](x)), x)


class _BertAttention(nn.Module):
    def __init__(self, c: Config, key_width: int) -> None:
        super().__init__()
        self.heads = c.heads
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(c.width, c.width),
                "key": nn.Linear(key_width, c.width),
                "value": nn.Linear(key_width, c.width),
            }
        )
        self.output = _BertOutput(c.width, c.width)

    def forward(self, x: Tensor, seen: Tensor, causal: bool) -> Tensor:
        sources = {"query": x, "key": seen, "value": seen}
        q, k, v = (
            self.self[name](source).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name, source in sources.items()
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1 / math.sqrt(q.shape[-1]))
        return self.output(out.transpose(1, 2).flatten(2), x)


class _BertOutput(nn.Module):
    """Back to the layer's width, added to what came in, normalised."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)
