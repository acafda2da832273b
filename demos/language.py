"""The page's texts in another language than English.

Texts are written in English beside their widgets. `translate` walks the finished Blocks, replaces what people read by
the entries of a table, `demos/<language>.json`, and lets events answer through the same table. Names, values and files,
which programs read, stay as they are. `python -m demos.language ja` prints the texts that have no entry yet.

A table's keys are whole texts: a label, a paragraph, the text between two HTML tags. `{}` in a key stands for any text,
such as a figure; it is looked up itself and goes to the same `{}` of the entry, or to `{1}`, `{2}`, ... where the order
differs. An entry of null says that the text is the same in both languages.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

Translate = Callable[[str], str]
PLAIN = ("label", "info", "placeholder", "alt_text", "title", "x_title", "y_title", "color_title")
LISTS = ("headers", "sample_labels")
SILENT = re.compile(r"<style.*?</style>|<script.*?</script>|<[^>]*>", re.DOTALL)
READ_ALOUD = re.compile(r'\b(alt|aria-label|title)="([^"]*)"')
MARKS = re.compile(r"(```.*?```|\n\n+(?:(?:#+|-) )?|(?:^|\n)(?:#+|-) )", re.DOTALL)
BODY = re.compile(r"<tbody>.*?</tbody>", re.DOTALL)
WORD = re.compile(r"[^\W\d_]{2,}")
LONGEST = 1500  # characters; what is longer is no text of ours


class Table:
    """Texts in one language, by the English ones."""

    def __init__(self, entries: Mapping[str, str | None]) -> None:
        self._whole = {text: entry for text, entry in entries.items() if "{}" not in text}
        patterns = [(text.split("{}"), entry or text) for text, entry in entries.items() if "{}" in text]
        # The one that says most comes first.
        self._patterns = sorted(patterns, key=lambda pattern: -sum(map(len, pattern[0])))
        self._known = functools.lru_cache(4096)(self._look_up)

    def __call__(self, text: str) -> str:
        """The text in this language; as it is if there is no entry."""
        found = self.find(text)
        return text if found is None else found

    def find(self, text: str) -> str | None:
        """The text in this language, or None if there is no entry. Space around it is kept."""
        bare = text.strip()
        if not WORD.search(bare):
            return text
        found = self._known(bare) if len(bare) <= LONGEST else None
        return found and text.replace(bare, found, 1)

    def _look_up(self, text: str) -> str | None:
        if text in self._whole:
            return self._whole[text] or text
        for parts, entry in self._patterns:
            between = captured(parts, text)
            if between is not None:
                return filled(entry, [self(part) for part in between])
        return None


def read(language: str) -> Table:
    """The table of a language, from its file of groups."""
    groups = json.loads((Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8"))
    return Table({text: entry for group in groups.values() for text, entry in group.items()})


def translate(app: gr.Blocks, table: Table) -> None:
    """Replaces the texts of the Blocks, and of what their events answer. Call it before the Blocks are closed."""
    replace(app, table)
    for function in app.fns.values():
        if function.fn is not None:
            function.fn = answering(function.fn, function.outputs, table)
    check = app.preprocess_data

    async def preprocess_data(*args: Any, **kwargs: Any) -> list[Any]:
        with _errors(table):
            return await check(*args, **kwargs)

    app.preprocess_data = preprocess_data  # type: ignore[method-assign]


def missing(app: gr.Blocks, table: Table) -> list[str]:
    """Texts of the Blocks that have no entry. The cells of tables need none: they say what was recorded."""
    found: dict[str, None] = {}

    def note(text: str) -> str:
        if table.find(text) is None:
            found[text.strip()] = None
        return text

    replace(app, note)
    cells: set[str] = set()
    for block in app.blocks.values():
        for body in BODY.findall(str(getattr(block, "value", ""))):
            cells |= {unescape(text).strip() for text in SILENT.split(body)}
    return [text for text in found if text not in cells]


def replace(app: gr.Blocks, of: Translate) -> None:
    """Every visible text of the Blocks through `of`."""
    for block in app.blocks.values():
        texts = written_as(block)
        changed = props(vars(block), of, texts)
        vars(block).update(changed)
        arguments = block.constructor_args  # Gradio builds a component anew from these when an event updates it
        arguments.update(props(arguments, of, texts))


def written_as(block: Any) -> Callable[[str, Translate], str] | None:
    """How the value of such a component is written, if it is a text to be read: as it is, as HTML, as Markdown."""
    return {"button": plain, "html": html, "markdown": markdown}.get(block.get_block_name())


def props(given: Mapping[str, Any], of: Translate, texts: Callable[[str, Translate], str] | None) -> dict[str, Any]:
    """Those of a component's properties that are texts, through `of`."""
    changed: dict[str, Any] = {name: of(given[name]) for name in PLAIN if isinstance(given.get(name), str)}
    changed |= {name: [of(str(text)) for text in given[name]] for name in LISTS if given.get(name)}
    if given.get("choices"):
        changed["choices"] = [choice(each, of) for each in given["choices"]]
    value = given.get("value")
    if texts and isinstance(value, str):
        changed["value"] = texts(value, of)
    if isinstance(value, dict) and value.get("headers"):  # a table's
        changed["value"] = value | {"headers": [of(str(text)) for text in value["headers"]]}
    return changed


