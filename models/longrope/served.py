"""A long-context model behind an OpenAI-compatible server: it stands in for `engine.Engine` where a prompt is answered.

The network is the server's, and so are its rotary factors, its way of reading and its cache. The folder here has
`config.json` and `tokenizer.json` of the same model; its weights are not read and need not be there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from models.completions import Address, Completions, Request
from models.errors import BadInput
from models.longrope.engine import Completion, Engine, Progress, Reading
from models.longrope.network import LlamaConfig, read_config
from models.longrope.rope import RopeScaling, scaling
from models.longrope.tokenizer import Tokenizer

SERVER = "server"  # the method, the mode and the cache format of what is answered elsewhere
PROBE = "The pass key is"


class ServedEngine(Engine):
    """Greedy answers from a server; everything that looks inside of the network is refused. Made by `connect`.

    rope: stands for the server's own factors, whatever they are; its notes say what is known of them. The numbers in it
    are not used.
    """

    def __init__(self, config: LlamaConfig, completions: Completions, notes: tuple[str, ...]) -> None:
        self.config, self.completions = config, completions
        self.device = self.dtype = SERVER
        plain = scaling("none", config.rotary_dim, config.base, config.window, config.window)
        self.rope: RopeScaling = replace(plain, method=SERVER, notes=notes)

    def scaling(self, method: str) -> RopeScaling:
        """The server's own. Raises `BadInput` for any other method."""
        if method != SERVER:
            raise BadInput(
                f"The method {method} cannot be chosen here: a server turns positions by the factors it was started "
                f"with. Choose {SERVER!r}, or read the model on this machine (start without --longrope-url)."
            )
        return self.rope

    def complete(
        self,
        ids: Sequence[int],
        max_new_tokens: int = 10,
        rope: RopeScaling | None = None,
        reading: Reading | None = None,
        stop: Sequence[int] = (),
        progress: Progress | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Completion:
        """As `Engine.complete`. progress: called while nothing comes, with no tokens read: a server does not say.

        Raises:
            BadInput: an empty prompt, ids outside the vocabulary, factors or a way of reading that are not the server's
            own, or more tokens than it reads. ServerUnavailable: see `Completions.stream`.
        """
        if max_new_tokens < 1:
            raise BadInput(f"{max_new_tokens} new tokens were asked for. Give a whole number from 1.")
        if not ids or not 0 <= min(ids) <= max(ids) < self.config.vocabulary:
            raise BadInput(f"A prompt has at least one token, each from 0 to {self.config.vocabulary - 1}.")
        if rope is not None:
            self.scaling(rope.method)
        if reading is not None and (reading.mode != "exact" or reading.jumps):
            raise BadInput(
                f"A server reads in its own way, not {'spread out' if reading.jumps else reading.mode}. Choose exact "
                "reading, or read the model on this machine."
            )
        started = time.perf_counter()
        first, answer = 0.0, []
        tick = None if progress is None else partial(progress, 0, 0.0)
        with closing(self.completions.stream(Request(ids, max_new_tokens, stop), tick)) as pieces:
            for token in (token for piece in pieces for token in piece.ids):
                if not first:
                    first = time.perf_counter() - started
                    if progress is not None:
                        progress(len(ids), len(ids) / first)
                if token in stop:
                    break
                answer.append(token)
                if on_token is not None:
                    on_token(token)
        whole = time.perf_counter() - started
        return Completion(
            answer, SERVER, SERVER, SERVER, len(ids), first or whole, whole - (first or whole), 0, self.rope.notes
        )

    def settled(self, reading: Reading) -> NoReturn:
        """Raises `BadInput`: whatever reads with the network itself asks for this or for `tokens`."""
        self._refuse()

    def tokens(self, ids: Sequence[int]) -> NoReturn:
        """Raises `BadInput`, as `settled` does."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BadInput(
            "This needs a model that is read on this machine: a server has one table of factors, and says what it "
            "writes, not how likely each token was. Start without --longrope-url."
        )


def connect(folder: str | Path, server: Address, words: Tokenizer) -> ServedEngine:
    """Asks a server for its model, and whether it is the folder's.

    Raises:
        BadInput: no config.json, or another architecture. ServerUnavailable: see `Completions`.
    """
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = read_config(content)
    except OSError:
        raise BadInput(f"{Path(folder).name} has no config.json. Choose the folder of the server's model.") from None
    except ValueError as error:
        raise BadInput("config.json is not JSON. Choose a folder with a complete model.") from error
    completions = Completions(server)
    probe = words.encode(PROBE)
    completions.check(probe, max(probe), words.decode([max(probe)]))
    notes = (factors_note(content, config.window, completions.served().longest),)
    return ServedEngine(config, completions, notes)


def factors_note(content: Mapping[str, Any], window: int, longest: int | None) -> str:
    """Which factors vLLM uses for a model whose `config.json` is `content` (specification of hosting, section 3.2).

    window: tokens it was trained for first. longest: `max_model_len` of the server.
    """
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("longrope", "su"):
        return f"Factors: the server's own, by config.json {kind!r}, unless it was started with others."
    if longest is None:
        return "Factors: the server's own, long or short ones: it does not say for how many tokens it was started."
    if longest > window:
        return (
            f"Factors: the server's own. Started for {longest:,} tokens, more than the first {window:,}, vLLM uses the "
            "long ones at every length, where transformers takes the short ones for short prompts."
        )
    return (
        f"Factors: the server's own. Started for {longest:,} tokens, not more than the first {window:,}, vLLM uses the "
        "short ones."
    )
