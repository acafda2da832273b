"""What the second stage (`finetune`) adds to the attention of the embedded model, and how it is put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from models.errors import WeightsCorrupt
from models.longrope.network import Weights
from models.weights import Source, read_safetensors

FILE = "longrope/adapter.safetensors"
SOURCE = Source(
    asset=FILE,
    licence="Apache-2.0",
    trained_on="prompts with a hidden key and State of the Union addresses, spread over 64k positions, by this project",
)
TABLES = "tuned_smollm2"  # how the files of its factor tables begin
PARTS = ("qkv", "output")  # the matrices of a layer that have additions: `up.*` (out, rank) @ `down.*` (rank, in)


def load(weights: Weights, path: Path) -> Weights:
    """A model's weights with the additions of a file. Raises `WeightsCorrupt` for a damaged one or another model's."""
    return put_in(weights, read_safetensors(path))


def put_in(weights: Weights, added: Mapping[str, Tensor]) -> Weights:
    """Weights with additions put in; all other tensors are shared. Raises `WeightsCorrupt` for another model's."""
    layers = []
    try:
        for i, layer in enumerate(weights.layers):
            changed = {
                part: getattr(layer, part)
                + (added[f"up.{i}_{part}"].float() @ added[f"down.{i}_{part}"].float()).to(getattr(layer, part))
                for part in PARTS
            }
            layers.append(replace(layer, **changed))
    except (KeyError, RuntimeError) as error:
        raise WeightsCorrupt("The adapter is not this model's. Restore it from the repository.") from error
    return replace(weights, layers=layers)
