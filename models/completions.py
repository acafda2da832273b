"""A language model behind a URL: the completions of an OpenAI-compatible server, as vLLM answers them.

Prompts go out and answers come back as token ids, so text is never encoded twice. What OpenAI's description lacks is
vLLM's (0.10.2 or newer): `return_token_ids`, `allowed_token_ids`, `stop_token_ids`, `ignore_eos`, `repetition_penalty`.
Addresses come from the person who starts the app, never from a visitor; redirects and proxies are not followed.
"""

from __future__ import annotations

import http.client
import json
import queue
import socket
import threading
import urllib.parse
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from models.errors import BadInput, ServerUnavailable

TICK_SECONDS = 0.2  # how often somebody who waits may leave
LIST_SECONDS = 30.0  # a list of models takes no time to make
LONGEST_LINE, LONGEST_ANSWER = 4_000_000, 8_000_000  # bytes
Tick = Callable[[], None]


@dataclass(frozen=True)
class Address:
    """Where a server is.

    url: up to and with its version, such as http://127.0.0.1:8000/v1. model: its name there; None is the only one.
    key: sent as a bearer token. connect_seconds: for the connection; silence_seconds: without a byte, which is how long
    reading a prompt may take.
    """

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    connect_seconds: float = 10.0
    silence_seconds: float = 1800.0

    @classmethod
    def parse(cls, text: str, key: str | None = None) -> Address:
        """From "URL" or "URL#MODEL". Raises `BadInput`."""
        advice = "Give one such as http://127.0.0.1:8000/v1, and #NAME behind it where it serves several models."
        try:
            parts = urllib.parse.urlsplit(text)
            port = parts.port
        except ValueError:
            raise BadInput(f"{text!r} is no address of a server. {advice}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or port == 0:
            raise BadInput(f"{text!r} is no address of a server. {advice}")
        if parts.username is not None or parts.password is not None:
            raise BadInput("A server's address holds no password here. Give its key with --lm-key.")
        if any(ord(c) <= 32 or ord(c) > 126 for c in text + (key or "")):
            raise BadInput("A server's address and key are printable ASCII characters without spaces.")
        url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        return cls(url, urllib.parse.unquote(parts.fragment) or None, key or None)

    @property
    def place(self) -> str:
        """Host and port, to be shown."""
        return urllib.parse.urlsplit(self.url).netloc


@dataclass(frozen=True)
class Served:
    """A model of a server. longest: tokens of prompt and answer together (`max_model_len`); None if it is not said."""

    name: str
    longest: int | None


@dataclass(frozen=True)
class Request:
    """What is asked for.

    prompt: ids, sent as they are. tokens: the most that may come. stop: ids that end the answer; nothing else does.
    allowed: the ids that may come; None is all. The rest is sampling: temperature 0 takes the likeliest, top_k 0 keeps
    all, repetition 1 is none.
    """

    prompt: Sequence[int]
    tokens: int
    stop: Sequence[int] = ()
    allowed: Sequence[int] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition: float = 1.0
    seed: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        """Every setting is said, or the server would take the model's `generation_config.json`."""
        body: dict[str, Any] = {
            "model": model, "prompt": list(self.prompt), "max_tokens": self.tokens, "stream": True,
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": 0.0,
            "repetition_penalty": self.repetition, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "stop_token_ids": list(self.stop), "ignore_eos": True, "return_token_ids": True,
            "add_special_tokens": False, "skip_special_tokens": False, "spaces_between_special_tokens": False,
        }  # fmt: skip
        if self.allowed is not None:
            body["allowed_token_ids"] = list(self.allowed)
        if self.seed is not None:
            body["seed"] = self.seed
        return body


@dataclass(frozen=True)
class Piece:
    """Some of an answer: ids (the one that ended it too), and their text as the server writes it."""

    ids: tuple[int, ...]
    text: str


class Completions:
    """One model of one server. Nothing is kept open between calls, so any number of threads may share it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._served: Served | None = None

    @property
    def place(self) -> str:
        return self.address.place

    def served(self) -> Served:
        """The model that is asked, by the server's own list.

        Raises:
            ServerUnavailable: the server is away, refuses, has no such model, or has several and none was named.
        """
        if self._served is None:
            quick = replace(self.address, silence_seconds=min(self.address.silence_seconds, LIST_SECONDS))
            with closing(_Exchange(quick, "GET", "/models", None)) as exchange:
                answer = exchange.json()
            try:
                found = [Served(str(row["id"]), _whole(row.get("max_model_len"))) for row in answer["data"]]
            except (KeyError, TypeError, ValueError, AttributeError):
                raise self._wrong("its list of models is not one") from None
            self._served = self._choose(found)
        return self._served

    def _choose(self, found: list[Served]) -> Served:
        wanted = self.address.model
        names = ", ".join(one.name for one in found[:10]) or "none"
        if wanted is not None:
            for one in found:
                if one.name == wanted:
                    return one
            raise ServerUnavailable(
                f"The server at {self.place} has no model {wanted!r}; it has {names}. Name one of them behind the "
                "address (URL#NAME), or start the server with the other."
            )
        if len(found) != 1:
            raise ServerUnavailable(
                f"The server at {self.place} has {len(found)} models ({names}). Name one behind the address: URL#NAME."
            )
        return found[0]

    def check(self, prompt: Sequence[int], token: int, text: str) -> None:
        """One token is asked for that has to come, and has to be written as `text`: the server does what is needed
        here, and counts its tokens as we do.

        Raises:
            ServerUnavailable: see `stream`, or it runs another model.
        """
        pieces = list(self.stream(Request(prompt, 1, allowed=[token])))
        ids = [i for piece in pieces for i in piece.ids]
        written = "".join(piece.text for piece in pieces)
        if ids != [token]:
            raise self._wrong(
                f"it answered {ids[:5]} where only {token} was allowed",
                "It has to honour allowed_token_ids, as vLLM does.",
            )
        if written.strip() != text.strip():
            raise ServerUnavailable(
                f"The server at {self.place} runs another model: its token {token} is {written[:40]!r}, and "
                f"{text[:40]!r} in the folder here. Give the folder of the model that the server runs."
            )

    def stream(self, request: Request, tick: Tick | None = None) -> Generator[Piece, None, None]:
        """An answer as it comes. Closing the iterator ends the request, at the server too.

        Args:
            tick: called a few times a second while nothing comes; may raise, which ends the request.

        Raises:
            BadInput: more tokens than the server reads. ServerUnavailable: the server is away, stays silent, refuses,
            breaks off, or answers with something else than asked.
        """
        served = self.served()
        whole = len(request.prompt) + request.tokens
        if served.longest is not None and whole > served.longest:
            raise BadInput(
                f"{whole:,} tokens are needed and the server was started for {served.longest:,}. Choose a shorter "
                "text, or start it with a larger --max-model-len."
            )
        body = json.dumps(request.body(served.name), separators=(",", ":")).encode()
        with closing(_Exchange(self.address, "POST", "/completions", body)) as exchange:
            yield from self._pieces(request, served, exchange.events(tick))

    def _pieces(self, request: Request, served: Served, events: Iterator[str]) -> Iterator[Piece]:
        left, begun, ended = request.tokens, False, False
        for event in events:
            begun = True
            if event == "[DONE]":
                break
            for choice in self._chunk(event, served):
                piece, done = self._piece(choice, request)
                left -= len(piece.ids)
                ended = ended or done
                if left < 0:
                    raise self._wrong(f"it answered more than the {request.tokens} tokens asked for")
                if piece.ids or piece.text:
                    yield piece
        if not begun:
            raise self._wrong("what it sends is no stream of completions")
        if not ended:
            raise ServerUnavailable(
                f"The server at {self.place} broke off in the middle of its answer. Look at its log, and try again."
            )

    def _chunk(self, event: str, served: Served) -> list[dict[str, Any]]:
        try:
            chunk = json.loads(event)
        except ValueError:
            raise self._wrong("what it sends is not JSON") from None
        if not isinstance(chunk, dict):
            raise self._wrong("what it sends is no completion")
        if "error" in chunk:
            raise ServerUnavailable(f"The server at {self.place} failed: {_message(chunk)}. Look at its log.")
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise self._wrong("what it sends is no completion")
        if chunk.get("model", served.name) != served.name:
            raise self._wrong(f"{str(chunk['model'])[:80]!r} answers in the place of {served.name!r}")
        return choices

    def _piece(self, choice: dict[str, Any], request: Request) -> tuple[Piece, bool]:
        """And whether it is the last."""
        text, ids, reason = choice.get("text") or "", choice.get("token_ids") or [], choice.get("finish_reason")
        if not isinstance(text, str) or not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise self._wrong("what it sends is no completion")
        if reason not in (None, "stop", "length"):
            raise ServerUnavailable(
                f"The server at {self.place} gave up ({str(reason)[:80]}). Look at its log, and try again."
            )
        stopped_by = choice.get("stop_reason")
        if reason == "stop" and type(stopped_by) is int and stopped_by in request.stop and ids[-1:] != [stopped_by]:
            ids = [*ids, stopped_by]  # a server that leaves out the id that ended it says which it was
        if text and not ids:
            advice = "It has to honour return_token_ids, as vLLM 0.10.2 and newer do."
            raise self._wrong("it sends no token ids", advice)
        return Piece(tuple(ids), text), reason is not None

    def _wrong(
        self, what: str, advice: str = "Check that its address is that of vLLM's OpenAI-compatible server."
    ) -> Any:
        return ServerUnavailable(f"The server at {self.place} answers wrongly: {what}. {advice}")


class _Exchange:
    """One request and its answer, read in a thread, so that whoever waits for it can leave at any moment."""

    def __init__(self, address: Address, method: str, path: str, body: bytes | None) -> None:
        self._address, self._method, self._path, self._body = address, method, path, body
        self._lines: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=f"ask {address.place}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the request wherever it is; vLLM stops working on it then."""
        self._left.set()
        if self._socket is not None:
            with suppress(OSError):  # it may have ended by itself
                self._socket.shutdown(socket.SHUT_RDWR)

    def json(self) -> Any:
        """The whole answer. Raises `ServerUnavailable`."""
        content = b"".join(self._received(None))
        try:
            return json.loads(content)
        except ValueError:
            raise self._failed("it does not answer in JSON") from None

    def events(self, tick: Tick | None) -> Iterator[str]:
        """What server-sent events carry: their "data:" lines."""
        for line in self._received(tick):
            name, colon, value = line.strip().partition(b":")
            if colon and name == b"data":
                yield value.strip().decode("utf-8", "replace")

    def _received(self, tick: Tick | None) -> Iterator[bytes]:
        while True:
            try:
                line = self._lines.get(timeout=TICK_SECONDS)
            except queue.Empty:
                if tick is not None:
                    tick()
                continue
            if isinstance(line, Exception):
                raise line
            if line is None:
                return
            yield line

    def _run(self) -> None:
        """In the thread: lines of the answer, then None, or the error that ended it."""
        connection = self._connection()
        try:
            self._ask(connection)
        except TimeoutError as error:
            self._lines.put(self._failed(f"it was silent for too long ({error})"))
        except (OSError, http.client.HTTPException) as error:
            self._lines.put(self._failed(str(error).strip() or type(error).__name__))
        except ServerUnavailable as error:
            self._lines.put(error)
        else:
            self._lines.put(None)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self._address.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname is not None
        return kind(parts.hostname, parts.port, timeout=self._address.connect_seconds)

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        connection.connect()
        self._socket = connection.sock
        if self._left.is_set():  # looked at after the socket is there for `close`
            return
        connection.sock.settimeout(self._address.silence_seconds)
        headers = {"Accept": "application/json, text/event-stream", "Connection": "close"}
        if self._body is not None:
            headers["Content-Type"] = "application/json"
        if self._address.key is not None:
            headers["Authorization"] = f"Bearer {self._address.key}"
        path = urllib.parse.urlsplit(self._address.url).path + self._path
        connection.request(self._method, path, self._body, headers)
        with connection.getresponse() as response:
            if response.status != http.HTTPStatus.OK:
                raise self._refused(response.status, response.read(LONGEST_LINE))
            whole = 0
            while line := response.readline(LONGEST_LINE):
                whole += len(line)
                if len(line) == LONGEST_LINE or (self._body is None and whole > LONGEST_ANSWER):
                    raise self._failed("its answer is too long")
                self._lines.put(line)

    def _refused(self, status: int, content: bytes) -> ServerUnavailable:
        try:
            said = _message(json.loads(content))
        except ValueError:
            said = ""
        place, what = self._address.place, f"{status}" + (f": {said}" if said else "")
        if status in (401, 403):
            return ServerUnavailable(f"The server at {place} does not accept the key ({what}). Give it with --lm-key.")
        if status in (429, 503):
            return ServerUnavailable(f"The server at {place} is busy ({what}). Try again in a moment.")
        if status == http.HTTPStatus.NOT_FOUND or 300 <= status < 400:
            return ServerUnavailable(
                f"There is no such API or model at {place} ({what}). Check the address; one is http://HOST:8000/v1."
            )
        if status < 500:
            return ServerUnavailable(f"The server at {place} refuses the request ({what}).")
        return ServerUnavailable(f"The server at {place} failed ({what}). Look at its log.")

    def _failed(self, what: str) -> ServerUnavailable:
        return ServerUnavailable(
            f"The server at {self._address.place} does not answer as it should ({what[:200]}). Start it, or check its "
            "address."
        )


def _message(answer: Any) -> str:
    """What an error says, in the forms that vLLM and OpenAI have; in one line, cut."""
    if isinstance(answer, dict):
        inner = answer.get("error", answer)
        said = inner.get("message", "") if isinstance(inner, dict) else inner
        return " ".join(str(said).split())[:300].rstrip(".")
    return ""


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
