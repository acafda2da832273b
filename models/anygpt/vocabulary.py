"""One vocabulary for text, pictures, speech and music: how the tokens are spelled, and where they are.

A language model is given new tokens for the codes of each medium, between a start and an end marker (paper, section
3.2; specification section 2). Ids are never assumed: they are looked up by spelling, so that the published base and
chat vocabularies, that of the published training code, and a small one of our own are read by the same lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, cast

import torch

from models.errors import BadInput, WeightsCorrupt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Medium = Literal["image", "speech", "music", "audio"]
Kind = Literal["text", "image", "speech", "music", "audio"]
MEDIA: tuple[Medium, ...] = ("image", "speech", "music", "audio")  # the order in which their tokens are added

GLYPHS: dict[Medium, str] = {
    "image": "\N{EYES}",
    # Two code points. Without the variation selector the spelling is not one token.
    "speech": "\N{SPEAKING HEAD IN SILHOUETTE}\N{VARIATION SELECTOR-16}",
    "music": "\N{MULTIPLE MUSICAL NOTES}",
    "audio": "\N{EAR}",
}
MARKERS: dict[Medium, tuple[str, str]] = {
    "image": ("<soim>", "<eoim>"),
    "speech": ("<sosp>", "<eosp>"),
    "music": ("<somu>", "<eomu>"),
    "audio": ("<soau>", "<eoau>"),
}
HUMAN, MMGPT, END_OF_HUMAN, END_OF_BOT = "[Human]", "[MMGPT]", "<eoh>", "<eos>"
END_OF_MACHINE, ANYGPT, REPLY, HEARD = "<eom>", "[AnyGPT]", "<-Res->", "<-Ins->"
ROLES = (HUMAN, MMGPT, END_OF_HUMAN, END_OF_BOT)  # in every AnyGPT vocabulary, first
CHAT = (END_OF_MACHINE, ANYGPT, REPLY, HEARD)  # what the chat vocabulary adds at the end


@dataclass(frozen=True)
class Codes:
    """size: codes a layer. layers: how many follow one another in each frame of the stream."""

    size: int
    layers: int = 1

    @property
    def tokens(self) -> int:
        return self.size * self.layers


@dataclass(frozen=True)
class Layout:
    """Which media a vocabulary has, and how many codes each; the defaults are AnyGPT's own."""

    image: Codes | None = Codes(8192)
    speech: Codes | None = Codes(1024)
    music: Codes | None = Codes(2048, layers=4)
    audio: Codes | None = Codes(1024, layers=4)

    def items(self) -> Iterator[tuple[Medium, Codes]]:
        for field in fields(self):
            codes = getattr(self, field.name)
            if codes is not None:
                yield cast(Medium, field.name), codes


OFFICIAL = Layout()


@dataclass(frozen=True)
class Units:
    """Where one medium's tokens are.

    ids: of unit 0, 1, ... (layer by layer: unit = layer * size + code). start, end: the markers' ids.
    """

    medium: Medium
    codes: Codes
    ids: tuple[int, ...]
    start: int
    end: int

    @property
    def first(self) -> int | None:
        """The id of unit 0 if the ids follow one another, as they do in every vocabulary made here; else None."""
        low = self.ids[0]
        return low if self.ids == tuple(range(low, low + len(self.ids))) else None

    def layer(self, number: int) -> tuple[int, ...]:
        """The ids of one layer's codes."""
        return self.ids[number * self.codes.size : (number + 1) * self.codes.size]


class Vocabulary:
    """Spellings, ids and codes of one model's vocabulary.

    media: the media that are present. size: ids in use, 0 to size - 1. control: ids that text must never become.
    """

    def __init__(self, media: Mapping[Medium, Units], tokens: Mapping[str, int], size: int, control: frozenset[int]):
        self.media = dict(media)
        self.tokens = dict(tokens)
        self.size = size
        self.control = control
        self._units = {i: (units.medium, unit) for units in media.values() for unit, i in enumerate(units.ids)}
        self._starts = {units.start: units.medium for units in media.values()}
        self._ends = {units.end: units.medium for units in media.values()}

    def __contains__(self, spelling: str) -> bool:
        return spelling in self.tokens

    def id(self, spelling: str) -> int:
        """The id of a role or structure token. Raises `BadInput` where this vocabulary lacks it."""
        if spelling not in self.tokens:
            raise BadInput(
                f"This model's vocabulary has no token {spelling}. Choose the other chat template, or the chat model."
            )
        return self.tokens[spelling]

    def units(self, medium: Medium) -> Units:
        """Raises `BadInput` where the model has no tokens for the medium."""
        if medium not in self.media:
            raise BadInput(f"This model has no {medium} tokens. It knows: text, {', '.join(self.media)}.")
        return self.media[medium]

    def unit(self, token: int) -> tuple[Medium, int] | None:
        """The medium and unit number of an id; None for text, markers and roles."""
        return self._units.get(token)

    def starts(self, token: int) -> Medium | None:
        return self._starts.get(token)

    def ends(self, token: int) -> Medium | None:
        return self._ends.get(token)


def unit_spelling(medium: Medium, unit: int) -> str:
    return f"<{GLYPHS[medium]}{unit}>"


