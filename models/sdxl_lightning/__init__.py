"""SDXL-Lightning (arXiv 2402.13929): from words to a picture in 1, 2, 4 or 8 steps. See README.md.

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.runtime import Device, LoadedModel, Progress
    from models.sdxl_lightning.pipeline import Family, Student


def load(
    tier: str = "embedded", steps: int = 4, folder: str | Path | None = None, device: str | None = None
) -> Student:
    """The student of 1, 2, 4 or 8 steps: `load().generate("a blue apple", seed=1, count=4)` gives pictures.

    See `models.sdxl_lightning.tiers.load` for the arguments and errors; `.family` has the other networks.
    """
    from models.runtime import choose_device
    from models.sdxl_lightning.pipeline import Student

    family = loader(tier, folder)(_silent, choose_device(device)).model
    return Student(family, family.student(steps))


def loader(
    tier: str = "embedded", folder: str | Path | None = None
) -> Callable[[Progress, Device], LoadedModel[Family]]:
    """What the model runtime calls to load a tier; see `models.sdxl_lightning.tiers`."""

    def load(report: Progress, device: Device) -> LoadedModel[Family]:
        report(0.05, "Importing diffusers")
        from models.sdxl_lightning import tiers  # imports torch: not before somebody needs a picture

        return tiers.load(report, device, tier, folder)

    return load


def _silent(share: float, text: str) -> None:
    """Progress of a load nobody watches."""
