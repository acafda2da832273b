"""The gate every request passes: closed routes, sizes, rates, the password, safe headers, errors in words.

Gradio's own routes stay as they are; this is plain ASGI middleware inside of them (`launch(app_kwargs=...)`).
Why each rule is there: SECURITY.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from deploy.limits import Buckets, Limits, Scope, client_of
from models.errors import is_disk_full

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

API = "/gradio_api"
# Parts of Gradio that this app has no use for: developers' tools, proxies to other addresses, shared snapshots of a
# session, ffmpeg on any file.
CLOSED = re.compile(
    rf"/monitoring|/svelte/|{API}/(dev/|vibe-|undo-vibe|profiling|runs|run-history|deep_link|process_recording|proxy="
    r"|file[=/].*:/)"
)
# What a browser needs before anybody has signed in; nothing here depends on visitors or files.
WITHOUT_PASSWORD = re.compile(
    rf"/|/login/?|/logout|/(assets|static)/.*|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon.*"
    rf"|{API}/(theme\.css|user/?|login_check/?|app_id/?|token/?|startup-events)"  # the last is Gradio's own first call
)
UNFINISHED_SECONDS = 600
JOBS = re.compile(rf"{API}/(queue/join|call/[^/]+/?|call/v2/[^/]+/?)")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=(), payment=(), usb=()",
}
# Gradio's page needs inline scripts and compiles functions from text; but nothing may come from, or go to, elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
# The page of a Space stands in a frame of the Hub, which adds scripts of its own.
POLICY_ON_SPACES = "object-src 'none'; base-uri 'self'; frame-ancestors 'self' https://huggingface.co"


class Gate:
    """ASGI middleware; one object an app. `proxies`: trusted ones in front, each of which adds to X-Forwarded-For."""

    def __init__(self, app: App, limits: Limits, proxies: int = 0, on_spaces: bool = False) -> None:
        self.app, self.limits, self.proxies = app, limits, proxies
        rate = limits.requests_per_second
        self.requests = Buckets(rate, 10 * rate) if rate else None
        self.logins = Buckets(limits.logins_per_minute / 60, limits.logins_per_minute)
        self.uploads = Buckets(limits.upload_bytes / 600, limits.upload_bytes)
        headers = HEADERS | {"Content-Security-Policy": POLICY_ON_SPACES if on_spaces else POLICY}
        if on_spaces:
            del headers["Cross-Origin-Opener-Policy"]
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.headers)
        if refusal := self._refusal(scope):
            await answer.refuse(*refusal)
            return
        try:
            await self.app(scope, self._counted(scope, receive, answer), answer.send)
        except Exception as error:
            await answer.explain(error, scope["path"])
        finally:
            if _path(scope) == f"{API}/upload":
                _sweep(Path(scope["app"].uploaded_file_dir))

    def _refusal(self, scope: Scope) -> tuple[int, str, float] | None:
        """Status, words and seconds to wait, for a request that goes no further."""
        path, client = _path(scope), client_of(scope, self.proxies)
        if CLOSED.match(path):
            return 404, "This app does not have that page.", 0
        if scope["method"] == "POST" and path.rstrip("/") == "/login" and (wait := self.logins.take(client)):
            return 429, "Too many tries at the password. Wait a minute.", wait
        if not path.startswith(API):
            pass
        elif self.requests is not None and (wait := self.requests.take(client)):
            return 429, "Too many requests from your address. Wait a moment and try again.", wait
        if not _signed_in(scope) and not WITHOUT_PASSWORD.fullmatch(path):
            return 401, "Sign in first.", 0
        length = _length(scope)
        if length > self._largest(path):
            return 413, _too_large(self._largest(path)), 0
        if path == f"{API}/upload" and (wait := self.uploads.take(client, length)):
            return 429, "That is a lot of uploads. They are deleted after ten minutes; try again later.", wait
        if scope["method"] == "POST" and JOBS.fullmatch(path) and self._pending(scope, client) >= self.limits.pending:
            return 429, f"{self.limits.pending} jobs from your address wait already. Try again when one is done.", 10
        return None

    def _largest(self, path: str) -> int:
        return self.limits.request_bytes if path == f"{API}/upload" else self.limits.message_bytes

    def _pending(self, scope: Scope, client: str) -> int:
        events = scope["app"].get_blocks()._queue.event_ids_to_events.values()
        return sum(client_of(event.request.scope, self.proxies) == client for event in list(events))

    def _counted(self, scope: Scope, receive: Receive, answer: _Answer) -> Receive:
        """`receive` that stops a body which is larger than it said, or said nothing."""
        largest, seen = self._largest(_path(scope)), 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > largest:
                await answer.refuse(413, _too_large(largest))
                raise _TooLargeError
            return message

        return counted


class _TooLargeError(Exception):
    """Ends a route in the middle of a body; the client has been told."""


class _Answer:
    """The way back: adds headers, and knows whether something can still be said."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._headers = send, headers
        self._started = self._ended = False

    async def send(self, message: Message) -> None:
        if self._ended:  # refused in the middle of the body
            return
        if message["type"] == "http.response.start":
            self._started = True
            present = {name.lower() for name, _ in message.get("headers", [])}
            added = [header for header in self._headers if header[0] not in present]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, status: int, words: str, wait: float = 0) -> None:
        """An answer in the two forms that Gradio's clients read."""
        body = json.dumps({"detail": words, "error": words}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if wait:
            headers.append((b"retry-after", str(math.ceil(wait)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def explain(self, error: Exception, path: str) -> None:
        """Ends the answer in words after an error in a route; handlers' own errors never come here."""
        if isinstance(error, _TooLargeError):
            return
        if self._started:
            logger.info("An answer to %r ended early: %r", path, error)
            await self.send({"type": "http.response.body", "body": b""})
        elif is_disk_full(error):
            logger.error("No space left for %r: %s", path, error)
            await self.refuse(507, "The disk of this app is full. Uploads are deleted after ten minutes; try later.")
        elif isinstance(error, OSError | MemoryError):
            logger.error("Error in %r", path, exc_info=error)
            await self.refuse(500, "Something went wrong; it is logged. Please try again.")
        else:
            # Gradio looks names and numbers of endpoints up without checking them.
            logger.info("A request to %r could not be understood: %r", path, error)
            await self.refuse(400, "This request cannot be understood. The page's “Use via API” shows how to ask.")


def _sweep(folder: Path) -> None:
    """Deletes uploads that broke off: Gradio moves whole ones into folders, and forgets the others where they are."""
    oldest = time.time() - UNFINISHED_SECONDS  # as the files' own times are
    for path in folder.glob("tmp*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _length(scope: Scope) -> int:
    """The body's length as the client says it; 0 where it says nothing, which is counted on the way."""
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


def _signed_in(scope: Scope) -> bool:
    """True for everybody if no password is asked for."""
    app = scope["app"]
    if app.auth is None:
        return True
    try:
        cookies = SimpleCookie(dict(scope["headers"]).get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return False
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(name in cookies and cookies[name].value in app.tokens for name in names)


def _too_large(most: int) -> str:
    return f"The request is too large: at most {most / 1e6:.0f} MB are taken."
