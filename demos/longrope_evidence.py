"""The LongRoPE tab's Evidence panel: recorded figures, with the paper's beside them.

Everything measured is read from `assets/longrope/evidence/*.json`, which `models.longrope.evaluate` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from demos.parts import EvidenceRow, evidence_table

TITLES = {"none": "None", "pi": "PI", "ntk": "NTK", "dynamic_ntk": "Dynamic NTK", "yarn": "YaRN",
          "longrope": "LongRoPE", "longrope stretched": "LongRoPE, stretched table",
          "longrope, fine-tuned": "LongRoPE, fine-tuned", "yarn, fine-tuned": "YaRN factors, fine-tuned",
          "streaming": "StreamingLLM"}  # fmt: skip
EVALUATE = "python -m models.longrope.evaluate"
COMMANDS = {
    "passkey": f"{EVALUATE} passkey --lengths 4096 16384",
    "blockwise": f"{EVALUATE} blockwise --lengths 16384 65536 --methods none pi ntk yarn longrope --trials 20",
    "reading": f"{EVALUATE} blockwise --lengths 131072 262144 --kv int8 --methods longrope",
    "spread": f"{EVALUATE} spread --lengths 16384 65536 --trials 100",
    "perplexity": f"{EVALUATE} perplexity --text FILE --lengths 2048 16384",
    "search": f"{EVALUATE} search --lengths 16384 32768 65536",
    "speed": "python tests/benchmarks/bench_longrope.py",
}
# Paper, figure 4 and tables 5 and 6 (specification, sections 4.2, 4.3 and 5.3).
PAPER = (
    ("Passkey, LLaMA2-7B, 4k to 2 048k (fine-tuned at 256k)", "at least 90 % at every length"),
    ("Passkey, Mistral-7B (fine-tuned at 128k)", "100 % to 1 800k, 60 % at 2 048k"),
    ("Passkey, YaRN, CodeLLaMA, LongLoRA beyond 128k", "0 %"),
    ("Books3 perplexity at 2 048k, LLaMA2 (256k) / Mistral (128k)", "7.08 / 12.78"),
    ("Proof-pile perplexity at 256k, LLaMA2 (256k) / YaRN s=32", "1.87 / 99.64"),
    ("Short contexts, LLaMA2 at 4k: original / LongRoPE-2048k (256k)", "3.58 / 3.85 (Proof-pile)"),
)


Recorded = dict[str, Any]
TABLES_ONLY = ("reading",)


def show_evidence(folder: Path, tab: gr.Tab) -> None:
    """The paper's figures, then a plot and a table for each recorded file; a missing file says how to make it.

    Plots are drawn when `tab` is opened: nobody waits for them before.
    """
    rows = [EvidenceRow(what, figure) for what, figure in PAPER]
    evidence_table(rows, "The paper's own figures: models fifty times larger, fine-tuned; not measured here")
    sections: dict[str, Callable[[Recorded], None]] = {
        "passkey": _passkey, "blockwise": _blockwise, "spread": _spread, "perplexity": _perplexity,
        "search": _search, "reading": _reading, "speed": _speed,
    }  # fmt: skip
    plots: dict[str, gr.Plot] = {}
    for name, show in sections.items():
        data = _read(folder, name)
        if data is None:
            gr.Markdown(f"Not measured yet: {name}. `{COMMANDS[name]}` records it.")
            continue
        if name not in TABLES_ONLY:
            plots[name] = gr.Plot(show_label=False, elem_id=f"longrope-evidence-{name}")
        show(data)
    if plots:
        tab.select(lambda: _drawn(folder, list(plots)), None, list(plots.values()), api_name="longrope_evidence")


def _drawn(folder: Path, names: list[str]) -> Any:
    """The sections' figures; one alone stands by itself, as Gradio wants it."""
    from demos import longrope_evidence_plots as plots

    draw = {
        "passkey": plots.passkey_figure, "blockwise": plots.passkey_figure, "spread": plots.spread_figure,
        "perplexity": plots.perplexity_figure, "search": plots.searches_figure, "speed": plots.speed_figure,
    }  # fmt: skip
    figures = [draw[name](json.loads((folder / f"{name}.json").read_text())["result"]) for name in names]
    return figures if len(figures) > 1 else figures[0]


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _caption(text: str, data: Recorded) -> str:
    source = data["provenance"]
    commands = data["result"].get("commands", [source["command"]])
    return f"{text}. Measured here: {source['date']}, {source['machine']}; {'; '.join(commands)}"


def _share(row: Recorded) -> str:
    low, high = row["interval"]
    return f"{row['correct']} of {row['trials']} right (95 % interval {low:.0%} to {high:.0%})"


def _passkey(data: Recorded) -> None:
    rows = [
        EvidenceRow(
            f"{_title(row['method'])}, {row['length']:,} tokens, {row['mode']}, {row['kv']} cache",
            None,
            _share(row),
            f"{row['seconds_median']:.0f} s each",
        )
        for row in sorted(data["result"]["rows"], key=lambda row: row["length"])
    ]
    text = f"Passkey at full length, {data['result']['model']}, window 8 192, no fine-tuning but where a row says so"
    evidence_table(rows, _caption(text, data))


