"""The SDXL-Lightning tab's Evidence and How it works panels: the paper's table, what was measured here, one drawing.

Everything measured is read from `assets/sdxl_lightning/evidence/*.json`, which `models.sdxl_lightning.evaluate` and
`tests/benchmarks/bench_sdxl_lightning.py` write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demos import parts
from demos.parts import EvidenceRow, evidence_table
from demos.sdxl_lightning_rivals import show_rivals

# Table 2: COCO validation, first 10 000 prompts; patches are 299 px centre crops. Method, steps, FID, patch FID, CLIP.
PAPER = (
    ("SDXL with guidance (64 evaluations)", "32", "18.49", "35.89", "26.48"),
    ("LCM", "1", "80.01", "158.90", "23.65"),
    ("LCM", "4", "21.85", "42.53", "26.09"),
    ("LCM-LoRA", "4", "21.50", "40.38", "26.18"),
    ("Turbo (512 px, upscaled for patches)", "1", "23.71", "43.69", "26.36"),
    ("Turbo (512 px, upscaled for patches)", "4", "22.58", "42.65", "26.18"),
    ("Lightning, full network", "1", "22.61", "41.53", "26.02"),
    ("Lightning, full network", "2", "23.11", "35.12", "25.98"),
    ("Lightning, full network", "4", "22.30", "33.52", "26.07"),
    ("Lightning, full network", "8", "21.43", "33.55", "25.86"),
    ("Lightning, LoRA", "2", "23.39", "40.54", "26.18"),
    ("Lightning, LoRA", "4", "23.01", "34.10", "26.04"),
    ("Lightning, LoRA", "8", "22.30", "33.92", "25.77"),
)
READING = (
    "**How to read it.** Over whole pictures and in caption match (CLIP) every student is worse than SDXL at 32 steps. "
    "What the students win is detail: patch FID of the full networks at 2, 4 and 8 steps, at 2 only just; the 2-step "
    "LoRA and the 1-step network are worse there too. Eight steps are not better than four in patch FID or CLIP. The "
    "publishers call the 1-step network experimental."
)
RECORDS = {
    "quality": ("quality against steps", "python -m models.sdxl_lightning.evaluate"),
    "speed": (
        "speed",
        "python tests/benchmarks/bench_sdxl_lightning.py --out assets/sdxl_lightning/evidence/speed.json",
    ),
}
PICTURES = {
    "grid": "24 captions of combinations that training never showed, first seed, nothing chosen: the students at 1, 2, "
    "4 and 8 steps and the teacher at 32"
}
SHORT = {"fid": "FID", "patch_fid": "Patch FID", "match": "Right caption"}
MEASURES = {
    "fid": "FID, whole pictures (lower is better)",
    "patch_fid": "FID, patches (lower is better)",
    "match": "Right caption of ten (higher is better)",
}
LIMITS = (
    "**Limits, as the paper states them.** One network for each step count. The network's shape is not made for one "
    "step: the decoder then does most of the work. Other aspect ratios work, with more failures at 1 and 2 steps."
)


def show_evidence(folder: Path) -> None:
    """The paper's table, then each record and picture in `folder`; a record that is missing says how to make it."""
    gr.Markdown(READING)
    head = ("Method", "Steps", "FID", "FID of patches", "CLIP")
    gr.HTML(_table(head, PAPER, "Paper, table 2 (lower FID is better, higher CLIP is better)", "lp-paper"))
    show_rivals(folder)
    for name, (what, command) in RECORDS.items():
        if not (folder / f"{name}.json").is_file():
            gr.Markdown(f"Not measured here yet: {what}. `{command}` records it.")
    known = [*RECORDS]
    files = sorted(
        (path for path in folder.glob("*.json") if path.stem != "rivals"),
        key=lambda path: (known.index(path.stem) if path.stem in known else 99, path.stem),
    )
    for path in files:
        _record(path)
    for path in sorted(folder.glob("*.png")):
        said = PICTURES.get(path.stem, path.stem.replace("_", " ").replace("-", " ").capitalize())
        gr.Markdown(f"**{said}** (measured here)")
        gr.Image(str(path), show_label=False, interactive=False, alt_text=said, buttons=["fullscreen"])
    gr.Markdown(LIMITS)


