"""One visitor as the app sees them: a session, an address, and the requests that the page makes.

The protocol is the page's own: a job is asked for at `queue/join` and followed at `queue/data`, a camera's frames go to
`stream/ID`, what needs no queue to `run/NAME`; a heartbeat keeps the session, and the status line asks every five
seconds. Nothing of what comes back is looked at that need not be, so that many visitors fit into little of one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import httpx

from tests.calls import FILE, form

Outcome = Literal["done", "queue full", "error", "unfinished"]
JSON_BODY = {"content-type": "application/json"}
STATUS_SECONDS = 5.0
# Connections are let go of before the app does it, at five seconds: a browser would ask again, this client would not.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
SHUTTER_SECONDS = 0.04  # between two shots of the page's camera


@dataclass(frozen=True)
class Endpoint:
    """An event of the page: its number, the labels of its inputs, and what they hold when the page opens."""

    name: str
    number: int
    labels: tuple[str | None, ...]
    values: tuple[Any, ...]

    def data(self, changed: dict[str, Any]) -> list[Any]:
        """The inputs, those with the labels in `changed` set. Raises KeyError for a label that no input has."""
        if unknown := changed.keys() - set(self.labels):
            raise KeyError(f"{self.name} has no input {', '.join(unknown)}; it has {', '.join(map(str, self.labels))}")
        pairs = zip(self.labels, self.values, strict=True)
        return [changed.get(label, value) for label, value in pairs]


def endpoints(url: str) -> dict[str, Endpoint]:
    """The events that have a name, as the app describes them to the page."""
    config = httpx.get(f"{url}/config", trust_env=False, timeout=60).json()
    parts = {part["id"]: part for part in config["components"]}
    return {
        event["api_name"]: Endpoint(
            event["api_name"],
            event["id"],
            tuple(parts[i]["props"].get("label") for i in event["inputs"]),
            tuple(parts[i]["props"].get("value") for i in event["inputs"]),
        )
        for event in config["dependencies"]
        if event["api_name"]
    }


@dataclass(frozen=True)
class Answer:
    """How a job ended. seconds: until the result was there, files included. first: until anything was shown."""

    outcome: Outcome
    seconds: float
    first: float
    why: str = ""
    data: tuple[Any, ...] = ()


@dataclass
class Shots:
    """What became of a camera's shots: `delays` are (second of the clock, seconds from the shot to its answer)."""

    taken: int = 0
    sent: int = 0
    answered: int = 0
    dropped: int = 0  # the shutter clicked while the last frame had no answer yet: the page sends a newer one later
    stale: int = 0  # answers to another frame than the newest that was sent
    delays: list[tuple[float, float]] = field(default_factory=list)


