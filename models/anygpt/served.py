"""AnyGPT's language model behind an OpenAI-compatible server: it writes the ids of a reply, under the same rules.

A server chooses tokens itself, so it is told which may come. While that stays the same, one request is enough: it ends
at an id that changes the rules, or when their time is over. A picture is one request, as is text up to the next medium;
music, whose layers take turns, is one for each token, and the server's prefix cache keeps those short.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from models.anygpt.decoding import check_window
from models.anygpt.grammar import Rules, steady
from models.anygpt.sampling import GREEDY, Preset
from models.anygpt.vocabulary import Words
from models.completions import Address, Completions, Request
from models.errors import BadInput, ServerUnavailable


class ServedModel:
    """Stands in for a `decoding.Reader`: `write` is `decoding.generate`. Made by `connect`.

    window: tokens the server reads.
    """

    def __init__(self, completions: Completions, window: int) -> None:
        self.completions, self.window = completions, window

    def write(
        self, prompt: Sequence[int], rules: Rules, preset: Preset | None = None, seed: int = 0
    ) -> Generator[int, None, None]:
        """As `decoding.generate`: the same ids where they are the likeliest ones. Chance is the server's own: a seed
        repeats a reply on the same server only, as far as that keeps its promise.

        Raises:
            BadInput: as `generate`. ServerUnavailable: see `Completions.stream`; or an id that was not allowed came.
        """
        if not prompt:
            raise BadInput("There is nothing to answer: the prompt is empty.")
        stream = list(prompt)
        state = rules.begin(prompt)
        while not state.done:
            allowed = rules.allowed(state)
            if len(allowed) == 1:
                token = allowed.spans[0][0]
                state = rules.advance(state, token)
                stream.append(token)
                yield token
                continue
            check_window(len(stream) + 1, self.window)
            sampler = GREEDY if preset is None else preset[allowed.kind]
            steps, turning = steady(rules, state)
            request = Request(
                prompt=stream,
                tokens=min(steps, self.window - len(stream)),
                stop=turning,
                allowed=[token for low, high in allowed.spans for token in range(low, high)],
                temperature=sampler.temperature,
                top_p=sampler.top_p,
                top_k=sampler.top_k,
                repetition=sampler.repetition,
                seed=(seed + len(stream)) % 2**31,
            )
            came: list[int] = []
            with closing(self.completions.stream(request)) as pieces:
                for token in (token for piece in pieces for token in piece.ids):
                    if token not in rules.allowed(state):
                        raise ServerUnavailable(
                            f"The server at {self.completions.place} answers wrongly: token {token} came, which was "
                            "not allowed. It has to honour allowed_token_ids and stop_token_ids, as vLLM does."
                        )
                    state = rules.advance(state, token)
                    came.append(token)
                    yield token
            if not came:
                raise ServerUnavailable(
                    f"The server at {self.completions.place} answers wrongly: nothing came, and a token had to. "
                    "Look at its log."
                )
            stream += came


def connect(words: Words, server: Address, window: int) -> ServedModel:
    """Asks a server for its model, and whether its tokens are those of `words`.

    window: tokens the model reads at most; the server may be started for fewer.

    Raises:
        ServerUnavailable: see `Completions`.
    """
    completions = Completions(server)
    served = completions.served()
    marker = max(units.start for units in words.vocabulary.media.values())
    completions.check([*words.begin, *words.encode("Hello")], marker, words.decode([marker]))
    return ServedModel(completions, min(window, served.longest or window))
