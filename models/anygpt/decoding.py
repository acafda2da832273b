"""Generation with any of transformers' causal language models, one id at a time.

Three things make it faster than `generate` with a masking processor, and none changes a result: the output layer is
computed only for ids that may follow, the cache grows in place instead of being copied for every token, and an id
that is the only one allowed costs no pass of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, overload, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from models.anygpt.grammar import Allowed, Rules
from models.anygpt.sampling import GREEDY, Preset, Sampler, choose
from models.anygpt.vocabulary import Kind
from models.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL = 512  # tokens of a prompt that are read at once
Fit = Callable[[Sequence[int]], float]  # the ids of a reply up to a run's end -> how good the run is, and 1 is enough


@dataclass(frozen=True)
class Retract:
    """The last `count` ids are taken back: another candidate of the run that they are in follows.

    candidate: which, from 1; one that was written before if it is the best.
    """

    count: int
    candidate: int


class Stream(Protocol):
    """A stream being read. fork: another that has read the same, with a cache of its own."""

    def read(self, ids: Sequence[int]) -> Tensor: ...

    def fork(self) -> Stream: ...


class Reader(Protocol):
    """What `generate` asks of a language model: `LanguageModel` for any, `lean.LeanLlama` for small Llamas.

    together: streams that it reads side by side in much less time than one after another.
    """

    @property
    def together(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def window(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def open(self) -> Stream: ...

    def read(self, pieces: Sequence[tuple[Any, Sequence[int]]]) -> list[Tensor]:
        """Reads ids in streams of its own, each as `Stream.read`."""
        ...

    def scores(self, hidden: Tensor, allowed: Allowed) -> Tensor: ...


@runtime_checkable
class Writer(Protocol):
    """A language model that chooses ids itself, such as `served.ServedModel`; `write` does what `generate` does."""

    @property
    def window(self) -> int: ...

    def write(
        self, prompt: Sequence[int], rules: Rules, preset: Preset | None = None, seed: int = 0
    ) -> Iterator[int]: ...


class LanguageModel:
    """A causal model of transformers, unchanged.

    Where the output layer is a plain matrix behind the base model, only the rows asked for are computed; this is
    checked once with a real token, since some architectures scale or cap their logits.

    window: tokens it can read; None takes the configuration's word.
    """

    together = 1

    def __init__(self, model: PreTrainedModel, window: int | None = None) -> None:
        self.model = model.eval()
        self.device = model.device
        self.window = window or int(model.config.get_text_config().max_position_embeddings)
        self.rows: int = cast(Tensor, model.get_input_embeddings().weight).shape[0]
        self._head = self._plain_head()

    def open(self) -> Session:
        """A cache of its own: two conversations never meet."""
        return Session(self)

    def read(self, pieces: Sequence[tuple[Session, Sequence[int]]]) -> list[Tensor]:
        """Reads ids in streams, one after another; each as `Session.read`."""
        return [session.read(ids) for session, ids in pieces]

    @torch.inference_mode()
    def hidden(self, ids: Tensor, cache: DynamicCache) -> Tensor:
        """ids (1, T) -> the last position's final hidden state (d,), or its logits (V,) if there is no plain head."""
        if self._head is None:
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        out = self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return out.last_hidden_state[0, -1]

    @torch.inference_mode()
    def scores(self, hidden: Tensor, allowed: Allowed) -> Tensor:
        """Logits of the allowed ids, in their order: (n,) float32."""
        if self._head is None:
            rows = [hidden[low:high] for low, high in allowed.spans]
        else:
            weight, bias = self._head
            rows = [
                F.linear(hidden, weight[low:high], None if bias is None else bias[low:high])
                for low, high in allowed.spans
            ]
        return torch.cat(rows).float()

    def _plain_head(self) -> tuple[Tensor, Tensor | None] | None:
        head = self.model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear) or self.model.base_model is self.model:
            return None
        ids = torch.tensor([[1, 2]], device=self.device)
        with torch.inference_mode():
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            ours, theirs = head(hidden[:, -1]), self.model(input_ids=ids, use_cache=False).logits[:, -1]
            plain = torch.allclose(ours, theirs, rtol=0, atol=0.01 * float(theirs.abs().max()))
        return (head.weight, head.bias) if plain else None


class Session:
    """One stream being read: the cache, and the state after the last id."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.cache = DynamicCache(config=lm.model.config)
        # Layers with windows or states of their own stay as they are.
        self.cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        self.length = 0

    def read(self, ids: Sequence[int]) -> Tensor:
        """Reads at least one id; what `LanguageModel.hidden` gives after the last.

        Raises:
            BadInput: the stream would be longer than the model's window.
        """
        check_window(self.length + len(ids), self.lm.window)
        hidden = torch.empty(0)
        for low in range(0, len(ids), PREFILL):
            piece = torch.tensor([ids[low : low + PREFILL]], device=self.lm.device)
            hidden = self.lm.hidden(piece, self.cache)
        self.length += len(ids)
        return hidden

    @torch.inference_mode()
    def fork(self) -> Session:
        """Another stream that has read the same."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        return other


