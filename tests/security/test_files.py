"""Nothing on the disk or in the network can be read through a file route or a component, but one's own uploads."""

import base64
import io
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from tests.calls import FORM, Caller, file, form

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURE = ROOT / "assets" / "yolov9" / "cards" / "bus.png"
DETECTION = ("t", 0.25, 0.45, 128, None, False, 100, False, True)
WEBCAM_FRAME, DRAWING = "yolov9_webcam", "pdiff_draw"

ROUTES = (
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=app.py",
    "/gradio_api/file=../../../../../../etc/passwd",
    "/gradio_api/file=..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/gradio_api/file=%252e%252e%252fetc%252fpasswd",
    "/gradio_api/file=..\\..\\app.py",
    "/gradio_api/file=/proc/self/environ",
    "/gradio_api/file=//etc/passwd",
    "/gradio_api/file=%00",
    "/gradio_api/file//etc/passwd",
    "/gradio_api/file/..%2fapp.py",
    "/gradio_api/file=file:///etc/passwd",
    "/gradio_api/file=http://127.0.0.1:1/",
    "/gradio_api/file=http://169.254.169.254/latest/meta-data/",
    "/gradio_api/file=HTTPS://example.org/",
    "/gradio_api/file/http://169.254.169.254/",
    "/gradio_api/file=ftp://127.0.0.1/x",
    "/gradio_api/proxy=http://127.0.0.1:1/",
    "/gradio_api/proxy=https://evil.hf.space/",
    "/static/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/static//etc/passwd",
    "/assets/..%2f..%2froutes.py",
    "/svelte/..%2f..%2froutes.py",
    "/gradio_api/custom_component/x/server/component/..%2f..%2f__init__.py",
    "/gradio_api/stream/a/b/1/playlist.m3u8",
    "/gradio_api/stream/a/b/1/playlist-file",
    "/gradio_api/stream/..%2f..%2fetc/b/1/passwd.ts",
    "/gradio_api/deep_link?session_hash=a-session-of-a-test",
    "/gradio_api/runs",
    "/gradio_api/run-history/records",
    "/gradio_api/profiling/traces",
    "/gradio_api/vibe-code",
    "/monitoring",
    "/monitoring/summary",
    "/pwa_icon/..%2f..%2fetc%2fpasswd",
)


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_gives_a_file_that_was_not_uploaded(visitor, path):
    answer = visitor.http.get(path)
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:200])
    assert b"root:" not in answer.content and b"import " not in answer.content


def test_ffmpeg_is_not_offered_for_any_file(visitor):
    body = {"video": ("x.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "video/mp4")}
    assert visitor.http.post("/gradio_api/process_recording", files=body).status_code == 404


def test_theme_css_is_only_the_theme(visitor):
    answer = visitor.http.get("/theme.css?path=/etc/passwd")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/css")
    assert b"root:" not in answer.content


# ---- payloads of components -------------------------------------------------------------------------------

REFUSED = "not uploaded here", "fetches nothing", "form that its control does not take"


def outside(tmp_path: Path) -> Path:
    """A picture that exists, and that nobody uploaded."""
    target = tmp_path / "private.png"
    Image.open(PICTURE).save(target)
    return target


def calls(visitor: Caller, payload: object) -> dict[str, str]:
    """What each kind of file component says to a payload: picture, webcam, canvas, file, video."""
    return {
        "picture": visitor.said("yolov9_image", payload, *DETECTION),
        "webcam": visitor.said("yolov9_webcam", payload, *DETECTION),
        "canvas": visitor.said("pdiff_draw", 0, {"background": None, "layers": [], "composite": payload}),
        "layer": visitor.said("pdiff_draw", 0, {"background": None, "layers": [payload], "composite": None}),
        "file": visitor.said("longrope_table", payload),
        "video": visitor.said("yolov9_video", payload, *DETECTION),
        "start": visitor.said("sdxl_lightning_reuse", payload),
    }


def test_a_path_outside_the_uploads_is_refused_by_every_component(visitor, tmp_path):
    path = str(outside(tmp_path))
    for payload in (file(path), {"path": path}, {"path": path, "url": None, "meta": {"_type": "other"}}):
        for component, said in calls(visitor, payload).items():
            assert any(words in said for words in REFUSED), (component, payload, said)
            assert path not in said and "private.png" not in said


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/secret",
        "http://localhost:{port}/secret",
        "http://[::1]:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433:{port}/secret",
        "https://example.org/redirect-to-localhost",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
    ],
)
def test_no_address_is_fetched(visitor, address, listener):
    port, seen = listener
    payload = file(address.format(port=port), url=address.format(port=port))
    for component, said in calls(visitor, payload).items():
        assert "fetches nothing" in said, (component, said)
    assert seen == []


