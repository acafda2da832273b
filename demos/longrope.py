"""The LongRoPE tab: passkeys in long texts, the search for rescale factors, costs, evidence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.longrope_evidence import show_evidence
from demos.registry import AppOptions, demo
from models import longrope
from models.errors import BadInput, Cancelled
from models.runtime import Handle, Runtime

if TYPE_CHECKING:
    from models.longrope.engine import Reading
    from models.longrope.evolution import Event
    from models.longrope.pipeline import Model
    from models.longrope.rope import RopeScaling

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "longrope"
METHODS = {
    "none": "None",
    "pi": "PI",
    "ntk": "NTK",
    "dynamic_ntk": "Dynamic NTK",
    "yarn": "YaRN",
    "longrope": "LongRoPE",
    "longrope2": "LongRoPE2 shape",
    "streaming": "StreamingLLM (control)",
}
SHORTEST, LONGEST, DEFAULT = 9, 21, 11  # powers of two: 512 tokens to 2 048k
MODES = {
    "exact": "Exact: every token sees all before it. Time grows with the square of the length.",
    "blockwise": "Blockwise: context blocks see themselves and the anchor, the question sees all. Linear in length.",
}
KV_FORMATS = ("float32", "bfloat16", "int8", "int4")
MAX_TRIALS, MAX_TEXT = 20, 12_000_000
EMBEDDED_BYTES, OFFICIAL_BYTES = 900_000_000, 16e9
SCALES = (2, 4, 8)
SPARSE_TOKENS, SEARCH_PROMPTS = 400, 2
# One long run at a time: two would only slow each other down.
JOBS: dict[str, Any] = {"concurrency_id": "longrope", "concurrency_limit": 1}
HEADS = ["method", "mode", "tokens", "depth", "key", "answer", "right", "seconds", "tokens/s"]


def build(options: AppOptions, runtime: Runtime) -> None:
    """Lays out the tab and wires its events. Called inside the demo's `gr.Tab`."""
    official = options.tier == "official"
    handle = runtime.register(
        "longrope",
        longrope.loader(options.tier, options.weights_dir),
        estimate_bytes=int(OFFICIAL_BYTES if official else EMBEDDED_BYTES),
        description="A long-context model" if official else "SmolLM2-135M-Instruct, trained window 8 192",
    )
    parts.paper_card(demo("longrope"))
    with gr.Tabs():
        with gr.Tab("Passkey"):
            table = _passkey_tab(handle)
        with gr.Tab("Search"):
            _search_tab(handle, table)
        with gr.Tab("Cost"):
            _cost_tab()
        with gr.Tab("Evidence"):
            show_evidence(ASSETS / "evidence")
        with gr.Tab("How it works"):
            _explanation()
    parts.status_line(handle)


