"""Generation with any of transformers' causal language models, one id at a time.

Three things make it faster than `generate` with a masking processor, and none changes a result: the output layer is
computed only for ids that may follow, the cache grows in place instead of being copied for every token, and an id
that is the only one allowed costs no pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from models.anygpt.grammar import Allowed, Rules
from models.anygpt.sampling import GREEDY, Preset, choose
from models.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL = 512  # tokens of a prompt that are read at once


class Stream(Protocol):
    """A stream being read."""

    def read(self, ids: Sequence[int]) -> Tensor: ...


class Reader(Protocol):
    """What `generate` asks of a language model: `LanguageModel` for any, `lean.LeanLlama` for small Llamas."""

    @property
    def rows(self) -> int: ...

    @property
    def window(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def open(self) -> Stream: ...

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
        self.read_so_far = 0

    def read(self, ids: Sequence[int]) -> Tensor:
        """Reads at least one id; what `LanguageModel.hidden` gives after the last.

        Raises:
            BadInput: the stream would be longer than the model's window.
        """
        check_window(self.read_so_far + len(ids), self.lm.window)
        hidden = torch.empty(0)
        for low in range(0, len(ids), PREFILL):
            piece = torch.tensor([ids[low : low + PREFILL]], device=self.lm.device)
            hidden = self.lm.hidden(piece, self.cache)
        self.read_so_far += len(ids)
        return hidden


def check_window(tokens: int, window: int) -> None:
    """Raises `BadInput` for a stream that is longer than the window."""
    if tokens > window:
        raise BadInput(
            f"The conversation has {tokens} tokens and the model reads {window}. "
            "Start a new one, or allow a shorter reply."
        )


def generate(
    lm: Reader | Writer,
    prompt: Sequence[int],
    rules: Rules,
    preset: Preset | None = None,
    seed: int = 0,
    without: Sequence[int] = (),
) -> Iterator[int]:
    """Ids of the reply, each as soon as it is chosen, the one that stops it included.

    Closing the iterator stops the work. The same seed gives the same reply, whatever runs beside it.

    Args:
        prompt: ids, at least one; it may end with a medium's start marker.
        preset: sampling settings by kind; None is greedy.
        without: the prompt without the request, for kinds with guidance; there is none if it is empty.

    Raises:
        BadInput: an empty prompt, or guidance of a model that chooses ids itself.
    """
    if not prompt:
        raise BadInput("There is nothing to answer: the prompt is empty.")
    if isinstance(lm, Writer):
        if preset is not None and any(sampler.guidance != 1 for sampler in preset.values()):
            raise BadInput("A model behind a server cannot be guided by a second stream. Choose another preset.")
        return lm.write(prompt, rules, preset, seed)
    return _generate(lm, prompt, rules, preset, seed, without)


def _generate(
    lm: Reader, prompt: Sequence[int], rules: Rules, preset: Preset | None, seed: int, without: Sequence[int]
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed % 2**63)
    session = lm.open()
    seen = torch.zeros(lm.rows, dtype=torch.bool, device=lm.device)
    seen[torch.tensor(prompt, device=lm.device)] = True
    state = rules.begin(prompt)
    unread = list(prompt)
    blank, unread_blank = None, list(without)
    while not state.done:
        allowed = rules.allowed(state)
        if len(allowed) == 1:
            token = allowed.spans[0][0]
        else:
            sampler = GREEDY if preset is None else preset[allowed.kind]
            scores = lm.scores(session.read(unread), allowed)
            unread = []
            if without and sampler.guidance != 1:
                blank = blank or lm.open()
                plain = lm.scores(blank.read(unread_blank), allowed)
                unread_blank = []
                scores = plain + sampler.guidance * (scores - plain)
            been = torch.cat([seen[low:high] for low, high in allowed.spans])
            index = choose(scores, been, sampler, generator)
            token = _id(allowed, index)
        seen[token] = True
        unread.append(token)
        unread_blank.append(token)
        state = rules.advance(state, token)
        yield token


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
