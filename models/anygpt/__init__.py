"""AnyGPT (arXiv 2402.12226): one language model that reads and writes text, pictures, speech and music. See README.md.

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.anygpt.pipeline import AnyGPT
    from models.completions import Address
    from models.runtime import Device, LoadedModel, Progress


def load(
    tier: str = "embedded", path: str | Path | None = None, device: str | None = None, server: Address | None = None
) -> AnyGPT:
    """A model ready to chat; see `models.anygpt.tiers.load` for the arguments and errors."""
    from models.runtime import choose_device

    return loader(tier, path, server)(_silent, choose_device(device)).model


def loader(
    tier: str = "embedded", path: str | Path | None = None, server: Address | None = None
) -> Callable[[Progress, Device], LoadedModel[AnyGPT]]:
    """What the model runtime calls to load a model; see `models.anygpt.tiers`."""

    def load(report: Progress, device: Device) -> LoadedModel[AnyGPT]:
        from models.anygpt import tiers  # imports torch: not before somebody needs a model

        return tiers.load(report, device, tier, path, server)

    return load


def _silent(share: float, text: str) -> None:
    """Progress of a load nobody watches."""