# ---- passkey ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What the controls hold, checked: over the API anything can arrive."""

    length: int
    depth: float
    trials: int
    seed: int
    methods: tuple[str, ...]
    mode: str
    kv: str
    magnitude: str | None
    n_hat: int
    table: str
    haystack: str | None
    needle: str | None
    question: str | None
    key: str | None

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Question:
        power, depth, trials, seed, methods, mode, kv, magnitude, n_hat, table, text, file, *own = values
        try:
            length, place = 2 ** int(power), float(depth)
            count, first, start = int(trials), int(seed), int(n_hat)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput("A setting is not a number. Use the controls on the left.") from error
        if not SHORTEST <= power <= LONGEST:
            raise BadInput(f"2^{power} tokens were asked for. Choose 2^{SHORTEST} to 2^{LONGEST}.")
        if not 1 <= count <= MAX_TRIALS:
            raise BadInput(f"{count} trials were asked for. Choose 1 to {MAX_TRIALS}.")
        if not methods or not set(methods) <= set(METHODS):
            raise BadInput(f"Choose one or more of these methods: {', '.join(METHODS)}.")
        if mode not in MODES or kv not in KV_FORMATS:
            raise BadInput(f"Choose a mode of {', '.join(MODES)} and a cache format of {', '.join(KV_FORMATS)}.")
        haystack = _uploaded(file) if file else (text or None)
        needle, question, key = (part.strip() or None if isinstance(part, str) else None for part in own)
        return cls(
            length, place, count, first, tuple(methods), mode, kv,
            str(magnitude).strip() or None, start, str(table or ""), haystack, needle, question, key,
        )  # fmt: skip

    def reading(self, method: str) -> Reading:
        from models.longrope.engine import Reading

        if method == "streaming":
            return Reading(mode="streaming", kv="float32")
        return Reading(mode=self.mode, kv=self.kv)  # type: ignore[arg-type]

    def scaling(self, model: Model, method: str) -> RopeScaling:
        """The method's factors at this length; settings of one's own replace what its authors use."""
        if method == "streaming":
            return model.scaling("none", model.window)
        if method == "longrope" and self.table.strip():
            from models.longrope.tables import read_csv, read_json

            pairs, target = model.config.rotary_dim // 2, max(self.length, model.window)
            if self.table.lstrip().startswith("{"):
                factors = read_json(self.table, pairs)[1].rescale_factors
            else:
                factors, _ = read_csv(self.table, pairs)
            return model.scaling("longrope", target, factors, self.magnitude, self.n_hat)
        plain = model.scaling_at(method, self.length)
        if self.magnitude is None and not self.n_hat or plain.method == "none":
            return plain
        return model.scaling("longrope", plain.target_length, plain.rescale_factors, self.magnitude, self.n_hat)


def _passkey_tab(handle: Handle) -> gr.Textbox:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            power = gr.Slider(SHORTEST, LONGEST, DEFAULT, step=1, label="Context length, as a power of two")
            length = gr.Markdown(_length_text(DEFAULT), elem_id="longrope-length")
            methods = gr.CheckboxGroup(
                [(title, name) for name, title in METHODS.items()],
                value=["none", "yarn"],
                label="Methods, side by side",
            )
            depth = gr.Slider(0, 1, 0.5, step=0.05, label="Depth of the key", info="Several trials spread over depths")
            trials = gr.Slider(1, MAX_TRIALS, 1, step=1, label="Trials")
            with gr.Row():
                run = gr.Button("Ask", variant="primary", elem_id="longrope-run")
                stop = gr.Button("Cancel", variant="stop", elem_id="longrope-cancel")
            with gr.Accordion("More", open=False):
                mode = gr.Radio([(text, name) for name, text in MODES.items()], value="exact", label="Attention")
                kv = gr.Radio(list(KV_FORMATS), value="float32", label="Cache format")
                seed = gr.Number(0, precision=0, label="Seed")
                magnitude = gr.Textbox("", label="Magnitude", info="su, yarn or a number; empty: the method's own")
                n_hat = gr.Number(0, precision=0, label="n-hat", info="First tokens that keep their angles")
                table = gr.Textbox(
                    "", lines=3, label="Factor table for LongRoPE (CSV or JSON)", info="Empty: the shipped one"
                )
                upload = gr.File(label="Or a table as CSV or JSON", file_types=[".csv", ".json"], height=90)
            with gr.Accordion("Your own text", open=False):
                text = gr.Textbox("", lines=4, label="Haystack", max_length=MAX_TEXT)
                file = gr.File(label="Or a .txt file", file_types=[".txt"], height=90)
                needle = gr.Textbox("", label="Sentence to hide", placeholder="Anna hid the ring in the clock.")
                question = gr.Textbox("", label="Question to continue", placeholder="Anna hid the ring in the")
                key = gr.Textbox("", label="A right answer holds", placeholder="clock")
        with gr.Column(scale=3):
            shown = gr.HTML("<p>Press Ask: a five-digit key is hidden in a dull text, and the model must find it.</p>",
                            elem_id="longrope-prompt")  # fmt: skip
            progress = gr.HTML(elem_id="longrope-progress")
            results = gr.Dataframe(headers=HEADS, interactive=False, elem_id="longrope-results", label="Answers")
            summary = gr.HTML(elem_id="longrope-summary")
            heat = gr.Plot(label="Right answers by length and depth", elem_id="longrope-heat")
            clear = gr.Button("Clear the results", size="sm")
    rows = gr.State([], time_to_live=3600)
    cancel = parts.cancel_by(stop, "longrope_cancel")

    power.change(_length_text, power, length, queue=False, show_progress="hidden", api_name="longrope_length")
    upload.upload(parts.user_errors(_table_text), upload, table, api_name="longrope_table")

    @parts.user_errors
    def ask_passkey(rows: list, cancel: parts.Cancel, *values: Any) -> Iterator[tuple[Any, ...]]:
        asked = Question.of(values)
        cancel["asked"] = False
        yield from _ask(handle, asked, rows or [], cancel)

    run.click(
        ask_passkey,
        [rows, cancel, power, depth, trials, seed, methods, mode, kv, magnitude, n_hat, table, text, file, needle,
         question, key],
        [shown, progress, results, summary, heat, rows],
        **JOBS,
        api_name="longrope_passkey",
        show_progress="minimal",  # says how many wait before you
        show_progress_on=progress,
    )  # fmt: skip
    clear.click(lambda: ([], [], "", None), None, [rows, results, summary, heat], api_name="longrope_clear")
    return table


