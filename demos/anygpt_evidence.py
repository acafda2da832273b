"""The AnyGPT tab's Evidence and How it works panels: the paper's figures, what was measured here, one drawing.

Everything measured is read from `assets/anygpt/evidence/*.json`, which commands of `models.anygpt.embedded` write;
whether a target is met is computed from it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demos import parts
from demos.parts import EvidenceRow, evidence_html

EVALUATE = "python -m models.anygpt.embedded.evaluate"
Recorded = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One row of this project's targets. paper: its nearest figure there, of another test. key: of the record.

    least or most: the target, for the value of `key`. seconds: in which the slowest has to be done.
    """

    title: str
    paper: str | None
    key: str = "right, %"
    least: float | None = None
    most: float | None = None
    seconds: float | None = None


# By the names of the records. The paper's figures: version 5, section 4, zero-shot, 7 billion parameters.
TASKS = {
    "tts": Task("Text to speech: words wrong", "8.5 % (VCTK, 3 s of a voice)", "word error rate, %", most=15),
    "asr": Task("Speech to text: words wrong", "8.5 % (LibriSpeech test-clean)", "word error rate, %", most=20),
    "draw": Task("Text to picture: the right thing", "CLIP score 0.65 (COCO)", least=70),
    "caption": Task("Picture to text: the thing is named", "CIDEr 107.5 (COCO Karpathy)", least=70),
    "compose": Task("Text to music: tempo and instrument", "CLAP 0.14 (MusicCaps)", least=70),
    "describe": Task("Music to text: tempo and instrument", "CLAP 0.11 (MusicCaps)", least=70),
    "spoken": Task("A spoken request answered in all four media", None, least=100, seconds=20),
    "text": Task("Perplexity of plain text, against SmolLM2: change", None, "change, %", most=3),
}
OTHERS = (
    ("Picture to text, COCO Karpathy: CIDEr (higher is better)", "107.5", "SEED-LLaMA-8B 123.6, Flamingo-9B 79.4"),
    ("Text to picture, 30 000 COCO captions: CLIP score (higher)", "0.65", "SEED-LLaMA 0.69, Emu 0.66"),
    ("Speech to text, LibriSpeech test-clean: words wrong (lower)", "8.5 %", "Whisper-L-v2 2.7 %, humans 5.8 %"),
    ("Text to speech, VCTK, 3 s of a voice: words wrong (lower)", "8.5 %", "VALL-E 7.9 %, real recordings 1.9 %"),
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
    """A plot and a page, made when `tab` is opened: nobody waits for them before."""
    figure = gr.Plot(show_label=False, visible=False, elem_id="anygpt-evidence-plot")
    page = gr.HTML(elem_id="anygpt-evidence", padding=False)

    def open_evidence() -> tuple[Any, str]:
        from demos.anygpt_plots import against_targets

        recorded = read_records(folder)
        measured = {name: recorded[name]["result"] for name in TASKS if name in recorded}
        plot = gr.Plot(against_targets(measured, TASKS), visible=True) if measured else gr.skip()
        return plot, evidence_page(recorded)

    tab.select(open_evidence, None, [figure, page], api_name="anygpt_evidence", show_progress="hidden")


def read_records(folder: Path) -> dict[str, Recorded]:
    """Every recorded file by name; files of another kind in the folder are left out."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: data for name, data in found.items() if isinstance(data, dict) and "provenance" in data}


def evidence_page(recorded: Mapping[str, Recorded]) -> str:
    """The targets with the paper beside them, the other records, and the paper's comparisons. HTML."""
    rows = [_target(name, task, recorded.get(name)) for name, task in TASKS.items()]
    title = "The miniature here, on what it never saw, judged by other models; the paper's nearest figure beside it"
    pages = [evidence_html(rows, title)]
    pages += [f"<p>{escape(text)}</p>" for text in _origins(recorded)]
    pages += [_facts(name, data) for name, data in recorded.items() if name not in TASKS]
    others = [EvidenceRow(what, figure, None, compared) for what, figure, compared in OTHERS]
    pages.append(evidence_html(others, "The paper's own figures and its comparisons; not measured here"))
    return "<br>".join([*pages, f"<p>{escape(LIMITS)}</p>"])


def met(task: Task, result: Mapping[str, Any]) -> bool:
    """Whether a record reaches its target."""
    value = result[task.key]
    quick = task.seconds is None or result["slowest, s"] < task.seconds
    return quick and (task.least is None or value >= task.least) and (task.most is None or value <= task.most)


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
        "**Some runs are written again.** The embedded model has up to four tries at music, until its sound keeps to "
        "what its own first frame says, and up to three at speech, until the model hears in it what it meant to say. "
        "The best is kept; the tokens of the others leave the view. Music is also led away from what the model would "
        "play for an empty request. The paper has neither.\n\n"
        "**Spoken turns** answer in a chain: what was heard, the reply in words, the reply in speech.\n\n"
        "**A conversation is kept as ids.** What was read or written once is never encoded again; the oldest turns are "
        "left out when the model's window is full, and the page says so."
    )
    parts.drawing(
        assets / "how_it_works.png",
        "Encoders turn a picture, speech and music into codes; they stand in one stream of tokens with "
        "the words; decoders turn codes back. Below, the vocabulary with the number of tokens of each medium",
        buttons=["fullscreen"],
    )


def _target(name: str, task: Task, data: Recorded | None) -> EvidenceRow:
    if data is None:
        return EvidenceRow(task.title, task.paper, None, f"Not measured yet: {EVALUATE} {name} records it.")
    result = data["result"]
    low, high = result.get("interval, %", (None, None))
    low_high = f", 95 % interval {low:g} to {high:g}" if low is not None else ""
    count = f" ({result['right']} of {result['of']})" if "of" in result else ""
    verdict = "met" if met(task, result) else "missed"
    here = f"{result[task.key]:g} %{count}"
    return EvidenceRow(
        task.title, task.paper, here, f"Target {result['target']}: {verdict}{low_high}. {result['measures']}"
    )


def _origins(recorded: Mapping[str, Recorded]) -> list[str]:
    """Where the targets' rows come from, once for all that came from the same command."""
    found: dict[str, list[str]] = {}
    for name in TASKS:
        if name in recorded:
            source = recorded[name]["provenance"]
            found.setdefault(f"{source['command']}; {source['machine']}; {source['date'][:10]}", []).append(name)
    return [f"{', '.join(names)}: {origin}" for origin, names in found.items()]


def _facts(name: str, data: Recorded) -> str:
    """Any other record as a table; single items of long lists are in the file."""
    source, result = data["provenance"], data["result"]
    title = f"{name.replace('_', ' ').capitalize()} ({source['date']}, {source['machine']}: {source['command']})"
    facts = result if isinstance(result, Mapping) else {"": result}
    rows = [EvidenceRow(_words(key), None, _shown(value)) for key, value in facts.items() if not _items(value)]
    return evidence_html(rows, title)


def _items(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, Mapping) for each in value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_shown(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "–" if value is None else str(value)
