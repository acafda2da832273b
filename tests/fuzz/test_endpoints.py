"""Arbitrary JSON for every event of every tab, private ones too: each is answered, and each refusal says why.

A few fixed cases are tried, for at most 75 seconds. `LIVE_PAPERS_FUZZ=60` goes on for 60 minutes, in rounds over all
events, each with cases of its own; `LIVE_PAPERS_FUZZ_SEED` chooses others, `LIVE_PAPERS_FUZZ_RECORD=FILE.json` keeps
the counts:

    LIVE_PAPERS_FUZZ=60 LIVE_PAPERS_FUZZ_RECORD=assets/hosting/fuzz.json python -m pytest tests/fuzz
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from models.records import record
from tests.calls import FILE, Caller

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURE = ROOT / "assets" / "yolov9" / "cards" / "bus.png"
MINUTES = float(os.environ.get("LIVE_PAPERS_FUZZ", "0"))
SEED = int(os.environ.get("LIVE_PAPERS_FUZZ_SEED", "0"))
RECORD = os.environ.get("LIVE_PAPERS_FUZZ_RECORD")
EXAMPLES = 20 if MINUTES else 4  # a round
SECONDS = 50 * MINUTES or 60  # then what is left is not tried; on a quiet machine nothing is left
ROUTE_SECONDS = 10 * MINUTES or 15
UNEXPECTED = "Something went wrong"
pytestmark = pytest.mark.timeout(600 + 2 * (SECONDS + ROUTE_SECONDS))
RULES: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**30, -1, 0, 1e308, "\ud800", "\0", "<img src=x onerror=alert(1)>", "../etc/passwd", "NaN"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One event: its place in the app's list, its name, and its inputs' kinds and properties."""

    index: int
    name: str
    inputs: tuple[tuple[str, dict[str, Any]], ...]


@pytest.fixture(scope="module")
def events(app_server) -> list[Event]:
    config = Caller(app_server.url).http.get("/config").json()
    components = {entry["id"]: (entry["type"], entry["props"]) for entry in config["components"]}
    return [
        Event(
            entry["id"],
            entry["api_name"] or f"event {entry['id']}",
            tuple(components[target] for target in entry["inputs"]),
        )
        for entry in config["dependencies"]
        if entry["backend_fn"]
    ]


def likely(kind: str, props: dict[str, Any], uploads: dict[str, str]) -> st.SearchStrategy[Any]:
    """What the control could send; numbers mostly small, as jobs are to end soon."""
    if kind in ("slider", "number"):
        low = props.get("minimum")
        low = low if low is not None else 0
        return st.sampled_from([low, low, low, low + 1, props.get("maximum") or low, low - 1, low + 0.5])
    if kind in ("radio", "dropdown", "checkboxgroup"):
        one = st.sampled_from([choice[1] for choice in props.get("choices") or [("", "")]])
        return st.lists(one, max_size=2) if kind == "checkboxgroup" or props.get("multiselect") else one
    if kind == "checkbox":
        return st.booleans()
    if kind == "textbox":
        return st.text(max_size=40) | st.sampled_from(["a blue apple", "", " ", "1,2,3", "{}", '{"a": [1]}'])
    if kind in ("image", "file", "video"):
        return st.none() | st.sampled_from([{"path": path, "meta": FILE} for path in uploads.values()])
    if kind == "imageeditor":
        composite = {"path": uploads["picture.png"], "meta": FILE}
        return st.sampled_from([None, {"background": None, "layers": [], "composite": composite}])
    return JSON


def ask(caller: Caller, event: Event, data: list[Any]) -> tuple[str, str]:
    """("done", ""), ("refused", why) or ("failed", why); a long job counts as done once it has shown anything."""
    body = json.dumps({"data": data, "fn_index": event.index, "session_hash": caller.session}).encode()
    asked = posted(caller, "/gradio_api/queue/join", body)
    if asked.status_code != 200:
        return ("refused" if asked.status_code < 500 else "failed"), f"{asked.status_code} {asked.text}"
    event_id = asked.json()["event_id"]
    with caller.http.stream("GET", f"/gradio_api/queue/data?session_hash={caller.session}") as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_streaming":  # a camera's: it would wait for the next frame
                caller.http.post(f"/gradio_api/stream/{event_id}/close")
                return "done", ""
            if message.get("msg") == "process_generating" and message["success"]:
                stop = {"session_hash": caller.session, "fn_index": event.index, "event_id": event_id}
                caller.http.post("/gradio_api/cancel", json=stop)
                return "done", ""
            if message.get("msg") in ("process_completed", "process_generating"):
                error = None if message["success"] else (message["output"] or {}).get("error") or ""
                return ("done", "") if error is None else ("refused" if error else "failed", error)
            if message.get("msg") == "unexpected_error":
                return "failed", message["message"] or ""
    return "failed", "the stream ended without an answer"


