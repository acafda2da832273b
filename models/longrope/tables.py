"""Factor tables: the published ones, CSV in the repository's format, and the JSON of `rope_type: longrope`.

Thirty tables come from the authors' research branches (MIT), eight lists from the Phi models' public `config.json`
(specification appendices A and B). They are numbers only: opening a table never runs anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import BadInput
from models.longrope.rope import RopeScaling, check_factors, falling, magnitude_of, scaling

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "longrope" / "factors.json"
SEARCHED = SHIPPED.parent / "tables"  # <model>-<tokens>.csv, made by models.longrope.evaluate search
MAX_BYTES = 1_000_000
MAX_NUMBERS = 128 * 1024
DECIMALS = 4
BUCKETS = tuple(k * 1024 for k in (4, 8, 16, 32, 128, 256, 512, 1024, 2048))


@dataclass(frozen=True, eq=False)
class Table:
    """A published factor table.

    factors: float64 (pairs,). original_length, target_length: tokens. note: where it comes from or what it needs.
    """

    name: str
    factors: np.ndarray
    model: str
    rotary_dim: int
    base: float
    original_length: int
    target_length: int
    note: str

    def scaling(self, magnitude: str | float = "su", n_hat: int = 0) -> RopeScaling:
        """The table as a method, with the table's own lengths."""
        return scaling(
            "longrope",
            self.rotary_dim,
            self.base,
            self.original_length,
            self.target_length,
            magnitude,
            self.factors,
            n_hat,
        )


@cache
def published() -> dict[str, Table]:
    """All shipped tables by name: `ft_<model>_<ft>`, `<length>_<model>_<ft>`, `phi..._long`, `phi..._short`."""
    content = json.loads(SHIPPED.read_text(encoding="utf-8"))
    tables = {name: Table(name, np.array(row.pop("factors"), np.float64), **row) for name, row in content.items()}
    for table in tables.values():
        table.factors.setflags(write=False)
    return tables


def get(name: str) -> Table:
    """A shipped table. Raises `BadInput` listing the names there are."""
    if name not in published():
        raise BadInput(f"There is no table {name!r}. Choose one of {', '.join(published())}.")
    return published()[name]


def for_length(model: str, fine_tuned: int, tokens: int) -> Table:
    """The research code's choice by length: round up to a bucket, then that bucket's table (section 3.4).

    model: "la2" or "mis". fine_tuned: 128 or 256, thousands of tokens. Lengths without a table of their own take
    the fine-tuning table.
    """
    if model not in ("la2", "mis") or fine_tuned not in (128, 256):
        raise BadInput(f"There are no tables for {model!r} at {fine_tuned}k. Choose la2 or mis, and 128 or 256.")
    if not 1 <= tokens <= BUCKETS[-1]:
        raise BadInput(f"The length is {tokens} tokens. Give 1 to {BUCKETS[-1]:,}.")
    bucket = next(bucket for bucket in BUCKETS if tokens <= bucket) // 1024
    name = f"{bucket}k_{model}_{fine_tuned}k"
    return get(name if name in published() else f"ft_{model}_{fine_tuned}k")


def searched(model: str, tokens: int, pairs: int) -> tuple[int, np.ndarray]:
    """The table we searched for a model (its file prefix) at the smallest length that holds so many tokens.

    Returns that length and the factors (pairs,). Raises `BadInput` naming the lengths there are.
    """
    lengths = searched_lengths(model)
    fitting = [length for length in lengths if length >= tokens]
    if not fitting:
        there = ", ".join(f"{length:,}" for length in lengths) or "none"
        raise BadInput(
            f"There is no searched table for {tokens:,} tokens (there are: {there}). Search one, upload one, or choose "
            "another method."
        )
    return fitting[0], read_csv((SEARCHED / f"{model}-{fitting[0]}.csv").read_bytes(), pairs)[0]


def searched_lengths(model: str) -> list[int]:
    """The lengths there are searched tables for, in order."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in SEARCHED.glob(f"{model}-*.csv"))


def stretched(model: str, window: int, tokens: int, pairs: int) -> list[tuple[int, np.ndarray]]:
    """The tables searched for shorter lengths, the longest first, each raised to the power that takes its scale to this
    length's: what the paper's progressive search starts from. Lengths and factors (pairs,)."""
    found = []
    for shorter in sorted((n for n in searched_lengths(model) if n < tokens), reverse=True):
        _, factors = searched(model, shorter, pairs)
        found.append((shorter, factors ** (math.log(tokens / window) / math.log(shorter / window))))
    return found


def product(stage1: Sequence[float] | np.ndarray, stage2: Sequence[float] | np.ndarray) -> np.ndarray:
    """The table of a second search on top of a first: element by element (section 3.1), 4 decimals."""
    first = np.asarray(stage1, dtype=np.float64)
    return np.round(first * check_factors(stage2, first.shape[-1]), DECIMALS)


def read_csv(text: str | bytes, pairs: int) -> tuple[np.ndarray, list[str]]:
    """A table from CSV: one number a line or comma-separated, (pairs,) or (layers, pairs).

    Returns the factors, float64, and notes for the user (a table that falls is used, with a note).

    Raises:
        BadInput: not a small text, not numbers, or another count than `pairs`.
    """
    rows = [line.strip().strip(",") for line in _text(text).splitlines()]
    cells = [[_number(cell) for cell in row.split(",")] for row in rows if row]
    if not cells:
        raise BadInput(f"The table is empty. Give {pairs} numbers, one a line or separated by commas.")
    if sum(map(len, cells)) > MAX_NUMBERS:
        raise BadInput(f"The table has more than {MAX_NUMBERS:,} numbers. Give {pairs}, or {pairs} for each layer.")
    if all(len(row) == 1 for row in cells):
        table: Any = [row[0] for row in cells]
    elif len({len(row) for row in cells}) == 1:
        table = cells[0] if len(cells) == 1 else cells
    else:
        raise BadInput(f"The table's lines have different lengths. Give {pairs} numbers a line, or one a line.")
    factors = check_factors(table, pairs)
    return factors, [note for note in (falling(factors),) if note]


def write_csv(factors: np.ndarray) -> str:
    """CSV in the repository's format: one number a line, or one line a layer."""
    table = np.asarray(factors, dtype=np.float64)
    rows = table[:, None] if table.ndim == 1 else table
    return "".join(",".join(_short(value) for value in row) + "\n" for row in rows)


