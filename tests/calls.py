"""Calls to a running app over plain HTTP, as curl would make them: no client that checks or mends anything."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

FILE = {"_type": "gradio.FileData"}


@dataclass
class Caller:
    """One visitor. `session` is sent with every call if it is set; state lives under it."""

    url: str
    session: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    timeout: float = 120.0

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, headers=self.headers, timeout=self.timeout, trust_env=False)

    def call(self, name: str, *data: Any, raw: bytes | None = None) -> tuple[str, Any]:
        """("complete", outputs) or ("error", what the client is told); of a stream the last event.

        A refusal of the request itself is ("refused", (status, text)).
        """
        body = raw if raw is not None else _json({"data": list(data), "session_hash": self.session})
        asked = self.http.post(f"/gradio_api/call/{name}", content=body, headers={"content-type": "application/json"})
        if asked.status_code != 200:
            return "refused", (asked.status_code, asked.text)
        return self.follow(name, asked.json()["event_id"])

    def follow(self, name: str, event_id: str) -> tuple[str, Any]:
        """The last event of a call."""
        event, last = "", ("none", None)
        with self.http.stream("GET", f"/gradio_api/call/{name}/{event_id}") as stream:
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event != "heartbeat":
                    last = event, json.loads(line.removeprefix("data: "))
        return last

    def said(self, name: str, *data: Any) -> str:
        """The message of a call that must fail."""
        event, told = self.call(name, *data)
        assert event == "error", (event, told)
        assert told and told["error"], f"{name} failed without a message"
        return told["error"]

    def upload(self, name: str | bytes, content: bytes) -> str:
        """The path that the app gives an uploaded file. `name` goes into the request as it is."""
        raw = name.encode() if isinstance(name, str) else name
        answer = self.http.post("/gradio_api/upload", content=form(raw, content), headers=FORM)
        answer.raise_for_status()
        return answer.json()[0]


FORM = {"content-type": "multipart/form-data; boundary=B"}


def form(name: bytes, content: bytes) -> bytes:
    """The body of an upload of one file."""
    head = b'--B\r\nContent-Disposition: form-data; name="files"; filename="' + name + b'"\r\n'
    return head + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--B--\r\n"


def file(path: str, **more: Any) -> dict[str, Any]:
    """A file as components take it."""
    return {"path": path, "meta": FILE, **more}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()
