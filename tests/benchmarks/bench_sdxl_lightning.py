"""SDXL-Lightning, embedded: from prompt to PNG, n steps against one network pass, and against plain diffusers calls.

    python tests/benchmarks/bench_sdxl_lightning.py --out assets/sdxl_lightning/evidence/speed.json

All in one run. Plain diffusers is `StableDiffusionPipeline(prompt, ...)` with the same weights, float32, as its
documentation shows it. `--folder` measures other weights of the same layout. Runs of the two alternate, and the
median counts, so that a busy machine weighs on both alike.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from models import sdxl_lightning
from models.records import record
from models.runtime import Device, choose_device
from models.sdxl_lightning.autoencoder import PatchAutoencoder
from models.sdxl_lightning.metadata import Settings, to_png
from models.sdxl_lightning.pipeline import TEACHER, Family, Network, Order
from models.sdxl_lightning.schedulers import STEPS, student_scheduler, teacher_scheduler
from models.weights import ASSETS

WORDS = ("blue", "red", "green", "pink", "black", "yellow", "purple", "orange")
THINGS = ("apple", "cat", "car", "tree", "house", "fish", "star", "umbrella")
PROMPTS = [f"{word} {thing}" for thing in THINGS for word in WORDS]


def medians(works: Sequence[Callable[[int], object]], rounds: int) -> list[float]:
    """Median seconds of each, run in turn; the first two rounds warm up."""
    times: list[list[float]] = [[] for _ in works]
    for i in range(rounds + 2):
        for work, kept in zip(works, times, strict=True):
            started = time.perf_counter()
            work(i)
            kept.append(time.perf_counter() - started)
    return [statistics.median(kept[2:]) for kept in times]


def plain_pipeline(family: Family, folder: Path, network: Network) -> StableDiffusionPipeline:
    """What a user of diffusers would load: float32, its own scheduler loop."""
    scheduler = teacher_scheduler(family.base) if network == TEACHER else student_scheduler(family.base, network.steps)
    pipe = StableDiffusionPipeline(
        vae=PatchAutoencoder.from_pretrained(folder / "vae").float().eval(), text_encoder=family.pipe.text_encoder,
        tokenizer=family.pipe.tokenizer, unet=family.sources[network]().float().eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def to_png_row(family: Family, network: Network, rounds: int) -> dict:
    """New words every time: text encoder, network, decoder, PNG."""

    def run(i: int) -> None:
        prompt = f"{PROMPTS[i % len(PROMPTS)]} {i}"
        image = family.generate(Order(prompt, network, seed=i)).images[0]
        to_png(image, Settings(prompt, i, network.steps, network.name, *image.size, "embedded"))

    (seconds,) = medians([run], rounds)
    what = f"new prompt to PNG, {network.name}, {family.native[0]} x {family.native[1]}"
    return {
        "what": what,
        "here": f"{1000 * seconds:.0f} ms",
        "note": "own target: 150 ms at one step",
        "seconds": seconds,
    }


def overhead_row(family: Family, network: Network, rounds: int) -> dict:
    """n steps, network part only, against n bare passes of the same network."""
    unet, steps = family.read(network), network.steps
    condition = family.encoder.encode(PROMPTS[0])
    x = torch.randn(1, unet.config.in_channels, 16, 16).to(family.dtype, memory_format=torch.channels_last)
    embeds, t = condition.embeds.to(family.dtype), torch.tensor(499.0)

    @torch.inference_mode()
    def bare(i: int) -> None:
        for _ in range(steps):
            unet(x, t, embeds, return_dict=False)

    spent: list[float] = []

    def ours(i: int) -> None:
        spent.append(family.generate(Order(PROMPTS[0], network, seed=i)).seconds.network)

    passes, _ = medians([bare, ours], rounds)
    whole = statistics.median(spent[2:])
    return {
        "what": f"{network.name}: sampling against {steps} bare network pass{'es' * (steps > 1)}",
        "here": f"{1000 * whole:.1f} against {1000 * passes:.1f} ms: {whole / passes - 1:+.0%}",
        "note": "own target: at most +20 %", "seconds": whole, "bare_seconds": passes,
    }  # fmt: skip


def diffusers_row(family: Family, folder: Path, network: Network, rounds: int, new_words: bool) -> dict:
    """The same order through both, in turn; also how far apart the pictures are."""
    pipe = plain_pipeline(family, folder, network)
    steps = network.steps or 32
    teacher = {"steps": steps} if network == TEACHER else {}
    guidance = family.guidance if network == TEACHER else 0.0
    pairs = []

    def prompt(i: int) -> str:
        return f"{PROMPTS[i % len(PROMPTS)]} {i}" if new_words else PROMPTS[0]

    def ours(i: int) -> None:
        pairs.append([family.generate(Order(prompt(i), network, seed=i, **teacher)).images[0]])

    def theirs(i: int) -> None:
        generator = torch.Generator().manual_seed(i)
        images = pipe(prompt(i), num_inference_steps=steps, guidance_scale=guidance, generator=generator).images
        pairs[-1].append(images[0])

    fast, slow = medians([ours, theirs], rounds)
    apart = [np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]
    words = "new words each time" if new_words else "same words"
    return {
        "what": f"{network.name}, {steps} step{'s' * (steps > 1)}, {words}: against a plain diffusers call",
        "here": f"{1000 * fast:.0f} against {1000 * slow:.0f} ms: {slow / fast:.2f}x",
        "note": f"pictures differ by {max(apart):.2f} of 255 at most (mean of a picture); own targets: 1.5x, 2",
        "seconds": fast, "diffusers_seconds": slow, "mean_difference": max(apart),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="networks to measure; by default the shipped ones")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device: Device = choose_device("cpu")
    family = sdxl_lightning.loader("embedded", args.folder)(lambda *_: None, device).model
    folder = args.folder or ASSETS / "sdxl_lightning"
    students = [family.student(n) for n in STEPS if any(each.steps == n for each in family.sources)]
    rows = [to_png_row(family, network, args.rounds) for network in students]
    rows += [overhead_row(family, network, args.rounds) for network in students]
    for network in students:
        rows.append(diffusers_row(family, folder, network, args.rounds, True))
        rows.append(diffusers_row(family, folder, network, args.rounds, False))
    rows.append(diffusers_row(family, folder, TEACHER, 2, False))
    for row in rows:
        print(row["what"], "|", row["here"], "|", row["note"])
    if args.out:
        settings = {"threads": torch.get_num_threads(), "dtype": device.dtype, "rounds": args.rounds}
        record(args.out, {"rows": rows, **settings})


if __name__ == "__main__":
    main()
