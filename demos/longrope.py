"""The LongRoPE tab: passkeys in long texts, the search for rescale factors, costs, evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.longrope_evidence import show_evidence
from demos.longrope_search import search_tab
from demos.registry import AppOptions, demo
from models import longrope
from models.completions import Address
from models.errors import BadInput, Cancelled
from models.runtime import ModelHandle, ModelRuntime, Report

if TYPE_CHECKING:
    from models.longrope.engine import Reading
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
    "longrope_tuned": "LongRoPE, fine-tuned",
    "longrope2": "LongRoPE2 shape",
    "streaming": "StreamingLLM (control)",
}
SHORTEST, LONGEST, DEFAULT = 9, 21, 10  # powers of two: 512 tokens to 2 048k
MODES = {
    "exact": "Exact: every token sees all before it. Time grows with the square of the length.",
    "blockwise": "Blockwise: context blocks see themselves and the anchor, the question sees all. Linear in length.",
}
KV_FORMATS = ("bfloat16", "float32", "int8", "int4")
MAX_TRIALS, MAX_TEXT = 20, 12_000_000
EMBEDDED_BYTES, OFFICIAL_BYTES, SERVED_BYTES = 900_000_000, 16e9, 10_000_000


@dataclass(frozen=True)
class Offer:
    """What can be chosen, as names and titles. why: said to whoever asks for something else."""

    methods: dict[str, str]
    modes: dict[str, str]
    kv: tuple[str, ...]
    why: str = ""


HERE = Offer(METHODS, MODES, KV_FORMATS)
FOLDER = Offer(
    {name: title for name, title in METHODS.items() if name != "longrope_tuned"}, MODES, KV_FORMATS,
    " Only the embedded model was fine-tuned here.",
)  # fmt: skip
SERVER = Offer(
    {"server": "The server's own factors"},
    {"server": "Server: it reads the prompt in its own way, and keeps its own cache."},
    ("server",),
    " The model is behind a server, which has its own factors, its own way of reading and its own cache.",
)
TITLES = METHODS | SERVER.methods
NO_SEARCH = (
    "The search tries thousands of factor tables on the network itself. Here the model is behind a server, which has "
    "the one it was started with. Start the app without `--longrope-url` to search."
)
# Settings to start from: power of two, methods, attention.
STARTS = {
    "1k tokens, inside the window: seconds": (10, ["none"], "exact"),
    "16k, twice the window, without and with LongRoPE: minutes": (14, ["none", "longrope"], "exact"),
    "64k, eight times the window, LongRoPE, blockwise: minutes": (16, ["longrope"], "blockwise"),
    "2 048k, 256 times the window, the fine-tuned model, blockwise: minutes": (21, ["longrope_tuned"], "blockwise"),
}
# They take turns of seconds (`longrope.LANE`), so that nobody waits for the end of a run of hours.
JOBS: dict[str, Any] = {"concurrency_id": "longrope", "concurrency_limit": 4}
HEADS = ["method", "mode", "tokens", "depth", "key", "answer", "right", "seconds", "tokens/s"]


def build(options: AppOptions, runtime: ModelRuntime) -> None:
    """Lays out the tab and wires its events. Called inside the demo's `gr.Tab`."""
    official = options.tier == "official"
    server = Address.parse(options.longrope_url, options.lm_key) if options.longrope_url else None
    size = SERVED_BYTES if server else OFFICIAL_BYTES if official else EMBEDDED_BYTES
    described = "A long-context model" if official else "SmolLM2-135M-Instruct, trained window 8 192"
    handle = runtime.register(
        "longrope",
        longrope.loader(options.tier, options.weights_dir, server),
        estimate_bytes=int(size),
        description=f"A long-context model on the server at {server.place}" if server else described,
    )
    parts.paper_card(demo("longrope"))
    with gr.Tabs():
        with gr.Tab("Passkey"):
            table, n_hat = _passkey_tab(handle, SERVER if server else FOLDER if official else HERE)
        with gr.Tab("Search"):
            if server:
                gr.Markdown(NO_SEARCH)
            else:
                search_tab(handle, table, n_hat, JOBS)
        with gr.Tab("Cost"):
            _cost_tab()
        with gr.Tab("Evidence") as evidence:
            show_evidence(ASSETS / "evidence", evidence)
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
    def of(cls, values: tuple[Any, ...], offer: Offer = HERE) -> Question:
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
        if not methods or not set(methods) <= set(offer.methods):
            raise BadInput(f"Choose one or more of these methods: {', '.join(offer.methods)}.{offer.why}")
        if mode not in offer.modes or kv not in offer.kv:
            formats = f"a cache format of {', '.join(offer.kv)}"
            raise BadInput(f"Choose a mode of {', '.join(offer.modes)} and {formats}.{offer.why}")
        if offer is SERVER and (str(table or "").strip() or str(magnitude or "").strip() or start):
            raise BadInput(f"Leave the table, the magnitude and n-hat empty.{offer.why}")
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
        if method == "server":
            return Reading()
        return Reading(mode=self.mode, kv=self.kv)  # type: ignore[arg-type]

    def scaling(self, model: Model, method: str) -> RopeScaling:
        """The method's factors at this length; settings of one's own replace what its authors use."""
        if method == "streaming":
            return model.scaling("none", model.window)
        if method == "server":
            return model.scaling_at(method, self.length)
        if method == "longrope_tuned":
            if model.tuned is None:
                raise BadInput("What the fine-tuning added is missing. Restore assets/longrope/adapter.safetensors.")
            return replace(self, table="").scaling(model.tuned, "longrope")
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


