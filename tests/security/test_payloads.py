"""Pickles, bombs and oversized requests: refused in words, and the app goes on."""

import contextlib
import http.client
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.calls import FORM, Caller, file
from tests.security.test_files import DETECTION, PICTURE

JSON_TYPE = {"content-type": "application/json"}


class Opener:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def torch_zip(pickled: bytes) -> bytes:
    """A pickle where torch.save puts its own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    return stream.getvalue()


def generate(visitor: Caller, *, start: object = None, lora: object = None) -> str:
    return visitor.said(
        "sdxl_lightning_generate", "a blue apple", 1, 0, False, 1, "256 x 256", start, 1, "best", 1, 3, lora, 1
    )


class TestPickles:
    @pytest.mark.parametrize("name", ["lora.safetensors", "lora.pt", "lora.bin", "lora.pkl"])
    def test_a_pickle_as_a_lora_is_not_opened(self, visitor, tmp_path, name):
        marker = tmp_path / "ran"
        pickled = pickle.dumps(Opener(marker))
        for content in (pickled, torch_zip(pickled), struct.pack("<Q", 8) + b"{" + pickled):
            assert generate(visitor, lora=file(visitor.upload(name, content)))
        assert not marker.exists()

    @pytest.mark.parametrize("protocol", [0, 2, 5])
    def test_a_pickle_as_weights_is_not_opened(self, tmp_path, protocol):
        from models import yolov9
        from models.errors import UserError
        from models.weights import read_state_dict

        marker, weights = tmp_path / "ran", tmp_path / "yolov9-c.pt"
        pickled = pickle.dumps(Opener(marker), protocol)
        for content in (pickled, torch_zip(pickled)):
            weights.write_bytes(content)
            for read in (read_state_dict, yolov9.read_checkpoint):
                with pytest.raises(UserError):
                    read(weights)
        assert not marker.exists()


class TestBombs:
    def test_a_picture_of_900_megapixels_is_refused_unopened(self, visitor):
        path = visitor.upload("bomb.png", png(30_000, 30_000, zlib.compress(bytes(1_000_000))))
        assert "pixels" in visitor.said("yolov9_image", file(path), *DETECTION)
        assert "pixels" in visitor.said("yolov9_webcam", file(path), *DETECTION)
        assert "pixels" in generate(visitor, start=file(path))
        assert "pixels" in visitor.said("pdiff_draw", 0, {"background": None, "layers": [], "composite": file(path)})

    def test_text_inside_a_png_may_not_unfold_without_end(self, visitor):
        text = b"parameters\0\0" + zlib.compress(bytes(300_000_000), 9)
        path = visitor.upload("text.png", png(8, 8, zlib.compress(bytes(8 * 25)), chunk(b"zTXt", text)))
        assert visitor.said("sdxl_lightning_reuse", file(path))

    def test_a_safetensors_header_may_not_promise_terabytes(self, visitor):
        header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
        for content in (struct.pack("<Q", len(header)) + header, struct.pack("<Q", 1 << 62) + b"{}"):
            assert generate(visitor, lora=file(visitor.upload("lora.safetensors", content)))

    def test_a_compressed_archive_is_not_unpacked(self, visitor, tmp_path):
        from models.errors import UnsafeCheckpoint
        from models.weights import read_state_dict

        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(50_000_000))
        assert len(stream.getvalue()) < 100_000
        (tmp_path / "bomb.pt").write_bytes(stream.getvalue())
        with pytest.raises(UnsafeCheckpoint):
            read_state_dict(tmp_path / "bomb.pt")
        assert visitor.said("longrope_table", file(visitor.upload("bomb.csv", stream.getvalue())))

    @pytest.mark.parametrize("name", ["x.mp4", "x.m3u8", "x.webm"])
    def test_a_playlist_is_no_video(self, visitor, name):
        playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
        path = visitor.upload(name, playlist + b"#" + os.urandom(8).hex().encode())
        assert "video" in visitor.said("yolov9_video", file(path), *DETECTION)

    def test_layers_of_a_drawing_are_not_kept(self, visitor):
        """`index` makes Gradio's own canvas allocate a list of that length."""
        component = next(
            entry["id"] for entry in visitor.http.get("/config").json()["components"]
            if entry["props"].get("elem_id") == "pdiff-sketch"
        )  # fmt: skip
        parts = {"type": "layer", "index": str(10**12), "id": "bomb", "component_id": str(component)}
        answer = visitor.http.post(
            "/gradio_api/component_server",
            data={**parts, "session_hash": visitor.session, "fn_name": "accept_blobs"},
            files={"file": ("blob", PICTURE.read_bytes())},
        )
        assert answer.status_code == 200, answer.text
        assert "thick line" in str(visitor.call("pdiff_draw", 0, {"layers": [], "id": "bomb"}))


