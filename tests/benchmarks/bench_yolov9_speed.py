"""Network-only speed of YOLOv9-T at 640, every mode against eager unfused float32 in one run.

    python tests/benchmarks/bench_yolov9_speed.py --out assets/yolov9/evidence/speed.json

Modes take turns, round by round, so that a machine that slows down slows all of them; medians are reported.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from models.records import record
from models.yolov9.network import build, fuse

SHAPES = {"640x640": (640, 640), "640x480 (webcam)": (480, 640), "416x320": (320, 416)}


def modes(compiled: bool) -> dict[str, torch.nn.Module]:
    """Name -> network; all have the same weights."""
    torch.manual_seed(0)
    eager = build("gelan-t", class_width=80)
    fused = fuse(copy.deepcopy(eager))
    found = {
        "eager, unfused, float32": eager,
        "fused, float32": fused,
        "fused, float32, channels_last": copy.deepcopy(fused).to(memory_format=torch.channels_last),
        "fused, bfloat16, channels_last": copy.deepcopy(fused).bfloat16().to(memory_format=torch.channels_last),
    }
    if compiled:
        for dtype in (torch.float32, torch.bfloat16):
            network = copy.deepcopy(fused).to(dtype).to(memory_format=torch.channels_last)
            found[f"fused, {str(dtype).removeprefix('torch.')}, compiled"] = torch.compile(network)
    return found


def measure(rounds: int, batch: int, compiled: bool) -> list[dict]:
    rows = []
    with torch.inference_mode():
        for shape, (h, w) in SHAPES.items():
            ready = {}
            for name, network in modes(compiled).items():
                dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
                x = torch.rand(batch, 3, h, w).to(dtype)
                if "channels_last" in name or "compiled" in name:
                    x = x.contiguous(memory_format=torch.channels_last)
                for _ in range(3):
                    network(x)
                ready[name] = (network, x, [])
            for _ in range(rounds):
                for network, x, times in ready.values():
                    start = time.perf_counter()
                    network(x)
                    times.append(time.perf_counter() - start)
            base = statistics.median(next(iter(ready.values()))[2])
            for name, (_, _, times) in ready.items():
                median = statistics.median(times)
                rows.append(
                    {
                        "input": shape,
                        "mode": name,
                        "ms": 1e3 * median,
                        "frames_per_s": batch / median,
                        "ratio": base / median,
                    }
                )
                print(
                    f"{shape:18} {name:32} {1e3 * median:7.1f} ms {batch / median:6.1f} frames/s {base / median:5.2f}x"
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="torch.compile too (minutes, needs a C++ compiler)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = measure(args.rounds, 1, args.compile)
    if args.out:
        record(args.out, {"threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