def explanation(assets: Path) -> None:
    gr.Markdown(
        "**The idea.** A diffusion model makes a picture from noise in many small steps. A student learns to take "
        "several of its teacher's steps at once, again and again: 32 to 8, 4, 2, 1. Learned with squared error alone "
        "a student blurs, because one pass cannot do what many did. So an adversarial loss asks only that the jump "
        "*could* be the teacher's: a discriminator, itself a copy of the teacher's encoder, judges the jump from noise "
        "to result in latent space, knowing the start. A last phase judges the result alone, which removes doubled "
        "bodies.\n\n"
        "**Guidance** is part of what the first student copies; none of them needs it afterwards. That halves the work "
        "and is why there is no negative prompt.\n\n"
        "**One step is special.** There the network predicts the picture itself instead of the noise; a LoRA cannot "
        "make that change, so there is no 1-step LoRA.\n\n"
        "**Here** everything was trained by this project in small, with the paper's method: an autoencoder, a teacher "
        "and its students on recoloured and combined emoji, with the words of a small text encoder. The official tier "
        "runs the published networks through the same code."
    )
    parts.drawing(
        assets / "how_it_works.png",
        "Words and noise become latents in the network and a picture in the decoder; below, each "
        "student's jumps over the noise levels",
        buttons=["fullscreen"],
    )


def _record(path: Path) -> None:
    """One recorded file: its rows as plots and a table, with where it comes from."""
    data = json.loads(path.read_text())
    source, result = data["provenance"], data["result"]
    rows = result.get("rows") if isinstance(result, dict) else None
    if not rows:
        return
    title = path.stem.replace("_", " ").replace("-", " ").capitalize()
    title += f" on {result['captions']} held-out captions" if "captions" in result else ""
    origin = f"{title} ({source['date']}, {source['machine']}: {source['command']})"
    if "here" in rows[0]:
        evidence_table(
            [EvidenceRow(row["what"], row.get("paper"), row["here"], row.get("note", "")) for row in rows], origin
        )
        return
    if all(name in rows[0] for name in ("name", "steps", *MEASURES)):
        _curves(rows)
        gr.Markdown(_reading_here(rows))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    titles = [SHORT.get(key, str(key).replace("_", " ").capitalize()) for key in keys]
    gr.HTML(_table(titles, [[_shown(row.get(key)) for key in keys] for row in rows], origin, "lp-here"))


def _curves(rows: Sequence[Mapping[str, Any]]) -> None:
    """Each measure against the number of steps, a line a model: its LoRAs and full networks are one."""
    import pandas as pd

    drawn = [row for row in rows if row["steps"]]
    steps = [str(n) for n in sorted({row["steps"] for row in drawn})]
    frame = pd.DataFrame(
        {"steps": str(row["steps"]), "model": row["name"].partition(",")[0], **{name: row[name] for name in MEASURES}}
        for row in drawn
    )
    with gr.Row():
        for name, said in MEASURES.items():
            gr.LinePlot(
                frame, x="steps", y=name, color="model", title=said, x_title="steps", sort=steps, height=300,
                y_title=SHORT[name], buttons=["export", "fullscreen"],
            )  # fmt: skip


def _reading_here(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the recorded rows say of each student, against the teacher at its most steps and at the same steps."""
    teachers = {row["steps"]: row for row in rows if row["name"] == "teacher"}
    if not teachers:
        return ""
    best = teachers[max(teachers)]
    lines = [f"**Here**, against the teacher at {best['steps']} steps:"]
    for row in sorted((row for row in rows if row["name"].startswith("student")), key=lambda row: row["steps"]):
        text = f"- {row['name']}, {row['steps']} step{'s' * (row['steps'] > 1)}: "
        text += f"patch FID {row['patch_fid'] / best['patch_fid']:.2f}x, FID {row['fid'] / best['fid']:.2f}x, "
        text += f"caption match {row['match']:.0%} ({best['match']:.0%})"
        same = teachers.get(row["steps"])
        if same is not None:
            verb = "better" if row["patch_fid"] < same["patch_fid"] else "not better"
            text += f"; in patch FID {verb} than the teacher at the same steps ({same['patch_fid']:.0f})"
        lines.append(text)
    return "\n".join([lines[0], "", *lines[1:]])


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    return str(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str, kind: str) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f'<td class="{kind}">{escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="lp-evidence"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
