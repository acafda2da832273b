"""Draws the tab's picture: factors of every method, and how far a far token turns, from the code itself.

python -m models.longrope.figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from models.errors import BadInput
from models.longrope.rope import scaling
from models.longrope.tables import searched

DIM, BASE, WINDOW, TARGET = 64, 1e5, 8192, 32_768  # SmolLM2-135M, four times its window
COLOURS = {"none": "#6b7280", "PI": "#d97706", "NTK": "#2563eb", "YaRN": "#7c3aed", "LongRoPE": "#0f766e"}


def how_it_works(target: Path) -> None:
    """Left: the factor of each rotary pair. Right: turns of each pair at the last token, against the trained range."""
    curves = {
        title: scaling(method, DIM, BASE, WINDOW, TARGET)
        for title, method in (("none", "none"), ("PI", "pi"), ("NTK", "ntk"), ("YaRN", "yarn"))
    }
    try:
        _, factors = searched("smollm2", TARGET, DIM // 2)
        curves["LongRoPE"] = scaling("longrope", DIM, BASE, WINDOW, TARGET, table=factors)
    except BadInput:
        print("no searched table for this length yet: the picture shows the formulas only")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    trained = curves["none"].angles(np.array([WINDOW - 1]))[0] / (2 * np.pi)
    right.fill_between(range(DIM // 2), 1e-3, trained, color="#d1fae5", label="seen in training")
    for title, rope in curves.items():
        width = 3 if title == "LongRoPE" else 1.8
        left.plot(rope.rescale_factors, color=COLOURS[title], label=title, linewidth=width)
        right.plot(rope.angles(np.array([TARGET - 1]))[0] / (2 * np.pi), color=COLOURS[title], linewidth=width)
    left.set(
        xlabel="rotary pair, fast to slow", ylabel="factor", title=f"Rescale factors, {WINDOW:,} to {TARGET:,} tokens"
    )
    left.legend(frameon=False)
    right.set(xlabel="rotary pair, fast to slow", ylabel="turns", yscale="log", title="Turns at the last token")
    right.legend(frameon=False)
    figure.savefig(target, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path("assets/longrope"))
    how_it_works(parser.parse_args().assets / "how_it_works.png")


if __name__ == "__main__":
    main()