@pytest.fixture
def listener():
    """A port of this machine, and what connects to it."""
    import socket
    import threading

    seen: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                seen.append(peer)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], seen


def test_an_address_beside_an_upload_is_not_fetched_either(visitor, listener):
    port, seen = listener
    path = visitor.upload("bus.png", PICTURE.read_bytes())
    event, _ = visitor.call("yolov9_image", file(path, url=f"http://127.0.0.1:{port}/secret"), *DETECTION)
    assert event == "complete" and seen == []


def test_a_symbolic_link_in_the_uploads_is_what_it_points_to(visitor, tmp_path):
    link = Path(visitor.upload("x.png", os.urandom(32))).with_name("link.png")
    link.symlink_to(outside(tmp_path))
    assert "not uploaded here" in visitor.said("yolov9_image", file(str(link)), *DETECTION)
    assert "not uploaded here" in visitor.said("yolov9_image", {"path": str(link)}, *DETECTION)


@pytest.mark.parametrize("path", ["", ".", "..", "\0", "a" * 5000, "/", "~", "C:\\Windows\\win.ini", "\\\\host\\share"])
def test_odd_paths_are_refused_in_words(visitor, path):
    assert visitor.said("longrope_table", file(path))
    assert visitor.said("yolov9_image", file(path), *DETECTION)


def test_a_folder_is_no_file(visitor):
    folder = str(Path(visitor.upload("x.txt", os.urandom(32))).parent)
    assert visitor.said("longrope_table", file(folder))
    assert visitor.said("yolov9_image", file(folder), *DETECTION)


def test_an_upload_that_was_deleted_in_the_meantime_is_said_to_be_gone(visitor):
    for name, call, more in (("x.csv", "longrope_table", ()), ("x.png", "yolov9_image", DETECTION)):
        path = visitor.upload(name, os.urandom(32))
        Path(path).unlink()  # as the app does after ten minutes
        assert "Upload it again" in visitor.said(call, file(path), *more)


def test_data_addresses_are_read_as_pictures_and_nothing_else(visitor):
    good = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    event, outputs = visitor.call("yolov9_webcam", {"url": good}, *DETECTION)
    assert event == "complete" and outputs[0]["width"] == Image.open(PICTURE).width
    for bad in ("data:image/png;base64,!!!!", "data:,root", "data:image/svg+xml;base64,PHN2Zy8+"):
        said = visitor.said("yolov9_webcam", {"url": bad}, *DETECTION)
        assert "not a picture" in said or "empty" in said


# ---- names of uploads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"../../../evil.txt",
        b"..\\..\\evil.txt",
        b"/etc/cron.d/evil",
        b"a\r\nX-Evil: 1\r\n.txt",
        b"a\nX-Evil: 1.txt",
        b'a"; filename="b.html',
        b"a\0b.png",
        b"x" * 3000 + b".png",
        "日本\u202egnp.exe".encode(),
        b"%2e%2e%2fevil",
        b"CON",
        b"\xff\xfe\xfd",
    ],
)
def test_names_stay_inside_and_put_nothing_into_headers(visitor, name):
    answer = visitor.http.post("/gradio_api/upload", content=form(name, b"harmless"), headers=FORM)
    assert answer.status_code in (200, 400, 413), answer.text
    if answer.status_code != 200:
        return
    kept = Path(answer.json()[0])
    assert kept.parent.parent.name.startswith("live-papers-") and kept.read_bytes() == b"harmless"
    served = visitor.http.get(f"/gradio_api/file={quote(str(kept))}")
    assert served.status_code == 200 and "x-evil" not in served.headers
    assert "\n" not in served.headers["content-disposition"]


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.xhtml", "x.js", "x.xml", "x.pdf.html", "x"])
def test_what_a_browser_would_run_is_only_downloaded(visitor, name):
    content = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    served = visitor.http.get(f"/gradio_api/file={visitor.upload(name, content)}")
    assert served.headers["content-disposition"].startswith("attachment")
    assert served.headers["content-type"] == "application/octet-stream"
    assert served.headers["x-content-type-options"] == "nosniff"


def test_an_upload_is_a_picture_only_if_it_is_one(visitor):
    shown = io.BytesIO()
    Image.new("RGB", (8, 8)).save(shown, "PNG")
    path = visitor.upload("x.png", b"<script>alert(1)</script>")
    served = visitor.http.get(f"/gradio_api/file={path}")
    assert served.headers["x-content-type-options"] == "nosniff"  # so the browser does not look for HTML in it
    assert "not a picture" in visitor.said("yolov9_image", file(path), *DETECTION)
