"""Which AnyGPT a tier means."""

from __future__ import annotations

from pathlib import Path

from models.anygpt.pipeline import AnyGPT
from models.anygpt.served import ServedModel
from models.completions import Address
from models.errors import BadInput
from models.runtime import Device, LoadedModel, ModelInfo, Progress
from models.weights import resolve


def load(
    report: Progress,
    device: Device,
    tier: str = "embedded",
    path: str | Path | None = None,
    server: Address | None = None,
) -> LoadedModel[AnyGPT]:
    """Reads the language model of a tier; codecs follow when they are first needed.

    Args:
        tier: "embedded" or "official".
        path: of the official tier: a folder in the layout of `official.FILES`. Files that are not there switch off
            what needs them, and only that.
        server: an OpenAI-compatible one that has the language model (official tier); of the model's folder only the
            tokenizer is read then.

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
            "The official tier reads a weights folder. Put fnlp/AnyGPT-chat into FOLDER/anygpt/chat and start with "
            "--weights-dir FOLDER."
        )
    from models.anygpt import official

    if server is not None:
        report(0.1, "Asking the server")
        remote = official.assemble_served(official.Paths.inside(path), device, server)
        return LoadedModel(remote, _served_facts(remote, server, device))
    report(0.1, "Reading the language model")
    model, network = official.assemble(official.Paths.inside(path), device)
    memory = sum(tensor.nbytes for tensor in network.state_dict().values())
    facts = ModelInfo(
        "official", "AnyGPT", "LLaMA 2's licence; the model card says Apache-2.0", "see the paper, table 6",
        network.num_parameters(), memory, device.name, device.dtype,
    )  # fmt: skip
    return LoadedModel(model, facts)


def _served_facts(model: AnyGPT, server: Address, device: Device) -> ModelInfo:
    assert isinstance(model.lm, ServedModel)
    name = model.lm.completions.served().name
    return ModelInfo(
        "official", f"{name} on the server at {server.place}", "LLaMA 2's licence; the model card says Apache-2.0",
        "see the paper, table 6", 0, 0, f"{model.lm.window:,} tokens; tokenizers and decoders here on {device.name}",
        device.dtype,
    )  # fmt: skip


def _embedded(report: Progress, device: Device) -> LoadedModel[AnyGPT]:
    from models.anygpt.embedded import tier

    report(0.1, "Reading SmolLM2 and what was added to it")
    found = resolve(tier.source("lm"))
    for medium in tier.CODECS:
        if (found.path.parent / f"{medium}.safetensors").exists():
            resolve(tier.source(medium))  # compares the checksum
    model, network = tier.assemble(found.path.parent, device)
    memory = sum(parameter.nbytes for parameter in network.parameters()) * 3 // 2  # half as much again for 8-bit copies
    facts = ModelInfo(
        "embedded", found.path.name, found.licence, found.trained_on, network.num_parameters(),
        memory, "cpu", f"{str(network.dtype).removeprefix('torch.')} and int8",
    )  # fmt: skip
    return LoadedModel(model, facts)
