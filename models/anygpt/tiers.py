"""Which AnyGPT a tier means."""

from __future__ import annotations

from pathlib import Path

from models.anygpt.pipeline import AnyGPT
from models.errors import BadInput, WeightsNotFound
from models.runtime import Device, LoadedModel, ModelInfo, Progress


def load(
    report: Progress, device: Device, tier: str = "embedded", path: str | Path | None = None
) -> LoadedModel[AnyGPT]:
    """Reads the language model of a tier; codecs follow when they are first needed.

    Args:
        tier: "embedded" or "official".
        path: of the official tier: a folder in the layout of `official.FILES`. Files that are not there switch off
            what needs them, and only that.

    Raises:
        BadInput: an unknown tier, or no folder. WeightsNotFound, WeightsCorrupt: missing or damaged files.
    """
    if tier == "embedded":
        raise WeightsNotFound(
            "The embedded AnyGPT is not trained yet: assets/anygpt holds no weights. The published model runs with "
            "--tier official --weights-dir FOLDER."
        )
    if tier != "official":
        raise BadInput(f"Unknown tier {tier!r}. Choose embedded or official.")
    if path is None:
        raise BadInput(
            "The official tier reads a weights folder. Put fnlp/AnyGPT-chat into FOLDER/anygpt/chat and start with "
            "--weights-dir FOLDER."
        )
    from models.anygpt import official

    report(0.1, "Reading the language model")
    model, network = official.assemble(official.Paths.inside(path), device)
    memory = sum(tensor.nbytes for tensor in network.state_dict().values())
    facts = ModelInfo(
        "official", "AnyGPT", "LLaMA 2's licence; the model card says Apache-2.0", "see the paper, table 6",
        network.num_parameters(), memory, device.name, device.dtype,
    )  # fmt: skip
    return LoadedModel(model, facts)