class TestSizes:
    def test_json_beyond_the_limit_is_refused_before_it_is_read(self, visitor):
        body = b'{"data": ["' + bytes(33_000_000).replace(b"\0", b"x") + b'"]}'
        assert visitor.call("longrope_length", raw=body)[1][0] == 413

    def test_also_if_it_does_not_say_its_length(self, visitor):
        def pieces():
            for _ in range(34):
                yield b"x" * 1_000_000

        answer = visitor.http.post("/gradio_api/call/longrope_length", content=pieces(), headers=JSON_TYPE)
        assert answer.status_code == 413

    def test_an_upload_beyond_the_limit_is_refused_by_its_length(self, visitor):
        with contextlib.closing(http.client.HTTPConnection(urlsplit(visitor.url).netloc, timeout=120)) as connection:
            connection.putrequest("POST", "/gradio_api/upload")
            for name, value in {**FORM, "content-length": "300000000"}.items():
                connection.putheader(name, value)
            connection.endheaders(b"--B\r\n")
            assert connection.getresponse().status == 413

    @pytest.mark.parametrize(
        "body",
        [
            b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"data":[' + b"9" * 5000 + b"]}",
            b"\xff\xfe",
            b"",
            b"null",
            b'{"data": "text"}',
            b'{"data": {"a": 1}}',
            b'{"data": [], "session_hash": {"a": 1}}',
            b'{"data": [], "fn_index": 1e999}',
            b'{"data": [], "event_data": [1], "trigger_id": "x"}',
        ],
        ids=range(10),
    )
    def test_odd_json_is_refused_in_words(self, visitor, body):
        event, told = visitor.call("longrope_length", raw=body)
        if event == "refused":
            assert 400 <= told[0] < 500 and told[1]
        else:
            assert event == "complete" or told["error"]

    def test_a_list_is_refused_where_one_choice_is_taken(self, visitor):
        assert "does not take" in visitor.said("longrope_published", ["", ""])

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/gradio_api/run/nothing", {"data": []}),
            ("/gradio_api/run/predict", {"data": [], "fn_index": 10**6}),
            ("/gradio_api/run/predict", {"data": [], "fn_index": -1}),
            ("/gradio_api/call/nothing", {"data": []}),
            ("/gradio_api/call/v2/nothing", {"a": 1}),
            ("/gradio_api/call/v2/longrope_length", {"power": {"path": "/etc/passwd"}, "more": 1}),
            ("/gradio_api/queue/join", {"data": [], "fn_index": 10**6, "session_hash": "x"}),
            ("/gradio_api/queue/join", {"data": []}),
            ("/gradio_api/component_server", {"data": 1, "component_id": 10**6, "session_hash": "x", "fn_name": "x"}),
            ("/gradio_api/component_server", {"data": 1, "component_id": 1, "session_hash": "x", "fn_name": "__del__"}),
            ("/gradio_api/component_server", {"nothing": 1}),
            ("/gradio_api/stream/nothing", {"data": []}),
            ("/gradio_api/stream/nothing/close", {}),
            ("/gradio_api/cancel", {"session_hash": "x", "fn_index": 0}),
            ("/gradio_api/upload", {}),
        ],
    )
    def test_requests_for_what_is_not_there_are_refused(self, visitor, path, body):
        answer = visitor.http.post(path, json=body)
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        assert "Traceback" not in answer.text

    def test_nobody_goes_past_the_queue(self, visitor):
        answer = visitor.http.post("/gradio_api/run/yolov9_image", json={"data": [None, *DETECTION]})
        assert answer.status_code == 404 and "queue" in answer.text


def test_the_app_has_no_error_of_its_own_in_its_log(app_server, visitor):
    """Runs last in this file: what was refused above left no trace of code."""
    assert visitor.call("longrope_length", 10)[0] == "complete"
    log = app_server.log.read_text()
    assert "Exception in ASGI application" not in log and "Unexpected error in" not in log, log[-3000:]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, content: bytes, *more: bytes) -> bytes:
    """A PNG of any size, whatever its content."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
