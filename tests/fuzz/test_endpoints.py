"""Arbitrary JSON for every event of every tab, private ones too: each is answered, and each refusal says why.

`LIVE_PAPERS_FUZZ=500` asks every event so often, with new values each time; without it a few fixed ones are tried, for
at most 75 seconds.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.calls import FILE, Caller

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURE = ROOT / "assets" / "yolov9" / "cards" / "bus.png"
LONG = int(os.environ.get("LIVE_PAPERS_FUZZ", "0"))
EXAMPLES = LONG or 4
SECONDS = 30 * LONG or 60  # then what is left is not tried; on a quiet machine nothing is left
UNEXPECTED = "Something went wrong"

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
    asked = caller.http.post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
    if asked.status_code != 200:
        return ("refused" if asked.status_code < 500 else "failed"), f"{asked.status_code} {asked.text}"
    event_id = asked.json()["event_id"]
    with caller.http.stream("GET", f"/gradio_api/queue/data?session_hash={caller.session}") as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
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


def test_every_event_answers_anything(app_server, events):
    uploads = {
        "picture.png": Caller(app_server.url).upload("picture.png", PICTURE.read_bytes()),
        "text.txt": Caller(app_server.url).upload("text.txt", b"a, b\n1, 2\n"),
        "text.csv": Caller(app_server.url).upload("text.csv", b"1.0\n2.0\n"),
        "text.json": Caller(app_server.url).upload("text.json", b'{"rope_scaling": {"short_factor": [1]}}'),
        "noise.safetensors": Caller(app_server.url).upload("noise.safetensors", bytes(range(256))),
        "noise.mp4": Caller(app_server.url).upload("noise.mp4", bytes(range(255, -1, -1))),
    }
    outcomes = Outcomes(time.monotonic() + SECONDS)
    for event in events:
        try_out(app_server.url, event, uploads, outcomes)
    assert not outcomes.wrong, "\n".join(outcomes.wrong)
    assert outcomes.done and outcomes.refused, outcomes
    print(f"{outcomes.done} calls of {len(events)} events were done, {outcomes.refused} refused in words")


@dataclass
class Outcomes:
    """What became of all calls; `wrong` says what and how of those that were neither done nor refused in words."""

    deadline: float
    done: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def try_out(url: str, event: Event, uploads: dict[str, str], outcomes: Outcomes) -> None:
    """Asks one event with `EXAMPLES` lists of inputs, half of them of the right length and likely values."""
    shapes = [st.one_of(*[likely(kind, props, uploads)] * 3, JSON) for kind, props in event.inputs]
    right = st.tuples(*shapes).map(list)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.one_of(right, right, st.lists(JSON, max_size=4)))
    def answers(data: list[Any]) -> None:
        if time.monotonic() > outcomes.deadline:
            return
        session = f"fuzz-{event.index}-{outcomes.done + outcomes.refused + len(outcomes.wrong)}"
        outcome, why = ask(Caller(url, session), event, data)
        if outcome == "failed" or UNEXPECTED in why:
            outcomes.wrong.append(f"{event.name}: {outcome} {why!r} for {json.dumps(data)[:300]}")
        elif outcome == "done":
            outcomes.done += 1
        else:
            outcomes.refused += 1

    answers()


@settings(max_examples=EXAMPLES * 10, deadline=None, database=None, derandomize=not LONG,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(
    route=st.sampled_from(["queue/join", "call/longrope_length", "call/v2/longrope_length", "run/open_tab", "cancel",
                           "reset", "component_server", "stream/x", "upload", "run/predict"]),
    body=JSON | st.fixed_dictionaries(
        {"data": JSON},
        optional={"fn_index": JSON, "session_hash": st.text(max_size=5) | JSON, "event_id": JSON, "event_data": JSON,
                  "trigger_id": JSON, "batched": JSON, "fn_name": JSON, "component_id": JSON, "simple_format": JSON},
    ),
)  # fmt: skip
def test_every_route_answers_any_body(app_server, route, body):
    answer = Caller(app_server.url).http.post(
        f"/gradio_api/{route}", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code < 500 or answer.json()["error"], (answer.status_code, answer.text)
