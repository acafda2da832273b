"""The whole recipe of the embedded model, in order; each part is resumable and says what it costs.

    python -m models.sdxl_lightning.train

About three hours of one processor core as shipped: the pool of scenes and the latents' basis, the autoencoder, the
teacher, the five stages of distillation, then the files in `assets/sdxl_lightning` and their measures. Each part can be
run alone with its own options: see `--help` of the modules named here.

    python -m models.sdxl_lightning.train --sdxl FOLDER --pictures PICTURES      # the paper's recipe on SDXL itself

See `models.sdxl_lightning.sdxl`: it takes a GPU, and runs at the size of a tiny pipeline on a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import torch

from models.sdxl_lightning.pool import POOL
from models.sdxl_lightning.recipe import RUNS
from models.sdxl_lightning.sdxl import Steps
from models.sdxl_lightning.sdxl import train as sdxl

PARTS = ("pool", "autoencoder", "teacher", "distil", "ship", "evaluate quality", "evaluate grid")


def embedded() -> None:
    """All parts, one after the other."""
    for part in PARTS:
        if part == "pool" and POOL.exists():
            continue  # the only part that would start again
        name, *options = part.split()
        print(f"== {part}", flush=True)
        subprocess.run([sys.executable, "-m", f"models.sdxl_lightning.{name}", *options], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdxl", type=Path, help="a diffusers SDXL pipeline to distil, instead of the embedded model")
    parser.add_argument("--pictures", type=Path, help="of SDXL's recipe: pictures with captions")
    parser.add_argument("--out", type=Path, default=RUNS / "sdxl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4, help="pictures that go through a network at once")
    parser.add_argument("--gathered", type=int, default=128, help="such batches in a step; the paper's product is 512")
    for field in fields(Steps):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help="training steps of this phase")
    args = parser.parse_args()
    if args.sdxl is None:
        embedded()
    elif args.pictures is None:
        parser.error("--sdxl needs --pictures, a folder of pictures with captions")
    else:
        steps = Steps(args.follow, args.judged, args.free, args.whole)
        sdxl(args.sdxl, args.pictures, args.out, steps, torch.device(args.device), args.batch, args.gathered)


if __name__ == "__main__":
    main()