def _ask(handle: Handle, asked: Question, rows: list[dict], cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    """Prompt, progress, answers as they come; last the heat map. Cancelling keeps what was answered."""
    answered, marked = list(rows), ""
    still = (gr.skip(),) * 6
    yield "", "<p>Loading the model</p>", *still[2:]
    with handle.use(gr.Progress()) as model:
        try:
            for event in parts.streamed(lambda report: _trials(model, asked, report), cancel):
                if "trial" in event:
                    answered = [*answered, event["trial"]]
                    yield (*still[:1], event["progress"], _rows(answered), _summary(answered), gr.skip(), answered)
                elif "prompt" in event:
                    marked = event["prompt"]
                    yield marked, event["progress"], *still[2:]
                else:
                    yield gr.skip(), event["progress"], *still[2:]
            last = "<p>Done.</p>"
        except Cancelled:
            last = "<p>Cancelled. Finished answers are kept.</p>"
    yield marked, last, _rows(answered), _summary(answered), _heat(answered), answered


def _trials(model: Model, asked: Question, report: Callable[[Any], None]) -> None:
    """Runs in a thread: every prompt is asked of every method before the next one."""
    from models.longrope import retrieval

    scalings = {method: asked.scaling(model, method) for method in asked.methods}  # refuses before any work
    for number in range(asked.trials):
        depth = asked.depth if asked.trials == 1 else (number + 0.5) / asked.trials
        prompt = retrieval.make_prompt(
            model, asked.length, depth, asked.seed + number, asked.haystack, asked.needle, asked.question, asked.key
        )
        marked = _prompt_html(prompt.excerpt(model), prompt.length, prompt.depth, prompt.notes)
        for method in asked.methods:
            what = f"{METHODS[method]}, {prompt.length:,} tokens, trial {number + 1} of {asked.trials}"
            report({"prompt": marked, "progress": f"<p>{escape(what)}: starting</p>"})
            said: list[str] = []

            def read(tokens: int, rate: float, what: str = what, total: int = prompt.length) -> None:
                report({"progress": _bar(what, tokens, total, rate)})

            def say(piece: str, what: str = what, said: list[str] = said) -> None:
                said.append(piece)
                report({"progress": f"<p>{escape(what)}: <strong>{escape(''.join(said))}</strong></p>"})

            trial = retrieval.run(model, prompt, scalings[method], asked.reading(method), read, say)
            # Within the window a method is the plain model; the row still says which was chosen.
            row = {**asdict(trial), "method": method, "target": asked.length}
            report({"trial": row, "progress": f"<p>{escape(what)}: {'right' if trial.correct else 'wrong'}</p>"})


def _bar(what: str, tokens: int, total: int, rate: float) -> str:
    left = (total - tokens) / rate if rate else math.inf
    ahead = f", about {left:.0f} s left" if math.isfinite(left) else ""
    return (
        f'<p><progress max="{total}" value="{tokens}"></progress> {escape(what)}: {tokens:,} read, '
        f"{rate:.0f} tokens/s{ahead}</p>"
    )


def _prompt_html(excerpt: tuple[str, str, str], length: int, depth: float, notes: tuple[str, ...]) -> str:
    before, needle, after = (escape(part) for part in excerpt)
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<p>{length:,} tokens, the key at {depth:.0%} of the text:</p><blockquote>… {before}<mark>{needle}</mark>"
        f"{after} …</blockquote>{said}"
    )