def additions(layout: Layout, chat: bool = True) -> list[str]:
    """Every token to add to a text vocabulary, in the published order (specification 2.2).

    chat: with the four tokens of AnyGPT-chat at the end.
    """
    tokens = list(ROLES)
    for medium, codes in layout.items():
        tokens += [unit_spelling(medium, unit) for unit in range(codes.tokens)]
        tokens += MARKERS[medium]
    return tokens + list(CHAT) * chat


def extend(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None = None,
    layout: Layout = OFFICIAL,
    chat: bool = True,
    seed: int = 0,
) -> Vocabulary:
    """Adds the tokens of a layout to any tokenizer and, with a model, rows to its embedding tables.

    Nothing else of the model changes. A new row is the mean of the old ones plus a tenth of their spread: distinct,
    and of little weight next to the words until it is trained. Tables only grow.

    Raises:
        BadInput: the tokenizer has some of the tokens already.
    """
    from transformers import AddedToken

    tokens = additions(layout, chat)
    present = set(tokens) & tokenizer.get_vocab().keys()
    if present:
        raise BadInput(f"The tokenizer already has {len(present)} of the tokens, such as {min(present)}.")
    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=True) for token in tokens])
    if model is not None:
        _grow(model, before, len(tokenizer), seed)
    return read(tokenizer, layout)


def read(tokenizer: PreTrainedTokenizerBase, layout: Layout = OFFICIAL) -> Vocabulary:
    """Looks every token up by its spelling.

    A medium that is wholly absent is left out (the published training code has no "audio"); the chat tokens may be
    absent (AnyGPT-base).

    Raises:
        WeightsCorrupt: a medium is there in part, or a role token is missing.
    """
    table = tokenizer.get_vocab()
    media: dict[Medium, Units] = {}
    for medium, codes in layout.items():
        wanted = [unit_spelling(medium, unit) for unit in range(codes.tokens)] + list(MARKERS[medium])
        found = [table[token] for token in wanted if token in table]
        if found and len(found) < len(wanted):
            raise WeightsCorrupt(
                f"The tokenizer has {len(found)} of the {len(wanted)} {medium} tokens. Copy its folder again, "
                "added_tokens.json included."
            )
        if found:
            media[medium] = Units(medium, codes, tuple(found[:-2]), found[-2], found[-1])
    missing = [token for token in ROLES if token not in table]
    if missing:
        raise WeightsCorrupt(f"The tokenizer lacks {', '.join(missing)}: it is not AnyGPT's. Choose another folder.")
    tokens = {token: table[token] for token in (*ROLES, *CHAT) if token in table}
    control = frozenset(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids) | set(tokens.values())
    control |= {i for units in media.values() for i in (*units.ids, units.start, units.end)}
    return Vocabulary(media, tokens, max(table.values()) + 1, control)


def check_rows(vocabulary: Vocabulary, rows: int) -> None:
    """Raises `WeightsCorrupt` if an embedding table of so many rows is too short for the vocabulary."""
    if vocabulary.size > rows:
        raise WeightsCorrupt(
            f"The tokenizer has {vocabulary.size} tokens and the model only {rows} embedding rows. "
            "They do not belong together: copy both from the same folder."
        )


def stop_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids that end a reply: the tokenizer's own end, `<eos>`, `<eom>` and `[Human]` (specification 3.1)."""
    ends = [vocabulary.tokens[token] for token in (END_OF_BOT, END_OF_MACHINE, HUMAN) if token in vocabulary]
    own = tokenizer.eos_token_id
    return tuple(dict.fromkeys([*([] if own is None else [own]), *ends]))


class Words:
    """Text to ids and back. A text never becomes a control token, whatever it spells."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary

    @property
    def begin(self) -> tuple[int, ...]:
        """What a stream begins with: the tokenizer's own beginning, where it has one."""
        first = self.tokenizer.bos_token_id
        return () if first is None else (first,)

    def encode(self, text: str) -> list[int]:
        """Raises `BadInput` for text with a zero byte: a binary file."""
        if "\x00" in text:
            raise BadInput("This is not text: it holds zero bytes. Write text, or attach a picture or a sound.")
        if not text:
            return []
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        for token in self.vocabulary.control.intersection(ids):
            spelling = str(self.tokenizer.convert_ids_to_tokens(token))
            before, found, after = text.partition(spelling)
            if found:  # not so for an unknown token, which nobody spelled
                return self.encode(before + spelling[0]) + self.encode(spelling[1:] + after)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text as a person reads it; role tokens and markers in it are spelled out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def plain(self, ids: Iterable[int]) -> str:
        """The same without role tokens and markers."""
        return self.decode([token for token in ids if token not in self.vocabulary.control])


def _grow(model: PreTrainedModel, before: int, size: int, seed: int) -> None:
    if size > _tables(model)[0].shape[0]:
        model.resize_token_embeddings(size, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in _tables(model):
            old = table[:before].float()
            noise = torch.randn((table.shape[0] - before, table.shape[1]), generator=generator)
            table[before:] = (old.mean(0) + old.std(0) / 10 * noise.to(old.device)).to(table.dtype)


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """The embedding table, then that of the output layer unless it is the same one."""
    head = model.get_output_embeddings()
    tables = [
        cast(torch.Tensor, module.weight) for module in (model.get_input_embeddings(), head) if module is not None
    ]
    return tables[:1] if len(tables) == 2 and tables[0] is tables[1] else tables
