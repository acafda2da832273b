"""Students as folders that can be put on the Hub: whole UNets in diffusers' layout, half precision, with a card.

    python -m models.sdxl_lightning.hub [--out runs/sdxl_lightning/hub]

Writes `lightning-{8,4,2,1}step/`. The 8-, 4- and 2-step networks are those that `models.sdxl_lightning.rivals full-8
full-4 full-2` trained, the paper's last step, where they are; otherwise the shipped LoRAs, merged. The card says which.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import build_unet, read_unet
from models.sdxl_lightning.recipe import RUNS
from models.sdxl_lightning.schedule import scheduler_config
from models.sdxl_lightning.schedulers import student_scheduler
from models.weights import ASSETS, read_safetensors, sha256_of

SHIPPED = ASSETS / "sdxl_lightning"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(network: Any, folder: Path, steps: int, made: str, base: dict[str, Any], licence: str) -> Path:
    """One student as a folder, whole or not at all: UNet, the scheduler that goes with it, README.md.

    Args:
        network: a UNet2DConditionModel; it stays as it is.
        made: how, for the card. base: the scheduler config of the family. licence: as the Hub spells it.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    copy.deepcopy(network).half().save_pretrained(fresh)
    scheduler = student_scheduler(base, steps)
    scheduler.save_pretrained(fresh / "scheduler")
    prediction = scheduler.config["prediction_type"]
    (fresh / "README.md").write_text(
        f"---\nlicense: {licence}\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags: [distillation]\n---\n\n"
        f"# {steps}-step student, whole network\n\n{made}\n\n"
        f"Sampling: Euler, {steps} trailing timestep{'s' * (steps > 1)}, prediction type `{prediction}`, no guidance: "
        "the scheduler in `scheduler/` is set to this. Method: SDXL-Lightning, arXiv 2402.13929.\n\n"
        "```python\nfrom diffusers import UNet2DConditionModel\n\n"
        'unet = UNet2DConditionModel.from_pretrained("THIS_FOLDER")\n```\n\n'
        f"SHA-256 of the weights: `{sha256_of(fresh / WEIGHTS)}`\n"
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return folder


def students(shipped: Path, rivals: Path) -> dict[int, tuple[nn.Module, str]]:
    """The embedded model's students as whole networks, and how each was made."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for steps in (8, 4, 2):
        trained = rivals / f"full-{steps}" / "student.safetensors"
        if trained.exists():
            network = build_unet()
            network.load_state_dict(read_safetensors(trained))
            made = f"The shipped {steps}-step LoRA merged, then trained whole with the unconditional objective."
        else:
            lora = LoraNetwork(read_unet(shipped / "teacher_unet"))
            network = lora.load(shipped / f"lightning_{steps}step_lora.safetensors").fused()
            made = f"The shipped {steps}-step LoRA merged into its teacher."
        found[steps] = network, made
    network = build_unet()
    network.load_state_dict(read_safetensors(shipped / "lightning_1step_unet_x0.safetensors"))
    found[1] = network, "The shipped 1-step network, which predicts the picture itself."
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--rivals", type=Path, default=RUNS / "rivals")
    parser.add_argument("--out", type=Path, default=RUNS / "hub")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for steps, (network, made) in students(args.weights, args.rivals).items():
        folder = args.out / f"lightning-{steps}step"
        print(write(network, folder, steps, made, scheduler_config(), "apache-2.0"))


if __name__ == "__main__":
    main()
