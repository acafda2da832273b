"""The classifiers whose parameters are generated, each a chain of stages, and the choice of parameters.

A chain lets the frozen front run once for all checkpoints (`split`). Sizes are the specification's (A.2, F.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import BadInput
from models.pdiff.data import Data
from models.pdiff.vectors import Layout, layout_of

SIDE = 32  # what the picture networks see


class ToPicture(nn.Module):
    """Grey becomes three equal channels, small pictures become 32 x 32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, (SIDE, SIDE), mode="nearest")
        return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


class PatchesAndClass(nn.Module):
    """The front of torchvision's vision transformer: patches, class token, positions."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.conv_proj, self.class_token = vit.conv_proj, vit.class_token
        self.pos_embedding = vit.encoder.pos_embedding

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        return torch.cat((self.class_token.expand(len(x), -1, -1), patches), 1) + self.pos_embedding


class ClassToken(nn.Module):
    """(B, T, C) -> (B, C): the first token."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def build(name: str, data: Data, seed: int = 0) -> nn.Sequential:
    """A network with fresh weights for a data set. Raises `BadInput` for an unknown name.

    `torchvision:NAME` is any classifier of torchvision, as one stage.
    """
    if name not in NETWORKS and not name.startswith("torchvision:"):
        raise BadInput(f"Unknown network {name!r}. Choose one of {', '.join(NETWORKS)}, or torchvision:NAME.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in NETWORKS:
            return NETWORKS[name](data)
        return _torchvision(name.partition(":")[2], len(data.classes))


def subset(network: nn.Module, kind: str) -> Layout:
    """Which parameters are generated.

    kind: "norm", the last two normalisation layers (the paper's main case); "norm:A-B", layers A to B - 1 of
    the normalisation layers in order; "last:K", the last K layers that have parameters; "all".
    Running means and variances are never generated (specification A.2). Raises `BadInput` for another kind.
    """
    layers = [(name, m) for name, m in network.named_modules() if any(True for _ in m.parameters(recurse=False))]
    norms = [(name, m) for name, m in layers if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)]
    part, last = re.fullmatch(r"norm:(\d+)-(\d+)", kind), re.fullmatch(r"last:(\d+)", kind)
    if kind == "all":
        chosen = layers
    elif kind == "norm":
        chosen = norms[-2:]
    elif part:
        chosen = norms[int(part[1]) : int(part[2])]
    elif last:
        chosen = layers[-int(last[1]) :] if int(last[1]) else []
    else:
        raise BadInput(f"Unknown choice of parameters {kind!r}. Choose norm, norm:A-B, last:K or all.")
    if not chosen:
        raise BadInput(f"{kind} chooses no parameter: there are {len(norms)} normalisation and {len(layers)} layers.")
    wanted = {
        f"{prefix}.{name}" if prefix else name for prefix, m in chosen for name, _ in m.named_parameters("", False)
    }
    return layout_of(network, [name for name, _ in network.named_parameters() if name in wanted])


def split(network: nn.Sequential, layout: Layout) -> tuple[nn.Sequential, nn.Sequential]:
    """Front and back: no parameter of the layout is in the front. Parameters keep their names."""
    first = min(int(name.split(".")[0]) for name in layout.names)
    return network[:first], network[first:]


# ---- the networks -----------------------------------------------------------------------------------------


def _inputs(data: Data) -> int:
    c, h, w = data.shape
    return c * h * w


def _mlp_bn(width: int) -> Callable[[Data], nn.Sequential]:
    def make(data: Data) -> nn.Sequential:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(_inputs(data), width), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, len(data.classes)),
        )  # fmt: skip

    return make


def _mlp_ln(data: Data) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(_inputs(data), 24), nn.LayerNorm(24), nn.LeakyReLU(), nn.Linear(24, len(data.classes))
    )


def _cnn_3(data: Data) -> nn.Sequential:
    """The MNIST/SVHN network of the 2025 code: 10 853 parameters at ten classes (specification A.2)."""
    stages: list[nn.Module] = [ToPicture()]
    for i, o in ((3, 16), (16, 32), (32, 15)):
        stages += [nn.Conv2d(i, o, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(60, 20), nn.ReLU(), nn.Linear(20, len(data.classes)))


def _convnet_bn(data: Data) -> nn.Sequential:
    stages: list[nn.Module] = [ToPicture()]
    for i, o in ((3, 32), (32, 48), (48, 64)):
        stages += [nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(data.classes)))


def _resnet_18(data: Data) -> nn.Sequential:
    """torchvision's ResNet-18; its last two batch norms are `layer4.1`'s, 4 x 512 numbers."""
    from torchvision.models import resnet18

    net = resnet18(num_classes=len(data.classes))
    front = [ToPicture(), net.conv1, net.bn1, net.relu, net.maxpool]
    blocks = [block for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer]
    return nn.Sequential(*front, *blocks, net.avgpool, nn.Flatten(), net.fc)


def _vit_tiny(data: Data) -> nn.Sequential:
    """Width 192, 12 blocks, 3 heads; patches of 8 pixels, since the pictures have 32."""
    from torchvision.models import VisionTransformer

    net = VisionTransformer(SIDE, 8, 12, 3, 192, 768, num_classes=len(data.classes))
    nn.init.trunc_normal_(net.heads.head.weight, std=0.02)  # torchvision starts the head at zero
    return nn.Sequential(
        ToPicture(), PatchesAndClass(net), *net.encoder.layers, net.encoder.ln, ClassToken(), net.heads
    )


def _convnext_atto(data: Data) -> nn.Sequential:
    """Depths 2/2/6/2, widths 40/80/160/320."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    settings = [CNBlockConfig(40, 80, 2), CNBlockConfig(80, 160, 2), CNBlockConfig(160, 320, 6),
                CNBlockConfig(320, None, 2)]  # fmt: skip
    net = ConvNeXt(settings, num_classes=len(data.classes), layer_scale=1.0)
    stages = [block for stage in net.features for block in stage]
    return nn.Sequential(ToPicture(), *stages, net.avgpool, *net.classifier)


def _torchvision(name: str, classes: int) -> nn.Sequential:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise BadInput(f"torchvision has no model {name!r}; for example resnet18, convnext_tiny, vit_b_16.")
    return nn.Sequential(ToPicture(), get_model(name, weights=None, num_classes=classes))


NETWORKS: dict[str, Callable[[Data], nn.Sequential]] = {
    "mlp-bn-128": _mlp_bn(128),
    "mlp-bn-512": _mlp_bn(512),
    "mlp-ln": _mlp_ln,
    "cnn-3": _cnn_3,
    "convnet-bn": _convnet_bn,
    "resnet-18": _resnet_18,
    "vit-tiny": _vit_tiny,
    "convnext-atto": _convnext_atto,
}
