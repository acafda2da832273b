"""Which weights a tier means, and how they become a `Detector`."""

from __future__ import annotations

from pathlib import Path

from models import weights as sources
from models.errors import BadInput
from models.runtime import Device, LoadedModel, ModelInfo, Progress
from models.yolov9.checkpoint import load_network
from models.yolov9.classes import COCO_NAMES
from models.yolov9.network import SIZES, fuse
from models.yolov9.pipeline import Detector

EMBEDDED = sources.Source(
    asset="yolov9/yolov9-t-embedded.safetensors",
    licence="Apache-2.0",
    trained_on="composites of emoji and clip art made by this project, not photographs",
)
OFFICIAL_LICENCE = "published in a GPL-3.0 repository, no separate licence stated for the weights"
OFFICIAL_SITE = "github.com/WongKinYiu/yolov9/releases/tag/v0.1"


def load(
    report: Progress,
    device: Device,
    tier: str = "embedded",
    size: str | None = None,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
) -> LoadedModel[Detector]:
    """Reads weights and builds a fused detector on `device`.

    Args:
        tier: `"embedded"` (weights in this repository) or `"official"` (published weights, from a folder).
        size: t, s, m, c or e. Embedded weights exist for t only; official without a size means c.
        weights: a file of your own in any format `read_checkpoint` takes; it decides the size itself.
        weights_dir: folder that holds the official files.

    Raises:
        BadInput: unknown tier or size, or a file of another network. WeightsNotFound, WeightsCorrupt,
        UnsafeCheckpoint: a file that is missing, damaged or refused.
    """
    if tier not in ("embedded", "official"):
        raise BadInput(f"Unknown tier {tier!r}. Choose embedded or official.")
    if size is not None and size not in SIZES:
        raise BadInput(f"Unknown size {size!r}. Choose one of {', '.join(SIZES)}.")
    if tier == "embedded" and weights is None and size not in (None, "t"):
        raise BadInput(f"Embedded weights exist for size t only, not {size}. Use the official tier for it.")
    report(0.1, "Finding the weights")
    if weights is not None:
        path, licence, trained_on = Path(weights), "your own file", "not stated"
    else:
        path, licence, trained_on = _find(tier, size or "c", weights_dir)
    report(0.3, f"Reading {path.name}")
    network, info, stored_names = load_network(path)
    report(0.8, "Fusing")
    fuse(network)
    known = COCO_NAMES if info.classes == len(COCO_NAMES) else _numbered(info.classes)
    names = tuple(stored_names or known)
    detector = Detector(network, names, device)
    parameters = sum(p.numel() for p in network.parameters())
    size_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    dtype = str(detector.dtype).removeprefix("torch.")
    facts = ModelInfo(tier, path.name, licence, trained_on, parameters, size_bytes, device.name, dtype)
    return LoadedModel(detector, facts)


def _find(tier: str, size: str, weights_dir: str | Path | None) -> tuple[Path, str, str]:
    if tier == "embedded":
        found = sources.resolve(EMBEDDED)
        return found.path, found.licence, found.trained_on
    names = (f"yolov9-{size}-converted.safetensors", f"yolov9-{size}-converted.pt", f"yolov9-{size}.pt")
    for name in names:
        if weights_dir is not None and (Path(weights_dir) / name).is_file():
            break
    source = sources.Source(licence=OFFICIAL_LICENCE, trained_on="COCO train2017", local=name)
    try:
        found = sources.resolve(source, weights_dir=weights_dir)
    except sources.WeightsNotFound as error:
        raise sources.WeightsNotFound(
            f"The official weights of size {size} are not here. Download {names[1]} from {OFFICIAL_SITE} into "
            "a folder and start with --weights-dir FOLDER, or use the embedded tier."
        ) from error
    return found.path, found.licence, found.trained_on


def _numbered(classes: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(classes))
