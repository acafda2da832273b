"""P-diff: many networks together against one by one, vectorised training, the whole pipeline; all in one run.

    python tests/benchmarks/bench_pdiff.py --out assets/pdiff/evidence/speed.json

Everything runs on one thread, as in the tab. One by one is the official code's way (specification C.3): batch 1, then
the checkpoint is loaded and the whole network runs over the test pictures. It is measured on `--one` networks and
scaled up.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch.func import functional_call, vmap

from models import pdiff
from models.pdiff import data, networks
from models.pdiff.collect import collect, collect_independent, state_dict
from models.pdiff.measures import Evaluator
from models.pdiff.pipeline import Pipeline
from models.pdiff.threads import one_thread
from models.pdiff.train import LIVE, fit
from models.pdiff.vectors import unflatten
from models.pdiff.zoo import Zoo
from models.records import record

COUNT = 200


def one_by_one(pipeline: Pipeline, count: int, steps: int, ancestral: bool) -> float:
    """Seconds for a network: sampled alone, loaded, run over the whole test set in batches."""
    net, source = networks.build(pipeline.zoo.collection.network, pipeline.data).eval(), pipeline.data
    started = time.perf_counter()
    for seed in range(count):
        vector = pipeline.generate(1, seed, steps, ancestral).vectors[0]
        net.load_state_dict(state_dict(pipeline.zoo.collection, vector))
        with torch.inference_mode():
            for x in source.test_x.split(128):
                net(x).argmax(1)
    return (time.perf_counter() - started) / count


def together(pipeline: Pipeline, steps: int, ancestral: bool) -> tuple[float, float]:
    """Seconds for generating and for evaluating `COUNT` networks."""
    _ = pipeline.evaluator  # the frozen front is shared by all generations
    started = time.perf_counter()
    made = pipeline.generate(COUNT, 0, steps, ancestral)
    generated = time.perf_counter()
    pipeline.wrong(made)
    return generated - started, time.perf_counter() - generated


def generation_rows(zoo: str, one: int, samplers: tuple[str, ...]) -> list[dict]:
    """`COUNT` networks generated and tested together, against one by one with the same sampler and the official way."""
    pipeline = pdiff.load(zoo)
    rows = []
    official = one_by_one(pipeline, one, 1000, True) * COUNT
    for sampler in samplers:
        ancestral = sampler == "ddpm"
        steps, title = (1000, "1 000 steps, as in the paper") if ancestral else (50, "DDIM, 50 steps")
        sampling, testing = together(pipeline, steps, ancestral)
        both = sampling + testing
        same = official if ancestral else one_by_one(pipeline, 4 * one, steps, False) * COUNT
        rows.append({
            "what": f"{zoo}: {COUNT} networks generated and tested, {title}", "sampler": sampler,
            "here": f"{both:.1f} s ({sampling:.1f} + {testing:.1f}): {same / both:.1f}x one by one, same sampler",
            "note": f"{official / both:.0f}x the official way: 1 000 steps, one by one, {official:.0f} s (from {one})",
            "seconds": both, "one_by_one_seconds": same, "official_seconds": official,
        })  # fmt: skip
    return rows


def evaluation_row(zoo: str, count: int = 12) -> dict:
    """Checkpoints one after the other in cache-sized pieces, against `vmap` over all of them."""
    pipeline = pdiff.load(zoo)
    vectors, evaluator = pipeline.originals.vectors[:count], pipeline.evaluator
    started = time.perf_counter()
    evaluator.logits(vectors)
    ours = time.perf_counter() - started
    _, back = networks.split(pipeline.network, evaluator.layout)
    tensors = unflatten(vectors, evaluator.layout)
    started = time.perf_counter()
    with torch.inference_mode():
        parts = evaluator.features.split(500)
        for part in parts:
            vmap(lambda t, part=part: functional_call(back, t, (part,)))(tensors)
    side_by_side = time.perf_counter() - started
    return {"what": f"{zoo}: testing {count} checkpoints", "here": f"{ours:.2f} s; with vmap {side_by_side:.2f} s: "
            f"{side_by_side / ours:.1f}x", "seconds": ours, "vmap_seconds": side_by_side}  # fmt: skip


def training_row(runs: int = 8) -> dict:
    """Independent networks trained side by side against the same trained alone."""
    source = data.load("digits")
    started = time.perf_counter()
    collect_independent("mlp-ln", source, runs)
    stacked = time.perf_counter() - started
    started = time.perf_counter()
    collect_independent("mlp-ln", source, 2)
    alone = (time.perf_counter() - started) / 2 * runs
    return {"what": f"training {runs} networks from different seeds side by side", "here": f"{stacked:.1f} s; two at a "
            f"time {alone:.1f} s: {alone / stacked:.1f}x", "seconds": stacked, "by_twos_seconds": alone}  # fmt: skip


def live_row() -> dict:
    """The whole pipeline of the smallest zoo, as the tab runs it."""
    source = data.load("digits")
    started = time.perf_counter()
    collection = collect("mlp-bn-128", source, "norm", 300, 1)
    collected = time.perf_counter()
    generator = fit(collection, LIVE, 1)
    fitted = time.perf_counter()
    pipeline = Pipeline("live", Zoo(collection, generator, {}), source)
    Evaluator(pipeline.network, collection.layout, source.test_x, source.test_y).wrong(pipeline.generate(100).vectors)
    ended = time.perf_counter()
    spent = collected - started, fitted - collected, ended - fitted
    said = "{:.0f} s (train and collect {:.0f}, fit {:.0f}, generate and test {:.0f})".format(sum(spent), *spent)
    what = "the whole live pipeline of the smallest zoo"
    return {"what": what, "here": said, "note": "own target: 180 s", "seconds": sum(spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, default=2, help="networks made one by one (default 2)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict] = []
    with one_thread():  # as the tab runs them
        for measured in (
            lambda: generation_rows("digits-q", options.one, ("ddim", "ddpm")),
            lambda: generation_rows("digits-f", options.one, ("ddim",)),
            lambda: generation_rows("emoji-bn", options.one, ("ddim",)),
            lambda: [live_row()],
            lambda: [evaluation_row(zoo) for zoo in ("digits-q", "digits-f", "mnist-cnn")],
            lambda: [training_row()],
        ):
            found = measured()
            for row in found:
                print(row["what"], "|", row["here"], "|", row.get("note", ""), flush=True)
            rows += found
    if options.out:
        record(options.out, {"threads": 1, "rows": rows})


if __name__ == "__main__":
    main()
