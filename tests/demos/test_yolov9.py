"""The YOLOv9 tab over its API, as a script or another server would use it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from demos import yolov9
from demos.yolov9_evidence import verdict
from models.errors import BadInput
from models.runtime import Runtime

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets" / "yolov9"
BUS = handle_file(ASSETS / "cards" / "bus.png")
SETTINGS = ("t", 0.25, 0.45, 128, [], False, 100, False, True)


@pytest.fixture(scope="module")
def client(app_server):
    return Client(app_server.url, verbose=False)


def test_a_webcam_gets_answers_while_the_model_loads(monkeypatch):
    """Gradio would end a stream whose first answer takes too long."""
    monkeypatch.setattr(yolov9, "LOADING_SECONDS", 0.05)
    go_on, runtime = threading.Event(), Runtime(idle_seconds=None)

    def load(report, device):
        assert go_on.wait(60)
        raise BadInput("The file is damaged.")

    handle = runtime.register("model", load, estimate_bytes=1)
    assert not yolov9._loaded_soon(handle) and handle.status().state == "loading"
    go_on.set()
    monkeypatch.setattr(yolov9, "LOADING_SECONDS", 60.0)
    with pytest.raises(BadInput):
        yolov9._loaded_soon(handle)
    runtime.close()


def settings(**changes):
    names = ("weights", "confidence", "iou", "size", "classes", "track", "limit", "agnostic", "scores")
    return tuple({**dict(zip(names, SETTINGS, strict=True)), **changes}.values())


def test_every_event_has_a_name(client):
    names = set(client.view_api(return_format="dict")["named_endpoints"])
    assert {"/yolov9_image", "/yolov9_video", "/yolov9_webcam", "/yolov9_image_export", "/yolov9_status"} <= names
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


def test_picture(client):
    picture, summary, table = client.predict(BUS, *SETTINGS, api_name="/yolov9_image")[:3]
    assert Path(picture).stat().st_size > 1000
    assert "bus" in summary
    assert "bus" in [row[0] for row in table["data"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"confidence": float("nan")},
        {"confidence": "high"},
        {"iou": -1},
        {"size": 10**9},
        {"size": None},
        {"limit": 0},
        {"classes": [999]},
        {"weights": "../../etc/passwd"},
    ],
    ids=lambda c: f"{next(iter(c))}={next(iter(c.values()))}",
)
def test_bad_settings_get_a_message_and_the_app_lives(client, changes):
    with pytest.raises((AppError, ValueError)):
        client.predict(BUS, *settings(**changes), api_name="/yolov9_image")
    assert "bus" in client.predict(BUS, *SETTINGS, api_name="/yolov9_image")[1]


@pytest.mark.parametrize("kind", ["JSON", "CSV", "COCO", "YOLO"])
def test_export(client, kind):
    client.predict(BUS, *SETTINGS, api_name="/yolov9_image")
    text = Path(client.predict(kind, api_name="/yolov9_image_export")).read_text()
    if kind in ("JSON", "COCO"):
        assert json.loads(text)
    else:
        assert len(text.splitlines()) >= 1


def test_export_before_any_detection_says_so(app_server):
    with pytest.raises(AppError, match="nothing to export"):
        Client(app_server.url, verbose=False).predict("JSON", api_name="/yolov9_image_export")


def test_one_user_never_sees_anothers_detections(app_server):
    first, second = (Client(app_server.url, verbose=False) for _ in range(2))
    first.predict(BUS, *SETTINGS, api_name="/yolov9_image")
    with pytest.raises(AppError):
        second.predict("JSON", api_name="/yolov9_image_export")


def test_several_users_at_once(app_server):
    def one(name: str) -> str:
        client = Client(app_server.url, verbose=False)
        return client.predict(handle_file(ASSETS / "cards" / f"{name}.png"), *SETTINGS, api_name="/yolov9_image")[1]

    names = ("bus", "laptop", "bus", "laptop")
    with ThreadPoolExecutor(4) as pool:
        for name, summary in zip(names, pool.map(one, names), strict=True):
            assert name in summary


@pytest.mark.parametrize("content", [b"", b"not a video"], ids=["empty", "text"])
def test_what_is_not_a_video(client, tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(AppError):
        client.predict({"video": handle_file(path)}, *SETTINGS, api_name="/yolov9_video")


def test_status_tells_tier_weights_and_licence(client):
    client.predict(BUS, *SETTINGS, api_name="/yolov9_image")
    status = client.predict(api_name="/yolov9_status")
    assert "Embedded tier" in status and "Apache-2.0" in status and "2.0 M parameters" in status


def row(variant: str, ap50: float, interval: float) -> dict:
    return {"variant": variant, "AP50": ap50, "AP50_interval": interval}


@pytest.mark.parametrize(
    ("pgi", "gelan", "said"),
    [
        ((0.04, 0.04), (0.05, 0.03), ["overlap", "barely trained"]),
        ((0.60, 0.01), (0.55, 0.01), ["0.050 higher"]),
        ((0.50, 0.01), (0.55, 0.01), ["0.050 lower"]),
    ],
)
def test_the_ablation_claims_no_more_than_its_intervals(pgi, gelan, said):
    text = verdict([row("pgi", *pgi), row("gelan", *gelan)])
    assert all(words in text for words in said)
    assert ("barely" in text) == (max(pgi[0], gelan[0]) < 0.2)
