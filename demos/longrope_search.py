"""The LongRoPE tab's Search panel: the evolutionary search over rescale factors, live."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from models import longrope
from models.errors import BadInput, Cancelled
from models.runtime import ModelHandle, Report

if TYPE_CHECKING:
    from models.longrope.evolution import Event, Fitness
    from models.longrope.pipeline import Model

SCALES = (2, 4, 8)
PRESETS = {"demo": "Demo: 152 tables", "paper": "Paper: 1 344 tables"}
OBJECTIVES = {
    "needle": "Loss of the hidden key (LongRoPE2's)",
    "text": "Loss of a text of yours (LongRoPE's perplexity)",
}
SPARSE_TOKENS, PROMPTS = 256, 4
LONGEST_TEXT = 1_000_000  # characters
REDRAW_SECONDS = 2.0


@dataclass(frozen=True)
class Chosen:
    """What the controls hold, checked: over the API anything can arrive."""

    scale: int
    preset: str
    seed: int
    objective: str
    text: str
    n_hat: bool

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Chosen:
        scale, preset, seed, objective, text, n_hat = values
        if scale not in SCALES or preset not in PRESETS or objective not in OBJECTIVES:
            raise BadInput(
                f"Choose a scale of {', '.join(map(str, SCALES))}, the preset demo or paper, and needle or text."
            )
        try:
            number = int(seed)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput("The seed is not a whole number. Type one, such as 42.") from error
        return cls(int(scale), preset, number, objective, str(text or ""), bool(n_hat))

    @property
    def log_name(self) -> str:
        """Another search, another log."""
        text = sha256(self.text.encode()).hexdigest()[:8] if self.objective == "text" else "needle"
        return f"search-{self.scale}-{self.preset}-{self.seed}-{text}{'-n' if self.n_hat else ''}.jsonl"

    def fitness(self, model: Model) -> Fitness:
        from models.longrope.fitness import NeedleFitness, PerplexityFitness

        length = self.scale * model.window
        if self.objective == "text":
            return PerplexityFitness(model, self.text, length, PROMPTS, sparse=SPARSE_TOKENS)
        return NeedleFitness(model, length, PROMPTS, sparse=SPARSE_TOKENS)


def search_tab(handle: ModelHandle, table: gr.Textbox, kept: gr.Number, jobs: dict[str, Any]) -> None:
    """Lays out the panel. table, kept: where a found table and n-hat go. jobs: the queue long runs share."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            scale = gr.Radio([(f"{s}x: {8 * s}k", s) for s in SCALES], value=4, label="Extend the window")
            preset = gr.Radio([(title, name) for name, title in PRESETS.items()], value="demo", label="Preset")
            with gr.Row():
                run = gr.Button("Search", variant="primary", elem_id="longrope-search")
                stop = gr.Button("Stop", variant="stop", elem_id="longrope-search-stop")
            gr.Markdown(
                f"Pressing Search again goes on where it stopped. A table is scored on {PROMPTS} prompts of "
                f"{SPARSE_TOKENS} tokens whose positions are spread over the whole length: cheap enough to watch. "
                "Check a found table on whole prompts with the Passkey tab."
            )
            with gr.Accordion("More", open=False):
                objective = gr.Radio(
                    [(title, name) for name, title in OBJECTIVES.items()], value="needle", label="What is minimised"
                )
                text = gr.Textbox("", lines=4, label="A text of yours", max_length=LONGEST_TEXT)
                n_hat = gr.Checkbox(False, label="Then search n-hat, the first tokens that keep their angles")
                seed = gr.Number(42, precision=0, label="Seed")
            use = gr.Button("Use the best table in Passkey", elem_id="longrope-use")
            with gr.Row():
                csv = gr.DownloadButton("CSV", interactive=False, elem_id="longrope-csv")
                json = gr.DownloadButton("JSON for transformers", interactive=False, elem_id="longrope-json")
        with gr.Column(scale=3):
            progress = gr.HTML("<p>Seeds are PI, NTK and YaRN; children must beat them.</p>", elem_id="longrope-found")
            plot = gr.Plot(label="Best loss so far, and the factors", show_label=False, elem_id="longrope-search-plot")
    found = gr.State(None, time_to_live=3600)
    logs = gr.State(None, time_to_live=3600)  # a private folder: the search's log outlives a stop
    cancel = parts.cancel_by(stop, "longrope_search_stop", progress, [run.click])

    @parts.user_errors
    def search_factors(cancel: parts.Cancel, logs: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            chosen = Chosen.of(values)
            folder = logs or str(parts.private_folder())
            yield from _search(handle, chosen, Path(folder), cancel)

    run.click(
        search_factors, [cancel, logs, scale, preset, seed, objective, text, n_hat],
        [progress, plot, found, csv, json, logs], **jobs,
        api_name="longrope_search", show_progress="minimal", show_progress_on=progress,
    )  # fmt: skip

    @parts.user_errors
    def use_table(found: dict | None) -> tuple[str, int]:
        if found is None:
            raise BadInput("There is no table yet. Press Search first.")
        return found["csv"], found["n_hat"]

    use.click(use_table, found, [table, kept], api_name="longrope_use_table")


def _search(handle: ModelHandle, chosen: Chosen, folder: Path, cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    from demos.longrope_plots import search_figure

    nothing = (gr.skip(),) * 5
    yield "<p>Loading the model</p>", *nothing[:4], str(folder)
    log = folder / chosen.log_name
    curve: list[float] = []
    others: dict[str, Any] = {}
    latest: Event | None = None
    drawn, ended = 0.0, "Done"
    try:
        for kind, value in parts.Job(
            handle, partial(_evolve, chosen, log.read_bytes() if log.exists() else b""), cancel
        ):
            if kind == "others":
                others = value
                continue
            if kind == "waiting":
                yield f"<p>Others have their turn: {value} before you</p>", *nothing
                continue
            latest, lines = value
            with log.open("ab") as file:
                file.write(lines)
            curve.append(latest.best.fitness)
            text = _search_text(latest)
            if time.monotonic() - drawn > REDRAW_SECONDS:
                drawn = time.monotonic()
                yield text, search_figure(curve, latest.best.factors, others, chosen.scale), *nothing[:4]
            elif not latest.replayed:
                yield text, *nothing
    except Cancelled:
        ended = "Stopped; Search goes on from here"
    if latest is None:
        yield f"<p>{ended}.</p>", *nothing
        return
    figure = search_figure(curve, latest.best.factors, others, chosen.scale)
    csv, json = _table_files(handle, latest, chosen.scale, folder)
    state = {"csv": csv.read_text(), "n_hat": latest.best.n_hat}
    buttons = (
        gr.DownloadButton(value=str(csv), interactive=True),
        gr.DownloadButton(value=json and str(json), interactive=json is not None),
    )
    yield f"<p>{ended}. {_search_text(latest)}</p>", figure, state, *buttons, str(folder)


def _evolve(chosen: Chosen, log: bytes, model: Model, report: Report) -> None:
    """Runs where the model is, by turns with others. Reports ("others", the factors of other methods), then for every
    evaluation ("event", (event, what it adds to the log)), and while it waits ("waiting", how many are before it).

    log: of the same search, stopped before; empty for a new one.
    """
    from models.longrope import evolution

    c = model.config
    others = (("PI", "pi"), ("NTK", "ntk"), ("YaRN", "yarn"))
    length = chosen.scale * model.window
    report(("others", {title: model.scaling(method, length).rescale_factors for title, method in others}))
    preset = evolution.paper if chosen.preset == "paper" else evolution.demo
    settings = preset(c.rotary_dim // 2, float(chosen.scale), chosen.seed)
    if chosen.n_hat:
        settings = replace(settings, n_hat_options=evolution.N_HAT_OPTIONS)
    seeds = evolution.default_seeds(c.rotary_dim, c.base, model.window, float(chosen.scale))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / chosen.log_name
        path.write_bytes(log)
        with path.open("rb") as added:
            added.seek(len(log))
            with longrope.LANE.job(lambda before: report(("waiting", before))) as offer:
                for event in evolution.search(chosen.fitness(model), settings, seeds, path):
                    report(("event", (event, added.read())))
                    offer()


def _search_text(event: Event) -> str:
    best = event.best
    n_hat = f", n-hat {best.n_hat}" if best.n_hat else ""
    return (
        f'<progress max="{event.total}" value="{event.evaluated}"></progress> {event.evaluated} of {event.total} '
        f"tables, iteration {event.iteration}, best loss {best.fitness:.3f} nats a token{n_hat}"
    )


def _table_files(handle: ModelHandle, event: Event, scale: int, folder: Path) -> tuple[Path, Path | None]:
    """The best table as CSV and as JSON, which has no place for n-hat."""
    table, described = handle.run(partial(_tables, event, scale))
    csv, json = folder / f"longrope-{scale}x.csv", folder / f"longrope-{scale}x.json"
    csv.write_text(table)
    if described is None:
        return csv, None
    json.write_text(described)
    return csv, json


def _tables(event: Event, scale: int, model: Model, report: Report) -> tuple[str, str | None]:
    """Runs where the model is."""
    from models.longrope.tables import write_csv, write_json

    best = model.scaling("longrope", scale * model.window, event.best.factors, n_hat=event.best.n_hat)
    return write_csv(best.rescale_factors), None if best.n_hat else write_json(best)
