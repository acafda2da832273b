"""Compare: one prompt and seed through every student and the undistilled teacher, side by side, with what each cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.sdxl_lightning_parts import (
    JOBS,
    STEPS,
    TEACHER_STEPS,
    Studio,
    inline,
    milliseconds,
    prompt_box,
    said,
    seed_of,
)
from models.errors import Cancelled, WeightsNotFound
from models.runtime import Report

if TYPE_CHECKING:
    from models.sdxl_lightning.pipeline import Family, Order, Pictures

COLUMNS = (*STEPS, TEACHER_STEPS)
Place = tuple[str, int]  # row and steps
Cell = dict[str, str]


def compare_tab(studio: Studio) -> None:
    with gr.Row(equal_height=False):
        prompt = prompt_box(studio, "sdxl_lightning-compare-prompt")
        seed = gr.Number(0, precision=0, label="Seed", scale=0, min_width=140)
        with gr.Column(scale=0, min_width=260), gr.Row():
            run = gr.Button("Compare", variant="primary", elem_id="sdxl_lightning-compare", min_width=120)
            stop = gr.Button("Cancel", variant="stop", elem_id="sdxl_lightning-compare-cancel", min_width=120)
    progress = gr.HTML(
        said(
            "The same words and the same noise through the students of 1, 2, 4 and 8 steps and through the teacher "
            "they were distilled from, at the same steps and at 32."
        ),
        elem_id="sdxl_lightning-compare-progress",
    )
    grid = gr.HTML(elem_id="sdxl_lightning-compare-grid")
    with gr.Row():
        left = gr.Radio([(str(n), n) for n in STEPS], value=4, label="Slide between the student of so many steps")
        right = gr.Radio([(str(n), n) for n in COLUMNS], value=TEACHER_STEPS, label="and the teacher at")
    slider = gr.ImageSlider(
        label="Student and teacher",
        show_label=False,
        type="filepath",
        height=420,
        elem_id="sdxl_lightning-slider",
        interactive=False,
    )
    pictures = gr.State({}, time_to_live=3600)
    cancel = parts.cancel_by(stop, "sdxl_lightning_compare_cancel", progress, [run.click, prompt.submit])

    @parts.user_errors
    def compare_networks(cancel: parts.Cancel, prompt: str, seed: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            yield from _compare(studio, prompt, seed_of(seed), cancel)

    done = gr.on(
        [run.click, prompt.submit], compare_networks, [cancel, prompt, seed], [progress, grid, pictures],
        show_progress="minimal", show_progress_on=progress, api_name="sdxl_lightning_compare", **JOBS,
    )  # fmt: skip
    done.success(_slide, [pictures, left, right], slider, show_progress="hidden", api_visibility="private")
    gr.on(
        [left.change, right.change], _slide, [pictures, left, right], slider, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip


def _slide(pictures: dict[Place, Any], left: int, right: int) -> Any:
    """The two pictures of the slider, where both are there."""
    pair = pictures.get(("student", left)), pictures.get(("teacher", right))
    return pair if all(each is not None for each in pair) else None


def _compare(studio: Studio, prompt: str, seed: int, cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    """One picture after the other appears in the grid."""
    cells: dict[Place, Cell] = {}
    pictures: dict[Place, Any] = {}
    job = parts.Job(studio.handle, partial(_draw_all, prompt, seed), cancel)
    try:
        for event in job:
            if isinstance(event, str):
                yield parts.bar(event, len(pictures), 2 * len(COLUMNS) - 1), gr.skip(), gr.skip()
                continue
            place, made = event
            if isinstance(made, str):
                cells[place] = {"why": made}
            else:
                pictures[place], cells[place] = made.images[0], _shown(made)
            yield gr.skip(), _grid(cells, prompt), gr.skip()
    except Cancelled:
        yield said("Cancelled. What was finished is below."), _grid(cells, prompt), pictures
        return
    text = (
        f"Seed {seed}. The teacher runs with guidance {job.result:g}: two network evaluations a step. "
        "Students need one."
    )
    yield said(text), _grid(cells, prompt), pictures


def _draw_all(prompt: str, seed: int, family: Family, report: Report) -> float:
    """Runs where the networks are: reports what it works on as text, and (place, pictures or why there are none).

    Returns the teacher's guidance.
    """
    for place, order in _orders(family, prompt, seed):
        if isinstance(order, str):
            report((place, order))
            continue
        family.network(family.checked(order))  # read before the clock starts
        report((place, family.generate(order, partial(_tell, report, order.network.name.capitalize()))))
    return family.guidance


def _tell(report: Report, name: str, done: int, total: int, preview: Callable[[], Any]) -> None:
    report(f"{name}, step {done} of {total}")


def _orders(family: Family, prompt: str, seed: int) -> Iterator[tuple[Place, Order | str]]:
    """What to draw in each place, or the reason why it cannot be; students first."""
    from models.sdxl_lightning.pipeline import TEACHER, Order
    from models.sdxl_lightning.prompts import checked

    prompt = checked(prompt)
    for steps in STEPS:
        try:
            yield ("student", steps), Order(prompt, family.student(steps), seed=seed)
        except WeightsNotFound as error:
            yield ("student", steps), str(error)
    for steps in COLUMNS:
        if TEACHER in family.sources:
            yield ("teacher", steps), Order(prompt, TEACHER, steps=steps, seed=seed)
        else:
            yield ("teacher", steps), family.absent[TEACHER]


def _shown(made: Pictures) -> Cell:
    count = made.evaluations
    cost = f"{milliseconds(made.seconds.total)}, {count} evaluation{'s' * (count > 1)}"
    return {"src": inline(made.images[0]), "cost": cost}


def _grid(cells: dict[Place, Cell], prompt: str) -> str:
    """A table of pictures: students above, the teacher below, a column a step count. HTML."""
    head = "".join(f'<th scope="col">{n} step{"s" * (n > 1)}</th>' for n in COLUMNS)
    rows = ""
    for row, title in (("student", "Students"), ("teacher", "Teacher, not distilled")):
        rows += f'<tr><th scope="row">{title}</th>'
        for steps in COLUMNS:
            rows += f"<td>{_cell(cells.get((row, steps)), f'{title}, {steps} steps: {prompt}')}</td>"
        rows += "</tr>"
    return (
        f'<div class="lp-grid"><style>{STYLE}</style><table><caption>“{escape(prompt)}”</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Cell | None, alt: str) -> str:
    if cell is None:
        return ""
    if "why" in cell:
        return f'<p class="why">{escape(cell["why"])}</p>'
    return f'<img src="{cell["src"]}" alt="{escape(alt)}"><p>{escape(cell["cost"])}</p>'


STYLE = """
.lp-grid { overflow-x: auto; }
.lp-grid table { border-collapse: collapse; width: 100%; table-layout: fixed; }
.lp-grid table, .lp-grid tr, .lp-grid td, .lp-grid th { border: 0 !important; background: none !important; }
.lp-grid caption { text-align: left; font-weight: 600; }
.lp-grid td, .lp-grid th { padding: 0 .5rem 0 0 !important; vertical-align: top; text-align: left; font-weight: 400; }
.lp-grid thead th { font-weight: 600; }
.lp-grid tr > :first-child { width: 6.5rem; }
.lp-grid img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: .4rem; background: white; }
.lp-grid p { margin: .15rem 0 .4rem; font-size: .9em; color: var(--body-text-color-subdued); }
"""
