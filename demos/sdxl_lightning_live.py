"""Live mode: a new picture with every keystroke; the newest one wins."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.sdxl_lightning_parts import SHORT, STEP_CHOICES, Studio, caption, keep, prompt_box, said, seed_of, steps_of
from models.errors import UserError
from models.runtime import Report

if TYPE_CHECKING:
    from models.sdxl_lightning.pipeline import Family, Order, Pictures

LIVE_STEPS = 1


def live_tab(studio: Studio) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            prompt = prompt_box(studio, "sdxl_lightning-live-prompt", "Type: the picture follows")
            steps = gr.Radio(STEP_CHOICES, value=LIVE_STEPS, label="Steps", elem_id="sdxl_lightning-live-steps")
            seed = gr.Number(0, precision=0, label="Seed")
            draw = gr.Button("Draw", variant="primary", elem_id="sdxl_lightning-live-run")
        with gr.Column(scale=2, min_width=360):
            picture = gr.Image(
                label="Picture", show_label=False, interactive=False, height=480, elem_id="sdxl_lightning-live-picture",
                buttons=["download", "fullscreen"], alt_text="What the words above show",
            )  # fmt: skip
            under = gr.HTML(
                said("Type anything. The first picture takes a few seconds: the model is loaded then."),
                elem_id="sdxl_lightning-live-said",
            )

    @parts.user_errors
    def draw_live(prompt: str, steps: Any, seed: Any) -> tuple[Any, str]:
        if isinstance(prompt, str) and not prompt.strip():
            return gr.skip(), said("Type what the picture should show.")
        drawn = studio.handle.run(partial(_draw, prompt, steps, seed))
        if isinstance(drawn, str):
            return gr.skip(), said(drawn)
        label, order, made = drawn
        return keep(label, order, made)[0], said(caption(made), *made.notes)

    # `change`, not `input`: pasted and dictated words count too.
    gr.on(
        [prompt.change, steps.change, seed.change, draw.click], draw_live, [prompt, steps, seed], [picture, under],
        trigger_mode="always_last", show_progress="hidden", api_name="sdxl_lightning_live", **SHORT,
    )  # fmt: skip


def _draw(prompt: str, steps: Any, seed: Any, family: Family, report: Report) -> tuple[str, Order, Pictures] | str:
    """Runs where the networks are. What is wrong is said quietly: the next keystroke may mend it."""
    from models.sdxl_lightning.pipeline import Order

    try:
        order = Order(prompt, family.student(steps_of(steps)), seed=seed_of(seed))
        return family.label, order, family.generate(order)
    except UserError as error:
        return str(error)
