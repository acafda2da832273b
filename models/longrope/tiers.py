"""Which model a tier means: SmolLM2 from its package, or a model folder of the user's."""

from __future__ import annotations

from pathlib import Path

from models.completions import Address
from models.errors import BadInput
from models.longrope import adapter, gguf, served, tokenizer
from models.longrope.engine import Engine, load_folder
from models.longrope.pipeline import Model
from models.runtime import Device, LoadedModel, ModelInfo, Progress
from models.weights import ASSETS, resolve


def load(
    report: Progress,
    device: Device,
    tier: str = "embedded",
    path: str | Path | None = None,
    server: Address | None = None,
) -> LoadedModel[Model]:
    """Reads the weights of a tier, or asks the server that has them.

    Args:
        tier: "embedded" (SmolLM2-135M-Instruct, from the installed package) or "official" (a model folder).
        path: the folder: Llama, Mistral, Qwen2 or Phi-3 with safetensors and tokenizer.json.
        server: an OpenAI-compatible one that runs the folder's model (official tier). Of the folder config.json and
            tokenizer.json are read then.

    Raises:
        BadInput: an unknown tier, no folder, or a server for the embedded tier. WeightsNotFound, WeightsCorrupt:
        missing or damaged files. ServerUnavailable: the server is away, or runs another model.
    """
    if tier == "embedded" and server is None:
        return _embedded(report, device)
    if tier == "embedded":
        raise BadInput("A server has the official tier's model. Choose --tier official, or no server.")
    if tier != "official":
        raise BadInput(f"Unknown tier {tier!r}. Choose embedded or official.")
    if path is None:
        raise BadInput(
            "The official tier reads a model folder. Download one, such as microsoft/Phi-3-mini-128k-instruct, and "
            "start with --weights-dir FOLDER."
        )
    words = tokenizer.from_folder(path)
    if server is not None:
        return _served(report, Path(path), words, server)
    report(0.1, "Reading the weights")
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
    words = tokenizer.from_gguf(found.path)
    model = Model("SmolLM2-135M-Instruct", engine, words, tables="smollm2")
    if (ASSETS / adapter.FILE).exists():  # it is not there where it is being trained
        report(0.9, "Putting in the fine-tuned adapter")
        tuned = engine.having(adapter.load(engine.weights, resolve(adapter.SOURCE).path))
        model.tuned = Model(model.name, tuned, words, adapter.TABLES)
    return LoadedModel(model, _facts(model, "embedded", found.path.name, found.licence, found.trained_on, device))


def _served(report: Progress, folder: Path, words: tokenizer.Tokenizer, server: Address) -> LoadedModel[Model]:
    report(0.1, "Asking the server")
    engine = served.connect(folder, server, words)
    model = Model(engine.completions.served().name, engine, words)
    facts = ModelInfo(
        "official", f"{model.name} on the server at {server.place}", "see its card", "", model.config.parameters, 0,
        engine.rope.notes[0], "numbers and cache as the server has them",
    )  # fmt: skip
    return LoadedModel(model, facts)


def _facts(model: Model, tier: str, weights: str, licence: str, trained_on: str, device: Device) -> ModelInfo:
    engine = model.engine
    memory = engine.weights.nbytes
    if model.tuned is not None:
        memory += sum(getattr(layer, part).nbytes for layer in engine.weights.layers for part in adapter.PARTS)
    return ModelInfo(tier, weights, licence, trained_on, model.config.parameters, memory, device.name, engine.dtype)
