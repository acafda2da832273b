"""Collects what the recipes made into `assets/sdxl_lightning`: half precision, with cards and checksums.

    python -m models.sdxl_lightning.ship [--note "..."]

Students that are not made yet are left out; the tab then says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.distil import SCALE, STAGES
from models.sdxl_lightning.evaluate import SHIPPED
from models.sdxl_lightning.recipe import RUNS
from models.weights import sha256_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
DATA = "scenes composed of Microsoft's flat Fluent emoji: models/sdxl_lightning/data.py, held-out combinations left out"
LICENCE = "Apache-2.0"


def ship(runs: Path, to: Path, note: str) -> list[Path]:
    """Copies and describes; returns the weights files."""
    to.mkdir(parents=True, exist_ok=True)
    vae: Any = PatchAutoencoder.from_pretrained(runs / "vae")
    vae.half().save_pretrained(to / "vae")
    shutil.copytree(runs / "pipeline" / "unet", to / "teacher_unet", dirs_exist_ok=True)
    shutil.copytree(runs / "pipeline" / "scheduler", to / "scheduler", dirs_exist_ok=True)
    _card(to / "vae" / WEIGHTS, "autoencoder", "models.sdxl_lightning.autoencoder", _costs(runs, ["vae_run"]), note)
    _card(
        to / "teacher_unet" / WEIGHTS, "teacher, v-prediction, averaged weights", "models.sdxl_lightning.teacher",
        _costs(runs, ["teacher"]), note, guidance=SCALE,
    )  # fmt: skip
    made = []
    for name in ("8", "4", "2", "1"):
        source = runs / "distil" / f"{name}.safetensors"
        if not source.exists():
            continue
        target = to / (
            "lightning_1step_unet_x0.safetensors" if name == "1" else f"lightning_{name}step_lora.safetensors"
        )
        shutil.copyfile(source, target)
        made.append(name)
        done = [stage for stage in STAGES if stage == "guided" or int(stage) >= int(name)]
        phases = [f"distil/{stage}-{phase}" for stage in done for phase in ("follow", "judged", "free")]
        what = "whole network, x_0-prediction" if name == "1" else "LoRA over teacher_unet, v-prediction"
        _card(target, f"{name}-step student: {what}", "models.sdxl_lightning.distil", _costs(runs, phases), note)
    files = sorted(to.rglob("*.safetensors"))
    lines = [f"{sha256_of(file)}  {file.relative_to(to).as_posix()}\n" for file in files]
    (to / "SHA256SUMS").write_text("".join(lines))
    return files


def _costs(runs: Path, phases: list[str]) -> dict[str, str]:
    """Steps and minutes of runs, from their last states."""
    found = {}
    for phase in phases:
        path = runs / phase / "last.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            found[phase] = f"{state['step']} steps, {state['seconds'] / 60:.1f} minutes of one shared core"
    return found


def _card(path: Path, what: str, recipe: str, cost: dict[str, str], note: str, **facts: Any) -> None:
    content = {
        "network": what, "data": DATA, "licence": LICENCE, "command": f"python -m {recipe}", "cost": cost, **facts
    }  # fmt: skip
    if note:
        content["note"] = note
    path.with_name(path.name + ".json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--to", type=Path, default=SHIPPED)
    parser.add_argument("--note", default="", help="kept in every card")
    args = parser.parse_args()
    files = ship(args.runs, args.to, args.note)
    print(*(f"{file.stat().st_size / 1e6:6.1f} MB  {file}" for file in files), sep="\n")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB together")


if __name__ == "__main__":
    main()
