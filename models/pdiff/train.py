"""Fits normaliser, autoencoder and latent diffusion to a collection, and writes zoos.

    python -m models.pdiff.train --zoo digits-q --out assets/pdiff/digits-q.safetensors
    python -m models.pdiff.train --network torchvision:resnet18 --pictures FOLDER --kind norm --out mine.safetensors

Stages are kept in --work (runs/pdiff/NAME); the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import BadInput
from models.pdiff import data as datasets
from models.pdiff import diffusion, normalise
from models.pdiff.autoencoder import CHANNELS, Autoencoder
from models.pdiff.collect import Collection, collect, collect_independent
from models.pdiff.diffusion import Denoiser
from models.pdiff.normalise import Normaliser
from models.pdiff.vectors import check_finite
from models.tasks import ADVICE, Pool, workers

SAVE_EVERY = 250


@dataclass(frozen=True)
class Preset:
    """Every choice of the fit.

    parameter_noise, latent_noise: the two augmentations, in normalised units (paper section 3; B).
    unit_latents: latents are rescaled to unit spread before the diffusion.
    ema: decay of the running mean of the denoiser's weights; 0 for none.
    """

    normalisation: str = "coordinate"
    latent: int = 64
    channels: tuple[int, ...] = (16, 32, 64, 64, 8)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    autoencoder_steps: int = 600
    autoencoder_lr: float = 2e-3
    diffusion_steps: int = 2000
    diffusion_lr: float = 2e-3
    batch: int = 64
    parameter_noise: float = 0.001
    latent_noise: float = 0.1
    unit_latents: bool = True
    ema: float = 0.995


# The 2025 code, CIFAR-100 with ResNet-18 (B, C.1, C.2): no latent scaling, no EMA.
PAPER = Preset("tensor", 128, CHANNELS, diffusion.WIDTHS, 500, 2e-5, 1000, 1e-4, 50, 0.001, 0.1, False, 0.0)
FAST = Preset()
# For a long vector, whose autoencoder is costly; and for an audience that waits.
LONG = Preset(autoencoder_steps=400, batch=32)
LIVE = Preset(latent=32, autoencoder_steps=250, diffusion_steps=700, ema=0.98)
PRESETS = {"paper": PAPER, "fast": FAST, "long": LONG, "live": LIVE}


@dataclass(frozen=True)
class Progress:
    """One step of one stage: "collect", "autoencoder" or "diffusion"; `step` of `total`, with its loss."""

    stage: str
    step: int
    total: int
    loss: float


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Generator:
    """What generates: latents -> normalised numbers -> parameters.

    latent_mean: (d,) and latent_std: (), applied to what the denoiser works on.
    """

    normaliser: Normaliser
    autoencoder: Autoencoder
    denoiser: Denoiser
    latent_mean: Tensor
    latent_std: Tensor

    @torch.inference_mode()
    def encode(self, vectors: Tensor) -> Tensor:
        """(N, D) parameters -> (N, d) latents as the denoiser sees them."""
        parts = [self.autoencoder.encode(self.normaliser.forward(part)) for part in vectors.split(100)]
        return (torch.cat(parts) - self.latent_mean) / self.latent_std

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """(N, d) latents -> (N, D) parameters. One row's result does not depend on the others."""
        raw = latents * self.latent_std + self.latent_mean
        return torch.cat([self.normaliser.inverse(self.autoencoder.decode(part)) for part in raw.split(100)])


