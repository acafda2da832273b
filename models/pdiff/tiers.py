"""Which file a zoo means. No weights were published for P-diff, so both tiers run zoos made here."""

from __future__ import annotations

from pathlib import Path

from models.errors import BadInput
from models.pdiff import data as datasets
from models.pdiff import zoo as zoos
from models.pdiff.pipeline import Pipeline
from models.pdiff.threads import one_thread
from models.runtime import Device, LoadedModel, ModelInfo, Progress
from models.weights import Source, resolve

LICENCE = "Apache-2.0"


def load(
    report: Progress, device: Device, zoo: str = zoos.DEFAULT_ZOO, path: str | Path | None = None
) -> LoadedModel[Pipeline]:
    """Reads a zoo. It runs on the CPU: the networks are small.

    Args:
        zoo: one of the shipped zoos, or with `path` any name.
        path: a zoo file of your own, made by `python -m models.pdiff.train`.

    Raises:
        BadInput: an unknown zoo. WeightsNotFound, WeightsCorrupt: a missing or damaged file.
    """
    if path is None:
        if zoo not in zoos.ZOOS:
            raise BadInput(f"Unknown zoo {zoo!r}. Choose one of {', '.join(zoos.ZOOS)}.")
        source = Source(LICENCE, zoos.ZOOS[zoo].data, asset=f"pdiff/{zoo}.safetensors")
        path = resolve(source).path
    report(0.2, "Reading the zoo")
    with one_thread():
        read = zoos.read(path)
        report(0.6, "Making the data set")
        pipeline = Pipeline(zoo, read, datasets.load(read.collection.data))
    networks = (read.generator.autoencoder, read.generator.denoiser)
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    originals = read.collection.vectors
    memory = 4 * (parameters + originals.numel()) + len(originals) * len(pipeline.data.test_y)
    said = f"{len(originals)} checkpoints of {originals.shape[1]} parameters, {pipeline.data.name}"
    facts = ModelInfo("embedded", Path(path).name, LICENCE, said, parameters, memory, "cpu", "float32")
    return LoadedModel(pipeline, facts)
