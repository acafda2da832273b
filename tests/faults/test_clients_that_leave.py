"""A client that disconnects: whatever the phase, its work ends, what it held is given back, others are served."""

import json
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from demos import guard
from tests.calls import FORM, Caller
from tests.faults.conftest import until


def ask(caller: Caller, name: str, value: str) -> str:
    """Asks and does not listen; the event's number."""
    asked = caller.http.post(f"/gradio_api/call/{name}", json={"data": [value], "session_hash": caller.session})
    return asked.json()["event_id"]


def listen(caller: Caller, name: str, value: str) -> tuple[httpx.Response, str]:
    """Asks, and opens the stream of events; close the response to leave."""
    event_id = ask(caller, name, value)
    request = caller.http.build_request("GET", f"/gradio_api/call/{name}/{event_id}")
    return caller.http.send(request, stream=True), event_id


def test_while_the_job_waits_it_never_starts(held):
    url, job = held
    job.may_load.set()
    first, second, third = (Caller(url, name) for name in ("first", "second", "third"))
    running, running_id = listen(first, "forever", "first")
    until(lambda: job.runs == ["first"], "the first job")
    waiting, _ = listen(second, "forever", "second")
    waiting.close()
    later, _ = listen(third, "forever", "third")
    until(lambda: queued(first) == 1, "only the third in the queue")
    running.close()
    until(lambda: job.runs[1:] == ["third"], "the third job")
    later.close()
    until(lambda: job.ended == ["first", "third"], "both jobs' ends")


@pytest.fixture
def few_sessions(monkeypatch):
    monkeypatch.setattr(guard, "SESSIONS", 2)


def test_many_visitors_while_one_waits_do_not_end_the_queue(few_sessions, held):
    url, job = held
    job.may_load.set()
    running, _ = listen(Caller(url, "running"), "forever", "running")
    until(lambda: job.runs == ["running"], "the first job")
    event_id = ask(Caller(url, "waiting"), "forever", "waiting")
    for number in range(4):
        assert Caller(url, f"newer {number}").call("once", "hello") == ("complete", ["hello"])
    running.close()
    until(lambda: job.runs[1:] == ["waiting"], "the job that waited")
    with Caller(url).http.stream("GET", f"/gradio_api/call/forever/{event_id}") as stream:
        assert any("waiting" in line for line in stream.iter_lines() if line.startswith("data: "))
    assert Caller(url, "last").call("once", "hello") == ("complete", ["hello"])


def test_a_message_to_a_session_that_has_left_is_lost_and_nothing_else():
    with guard.GuardedBlocks() as blocks:
        inboxes = blocks.queue()._queue.pending_messages_per_session
    inboxes["gone"].put_nowait("message")
    assert "gone" not in inboxes


def queued(caller: Caller) -> int:
    return caller.http.get("/gradio_api/queue/status").json()["queue_size"]


def test_while_the_model_loads_the_load_serves_others(held):
    url, job = held
    leaver, other = Caller(url, "leaver"), Caller(url, "other")
    stream, _ = listen(leaver, "forever", "leaver")
    assert job.loading.wait(60)
    stream.close()
    job.may_load.set()
    assert other.call("once", "hello") == ("complete", ["hello"])
    until(lambda: job.ended == job.runs, "the end of the job, if it began")
    until(lambda: job.handle.status().users == 0, "the model's release")


def test_while_results_stream_the_work_ends_and_the_model_is_free(held):
    url, job = held
    job.may_load.set()
    leaver = Caller(url, "leaver")
    stream, _ = listen(leaver, "forever", "leaver")
    for line in stream.iter_lines():
        if line.startswith("data: ") and "leaver" in line:
            break
    stream.close()
    until(lambda: job.ended == ["leaver"], "the job's end")
    until(lambda: job.handle.status().users == 0, "the model's release")
    assert job.handle.unload()


def test_without_ever_listening_the_job_can_be_cancelled(held):
    url, job = held
    job.may_load.set()
    caller = Caller(url, "silent")
    index = next(
        entry["id"] for entry in caller.http.get("/config").json()["dependencies"] if entry["api_name"] == "forever"
    )
    event_id = ask(caller, "forever", "silent")
    until(lambda: job.runs == ["silent"], "the job's start")
    body = {"session_hash": "silent", "fn_index": index, "event_id": event_id}
    assert caller.http.post("/gradio_api/cancel", json=body).json() == {"success": True}
    until(lambda: job.ended == ["silent"], "the job's end")


def test_in_the_middle_of_an_upload_nothing_stays(held, tmp_path):
    url, _ = held
    caller = Caller(url)
    whole = Path(caller.upload("whole.txt", b"whole"))
    folder = whole.parent.parent
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM['content-type']}\r\n"
        part = '--B\r\nContent-Disposition: form-data; name="files"; filename="cut.txt"\r\n\r\n' + "x" * 100_000
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n{part}".encode())
        until(lambda: unfinished(folder), "the half-written file")
    (cut,) = unfinished(folder)
    until(lambda: "cut" not in caller.http.get("/gradio_api/queue/status").text, "an answer")
    os.utime(cut, (time.time() - 700,) * 2)  # ten minutes later
    caller.upload("next.txt", b"next")
    until(lambda: not unfinished(folder), "the cut file's removal")
    assert whole.exists()


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.glob("tmp*") if path.is_file()]


def test_after_the_result_nothing_is_left_to_deliver(held):
    url, job = held
    job.may_load.set()
    caller = Caller(url, "gone")
    for number in range(20):
        asked = caller.http.post("/gradio_api/call/once", json={"data": [str(number)]})
        assert json.loads(asked.text)["event_id"]
    other = Caller(url, "other")
    assert other.call("once", "hello") == ("complete", ["hello"])
    until(lambda: queued(other) == 0, "an empty queue")
    until(lambda: job.handle.status().users == 0, "the model's release")
