"""Parameters and operations of every network, counted from the code that runs.

python -m models.yolov9.count --out assets/yolov9/evidence/networks.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.records import record
from models.yolov9.network import SIZES, build, fuse


def counts(name: str, class_width: int | None = None) -> dict[str, Any]:
    """Parameters as built and fused; GFLOPs (2 x multiply-adds) of the fused network at 640 x 640."""
    network = build(name, class_width=class_width)
    built = sum(p.numel() for p in network.parameters())
    fuse(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    return {
        "network": name,
        "class_width": class_width,
        "parameters": built,
        "parameters_fused": sum(p.numel() for p in network.parameters()),
        # Convolutions only, so exact: 100 times as many positions at 640.
        "gflops_640": counter.get_total_flops() * 100 / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [counts("gelan-t", 80), *(counts(f"gelan-{size}") for size in SIZES[1:])]
    if args.out:
        record(args.out, rows)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
