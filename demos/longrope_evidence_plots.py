"""Figures of the LongRoPE tab's Evidence panel, from the recorded rows, as matplotlib figures.

python -m demos.longrope_evidence_plots     # the README's, assets/longrope/evidence/blockwise.png
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from demos.longrope_evidence import TITLES
from demos.longrope_plots import heat_map

COLOURS = {"none": "#6b7280", "pi": "#d97706", "ntk": "#2563eb", "dynamic_ntk": "#0891b2", "yarn": "#7c3aed",
           "longrope": "#0f766e", "longrope stretched": "#65a30d", "longrope, fine-tuned": "#1d4ed8",
           "yarn, fine-tuned": "#9d174d", "streaming": "#be123c"}  # fmt: skip
WINDOW = 8192  # of the embedded model


def passkey_figure(result: dict[str, Any]) -> Figure:
    """Right answers by length and depth of the key, one panel a method."""
    cells = [{**cell, "target": cell["length"]} for cell in result["cells"] if cell["method"] in TITLES]
    return heat_map(cells, TITLES)


def spread_figure(result: dict[str, Any]) -> Figure:
    """Share of right answers by length, with 95 % intervals, one line a method."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (method, rows) in enumerate(_lines(result["rows"])):
        share = [row["correct"] / row["trials"] for row in rows]
        ends = [[s - row["interval"][0] for s, row in zip(share, rows, strict=True)],
                [row["interval"][1] - s for s, row in zip(share, rows, strict=True)]]  # fmt: skip
        at = [row["length"] * 1.03 ** (index - 2) for row in rows]  # side by side
        axes.errorbar(at, share, ends, label=TITLES[method], color=COLOURS[method], marker="o", capsize=3)
    axes.set(ylabel="right answers", ylim=(-0.03, 1.03), title="Spread positions: few tokens, far apart")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _tokens(axes, sorted({row["length"] for row in result["rows"]}))
    axes.legend(frameon=False, ncols=2)
    return figure


def perplexity_figure(result: dict[str, Any]) -> Figure:
    """Perplexity of the same tokens by the length read before them, one line a method."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, rows in _lines(result["rows"]):
        values = [row["perplexity"] for row in rows]
        axes.plot([row["length"] for row in rows], values, color=COLOURS[method], label=TITLES[method], marker="o")
    axes.axvline(WINDOW, color="#9ca3af", linestyle=":", label="trained window")
    target = max(row["target"] for row in result["rows"])
    axes.set(yscale="log", ylabel="perplexity", title=f"The same last tokens; factors for {target // 1024}k")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _tokens(axes, sorted({row["length"] for row in result["rows"]}))
    axes.legend(frameon=False, ncols=2)
    return figure


def searches_figure(result: dict[str, Any]) -> Figure:
    """Best loss after each table tried, and the factors found, one line a length."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run, colour in zip(result["runs"], ("#0f766e", "#2563eb", "#7c3aed", "#d97706"), strict=False):
        title = f"{run['length'] // 1024}k"
        left.plot(range(1, len(run["curve"]) + 1), run["curve"], color=colour, label=title, linewidth=2)
        right.plot(run["factors"], color=colour, label=title, linewidth=2)
    left.set(xlabel="tables tried", ylabel="best loss (nats a token)")
    left.set_ylim(bottom=0)
    right.set(xlabel="rotary pair, fast to slow", ylabel="factor found")
    right.legend(frameon=False)
    return figure


def speed_figure(result: dict[str, Any]) -> Figure:
    """Processor seconds by length: this engine, and transformers in each number format."""
    bars: dict[tuple[int, str], float] = {}
    for row in result["rows"]:
        bars[row["tokens"], f"this engine, {row['ours_dtype']}"] = row["ours_processor_seconds"]
        bars[row["tokens"], f"transformers, {row['transformers_dtype']}"] = row["transformers_processor_seconds"]
    lengths, names = sorted({tokens for tokens, _ in bars}), list(dict.fromkeys(name for _, name in bars))
    figure = Figure(figsize=(8, 0.9 + 0.5 * len(bars)), layout="constrained")
    axes = figure.subplots()
    apart = 0.8 / len(names)
    colours = {
        "this engine, bfloat16": "#0f766e", "this engine, float32": "#5eead4",
        "transformers, bfloat16": "#9ca3af", "transformers, float32": "#d1d5db",
    }  # fmt: skip
    for index, name in enumerate(names):
        rows = [(i + apart * index, bars[tokens, name]) for i, tokens in enumerate(lengths) if (tokens, name) in bars]
        places, seconds = zip(*rows, strict=True)
        drawn = axes.barh(places, seconds, height=0.9 * apart, label=name, color=colours.get(name))
        axes.bar_label(drawn, fmt=" %.0f s")
    middle = apart * (len(names) - 1) / 2
    axes.set_yticks([i + middle for i in range(len(lengths))], [f"{tokens:,} tokens" for tokens in lengths])
    axes.invert_yaxis()
    axes.set_xlabel("processor seconds to read the prompt and answer")
    axes.legend(frameon=False)
    return figure


def _lines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows of each known method, by length."""
    found = {method: [row for row in rows if row["method"] == method] for method in TITLES}
    return [(method, sorted(line, key=lambda row: row["length"])) for method, line in found.items() if line]


def _tokens(axes: Axes, lengths: Sequence[int]) -> None:
    """A logarithmic axis that names these lengths only."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(lengths) / 1.5, max(lengths) * 1.5)
    axes.set_xticks(lengths, [f"{tokens // 1024}k" for tokens in lengths])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens")


def main() -> None:
    """The README's picture of keys found at full length."""
    folder = Path(__file__).resolve().parent.parent / "assets" / "longrope" / "evidence"
    recorded = json.loads((folder / "blockwise.json").read_text())["result"]
    passkey_figure(recorded).savefig(folder / "blockwise.png", dpi=70)


if __name__ == "__main__":
    main()