def choice(given: Any, of: Translate) -> tuple[str, Any]:
    """A choice of a list: its name is read by people, its value stays."""
    name, value = given if isinstance(given, tuple | list) else (given, given)
    return of(str(name)), value


def plain(text: str, of: Translate) -> str:
    return of(text)


def html(text: str, of: Translate) -> str:
    """The texts between tags, and those that are read aloud."""
    done, place = "", 0
    for tag in SILENT.finditer(text):
        done += _between(text[place : tag.start()], of) + READ_ALOUD.sub(
            lambda found: f'{found[1]}="{escape(of(unescape(found[2])))}"', tag[0]
        )
        place = tag.end()
    return done + _between(text[place:], of)


def markdown(text: str, of: Translate) -> str:
    """Each heading, item of a list and paragraph; code stays."""
    return "".join(part if MARKS.fullmatch(part) else of(part) for part in MARKS.split(text))


def answering(fn: Callable[..., Any], outputs: Sequence[Any], of: Translate) -> Callable[..., Any]:
    """The event's function, its answers and its errors through `of`. Its signature stays."""
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _errors(of), closing(fn(*args, **kwargs)) as answers:
                for answer in answers:
                    yield _answers(answer, outputs, of)

        return generate

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _errors(of):
            return _answers(fn(*args, **kwargs), outputs, of)

    return call


class _errors:  # noqa: N801 - reads as a statement
    """What a `gr.Error` raised inside says, through `of`."""

    def __init__(self, of: Translate) -> None:
        self._of = of

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, *_: Any) -> None:
        import gradio as gr

        if isinstance(error, gr.Error):
            error.message, error.title = html(error.message, self._of), self._of(error.title)


def _answers(answer: Any, outputs: Sequence[Any], of: Translate) -> Any:
    if len(outputs) > 1 and isinstance(answer, tuple | list):
        return tuple(_answer(value, output, of) for value, output in zip(answer, outputs, strict=True))
    return _answer(answer, outputs[0], of) if len(outputs) == 1 else answer


def _answer(value: Any, output: Any, of: Translate) -> Any:
    from gradio.blocks import Block

    texts = written_as(output)
    if isinstance(value, Block):
        value.constructor_args.update(props(value.constructor_args, of, texts))
    elif isinstance(value, dict) and value.get("__type__") == "update":
        return value | props(value, of, texts)
    elif texts and isinstance(value, str):
        return texts(value, of)
    return value


def captured(parts: Sequence[str], text: str) -> list[str] | None:
    """What stands for each `{}` of a key, cut into the parts around them; None if the text does not fit.

    Each stands for as little as it can, and for one character at least. Takes time in proportion to the text.
    """
    if not (text.startswith(parts[0]) and text.endswith(parts[-1])):
        return None
    end, place, found = len(text) - len(parts[-1]), len(parts[0]), []
    for part in parts[1:-1]:
        at = text.find(part, place + 1, end)
        if at < 0:
            return None
        found.append(text[place:at])
        place = at + len(part)
    return [*found, text[place:end]] if place < end else None


def filled(entry: str, values: Sequence[str]) -> str:
    """An entry with its `{}`, or its `{1}`, `{2}`, ..., replaced."""
    order = iter(range(len(values)))
    return re.sub(r"\{(\d*)\}", lambda hole: values[int(hole[1]) - 1 if hole[1] else next(order)], entry)


def _between(text: str, of: Translate) -> str:
    return escape(of(unescape(text)), quote=False) if text.strip() else text


def _print_missing(language: str) -> None:
    import app

    table = read(language)
    for text in missing(app.build_app(app.parse_options([])), table):
        print(json.dumps(text, ensure_ascii=False) + ": null,")


if __name__ == "__main__":
    import sys

    _print_missing(sys.argv[1])
