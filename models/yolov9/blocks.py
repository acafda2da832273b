"""The building blocks of GELAN and PGI (paper sections 3 and 4; block table of the specification, section 2).

Sub-module names are the published ones, so a published `state_dict` loads by name.
Every tensor is (B, C, H, W) float; every "same" convolution keeps H and W, every stride 2 halves them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BN_EPS = 1e-3  # not stored in a state_dict: the default 1e-5 loads without error and moves every box
BN_MOMENTUM = 0.03


class Conv(nn.Module):
    """Convolution without bias, batch norm, SiLU. `(B, i, H, W) -> (B, o, H/s, W/s)`."""

    def __init__(self, i: int, o: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(o, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class FusedConv(nn.Module):
    """What `fuse` leaves of a `Conv` or a `RepConvN`: one convolution with bias, then the activation."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class AConv(nn.Module):
    """Average-pool 2x2 at stride 1, then a stride-2 convolution."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.cv1 = Conv(i, o, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv1(F.avg_pool2d(x, 2, 1))


class ADown(nn.Module):
    """Down-sampling in two halves: a strided convolution beside a max-pool with a 1x1 convolution."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.cv1 = Conv(i // 2, o // 2, 3, 2)
        self.cv2 = Conv(i // 2, o // 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.avg_pool2d(x, 2, 1).chunk(2, 1)
        return torch.cat((self.cv1(a), self.cv2(F.max_pool2d(b, 3, 2, 1))), 1)


class RepConvN(nn.Module):
    """A 3x3 and a 1x1 convolution summed before the activation; there is no identity branch."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1 = Conv(i, o, 3, act=False)
        self.conv2 = Conv(i, o, 1, act=False)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.conv2(x))


class RepNBottleneck(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1 = RepConvN(c, c)
        self.cv2 = Conv(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class RepNCSP(nn.Module):
    """Cross-stage-partial block: n bottlenecks on one half, a shortcut on the other (deep half first)."""

    def __init__(self, i: int, o: int, n: int) -> None:
        super().__init__()
        h = o // 2
        self.cv1 = Conv(i, h)
        self.cv2 = Conv(i, h)
        self.cv3 = Conv(2 * h, o)
        self.m = nn.Sequential(*(RepNBottleneck(h) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class RepNCSPELAN4(nn.Module):
    """GELAN's block: ELAN whose computational blocks are RepNCSP. `split` and `branch` are its two widths."""

    def __init__(self, i: int, o: int, split: int, branch: int, n: int) -> None:
        super().__init__()
        self.cv1 = Conv(i, split)
        self.cv2 = nn.Sequential(RepNCSP(split // 2, branch, n), Conv(branch, branch, 3))
        self.cv3 = nn.Sequential(RepNCSP(branch, branch, n), Conv(branch, branch, 3))
        self.cv4 = Conv(split + 2 * branch, o)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).chunk(2, 1)
        c = self.cv2(b)
        return self.cv4(torch.cat((a, b, c, self.cv3(c)), 1))


class ELAN1(nn.Module):
    """Plain ELAN with one convolution a branch (the first stage of t and s)."""

    def __init__(self, i: int, o: int, split: int, branch: int) -> None:
        super().__init__()
        self.cv1 = Conv(i, split)
        self.cv2 = Conv(split // 2, branch, 3)
        self.cv3 = Conv(branch, branch, 3)
        self.cv4 = Conv(split + 2 * branch, o)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).chunk(2, 1)
        c = self.cv2(b)
        return self.cv4(torch.cat((a, b, c, self.cv3(c)), 1))


class SPPELAN(nn.Module):
    """Spatial pyramid pooling: three 5x5 max-pools in a row, all four stages concatenated."""

    def __init__(self, i: int, o: int, hidden: int) -> None:
        super().__init__()
        self.cv1 = Conv(i, hidden)
        self.cv5 = Conv(4 * hidden, o)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        for _ in range(3):
            y.append(F.max_pool2d(y[-1], 5, 1, 2))
        return self.cv5(torch.cat(y, 1))


class Upsample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Concat(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, 1)


class Silence(nn.Module):
    """Identity: keeps the image addressable as layer 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class CBLinear(nn.Module):
    """PGI's routing projection: one 1x1 convolution with bias, cut into a tuple of `outs` channels."""

    def __init__(self, i: int, outs: Sequence[int]) -> None:
        super().__init__()
        self.outs = list(outs)
        self.conv = nn.Conv2d(i, sum(outs), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).split(self.outs, 1)


class CBFuse(nn.Module):
    """Sums element `index[j]` of the j-th CBLinear tuple, resized (nearest) to the last input, with it."""

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        self.index = list(index)

    def forward(self, *inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        *routes, target = inputs
        assert isinstance(target, Tensor)
        size = target.shape[2:]
        return target + sum(
            F.interpolate(route[i], size=size, mode="nearest") for route, i in zip(routes, self.index, strict=True)
        )


class DFL(nn.Module):
    """Expectation over 16 distance bins, 0..15 in stride units. `(B, 64, N) -> (B, 4, N)`, side-major."""

    BINS = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(self.BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data = torch.arange(self.BINS, dtype=torch.float32).view(1, self.BINS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, n = x.shape
        p = x.view(b, 4, self.BINS, n).softmax(2)
        return torch.einsum("bskn,k->bsn", p, self.conv.weight.view(-1).to(p.dtype))
