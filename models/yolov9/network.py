"""YOLOv9 and GELAN networks t, s, m, c, e, with published layer numbers and `state_dict` keys.

`gelan-*` is the inference form; `yolov9-*` is the training form of the same network with the PGI
auxiliary branch and a second head (paper section 4.1; tables of the specification, sections 3 to 5).

A network is a list of rows `(from, block)`: `from` is the index of the layer (or layers) it reads,
-1 being the row above and 0 in the networks that start with `Silence` the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.errors import BadInput
from models.yolov9.blocks import (
    DFL,
    ELAN1,
    SPPELAN,
    AConv,
    ADown,
    CBFuse,
    CBLinear,
    Concat,
    Conv,
    FusedConv,
    RepConvN,
    RepNCSPELAN4,
    Silence,
    Upsample,
)

STRIDES = (8, 16, 32)
SIZES = ("t", "s", "m", "c", "e")
Row = tuple[int | tuple[int, ...], nn.Module]
RawMaps = list[Tensor]  # three raw head maps (B, 64 + classes, H/stride, W/stride)


def build(name: str, classes: int = 80, training: bool = False, class_width: int | None = None) -> Network:
    """Builds a network with PyTorch's initial weights and the head's initial biases.

    Args:
        name: `"gelan-t"` to `"gelan-e"` (inference form) or `"yolov9-t"` to `"yolov9-e"` (training form).
        classes: number of classes, at least 1.
        training: whether the module is returned in train mode.
        class_width: width of the main head's class tower; `None` is the published code's rule. The
            released YOLOv9-T weights (and ours) use 80 (specification, section 0, fact 3).

    Raises:
        BadInput: unknown name or class count below 1.
    """
    kind, _, size = name.partition("-")
    if kind not in ("gelan", "yolov9") or size not in SIZES:
        known = ", ".join(f"{k}-{s}" for k in ("gelan", "yolov9") for s in SIZES)
        raise BadInput(f"Unknown network {name!r}. Choose one of: {known}.")
    if classes < 1:
        raise BadInput(f"A detector needs at least one class, not {classes}.")
    pgi = kind == "yolov9"
    rows, sources, channels = _gelan_e(pgi) if size == "e" else _gelan(WIDTHS[size], pgi)
    head = (DualDetect if pgi else Detect)(classes, channels, class_width)
    return Network([*rows, (sources, head)], name).train(training)


class Network(nn.Module):
    """Runs the rows in order.

    Input `(B, 3, H, W)` float RGB in 0..1, H and W multiples of 32. In eval mode returns the main head's
    decoded `(B, 4 + classes, N)`: centre x, centre y, width, height in input pixels, then class scores
    in 0..1; layers that only feed the auxiliary head are skipped. In train mode returns the raw maps:
    a list of three, or `(auxiliary, main)` lists for a training form.
    """

    def __init__(self, rows: Sequence[Row], name: str) -> None:
        super().__init__()
        self.name = name
        self.model = nn.ModuleList(module for _, module in rows)
        self.sources = [_absolute(source, i) for i, (source, _) in enumerate(rows)]
        head = len(rows) - 1
        main = self.sources[head][-3:]
        self.eval_sources = [*self.sources[:head], main]
        self.eval_layers = _ancestors(self.eval_sources, head)
        self._last_use = {
            True: _last_use(self.sources, set(range(len(rows)))),
            False: _last_use(self.eval_sources, self.eval_layers),
        }

    @property
    def head(self) -> Detect | DualDetect:
        head = self.model[-1]
        assert isinstance(head, Detect | DualDetect)
        return head

    def forward(self, x: Tensor) -> Tensor | RawMaps | tuple[RawMaps, RawMaps]:
        sources = self.sources if self.training else self.eval_sources
        last_use = self._last_use[self.training]
        outputs: dict[int, Tensor] = {-1: x}
        for i, layer in enumerate(self.model):
            if not self.training and i not in self.eval_layers:
                continue
            y = layer(*(outputs[j] for j in sources[i]))
            outputs[i] = y
            for j in [j for j in outputs if last_use.get(j, len(self.model)) <= i]:
                del outputs[j]  # free an activation as soon as nothing reads it
        return y


class Detect(nn.Module):
    """Decoupled anchor-free head (`DDetect`): box tower `cv2`, class tower `cv3`, one per level."""

    def __init__(self, classes: int, channels: Sequence[int], class_width: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.cv2 = _box_towers(channels)
        self.cv3 = _class_towers(channels, classes, class_width)
        self.dfl = DFL()
        _initial_biases(self.cv2, self.cv3, classes)

    def forward(self, *xs: Tensor) -> Tensor | RawMaps:
        maps = _raw_maps(self.cv2, self.cv3, xs)
        return maps if self.training else decode(maps, self.dfl)


class DualDetect(nn.Module):
    """Two heads in one (`DualDDetect`): auxiliary `cv2`/`cv3`/`dfl`, main `cv4`/`cv5`/`dfl2`."""

    def __init__(self, classes: int, channels: Sequence[int], class_width: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        auxiliary, main = channels[:3], channels[3:]
        self.cv2 = _box_towers(auxiliary)
        self.cv3 = _class_towers(auxiliary, classes, None)
        self.cv4 = _box_towers(main)
        self.cv5 = _class_towers(main, classes, class_width)
        self.dfl = DFL()
        self.dfl2 = DFL()
        _initial_biases(self.cv2, self.cv3, classes)
        _initial_biases(self.cv4, self.cv5, classes)

    def forward(self, *xs: Tensor) -> Tensor | tuple[RawMaps, RawMaps]:
        main = _raw_maps(self.cv4, self.cv5, xs[-3:])
        if not self.training:
            return decode(main, self.dfl2)
        return _raw_maps(self.cv2, self.cv3, xs[:3]), main


def decode(maps: RawMaps, dfl: DFL) -> Tensor:
    """Raw maps to `(B, 4 + classes, N)`; levels in stride order, positions row-major (spec section 4)."""
    flat = torch.cat([m.flatten(2) for m in maps], 2).float()
    points, strides = anchor_points([(m.shape[2], m.shape[3]) for m in maps], flat.device)
    left_top, right_bottom = dfl(flat[:, : 4 * DFL.BINS]).chunk(2, 1)
    x1y1, x2y2 = points.T - left_top, points.T + right_bottom
    boxes = torch.cat(((x1y1 + x2y2) / 2, x2y2 - x1y1), 1) * strides.T
    return torch.cat((boxes, flat[:, 4 * DFL.BINS :].sigmoid()), 1)


def anchor_points(shapes: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Cell centres `(N, 2)` as x, y in stride units, and each one's stride `(N, 1)`."""
    points, strides = [], []
    for (h, w), stride in zip(shapes, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(h, device=device) + 0.5, torch.arange(w, device=device) + 0.5, indexing="ij")
        points.append(torch.stack((x, y), -1).view(-1, 2))
        strides.append(torch.full((h * w, 1), float(stride), device=device))
    return torch.cat(points), torch.cat(strides)