def check_window(tokens: int, window: int) -> None:
    """Raises `BadInput` for a stream that is longer than the window."""
    if tokens > window:
        raise BadInput(
            f"The conversation has {tokens} tokens and the model reads {window}. "
            "Start a new one, or allow a shorter reply."
        )


@overload
def generate(
    lm: Reader | Writer,
    prompt: Sequence[int],
    rules: Rules,
    preset: Preset | None = None,
    seed: int = 0,
    without: Sequence[int] = (),
    fit: None = None,
) -> Iterator[int]: ...


@overload
def generate(
    lm: Reader | Writer,
    prompt: Sequence[int],
    rules: Rules,
    preset: Preset | None,
    seed: int,
    without: Sequence[int],
    fit: Fit,
) -> Iterator[int | Retract]: ...


def generate(
    lm: Reader | Writer,
    prompt: Sequence[int],
    rules: Rules,
    preset: Preset | None = None,
    seed: int = 0,
    without: Sequence[int] = (),
    fit: Fit | None = None,
) -> Iterator[int | Retract]:
    """Ids of the reply, each as soon as it is chosen, the one that stops it included; ids are taken back only where
    `fit` chooses among several candidates of a run.

    Closing the iterator stops the work. The same seed gives the same reply, whatever runs beside it.

    Args:
        prompt: ids, at least one; it may end with a medium's start marker.
        preset: sampling settings by kind; None is greedy.
        without: the prompt without the request, for kinds with guidance; there is none if it is empty.
        fit: what chooses among candidates; there is one of each run if it is None.

    Raises:
        BadInput: an empty prompt, or guidance or candidates of a model that chooses ids itself.
    """
    if not prompt:
        raise BadInput("There is nothing to answer: the prompt is empty.")
    if isinstance(lm, Writer):
        if preset is not None and any(s.guidance != 1 or s.candidates > 1 for s in preset.values()):
            raise BadInput(
                "A model behind a server cannot be guided by a second stream, and writes one candidate of each run. "
                "Choose another preset."
            )
        return lm.write(prompt, rules, preset, seed)
    return _generate(_Writing(lm, prompt, rules, preset, seed, without), fit)


def _generate(writing: _Writing, fit: Fit | None) -> Iterator[int | Retract]:
    while not writing.state.done:
        candidates = writing.candidates
        if fit is None or candidates == 1:
            _step([writing])
            yield writing.ids[-1]
        else:
            writing = yield from _best(writing, candidates, fit)


def _best(writing: _Writing, candidates: int, fit: Fit) -> Generator[int | Retract, None, _Writing]:
    """The run that has just been opened, and its end marker: the first candidate that fits, or the best of them.

    As many as the model reads side by side are written at once, but shown and judged one after another. Returns the
    writing that goes on.
    """
    writing.catch_up()
    ahead: list[_Writing] = []
    best = one = writing
    kept, highest = 0, -1.0
    for number in range(candidates):
        if number:
            yield Retract(len(one.run) - 1, number + 1)
        if not ahead:
            ahead = [writing.fork(n) for n in range(number, min(number + writing.together, candidates))]
        one = ahead[0]
        yield from _run(ahead)
        found = fit(one.ids)
        if found > highest:
            best, kept, highest = one, number, found
        if found >= 1:
            break
        del ahead[0]
    if best is one:
        yield one.run[-1]
    else:
        yield Retract(len(one.run) - 1, kept + 1)
        yield from best.run
    return best


def _run(ahead: Sequence[_Writing]) -> Iterator[int]:
    """The run of the first, but for its end marker; the others go on beside it."""
    one, shown = ahead[0], 0
    while True:
        inside = one.run[:-1] if one.closed else one.run
        yield from inside[shown:]
        shown = len(inside)
        if one.closed:
            return
        _step([each for each in ahead if not each.closed])


def _step(writings: Sequence[_Writing]) -> None:
    """Each goes on by an id; the model reads for all of them at once."""
    waiting = []
    for writing in writings:
        allowed = writing.rules.allowed(writing.state)
        if len(allowed) == 1:
            writing.take(allowed.spans[0][0])
        else:
            waiting.append((writing, allowed, writing.readings(allowed.kind)))
    if not waiting:
        return
    pieces = [(reading.stream, reading.unread) for _, _, readings in waiting for reading in readings]
    read = iter(waiting[0][0].lm.read(pieces))
    for writing, allowed, readings in waiting:
        for reading in readings:
            reading.unread = []
        writing.choose(allowed, [next(read) for _ in readings])


