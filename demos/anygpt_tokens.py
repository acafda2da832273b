"""The token view: the one stream that the model reads and writes, every token coloured by its medium. HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from models.anygpt.vocabulary import Words

Colour = Literal["text", "image", "speech", "music", "role"]
LEGEND: dict[Colour, str] = {
    "text": "text", "image": "picture", "speech": "speech", "music": "music", "role": "roles",
}  # fmt: skip
EMPTY = '<p class="said">Every token that the model reads and writes appears here while it works.</p>'

# Scoped to the view by Gradio. The newest tokens are at the end: a reversed column keeps them in sight.
CSS = """
.legend { display: flex; flex-wrap: wrap; gap: .3rem .9rem; align-items: baseline; margin: 0 0 .4rem; }
.legend b { font-variant-numeric: tabular-nums; }
.said { margin: 0; color: var(--body-text-color-subdued); }
.stream { display: flex; flex-direction: column-reverse; max-height: 230px; overflow-y: auto; border-radius: 6px;
  border: 1px solid var(--border-color-primary); padding: .4rem; }
.stream p { margin: 0; font-family: var(--font-mono); font-size: 12.5px; line-height: 1.75; overflow-wrap: anywhere; }
.stream h4 { margin: .5rem 0 .1rem; font-size: 12.5px; font-weight: 700; color: var(--body-text-color-subdued); }
i { font-style: normal; border-radius: 3px; padding: .08em .22em; margin-right: 2px; white-space: pre-wrap; }
i:not(.text) { display: inline-block; white-space: nowrap; line-height: 1.3; }
i.text { background: rgb(100 116 139 / .16); }
i.image { background: rgb(217 119 6 / .30); }
i.speech { background: rgb(37 99 235 / .26); }
i.music { background: rgb(147 51 234 / .26); }
i.role { border: 1px solid var(--border-color-accent); font-weight: 700; }
i.mark { font-weight: 700; }
"""


class TokenView:
    """The stream of one reply: what is read before it, then each token as it is written.

    Args:
        prompt: ids that the model reads. left_out: turns of the conversation that are no longer among them.
        window: how many tokens the model can read.
    """

    def __init__(self, words: Words, prompt: Iterable[int], left_out: int, window: int) -> None:
        self._words, self._left_out, self._window = words, left_out, window
        self._roles = {i: spelling for spelling, i in words.vocabulary.tokens.items()}
        self._roles |= {i: str(words.tokenizer.convert_ids_to_tokens(i)) for i in words.tokenizer.all_special_ids}
        self._read = [self._span(token) for token in prompt]
        self._written: list[tuple[Colour, str]] = []

    @property
    def written(self) -> int:
        return len(self._written)

    @property
    def counts(self) -> dict[Colour, int]:
        """Tokens of each colour, read and written."""
        found = Counter(colour for colour, _ in (*self._read, *self._written))
        return {colour: found[colour] for colour in LEGEND}

    def push(self, token: int) -> None:
        """One more token of the reply."""
        self._written.append(self._span(token))

    def retract(self, count: int) -> None:
        """The last tokens of the reply are taken back."""
        del self._written[len(self._written) - count :]

    def html(self) -> str:
        counts = self.counts
        legend = "".join(
            f'<span><i class="{colour}">{title}</i> <b>{counts[colour]:,}</b></span>'
            for colour, title in LEGEND.items()
        )
        facts = f"{len(self._read):,} read, {self.written:,} written; the model reads at most {self._window:,}."
        if self._left_out:
            facts += f" The oldest {self._left_out} turns no longer fit and are left out."
        read, written = ("".join(html for _, html in spans) for spans in (self._read, self._written))
        return (
            f'<div class="legend">{legend}<span class="said">{facts}</span></div>'
            '<div class="stream" tabindex="0" role="region" aria-label="Tokens"><div>'
            f"<h4>Read</h4><p>{read}</p><h4>Written</h4><p>{written}</p></div></div>"
        )

    def _span(self, token: int) -> tuple[Colour, str]:
        vocabulary = self._words.vocabulary
        unit = vocabulary.unit(token)
        medium = vocabulary.starts(token) or vocabulary.ends(token) if unit is None else unit[0]
        if medium is None or medium == "audio":
            if token in self._roles:
                return self._coloured("role", self._roles[token])
            text = self._words.decode([token])
            return self._coloured("text", text.replace("\n", "\N{RETURN SYMBOL}\n"))
        if unit is not None:
            return self._coloured(medium, str(unit[1]))
        return self._coloured(medium, str(self._words.tokenizer.convert_ids_to_tokens(token)), " mark")

    @staticmethod
    def _coloured(colour: Colour, text: str, more: str = "") -> tuple[Colour, str]:
        return colour, f'<i class="{colour}{more}">{escape(text, quote=False)}</i>'
