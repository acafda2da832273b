"""The file a zoo ships in: originals, base network, and what generates, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models import weights
from models.errors import BadInput, WeightsCorrupt
from models.pdiff import data as datasets
from models.pdiff import networks
from models.pdiff.autoencoder import Autoencoder
from models.pdiff.collect import Collection
from models.pdiff.diffusion import Denoiser
from models.pdiff.normalise import Normaliser
from models.pdiff.train import Generator, Preset
from models.pdiff.vectors import Layout, check_finite

FORMAT = "live-papers-pdiff-1"
PARTS = ("autoencoder", "denoiser", "base")


@dataclass(frozen=True)
class Recipe:
    """How a zoo is made. `independent`: every checkpoint from initial weights of its own."""

    network: str
    data: str
    kind: str
    title: str
    preset: str = "fast"
    count: int = 300
    runs: int = 1
    independent: bool = False


ZOOS = {
    "digits-q": Recipe("mlp-bn-128", "digits", "norm", "Noisy digits, MLP: batch norms"),
    "digits-f": Recipe("mlp-ln", "digits", "all", "Noisy digits, small MLP: all of it"),
    "mnist-cnn": Recipe("cnn-3", "mnist", "all", "MNIST, CNN: all of it", preset="long"),
    "emoji-bn": Recipe("convnet-bn", "emoji", "norm", "Emoji, ConvNet: batch norms"),
    "digits-x": Recipe("mlp-ln", "digits", "all", "Failure: 60 separate networks", count=60, independent=True),
}
DEFAULT_ZOO = "digits-q"


@dataclass(frozen=True)
class Zoo:
    """A zoo in memory. `facts`: command, seed, seconds, preset, title."""

    collection: Collection
    generator: Generator
    facts: dict[str, Any]


def save(path: Path, collection: Collection, generator: Generator, facts: Mapping[str, Any]) -> None:
    """Writes a zoo. Originals and networks are kept in half precision, the base network in full."""
    tensors: dict[str, Tensor] = {"originals": collection.vectors.half()}
    for part, state in (
        ("autoencoder", generator.autoencoder.state_dict()),
        ("denoiser", generator.denoiser.state_dict()),
    ):
        for name, tensor in state.items():
            # Batch statistics can be too large for half precision; they are tiny anyway.
            small = tensor.is_floating_point() and "running" not in name
            tensors[f"{part}.{name}"] = tensor.half() if small else tensor
    tensors |= {f"base.{name}": tensor for name, tensor in collection.base.items()}
    tensors |= {
        "normaliser.mean": generator.normaliser.mean,
        "normaliser.std": generator.normaliser.std,
        "latent.mean": generator.latent_mean,
        "latent.std": generator.latent_std,
    }
    c = collection
    described = {
        "network": c.network, "data": c.data, "kind": c.kind, "seed": c.seed,
        "layout": [[name, list(shape)] for name, shape in zip(c.layout.names, c.layout.shapes, strict=True)],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.write_safetensors(
        path, tensors, {"format": FORMAT, "collection": json.dumps(described), "facts": json.dumps(dict(facts))}
    )


def read(path: str | Path, source: datasets.Data | None = None) -> Zoo:
    """Reads a zoo and checks every shape.

    source: the data set, for a zoo made from your own pictures.
    Raises `WeightsCorrupt` for a damaged file or one that does not fit its own description, `BadInput` for NaN.
    """
    path = Path(path)
    tensors = weights.read_safetensors(path)
    about = weights.card(path)
    if about.get("format") != FORMAT:
        raise WeightsCorrupt(f"{path.name} is not a P-diff zoo. Make one with `python -m models.pdiff.train`.")
    try:
        described, facts = json.loads(about["collection"]), json.loads(about["facts"])
        collection = _collection(described, tensors, source or datasets.load(described["data"]))
        generator = _generator(facts["preset"], tensors, collection.layout)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsCorrupt(
            f"{path.name} does not fit its own description ({error}). Get or make it again."
        ) from error
    check_finite(collection.vectors, f"{path.name}, checkpoint")
    if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
        raise BadInput(f"{path.name} holds NaN or infinite numbers. Make it again.")
    return Zoo(collection, generator, facts)


def _collection(described: dict[str, Any], tensors: Mapping[str, Tensor], source: datasets.Data) -> Collection:
    layout = Layout(
        tuple(name for name, _ in described["layout"]), tuple(tuple(shape) for _, shape in described["layout"])
    )
    base = _part(tensors, "base")
    network = networks.build(described["network"], source)
    network.load_state_dict(base)
    if networks.layout_of(network, layout.names) != layout:
        raise ValueError("the layout is not the network's")
    originals = tensors["originals"].float()
    if originals.dim() != 2 or originals.shape[1] != layout.size or len(originals) < 2:
        raise ValueError(f"originals have the shape {tuple(originals.shape)}, not (K, {layout.size})")
    return Collection(
        originals, layout, base, described["network"], described["data"], described["kind"], described["seed"]
    )


def _generator(preset: dict[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> Generator:
    arguments: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in preset.items()}
    p = Preset(**arguments)
    normaliser = Normaliser(tensors["normaliser.mean"], tensors["normaliser.std"])
    if normaliser.mean.shape != (layout.size,) or normaliser.std.shape != (layout.size,):
        raise ValueError("the normaliser is for vectors of another length")
    if not 1 <= p.latent <= 4096 or max(*p.channels, *p.widths) > 2048:
        raise ValueError("the networks are too large")
    autoencoder = Autoencoder(normaliser.length, p.latent, p.channels)
    denoiser = Denoiser(p.latent, p.widths)
    for network, part in ((autoencoder, "autoencoder"), (denoiser, "denoiser")):
        network.load_state_dict(
            {name: t.float() if t.is_floating_point() else t for name, t in _part(tensors, part).items()}
        )
        network.eval().requires_grad_(False)
    if tensors["latent.mean"].shape != (p.latent,) or tensors["latent.std"].dim():
        raise ValueError("the latents' scale has the wrong shape")
    return Generator(normaliser, autoencoder, denoiser, tensors["latent.mean"], tensors["latent.std"])


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
