"""What may come next in a stream: a small state machine over ids.

Inside a medium only its own codes may follow: as many as a picture has, music in the order of its layers, speech up to
a cap, then the end marker. Every run is closed before the tokens run out, so whatever is generated can be decoded.
(AnyGPT's own code samples from the whole vocabulary and crashes or skips what comes out malformed; specification 10.1.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from models.anygpt.vocabulary import HEARD, REPLY, Kind, Medium, Vocabulary
from models.errors import BadInput

Span = tuple[int, int]  # ids low to high - 1


@dataclass(frozen=True)
class Rule:
    """least, most: units in one run, multiples of the medium's layers. runs: how many a reply may have.

    codes: how many of a layer's codes there are, from 0 on, where the vocabulary has room for more. lead: how many
    more follow them that are a run's first frame and nothing else. unsaid: the one of these that says nothing, in the
    first layer; a stream that guides without the request reads it in the place of what the first frame says.
    """

    least: int
    most: int
    runs: int
    codes: int | None = None
    lead: int = 0
    unsaid: int | None = None


# Pictures have 32 codes; speech is capped at 30 s and music at 5 s (specification 2.4, 4); dialogues of the training
# data have at most one piece of music and two pictures (section 3.3 of the paper).
OFFICIAL_RULES: dict[Medium, Rule] = {"image": Rule(32, 32, 2), "speech": Rule(1, 1500, 2), "music": Rule(4, 1000, 1)}


@dataclass(frozen=True)
class State:
    """kind: of the open run. count: its units so far. left: tokens that may still come. runs: opened, by medium."""

    kind: Kind
    count: int
    left: int
    runs: tuple[tuple[Medium, int], ...] = ()
    done: bool = False

    def opened(self, medium: Medium) -> int:
        return dict(self.runs).get(medium, 0)


@dataclass(frozen=True)
class Allowed:
    """spans: the ids that may come next, ascending, disjoint. kind: whose sampling settings apply."""

    spans: tuple[Span, ...]
    kind: Kind

    def __len__(self) -> int:
        return sum(high - low for low, high in self.spans)

    def __contains__(self, token: int) -> bool:
        return any(low <= token < high for low, high in self.spans)


class Rules(Protocol):
    """What decoding asks. turning: ids that change what may come next, or end the reply."""

    @property
    def turning(self) -> frozenset[int]: ...

    def begin(self, prompt: Sequence[int]) -> State: ...

    def allowed(self, state: State) -> Allowed: ...

    def advance(self, state: State, token: int) -> State: ...

    def unsaid(self, state: State, token: int) -> int:
        """What a stream that guides without the request reads where a reply goes on with an id."""
        ...


class Free:
    """No constraint: any of `size` ids until one of `stop`, or `tokens` of them."""

    def __init__(self, size: int, stop: Sequence[int], tokens: int) -> None:
        self.stop, self.tokens = frozenset(stop), tokens
        self.turning = self.stop
        self._all = Allowed(((0, size),), "text")

    def begin(self, prompt: Sequence[int]) -> State:
        return State("text", 0, self.tokens, done=self.tokens <= 0)

    def allowed(self, state: State) -> Allowed:
        return self._all

    def advance(self, state: State, token: int) -> State:
        left = state.left - 1
        return replace(state, left=left, done=left <= 0 or token in self.stop)

    def unsaid(self, state: State, token: int) -> int:
        return token


class Grammar:
    """The stream of a reply.

    rules: the media that may be generated. stop: ids that end the reply. tokens: how many ids a reply may have.

    Raises:
        BadInput: a rule that the medium's layers make impossible, or a medium that the vocabulary lacks.
    """

    def __init__(self, vocabulary: Vocabulary, rules: Mapping[Medium, Rule], stop: Sequence[int], tokens: int) -> None:
        for medium, rule in rules.items():
            size, layers = vocabulary.units(medium).codes.size, vocabulary.units(medium).codes.layers
            if not 0 < rule.least <= rule.most or rule.least % layers or rule.most % layers:
                raise BadInput(
                    f"A run of {medium} cannot have {rule.least} to {rule.most} codes: it takes multiples of {layers}."
                )
            if (rule.codes or size) + rule.lead > size:
                raise BadInput(f"{medium} has {size} codes a layer: too few for those of a first frame besides.")
            if rule.unsaid is not None and not 0 <= rule.unsaid - (rule.codes or size) < rule.lead:
                raise BadInput(f"Code {rule.unsaid} is none of those of {medium}'s first frame.")
        if tokens < 1:
            raise BadInput(f"A reply needs at least 1 token; got {tokens}.")
        self.vocabulary, self.rules = vocabulary, dict(rules)
        self.stop, self.tokens = frozenset(stop), tokens
        media = [vocabulary.media[medium] for medium in rules]
        self.turning = self.stop | {marker for units in media for marker in (units.start, units.end)}
        structure = {vocabulary.tokens[token] for token in (HEARD, REPLY) if token in vocabulary}
        self._text = (set(range(vocabulary.size)) - vocabulary.control) | structure | self.stop
        self._cache: dict[tuple, Allowed] = {}

    def begin(self, prompt: Sequence[int]) -> State:
        """The state after a prompt; one that ends with a start marker begins inside that medium."""
        state = State("text", 0, self.tokens)
        medium = self.vocabulary.starts(prompt[-1]) if prompt else None
        if medium is None:
            return state
        if medium not in self.rules:
            raise BadInput(f"This model generates no {medium} here. Choose another output.")
        state = replace(state, kind=medium, runs=((medium, 1),))
        if self._needed(medium, 0) > self.tokens:
            raise BadInput(f"{self.tokens} tokens are not enough for {medium}: it needs {self._needed(medium, 0)}.")
        return state

    def after(self, ids: Iterable[int], prompt: Sequence[int] = ()) -> Allowed:
        """What may follow the ids of a reply."""
        state = self.begin(prompt)
        for token in ids:
            state = self.advance(state, token)
        return self.allowed(state)

    def allowed(self, state: State) -> Allowed:
        """Never empty before the state is done."""
        if state.kind == "text":
            starts = tuple(medium for medium in self.rules if self._may_open(state, medium))
            return self._cached(("text", starts), "text")
        medium, rule = state.kind, self.rules[state.kind]
        layers = self.vocabulary.media[medium].codes.layers
        more = state.count < rule.most and state.left - 1 >= self._needed(medium, state.count + 1)
        end = self._needed(medium, state.count) == 1
        leading = bool(rule.lead) and state.count < layers
        return self._cached((medium, state.count % layers if more else None, end, leading), medium)

    def advance(self, state: State, token: int) -> State:
        """The state after one more id. Raises ValueError for an id that is not allowed."""
        if state.done or token not in self.allowed(state):
            raise ValueError(f"id {token} may not follow in {state}")
        left = state.left - 1
        if token in self.stop:
            return replace(state, left=left, done=True)
        medium = self.vocabulary.starts(token)
        if medium is not None:
            runs = dict(state.runs) | {medium: state.opened(medium) + 1}
            return State(medium, 0, left, tuple(runs.items()))
        if state.kind != "text" and self.vocabulary.ends(token) is None:
            return replace(state, count=state.count + 1, left=left)
        return State("text", 0, left, state.runs, done=left <= 0)

    def unsaid(self, state: State, token: int) -> int:
        """The id itself but where a run's first frame says something that can be left unsaid."""
        if state.kind == "text" or state.count:
            return token
        code = self.rules[state.kind].unsaid
        return token if code is None else self.vocabulary.media[state.kind].layer(0)[code]

    def _may_open(self, state: State, medium: Medium) -> bool:
        return state.opened(medium) < self.rules[medium].runs and state.left - 1 >= self._needed(medium, 0)

    def _needed(self, medium: Medium, count: int) -> int:
        """How many more ids close a run of `count` units at the soonest: units to the next whole frame, and the end."""
        layers = self.vocabulary.media[medium].codes.layers
        return max(self.rules[medium].least, -(-count // layers) * layers) - count + 1

    def _cached(self, key: tuple, kind: Kind) -> Allowed:
        if key not in self._cache:
            self._cache[key] = Allowed(_spans(self._ids(key)), kind)
        return self._cache[key]

    def _ids(self, key: tuple) -> set[int]:
        if key[0] == "text":
            return self._text | {self.vocabulary.media[medium].start for medium in key[1]}
        medium, layer, end, leading = key
        units, rule = self.vocabulary.media[medium], self.rules[medium]
        codes = () if layer is None else units.layer(layer)
        size = rule.codes or units.codes.size
        codes = codes[size : size + rule.lead] if leading else codes[:size]
        return set(codes) | ({units.end} if end else set())


def steady(rules: Rules, state: State) -> tuple[int, tuple[int, ...]]:
    """For how many ids what may come next stays as it is, whichever come; and which of those allowed end that sooner.

    state: not done, with more than one id allowed.
    """
    allowed = rules.allowed(state)
    turning = tuple(token for token in sorted(rules.turning) if token in allowed)
    other = next((i for low, high in allowed.spans for i in range(low, high) if i not in rules.turning), None)
    if other is None:
        return 1, turning
    steps, after = 0, state
    while not after.done and rules.allowed(after) == allowed:
        after = rules.advance(after, other)
        steps += 1
    return steps, turning


def _spans(ids: Iterable[int]) -> tuple[Span, ...]:
    spans: list[list[int]] = []
    for token in sorted(ids):
        if spans and spans[-1][1] == token:
            spans[-1][1] = token + 1
        else:
            spans.append([token, token + 1])
    return tuple((low, high) for low, high in spans)