def write_json(long: RopeScaling, short: RopeScaling | None = None) -> str:
    """The `rope_parameters` of transformers for one table: `rope_type: longrope`.

    short: factors up to the trained window; None writes ones. `factor` and `original_max_position_embeddings` are
    always written, `attention_factor` too unless it is the default (su).

    Raises:
        BadInput: a table with a row for each layer, or with n-hat: the format has no place for them.
    """
    if long.rescale_factors.ndim != 1 or long.n_hat:
        what = "n-hat" if long.n_hat else "a row for each layer"
        raise BadInput(f"This table has {what}, which the JSON format cannot hold. Export it as CSV.")
    shorter = np.ones(long.pairs) if short is None else check_factors(short.rescale_factors, long.pairs)
    content: dict[str, Any] = {
        "rope_type": "longrope",
        "rope_theta": long.base,
        "factor": long.scale,
        "original_max_position_embeddings": long.original_length,
        "short_factor": [float(_short(value)) for value in shorter],
        "long_factor": [float(_short(value)) for value in long.rescale_factors],
    }
    if not math.isclose(long.magnitude, magnitude_of("su", long.original_length, long.target_length)):
        content["attention_factor"] = long.magnitude
    return json.dumps(content, indent=1) + "\n"


def read_json(text: str | bytes, pairs: int, base: float | None = None) -> tuple[RopeScaling, RopeScaling]:
    """(short, long) from `rope_parameters`, or from a whole `config.json` that has them or `rope_scaling`.

    base: used where the text has no `rope_theta`.

    Raises:
        BadInput: not JSON, not longrope, a missing key, or lists of another length than `pairs`.
    """
    content, config = _rope_parameters(_text(text))
    original = content.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    if original is None:
        raise BadInput("original_max_position_embeddings is missing, so the trained window is unknown. Add it.")
    original = int(_finite(original, "original_max_position_embeddings"))
    if original < 2:
        raise BadInput(f"original_max_position_embeddings is {original}. Give the trained window in tokens.")
    largest = config.get("max_position_embeddings", original)
    factor = _finite(content.get("factor", _finite(largest, "max_position_embeddings") / original), "factor")
    theta = _finite(content.get("rope_theta", config.get("rope_theta", base or 10_000.0)), "rope_theta")
    magnitude = content.get("attention_factor")
    target = max(round(original * factor), 1)
    m = magnitude_of("su" if magnitude is None else _finite(magnitude, "attention_factor"), original, target)
    found = []
    for key, length in (("short_factor", original), ("long_factor", target)):
        if not isinstance(content.get(key), list):
            raise BadInput(f"{key} is missing. A longrope configuration has short_factor and long_factor.")
        factors = check_factors(content[key], pairs)
        if factors.ndim != 1:
            raise BadInput(f"{key} has a row for each layer. Give one list of {pairs} numbers.")
        found.append(scaling("longrope", 2 * pairs, theta, original, length, m, factors))
    return found[0], found[1]


def _rope_parameters(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotary part and the whole configuration."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("This is not JSON. Give the rope_parameters of a model, or its config.json.") from None
    if not isinstance(config, dict):
        raise BadInput("This JSON is not an object. Give the rope_parameters of a model, or its config.json.")
    content = config.get("rope_parameters") or config.get("rope_scaling") or config
    kind = content.get("rope_type", content.get("type")) if isinstance(content, dict) else None
    if kind not in ("longrope", "su"):
        raise BadInput(f"The rope type is {kind!r}. Only longrope (or su, its first name) has factor lists.")
    return content, config


def _text(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise BadInput(f"The table has {len(text):,} bytes. A factor table is smaller than {MAX_BYTES:,}.")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadInput("This file is not text. Give a CSV with one number a line, or a JSON file.") from None
    if "\0" in text:
        raise BadInput("This file is not text. Give a CSV with one number a line, or a JSON file.")
    return text


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise BadInput(
            f"{cell.strip()[:20]!r} is not a number. A table holds numbers only, without a heading."
        ) from None


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise BadInput(f"{name} is {str(value)[:20]!r}. Give a number above 0.")
    return float(value)


def _short(value: float) -> str:
    """Ten significant digits without trailing zeros."""
    return f"{value:.10g}"