@torch.no_grad()
def fuse(network: nn.Module) -> nn.Module:
    """Folds every batch norm, and every RepConvN's two branches, into one convolution, in place.

    The network must be float32 and is then for inference only: outputs stay equal to 1e-4 (spec section 7).
    """
    for name, child in list(network.named_children()):
        if isinstance(child, RepConvN):
            setattr(network, name, FusedConv(_fused_rep(child), child.act))
        elif isinstance(child, Conv):
            setattr(network, name, FusedConv(_fused_conv(child), child.act))
        else:
            fuse(child)
    return network


def _fused_conv(block: Conv) -> nn.Conv2d:
    conv, bn = block.conv, block.bn
    assert bn.running_var is not None and bn.running_mean is not None
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=True,
        device=conv.weight.device,
    )
    fused.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
    assert fused.bias is not None
    fused.bias.copy_(bn.bias - bn.running_mean * scale)
    return fused.requires_grad_(False)


def _fused_rep(block: RepConvN) -> nn.Conv2d:
    fused, point = _fused_conv(block.conv1), _fused_conv(block.conv2)
    assert fused.bias is not None and point.bias is not None
    fused.weight += nn.functional.pad(point.weight, (1, 1, 1, 1))
    fused.bias += point.bias
    return fused


def _box_towers(channels: Sequence[int]) -> nn.ModuleList:
    width = max(channels[0] // 4, 64, DFL.BINS)
    width = math.ceil(width / 4) * 4
    # Four groups: group g predicts side g of (left, top, right, bottom).
    return nn.ModuleList(
        nn.Sequential(Conv(c, width, 3), Conv(width, width, 3, g=4), nn.Conv2d(width, 4 * DFL.BINS, 1, groups=4))
        for c in channels
    )


def _class_towers(channels: Sequence[int], classes: int, width: int | None) -> nn.ModuleList:
    k = width or max(channels[0], min(2 * classes, 128))
    return nn.ModuleList(nn.Sequential(Conv(c, k, 3), Conv(k, k, 3), nn.Conv2d(k, classes, 1)) for c in channels)


def _initial_biases(box: nn.ModuleList, cls: nn.ModuleList, classes: int) -> None:
    for b, c, stride in zip(box, cls, STRIDES, strict=True):
        nn.init.constant_(b[-1].bias, 1.0)  # type: ignore[index]
        nn.init.constant_(c[-1].bias, math.log(5 / classes / (640 / stride) ** 2))  # type: ignore[index]


def _raw_maps(box: nn.ModuleList, cls: nn.ModuleList, xs: Sequence[Tensor]) -> RawMaps:
    return [torch.cat((b(x), c(x)), 1) for b, c, x in zip(box, cls, xs, strict=True)]


def _absolute(source: int | tuple[int, ...], i: int) -> tuple[int, ...]:
    sources = (source,) if isinstance(source, int) else source
    return tuple(i - 1 if j == -1 else j for j in sources)


def _ancestors(sources: Sequence[tuple[int, ...]], layer: int) -> set[int]:
    found, todo = {layer}, [layer]
    while todo:
        for j in sources[todo.pop()]:
            if j >= 0 and j not in found:
                found.add(j)
                todo.append(j)
    return found


def _last_use(sources: Sequence[tuple[int, ...]], layers: set[int]) -> dict[int, int]:
    last: dict[int, int] = {}
    for i in sorted(layers):
        for j in sources[i]:
            last[j] = i
    return last


# ---- the layer tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Widths:
    """What differs between t, s, m and c (their skeleton is the same)."""

    stem: tuple[int, int]
    first: Callable[[], nn.Module]  # layer 2
    down: type[AConv] | type[ADown]
    first_out: int
    stages: tuple[int, int, int]  # output channels of layers 4, 6, 8
    splits: tuple[int, int, int]  # their split widths; the branch is half of it
    neck: tuple[int, int]  # output channels at strides 8 and 16 (layers 15 and 12)
    downs: tuple[int, int]  # output channels of layers 16 and 19
    repeats: int


WIDTHS = {
    "t": Widths(
        stem=(16, 32), first=lambda: ELAN1(32, 32, 32, 16), down=AConv, first_out=32,
        stages=(64, 96, 128), splits=(64, 96, 128), neck=(64, 96), downs=(48, 64), repeats=3,
    ),
    "s": Widths(
        stem=(32, 64), first=lambda: ELAN1(64, 64, 64, 32), down=AConv, first_out=64,
        stages=(128, 192, 256), splits=(128, 192, 256), neck=(128, 192), downs=(96, 128), repeats=3,
    ),
    "m": Widths(
        stem=(32, 64), first=lambda: RepNCSPELAN4(64, 128, 128, 64, 1), down=AConv, first_out=128,
        # 184, not 180: the published parser rounds channels up to a multiple of 8
        stages=(240, 360, 480), splits=(240, 360, 480), neck=(240, 360), downs=(184, 240), repeats=1,
    ),
    "c": Widths(
        stem=(64, 128), first=lambda: RepNCSPELAN4(128, 256, 128, 64, 1), down=ADown, first_out=256,
        stages=(512, 512, 512), splits=(256, 512, 512), neck=(256, 512), downs=(256, 512), repeats=1,
    ),
}  # fmt: skip


# The rows below the head, the layers the head reads, and their channels.
Layers = tuple[list[Row], tuple[int, ...], tuple[int, ...]]


def _gelan(w: Widths, pgi: bool) -> Layers:
    c3, c4, c5 = w.stages
    # m and c start with Silence in their training form, because the auxiliary branch reads the image again.
    o = 1 if pgi and w.repeats == 1 else 0
    rows: list[Row] = [(-1, Silence())] * o
    rows += _backbone(w)
    rows += [
        (-1, SPPELAN(c5, c5, c5 // 2)),  # 9
        (-1, Upsample()),
        ((-1, 6 + o), Concat()),
        (-1, _elan(c5 + c4, w.neck[1], w.splits[1], w)),  # 12
        (-1, Upsample()),
        ((-1, 4 + o), Concat()),
        (-1, _elan(w.neck[1] + c3, w.neck[0], w.neck[0], w)),  # 15: P3
        (-1, w.down(w.neck[0], w.downs[0])),
        ((-1, 12 + o), Concat()),
        (-1, _elan(w.downs[0] + w.neck[1], w.neck[1], w.neck[1], w)),  # 18: P4
        (-1, w.down(w.neck[1], w.downs[1])),
        ((-1, 9 + o), Concat()),
        (-1, _elan(w.downs[1] + c5, c5, c5, w)),  # 21: P5
    ]
    main = (15 + o, 18 + o, 21 + o)
    widths = (*w.neck, c5)
    if not pgi:
        return rows, main, widths
    if o == 0:
        rows += _auxiliary_neck(w)
        return rows, (28, 25, 22, *main), widths * 2
    rows += _auxiliary_backbone(w)
    return rows, (31, 34, 37, *main), (c3, c4, c5, *widths)


def _backbone(w: Widths) -> list[Row]:
    """Layers 0 to 8."""
    c3, c4, c5 = w.stages
    return [
        (-1, Conv(3, w.stem[0], 3, 2)),
        (-1, Conv(w.stem[0], w.stem[1], 3, 2)),
        (-1, w.first()),
        (-1, w.down(w.first_out, w.first_out if w.down is ADown else c3)),
        (-1, _elan(w.first_out if w.down is ADown else c3, c3, w.splits[0], w)),
        (-1, w.down(c3, c3 if w.down is ADown else c4)),
        (-1, _elan(c4, c4, w.splits[1], w)),
        (-1, w.down(c4, c4 if w.down is ADown else c5)),
        (-1, _elan(c5, c5, w.splits[2], w)),
    ]


def _elan(i: int, o: int, split: int, w: Widths) -> RepNCSPELAN4:
    return RepNCSPELAN4(i, o, split, split // 2, w.repeats)


def _auxiliary_neck(w: Widths) -> list[Row]:
    """PGI of t and s: a second SPP and top-down path on backbone layers 8, 6, 4 (spec 5.1, 5.2)."""
    c3, c4, c5 = w.stages
    return [
        (8, SPPELAN(c5, c5, c5 // 2)),  # 22
        (-1, Upsample()),
        ((-1, 6), Concat()),
        (-1, _elan(c5 + c4, w.neck[1], w.splits[1], w)),  # 25
        (-1, Upsample()),
        ((-1, 4), Concat()),
        (-1, _elan(w.neck[1] + c3, w.neck[0], w.neck[0], w)),  # 28
    ]


def _auxiliary_backbone(w: Widths) -> list[Row]:
    """PGI of m and c: the multi-level reversible auxiliary branch, layers 23 to 37 (spec 5.3, 5.4)."""
    c3, c4, c5 = w.stages
    routes = (w.first_out, c4, c5) if w.down is ADown else (c3, c4, c5)
    again = _backbone(w)
    return [
        (5, CBLinear(c3, routes[:1])),
        (7, CBLinear(c4, routes[:2])),
        (9, CBLinear(c5, routes[:3])),
        (0, again[0][1]),
        *again[1:4],
        ((23, 24, 25, -1), CBFuse((0, 0, 0))),
        again[4],
        again[5],
        ((24, 25, -1), CBFuse((1, 1))),
        again[6],
        again[7],
        ((25, -1), CBFuse((2,))),
        again[8],
    ]


def _gelan_e(pgi: bool) -> Layers:
    """gelan-e and yolov9-e: two linked backbones in the main path (spec 3.5, 5.5)."""

    def elan(i: int, o: int, split: int) -> RepNCSPELAN4:
        return RepNCSPELAN4(i, o, split, split // 2, 2)

    def stem_and_stages() -> list[nn.Module]:
        return [
            Conv(3, 64, 3, 2), Conv(64, 128, 3, 2), elan(128, 256, 128),
            ADown(256, 256), elan(256, 512, 256), ADown(512, 512), elan(512, 1024, 512),
            ADown(1024, 1024), elan(1024, 1024, 512),
        ]  # fmt: skip

    first, second = stem_and_stages(), stem_and_stages()
    routes = (64, 128, 256, 512, 1024)
    rows: list[Row] = [(-1, Silence())]
    rows += [(-1, block) for block in first]  # 1 to 9
    for k, (layer, width) in enumerate(((1, 64), (3, 256), (5, 512), (7, 1024), (9, 1024)), start=1):
        rows.append((layer, CBLinear(width, routes[:k])))  # 10 to 14
    rows += [
        (0, second[0]),
        ((10, 11, 12, 13, 14, -1), CBFuse((0,) * 5)),
        (-1, second[1]),
        ((11, 12, 13, 14, -1), CBFuse((1,) * 4)),
        (-1, second[2]),
        (-1, second[3]),
        ((12, 13, 14, -1), CBFuse((2,) * 3)),
        (-1, second[4]),
        (-1, second[5]),
        ((13, 14, -1), CBFuse((3,) * 2)),
        (-1, second[6]),
        (-1, second[7]),
        ((14, -1), CBFuse((4,))),
        (-1, second[8]),  # 28
    ]

    def top_down(deep: int, middle: int, shallow: int) -> list[Row]:
        return [
            (deep, SPPELAN(1024, 512, 256)),
            (-1, Upsample()),
            ((-1, middle), Concat()),
            (-1, elan(1536, 512, 512)),
            (-1, Upsample()),
            ((-1, shallow), Concat()),
            (-1, elan(1024, 256, 256)),
        ]

    if pgi:
        rows += top_down(9, 7, 5)  # 29 to 35: the auxiliary neck on the first backbone
    spp = len(rows)
    rows += top_down(28, 25, 22)
    rows += [
        (-1, ADown(256, 256)),
        ((-1, spp + 3), Concat()),
        (-1, elan(768, 512, 512)),
        (-1, ADown(512, 512)),
        ((-1, spp), Concat()),
        (-1, RepNCSPELAN4(1024, 512, 1024, 512, 2)),
    ]
    main, widths = (spp + 6, spp + 9, spp + 12), (256, 512, 512)
    return (rows, (35, 32, 29, *main), widths * 2) if pgi else (rows, main, widths)