def _blockwise(data: Recorded) -> None:
    rows = [
        EvidenceRow(f"{_title(row['method'])}, {row['length']:,} tokens, {row['kv']} cache", None, _share(row))
        for row in sorted(data["result"]["rows"], key=lambda row: row["length"])
    ]
    first = data["result"]["rows"][0]
    text = (
        f"Passkey at full length, read blockwise ({first['anchor']} tokens of anchor, blocks of {first['block']}), "
        f"{data['result']['model']}, no fine-tuning but where a row says so; all methods ask the same blocks, so they "
        "differ in what the question sees; a key is right where each of its tokens is the likeliest"
    )
    evidence_table(rows, _caption(text, data))


def _reading(data: Recorded) -> None:
    rows = []
    for row in data["result"]["rows"]:
        how = f"{row['length']:,} tokens, {row['kv']} cache{' in files' if row['in_files'] else ''}, "
        how += f"{row['copied']:,} in repeated blocks not read again" if row.get("copied") else "every block read"
        if "stopped" in row:
            figure = f"not reached: {row['read']:,} tokens after {row['read_seconds']:.0f} s"
            rows.append(EvidenceRow(how, None, figure, row["stopped"]))
            continue
        answer = f"{_title(row['method'])}: {row['key']}, answered {row['answer'].strip()!r}"
        rows.append(
            EvidenceRow(
                how,
                None,
                f"read in {row['read_seconds']:.0f} s, answered in {row['answer_seconds']:.0f} s",
                f"{answer}, {'right' if row['correct'] else 'wrong'}; peak memory {row['peak_gigabytes']:.1f} GB, "
                f"{row['threads']} threads, load {row['load_average']:.1f}",
            )
        )
    evidence_table(rows, _caption("Blockwise reading of one text, timed at each length, and its first question", data))


def _spread(data: Recorded) -> None:
    rows = [
        EvidenceRow(
            f"{_title(row['method'])}, positions up to {row['length']:,}", None, _share(row),
            f"loss of the key {row['loss']:.2f} nats a token",
        )
        for row in sorted(data["result"]["rows"], key=lambda row: row["length"])
    ]  # fmt: skip
    tokens = data["result"]["rows"][0]["tokens"]
    text = (
        f"Spread positions, {tokens} tokens: keys hidden in short texts whose positions stretch over the length. It "
        "isolates what far positions do; it is no result at the full length"
    )
    evidence_table(rows, _caption(text, data))


def _perplexity(data: Recorded) -> None:
    groups: dict[int, list[Recorded]] = {}
    for row in data["result"]["rows"]:
        groups.setdefault(row["length"], []).append(row)
    rows = [
        EvidenceRow(
            f"{length:,} tokens read", None, ", ".join(f"{_title(r['method'])} {r['perplexity']:.2f}" for r in found)
        )
        for length, found in sorted(groups.items())
    ]
    first = data["result"]["rows"][0]
    text = (
        f"Perplexity of the same last {first['scored']:,} tokens of Moby-Dick, factors for {first['target']:,} tokens. "
        "Up to 8 192 the difference to None is what long factors cost short texts; readjusted, as the Passkey panel "
        "does, it is nothing"
    )
    evidence_table(rows, _caption(text, data))


def _search(data: Recorded) -> None:
    rows = [
        EvidenceRow(
            f"{run['length']:,} tokens: " + ", ".join(f"{name} {value:.2f}" for name, value in run["before"].items()),
            None,
            f"{run['after']:.2f} after {run['evaluations']} tables",
            run["objective"],
        )
        for run in data["result"]["runs"]
    ]
    evidence_table(rows, _caption("Searched tables, shipped; loss of the key in nats a token, lower is better", data))


def _speed(data: Recorded) -> None:
    rows = [
        EvidenceRow(
            f"{row['tokens']:,} tokens and an answer of {data['result']['new_tokens']}, exact: this engine in "
            f"{row['ours_dtype']}, transformers in {row['transformers_dtype']}",
            None,
            f"{row['ratio']:.1f} times faster: {row['ours_processor_seconds']:.0f} s against "
            f"{row['transformers_processor_seconds']:.0f} s",
            f"peak memory {row['ours_peak_gigabytes']:.1f} and {row['transformers_peak_gigabytes']:.1f} GB; "
            f"{'the same answer' if row['same_answer'] else 'different answers'}; own target: 3 times",
        )
        for row in data["result"]["rows"]
    ]
    rows += [
        EvidenceRow(
            f"{row['tokens']:,} tokens and an answer of {data['result']['new_tokens']}, {row['mode']}, "
            f"{row['kv']} cache: this engine alone",
            None,
            f"{row['seconds']:.0f} s on {row['threads']} threads",
            f"peak memory {row['peak_gigabytes']:.1f} GB, load {row['load_average']:.1f}"
            + (f"; {row['copied']:,} tokens in repeated blocks not read again" if row.get("copied") else ""),
        )
        for row in data["result"].get("alone", [])
    ]
    text = (
        "Against transformers.generate with SDPA, same weights and prompt, in turns, processor seconds of all threads"
    )
    evidence_table(rows, _caption(text, data))


def _title(method: str) -> str:
    return TITLES.get(method, method)
