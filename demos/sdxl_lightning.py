"""The SDXL-Lightning tab: words to pictures in 1, 2, 4 or 8 steps, live, compared, walked through, with evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.registry import AppOptions, demo
from demos.sdxl_lightning_compare import compare_tab
from demos.sdxl_lightning_evidence import explanation, show_evidence
from demos.sdxl_lightning_live import live_tab
from demos.sdxl_lightning_parts import (
    DEFAULT_STEPS,
    EXAMPLES,
    FORMS,
    JOBS,
    MOST_TEACHER_STEPS,
    SIZES,
    STEP_CHOICES,
    STEPS,
    TEACHER_STEPS,
    Studio,
    caption,
    keep,
    lora_path,
    new_seed,
    number,
    prompt_box,
    said,
    seed_of,
    size_of,
    steps_of,
    student,
)
from demos.sdxl_lightning_walk import seeds_and_walks_tab
from models import sdxl_lightning
from models.errors import BadInput, Cancelled
from models.runtime import ModelHandle, ModelRuntime, Report

if TYPE_CHECKING:
    from models.sdxl_lightning.pipeline import Family, Order, Pictures

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "sdxl_lightning"
BYTES = {"embedded": 400_000_000, "official": 9_000_000_000}
DESCRIPTIONS = {"embedded": "A small latent text-to-image model, 256 x 256", "official": "SDXL with its students"}
TEACHER_CHOICE = ("Teacher, not distilled", "teacher")
MOST_AT_ONCE, MOST_KEPT = 16, 60
WHOLE = "from words alone"
NO_NEGATIVE = (
    "Not used: a student follows its prompt in one pass a step. Guidance was distilled into it, so there is no second "
    "pass that a negative prompt could steer."
)
NO_GUIDANCE = "Only the teacher has guidance; the students learned its result."
POLICY = (
    "**What the official tier may be used for.** SDXL and SDXL-Lightning are under the CreativeML Open RAIL++-M "
    "licence, whose use restrictions bind everybody who runs them. Neither publisher ships a safety filter with these "
    "networks, and this app adds none and no watermark: pictures can be offensive or not safe for work. Whoever starts "
    "this tier for others answers for what they can see; start it with `--auth`, and do not offer it to minors."
)

# Pictures of 256 pixels are shown as large as their place; a browser would leave them small.
STYLE = """
#sdxl_lightning-picture img, #sdxl_lightning-live-picture img { width: 100%; height: 100%; object-fit: contain; }
"""


def build(options: AppOptions, runtime: ModelRuntime) -> None:
    """Lays out the tab and wires its events. Called inside the demo's `gr.Tab`."""
    folder = options.weights_dir if options.tier == "official" else None
    handle: ModelHandle[Family] = runtime.register(
        "sdxl_lightning",
        sdxl_lightning.loader(options.tier, folder),
        estimate_bytes=BYTES[options.tier],
        description=DESCRIPTIONS[options.tier],
    )
    studio = Studio(handle, options.tier)
    parts.paper_card(demo("sdxl_lightning"))
    with gr.Tabs():
        with gr.Tab("Generate"):
            _generate_tab(studio)
        with gr.Tab("Live"):
            live_tab(studio)
        with gr.Tab("Compare"):
            compare_tab(studio)
        with gr.Tab("Seeds and walks"):
            seeds_and_walks_tab(studio)
        with gr.Tab("Evidence"):
            show_evidence(ASSETS / "evidence")
        with gr.Tab("How it works"):
            explanation(ASSETS)
    if options.tier == "official":
        gr.Markdown(POLICY, elem_id="sdxl_lightning-policy")
    parts.status_line(handle)
    gr.HTML(f"<style>{STYLE}</style>", padding=False)


# ---- generate ---------------------------------------------------------------------------------------------


