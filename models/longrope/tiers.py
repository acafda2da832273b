"""Which model a tier means: SmolLM2 from its package, or a model folder of the user's."""

from __future__ import annotations

from pathlib import Path

from models.errors import BadInput
from models.longrope import gguf, tokenizer
from models.longrope.engine import Engine, load_folder
from models.longrope.pipeline import Model
from models.runtime import Device, LoadedModel, ModelInfo, Progress
from models.weights import resolve


def load(
    report: Progress, device: Device, tier: str = "embedded", path: str | Path | None = None
) -> LoadedModel[Model]:
    """Reads the weights of a tier.

    Args:
        tier: "embedded" (SmolLM2-135M-Instruct, from the installed package) or "official" (a model folder).
        path: the folder: Llama, Mistral, Qwen2 or Phi-3 with safetensors and tokenizer.json.

    Raises:
        BadInput: an unknown tier, or no folder. WeightsNotFound, WeightsCorrupt: missing or damaged files.
    """
    if tier == "embedded":
        return _embedded(report, device)
    if tier != "official":
        raise BadInput(f"Unknown tier {tier!r}. Choose embedded or official.")
    if path is None:
        raise BadInput(
            "The official tier reads a model folder. Download one, such as microsoft/Phi-3-mini-128k-instruct, and "
            "start with --weights-dir FOLDER."
        )
    report(0.1, "Reading the weights")
    words = tokenizer.from_folder(path)
    engine = load_folder(path, device.dtype, device.name)
    model = Model(Path(path).name, engine, words)
    return LoadedModel(model, _facts(model, "official", Path(path).name, "the model's own", "see its card", device))


def _embedded(report: Progress, device: Device) -> LoadedModel[Model]:
    report(0.1, "Finding SmolLM2")
    found = resolve(gguf.PACKAGED)
    report(0.2, "Reading and dequantising")
    config, tensors = gguf.read_llama(found.path)
    report(0.8, "Reading the tokenizer")
    engine = Engine(config, tensors, device.dtype, device.name)
    model = Model("SmolLM2-135M-Instruct", engine, tokenizer.from_gguf(found.path), tables="smollm2")
    return LoadedModel(model, _facts(model, "embedded", found.path.name, found.licence, found.trained_on, device))


def _facts(model: Model, tier: str, weights: str, licence: str, trained_on: str, device: Device) -> ModelInfo:
    engine = model.engine
    return ModelInfo(
        tier, weights, licence, trained_on, model.config.parameters, engine.weights.nbytes, device.name, engine.dtype
    )
