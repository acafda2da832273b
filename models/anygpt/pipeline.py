"""Chat: turns in, the parts of a reply out, each as soon as it is whole. What a tab or a script uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import partial
from itertools import chain
from typing import Literal

from models.anygpt import templates
from models.anygpt.codecs import Codecs, Rendering
from models.anygpt.decoding import Reader, Retract, Writer, generate
from models.anygpt.grammar import Grammar, Rule
from models.anygpt.sampling import PRESETS, Preset
from models.anygpt.streams import Part, Role, Run, Splitter, Turn, flatten, split, trim, unflatten
from models.anygpt.templates import TEMPLATES, Template, Token
from models.anygpt.vocabulary import Medium, Words, stop_ids
from models.errors import BadInput, UserError, WeightsNotFound

Output = Literal["auto", "text", "image", "speech", "music"]
AnyTurn = Turn | str | Sequence[Part]
TOKENS_A_WORD = 4  # at most, of what a model may hear in its own speech
OnToken = Callable[[int | Retract], None]


@dataclass(frozen=True)
class Settings:
    """output: "auto" lets the model choose, "text" keeps it to text, a medium makes the reply begin with it.

    task, template: names in `templates.TASKS` and `templates.TEMPLATES`. sampling: a name in `sampling.PRESETS`, or
    settings by kind. tokens: the longest reply.
    """

    output: Output = "auto"
    task: str = "interleaved"
    template: str = templates.DEFAULT_TEMPLATE
    sampling: str | Preset = "repository"
    tokens: int = 1536
    seed: int = 0
    rendering: Rendering = field(default_factory=Rendering)


class AnyGPT:
    """A language model, its words and its codecs. It keeps nothing of a conversation: turns are the caller's.

    Args:
        rules: the runs of each medium that may be generated.
        settings: what `chat` uses when nothing else is said.
    """

    def __init__(
        self, lm: Reader | Writer, words: Words, codecs: Codecs, rules: Mapping[Medium, Rule], settings: Settings
    ) -> None:
        self.lm, self.words, self.codecs, self.rules, self.settings = lm, words, codecs, dict(rules), settings
        self.stop = stop_ids(words.tokenizer, words.vocabulary)

    def chat(
        self, turns: Sequence[AnyTurn], settings: Settings | None = None, on_token: OnToken = lambda token: None
    ) -> Reply:
        """The reply to a conversation; iterate over it.

        Args:
            turns: the user's and the model's by turns, the user's last. A string or a list of parts is encoded now; a
                `Turn` (from `user_turn`, or `Reply.turn`) is taken as it is, so nothing is ever encoded twice.
            on_token: sees each id as it is chosen, and how many are taken back where a run has several candidates; it
                may raise to stop.

        Raises:
            BadInput: an empty or unsuitable turn, or one too long for the model. WeightsNotFound: a medium that this
            machine has no codec for.
        """
        s = self.settings if settings is None else settings
        template = self._template(s)
        whole = [self._turn(turn, len(turns) - 1 - i, s) for i, turn in enumerate(turns)]
        if not whole or whole[-1].role != "user":
            raise BadInput("There is nothing to answer: the last turn has to be the user's.")
        medium: Medium | None = None if s.output == "auto" or s.output == "text" else s.output  # noqa: PLR1714 - narrows
        if medium is not None:
            self._check_made(medium)
        makable = {m: rule for m, rule in self.rules.items() if self.codecs.reason("make", m) is None}
        grammar = Grammar(self.words.vocabulary, {} if s.output == "text" else makable, self.stop, s.tokens)
        opening = templates.encode(templates.opening(template, medium), self.words)
        system = (*self.words.begin, *templates.encode(templates.system(template), self.words))
        prompt, left_out = trim(system, whole, self.lm.window - s.tokens - len(opening))
        empty = templates.encode(templates.user(template, []), self.words)
        without = (*system, *empty, *opening)
        ids = generate(
            self.lm, [*prompt, *opening], grammar, _preset(s), s.seed, without, partial(self._fit, whole[-1], s)
        )
        begun = _begun(opening, medium)
        opened = opening[: len(opening) - len(begun)]
        return Reply(self, s, opened, begun, ids, on_token, left_out, (*prompt, *opened))

    def user_turn(self, parts: str | Sequence[Part], task: str = "interleaved", template: str = "MMGPT") -> Turn:
        """A user's turn, encoded; keep it and hand it to `chat` again in later rounds."""
        return self._turn(parts, 0, replace(self.settings, task=task, template=template))

    def encode(self, part: Part) -> Part:
        """A part with its ids and its value as it was read; text stays as it is.

        Raises:
            BadInput: a file that cannot be used. WeightsNotFound: no codec for it here.
        """
        if part.kind == "text":
            if not isinstance(part.value, str):
                raise BadInput(f"A text part holds text, not {type(part.value).__name__}.")
            return part
        if part.token_ids:
            return part
        read = self.codecs.read(part.kind, part.value)
        return replace(
            part, value=read.value, token_ids=flatten(self.words.vocabulary, part.kind, read.codes), note=read.note
        )

    def _turn(self, turn: AnyTurn, from_the_end: int, s: Settings) -> Turn:
        if isinstance(turn, Turn):
            return turn
        role: Role = "user" if from_the_end % 2 == 0 else "assistant"
        given = [Part("text", turn)] if isinstance(turn, str) else list(turn)
        parts = tuple(self.encode(part) for part in given)
        if role == "assistant":
            pieces = templates.assistant(self._template(s), parts)
        else:
            pieces = templates.user(self._template(s), templates.message(s.task, parts))
        return Turn(role, parts, templates.encode(pieces, self.words))

    def _fit(self, turn: Turn, s: Settings, ids: Sequence[int]) -> float:
        """How good the run is that a reply to `turn` ends with, 0 to 1.

        Its codec says so. Speech is listened to: it should say the text before it, or the one to be read.
        """
        *before, run = split(self.words.vocabulary, ids)
        assert run.kind != "text"
        if run.kind != "speech":
            return self.codecs.fit(run.kind, unflatten(self.words.vocabulary, run.kind, run.ids)[0])
        texts = [part.value for part in turn.parts if part.kind == "text" and s.task == "Text-to-Speech"]
        texts += [self.words.plain(part.ids) for part in before if part.kind == "text"]
        said = next((words for text in reversed(texts) if (words := _words(text))), None)
        return 1.0 if said is None else self._heard(run.ids, said, s)

    def _heard(self, speech: tuple[int, ...], said: list[str], s: Settings) -> float:
        """How many of some words the model itself hears in speech, and no others, 0 to 1."""
        template = self._template(s)
        pieces = [
            *templates.system(template),
            *templates.user(template, templates.message("Speech-to-Text", [Part("speech", None, speech)])),
            *templates.opening(template),
        ]
        prompt = [*self.words.begin, *templates.encode(pieces, self.words)]
        rules = Grammar(self.words.vocabulary, {}, self.stop, TOKENS_A_WORD * (len(said) + 2))
        heard = self.words.plain(generate(self.lm, prompt, rules))
        return SequenceMatcher(None, said, _words(heard), autojunk=False).ratio()

    def _template(self, s: Settings) -> Template:
        if s.template not in TEMPLATES:
            raise BadInput(f"Unknown template {s.template!r}. Choose one of {', '.join(TEMPLATES)}.")
        return TEMPLATES[s.template]

    def _check_made(self, medium: Medium) -> None:
        reason = self.codecs.reason("make", medium)
        if reason is not None:
            raise WeightsNotFound(reason)


