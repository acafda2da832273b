"""Published state dicts into networks, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from models import weights
from models.errors import WeightsCorrupt

M = TypeVar("M", bound=nn.Module)


def load(
    build: Callable[[], M],
    state: Mapping[str, Tensor],
    name: str,
    unused: Callable[[str], bool] = lambda key: False,
    elsewhere: Callable[[str], bool] = lambda key: False,
) -> tuple[M, list[str]]:
    """A network with a state dict in it, in eval mode; the tensors are taken as they are, not copied.

    Args:
        build: makes the network; called on the meta device, so that nothing is initialised for nothing.
        state: tensors by name. name: of the file, for messages.
        unused: tensors of the file that the network has no use for.
        elsewhere: tensors of the network that come from another file.

    Returns:
        The network and the names that are still missing, all of them `elsewhere`.

    Raises:
        WeightsCorrupt: any other difference in names or shapes.
    """
    with torch.device("meta"):
        network = build()
    return fill(network, state, name, unused, elsewhere)


def fill(
    network: M,
    state: Mapping[str, Tensor],
    name: str,
    unused: Callable[[str], bool] = lambda key: False,
    elsewhere: Callable[[str], bool] = lambda key: False,
) -> tuple[M, list[str]]:
    """As `load`, into a network that is there already: one whose own tables must not be on the meta device."""
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted and not unused(key)]
    wrong = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    lost = [key for key in missing if not elsewhere(key)]
    if lost or extra or wrong:
        raise WeightsCorrupt(f"{name} is not the file that was expected: {_difference(lost, extra, wrong)}.")
    network.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False, assign=True)
    return network.eval().requires_grad_(False), missing


def read(path: str | Path) -> dict[str, Tensor]:
    """A published file, safetensors or torch's with `weights_only`; half precision is widened to float32."""
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in weights.read_state_dict(path).items()
    }


def _difference(lost: list[str], extra: list[str], wrong: list[str]) -> str:
    parts = [("missing", lost), ("unknown", extra), ("of another shape", wrong)]
    return "; ".join(f"{len(keys)} tensors {what}, such as {keys[0]}" for what, keys in parts if keys)
