"""Puts weights that were trained here into `assets`: half precision, a card beside the file, its checksum listed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.weights import sha256_of, write_safetensors


def ship(name: str, tensors: Mapping[str, Tensor], card: Mapping[str, Any], folder: Path) -> Path:
    """Writes `<folder>/<name>.safetensors`, `<name>.safetensors.json` and this file's line of SHA256SUMS."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    write_safetensors(path, {key: tensor.half() for key, tensor in tensors.items()})
    path.with_name(path.name + ".json").write_text(json.dumps(card, indent=1) + "\n")
    sums = folder / "SHA256SUMS"
    others = [line for line in sums.read_text().splitlines() if line[66:] != path.name] if sums.exists() else []
    lines = sorted([*others, f"{sha256_of(path)}  {path.name}"], key=lambda line: line[66:])
    sums.write_text("\n".join(lines) + "\n")
    return path
