"""A small OpenAI-compatible server: completions in vLLM's form, streamed, by any causal model of transformers.

It computes every token from all before it, with nothing kept, and masks what is not allowed: an independent way to the
same answer. It can also misbehave in the ways that servers do.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

NAME = "tiny"


class CompletionsServer(ThreadingHTTPServer):
    """model, tokenizer: of transformers, or with their `decode`. fault: how it misbehaves, "" for not at all.

    requests: bodies of all completions asked for. keys: of all requests. gone: set when a client left a silent server.
    """

    daemon_threads = True

    def __init__(self, model: Any, decode: Any, longest: int | None = 2048) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.decode, self.longest = model, decode, longest
        self.names, self.key, self.fault = [NAME], "", ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.gone = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(model: Any, decode: Any, longest: int | None = 2048) -> Iterator[CompletionsServer]:
    """A server for as long as the block lasts."""
    with CompletionsServer(model, decode, longest) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: CompletionsServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if self._admitted():
            if self.path != "/v1/models":
                return self._error(404, "Not Found")
            if self.server.fault == "list":
                return self._answer({"data": [{"name": "?"}]})
            rows = [{"id": name, "object": "model", "max_model_len": self.server.longest} for name in self.server.names]
            self._answer({"object": "list", "data": rows})

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted():
            return
        self.server.requests.append(body)
        if self.path != "/v1/completions":
            return self._error(404, "Not Found")
        if body["model"] not in self.server.names:
            return self._error(404, f"The model `{body['model']}` does not exist.")
        if self.server.longest and len(body["prompt"]) + body["max_tokens"] > self.server.longest:
            return self._error(400, f"This model's maximum context length is {self.server.longest} tokens.")
        if self.server.fault == "silent":
            self.server.gone.clear()
            if self.connection.recv(1) == b"":
                self.server.gone.set()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self._stream(body)

    def _admitted(self) -> bool:
        """Says no itself."""
        key, fault = self.headers.get("Authorization"), self.server.fault
        self.server.keys.append(key)
        if self.server.key and key != f"Bearer {self.server.key}":
            self._error(401, "Unauthorized")
        elif fault == "500":
            self._error(500, "EngineCore encountered an issue.")
        elif fault == "503":
            self._error(503, "Too many requests")
        elif fault == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:9/v1/models")
            self.end_headers()
        elif fault == "html":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>Welcome</title>\n")
        else:
            return True
        return False

    def _stream(self, body: dict[str, Any]) -> None:
        fault = self.server.fault
        for number, (token, reason, stopped_by) in enumerate(generate(self.server.model, body)):
            ids = [1 if fault == "not allowed" else token]
            choice: dict[str, Any] = {
                "index": 0, "text": "" if stopped_by is not None else self.server.decode(ids), "logprobs": None,
                "finish_reason": reason, "stop_reason": stopped_by, "token_ids": ids,
            }  # fmt: skip
            if number == 0:
                choice["prompt_token_ids"] = body["prompt"]
            if fault == "no ids" or not body.get("return_token_ids"):
                del choice["token_ids"]
            if fault == "end left out" and stopped_by is not None:
                choice["token_ids"] = ids[:-1]
            chunk = {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}
            if fault == "other model":
                chunk["model"] = "somebody else"
            if fault == "abort":
                choice["finish_reason"] = "abort"
            if fault == "error" and number == 1:
                chunk = {"error": {"message": "CUDA error:\n an illegal memory access", "code": 500}}
            data = json.dumps(chunk)
            if fault == "not JSON":
                data = data[:-3]
            if fault == "too many":
                choice["finish_reason"] = None
                data = json.dumps(chunk)
            self.wfile.write(f": a comment\n\ndata: {data}\n\n".encode())
            if fault == "cut" and number == 1:
                return
        if fault == "too many":
            self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, content: Any, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def _error(self, status: int, message: str) -> None:
        self._answer({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)


@torch.inference_mode()
def generate(model: Any, body: dict[str, Any]) -> Iterator[tuple[int, str | None, int | None]]:
    """Ids one by one, with the reason and the id that ended it, if that was one of `stop_token_ids`."""
    ids = list(body["prompt"])
    chance = torch.Generator().manual_seed(body.get("seed") or 0)
    for step in range(body["max_tokens"]):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        allowed = body.get("allowed_token_ids")
        if allowed is not None:
            mask = torch.ones_like(logits, dtype=torch.bool)
            mask[allowed] = False
            logits = logits.masked_fill(mask, -torch.inf)
        seen = torch.tensor(sorted(set(ids)))
        penalty = body.get("repetition_penalty", 1.0)
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        if body["temperature"] == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits / body["temperature"]).softmax(0), 1, generator=chance))
        ids.append(token)
        if token in body["stop_token_ids"]:
            yield token, "stop", token
            return
        yield token, "length" if step + 1 == body["max_tokens"] else None, None
