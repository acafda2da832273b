"""LongRoPE (arXiv 2402.13753): context windows beyond 2 million tokens. See README.md.

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.turns import Turns

if TYPE_CHECKING:
    from models.completions import Address
    from models.longrope.evolution import Event, SearchSettings, Seed
    from models.longrope.pipeline import Model
    from models.longrope.retrieval import Trial
    from models.longrope.rope import RopeScaling
    from models.runtime import Device, LoadedModel, Progress

LANE = Turns()  # for the long runs of this process: two at once would only slow each other down


def factors(
    method: str,
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
    magnitude: str | float | None = None,
    table: Sequence[float] | None = None,
    n_hat: int = 0,
) -> RopeScaling:
    """Rotary factors of any method; see `models.longrope.rope.scaling` for arguments and errors."""
    from models.longrope.rope import scaling

    return scaling(method, rotary_dim, base, original_length, target_length, magnitude, table, n_hat)


def search(
    fitness: Callable[[Sequence[float], int], float],
    settings: SearchSettings,
    seeds: Sequence[Seed] | None = None,
    log: str | Path | None = None,
) -> Iterator[Event]:
    """The evolutionary search as a generator of progress events; see `models.longrope.evolution.search`."""
    from models.longrope.evolution import search

    return search(fitness, settings, seeds, log)


def passkey(model: Model, length: int, method: str = "none", depth: float | None = None, seed: int = 0) -> Trial:
    """One passkey question at a length; see `models.longrope.retrieval` for prompts and readings of your own."""
    from models.longrope.engine import Reading
    from models.longrope.retrieval import make_prompt, run

    prompt = make_prompt(model, length, depth, seed)
    return run(model, prompt, model.scaling_at(method, length), Reading())


def load(
    tier: str = "embedded", path: str | Path | None = None, device: str | None = None, server: Address | None = None
) -> Model:
    """A ready model; see `models.longrope.tiers.load` for the arguments and errors."""
    from models.runtime import choose_device

    return loader(tier, path, server)(_silent, choose_device(device)).model


def loader(
    tier: str = "embedded", path: str | Path | None = None, server: Address | None = None
) -> Callable[[Progress, Device], LoadedModel[Model]]:
    """What the model runtime calls to load a model; see `models.longrope.tiers`."""

    def load(report: Progress, device: Device) -> LoadedModel[Model]:
        from models.longrope import tiers  # imports torch: not before somebody needs a model

        return tiers.load(report, device, tier, path, server)

    return load


def _silent(share: float, text: str) -> None:
    """Progress of a load nobody watches."""
