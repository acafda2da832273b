"""YOLOv9 (arXiv 2402.13616): programmable gradient information and GELAN. See README.md.

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from models.runtime import Device, LoadedModel, Progress
    from models.yolov9.network import Network
    from models.yolov9.pipeline import Detector


def build(name: str, classes: int = 80, training: bool = False, class_width: int | None = None) -> Network:
    """A network by name; see `models.yolov9.network.build`."""
    from models.yolov9.network import build

    return build(name, classes, training, class_width)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """A published file's inference-form state dict, safely; see `models.yolov9.checkpoint`."""
    from models.yolov9.checkpoint import read_checkpoint

    return read_checkpoint(path)


def load(
    tier: str = "embedded",
    size: str | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    weights_dir: str | Path | None = None,
) -> Detector:
    """A ready detector; see `models.yolov9.tiers.load` for the arguments and errors."""
    from models.runtime import choose_device

    return loader(tier, size, weights, weights_dir)(_silent, choose_device(device)).model


def loader(
    tier: str = "embedded",
    size: str | None = None,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
) -> Callable[[Progress, Device], LoadedModel[Detector]]:
    """What the model runtime calls to load a detector; see `models.yolov9.tiers` for arguments and errors."""

    def load(report: Progress, device: Device) -> LoadedModel[Detector]:
        from models.yolov9 import tiers  # imports torch: not before somebody needs a detector

        return tiers.load(report, device, tier, size, weights, weights_dir)

    return load


def _silent(share: float, text: str) -> None:
    """Progress of a load nobody watches."""
