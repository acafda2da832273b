"""Which networks a tier means: the small model trained here, or SDXL with the published students.

Shipped, and the same under `runs/` while training:

    assets/sdxl_lightning
    ├── vae/, teacher_unet/                   config.json, diffusion_pytorch_model.safetensors
    ├── scheduler/scheduler_config.json
    ├── lightning_1step_unet_x0.safetensors
    └── lightning_{2,4,8}step_lora.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from models.errors import BadInput
from models.runtime import Device, LoadedModel, ModelInfo, Progress
from models.sdxl_lightning import adapters, official, schedulers, text
from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.pipeline import TEACHER, Family, Network, placed
from models.sdxl_lightning.replay import Replayed
from models.weights import ASSETS, Source, card, read_safetensors, resolve

LICENCE = "Apache-2.0"
TRAINED_ON = "flat Fluent emoji (MIT), recoloured and combined by this project"
WEIGHTS = "diffusion_pytorch_model.safetensors"
STUDENTS = {
    Network(1, "unet"): "lightning_1step_unet_x0.safetensors",
    Network(2, "lora"): "lightning_2step_lora.safetensors",
    Network(4, "lora"): "lightning_4step_lora.safetensors",
    Network(8, "lora"): "lightning_8step_lora.safetensors",
}
NO_FULL_NETWORK = "Of the embedded students only the 1-step one ships as a full network; the others are LoRAs."


def load(
    report: Progress, device: Device, tier: str = "embedded", folder: str | Path | None = None
) -> LoadedModel[Family]:
    """The networks of a tier.

    Args:
        tier: "embedded" or "official".
        folder: embedded: laid out as above, such as a training run's; by default what is shipped.
            official: laid out as `models.sdxl_lightning.official` says; files that are not in it come from the Hub.

    Raises:
        BadInput: an unknown tier. WeightsNotFound, WeightsCorrupt, OfflineError: files that cannot be had.
    """
    if tier == "official":
        return official.load(report, device, folder)
    if tier != "embedded":
        raise BadInput(f"Unknown tier {tier!r}. Choose embedded or official.")
    return _embedded(report, device, folder)


def _embedded(report: Progress, device: Device, folder: str | Path | None) -> LoadedModel[Family]:
    def file(name: str) -> Path:
        if folder is None:
            return resolve(Source(LICENCE, TRAINED_ON, asset=f"sdxl_lightning/{name}")).path
        return resolve(Source(LICENCE, TRAINED_ON, local=name), weights_dir=folder).path

    root = ASSETS / "sdxl_lightning" if folder is None else Path(folder)
    teacher, vae_weights = file(f"teacher_unet/{WEIGHTS}"), file(f"vae/{WEIGHTS}")
    base = json.loads((root / "scheduler" / "scheduler_config.json").read_text())
    report(0.2, "Reading the text encoder")
    words = text.tokenizer()
    encoder = nn.Module.to(text.text_encoder(), device=device.name)
    report(0.6, "Reading the autoencoder")
    dtype = getattr(torch, device.dtype)
    vae = PatchAutoencoder.from_pretrained(vae_weights.parent, local_files_only=True)
    on_device = placed(device.name, dtype)
    config = UNet2DConditionModel.load_config(teacher.parent)
    pipe = StableDiffusionPipeline(
        vae=on_device(vae), text_encoder=encoder, tokenizer=words, unet=None,  # each order brings its own
        scheduler=schedulers.teacher_scheduler(base), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip

    def place(network: nn.Module) -> nn.Module:
        ready = on_device(network)
        if device.type != "cpu":
            return ready
        return Replayed(ready, config["sample_size"], (text.LENGTH, text.WIDTH))

    def read(name: str) -> UNet2DConditionModel:
        network = UNet2DConditionModel.from_config(config)
        assert isinstance(network, UNet2DConditionModel)
        network.load_state_dict({name: tensor.float() for name, tensor in read_safetensors(file(name)).items()})
        return network

    def fused(name: str) -> UNet2DConditionModel:
        network = read(f"teacher_unet/{WEIGHTS}")
        adapters.fuse(network, adapters.read(file(name), network))
        return network

    sources: dict[Network, Callable[[], UNet2DConditionModel]] = {TEACHER: partial(read, f"teacher_unet/{WEIGHTS}")}
    absent: dict[Network, str] = {Network(1, "lora"): official.NO_ONE_STEP_LORA}
    for network, name in STUDENTS.items():
        if (root / name).is_file():
            sources[network] = partial(read if network.form == "unet" else fused, name)
        else:
            absent[network] = _not_trained(network)
    for steps in (2, 4, 8):
        lora = Network(steps, "lora")
        absent[Network(steps, "unet")] = NO_FULL_NETWORK if lora in sources else absent[lora]
    side = config["sample_size"] * pipe.vae_scale_factor
    facts = card(teacher)
    family = Family(
        pipe, base, sources, absent, place, dtype, (side, side),
        guidance=float(facts.get("guidance", official.GUIDANCE)), label="embedded",
    )  # fmt: skip
    report(0.9, "Reading the teacher")
    one = sum(p.numel() for p in family.read(TEACHER).parameters())
    shared = sum(p.numel() for part in (vae, encoder) for p in part.parameters())
    size = torch.empty((), dtype=dtype).element_size()
    memory = size * (one * family.resident + sum(p.numel() for p in vae.parameters())) + 4 * shared
    info = ModelInfo(
        "embedded", f"VAE, teacher and {len(sources) - 1} students", LICENCE, TRAINED_ON, shared + one, memory,
        device.name, device.dtype,
    )  # fmt: skip
    return LoadedModel(family, info)


def _not_trained(network: Network) -> str:
    return (
        f"The {network.steps}-step student is not shipped yet: assets/sdxl_lightning has no {STUDENTS[network]}. "
        "`python -m models.sdxl_lightning.distil` makes it."
    )
