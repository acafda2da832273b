"""The published SDXL-Lightning files (specification 1.1), from a folder or from the Hub, as a `Family`.

    FOLDER (--weights-dir)
    ├── stable-diffusion-xl-base-1.0/          the base, as a diffusers folder; its unet/ only for LoRAs and the teacher
    ├── sdxl_lightning_1step_unet_x0.safetensors, sdxl_lightning_{2,4,8}step_unet.safetensors
    ├── sdxl_lightning_{2,4,8}step_lora.safetensors
    ├── sdxl-vae-fp16-fix/                     optional: a VAE that does not overflow in float16
    └── taesdxl/                               optional: a tiny decoder for previews

Repositories may also lie under their owner's name or as the Hub's cache keeps them. Only safetensors are read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn

from models.errors import BadInput
from models.runtime import Device, LoadedModel, ModelInfo, Progress
from models.sdxl_lightning import adapters
from models.sdxl_lightning.pipeline import TEACHER, Family, Network, placed
from models.weights import Source, read_safetensors, resolve

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
LIGHTNING = "ByteDance/SDXL-Lightning"
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
TINY_VAE = "madebyollin/taesdxl"
LICENCE = "CreativeML Open RAIL++-M"
TRAINED_ON = "LAION and COYO pictures (aesthetic score above 5.5)"
NO_ONE_STEP_LORA = (
    "There is no 1-step LoRA: predicting the picture at once changes the network too much for a LoRA (paper, section "
    "3.7.3). Use the 1-step network, or the LoRA of 2, 4 or 8 steps."
)
UNET_BYTES, LORA_BYTES = 5_135_149_736, 394_000_000
GUIDANCE = 6.0  # the paper's teacher (section 3.2)


@dataclass(frozen=True)
class File:
    """A published file."""

    name: str
    bytes: int


# Written out: the suffix of the 1-step file differs, and one place is empty.
FILES: dict[Network, File] = {
    Network(1, "unet"): File("sdxl_lightning_1step_unet_x0.safetensors", UNET_BYTES),
    Network(2, "unet"): File("sdxl_lightning_2step_unet.safetensors", UNET_BYTES),
    Network(4, "unet"): File("sdxl_lightning_4step_unet.safetensors", UNET_BYTES),
    Network(8, "unet"): File("sdxl_lightning_8step_unet.safetensors", UNET_BYTES),
    Network(2, "lora"): File("sdxl_lightning_2step_lora.safetensors", LORA_BYTES),
    Network(4, "lora"): File("sdxl_lightning_4step_lora.safetensors", LORA_BYTES),
    Network(8, "lora"): File("sdxl_lightning_8step_lora.safetensors", LORA_BYTES),
}


def published(network: Network) -> File:
    """The file of a student. Raises `BadInput` for one that was never published, with the reason."""
    if network == Network(1, "lora"):
        raise BadInput(NO_ONE_STEP_LORA)
    if network not in FILES:
        raise BadInput(f"No {network.name} was published. There are {', '.join(n.name for n in FILES)}.")
    return FILES[network]


@dataclass(frozen=True)
class Offload:
    """How SDXL fits a card.

    mode: "none" keeps everything on it; "model" keeps what computes there and the rest in main memory;
    "sequential" moves single layers, which is slow and fits nearly anything.
    tiled: decode pictures in tiles. resident: networks in memory at once.
    """

    mode: Literal["none", "model", "sequential"]
    tiled: bool
    resident: int


def offload_for(memory_bytes: int) -> Offload:
    """The choice for a card: 24 GB keeps two networks on it, 12 GB and 8 GB one whole model at a time."""
    gigabytes = memory_bytes / 1e9
    if gigabytes >= 15:
        return Offload("none", False, max(1, int((gigabytes - 7) / 5.2)))
    if gigabytes >= 11:
        return Offload("model", False, 2)
    if gigabytes >= 7:
        return Offload("model", True, 1)
    return Offload("sequential", True, 1)


@dataclass(frozen=True)
class Places:
    """Where files may be: a folder of the user's, then the Hub if it may be asked."""

    folder: Path | None
    hub: bool

    def file(self, repository: str, name: str) -> Path:
        """A file of a repository. Raises as `models.weights.resolve` does."""
        local = self._local(repository, name) or f"{repository.split('/')[1]}/{name}"
        if repository == LIGHTNING and not self._local(repository, name):
            local = name
        source = Source(LICENCE, TRAINED_ON, local=local, hub=(repository, name, None))
        return resolve(source, weights_dir=self.folder, allow_hub=self.hub).path

    def has(self, repository: str, name: str) -> bool:
        """True for a file that is in the folder."""
        return self._local(repository, name) is not None

    def _local(self, repository: str, name: str) -> str | None:
        """The name inside of the folder, or None."""
        if self.folder is None:
            return None
        short = repository.split("/")[1]
        places = [f"{short}/{name}", f"{repository}/{name}"]
        if repository == LIGHTNING or (repository == BASE and (self.folder / "model_index.json").is_file()):
            places.append(name)
        cache = self.folder / f"models--{repository.replace('/', '--')}" / "snapshots"
        places += [f"{found.relative_to(self.folder)}/{name}" for found in sorted(cache.glob("*"))]
        return next((place for place in places if (self.folder / place).is_file()), None)