def _generate_tab(studio: Studio) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            prompt = prompt_box(studio, "sdxl_lightning-prompt")
            steps = gr.Radio(
                [*STEP_CHOICES, TEACHER_CHOICE], value=DEFAULT_STEPS, label="Network", elem_id="sdxl_lightning-steps"
            )
            with gr.Row():
                seed = gr.Number(0, precision=0, label="Seed", min_width=110, elem_id="sdxl_lightning-seed")
                fresh = gr.Checkbox(False, label="New seed each time", min_width=150)
            with gr.Row():
                count = gr.Slider(1, MOST_AT_ONCE, 1, step=1, label="Pictures", min_width=110)
                size = gr.Dropdown(
                    list(SIZES[studio.tier]), value=SIZES[studio.tier][0], label="Size", allow_custom_value=True,
                    min_width=110,
                )  # fmt: skip
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="sdxl_lightning-run")
                stop = gr.Button("Cancel", variant="stop", elem_id="sdxl_lightning-cancel")
            with gr.Accordion("Start from a picture", open=False):
                start = parts.image_file(
                    label="Picture", sources=["upload", "clipboard"], height=180, elem_id="sdxl_lightning-start"
                )
                strength = gr.Radio(
                    _strengths(DEFAULT_STEPS), value=DEFAULT_STEPS // 2, label="Strength: steps that are run",
                    elem_id="sdxl_lightning-strength",
                )  # fmt: skip
            with gr.Accordion("Reuse a picture's settings", open=False):
                reuse = gr.File(
                    label="A PNG made here", file_types=[".png"], height=120, elem_id="sdxl_lightning-reuse"
                )
            with gr.Accordion("More", open=False):
                form = gr.Dropdown(FORMS, value="best", label="The student as")
                teacher_steps = gr.Slider(1, MOST_TEACHER_STEPS, TEACHER_STEPS, step=1, label="Steps of the teacher")
                guidance = gr.Slider(
                    1, 15, 3, step=0.5, label="Guidance of the teacher", info=NO_GUIDANCE, interactive=False
                )
                gr.Textbox(
                    "", label="Negative prompt", info=NO_NEGATIVE, interactive=False, elem_id="sdxl_lightning-negative"
                )
                lora = gr.File(label="Your own LoRA on top (safetensors)", file_types=[".safetensors"], height=110)
                lora_scale = gr.Slider(0, 2, 1, step=0.05, label="LoRA strength")
        with gr.Column(scale=2, min_width=360):
            picture = gr.Image(
                label="Picture", show_label=False, format="png", interactive=False, height=480,
                elem_id="sdxl_lightning-picture", buttons=["fullscreen"], alt_text="The picture that was drawn last",
            )  # fmt: skip
            under = gr.HTML(said("Press Generate, or click an example below."), elem_id="sdxl_lightning-said")
            with gr.Row():
                save = gr.DownloadButton("Download PNG", interactive=False, elem_id="sdxl_lightning-download")
            gallery = gr.Gallery(
                label="This session's pictures, newest first: click one to see it large", columns=6, height=190,
                fit_columns=False, allow_preview=False, interactive=False, object_fit="contain",
                elem_id="sdxl_lightning-gallery", buttons=["download_all"],
            )  # fmt: skip
    kept = gr.State([], time_to_live=3600)  # paths of the PNG files, newest first
    examples = gr.Examples(
        [[text] for text in EXAMPLES[studio.tier]], prompt, cache_examples=False,
        label="Examples: click one to draw it", api_visibility="private",
    )  # fmt: skip
    filled = examples.load_input_event
    cancel = parts.cancel_by(stop, "sdxl_lightning_cancel", under, [run.click, prompt.submit], [filled])
    controls = [
        prompt,
        steps,
        seed,
        fresh,
        count,
        size,
        start,
        strength,
        form,
        teacher_steps,
        guidance,
        lora,
        lora_scale,
    ]
    outputs = [picture, under, seed, gallery, kept, save]

    @parts.user_errors
    def generate_pictures(cancel: parts.Cancel, kept: list[str], *values: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            yield from _generate(studio, values, kept, cancel)

    job: dict[str, Any] = JOBS | {"show_progress": "minimal", "show_progress_on": under}
    gr.on(
        [run.click, prompt.submit], generate_pictures, [cancel, kept, *controls], outputs,
        api_name="sdxl_lightning_generate", **job,
    )  # fmt: skip
    filled.then(_example(studio), [cancel, kept, prompt], outputs, api_visibility="private", **job)

    steps.change(
        lambda steps: (
            gr.Radio(_strengths(steps), value=max(1, len(_strengths(steps)) // 2)),
            gr.Slider(interactive=steps == "teacher"),
        ),
        steps, [strength, guidance], api_name="sdxl_lightning_strengths", queue=False, show_progress="hidden",
    )  # fmt: skip

    @parts.user_errors
    def show_kept(kept: list[str], event: gr.SelectData) -> tuple[Any, ...]:
        path = kept[event.index]
        return path, gr.DownloadButton(value=path, interactive=True), said(_described(path))

    gallery.select(show_kept, kept, [picture, save, under], show_progress="hidden", api_visibility="private")

    @parts.user_errors
    def reuse_settings(file: str | None) -> tuple[Any, ...]:
        if file is None:
            return (gr.skip(),) * 8
        return _reused(file)

    reuse.change(
        reuse_settings, reuse, [prompt, steps, seed, fresh, size, teacher_steps, guidance, under],
        api_name="sdxl_lightning_reuse", show_progress="hidden",
    )  # fmt: skip


def _example(studio: Studio) -> Callable[[parts.Cancel, list[str], str], Iterator[tuple[Any, ...]]]:
    """Draws an example with the settings the tab opens with."""

    @parts.user_errors
    def draw_example(cancel: parts.Cancel, kept: list[str], prompt: str) -> Iterator[tuple[Any, ...]]:
        size = SIZES[studio.tier][0]
        values = (prompt, DEFAULT_STEPS, 0, False, 1, size, None, 1, "best", TEACHER_STEPS, None, None, 1)
        with parts.turn(cancel):
            yield from _generate(studio, values, kept, cancel)

    return draw_example


def _strengths(steps: Any) -> list[tuple[str, int]]:
    """Only whole numbers of steps can be run: k of N."""
    n = TEACHER_STEPS if steps == "teacher" else int(steps)
    shown = range(1, n + 1) if n <= max(STEPS) else range(n // 8, n + 1, n // 8)
    return [(f"{k} of {n} ({k / n:.0%})", k) for k in shown]


@dataclass(frozen=True)
class Wish:
    """An order whose network is not looked up yet. steps: of a student; None for the teacher. rest: of the order."""

    prompt: str
    steps: int | None
    form: str
    rest: dict[str, Any]

    def order(self, family: Family) -> Order:
        from models.sdxl_lightning.pipeline import TEACHER, Order

        network = TEACHER if self.steps is None else student(family, self.steps, self.form)
        return Order(self.prompt, network, **self.rest)


def _wish(values: tuple[Any, ...]) -> Wish:
    """What the controls hold, checked: over the API anything can arrive."""
    from models.images import read_image

    prompt, steps, seed, fresh, count, size, start, strength, form, teacher_steps, guidance, lora, lora_scale = values
    is_teacher = steps == "teacher"
    number_of_steps = None if is_teacher else steps_of(steps)
    rest = {
        "steps": parts.whole("The teacher's steps", teacher_steps, 1, MOST_TEACHER_STEPS) if is_teacher else None,
        "seed": new_seed() if fresh else seed_of(seed),
        "count": parts.whole("The number of pictures", count, 1, MOST_AT_ONCE),
        "size": size_of(size),
        "guidance": number("Guidance", guidance, 1, 30) if is_teacher and guidance is not None else None,
        "picture": read_image(start) if start else None,
        "strength": parts.whole("The strength", strength, 1, MOST_TEACHER_STEPS) if start else None,
        "lora": lora_path(lora),
        "lora_scale": number("The LoRA's strength", lora_scale, 0, 2),
    }
    return Wish(prompt, number_of_steps, form, rest)


def _generate(
    studio: Studio, values: tuple[Any, ...], kept: list[str], cancel: parts.Cancel
) -> Iterator[tuple[Any, ...]]:
    """Previews on the way, then the pictures. Outputs as `_generate_tab` lists them."""
    still = (gr.skip(),) * 4
    job = parts.Job(studio.handle, partial(_draw, _wish(values)), cancel)
    try:
        for done, total, image in job:
            yield gr.skip() if image is None else image, parts.bar(f"Step {done} of {total}", done, total), *still
    except Cancelled:
        yield gr.skip(), said("Cancelled. Nothing was kept."), *still
        return
    label, order, made = job.result
    paths = keep(label, order, made)
    kept = [*paths, *kept][:MOST_KEPT]
    names = f"{order.network.name}, seed {order.seed}" + f" to {made.seeds[-1]}" * (order.count > 1)
    yield (
        paths[0],
        said(caption(made), names, *made.notes),
        order.seed,
        kept,
        kept,
        gr.DownloadButton(value=paths[0], interactive=True),
    )


def _draw(wish: Wish, family: Family, report: Report) -> tuple[str, Order, Pictures]:
    """Runs where the networks are: draws, and reports (done, total, preview or None for the last step)."""
    order = wish.order(family)

    def on_step(done: int, total: int, preview: Callable[[], Any]) -> None:
        report((done, total, preview() if done < total else None))

    return family.label, order, family.generate(order, on_step)


def _described(path: str) -> str:
    from models.sdxl_lightning import metadata

    return metadata.read(path).describe().replace("\n", " · ")


def _reused(file: str) -> tuple[Any, ...]:
    """The controls' values from a picture's settings."""
    from models.sdxl_lightning import metadata

    found = metadata.read(file)
    is_teacher = found.network == "teacher"
    if not is_teacher and found.steps not in STEPS:
        raise BadInput(f"{Path(file).name} was drawn in {found.steps} steps, which no student here has.")
    note = f"Settings of “{found.prompt}” are set. "
    note += f"It was drawn from a picture ({found.strength}): add that too. " if found.strength else ""
    note += f"It used the LoRA {found.lora}: add that too." if found.lora else ""
    return (
        found.prompt,
        "teacher" if is_teacher else found.steps,
        found.seed,
        False,
        f"{found.width} x {found.height}",
        found.steps if is_teacher else gr.skip(),
        found.guidance if found.guidance is not None else gr.skip(),
        said(note),
    )