class Visitor:
    """`async with Visitor(...) as visitor`: the page is open in the block. status: the events its status line asks."""

    def __init__(
        self, http: httpx.AsyncClient, known: dict[str, Endpoint], address: str, status: tuple[str, ...] = ()
    ) -> None:
        self.http, self.known, self.status = http, known, status
        self.session = secrets.token_hex(8)
        self.headers = {"x-forwarded-for": address}
        self.problems: list[str] = []  # of the heartbeat and the status line, known after the block
        self._seen: set[str] = set()
        self._tasks: list[asyncio.Task] = []

    async def __aenter__(self) -> Visitor:
        page = await self.http.get("/", headers=self.headers)
        page.raise_for_status()
        self._tasks = [asyncio.create_task(self._heartbeat()), asyncio.create_task(self._ask_status())]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.problems += [repr(each) for each in ended if isinstance(each, Exception)]

    async def _heartbeat(self) -> None:
        async with self._stream(f"/gradio_api/heartbeat/{self.session}") as lines:
            async for _ in lines:
                pass

    async def _ask_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            for name in self.status:
                await self.run(name)

    async def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """A file as an input takes it."""
        kind = {"content-type": "multipart/form-data; boundary=B"}
        sent = await self.http.post(
            "/gradio_api/upload", content=form(name.encode(), content), headers=self.headers | kind
        )
        sent.raise_for_status()
        return {"path": sent.json()[0], "orig_name": name, "size": len(content), "meta": FILE}

    async def run(self, name: str, **changed: Any) -> None:
        """An event that needs no queue, such as Cancel."""
        endpoint = self.known[name]
        body = {"data": endpoint.data(changed), "fn_index": endpoint.number, "session_hash": self.session}
        (await self._post(f"run/{name}", body)).raise_for_status()

    async def ask(
        self, name: str, changed: dict[str, Any] | None = None, on_output: Callable[[str], None] | None = None
    ) -> Answer:
        """A job, from pressing its button to its result, with the files the page would fetch.

        changed: inputs by their label. on_output: gets each message of the job on its way, as text.
        """
        started = time.monotonic()
        joined = await self._join(name, changed or {})
        if isinstance(joined, Answer):
            return joined
        first = 0.0
        async with self._stream(f"/gradio_api/queue/data?session_hash={self.session}") as lines:
            async for line in lines:
                kind = _kind(line)
                if kind == "process_generating":
                    first = first or time.monotonic() - started
                    if on_output is not None:
                        on_output(line)
                elif kind in ("process_completed", "unexpected_error"):
                    message = json.loads(line[6:])
                    break
            else:
                return Answer("error", time.monotonic() - started, first, "the stream ended without a result")
        if not message["success"]:
            why = (message.get("output") or {}).get("error") or message.get("message") or "no reason was given"
            return Answer("error", time.monotonic() - started, first, str(why))
        data = tuple(message["output"]["data"])
        for address in _files(data):
            await self._fetch(address)
        seconds = time.monotonic() - started
        return Answer("done", seconds, first or seconds, data=data)

    async def film(
        self, name: str, camera: Callable[[int], tuple[Any, Any]], shot_of: Callable[[Any], Any], seconds: float,
        shots: Shots, clock: float, stop: asyncio.Event,
    ) -> Answer:  # fmt: skip
        """A camera that is on for so many seconds, or until `stop`. A shot is sent if the one before was answered.

        camera: of the shot with that number, the input's value and its mark. shot_of: the mark in an answer's data,
        None if it answers none.
        shots: counts are added there. clock: `time.monotonic()` of second 0.
        """
        endpoint = self.known[name]
        started = time.monotonic()
        value, mark = camera(0)
        joined = await self._join(name, {endpoint.labels[0]: value} if endpoint.labels[0] else {})
        if isinstance(joined, Answer):
            return joined
        shots.taken += 1
        shots.sent += 1
        event, sent, pending = joined, started, True
        first, failed = 0.0, ""

        async def listen() -> None:
            nonlocal pending, first, failed
            async with self._stream(f"/gradio_api/queue/data?session_hash={self.session}") as lines:
                async for line in lines:
                    kind = _kind(line)
                    if kind in ("process_streaming", "process_completed", "unexpected_error"):
                        message = json.loads(line[6:])
                        if not message["success"]:
                            failed = str((message.get("output") or {}).get("error") or message.get("message"))
                            return
                        if kind == "process_completed":
                            return
                        now = time.monotonic()
                        first = first or now - started
                        shots.answered += 1
                        shots.stale += shot_of(message["output"]["data"]) not in (mark, None)
                        shots.delays.append((now - clock, now - sent))
                        pending = False

        ears = asyncio.create_task(listen())
        try:
            due = started
            while time.monotonic() - started < seconds and not (stop.is_set() or ears.done()):
                due = max(due + SHUTTER_SECONDS, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
                shots.taken += 1
                if pending:
                    shots.dropped += 1
                    continue
                (value, mark), sent, pending = camera(shots.taken), time.monotonic(), True
                shots.sent += 1
                data = endpoint.data({endpoint.labels[0]: value} if endpoint.labels[0] else {})
                body = {"data": data, "fn_index": endpoint.number, "session_hash": self.session, "event_id": event}
                answer = await self._post(f"stream/{event}", body)
                if answer.status_code != 200:
                    failed = failed or f"a frame was answered with {answer.status_code}"
                    break
            while pending and not ears.done():
                await asyncio.sleep(0.01)
            await self._post(f"stream/{event}/close", {})
            await ears
        finally:
            ears.cancel()
        return Answer("error" if failed else "done", time.monotonic() - started, first, failed)

    async def _join(self, name: str, changed: dict[str, Any]) -> str | Answer:
        """The job's number, or how it was refused."""
        endpoint = self.known[name]
        body = {"data": endpoint.data(changed), "fn_index": endpoint.number, "session_hash": self.session}
        joined = await self._post("queue/join", body)
        if joined.status_code == 200:
            return joined.json()["event_id"]
        full = joined.status_code == 503 and "queue is full" in joined.text.lower()
        return Answer("queue full" if full else "error", 0.0, 0.0, f"{joined.status_code} {joined.text[:300]}")

    async def _fetch(self, address: str) -> None:
        """A file of a result, once, as a browser keeps it."""
        if address not in self._seen:
            self._seen.add(address)
            (await self.http.get(address, headers=self.headers)).raise_for_status()

    async def _post(self, route: str, body: Any) -> httpx.Response:
        content = json.dumps(body).encode()
        return await self.http.post(f"/gradio_api/{route}", content=content, headers=self.headers | JSON_BODY)

    @contextlib.asynccontextmanager
    async def _stream(self, route: str) -> AsyncIterator[AsyncIterator[str]]:
        async with self.http.stream("GET", route, headers=self.headers) as stream:
            stream.raise_for_status()
            yield stream.aiter_lines()


def _kind(line: str) -> str:
    """What a message is, without reading all of it: pictures of plots are large."""
    start = 'data: {"msg":"'
    return line[len(start) :].partition('"')[0] if line.startswith(start) else ""


def _files(value: Any) -> list[str]:
    """Addresses of files in a result, in order."""
    found, left = [], [value]
    while left:
        each = left.pop(0)
        if isinstance(each, dict):
            if isinstance(url := each.get("url"), str) and "/gradio_api/file=" in url:
                found.append(url)
            left.extend(each.values())
        elif isinstance(each, list | tuple):
            left.extend(each)
    return found
