"""What the panels of the P-diff tab share: checked numbers, a progress bar, the table of accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from models.errors import BadInput
from models.runtime import ModelHandle

NOISY = 0.5  # of each parameter's spread over the originals
JOBS: dict[str, Any] = {"concurrency_id": "pdiff", "concurrency_limit": 1}
Handles = Mapping[str, ModelHandle]
Generated = dict[str, Any]  # one visitor's networks: zoo, latents (N, d), accuracy (N,), wrong (N, n/8) as bits


def kept(state: Generated | None) -> Generated:
    """The visitor's networks. Raises `BadInput` if there are none yet."""
    if state is None:
        raise BadInput("There is no generated network yet. Press Generate first.")
    return state


def accuracy_table(groups: Mapping[str, Any]) -> str:
    """Best, mean and worst accuracy of each group, in percent. HTML."""
    import numpy as np

    names = {
        "noise": f"originals + noise ({NOISY} of each parameter's spread)",
        "ensemble": "ensemble (average of all originals)",
    }
    rows = []
    for name, values in groups.items():
        a = np.atleast_1d(values)
        rows.append((names.get(name, name), str(len(a)), *(f"{v:.2f}" for v in (a.max(), a.mean(), a.min()))))
    return table(("Networks", "How many", "Best", "Mean", "Worst"), rows, "Test accuracy in percent, measured now")


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> str:
    """A table whose first column names the rows; all text is escaped. HTML."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f'<td class="lp-here">{escape(c)}</td>' for c in cells)
        + "</tr>"
        for name, *cells in rows
    )  # fmt: skip
    return (
        f'<div class="lp-evidence"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
