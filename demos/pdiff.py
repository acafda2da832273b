"""The P-diff tab: networks from noise, and using one of them. Its other panels are the `pdiff_*` modules beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.pdiff_evidence import show_evidence
from demos.pdiff_live import live_panel
from demos.pdiff_novelty import novelty_panel
from demos.pdiff_parts import JOBS, NOISY, Generated, Handles, accuracy_table
from demos.pdiff_use import use_panel
from demos.registry import AppOptions, demo
from models import pdiff
from models.errors import BadInput, Cancelled
from models.runtime import ModelHandle, ModelRuntime, Report

if TYPE_CHECKING:
    from models.pdiff.pipeline import Pipeline

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "pdiff"
# Titles here so that opening the page needs no torch; a test compares them with models.pdiff.zoo.ZOOS.
ZOOS = {
    "digits-q": "Noisy digits, MLP: batch norms",
    "digits-f": "Noisy digits, small MLP: all of it",
    "mnist-cnn": "MNIST, CNN: all of it",
    "emoji-bn": "Emoji, ConvNet: batch norms",
    "digits-x": "Failure: 60 separate networks",
}
SAMPLERS = {
    "ddim-20": "DDIM, 20 steps",
    "ddim-50": "DDIM, 50 steps",
    "ddpm-1000": "DDPM, 1 000 steps, as in the paper",
}
MOST, DEFAULT, COMPARED = 1000, 100, 30
ZOO_BYTES = 200_000_000
FRAME_SECONDS = 0.7
PLOTS_HEIGHT, TABLE_HEIGHT = 365, 210  # px, so that nothing jumps when they fill
# Gradio's sketchpad opens without a tool in hand.
PICK_BRUSH = """() => document.querySelector('#pdiff-sketch button[aria-label="Brush"]')?.click()"""


@dataclass(frozen=True)
class Order:
    """What the Generate controls hold, checked: over the API anything can arrive."""

    zoo: str
    count: int
    seed: int
    sampler: str

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Order:
        """From the widgets' values. Raises `BadInput` for what is not on offer."""
        zoo, count, seed, sampler = values
        if zoo not in ZOOS or sampler not in SAMPLERS:
            raise BadInput(f"Choose a zoo of {', '.join(ZOOS)} and a sampler of {', '.join(SAMPLERS)}.")
        numbers = parts.whole("The number of networks", count), parts.whole("The seed", seed)
        if not 1 <= numbers[0] <= MOST:
            raise BadInput(f"Generate between 1 and {MOST} networks; got {numbers[0]}.")
        return cls(zoo, *numbers, sampler)


def build(options: AppOptions, runtime: ModelRuntime) -> None:
    """Lays out the tab and wires its events. Called inside the demo's `gr.Tab`."""
    handles = {
        zoo: runtime.register(f"pdiff-{zoo}", pdiff.loader(zoo), estimate_bytes=ZOO_BYTES, description=title)
        for zoo, title in ZOOS.items()
    }
    parts.paper_card(demo("pdiff"))
    state = gr.State(None, time_to_live=3600)  # pdiff_parts.Generated
    with gr.Tabs():
        with gr.Tab("Generate"):
            zoo = _generate_panel(handles, state)
        with gr.Tab("How new is it?"):
            novelty_panel(handles, state)
        with gr.Tab("Live pipeline"):
            live_panel(handles[pdiff.DEFAULT_ZOO])
        with gr.Tab("Evidence"):
            show_evidence(ASSETS / "evidence")
        with gr.Tab("How it works"):
            _explanation()
    line = gr.HTML(parts.status_html(handles[pdiff.DEFAULT_ZOO]), elem_id="pdiff-status", padding=False)
    gr.on(
        [gr.Timer(5.0).tick, zoo.change],
        lambda zoo: parts.status_html(handles[zoo if zoo in ZOOS else pdiff.DEFAULT_ZOO]),
        zoo,
        line,
        api_name="pdiff_status",
        show_progress="hidden",
        queue=False,
    )


