"""LoRA files of others (the published ones, your own): read safely, checked against the network, fused into it.

Three spellings exist for the same layer:

    unet.down_blocks.1.attentions.0.proj_in.lora_A.weight      diffusers and PEFT (also lora.down / lora_B / lora.up)
    lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight   kohya, with the diffusers names
    lora_unet_input_blocks_4_1_proj_in.lora_down.weight        kohya, with the names of the original SDXL code

Fusing adds scale * alpha / rank * up @ down to a weight, so that a fused network costs what the plain one costs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import BadInput, UnsafeCheckpoint
from models.weights import read_safetensors

MOST_BYTES = 2_000_000_000
_PART = re.compile(
    r"^(?P<module>.+?)[._](?P<part>lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up)(?:\.default)?\.weight$"
)
_DOWN = ("lora_A", "lora.down", "lora_down")
_TEXT = ("text_encoder.", "text_encoder_2.", "lora_te_", "lora_te1_", "lora_te2_")
_PREFIXES = ("base_model.model.", "unet.")


@dataclass(frozen=True)
class Layer:
    """`down` (r, in, ...) and `up` (out, r, ...); `alpha` over the rank scales their product."""

    down: Tensor
    up: Tensor
    alpha: float

    def delta(self, shape: torch.Size) -> Tensor:
        """What is added to a weight of that shape, float32."""
        rank = self.down.shape[0]
        product = self.up.float().reshape(self.up.shape[0], rank) @ self.down.float().reshape(rank, -1)
        return product.reshape(shape) * (self.alpha / rank)


@dataclass(frozen=True)
class Adapter:
    """A LoRA by the network's own module names. `unused`: tensors for a text encoder, which is not adapted here."""

    name: str
    layers: Mapping[str, Layer]
    unused: int

    @property
    def summary(self) -> str:
        """What it does, in a sentence."""
        unused = f"; its {self.unused} tensors for text encoders are not used" if self.unused else ""
        return f"{self.name}: {len(self.layers)} layers changed{unused}."


def read(path: str | Path, network: nn.Module) -> Adapter:
    """Reads a LoRA and finds the layer of `network` (a UNet2DConditionModel) that each part belongs to.

    Raises:
        UnsafeCheckpoint: not a safetensors file. WeightsCorrupt: a damaged one.
        BadInput: too large, no LoRA, or of another network: a layer that is not there or has another shape.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UnsafeCheckpoint(
            f"{path.name} is not a safetensors file; other formats can run a program when they are opened, so it was "
            "not. Save the LoRA as safetensors."
        )
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise BadInput(f"{path.name} is larger than {MOST_BYTES // 10**9} GB. A LoRA is much smaller; choose one.")
    return from_tensors(path.name, read_safetensors(path), network)


def from_tensors(name: str, tensors: Mapping[str, Tensor], network: nn.Module) -> Adapter:
    """The same for tensors that are read already."""
    parts: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    unused = 0
    for key, tensor in tensors.items():
        if key.startswith(_TEXT):
            unused += 1
        elif key.endswith(".alpha"):
            alphas[key.removesuffix(".alpha")] = float(tensor)
        elif match := _PART.match(key):
            parts.setdefault(match["module"], {})["down" if match["part"] in _DOWN else "up"] = tensor
        else:
            raise BadInput(f"{name} holds {key!r}, which is not part of a LoRA. Choose a LoRA for this network.")
    if not parts:
        raise BadInput(f"{name} holds no LoRA for the picture network. Choose another file.")
    names = _module_names(network)
    layers = {}
    for written, pair in parts.items():
        module = names.get(_bare(written))
        if module is None:
            raise BadInput(
                f"{name} changes the layer {written!r}, which this network does not have: it was made for another one."
            )
        if len(pair) < 2:
            raise BadInput(f"{name} has only half of the layer {written!r}. It is incomplete; get it again.")
        layers[module] = Layer(pair["down"], pair["up"], alphas.get(written, float(pair["down"].shape[0])))
    adapter = Adapter(name, layers, unused)
    _check(adapter, network)
    return adapter


@torch.no_grad()
def fuse(network: nn.Module, adapter: Adapter, scale: float = 1.0) -> None:
    """Adds the adapter to the network's weights, in place. A LoRA that is taken out again is fused with -scale."""
    for module, layer in adapter.layers.items():
        weight = network.get_submodule(module).weight
        assert isinstance(weight, Tensor)
        weight.add_((scale * layer.delta(weight.shape)).to(weight))


def _check(adapter: Adapter, network: nn.Module) -> None:
    for module, layer in adapter.layers.items():
        weight = network.get_submodule(module).weight
        assert isinstance(weight, Tensor)
        rank = layer.down.shape[0]
        fits = (
            layer.up.ndim >= 2
            and layer.up.shape[:2] == (weight.shape[0], rank)
            and layer.up[0, 0].numel() == 1
            and layer.down[0].numel() == weight[0].numel()
        )
        if not fits:
            raise BadInput(
                f"{adapter.name} does not fit: its layer {module} is {list(layer.down.shape)} and "
                f"{list(layer.up.shape)}, the network's is {list(weight.shape)}. It was made for another network."
            )


def _bare(written: str) -> str:
    for prefix in _PREFIXES:
        written = written.removeprefix(prefix)
    return written.removesuffix("_lora")


def _module_names(network: nn.Module) -> dict[str, str]:
    """Every spelling of a layer with a weight -> its name in the network."""
    names: dict[str, str] = {}
    blocks = _original_blocks(network)
    for module, layer in network.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        original = _original_name(module, blocks)
        for spelling in (module, original):
            if spelling is not None:
                names[spelling] = module
                names["lora_unet_" + spelling.replace(".", "_")] = module
    return names


_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _original_name(module: str, blocks: Mapping[str, str]) -> str | None:
    """The layer's name in the original SDXL code, or None for the few outside of the blocks."""
    for ours, theirs in blocks.items():
        if module.startswith(ours + "."):
            inside = module.removeprefix(ours + ".")
            if ".resnets." in ours:
                inside = _RESNET.get(inside, inside)
            elif ".downsamplers." in ours:
                inside = "op"
            return f"{theirs}.{inside}"
    return None


def _original_blocks(network: nn.Module) -> dict[str, str]:
    """`down_blocks.1.attentions.0` -> `input_blocks.4.1`, and so on, for a UNet of any number of layers a block."""
    found = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    found["mid_block.resnets.1"] = "middle_block.2"
    down = list(getattr(network, "down_blocks", []))
    index = 1  # input_blocks.0 is conv_in
    for i, block in enumerate(down):
        for j in range(len(block.resnets)):
            found[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{index}.0"
            found[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{index}.1"
            index += 1
        if block.downsamplers is not None:
            found[f"down_blocks.{i}.downsamplers.0"] = f"input_blocks.{index}.0"
            index += 1
    index = 0
    for i, block in enumerate(getattr(network, "up_blocks", [])):
        attends = bool(getattr(block, "attentions", None))
        for j in range(len(block.resnets)):
            found[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{index}.0"
            found[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{index}.1"
            if j == len(block.resnets) - 1 and block.upsamplers is not None:
                found[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{index}.{2 if attends else 1}"
            index += 1
    return found
