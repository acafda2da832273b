"""Draws the tab's picture: codecs, one conversation as the stream the model learns from, and the vocabulary.

    python -m models.anygpt.figures        # assets/anygpt/how_it_works.png

Every number comes from the code: the layout of the miniature, its tokenizer, and a conversation of its instructions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from models.anygpt.embedded import lm
from models.anygpt.embedded.instructions import SAMPLE
from models.anygpt.embedded.layout import IMAGE_CODES, LAYOUT, MUSIC_FRAMES, RULES
from models.anygpt.templates import DEFAULT_TEMPLATE, TEMPLATES
from models.anygpt.vocabulary import MARKERS, Vocabulary

COLOURS = {"text": "#cbd5e1", "image": "#fbbf77", "speech": "#93b4f5", "music": "#c4a1f0", "role": "#ffffff"}
TITLES = {"text": "words", "image": "picture", "speech": "speech", "music": "music", "role": "roles"}
COLUMNS = 36  # tokens a line of the drawn stream


def how_it_works(target: Path, sample: Path = SAMPLE) -> None:
    """Above: each medium's codes. Middle: a conversation, a cell a token. Below: the vocabulary, to scale."""
    words = lm.words()
    turns = conversation(sample)
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(13, 10.4), layout="constrained", gridspec_kw={"height_ratios": [1.9, 6.8, 1.5]}
    )
    for axes in (top, middle, bottom):
        axes.axis("off")
    _codecs(top)
    _stream(middle, turns)
    _vocabulary(bottom, words.vocabulary)
    figure.savefig(target, dpi=80)


def conversation(sample: Path) -> list[tuple[str, str]]:
    """(role, message) of the first spoken request in the instructions that is answered in all four media."""
    markers = [MARKERS[medium][0] for medium in ("image", "speech", "music")]
    for line in sample.read_text(encoding="utf-8").splitlines():
        turns = [(turn["role"], turn["message"]) for turn in json.loads(line)["conversation"]]
        if markers[1] in turns[0][1] and all(marker in turns[1][1] for marker in markers):
            return turns[:2]
    raise ValueError(f"{sample.name} has no spoken request that is answered in all media")


def kind_of(vocabulary: Vocabulary, token: int) -> str:
    """The medium of an id, "role" for structure, "text" otherwise."""
    found = vocabulary.unit(token)
    medium = found[0] if found else vocabulary.starts(token) or vocabulary.ends(token)
    return medium or ("role" if token in vocabulary.tokens.values() else "text")


def _codecs(axes: Axes) -> None:
    assert LAYOUT.image is not None and LAYOUT.speech is not None and LAYOUT.music is not None
    told = {
        "image": f"drawn things\n{IMAGE_CODES} tokens a picture, {LAYOUT.image.size} codes",
        "speech": f"what is said, not by whom\nup to {RULES['speech'].most} tokens, {LAYOUT.speech.size} codes",
        "music": (
            f"a frame about the whole and {MUSIC_FRAMES} of sound\n"
            f"{RULES['music'].most} tokens, {LAYOUT.music.layers} x {LAYOUT.music.size} codes"
        ),
    }
    for column, (medium, text) in enumerate(told.items()):
        x = 0.02 + 0.33 * column
        axes.add_patch(Rectangle((x, 0.42), 0.3, 0.5, facecolor=COLOURS[medium], edgecolor="#475569"))
        axes.text(
            x + 0.15, 0.67, f"{TITLES[medium]}: encoder and decoder\n{text}", ha="center", va="center", fontsize=12
        )
        for shift, (low, high) in ((0.12, (0.4, 0.06)), (0.18, (0.06, 0.4))):
            arrow = FancyArrowPatch((x + shift, low), (x + shift, high), arrowstyle="-|>", mutation_scale=16)
            axes.add_patch(arrow)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Codes of each medium", loc="left", fontsize=13, fontweight="bold")


def _stream(axes: Axes, turns: list[tuple[str, str]]) -> None:
    words = lm.words()
    template = TEMPLATES[DEFAULT_TEMPLATE]
    texts = [f"[Human]: {turns[0][1]}<eoh>\n{template.bot}:", f" {turns[1][1]}{template.bot_end}"]
    row = 0
    for title, text in zip(("read", "written"), texts, strict=True):
        ids = words.tokenizer.encode(text, add_special_tokens=False)
        for i, token in enumerate(ids):
            x, y = i % COLUMNS, row + i // COLUMNS
            kind = kind_of(words.vocabulary, token)
            axes.add_patch(Rectangle((x, -y), 0.94, 0.86, facecolor=COLOURS[kind], edgecolor="#94a3b8", linewidth=0.6))
            axes.text(x + 0.47, -y + 0.4, _short(token), ha="center", va="center", fontsize=8)
        axes.text(-0.4, -row + 0.4, f"{title}\n{len(ids)} tokens", ha="right", va="center", fontsize=11)
        row += -(-len(ids) // COLUMNS) + 1
    axes.set(xlim=(-2.6, COLUMNS), ylim=(-row + 1.6, 1.2))
    axes.set_title("One stream: a spoken request and its reply", loc="left", fontsize=13, fontweight="bold")


def _short(token: int) -> str:
    """What fits into a cell: a unit's number, a word, a marker's letters."""
    found = lm.words().vocabulary.unit(token)
    if found:
        return str(found[1])
    text = lm.words().decode([token]).strip("<>[]\n ")
    return text[:5]


def _vocabulary(axes: Axes, vocabulary: Vocabulary) -> None:
    counts = {medium: len(units.ids) + 2 for medium, units in vocabulary.media.items()}
    counts["role"] = len(vocabulary.tokens)  # type: ignore[index]
    before = vocabulary.size - sum(counts.values())
    added = vocabulary.size - before
    axes.add_patch(Rectangle((0, 0.55), before / vocabulary.size, 0.4, facecolor=COLOURS["text"], edgecolor="#475569"))
    axes.text(0.4, 0.75, f"{before:,} words and pieces of words, as they were", ha="center", va="center", fontsize=12)
    left, low = before / vocabulary.size, 0.0
    for kind, count in counts.items():
        width = count / vocabulary.size
        axes.add_patch(Rectangle((left, 0.55), width, 0.4, facecolor=COLOURS[kind], edgecolor="none"))
        wide = count / added
        axes.add_patch(Rectangle((low, 0), wide, 0.32, facecolor=COLOURS[kind], edgecolor="#475569"))
        if wide > 0.05:
            axes.text(low + wide / 2, 0.16, f"{TITLES[kind]} {count}", ha="center", va="center", fontsize=11)
        left, low = left + width, low + wide
    axes.plot([before / vocabulary.size, 0], [0.55, 0.32], color="#94a3b8", linewidth=0.8)
    axes.plot([1, 1], [0.55, 0.32], color="#94a3b8", linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1))
    title = f"The vocabulary: {added:,} new rows ({added / vocabulary.size:.1%}); the network keeps its shape"
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path("assets/anygpt"))
    how_it_works(parser.parse_args().assets / "how_it_works.png")


if __name__ == "__main__":
    main()
