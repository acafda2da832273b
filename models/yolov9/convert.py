"""Converts any accepted YOLOv9 checkpoint to the safetensors file of its inference network.

    python -m models.yolov9.convert yolov9-s.pt yolov9-s.safetensors

The checkpoint is read without running anything in it (`models.yolov9.checkpoint`), so that afterwards only
the safetensors file is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from models.errors import BadInput, UserError
from models.weights import sha256_of, write_safetensors
from models.yolov9.checkpoint import Checkpoint, read

LICENCE = "GPL-3.0 repository; no separate licence is stated for the weights"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 with a message for a file that cannot be used."""
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m models.yolov9.convert", description=summary)
    parser.add_argument("source", metavar="IN.pt", type=Path, help="a .pt, .ckpt or .safetensors checkpoint")
    parser.add_argument("target", metavar="OUT.safetensors", type=Path, help="the file to write")
    parser.add_argument("--float32", action="store_true", help="32 bits a number (default: 16, as released)")
    options = parser.parse_args(arguments)
    try:
        checkpoint = convert(options.source, options.target, float32=options.float32)
    except UserError as error:
        print(f"{error.title}. {error}", file=sys.stderr)
        return 2
    print(_report(options.source, checkpoint))
    print(f"written     {options.target.name}, float{32 if options.float32 else 16}")
    return 0


def convert(source: Path, target: Path, float32: bool = False) -> Checkpoint:
    """Reads `source` and writes its inference network to `target`; returns what was read.

    Raises:
        UserError: as `read_checkpoint`; and `BadInput` if the target cannot be written.
    """
    if target.suffix != ".safetensors":
        raise BadInput(f"The file to write must end in .safetensors, not {target.name!r}.")
    checkpoint = read(source)
    info = checkpoint.info
    metadata = {
        "name": info.name,
        "classes": str(info.classes),
        "class_width": str(info.class_width),
        "source": source.name,
        "source_sha256": sha256_of(source),
        "licence": LICENCE,
    }
    if checkpoint.class_names is not None:
        metadata["names"] = json.dumps(checkpoint.class_names, ensure_ascii=False)
    tensors = checkpoint.tensors if float32 else {k: _half(k, t) for k, t in checkpoint.tensors.items()}
    try:
        write_safetensors(target, tensors, metadata)
    except OSError as error:
        raise BadInput(f"{target.name} cannot be written: {error.strerror or 'unknown reason'}.") from error
    return checkpoint


def _half(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not half.isfinite().all():
        raise BadInput(f"{key} does not fit in 16 bits. Convert with --float32.")
    return half


def _report(source: Path, checkpoint: Checkpoint) -> str:
    info = checkpoint.info
    names = checkpoint.class_names
    rows = {
        "read": source.name,
        "network": info.name,
        "form": info.form,
        "naming": info.naming,
        "classes": str(info.classes),
        "names": ", ".join(names[:5]) + (", ..." if names[5:] else "") if names else "none in the file",
        "class width": str(info.class_width),
        "parameters": f"{info.parameters:,}",
        "licence": LICENCE,
    }
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())


if __name__ == "__main__":
    sys.exit(main())