def _passkey_tab(handle: ModelHandle, offer: Offer) -> tuple[gr.Textbox, gr.Number]:
    """Returns where a factor table and its n-hat are typed."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            power = gr.Slider(SHORTEST, LONGEST, DEFAULT, step=1, label="Context length, as a power of two")
            length = gr.Markdown(_length_text(DEFAULT), elem_id="longrope-length")
            methods = gr.CheckboxGroup(
                [(title, name) for name, title in offer.methods.items()],
                value=[next(iter(offer.methods))],
                label="Methods, side by side",
            )
            depth = gr.Slider(0, 1, 0.5, step=0.05, label="Depth of the key", info="Several trials spread over depths")
            trials = gr.Slider(1, MAX_TRIALS, 1, step=1, label="Trials")
            with gr.Row():
                run = gr.Button("Ask", variant="primary", elem_id="longrope-run")
                stop = gr.Button("Cancel", variant="stop", elem_id="longrope-cancel")
            mode = gr.Radio(
                [(text, name) for name, text in offer.modes.items()], value=next(iter(offer.modes)), label="Attention",
                render=False,
            )  # fmt: skip
            if offer is not SERVER:
                starts = {label: start for label, start in STARTS.items() if set(start[1]) <= set(offer.methods)}
                gr.Examples(
                    [list(values) for values in starts.values()], [power, methods, mode], example_labels=list(starts),
                    label="Start from", cache_examples=False, api_name="longrope_start",
                )  # fmt: skip
            with gr.Accordion("More", open=False):
                mode.render()
                kv = gr.Radio(list(offer.kv), value=offer.kv[0], label="Cache format")
                seed = gr.Number(0, precision=0, label="Seed")
                with gr.Column(visible=offer is not SERVER):
                    magnitude = gr.Textbox("", label="Magnitude", info="su, yarn or a number; empty: the method's own")
                    n_hat = gr.Number(0, precision=0, label="n-hat", info="First tokens that keep their angles")
                    known = gr.Dropdown(_published_names(), label="Published table", interactive=True)
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
            heat = gr.Plot(label="Right answers by length and depth", show_label=False, elem_id="longrope-heat")
            clear = gr.Button("Clear the results", size="sm")
    rows = gr.State([], time_to_live=3600)
    cancel = parts.cancel_by(stop, "longrope_cancel", progress, [run.click])

    known.input(parts.user_errors(_published_text), known, table, api_name="longrope_published")
    power.change(_length_text, power, length, queue=False, show_progress="hidden", api_name="longrope_length")
    upload.upload(parts.user_errors(_table_text), upload, table, api_name="longrope_table")

    @parts.user_errors
    def ask_passkey(rows: list, cancel: parts.Cancel, *values: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            yield from _ask(handle, Question.of(values, offer), rows or [], cancel)

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
    return table, n_hat


def _ask(handle: ModelHandle, asked: Question, rows: list[dict], cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    """Prompt, progress, answers as they come; last the heat map. Cancelling keeps what was answered."""
    answered, marked = list(rows), ""
    still = (gr.skip(),) * 6
    yield "", "<p>Loading the model</p>", *still[2:]
    try:
        for event in parts.Job(handle, partial(_trials, asked), cancel, lambda event: set(event) == {"progress"}):
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
    for row in answered[len(rows) :][-1:]:
        last += _copied(row["copied"], row["length"])
    yield marked, last, _rows(answered), _summary(answered), _heat(answered), answered


def _trials(asked: Question, model: Model, report: Report) -> None:
    """Runs where the model is: every prompt is asked of every method before the next one, by turns with others."""

    def waiting(before: int) -> None:
        report({"progress": f"<p>Others have their turn: {before} before you</p>"})

    with longrope.LANE.job(waiting) as offer:

        def tell(event: dict[str, Any]) -> None:
            report(event)
            offer()

        _ask_all(asked, model, tell)


def _ask_all(asked: Question, model: Model, report: Report) -> None:
    from models.longrope import retrieval

    scalings = {method: asked.scaling(model, method) for method in asked.methods}  # refuses before any work
    for number in range(asked.trials):
        depth = asked.depth if asked.trials == 1 else (number + 0.5) / asked.trials
        prompt = retrieval.make_prompt(
            model, asked.length, depth, asked.seed + number, asked.haystack, asked.needle, asked.question, asked.key
        )
        for method in asked.methods:
            notes = (*prompt.notes, *scalings[method].notes)
            marked = _prompt_html(prompt.excerpt(model), prompt.length, prompt.depth, notes)
            what = f"{TITLES[method]}, {prompt.length:,} tokens, trial {number + 1} of {asked.trials}"
            report({"prompt": marked, "progress": f"<p>{escape(what)}: starting</p>"})
            said: list[str] = []

            reading = asked.reading(method)
            share = retrieval.share_done(model, prompt, reading)

            def read(tokens: int, rate: float, what: str = what, share: Callable[[int], float] = share,
                     total: int = prompt.length) -> None:  # fmt: skip
                report({"progress": _bar(what, tokens, total, rate, share(tokens))})

            def say(piece: str, what: str = what, said: list[str] = said) -> None:
                said.append(piece)
                report({"progress": f"<p>{escape(what)}: <strong>{escape(''.join(said))}</strong></p>"})

            # Within the window a method is the plain model; the row still says which was chosen.
            stretched = scalings[method].method != "none"
            used = model.tuned if method == "longrope_tuned" and stretched and model.tuned else model
            trial = retrieval.run(used, prompt, scalings[method], reading, read, say)
            row = {**asdict(trial), "method": method, "target": asked.length}
            report({"trial": row, "progress": f"<p>{escape(what)}: {'right' if trial.correct else 'wrong'}</p>"})


def _copied(tokens: int, total: int) -> str:
    """What a fast reading owes to a text that repeats itself. HTML."""
    if not tokens:
        return ""
    return (
        f"<p>{tokens:,} of {total:,} tokens were not read: their blocks say word for word what an earlier one says, "
        "and have the same keys and values.</p>"
    )


def _bar(what: str, tokens: int, total: int, rate: float, done: float) -> str:
    """A bar in tokens; the time left is for the share of the work done, as later tokens see more than early ones."""
    passed = tokens / rate if rate else 0.0
    ahead = f", about {passed * (1 / done - 1):.0f} s left" if done and passed else ""
    return (
        f'<p><progress max="{total}" value="{tokens}"></progress> {escape(what)}: {tokens:,} read, '
        f"{rate:.0f} tokens/s{ahead}</p>"
    )


def _prompt_html(excerpt: tuple[str, str, str], length: int, depth: float, notes: tuple[str, ...]) -> str:
    before, needle, after = (escape(part) for part in excerpt)
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<p>{length:,} tokens, the key at {depth:.0%} of the text:</p><blockquote>… {before}"
        f'<mark style="color: #111827">{needle}</mark>{after} …</blockquote>{said}'  # dark on yellow in both themes
    )


def _rows(answered: list[dict]) -> list[list[Any]]:
    return [
        [TITLES[r["method"]], r["mode"], r["length"], round(r["depth"], 2), r["key"], r["answer"].strip(),
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
            f"<li>{TITLES[method]}, {mode}, {_short(target)}: <strong>{sum(hits)} of {len(hits)}</strong> right "
            f"(95 % interval {low:.0%} to {high:.0%})</li>"
        )
    return f'<ul class="lp-summary">{"".join(lines)}</ul>'


def _heat(answered: list[dict]) -> Any:
    from demos.longrope_plots import heat_map

    return heat_map(answered, TITLES) if answered else None


def _length_text(power: float) -> str:
    if not isinstance(power, int | float) or not SHORTEST <= power <= LONGEST:
        return ""
    tokens = 2 ** int(power)
    past = " · past the trained window" if tokens > 8192 else " · inside the trained window: all methods leave it alone"
    return f"**{_short(tokens)} tokens** ({tokens:,}){past}"


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def _published_names() -> list[tuple[str, str]]:
    """Titles and names of the authors' and Phi's tables; the empty name takes none."""
    from models.longrope.tables import published

    tables = published().values()
    return [("none", ""), *((f"{t.name}: {t.model}, {len(t.factors)} factors", t.name) for t in tables)]


def _published_text(name: str) -> str:
    """A published table as CSV; whether it fits the model is checked when it is used."""
    from models.longrope.tables import get, write_csv

    return write_csv(get(name).factors) if name else ""


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
        "**Here** SmolLM2, trained for 8 192 tokens, is stretched without fine-tuning. Only *LongRoPE, fine-tuned* "
        "went further: low-rank additions to its attention learnt to find keys in short texts spread over many "
        "positions, each word weighing as many as it stands for. The picture is drawn from the factors this tab uses."
    )
    parts.drawing(ASSETS / "how_it_works.png", "Factors of each method over rotary pairs")
