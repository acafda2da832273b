"""The suite on Ray Serve, with real Ray on this machine: the page and the models of two demos, of one two replicas."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

ray = pytest.importorskip("ray")

from gradio_client import Client, handle_file  # noqa: E402
from ray import serve  # noqa: E402

import app as suite  # noqa: E402
from deploy import ray_app  # noqa: E402
from deploy.remote import Copies, RemoteHandle, RemoteRuntime, pack  # noqa: E402
from models.errors import BadInput, Cancelled, WorkerLost  # noqa: E402
from models.images import read_image  # noqa: E402
from tests.conftest import free_port  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "assets" / "yolov9" / "cards" / "bus.png"
PATIENCE = 300.0  # seconds; a busy machine is slow, not wrong

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import a test


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the page."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")  # the same sums here and there
    patch.setenv("RAY_worker_niceness", "0")  # Ray would have its workers wait for all others
    patch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", PATIENCE)
    others = set(psutil.Process().children(recursive=True))  # other tests' servers and browsers
    port = free_port()
    options = suite.parse_options(["--demos", "yolov9,pdiff", "--port", str(port)])
    ray.init(
        num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, namespace="serve", log_to_driver=False
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(ray_app.build(options, {"yolov9": {"num_replicas": 2}}))
        yield f"http://127.0.0.1:{port}"
    finally:
        children = set(psutil.Process().children(recursive=True)) - others
        started = {process: process.name() for process in children}
        serve.shutdown()
        ray.shutdown()
        patch.undo()
    assert "raylet" in started.values()
    _until(lambda: not any(process.is_running() for process in started), "the end of all of Ray's processes")


@pytest.fixture
def detector(url) -> RemoteHandle:
    """The handle a tab would have."""
    runtime = RemoteRuntime({"yolov9": serve.get_deployment_handle("yolov9", "default")})
    return runtime.register("yolov9", None, estimate_bytes=0)


@pytest.fixture(scope="module")
def here():
    """The detector in this process, on one thread as those in the replicas."""
    import torch

    from models import yolov9

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield yolov9.load("embedded")
    torch.set_num_threads(before)


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.05)


class TestPage:
    def test_it_is_served_behind_the_gate(self, url):
        answer = httpx.get(url, trust_env=False)
        assert answer.status_code == 200 and "Live Papers" in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert httpx.get(f"{url}/gradio_api/dev/reload", trust_env=False).status_code == 404

    def test_there_is_one(self, url):
        states = serve.status().applications["default"].deployments["page"].replica_states
        assert {str(state): count for state, count in states.items()} == {"RUNNING": 1}
        ray_app.assert_alone(1)
        with pytest.raises(RuntimeError, match="2 replicas. It must have one"):
            ray_app.assert_alone(2)

    def test_a_detection_is_the_same_as_in_one_process(self, url, here):
        client = Client(url, verbose=False)
        settings = ("t", 0.25, 0.45, 128, [], False, 100, False, True)
        table = client.predict(handle_file(PICTURE), *settings, api_name="/yolov9_image")[2]["data"]
        found = here.detect(read_image(PICTURE), size=128, max_detections=100)
        assert len(found) > 0
        assert [row[0] for row in table] == found.labels
        np.testing.assert_allclose([row[2:] for row in table], found.boxes_xyxy, atol=0.051)

        def says() -> str:
            return client.predict(api_name="/yolov9_status")

        _until(lambda: "Embedded tier" in says(), "the status line")
        assert "MB" in says() and "loaded in" in says() and "cpu" in says()

    def test_networks_stream_and_are_the_same(self, url):
        from models import pdiff
        from models.pdiff import measures

        client = Client(url, verbose=False)
        shown = list(client.submit("digits-q", 6, 3, "ddim-20", api_name="/pdiff_generate"))
        texts = [str(each[0]) for each in shown]
        # Progress that was overtaken is not shown, but the last of each stage is.
        assert any("Denoising, step 20 of 20" in text for text in texts)
        assert any("Testing generated network 6 of 6" in text for text in texts)
        zoo = pdiff.load("digits-q")
        expected = measures.accuracies(zoo.wrong(zoo.generate(6, 3, 20))).numpy()
        row = shown[-1][3].partition("generated</th>")[2].partition("</tr>")[0]
        for figure in (expected.max(), expected.mean(), expected.min()):
            assert f">{figure:.2f}<" in row

    def test_the_page_loads_no_deep_learning_library(self, url):
        """After the calls above: the models are elsewhere."""
        (page,) = [each for each in psutil.process_iter(["name", "cmdline"]) if _is_page(each)]
        mapped = {Path(each.path).name for each in page.memory_maps()}
        assert not any(name.startswith("libtorch") for name in mapped)


def _is_page(process: psutil.Process) -> bool:
    named = " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])])
    mine = psutil.Process().pid in [parent.pid for parent in process.parents()]
    return mine and "ServeReplica:default:page" in named


# What follows runs where the detector is.


def _detect(detector, report):
    report("begun")
    found = detector.detect(PICTURE, size=128)
    report("found")
    return found


def _wrong_size(detector, report):
    return detector.detect(PICTURE, size=7)


def _divide(detector, report):
    return 1 / 0


def _forever(ended: Path, detector, report):
    try:
        while True:
            report("working")
            time.sleep(0.01)
    except Cancelled:
        ended.write_text("cancelled")
        raise


def _describe(path: Path, detector, report):
    return path, path.name, path.read_bytes(), path.stat().st_mtime_ns


def _held(folder: Path, detector, report):
    """Says which process it is in, and waits for leave to go on."""
    (folder / f"{os.getpid()}-{threading.get_ident()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return detector.detect(PICTURE, size=128)


def _report_and_hold(folder: Path, detector, report):
    report(os.getpid())
    return _held(folder, detector, report)


class TestHandle:
    def test_work_reports_in_order_and_returns(self, detector, here):
        heard: list[str] = []
        found = detector.run(_detect, heard.append)
        assert heard == ["begun", "found"]
        expected = here.detect(PICTURE, size=128)
        np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
        assert found.boxes_xyxy.flags.writeable

    def test_progress_of_a_load_comes_through_and_the_status_follows(self, detector):
        detector.run(_detect)
        while detector.unload():  # in both replicas
            pass
        shares: list[float] = []
        detector.run(_detect, progress=lambda share, text: shares.append(share))
        assert shares == sorted(shares) and shares[-1] == 1.0
        status = detector.status()
        assert status.state == "ready" and status.info is not None and status.info.memory_bytes > 0
        assert status.load_seconds is not None and status.load_seconds > 0

    def test_a_listener_that_raises_stops_the_work(self, detector, tmp_path):
        from functools import partial

        def refuse(event: str) -> None:
            raise Cancelled("Enough.")

        ended = tmp_path / "ended"
        with pytest.raises(Cancelled, match="Enough"):
            detector.run(partial(_forever, ended), refuse)
        _until(ended.exists, "the end of the work in the replica")
        assert ended.read_text() == "cancelled"

    def test_errors_keep_their_class_and_words(self, detector, here):
        with pytest.raises(BadInput) as there:
            detector.run(_wrong_size)
        with pytest.raises(BadInput) as local:
            _wrong_size(here, None)
        assert str(there.value) == str(local.value)
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            detector.run(_divide)

    def test_files_go_along_and_leave_nothing(self, detector, tmp_path):
        from functools import partial

        given = tmp_path / "given.bin"
        given.write_bytes(b"\x00\x01" * 1000)
        found = [detector.run(partial(_describe, given)) for _ in range(2)]
        assert found[0][1:] == ("given.bin", given.read_bytes(), given.stat().st_mtime_ns)
        assert all(each[0] != given and not each[0].exists() for each in found)

    def test_a_copy_is_there_as_long_as_any_work_needs_it(self, tmp_path):
        from functools import partial

        given = tmp_path / "given.bin"
        given.write_bytes(b"the same")
        copies, packed = Copies(), pack(partial(_describe, given))
        with copies.unpacked(packed) as first:
            with copies.unpacked(packed) as second:
                copy = second(None, None)[0]
            assert first(None, None)[0] == copy and copy.read_bytes() == b"the same"
        assert not copy.parent.exists()

    def test_a_path_that_is_no_file_stays_a_path(self):
        assert b"nowhere" in pack(Path("/nowhere"))  # type: ignore[arg-type]


class TestKilledReplica:
    def test_only_the_work_in_flight_is_hit_and_it_is_done_again(self, detector, here, tmp_path):
        from functools import partial

        reported: list[int] = []
        with ThreadPoolExecutor(9) as threads:
            silent = [threads.submit(detector.run, partial(_held, tmp_path)) for _ in range(8)]
            _until(lambda: len(list(tmp_path.iterdir())) == 8, "eight pieces of work")
            in_process = [int(path.name.split("-")[0]) for path in tmp_path.iterdir()]
            assert len(set(in_process)) == 2  # replicas
            spoken = threads.submit(detector.run, partial(_report_and_hold, tmp_path), reported.append)
            _until(lambda: bool(reported), "a report")
            os.kill(reported[0], signal.SIGKILL)
            with pytest.raises(WorkerLost, match="stopped in the middle"):
                spoken.result(PATIENCE)
            hit = in_process.count(reported[0])
            _until(lambda: len(list(tmp_path.iterdir())) == 9 + hit, "the work in flight, begun again")
            (tmp_path / "go").touch()
            found = [each.result(PATIENCE) for each in silent]
        expected = here.detect(PICTURE, size=128)
        assert all(each.labels == expected.labels for each in found)
        _until(lambda: _running("yolov9") == 2, "a new replica")


def _running(deployment: str) -> int:
    states = serve.status().applications["default"].deployments[deployment].replica_states
    return sum(count for state, count in states.items() if str(state) == "RUNNING")


class TestSettings:
    def test_they_are_serves_own_by_demo(self, tmp_path):
        file = tmp_path / "settings.yaml"
        file.write_text("yolov9:\n  num_replicas: 3\nanygpt:\n  ray_actor_options: {num_gpus: 1}\n")
        settings = ray_app.read_settings(str(file))
        assert settings == {"yolov9": {"num_replicas": 3}, "anygpt": {"ray_actor_options": {"num_gpus": 1}}}
        assert ray_app.read_settings(None) == {}

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("yolo9:\n  num_replicas: 3\n", "no models of 'yolo9'"),
            ("yolov9:\n  replicas: 3\n", "yolov9 has replicas. Known: num_replicas"),
            ("yolov9: 3\n", "must name demos"),
        ],
    )
    def test_what_is_unknown_is_named(self, tmp_path, text, told):
        file = tmp_path / "settings.yaml"
        file.write_text(text)
        with pytest.raises(ValueError, match=told):
            ray_app.read_settings(str(file))
