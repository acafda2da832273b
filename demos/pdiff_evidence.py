"""The P-diff tab's Evidence panel: recorded figures, with the paper's beside them.

Everything measured is read from `assets/pdiff/evidence/*.json`, which `models.pdiff.evaluate` writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from demos.parts import EvidenceRow, evidence_table

# Original / ensemble / P-diff, best accuracy in percent (specification D.1), by the row here that is most like it.
PAPER_TABLE = {
    ("MLP-3", "mnist"): "85.3 / 85.2 / 85.4 (MLP-3, MNIST)",
    ("CNN-3", "mnist"): "99.2 / 99.2 / 99.2 (ConvNet-3, MNIST)",
    ("ResNet-18", "mnist"): "99.2 / 99.2 / 99.3 (MNIST)",
    ("ConvNeXt-atto", "mnist"): "99.3 / 99.4 / 99.3 (ConvNeXt-T, MNIST)",
}
# ResNet-18 on CIFAR-100 (specification D.2, D.3): best, mean of the 2024 paper or generated mean, max of the logs.
PAPER_ABLATIONS = {
    "K = 300, both norms, both noises": "2025 logs: mean 77.24, best 77.55 (originals 76.72, 77.15)",
    "K = 10": "2024: best 76.5, mean 71.2",
    "K = 50": "2024: best 76.7, mean 71.3",
    "K = 200": "2024: best 76.9, mean 72.4; 2025 logs: mean 77.24, best 77.51",
    "no noise": "2024: best 76.7, mean 65.8; 2025 logs: mean 76.54, best 77.15",
    "noise on parameters only": "2024: best 76.7, mean 66.7; 2025 logs: mean 76.54, best 77.21",
    "noise on latents only": "2024: best 76.7, mean 72.1; 2025 logs: mean 77.25, best 77.64",
    "latent noise of 1": "2025 logs: mean 77.31, best 77.57",
}
PAPER_GROUPS = {
    "originals": "76.5 to 77.3 %, similarity 0.96 to 0.99",
    "generated": "76.9 to 77.65 %, similarity 0.83 to 0.865",
    "mean of 16": "77.33 to 77.65 %, similarity 0.855 to 0.885",
    "gaussian": "76.8 to 77.5 %, similarity 0.82 to 0.865",
}
GROUPS = {
    "originals": "originals",
    "generated": "generated",
    "ensemble": "ensemble (average of all originals)",
    "noise": "originals + noise",
    "interpolation": "interpolation of two originals",
    "mean of 16": "mean of 16 originals",
    "gaussian": "a Gaussian a parameter",
}


def show_evidence(folder: Path) -> None:
    """One table a recorded file; a file that is missing says how to make it."""
    _table(_read(folder, "table"))
    _zoos(_read(folder, "zoos"))
    _ablations(_read(folder, "ablations"))
    _speed(_read(folder, "speed"))


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _caption(text: str, data: dict[str, Any]) -> str:
    source = data["provenance"]
    return f"{text} ({source['date']}, {source['machine']}: {source['command']})"


def _missing(what: str, command: str) -> None:
    gr.Markdown(f"Not measured yet: {what}. `{command}` records it.")


def _table(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("the paper's table in small", "python -m models.pdiff.evaluate table")
        return
    rows = []
    for key, cells in _grouped(data["result"]["rows"], "row", "data").items():
        best = [
            _interval([cell["originals"]["best"] for cell in cells]),
            _interval([cell["ensemble"] for cell in cells]),
            _interval([cell["generated"]["best"] for cell in cells]),
        ]
        mean = [_interval([cell[group]["mean"] for cell in cells]) for group in ("originals", "generated")]
        note = f"means of all networks: {mean[0]} and {mean[1]}; {cells[0]['parameters']:,} parameters generated"
        rows.append(EvidenceRow(", ".join(key), PAPER_TABLE.get((key[0], key[1])), " / ".join(best), note))
    caption = "Original / ensemble / P-diff, best test accuracy in percent, three seeds with 95 % intervals"
    evidence_table(rows, _caption(caption, data))


def _zoos(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("the shipped zoos", "python -m models.pdiff.evaluate zoos")
        return
    for (zoo,), runs in _grouped(data["result"]["rows"], "zoo").items():
        rows = []
        for name, title in GROUPS.items():
            figures = [run["groups"][name] for run in runs]
            here = f"best {_interval([f['best'] for f in figures])} %, mean {_interval([f['mean'] for f in figures])} %"
            note = (
                f"largest IoU with an original {_mean(figures, 'max_similarity'):.3f}, "
                f"distance to the nearest {_mean(figures, 'nearest'):.2f}"
            )
            if name == "noise":
                note += f"; scale {runs[0]['noise_scale']} of each parameter's spread"
            rows.append(EvidenceRow(title, PAPER_GROUPS.get(name) if zoo == "digits-q" else None, here, note))
        caption = f"Zoo {zoo}: three sampling seeds; the paper's column is ResNet-18 on CIFAR-100 (Zeng et al. 2025)"
        evidence_table(rows, _caption(caption, data))


def _ablations(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("the ablations", "python -m models.pdiff.evaluate ablations")
        return
    rows = []
    for (setting,), runs in _grouped(data["result"]["rows"], "setting").items():
        best, mean = (_interval([run["generated"][what] for run in runs]) for what in ("best", "mean"))
        originals = [_interval([run["originals"][what] for run in runs]) for what in ("best", "mean")]
        note = (
            f"originals: best {originals[0]}, mean {originals[1]}; largest IoU with an original "
            f"{_mean([run['generated'] for run in runs], 'max_similarity'):.3f}"
        )
        rows.append(EvidenceRow(setting, PAPER_ABLATIONS.get(setting), f"best {best}, mean {mean}", note))
    caption = "Ablations, noisy digits here, ResNet-18 on CIFAR-100 in the paper; three seeds with 95 % intervals"
    evidence_table(rows, _caption(caption, data))


def _speed(data: dict[str, Any] | None) -> None:
    if data is None:
        _missing("speed", "python tests/benchmarks/bench_pdiff.py --out assets/pdiff/evidence/speed.json")
        return
    rows = [
        EvidenceRow(row["what"], row.get("paper"), row["here"], row.get("note", "")) for row in data["result"]["rows"]
    ]
    evidence_table(rows, _caption("Speed, all in one run", data))


def _grouped(rows: Sequence[dict[str, Any]], *keys: str) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _mean(rows: Sequence[dict[str, Any]], what: str) -> float:
    return sum(row[what] for row in rows) / len(rows)


def _interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval."""
    from scipy.stats import t

    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return f"{mean:.2f}"
    spread = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
    return f"{mean:.2f} ± {t.ppf(0.975, n - 1) * spread / n**0.5:.2f}"
