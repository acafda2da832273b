"""The LongRoPE tab's Evidence panel: recorded figures, with the paper's beside them.

Everything measured is read from `assets/longrope/evidence/*.json`, which `models.longrope.evaluate` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from demos.parts import EvidenceRow, evidence_table

# Paper, figure 4 and tables 5 and 6 (specification, sections 4.2, 4.3 and 5.3).
PAPER = (
    ("Passkey, LLaMA2-7B, 4k to 2 048k (fine-tuned at 256k)", "at least 90 % at every length"),
    ("Passkey, Mistral-7B (fine-tuned at 128k)", "100 % to 1 800k, 60 % at 2 048k"),
    ("Passkey, YaRN, CodeLLaMA, LongLoRA beyond 128k", "0 %"),
    ("Books3 perplexity at 2 048k, LLaMA2 (256k) / Mistral (128k)", "7.08 / 12.78"),
    ("Proof-pile perplexity at 256k, LLaMA2 (256k) / YaRN s=32", "1.87 / 99.64"),
    ("Short contexts, LLaMA2 at 4k: original / LongRoPE-2048k (256k)", "3.58 / 3.85 (Proof-pile)"),
)


def show_evidence(folder: Path) -> None:
    """The paper's figures, then one table a recorded file; a file that is missing says how to make it."""
    rows = [EvidenceRow(what, figure) for what, figure in PAPER]
    evidence_table(rows, "The paper's own figures: models fifty times larger, fine-tuned; not measured here")
    _passkey(_read(folder, "passkey"))
    _search(_read(folder, "search"))
    _perplexity(_read(folder, "perplexity"))
    _speed(_read(folder, "speed"))


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _caption(text: str, data: dict[str, Any]) -> str:
    source = data["provenance"]
    return f"{text} ({source['date']}, {source['machine']}: {source['command']})"


def _passkey(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("passkey accuracy", "passkey --lengths 4096 16384")
        return
    rows = [
        EvidenceRow(
            f"{row['method']}, {row['length']:,} tokens, {row['mode']}, {row['kv']} cache",
            None,
            f"{row['correct']} of {row['trials']} right",
            f"95 % interval {row['interval'][0]:.0%} to {row['interval'][1]:.0%}; {row['seconds_median']:.0f} s each",
        )
        for row in data["result"]["rows"]
    ]
    evidence_table(rows, _caption(f"Passkey, {data['result']['model']}, window 8 192, no fine-tuning", data))


def _search(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("the search", "search --lengths 16384 32768 65536")
        return
    rows = []
    for run in data["result"]["runs"]:
        before = ", ".join(f"{name} {value:.2f}" for name, value in run["before"].items())
        rows.append(
            EvidenceRow(
                f"{run['length']:,} tokens: {before}",
                None,
                f"{run['after']:.2f} after {run['evaluations']} tables, {run['seconds'] / 60:.0f} min",
            )
        )
    text = f"Search: {data['result']['runs'][0]['objective']}, nats a token, lower is better"
    evidence_table(rows, _caption(text, data))


def _perplexity(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("perplexity", "perplexity --text FILE --lengths 4096 16384")
        return
    rows = [
        EvidenceRow(f"{row['method']}, {row['length']:,} tokens of {row['text']}", None, f"{row['perplexity']:.2f}")
        for row in data["result"]["rows"]
    ]
    evidence_table(rows, _caption("Perplexity of the second half of one window", data))


def _speed(data: dict[str, Any] | None) -> None:
    if data is None:
        gr.Markdown("Not measured yet: speed. `python tests/benchmarks/bench_longrope.py` records it.")
        return
    rows = [
        EvidenceRow(
            f"{row['tokens']:,} tokens and an answer of {data['result']['new_tokens']}, exact, {row['dtype']}",
            None,
            f"{row['ours_seconds']:.1f} s; transformers {row['transformers_seconds']:.1f} s: {row['ratio']:.2f}x",
            f"peak memory {row['ours_peak_gigabytes']:.1f} and {row['transformers_peak_gigabytes']:.1f} GB; "
            f"{'the same answer' if row['same_answer'] else 'different answers'}; own target: 3x at 8k",
        )
        for row in data["result"]["rows"]
    ]
    evidence_table(rows, _caption("Against transformers.generate, same weights and prompt, in turns", data))


def _missing(what: str, command: str) -> None:
    gr.Markdown(f"Not measured yet: {what}. `python -m models.longrope.evaluate {command}` records it.")