class Reply:
    """An iterator over the parts of one reply. Closing it stops the work; what was whole stays in `turn`.

    left_out: how many of the oldest turns did not fit into the model's window.
    prompt: the ids that the model reads before those of the reply; a forced start marker counts as the reply's.
    """

    def __init__(
        self,
        model: AnyGPT,
        settings: Settings,
        opening: tuple[int, ...],
        begun: tuple[int, ...],
        ids: Iterator[int | Retract],
        on_token: OnToken,
        left_out: int,
        prompt: tuple[int, ...] = (),
    ) -> None:
        self.left_out, self.prompt = left_out, prompt
        self._model, self._settings, self._opening = model, settings, opening
        self._ids: list[int] = []
        self._parts: list[Part] = []
        self._work = self._run(begun, ids, on_token)

    def __iter__(self) -> Iterator[Part]:
        return self

    def __next__(self) -> Part:
        return next(self._work)

    def close(self) -> None:
        self._work.close()

    @property
    def turn(self) -> Turn:
        """The reply so far as a turn of the conversation: its parts, and exactly the ids that were generated."""
        words = self._model.words
        end = templates.encode([Token(TEMPLATES[self._settings.template].bot_end), "\n"], words)
        return Turn("assistant", tuple(self._parts), (*self._opening, *self._ids, *end))

    def _run(
        self, begun: tuple[int, ...], ids: Iterator[int | Retract], on_token: OnToken
    ) -> Generator[Part, None, None]:
        splitter = Splitter(self._model.words.vocabulary)
        for token in chain(begun, ids):
            on_token(token)
            if isinstance(token, Retract):
                splitter.retract(token.count)
            elif token not in self._model.stop:
                for run in splitter.push(token):
                    yield from self._shown(run)
        for run in splitter.finish():
            yield from self._shown(run)

    def _shown(self, run: Run) -> Iterator[Part]:
        part = self._part(run)
        self._ids += run.ids
        if part.kind != "text" or part.value:  # spaces between media are in the stream, not on the screen
            self._parts.append(part)
            yield part

    def _part(self, run: Run) -> Part:
        words, codecs = self._model.words, self._model.codecs
        if run.kind == "text":
            return Part("text", words.plain(run.ids).strip(), run.ids, label=run.label)
        codes, lost = unflatten(words.vocabulary, run.kind, run.ids)
        try:
            value = codecs.make(run.kind, codes, replace(self._settings.rendering, seed=self._settings.seed))
        except UserError as error:  # one medium that fails does not take the others with it
            return Part(run.kind, None, run.ids, note=str(error))
        return Part(run.kind, value, run.ids, note=f"{lost} tokens fitted no frame." if lost else "")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _preset(s: Settings) -> Preset:
    if not isinstance(s.sampling, str):
        return s.sampling
    if s.sampling not in PRESETS:
        raise BadInput(f"Unknown sampling preset {s.sampling!r}. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[s.sampling]


def _begun(opening: tuple[int, ...], medium: Medium | None) -> tuple[int, ...]:
    """The part of a reply that its prompt already holds: a forced start marker."""
    return () if medium is None else opening[-1:]