def _generate_panel(handles: Handles, state: gr.State) -> gr.Dropdown:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            zoo = gr.Dropdown([(title, name) for name, title in ZOOS.items()], value=pdiff.DEFAULT_ZOO, label="Zoo")
            count = gr.Slider(1, MOST, DEFAULT, step=1, label="Networks to generate")
            seed = gr.Number(0, precision=0, label="Seed")
            sampler = gr.Radio([(title, name) for name, title in SAMPLERS.items()], value="ddim-50", label="Sampler")
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="pdiff-run")
                stop = gr.Button("Cancel", variant="stop", elem_id="pdiff-cancel")
        with gr.Column(scale=3):
            progress = gr.HTML(
                "<p>Press Generate: parameters come out of noise, become networks, and every one is tested.</p>",
                elem_id="pdiff-progress",
            )
            with gr.Row(min_height=PLOTS_HEIGHT, equal_height=True):
                latents = gr.Plot(label="Latents, from noise to networks", show_label=False, elem_id="pdiff-latents")
                accuracy = gr.Plot(label="Accuracy of every network", show_label=False, elem_id="pdiff-accuracy")
            summary = gr.HTML(elem_id="pdiff-summary", min_height=TABLE_HEIGHT)
    cancel = parts.cancel_by(stop, "pdiff_cancel", progress, [run.click])
    number = use_panel(handles, state, zoo, MOST)

    @parts.user_errors
    def generate_networks(cancel: parts.Cancel, *values: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            order = Order.of(values)
            yield from _generate(handles[order.zoo], order, cancel)

    run.click(
        generate_networks, [cancel, zoo, count, seed, sampler], [progress, latents, accuracy, summary, number, state],
        **JOBS, api_name="pdiff_generate", show_progress="minimal", show_progress_on=progress,
    )  # fmt: skip
    run.click(None, js=PICK_BRUSH)
    return zoo


def _generate(handle: ModelHandle, order: Order, cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    """Latents on their way, then the tested networks. Outputs as `_generate_panel` lists them."""
    from demos.pdiff_plots import accuracy_figure, latent_figure

    still = (gr.skip(),) * 6
    yield "<p>Loading the zoo</p>", *still[1:]
    originals: Any = None
    # The last event of a stage stays, so that every stage is seen.
    job = parts.Job(handle, partial(_work, order), cancel, lambda event: event.get("done", 1) < event.get("total", 1))
    try:
        for event in job:
            if "originals" in event:
                originals = event["originals"]
                continue
            picture = gr.skip()
            if event["latents"] is not None:
                picture = latent_figure(event["latents"], originals, event["text"])
            yield parts.bar(event["text"], event["done"], event["total"]), picture, *still[2:]
    except Cancelled:
        yield "<p>Cancelled. Nothing was kept.</p>", *still[1:]
        return
    result = job.result
    groups, ensemble = result["groups"], result["ensemble"]
    final = latent_figure(result["latents2d"], originals, f"{order.count} generated networks")
    best = int(result["state"]["accuracy"].argmax())
    yield (
        f"<p>Done: generated in {result['seconds'][0]:.1f} s, tested in {result['seconds'][1]:.1f} s.</p>",
        final,
        accuracy_figure(groups, ensemble),
        accuracy_table({**groups, "ensemble": ensemble}),
        gr.Slider(value=best, maximum=max(order.count - 1, 1), label=f"Network (best: {best})"),
        result["state"],
    )


def _work(order: Order, pipeline: Pipeline, report: Report) -> dict[str, Any]:
    """Runs where the zoo is: samples, decodes, tests. Reports the originals' latents in two dimensions, then steps."""
    import numpy as np

    from models.pdiff import measures
    from models.pdiff.pipeline import Checkpoints
    from models.pdiff.threads import one_thread

    name, steps = order.sampler.split("-")
    shown = 0.0

    def step(done: int, total: int, latents: Any) -> None:
        nonlocal shown
        due = time.perf_counter() - shown > FRAME_SECONDS
        if due:
            shown = time.perf_counter()
        report({"text": f"Denoising, step {done} of {total}", "done": done, "total": total,
                "latents": pipeline.project(latents).numpy() if due else None})  # fmt: skip

    def tested(what: str) -> Callable[[int, int], None]:
        words = f"on {len(pipeline.data.test_y):,} pictures"

        def test(done: int, total: int) -> None:
            report({"text": f"Testing {what} {done} of {total} {words}", "done": done, "total": total, "latents": None})

        return test

    report({"originals": pipeline.project(pipeline.original_latents).numpy()})
    with one_thread():
        started = time.perf_counter()
        made = pipeline.generate(order.count, order.seed, int(steps), name == "ddpm", step)
        sampled = time.perf_counter()
        wrong = pipeline.wrong(made, tested("generated network"))
        ended = time.perf_counter()
        noise = Checkpoints(measures.noised(pipeline.originals.vectors, COMPARED, NOISY, order.seed), "noise")
        groups = {
            "originals": measures.accuracies(pipeline.wrong(pipeline.originals, tested("original"))).numpy(),
            "generated": measures.accuracies(wrong).numpy(),
            "noise": measures.accuracies(pipeline.wrong(noise, tested("original with noise"))).numpy(),
        }
        ensemble = float(pipeline.evaluate(pipeline.ensemble())[0])
    assert made.latents is not None
    state: Generated = {
        "zoo": order.zoo,
        "latents": made.latents.numpy(),
        "accuracy": groups["generated"],
        "wrong": np.packbits(wrong.numpy(), axis=1),
    }
    return {
        "groups": groups, "ensemble": ensemble, "latents2d": pipeline.project(made.latents).numpy(),
        "seconds": (sampled - started, ended - sampled), "state": state,
    }  # fmt: skip


def _explanation() -> None:
    gr.Markdown(
        "**The idea.** Train a network, then keep training a few of its parameters and save them after every step. "
        "These checkpoints are the data. An autoencoder squeezes each into a short latent; a diffusion model learns "
        "the latents. From noise it makes new latents, the decoder makes parameters of them, and the result is a "
        "network.\n\n"
        "**What to expect.** P-diff samples new parameters near the average of one training run. Averaging gains "
        "accuracy too, so compare with “mean of 16” and the ensemble. From networks of different seeds it learns "
        "nothing that works: their neurons are permuted, and what lies between two of them is no network.\n\n"
        "**Here** everything is trained by this project in small; no weights of the paper were published. The picture "
        "is drawn from the shapes of the networks this tab uses."
    )
    parts.drawing(ASSETS / "how_it_works.png", "From checkpoints to latents and back")