def load(
    report: Progress, device: Device, folder: str | Path | None = None, *, hub: bool = True,
    offload: Offload | None = None,
) -> LoadedModel[Family]:  # fmt: skip
    """SDXL with the students that are there: all that were published where the Hub may be asked.

    Args:
        folder: laid out as above. hub: whether missing files may be downloaded.
        offload: how it fits the card; by default chosen by its memory. On a CPU everything stays in main memory.

    Raises:
        WeightsNotFound, WeightsCorrupt, OfflineError: files that are missing, damaged or out of reach.
    """
    places = Places(Path(folder) if folder is not None else None, hub)
    offload = offload or _default_offload(device)
    dtype = getattr(torch, device.dtype)
    report(0.1, "Reading the base pipeline")
    pipe, base = _base(places, dtype)
    report(0.7, "Reading the VAE")
    pipe.vae = _vae(places, pipe.vae, dtype)
    if offload.tiled:
        pipe.vae.enable_tiling()
        pipe.vae.enable_slicing()
    tiny = _tiny(places, dtype)
    config = UNet2DConditionModel.load_config(places.file(BASE, "unet/config.json").parent)
    assert isinstance(config, dict)
    readers, absent = _networks(places, config, dtype)
    report(0.9, "Placing it")
    place, activate = _placement(pipe, device, dtype, offload)
    if tiny is not None:
        tiny.to(device.name)
    side = config["sample_size"] * pipe.vae_scale_factor
    family = Family(
        pipe, base, readers, absent, place, dtype, (side, side), offload.resident, GUIDANCE, tiny, "SDXL-Lightning",
        activate, threading.Lock(),
    )  # fmt: skip
    shared = _parameters(pipe.text_encoder, pipe.text_encoder_2, pipe.vae)
    with torch.device("meta"):
        one = _parameters(_empty(config))
    size = torch.empty((), dtype=dtype).element_size()
    info = ModelInfo(
        "official", f"{LIGHTNING} on {BASE}", LICENCE, TRAINED_ON, shared + one,
        size * (shared + one * offload.resident), f"{device.name}, {describe(offload)}", device.dtype,
    )  # fmt: skip
    return LoadedModel(family, info)


def _default_offload(device: Device) -> Offload:
    if device.type != "cuda":
        return Offload("none", False, 1)
    return offload_for(torch.cuda.get_device_properties(device.index or 0).total_memory)


def _base(places: Places, dtype: torch.dtype) -> tuple[StableDiffusionXLPipeline, dict[str, Any]]:
    """The base without its UNet, and its pristine scheduler config."""
    root = places.file(BASE, "model_index.json").parent
    half = dtype != torch.float32 and (places.has(BASE, "vae/diffusion_pytorch_model.fp16.safetensors") or places.hub)
    variant = "fp16" if half and not places.has(BASE, "vae/diffusion_pytorch_model.safetensors") else None
    dot = f".{variant}" if variant else ""
    for name in (
        "scheduler/scheduler_config.json", "text_encoder/config.json", f"text_encoder/model{dot}.safetensors",
        "text_encoder_2/config.json", f"text_encoder_2/model{dot}.safetensors", "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer_config.json", "vae/config.json", f"vae/diffusion_pytorch_model{dot}.safetensors",
    ):  # fmt: skip
        places.file(BASE, name)
    for part in ("tokenizer", "tokenizer_2"):
        if not places.has(BASE, f"{part}/tokenizer.json"):  # the older form, as published
            for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
                places.file(BASE, f"{part}/{name}")
    pipe = StableDiffusionXLPipeline.from_pretrained(
        root, unet=None, dtype=dtype, use_safetensors=True, variant=variant, local_files_only=True
    )
    base = EulerDiscreteScheduler.load_config(root / "scheduler")
    assert isinstance(base, dict)
    return pipe, base