def _rows(answered: list[dict]) -> list[list[Any]]:
    return [
        [METHODS[r["method"]], r["mode"], r["length"], round(r["depth"], 2), r["key"], r["answer"].strip(),
         "yes" if r["correct"] else "no", round(r["seconds"], 1), round(r["tokens_per_second"])]
        for r in reversed(answered)
    ]  # fmt: skip


def _summary(answered: list[dict]) -> str:
    """Accuracy by method and length, with 95 % Wilson intervals. HTML."""
    from models.longrope.retrieval import wilson

    groups: dict[tuple[str, str, int], list[bool]] = {}
    for r in answered:
        groups.setdefault((r["method"], r["mode"], r["target"]), []).append(r["correct"])
    lines = []
    for (method, mode, target), hits in groups.items():
        low, high = wilson(sum(hits), len(hits))
        lines.append(
            f"<li>{METHODS[method]}, {mode}, {_short(target)}: <strong>{sum(hits)} of {len(hits)}</strong> right "
            f"(95 % interval {low:.0%} to {high:.0%})</li>"
        )
    return f'<ul class="lp-summary">{"".join(lines)}</ul>'


def _heat(answered: list[dict]) -> Any:
    from demos.longrope_plots import heat_map

    return heat_map(answered, METHODS) if answered else None


