"""The AnyGPT tab's Evidence and How it works panels: the paper's figures, what was measured here, one drawing.

Everything measured is read from `assets/anygpt/evidence/*.json`, which commands of `models.anygpt.embedded` write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demos.parts import EvidenceRow, evidence_html

EVALUATE = "python -m models.anygpt.embedded.evaluate"
# Paper v5, section 4: zero-shot, the base model of 7 billion parameters (specification, section 9).
PAPER = (
    ("Picture to text, COCO Karpathy: CIDEr (higher is better)", "107.5", "SEED-LLaMA-8B 123.6, Flamingo-9B 79.4"),
    ("Text to picture, 30 000 COCO captions: CLIP score (higher)", "0.65", "SEED-LLaMA 0.69, Emu 0.66"),
    ("Speech to text, LibriSpeech test-clean: word errors (lower)", "8.5 %", "Whisper-L-v2 2.7 %, humans 5.8 %"),
    ("Text to speech, VCTK, 3 s of a voice: word errors (lower)", "8.5 %", "VALL-E 7.9 %, real recordings 1.9 %"),
    ("The same: likeness to the voice (higher)", "0.77", "VALL-E 0.75, USLM 0.84"),
    ("Music to text, MusicCaps: CLAP (higher)", "0.11", "people's captions 0.16"),
    ("Text to music, MusicCaps: CLAP (higher)", "0.14", "Riffusion 0.19, Moûsai 0.23"),
)
LIMITS = (
    "Limits, as the paper states them: a higher loss than with one medium alone, tokenizers cap the quality, music "
    "of five seconds, a short context. The miniature here shares the method and the format of the stream, not the "
    "scale: its figures are for its own small world and cannot be compared with the paper's."
)


def show_evidence(folder: Path, tab: gr.Tab) -> None:
    """A page that is written when `tab` is opened."""
    page = gr.HTML(elem_id="anygpt-evidence", padding=False)
    tab.select(lambda: evidence_page(folder), None, page, api_name="anygpt_evidence", show_progress="hidden")


def evidence_page(folder: Path) -> str:
    """The paper's table, then one a recorded file; says so where nothing was measured. HTML."""
    rows = [EvidenceRow(what, figure, None, others) for what, figure, others in PAPER]
    pages = [evidence_html(rows, "The paper's own figures: zero-shot, 7 billion parameters; not measured here")]
    recorded = sorted(folder.glob("*.json"))
    pages += [page for path in recorded if (page := _recorded(path))]
    if len(pages) == 1:
        pages.append(f"<p>Not measured here yet. <code>{EVALUATE}</code> records it.</p>")
    return "".join([*pages, f"<p>{escape(LIMITS)}</p>"])


def explanation(assets: Path) -> None:
    gr.Markdown(
        "**The idea.** A tokenizer turns a picture, speech or music into a few whole numbers; these are new words of "
        "an ordinary language model, between a word that says “here begins a picture” and one that says “here it "
        "ends”. The model is trained as ever, to say the next word, and so learns to read and write all of them in one "
        "stream. Decoders turn the numbers back into what people see and hear.\n\n"
        "**Meaning and detail are apart.** The language model handles few tokens that carry meaning; what they leave "
        "out (a voice, a texture) is added by the decoders.\n\n"
        "**Decoding here is by ids.** Inside a picture only picture codes can follow, exactly as many as it has; music "
        "keeps the order of its layers; every run is closed. The published code samples from all words and can break "
        "in the middle. Sampling settings change with the medium, token by token.\n\n"
        "**Spoken turns** answer in a chain: what was heard, the reply in words, the reply in speech.\n\n"
        "**A conversation is kept as ids.** What was read or written once is never encoded again; the oldest turns are "
        "left out when the model's window is full, and the page says so."
    )
    drawing = assets / "how_it_works.png"
    if drawing.exists():
        gr.Image(
            str(drawing), show_label=False, interactive=False, buttons=["fullscreen"],
            alt_text="Encoders turn a picture, speech and music into codes; they stand in one stream of tokens with "
            "the words; decoders turn codes back. Below, the vocabulary with the number of tokens of each medium",
        )  # fmt: skip


def _recorded(path: Path) -> str:
    """One recorded file as a table with where it comes from; nothing for a file that holds no result."""
    data = json.loads(path.read_text(encoding="utf-8"))
    source, result = data.get("provenance"), data.get("result")
    if source is None or not result:
        return ""
    title = path.stem.replace("_", " ").capitalize()
    origin = f"{title}. Measured here: {source['date']}, {source['machine']}; {source['command']}"
    rows = result.get("rows") if isinstance(result, Mapping) else result
    if isinstance(rows, Sequence) and rows and all(isinstance(row, Mapping) and "what" in row for row in rows):
        return evidence_html([_row(row) for row in rows], origin)
    facts = result if isinstance(result, Mapping) else {str(i): row for i, row in enumerate(rows or (), 1)}
    return evidence_html([EvidenceRow(_words(key), None, _shown(value)) for key, value in facts.items()], origin)


def _row(row: Mapping[str, Any]) -> EvidenceRow:
    """A row that says what it measures; whatever else it holds is its note."""
    rest = {key: value for key, value in row.items() if key not in ("what", "paper", "here", "note")}
    note = "; ".join(
        [*([row["note"]] if row.get("note") else []), *(f"{_words(k)} {_shown(v)}" for k, v in rest.items())]
    )
    return EvidenceRow(row["what"], row.get("paper"), _shown(row.get("here")), note)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_shown(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "–" if value is None else str(value)
