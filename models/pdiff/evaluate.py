"""Measures what the tab's Evidence panel shows, and keeps it as data.

    python -m models.pdiff.evaluate zoos        every shipped zoo, three sampling seeds, all baselines
    python -m models.pdiff.evaluate table       the paper's table in small: networks x data sets x three seeds
    python -m models.pdiff.evaluate ablations   K, noise, depth; three seeds each

Finished rows are kept in runs/pdiff/evidence, so that the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import pdiff
from models.pdiff import data as datasets
from models.pdiff import measures
from models.pdiff.collect import Collection, collect
from models.pdiff.data import Data
from models.pdiff.pipeline import Checkpoints, Pipeline
from models.pdiff.train import LIVE, Preset, fit
from models.pdiff.zoo import Zoo
from models.records import record
from models.weights import ASSETS

EVIDENCE, KEPT = ASSETS / "pdiff" / "evidence", Path("runs/pdiff/evidence")
GENERATED, BASELINE = 200, 50
Job = tuple[tuple[Any, ...], Callable[[], dict[str, Any]]]  # key, work
# One line of the table: title, network, which parameters. Convolutions without norms give their last two layers.
ROWS = (
    ("MLP-3", "mlp-bn-128", "norm"),
    ("CNN-3", "cnn-3", "last:2"),
    ("ResNet-18", "resnet-18", "norm"),
    ("ConvNeXt-atto", "convnext-atto", "norm"),
)
TRAINED_ON, TESTED_ON = 3000, 1000  # pictures, so that 36 cells fit into an hour
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "K = 300, both norms, both noises": ("default", {}),
    "K = 10": ("K", {"count": 10}),
    "K = 50": ("K", {"count": 50}),
    "K = 200": ("K", {"count": 200}),
    "no noise": ("noise", {"parameter_noise": 0.0, "latent_noise": 0.0}),
    "noise on parameters only": ("noise", {"latent_noise": 0.0}),
    "noise on latents only": ("noise", {"parameter_noise": 0.0}),
    "latent noise of 1": ("noise", {"latent_noise": 1.0}),
    "first norm only": ("depth", {"kind": "norm:0-1"}),
    "second norm only": ("depth", {"kind": "norm:1-2"}),
    "last linear layer": ("depth", {"kind": "last:1"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["zoos", "table", "ablations"])
    parser.add_argument("--zoos", nargs="+", help="only these zoos")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    options = parser.parse_args()
    jobs: list[Job] = []
    seeds = range(options.seeds)
    if options.what == "zoos":
        names = options.zoos or [name for name in pdiff.zoos() if (ASSETS / "pdiff" / f"{name}.safetensors").exists()]
        jobs = [((name, seed), partial(zoo_row, name, seed)) for seed in seeds for name in names]
    elif options.what == "table":
        for seed, (title, network, kind), name in itertools.product(seeds, ROWS, datasets.DATASETS):
            jobs.append(((title, name, seed), partial(table_row, title, network, kind, name, seed)))
    else:
        jobs = [((name, seed), partial(ablation_row, name, seed)) for seed in seeds for name in ABLATIONS]
    rows = list(_resumed(KEPT / f"{options.what}.jsonl", jobs))
    settings = {"generated": GENERATED, "seeds": options.seeds}
    record(EVIDENCE / f"{options.what}.json", {**settings, "rows": rows})


def zoo_row(name: str, seed: int) -> dict[str, Any]:
    """One shipped zoo, one sampling seed: generated networks beside originals and baselines."""
    pipeline = pdiff.load(name)
    made = pipeline.generate(GENERATED, seed, 50)
    accuracy = float(measures.accuracies(pipeline.original_wrong).mean())
    scale = pipeline.noise_as_good(accuracy - 0.1)
    groups = {"originals": pipeline.originals, "generated": made, "ensemble": pipeline.ensemble()}
    groups |= pipeline.baselines(BASELINE, seed, scale or 0.05)
    share = measures.between_share(pipeline.originals.vectors)
    described = {title: describe(pipeline, group) for title, group in groups.items()}
    return {"zoo": name, "seed": seed, "noise_scale": scale, "between_share": share, "groups": described}


def describe(pipeline: Pipeline, group: Checkpoints) -> dict[str, float]:
    """Accuracy, similarity and distance of one group of networks."""
    own = group is pipeline.originals
    wrong = pipeline.wrong(group)
    accuracy = measures.accuracies(wrong)
    to_originals = measures.similarity(wrong, pipeline.original_wrong)
    among = measures.off_diagonal(measures.similarity(wrong, wrong)) if len(group) > 1 else torch.ones(1)
    distance = measures.nearest(group.vectors, pipeline.originals.vectors, own)
    figures = {
        "best": accuracy.max(), "mean": accuracy.mean(), "worst": accuracy.min(), "spread": accuracy.std(correction=0),
        "similarity_within": among.mean(), "similarity_to_originals": to_originals.mean(),
        "max_similarity": measures.max_similarity(to_originals, own).mean(), "nearest": distance.mean(),
    }  # fmt: skip
    return {"count": len(group), **{name: round(float(value), 4) for name, value in figures.items()}}


def table_row(title: str, network: str, kind: str, name: str, seed: int) -> dict[str, Any]:
    """One cell of the table: original / ensemble / P-diff, in percent."""
    source = fewer(datasets.load(name), seed)
    collection = collect(network, source, kind, 300, seed)
    return {"row": title, "data": name, "seed": seed, **one_fit(collection, source, LIVE)}


def ablation_row(name: str, seed: int) -> dict[str, Any]:
    """One setting of the ablations, on the smallest zoo's network."""
    group, changes = ABLATIONS[name]
    changes = dict(changes)
    source = datasets.load("digits")
    collection = collect("mlp-bn-128", source, changes.pop("kind", "norm"), changes.pop("count", 300), seed)
    tested = replace(source, test_x=source.test_x[:2000], test_y=source.test_y[:2000])
    return {"setting": name, "group": group, "seed": seed, **one_fit(collection, tested, replace(LIVE, **changes))}


def one_fit(collection: Collection, source: Data, preset: Preset) -> dict[str, Any]:
    """Fits, generates, tests."""
    started = time.monotonic()
    generator = fit(collection, preset, collection.seed)
    pipeline = Pipeline("evidence", Zoo(collection, generator, {}), source)
    made = pipeline.generate(GENERATED, collection.seed, 50)
    ensemble = float(pipeline.evaluate(pipeline.ensemble())[0])
    return {
        "parameters": collection.layout.size, "originals": describe(pipeline, pipeline.originals),
        "ensemble": round(ensemble, 4), "generated": describe(pipeline, made),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def fewer(source: Data, seed: int) -> Data:
    """A part of the data set for the larger networks; the test pictures are the same for every seed."""

    def part(x: Tensor, y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
        return x[chosen], y[chosen]

    train_x, train_y = part(source.train_x, source.train_y, TRAINED_ON, seed)
    test_x, test_y = part(source.test_x, source.test_y, TESTED_ON, 0)
    return replace(source, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)


def _resumed(kept: Path, jobs: Iterable[Job]) -> Iterable[dict[str, Any]]:
    """Each job's row, from the file if it is there, else computed and appended."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {tuple(line["key"]): line["row"] for line in lines}
    for key, work in jobs:
        if key not in known:
            known[key] = work()
            with kept.open("a") as file:
                file.write(json.dumps({"key": key, "row": known[key]}) + "\n")
            print(key, json.dumps(known[key])[:300], flush=True)
        yield known[key]


if __name__ == "__main__":
    main()