def fit(
    collection: Collection, preset: Preset, seed: int = 0, report: Report = lambda p: None, work: Path | None = None
) -> Generator:
    """Trains the autoencoder, then the diffusion on its latents. Resumes from `work` if it has anything."""
    check_finite(collection.vectors, "Checkpoint")
    if len(collection.vectors) < 2:
        raise BadInput("At least two checkpoints are needed to learn from.")
    normaliser = normalise.fit(collection.vectors, collection.layout, preset.normalisation)
    normalised = normaliser.forward(collection.vectors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = Autoencoder(normaliser.length, preset.latent, preset.channels)
        denoiser = Denoiser(preset.latent, preset.widths)

    def reconstruction(x: Tensor, g: torch.Generator) -> Tensor:
        noisy = x + preset.parameter_noise * _noise(x, g)
        z = autoencoder.encode(noisy)
        decoded = autoencoder.decode(z + preset.latent_noise * _noise(z, g))
        return (decoded - x).square().mean()

    _train(autoencoder, reconstruction, normalised, "autoencoder", preset.autoencoder_steps, preset.autoencoder_lr,
           preset, seed, report, work)  # fmt: skip
    _settle(autoencoder, reconstruction, normalised, preset, seed)
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(part) for part in normalised.split(100)])
    mean, std = torch.zeros(preset.latent), torch.tensor(1.0)
    if preset.unit_latents:
        mean, std = latents.mean(0), latents.std().clamp(min=1e-6)
    latents = (latents - mean) / std
    bars = diffusion.alphas_bar()

    def denoising(x: Tensor, g: torch.Generator) -> Tensor:
        t = torch.randint(diffusion.STEPS, (len(x),), generator=g)
        noise = _noise(x, g)
        return (denoiser(diffusion.add_noise(x, noise, t, bars), t) - noise).square().mean()

    _train(denoiser, denoising, latents, "diffusion", preset.diffusion_steps, preset.diffusion_lr, preset, seed, report,
           work)  # fmt: skip
    _settle(denoiser, denoising, latents, preset, seed)
    return Generator(normaliser, autoencoder, denoiser, mean, std)


def _train(
    network: nn.Module,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    x: Tensor,
    stage: str,
    steps: int,
    lr: float,
    preset: Preset,
    seed: int,
    report: Report,
    work: Path | None,
) -> None:
    """AdamW with a cosine to zero, as in the 2025 code. Batches and noise depend on (seed, step) only."""
    optimiser = torch.optim.AdamW(network.parameters(), lr, weight_decay=0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    mean = copy.deepcopy(network) if preset.ema and stage == "diffusion" else None
    parts: dict[str, Any] = {"network": network, "optimiser": optimiser, "cosine": cosine}
    if mean is not None:
        parts["mean"] = mean
    first = _restore(work, stage, parts)
    network.train()
    batches = itertools.islice(_batches(len(x), preset.batch, seed), first, steps)
    for step, chosen in enumerate(batches, first + 1):
        loss = loss_of(x[chosen], _randomness(seed, stage, step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cosine.step()
        if mean is not None:
            decay = min(preset.ema, step / (step + 10))
            with torch.no_grad():
                for ours, theirs in zip(mean.parameters(), network.parameters(), strict=True):
                    ours.lerp_(theirs, 1 - decay)
        if work is not None and (step % SAVE_EVERY == 0 or step == steps):
            _keep(work, stage, step, parts)
        report(Progress(stage, step, steps, float(loss.detach())))
    if mean is not None:
        network.load_state_dict(mean.state_dict())


def _settle(
    network: nn.Module, loss_of: Callable[[Tensor, torch.Generator], Tensor], x: Tensor, preset: Preset, seed: int
) -> None:
    """Averages the batch statistics of the final weights over many batches, then eval mode for good."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean over the batches
    network.train()
    with torch.no_grad():
        for step, chosen in enumerate(itertools.islice(_batches(len(x), preset.batch, seed + 1), 40)):
            loss_of(x[chosen], _randomness(seed + 1, "settle", step))
    network.eval().requires_grad_(False)


def _batches(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of distinct rows; all rows at once where there are fewer than a batch."""
    size = min(batch, n)
    for epoch in itertools.count():
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 10_007 + epoch))
        yield from order[: n // size * size].split(size)


def _randomness(seed: int, stage: str, step: int) -> torch.Generator:
    offset = {"autoencoder": 0, "diffusion": 1, "settle": 2}[stage]
    return torch.Generator().manual_seed((seed * 3 + offset) * 1_000_003 + step)


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator)


def _keep(work: Path, stage: str, step: int, parts: dict[str, Any]) -> None:
    _save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, work / f"{stage}.pt")