def posted(caller: Caller, route: str, body: bytes) -> httpx.Response:
    """The answer to a body of JSON; where too many requests were made at once, after the time it asks to wait."""
    while True:
        answer = caller.http.post(route, content=body, headers={"content-type": "application/json"})
        if answer.status_code != 429:
            return answer
        time.sleep(float(answer.headers["retry-after"]))


@dataclass
class Outcomes:
    """What became of all calls; `wrong` says what and how of those that were neither done nor refused in words."""

    deadline: float
    done: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return time.monotonic() > self.deadline


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, Any]]:
    """Counts of both tests, recorded at the end where that was asked for."""
    counts: dict[str, Any] = {"minutes": MINUTES, "seed": SEED}
    yield counts
    if RECORD:
        record(ROOT / RECORD, counts)


def test_every_event_answers_anything(app_server, events, kept):
    outcomes = Outcomes(time.monotonic() + SECONDS)
    rounds = 0
    while rounds == 0 or (MINUTES and not outcomes.over):
        uploads = uploaded(app_server.url)  # anew: the app keeps them for ten minutes
        for event in events:
            try_out(app_server.url, event, uploads, outcomes, SEED + rounds)
        rounds += 1
    kept["events"] = {
        "asked": len(events), "rounds": rounds, "done": outcomes.done, "refused_in_words": outcomes.refused,
        "wrong": outcomes.wrong,
    }  # fmt: skip
    assert app_server.process.poll() is None
    assert not outcomes.wrong, "\n".join(outcomes.wrong)
    assert outcomes.done and outcomes.refused, outcomes
    print(f"{outcomes.done} calls of {len(events)} events were done, {outcomes.refused} refused in words")


def uploaded(url: str) -> dict[str, str]:
    """Paths of uploads of several kinds, by name."""
    files = {
        "picture.png": PICTURE.read_bytes(),
        "text.txt": b"a, b\n1, 2\n",
        "text.csv": b"1.0\n2.0\n",
        "text.json": b'{"rope_scaling": {"short_factor": [1]}}',
        "noise.safetensors": bytes(range(256)),
        "noise.mp4": bytes(range(255, -1, -1)),
    }
    caller = Caller(url)
    return {name: caller.upload(name, content) for name, content in files.items()}


def try_out(url: str, event: Event, uploads: dict[str, str], outcomes: Outcomes, number: int) -> None:
    """Asks one event with `EXAMPLES` lists of inputs, half of them of the right length and likely values."""
    shapes = [st.one_of(*[likely(kind, props, uploads)] * 3, JSON) for kind, props in event.inputs]
    right = st.tuples(*shapes).map(list)

    @seed(number)
    @settings(max_examples=EXAMPLES, **RULES)
    @given(st.one_of(right, right, st.lists(JSON, max_size=4)))
    def answers(data: list[Any]) -> None:
        if outcomes.over:
            return
        session = f"fuzz-{number}-{event.index}-{outcomes.done + outcomes.refused + len(outcomes.wrong)}"
        caller = Caller(url, session)
        with caller.http:
            outcome, why = ask(caller, event, data)
        if outcome == "failed" or UNEXPECTED in why:
            outcomes.wrong.append(f"{event.name}: {outcome} {why!r} for {json.dumps(data)[:300]}")
        elif outcome == "done":
            outcomes.done += 1
        else:
            outcomes.refused += 1

    answers()


ROUTES = ("queue/join", "call/longrope_length", "call/v2/longrope_length", "run/open_tab", "cancel", "reset",
          "component_server", "stream/x", "upload", "run/predict")  # fmt: skip
BODIES = JSON | st.fixed_dictionaries(
    {"data": JSON},
    optional={"fn_index": JSON, "session_hash": st.text(max_size=5) | JSON, "event_id": JSON, "event_data": JSON,
              "trigger_id": JSON, "batched": JSON, "fn_name": JSON, "component_id": JSON, "simple_format": JSON},
)  # fmt: skip


def test_every_route_answers_any_body(app_server, kept):
    caller = Caller(app_server.url)
    asked = Outcomes(time.monotonic() + ROUTE_SECONDS)

    def answers(route: str, body: Any) -> None:
        if asked.over:
            return
        answer = posted(caller, f"/gradio_api/{route}", json.dumps(body).encode())
        asked.done += 1
        if answer.status_code >= 500 and not answer.json().get("error"):
            asked.wrong.append(f"{route}: {answer.status_code} {answer.text} for {json.dumps(body)[:300]}")

    rounds = 0
    while rounds == 0 or (MINUTES and not asked.over):
        rule = settings(max_examples=10 * EXAMPLES, **RULES)
        seed(SEED + rounds)(rule(given(st.sampled_from(ROUTES), BODIES)(answers)))()
        rounds += 1
    kept["routes"] = {"asked": len(ROUTES), "rounds": rounds, "answered": asked.done, "wrong": asked.wrong}
    assert not asked.wrong, "\n".join(asked.wrong)
    assert caller.call("longrope_length", 10)[0] == "complete"