def _vae(places: Places, own: AutoencoderKL, dtype: torch.dtype) -> AutoencoderKL:
    """The base's VAE, which overflows in float16: then the fixed one, or else its own in float32."""
    if dtype != torch.float16 or not own.config.force_upcast:
        return own
    weights = "diffusion_pytorch_model.safetensors"
    if not places.has(FP16_VAE, weights) and not places.hub:
        return nn.Module.to(own, dtype=torch.float32)
    places.file(FP16_VAE, weights)
    return AutoencoderKL.from_pretrained(
        places.file(FP16_VAE, "config.json").parent, dtype=dtype, local_files_only=True
    )


def _tiny(places: Places, dtype: torch.dtype) -> AutoencoderTiny | None:
    """The tiny decoder where it is in the folder; previews do without it otherwise."""
    if not places.has(TINY_VAE, "diffusion_pytorch_model.safetensors"):
        return None
    root = places.file(TINY_VAE, "config.json").parent
    return AutoencoderTiny.from_pretrained(root, dtype=dtype, local_files_only=True)


def _networks(
    places: Places, config: dict[str, Any], dtype: torch.dtype
) -> tuple[dict[Network, Callable[[], UNet2DConditionModel]], dict[Network, str]]:
    """How each network is read, and why the others are not here. Reads nothing yet."""

    def base_unet() -> UNet2DConditionModel:
        names = ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors")
        here = [name for name in names if places.has(BASE, name)]
        return _filled(config, places.file(BASE, here[0] if here else names[0]), dtype)

    def full(file: File) -> UNet2DConditionModel:
        return _filled(config, places.file(LIGHTNING, file.name), dtype)

    def fused(file: File) -> UNet2DConditionModel:
        network = base_unet()
        adapters.fuse(network, adapters.read(places.file(LIGHTNING, file.name), network))
        return network

    has_base = places.hub or any(
        places.has(BASE, f"unet/diffusion_pytorch_model{dot}.safetensors") for dot in ("", ".fp16")
    )
    readers: dict[Network, Callable[[], UNet2DConditionModel]] = {}
    absent = {Network(1, "lora"): NO_ONE_STEP_LORA}
    for network, file in FILES.items():
        needs_base = network.form == "lora"
        if not (places.hub or places.has(LIGHTNING, file.name)):
            absent[network] = f"{file.name} ({file.bytes / 1e9:.2f} GB) is not in the weights folder."
        elif needs_base and not has_base:
            absent[network] = f"{file.name} is a LoRA on the base's unet/, which is not in the weights folder."
        else:
            readers[network] = partial(fused if needs_base else full, file)
    if has_base:
        readers[TEACHER] = base_unet
    else:
        absent[TEACHER] = "The teacher is the base's own unet/, which is not in the weights folder."
    return readers, absent


def _filled(config: dict[str, Any], path: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The base's UNet with the weights of a file. Raises `BadInput` if they are another network's."""
    with torch.device("meta"):
        network = _empty(config)
    state = {name: tensor.to(dtype) for name, tensor in read_safetensors(path).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise BadInput(
            f"{path.name} is not a UNet of this base: {len(wrong)} of its layers differ, such as {wrong[0]}. Get the "
            "published file, and the base it belongs to."
        )
    network.load_state_dict(state, assign=True)
    return network.eval()


def _empty(config: dict[str, Any]) -> UNet2DConditionModel:
    network = UNet2DConditionModel.from_config(config)
    assert isinstance(network, UNet2DConditionModel)
    return network


def _placement(
    pipe: StableDiffusionXLPipeline, device: Device, dtype: torch.dtype, offload: Offload
) -> tuple[Any, Callable[[UNet2DConditionModel], None] | None]:
    """How a network is prepared when it is read, and what is done before each use of it."""
    if offload.mode == "none":
        pipe.to(device.name)
        return placed(device.name, dtype), None

    def activate(network: UNet2DConditionModel) -> None:
        if pipe.unet is network:
            return
        pipe.unet = network
        if offload.mode == "model":
            pipe.enable_model_cpu_offload(device=device.name)
        else:
            pipe.enable_sequential_cpu_offload(device=device.name)

    return placed("cpu", dtype), activate


def _parameters(*parts: nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters())


def describe(offload: Offload) -> str:
    """The choice in words, for the status line."""
    kept = {
        "none": "everything stays there",
        "model": "one model at a time there",
        "sequential": "one layer at a time there",
    }[offload.mode]
    return (
        f"{kept}, {offload.resident} network{'s' * (offload.resident > 1)} in memory"
        + ", tiled decoding" * offload.tiled
    )
