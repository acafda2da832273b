"""The whole pipeline in front of the audience: from an untrained network to generated ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.pdiff_parts import JOBS, accuracy_table
from models import pdiff
from models.errors import BadInput, Cancelled
from models.runtime import ModelHandle, Report

if TYPE_CHECKING:
    from models.pdiff.pipeline import Pipeline

FEWEST, MOST, GENERATED = 50, 300, 100
DRAW_SECONDS = 1.5
CURVES_HEIGHT, RESULT_HEIGHT = 300, 365  # px, so that nothing jumps when they fill
STAGES = {"collect": "Training and collecting", "autoencoder": "Autoencoder", "diffusion": "Latent diffusion"}
RECIPE = """
The same for a network and pictures of your own, one folder a class; a stopped run continues:

```
python -m models.pdiff.train --network torchvision:resnet18 --pictures FOLDER --kind norm --out mine.safetensors
```
"""


def live_panel(handle: ModelHandle) -> None:
    """Lays out the panel. handle: the zoo whose networks are trained; the work is done where it is."""
    gr.Markdown(
        "Everything from nothing, in front of you: train a network on noisy digits, keep a checkpoint after each step, "
        "learn an autoencoder and a latent diffusion on them, generate new networks, test them."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            checkpoints = gr.Slider(FEWEST, MOST, MOST, step=50, label="Checkpoints to collect (K)")
            seed = gr.Number(1, precision=0, label="Seed")
            with gr.Row():
                run = gr.Button("Run everything", variant="primary", elem_id="pdiff-live")
                stop = gr.Button("Cancel", variant="stop", elem_id="pdiff-live-cancel")
        with gr.Column(scale=3):
            progress = gr.HTML("<p>Takes one to two minutes on two cores.</p>", elem_id="pdiff-live-progress")
            with gr.Row(min_height=CURVES_HEIGHT):
                curves = gr.Plot(label="Losses", show_label=False, elem_id="pdiff-curves")
            with gr.Row(min_height=RESULT_HEIGHT):
                accuracy = gr.Plot(label="Accuracies", show_label=False, elem_id="pdiff-live-accuracy")
                summary = gr.HTML(elem_id="pdiff-live-summary")
    gr.Markdown(RECIPE)
    cancel = parts.cancel_by(stop, "pdiff_live_cancel", progress, [run.click])

    @parts.user_errors
    def run_live(cancel: parts.Cancel, checkpoints: float, seed: float) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            count, number = parts.whole("The number of checkpoints", checkpoints), parts.whole("The seed", seed)
            if not FEWEST <= count <= MOST:
                raise BadInput(f"Collect between {FEWEST} and {MOST} checkpoints; got {count}.")
            yield from _live(handle, count, number, cancel)

    run.click(
        run_live, [cancel, checkpoints, seed], [progress, curves, accuracy, summary], **JOBS, api_name="pdiff_live",
        show_progress="minimal", show_progress_on=progress,
    )  # fmt: skip


def _live(handle: ModelHandle, count: int, seed: int, cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    """Progress and curves, then accuracies. Outputs as `live_panel` lists them."""
    from demos.pdiff_plots import accuracy_figure, curves_figure

    started = time.perf_counter()
    losses: dict[str, list[float]] = {}
    drawn = 0.0
    job = parts.Job(handle, partial(_run, count, seed), cancel)
    yield parts.bar("Making the data set", 0, 1), curves_figure(losses), None, ""
    try:
        for event in job:
            if event.stage in STAGES:
                losses.setdefault(event.stage, []).append(event.loss)
            if time.perf_counter() - drawn > DRAW_SECONDS:
                drawn = time.perf_counter()
                text = f"{STAGES.get(event.stage, event.stage)}, {event.step} of {event.total}"
                yield parts.bar(text, event.step, event.total), curves_figure(losses), gr.skip(), gr.skip()
    except Cancelled:
        yield "<p>Cancelled.</p>", curves_figure(losses), None, ""
        return
    groups, ensemble = job.result
    yield (
        f"<p>Done in {time.perf_counter() - started:.0f} s: from no network at all to {GENERATED} new ones.</p>",
        curves_figure(losses),
        accuracy_figure(groups, ensemble),
        accuracy_table({**groups, "ensemble": ensemble}),
    )


def _run(count: int, seed: int, zoo: Pipeline, report: Report) -> tuple[dict[str, Any], float]:
    """Runs where the smallest zoo is: the whole pipeline anew. Reports `train.Progress`.

    Returns accuracies by group, and the ensemble's, in percent.
    """
    from models.pdiff import data, measures
    from models.pdiff.collect import collect
    from models.pdiff.pipeline import Pipeline
    from models.pdiff.threads import one_thread
    from models.pdiff.train import LIVE, Progress, fit
    from models.pdiff.zoo import ZOOS, Zoo

    def at(stage: str) -> Callable[..., None]:
        return lambda step, total, *_: report(Progress(stage, step, total, 0.0))

    recipe = ZOOS[pdiff.DEFAULT_ZOO]
    with one_thread():
        source = data.load(recipe.data)
        collection = collect(
            recipe.network, source, recipe.kind, count, seed,
            report=lambda step, total, loss: report(Progress("collect", step, total, loss)),
        )  # fmt: skip
        generator = fit(collection, LIVE, seed, report)
        pipeline = Pipeline("live", Zoo(collection, generator, {}), source)
        made = pipeline.generate(GENERATED, seed, 50, on_step=at("Denoising"))
        wrong = pipeline.wrong(made, at("Testing generated networks"))
        originals = pipeline.wrong(pipeline.originals, at("Testing originals"))
        groups = {
            "originals": measures.accuracies(originals).numpy(),
            "generated": measures.accuracies(wrong).numpy(),
        }
        return groups, float(pipeline.evaluate(pipeline.ensemble())[0])