class _Writing:
    """A reply being written. ids: its own, with the start marker that a prompt ends with. state: of the rules."""

    def __init__(
        self, lm: Reader, prompt: Sequence[int], rules: Rules, preset: Preset | None, seed: int, without: Sequence[int]
    ) -> None:
        self.lm, self.rules, self.preset = lm, rules, preset
        self.state = rules.begin(prompt)
        self.ids = [prompt[-1]] if self.state.kind != "text" else []
        self._generator = torch.Generator().manual_seed(seed % 2**63)
        self._seen = torch.zeros(lm.rows, dtype=torch.bool, device=lm.device)
        self._seen[torch.tensor(prompt, device=lm.device)] = True
        self._reading = _Reading(lm.open(), prompt)
        self._blank = _Reading(lm.open(), without) if without else None
        self._forked = 0

    @property
    def candidates(self) -> int:
        """How often the run that begins here may be written; 1 wherever none begins."""
        begins = self.state.kind != "text" and self.state.count == 0
        return self.preset[self.state.kind].candidates if self.preset is not None and begins else 1

    @property
    def together(self) -> int:
        """How many candidates of the run that begins here the model reads side by side."""
        return max(1, self.lm.together // len(self.readings(self.state.kind)))

    @property
    def run(self) -> list[int]:
        """What was written since the fork."""
        return self.ids[self._forked :]

    @property
    def closed(self) -> bool:
        """Whether the run since the fork has its end marker."""
        return len(self.ids) > self._forked and self.ids[-1] in self.rules.turning

    def readings(self, kind: Kind) -> list[_Reading]:
        """The streams that an id of a kind is chosen by: its own, and the one that guides it if it is guided."""
        if self._blank is None or self._sampler(kind).guidance == 1:
            return [self._reading]
        return [self._reading, self._blank]

    def choose(self, allowed: Allowed, read: Sequence[Tensor]) -> None:
        """Goes on with one of the allowed ids. read: the state after each of `readings`."""
        sampler = self._sampler(allowed.kind)
        scores, *plain = (self.lm.scores(hidden, allowed) for hidden in read)
        if plain:
            scores = plain[0] + sampler.guidance * (scores - plain[0])
        been = torch.cat([self._seen[low:high] for low, high in allowed.spans])
        self.take(_id(allowed, choose(scores, been, sampler, self._generator)))

    def take(self, token: int) -> None:
        """Goes on with an id that may follow."""
        unsaid = self.rules.unsaid(self.state, token)
        self.state = self.rules.advance(self.state, token)
        self.ids.append(token)
        self._seen[token] = True
        self._reading.unread.append(token)
        if self._blank is not None:
            self._blank.unread.append(unsaid)

    def catch_up(self) -> None:
        """Reads all but the last id, so that forks need not."""
        for reading in self.readings(self.state.kind):
            reading.catch_up()

    def fork(self, number: int) -> _Writing:
        """Candidate `number`: it goes on from here by chances of its own, the first by those that are here."""
        other = copy.copy(self)
        other.ids, other._seen, other._forked = list(self.ids), self._seen.clone(), len(self.ids)
        other._reading = self._reading.fork()
        other._blank = None if self._blank is None else self._blank.fork()
        other._generator = torch.Generator().set_state(self._generator.get_state())
        if number:
            seeds = torch.randint(2**62, (number,), generator=other._generator)
            other._generator.manual_seed(int(seeds[-1]))
        return other

    def _sampler(self, kind: Kind) -> Sampler:
        return GREEDY if self.preset is None else self.preset[kind]


class _Reading:
    """A stream, and the ids that it has not read yet."""

    def __init__(self, stream: Stream, ids: Sequence[int]) -> None:
        self.stream, self.unread = stream, list(ids)

    def catch_up(self) -> None:
        """Reads all but the last id."""
        *before, last = self.unread
        if before:
            self.stream.read(before)
            self.unread = [last]

    def fork(self) -> _Reading:
        return _Reading(self.stream.fork(), self.unread)


def _id(allowed: Allowed, index: int) -> int:
    for low, high in allowed.spans:
        if index < high - low:
            return low + index
        index -= high - low
    raise IndexError(index)


class _GrowingLayer(DynamicLayer):
    """A cache layer in a buffer that doubles when it is full: a token costs its own copy only."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._buffers = (self._grown(0, key_states, end), self._grown(1, value_states, end))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., self._length : end, :] = new
        self._length = end
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def _grown(self, which: int, like: Tensor, end: int) -> Tensor:
        buffer = like.new_empty((*like.shape[:-2], max(256, 2 * end), like.shape[-1]))
        if self._buffers is not None:
            buffer[..., : self._length, :] = self._buffers[which][..., : self._length, :]
        return buffer