def _length_text(power: float) -> str:
    if not isinstance(power, int | float) or not SHORTEST <= power <= LONGEST:
        return ""
    tokens = 2 ** int(power)
    past = " · past the trained window" if tokens > 8192 else " · inside the trained window: all methods leave it alone"
    return f"**{_short(tokens)} tokens** ({tokens:,}){past}"


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def _uploaded(path: str) -> str:
    """A text file's content, UTF-8 only."""
    content = Path(path).read_bytes()
    if len(content) > MAX_TEXT:
        raise BadInput(
            f"The file has {len(content) / 1e6:.0f} MB. At most {MAX_TEXT / 1e6:.0f} MB of text can be read."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("The file is not UTF-8 text. Save it as plain text and upload it again.") from error


def _table_text(path: str | None) -> str:
    """An uploaded table's text, as it is; it is checked against the model when it is used."""
    return _uploaded(path) if path else ""


# ---- search -----------------------------------------------------------------------------------------------


def _search_tab(handle: Handle, table: gr.Textbox) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            scale = gr.Radio([(f"{s}x: {8 * s}k", s) for s in SCALES], value=4, label="Extend the window")
            preset = gr.Radio(
                [("Demo: 152 tables", "demo"), ("Paper: 1 344 tables", "paper")], value="demo", label="Preset"
            )
            seed = gr.Number(42, precision=0, label="Seed")
            with gr.Row():
                run = gr.Button("Search", variant="primary", elem_id="longrope-search")
                stop = gr.Button("Stop", variant="stop", elem_id="longrope-search-stop")
            gr.Markdown(
                "Pressing Search again goes on where it stopped. A table is scored by the loss of the hidden key in "
                f"{SEARCH_PROMPTS} prompts of {SPARSE_TOKENS} tokens whose positions are spread over the whole length: "
                "cheap enough to watch. Check a found table on whole prompts with the Passkey tab."
            )
            use = gr.Button("Use the best table in Passkey", elem_id="longrope-use")
            with gr.Row():
                csv = gr.DownloadButton("CSV", interactive=False, elem_id="longrope-csv")
                json = gr.DownloadButton("JSON for transformers", interactive=False, elem_id="longrope-json")
        with gr.Column(scale=3):
            progress = gr.HTML("<p>Seeds are PI, NTK and YaRN; children must beat them.</p>", elem_id="longrope-found")
            plot = gr.Plot(label="Best loss so far, and the factors", elem_id="longrope-search-plot")
    found = gr.State(None, time_to_live=3600)
    logs = gr.State(None, time_to_live=3600)  # a private folder: the search's log outlives a stop
    cancel = parts.cancel_by(stop, "longrope_search_stop")

    @parts.user_errors
    def search_factors(cancel: parts.Cancel, logs: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        chosen = _search_settings(values)
        cancel["asked"] = False
        folder = logs or str(parts.private_folder())
        yield from _search(handle, chosen, Path(folder), cancel)

    run.click(
        search_factors, [cancel, logs, scale, preset, seed], [progress, plot, found, csv, json, logs], **JOBS,
        api_name="longrope_search", show_progress="minimal", show_progress_on=progress,
    )  # fmt: skip

    @parts.user_errors
    def use_table(found: dict | None) -> str:
        if found is None:
            raise BadInput("There is no table yet. Press Search first.")
        return found["csv"]

    use.click(use_table, found, table, api_name="longrope_use_table")


def _search_settings(values: tuple[Any, ...]) -> tuple[int, str, int]:
    scale, preset, seed = values
    if scale not in SCALES or preset not in ("demo", "paper"):
        raise BadInput(f"Choose a scale of {', '.join(map(str, SCALES))} and the preset demo or paper.")
    try:
        return int(scale), preset, int(seed)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput("The seed is not a whole number. Type one, such as 42.") from error


def _search(
    handle: Handle, chosen: tuple[int, str, int], folder: Path, cancel: parts.Cancel
) -> Iterator[tuple[Any, ...]]:
    from demos.longrope_plots import search_figure

    scale, preset, seed = chosen
    nothing = (gr.skip(),) * 5
    yield "<p>Loading the model</p>", *nothing[:4], str(folder)
    curve: list[float] = []
    latest: Event | None = None
    drawn, ended = 0.0, "Done"
    with handle.use(gr.Progress()) as model:
        log = folder / f"search-{scale}-{preset}-{seed}.jsonl"
        try:
            work = parts.streamed(lambda report: _evolve(model, chosen, log, report), cancel)
            for latest in work:
                curve.append(latest.best.fitness)
                text = _search_text(latest)
                if time.monotonic() - drawn > 2:
                    drawn = time.monotonic()
                    yield text, search_figure(curve, latest.best.factors, model, scale), *nothing[:4]
                elif not latest.replayed:
                    yield text, *nothing
        except Cancelled:
            ended = "Stopped; Search goes on from here"
        if latest is None:
            yield f"<p>{ended}.</p>", *nothing
            return
        figure = search_figure(curve, latest.best.factors, model, scale)
        files = _table_files(model, latest, scale, folder)
    state = {"csv": files[0].read_text(), "scale": scale}
    buttons = [gr.DownloadButton(value=str(path), interactive=True) for path in files]
    yield f"<p>{ended}. {_search_text(latest)}</p>", figure, state, *buttons, str(folder)


def _evolve(model: Model, chosen: tuple[int, str, int], log: Path, report: Callable[[Any], None]) -> None:
    """Runs in a thread: every evaluation is reported."""
    from models.longrope import evolution
    from models.longrope.fitness import NeedleFitness

    scale, preset, seed = chosen
    c = model.config
    settings = (evolution.paper if preset == "paper" else evolution.demo)(c.rotary_dim // 2, float(scale), seed)
    fitness = NeedleFitness(model, scale * model.window, SEARCH_PROMPTS, sparse=SPARSE_TOKENS)
    seeds = evolution.default_seeds(c.rotary_dim, c.base, model.window, float(scale))
    for event in evolution.search(fitness, settings, seeds, log):
        report(event)


def _search_text(event: Event) -> str:
    best = event.best.fitness
    return (
        f'<progress max="{event.total}" value="{event.evaluated}"></progress> {event.evaluated} of {event.total} '
        f"tables, iteration {event.iteration}, best loss {best:.3f} nats a token"
    )


def _table_files(model: Model, event: Event, scale: int, folder: Path) -> tuple[Path, Path]:
    from models.longrope.tables import write_csv, write_json

    best = model.scaling("longrope", scale * model.window, event.best.factors)
    csv, json = folder / f"longrope-{scale}x.csv", folder / f"longrope-{scale}x.json"
    csv.write_text(write_csv(best.rescale_factors))
    json.write_text(write_json(best))
    return csv, json


# ---- cost and explanation ---------------------------------------------------------------------------------


def _cost_tab() -> None:
    from models.longrope.cost import GPUS, KV_BITS, MODELS, estimate

    gr.Markdown("What a long context costs: memory of the key-value cache, and time to read the prompt once.")
    with gr.Row():
        model = gr.Dropdown(list(MODELS), value="LLaMA-2-7B", label="Model")
        power = gr.Slider(10, 21, 21, step=1, label="Context length, as a power of two")
        dtype = gr.Dropdown(list(KV_BITS), value="bfloat16", label="Cache format")
        gpu = gr.Dropdown(list(GPUS), value=next(iter(GPUS)), label="GPU")
        gpus = gr.Number(8, precision=0, label="How many")
    table = gr.HTML(elem_id="longrope-cost")
    controls: list[Any] = [model, power, dtype, gpu, gpus]

    @parts.user_errors
    def show_cost(model: str, power: float, dtype: str, gpu: str, gpus: float) -> str:
        try:
            tokens, count = 2 ** int(power), int(gpus)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput("The length and the number of GPUs are whole numbers.") from error
        cost = estimate(model, tokens, dtype, gpu, count)
        rows = {
            "Key-value cache": _gibibytes(cost.kv_bytes),
            "Weights, 16 bit": _gibibytes(cost.weight_bytes),
            "Fits": "yes" if cost.fits else "no: more GPUs, fewer bits or a shorter text",
            "Reading the prompt": f"{cost.prefill_seconds:,.0f} s",
            "Each token of the answer": f"{cost.decode_seconds_per_token * 1000:,.0f} ms",
            "Share of attention in the work": f"{cost.attention_share:.0%}",
        }
        cells = '<tr><th scope="row">{}</th><td class="lp-here">{}</td></tr>'
        body = "".join(cells.format(what, value) for what, value in rows.items())
        title = f"{model}, {_short(tokens)} tokens, {count} x {gpu}: computed, not measured"
        return f'<div class="lp-evidence"><table><caption>{escape(title)}</caption><tbody>{body}</tbody></table></div>'

    events: list[Any] = [model.change, power.change, dtype.change, gpu.change, gpus.change]
    gr.on(events, show_cost, controls, table, api_name="longrope_cost", show_progress="hidden")
    table.value = show_cost(*(c.value for c in controls))


def _gibibytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"


def _explanation() -> None:
    gr.Markdown(
        "**The problem.** Rotary embeddings turn each pair of dimensions by position times a frequency. Past the "
        "trained window, slow pairs reach angles the model has never seen, and it falls apart.\n\n"
        "**Rescaling.** Dividing each pair's frequency by a factor brings the angles back. PI divides all by the same "
        "number, NTK and YaRN follow a formula; **LongRoPE searches** the factors by evolution, keeps the first tokens "
        "as they are (n-hat), and stretches in two steps: 256k by fine-tuning, then 2 048k by a second search.\n\n"
        "**Here** SmolLM2, trained for 8 192 tokens, is stretched without fine-tuning. The picture is drawn from the "
        "factors this tab uses."
    )
    drawing = ASSETS / "how_it_works.png"
    if drawing.exists():
        gr.Image(str(drawing), show_label=False, interactive=False, alt_text="Factors of each method over rotary pairs")