def _save(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a run may be killed at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _restore(work: Path | None, stage: str, parts: dict[str, Any]) -> int:
    """Loads what was kept; the number of steps done."""
    if work is None or not (work / f"{stage}.pt").exists():
        return 0
    state = torch.load(work / f"{stage}.pt", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


# ---- the command ------------------------------------------------------------------------------------------


def main() -> None:
    from models.pdiff import zoo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", choices=[*zoo.ZOOS], help="one of the shipped zoos")
    parser.add_argument("--network", help="or a network of your own choice, such as mlp-ln or torchvision:resnet18")
    parser.add_argument("--data", choices=datasets.DATASETS, help="its data set")
    parser.add_argument("--pictures", type=Path, help="or a folder with one folder of pictures a class")
    parser.add_argument("--kind", default="norm", help="norm, norm:A-B, last:K or all (default norm)")
    parser.add_argument("--count", type=int, default=300, help="checkpoints to collect (default 300)")
    parser.add_argument("--preset", choices=[*PRESETS], default="fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the zoo's safetensors file")
    parser.add_argument("--work", type=Path, help="where unfinished work is kept (default runs/pdiff/NAME)")
    parser.add_argument("--ray", metavar="ADDRESS", help=f"train the networks of the zoo as Ray tasks at: {ADVICE}")
    options = parser.parse_args()
    started = time.monotonic()
    if options.zoo:
        recipe = zoo.ZOOS[options.zoo]
        source = datasets.load(recipe.data)
    else:
        if not options.network or not (options.data or options.pictures):
            parser.error("give --zoo, or --network with --data or --pictures")
        source = datasets.folder(options.pictures) if options.pictures else datasets.load(options.data)
        recipe = zoo.Recipe(options.network, source.name, options.kind, "", options.preset, options.count)
    work = options.work or Path("runs/pdiff") / options.out.stem
    with workers(options.ray) as pool:
        collection = _collected(recipe, source, options.seed, work, pool if options.ray else None)
    generator = fit(collection, PRESETS[recipe.preset], options.seed, _print, work)
    facts = {"command": _command(), "seconds": round(time.monotonic() - started, 1), "seed": options.seed,
             "preset": asdict(PRESETS[recipe.preset])}  # fmt: skip
    zoo.save(options.out, collection, generator, facts)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


def _collected(recipe: Any, source: datasets.Data, seed: int, work: Path, pool: Pool | None) -> Collection:
    """The collection kept in `work`, or a new one that is kept there."""
    kept = work / "collection.pt"
    names = {"network": recipe.network, "data": source.name, "kind": recipe.kind, "seed": seed}
    if kept.exists():
        from models.pdiff.vectors import Layout

        state = torch.load(kept, weights_only=True)
        if state["names"] != names or len(state["vectors"]) != recipe.count:
            raise SystemExit(f"{work} holds another run: {state['names']}. Choose another --work, or delete it.")
        layout = Layout(tuple(state["layout"]), tuple(map(tuple, state["shapes"])))
        return Collection(state["vectors"], layout, state["base"], **names)

    def report(step: int, total: int, loss: float) -> None:
        _print(Progress("collect", step, total, loss))

    if recipe.independent:
        collection = collect_independent(recipe.network, source, recipe.count, seed, report=report, pool=pool)
    else:
        collection = collect(
            recipe.network, source, recipe.kind, recipe.count, seed, recipe.runs, report=report, pool=pool
        )
    layout = collection.layout
    _save({"names": names, "vectors": collection.vectors, "base": collection.base, "layout": list(layout.names),
           "shapes": [list(s) for s in layout.shapes]}, kept)  # fmt: skip
    return collection


def _print(p: Progress) -> None:
    if p.step % 100 == 0 or p.step == p.total:
        print(f"{p.stage} {p.step}/{p.total}  loss {p.loss:.4f}", flush=True)


def _command() -> str:
    from models.records import provenance

    return provenance()["command"]


if __name__ == "__main__":
    main()
