"""Low-rank additions to every convolution and linear layer but the first, the last and the time embedding.

(The paper, section 3.7.3.) Training works on weights: W + up @ down is formed once a step, so that a step costs what
training the whole network costs and the fused network is exactly the one that was trained. Files are in the spelling
that diffusers writes: `unet.<module>.lora_A.weight` (down) and `lora_B.weight` (up).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.sdxl_lightning.network import told
from models.weights import read_safetensors, write_safetensors

RANK = 64
UNTOUCHED = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")


def targets(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that get an addition, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and name not in UNTOUCHED
    }


class LoraNetwork(nn.Module):
    """A frozen network and its trainable addition; called like the network.

    Args:
        base: a UNet2DConditionModel. It is not copied, not changed and not part of the state.
        rank: of the additions; a layer narrower than that gets its own width.
    """

    def __init__(self, base: nn.Module, rank: int = RANK) -> None:
        super().__init__()
        self._base = [base.eval().requires_grad_(False)]  # in a list: not a submodule
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, layer in targets(base).items():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            out, width = weight.shape[0], weight[0].numel()
            r = min(rank, out, width)
            self.down[_key(name)] = nn.Parameter(torch.randn(r, *weight.shape[1:]) * width**-0.5)
            self.up[_key(name)] = nn.Parameter(torch.zeros(out, r, *([1] * (weight.dim() - 2))))

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def merged(self) -> dict[str, Tensor]:
        """The weights with the additions in them, by the names of the network's state."""
        found = {}
        for name, layer in targets(self.base).items():
            down, up = self.down[_key(name)], self.up[_key(name)]
            delta = (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)  # type: ignore[arg-type]
            found[f"{name}.weight"] = layer.weight + delta  # type: ignore[operator]
        return found

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            weights = self.merged()
        states, added = told(self.base, words)
        return torch.func.functional_call(self.base, weights, (x, t, states), added)

    def fused(self) -> nn.Module:
        """A new plain network with the additions in its weights."""
        network = copy.deepcopy(self.base)
        with torch.no_grad():
            network.load_state_dict(self.merged(), strict=False)
        return network.requires_grad_(True)

    def save(self, path: Path) -> None:
        """Half precision, diffusers' spelling."""
        tensors = {}
        for name in targets(self.base):
            tensors[f"unet.{name}.lora_A.weight"] = self.down[_key(name)].half()
            tensors[f"unet.{name}.lora_B.weight"] = self.up[_key(name)].half()
        write_safetensors(path, tensors)

    def load(self, path: Path) -> LoraNetwork:
        """Takes the additions of a file that `save` wrote; returns itself."""
        tensors = read_safetensors(path)
        with torch.no_grad():
            for name in targets(self.base):
                self.down[_key(name)].copy_(tensors[f"unet.{name}.lora_A.weight"])
                self.up[_key(name)].copy_(tensors[f"unet.{name}.lora_B.weight"])
        return self


def _key(name: str) -> str:
    return name.replace(".", "/")
