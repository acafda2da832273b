"""Seeds and walks: many pictures of one prompt, and the way from one prompt to another as a film."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.sdxl_lightning_parts import (
    JOBS,
    STEP_CHOICES,
    Studio,
    caption,
    keep,
    prompt_box,
    said,
    seed_of,
    steps_of,
)
from models.errors import Cancelled
from models.runtime import Report

if TYPE_CHECKING:
    import numpy as np

    from models.sdxl_lightning.pipeline import Family, Order, Pictures

GRID, WALK_STEPS, FRAMES, MOST_FRAMES, RATE = 16, 2, 25, 64, 10
TOWARDS = {"embedded": "a red pear", "official": "a snowy owl, photograph"}


def seeds_and_walks_tab(studio: Studio) -> None:
    gr.Markdown("### Seeds: one prompt, many pictures")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            prompt = prompt_box(studio, "sdxl_lightning-seeds-prompt")
            steps = gr.Radio(STEP_CHOICES, value=4, label="Steps")
            first = gr.Number(0, precision=0, label="First seed")
            count = gr.Slider(4, 64, GRID, step=4, label="Pictures")
            with gr.Row():
                run = gr.Button("Draw them", variant="primary", elem_id="sdxl_lightning-seeds-run")
                stop = gr.Button("Cancel", variant="stop", elem_id="sdxl_lightning-seeds-cancel")
            under = gr.HTML(elem_id="sdxl_lightning-seeds-said")
        with gr.Column(scale=2, min_width=360):
            grid = gr.Gallery(
                label="One picture a seed", columns=4, height=480, interactive=False, object_fit="contain",
                elem_id="sdxl_lightning-seeds-grid", buttons=["download", "download_all", "fullscreen"],
            )  # fmt: skip
    gr.Markdown("### Walk: from one prompt to another, with the same noise")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            start = prompt_box(studio, "sdxl_lightning-walk-from", "From")
            end = prompt_box(studio, "sdxl_lightning-walk-to", "To", TOWARDS[studio.tier])
            walk_steps = gr.Radio(STEP_CHOICES, value=WALK_STEPS, label="Steps")
            seed = gr.Number(0, precision=0, label="Seed")
            frames = gr.Slider(5, MOST_FRAMES, FRAMES, step=1, label="Pictures on the way")
            with gr.Row():
                walk = gr.Button("Walk", variant="primary", elem_id="sdxl_lightning-walk-run")
                halt = gr.Button("Cancel", variant="stop", elem_id="sdxl_lightning-walk-cancel")
            walked = gr.HTML(elem_id="sdxl_lightning-walk-said")
        with gr.Column(scale=2, min_width=360):
            film = gr.Video(
                label="The way there and back", interactive=False, height=420, autoplay=True, loop=True,
                elem_id="sdxl_lightning-walk-film",
            )  # fmt: skip
            gif = gr.DownloadButton("Download as GIF", interactive=False, elem_id="sdxl_lightning-walk-gif")

    cancel = parts.cancel_by(stop, "sdxl_lightning_seeds_cancel", under, [run.click])
    cancel_walk = parts.cancel_by(halt, "sdxl_lightning_walk_cancel", walked, [walk.click])

    @parts.user_errors
    def draw_seeds(cancel: parts.Cancel, prompt: str, steps: Any, first: Any, count: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            yield from _seeds(studio, (prompt, steps, first, count), cancel)

    @parts.user_errors
    def walk_prompts(cancel: parts.Cancel, *values: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            yield from _walk(studio, values, cancel)

    run.click(
        draw_seeds, [cancel, prompt, steps, first, count], [under, grid], api_name="sdxl_lightning_seeds",
        show_progress="minimal", show_progress_on=under, **JOBS,
    )  # fmt: skip
    walk.click(
        walk_prompts, [cancel_walk, start, end, walk_steps, seed, frames], [walked, film, gif],
        api_name="sdxl_lightning_walk", show_progress="minimal", show_progress_on=walked, **JOBS,
    )  # fmt: skip


def _seeds(studio: Studio, values: tuple[Any, ...], cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    prompt, steps, first, count = values
    number = parts.whole("The number of pictures", count, 1, 64)
    job = parts.Job(studio.handle, partial(_draw, prompt, steps_of(steps), seed_of(first), number), cancel)
    try:
        for done, total in job:
            yield parts.bar(f"Network pass {done} of {total}", done, total), gr.skip()
    except Cancelled:
        yield said("Cancelled."), gr.skip()
        return
    label, order, made = job.result
    paths = keep(label, order, made)
    pictures = [(path, f"seed {seed}") for path, seed in zip(paths, made.seeds, strict=True)]
    yield said(caption(made), *made.notes), pictures


def _draw(
    prompt: str, steps: int, seed: int, count: int, family: Family, report: Report
) -> tuple[str, Order, Pictures]:
    """Runs where the networks are; reports (passes done, passes in all)."""
    from models.sdxl_lightning.pipeline import Order

    order = Order(prompt, family.student(steps), seed=seed, count=count)
    return family.label, order, family.generate(order, lambda done, total, _: report((done, total)))


def _walk(studio: Studio, values: tuple[Any, ...], cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    start, end, steps, seed, frames = values
    count, first = parts.whole("The number of pictures", frames, 2, MOST_FRAMES), seed_of(seed)
    job = parts.Job(studio.handle, partial(_collect, start, end, steps_of(steps), first, count), cancel)
    try:
        for done in job:
            yield parts.bar(f"Picture {done} of {count}", done, count), gr.skip(), gr.skip()
    except Cancelled:
        yield said("Cancelled."), gr.skip(), gr.skip()
        return
    seen = job.result
    folder = parts.private_folder()
    there_and_back = seen + seen[-2:0:-1]
    film, gif = folder / "walk.mp4", folder / "walk.gif"
    _save(there_and_back, film, gif)
    text = said(f"{count} pictures from “{start.strip()}” to “{end.strip()}”, seed {first}.")
    yield text, str(film), gr.DownloadButton(value=str(gif), interactive=True)


def _collect(
    start: str, end: str, steps: int, seed: int, count: int, family: Family, report: Report
) -> list[np.ndarray]:
    """Runs where the networks are: the frames; a cancelled walk stops within a network pass."""
    from models.sdxl_lightning.pipeline import Order

    seen: list[np.ndarray] = []
    order = Order(start, family.student(steps), seed=seed)
    for frame in family.walk(order, end, count, lambda done, total, _: report(len(seen))):
        seen.append(frame)
    return seen


def _save(frames: list[np.ndarray], film: Path, gif: Path) -> None:
    from PIL import Image

    from models.video import Writer

    height, width = frames[0].shape[:2]
    with Writer(film, width, height, Fraction(RATE)) as writer:
        for frame in frames:
            writer.write(frame)
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(gif, save_all=True, append_images=others, duration=1000 // RATE, loop=0)
