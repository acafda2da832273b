"""P-diff (arXiv 2402.13144): neural network parameters from noise. See README.md.

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.pdiff.pipeline import Pipeline
    from models.runtime import Device, LoadedModel, Progress

DEFAULT_ZOO = "digits-q"


def zoos() -> list[str]:
    """The shipped zoos by name."""
    from models.pdiff.zoo import ZOOS

    return list(ZOOS)


def load(zoo: str = DEFAULT_ZOO, path: str | Path | None = None) -> Pipeline:
    """A zoo ready to generate; see `models.pdiff.tiers.load` for the arguments and errors."""
    from models.runtime import choose_device

    return loader(zoo, path)(_silent, choose_device("cpu")).model


def loader(
    zoo: str = DEFAULT_ZOO, path: str | Path | None = None
) -> Callable[[Progress, Device], LoadedModel[Pipeline]]:
    """What the model runtime calls to load a zoo; see `models.pdiff.tiers`."""

    def load(report: Progress, device: Device) -> LoadedModel[Pipeline]:
        from models.pdiff import tiers  # imports torch: not before somebody needs a zoo

        return tiers.load(report, device, zoo, path)

    return load


def _silent(share: float, text: str) -> None:
    """Progress of a load nobody watches."""
