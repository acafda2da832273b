"""Generation with any of transformers' causal language models, one id at a time.

Three things make it faster than `generate` with a masking processor, and none changes a result: the output layer is
computed only for ids that may follow, the cache grows in place instead of being copied for every token, and an id
that is the only one allowed costs no pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, overload, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from models.anygpt.grammar import Allowed, Rules, State
from models.anygpt.sampling import GREEDY, Preset, choose
from models.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL = 512  # tokens of a prompt that are read at once
Fit = Callable[[Sequence[int]], float]  # the ids of a reply up to a run's end -> how good the run is, and 1 is enough


@dataclass(frozen=True)
class Retract:
    """The last `count` ids are taken back: another candidate of the run that they are in follows."""

    count: int


class Stream(Protocol):
    """A stream being read. rewind: forgets what came after the first `length` ids."""

    length: int

    def read(self, ids: Sequence[int]) -> Tensor: ...

    def rewind(self, length: int) -> None: ...


class Reader(Protocol):
    """What `generate` asks of a language model: `LanguageModel` for any, `lean.LeanLlama` for small Llamas."""

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

    def rewind(self, length: int) -> None:
        """Forgets what came after the first `length` ids. Raises `BadInput` for a cache that cannot go back."""
        layers = [layer for layer in self.cache.layers if isinstance(layer, _GrowingLayer)]
        if len(layers) < len(self.cache.layers):
            raise BadInput("This model's cache cannot go back, so it writes one candidate only. Choose another preset.")
        for layer in layers:
            layer.rewind(length)
        self.length = length


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
            yield writing.step()
        else:
            yield from _best(writing, candidates, fit)


def _best(writing: _Writing, candidates: int, fit: Fit) -> Iterator[int | Retract]:
    """The run that has just been opened, and its end marker: the first candidate that fits, or the best of them."""
    begun, start = list(writing.ids), writing.mark()
    best: list[int] = []
    run: list[int] = []
    highest = -1.0
    for number in range(candidates):
        if number:
            yield Retract(len(run))
            writing.rewind(start)
        run = []
        while (token := writing.step()) not in writing.rules.turning:
            run.append(token)
            yield token
        found = fit([*begun, *run, token])
        if found > highest:
            best, highest = [*run, token], found
        if found >= 1:
            break
    if [*run, token] == best:
        yield token
        return
    yield Retract(len(run))
    writing.rewind(start)
    for token in best:
        yield writing.take(token)


@dataclass(frozen=True)
class _Mark:
    """A place in a reply to go back to. ids: how many it has. read: how much of each reading, and what is still to be
    read of it.
    """

    ids: int
    state: State
    seen: Tensor
    read: tuple[tuple[int, list[int]], ...]


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

    @property
    def candidates(self) -> int:
        """How often the run that begins here may be written; 1 wherever none begins."""
        begins = self.state.kind != "text" and self.state.count == 0
        return self.preset[self.state.kind].candidates if self.preset is not None and begins else 1

    def step(self) -> int:
        """Chooses an id."""
        allowed = self.rules.allowed(self.state)
        if len(allowed) == 1:
            return self.take(allowed.spans[0][0])
        sampler = GREEDY if self.preset is None else self.preset[allowed.kind]
        readings = self._readings(sampler.guidance != 1)
        read = self.lm.read([(reading.stream, reading.unread) for reading in readings])
        for reading in readings:
            reading.unread = []
        scores, *plain = (self.lm.scores(hidden, allowed) for hidden in read)
        if plain:
            scores = plain[0] + sampler.guidance * (scores - plain[0])
        been = torch.cat([self._seen[low:high] for low, high in allowed.spans])
        return self.take(_id(allowed, choose(scores, been, sampler, self._generator)))

    def take(self, token: int) -> int:
        """Goes on with an id that may follow."""
        unsaid = self.rules.unsaid(self.state, token)
        self.state = self.rules.advance(self.state, token)
        self.ids.append(token)
        self._seen[token] = True
        self._reading.unread.append(token)
        if self._blank is not None:
            self._blank.unread.append(unsaid)
        return token

    def mark(self) -> _Mark:
        """This place, inside a run; all but the last id is read now, so that whoever comes back reads little again."""
        assert self.preset is not None
        for reading in self._readings(self.preset[self.state.kind].guidance != 1):
            reading.catch_up()
        read = tuple((reading.stream.length, list(reading.unread)) for reading in self._readings())
        return _Mark(len(self.ids), self.state, self._seen.clone(), read)

    def rewind(self, mark: _Mark) -> None:
        del self.ids[mark.ids :]
        self.state, self._seen = mark.state, mark.seen.clone()
        for reading, (length, unread) in zip(self._readings(), mark.read, strict=True):
            reading.stream.rewind(length)
            reading.unread = list(unread)

    def _readings(self, guided: bool = True) -> list[_Reading]:
        return [self._reading, self._blank] if self._blank is not None and guided else [self._reading]


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

    def rewind(self, length: int) -> None:
        if self._buffers is None:  # nothing was read
            return
        self._length = length
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def _grown(self, which: int, like: Tensor, end: int) -> Tensor:
        buffer = like.new_empty((*like.shape[:-2], max(256, 2 * end), like.shape[-1]))
        if self._buffers is not None:
            buffer[..., : self._length, :] = self._buffers[which][..., : self._length, :]
        return buffer
