"""Options and environment of app.py, and the shell that every tab stands in."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client

import app
from demos.registry import DEMOS, AppOptions, Demo
from models.runtime import Device, LoadedModel, ModelInfo, Runtime

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("demos", "host", "port", "share", "auth", "tier", "weights-dir", "device", "memory-limit", "present", "lang")
NAMES += ("rate-limit", "proxies", "mcp", "longrope-url", "anygpt-url", "lm-key")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("LIVE_PAPERS_") or name == "SPACE_ID":
            monkeypatch.delenv(name)


def variable(name: str) -> str:
    return "LIVE_PAPERS_" + name.upper().replace("-", "_")


class TestOptions:
    def test_defaults(self):
        options = app.parse_options([])
        assert options == AppOptions()
        assert options.demos == tuple(demo.slug for demo in DEMOS)
        assert (options.host, options.port, options.tier) == ("127.0.0.1", 7860, "embedded")

    GIVEN = (
        ("demos", "yolov9", "demos", ("yolov9",)),
        ("host", "0.0.0.0", "host", "0.0.0.0"),
        ("port", "7999", "port", 7999),
        ("share", "yes", "share", True),
        ("auth", "guest:a:b", "auth", ("guest", "a:b")),
        ("tier", "official", "tier", "official"),
        ("weights-dir", ".", "weights_dir", "."),
        ("device", "cuda:1", "device", "cuda:1"),
        ("memory-limit", "8GB", "memory_limit", 8_000_000_000),
        ("memory-limit", "1.5 gb", "memory_limit", 1_500_000_000),
        ("memory-limit", "800MB", "memory_limit", 800_000_000),
        ("present", "true", "present", True),
        ("rate-limit", "2.5", "rate_limit", 2.5),
        ("rate-limit", "0", "rate_limit", 0.0),
        ("proxies", "2", "proxies", 2),
        ("mcp", "yes", "mcp", True),
        ("lang", "ja", "lang", "ja"),
    )

    @pytest.mark.parametrize(("name", "text", "field", "value"), GIVEN)
    def test_by_option_and_by_environment(self, monkeypatch, name, text, field, value):
        assert getattr(app.parse_options([f"--{name}", text]), field) == value
        monkeypatch.setenv(variable(name), text)
        assert getattr(app.parse_options([]), field) == value

    @pytest.mark.parametrize("name", ["longrope-url", "anygpt-url"])
    def test_a_server_by_option_and_by_environment(self, monkeypatch, name):
        url, official = "http://gpu.local:8000/v1#phi3", ["--tier", "official", "--weights-dir", "."]
        options = app.parse_options([*official, f"--{name}", url, "--lm-key", "s3cret"])
        assert getattr(options, name.replace("-", "_")) == url and options.lm_key == "s3cret"
        assert "s3cret" not in repr(options)
        monkeypatch.setenv(variable(name), url)
        monkeypatch.setenv(variable("lm-key"), "other")
        options = app.parse_options(official)
        assert getattr(options, name.replace("-", "_")) == url and options.lm_key == "other"

    @pytest.mark.parametrize("name", ["longrope-url", "anygpt-url"])
    def test_a_server_needs_the_official_tier_and_the_folder_with_its_tokenizer(self, capsys, name):
        for given in ([], ["--tier", "official"], ["--weights-dir", "."]):
            with pytest.raises(SystemExit):
                app.parse_options([*given, f"--{name}", "http://127.0.0.1:8000/v1"])
            assert "need --tier official and --weights-dir" in capsys.readouterr().err

    def test_the_option_wins_over_the_environment(self, monkeypatch):
        monkeypatch.setenv("LIVE_PAPERS_PORT", "not a port")
        assert app.parse_options(["--port", "7861"]).port == 7861

    @pytest.mark.parametrize("name", ["share", "present"])
    def test_switches(self, monkeypatch, name):
        assert getattr(app.parse_options([f"--{name}"]), name) is True
        monkeypatch.setenv(variable(name), "1")
        assert getattr(app.parse_options([f"--{name}", "no"]), name) is False

    BAD = (
        ("demos", "yolov9,nothing", "known: yolov9"),
        ("demos", ",", "known: yolov9"),
        ("port", "0", "1 to 65535"),
        ("port", "99999", "1 to 65535"),
        ("port", "http", "1 to 65535"),
        ("share", "maybe", "neither yes nor no"),
        ("auth", "guest", "colon"),
        ("auth", "guest:", "colon"),
        ("tier", "huge", "embedded or official"),
        ("lang", "fr", "en or ja"),
        ("weights-dir", "does/not/exist", "existing folder"),
        ("device", "tpu", "choose auto"),
        ("memory-limit", "8", "8GB"),
        ("rate-limit", "-1", "0 for no limit"),
        ("rate-limit", "many", "0 for no limit"),
        ("proxies", "-1", "number of proxies"),
        ("memory-limit", "0GB", "8GB"),
        ("longrope-url", "gpu:8000", "http://127.0.0.1:8000/v1"),
        ("longrope-url", "file:///etc/passwd", "http://127.0.0.1:8000/v1"),
        ("anygpt-url", "http://me:secret@gpu/v1", "--lm-key"),
        ("lm-key", "two words", "without spaces"),
        ("memory-limit", "-1GB", "8GB"),
    )

    @pytest.mark.parametrize(("name", "text", "advice"), BAD)
    def test_bad_values_exit_with_advice(self, monkeypatch, capsys, name, text, advice):
        with pytest.raises(SystemExit) as caught:
            app.parse_options([f"--{name}={text}"])
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert f"--{name}" in message and advice in message

        monkeypatch.setenv(variable(name), text)
        with pytest.raises(SystemExit):
            app.parse_options([])
        assert advice in capsys.readouterr().err

    def test_help_names_every_option_and_variable(self, capsys):
        with pytest.raises(SystemExit) as caught:
            app.parse_options(["--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert all(f"--{name}" in text and variable(name) in text for name in NAMES)

    def test_on_spaces_it_listens_on_all_addresses(self, monkeypatch):
        monkeypatch.setenv("SPACE_ID", "owner/name")
        options = app.parse_options([])
        assert options.host == "0.0.0.0" and options.proxies == 1


# A tab of its own for the tests below: a real handler on a real (tiny) model.


def build_doubler(options: AppOptions, runtime: Runtime) -> None:
    from demos.parts import paper_card, status_line, user_errors
    from models.errors import BadInput

    def load(report, device: Device) -> LoadedModel:
        report(0.5, "half way")
        info = ModelInfo("embedded", "none", "MIT", "", 2_000_000, 8_000_000, device.name, "float32")
        return LoadedModel(lambda number: 2 * number, info)

    handle = runtime.register("doubler", load, estimate_bytes=8_000_000, description="A doubler")

    @user_errors
    def double(number: float) -> float:
        if number < 0:
            raise BadInput("The number <b>-1</b> in /home/me/x.txt is below 0. Give 0 or more.")
        with handle.use() as model:
            return model(1 / number)

    @user_errors
    def count(number: float):
        yield 1
        if number < 0:
            raise BadInput("Below 0.")
        yield 2

    paper_card(DEMOS[0])
    number, result = gr.Number(label="Number"), gr.Number(label="Twice its inverse")
    gr.Button("Double").click(double, number, result, api_name="double")
    gr.Button("Count").click(count, number, result, api_name="count")
    status_line(handle)


TINY = Demo("tiny", "Tiny <script>", "Nobody: Nothing", "https://example.org", ("a", "b"), "unused:unused")


class TinyDemo(Demo):
    def load_build(self):
        return build_doubler


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    options = AppOptions(demos=("tiny",), host="127.0.0.1", port=None)  # type: ignore[arg-type]
    runtime = Runtime(10**9, device=Device("cpu", None, "float32", False))
    demo = app.build_app(options, runtime, [TinyDemo(**vars(TINY))])
    _, url, _ = demo.launch(**app.launch_arguments(options), prevent_thread_lock=True)
    yield Client(url, verbose=False)
    demo.close()
    runtime.close()


class TestShell:
    def test_a_handler_answers_and_the_status_line_follows(self, client):
        assert "A doubler · not loaded yet; loads at first use, about 8 MB" in client.predict(
            api_name="/doubler_status"
        )
        assert client.predict(0.5, api_name="/double") == 4
        line = client.predict(api_name="/doubler_status")
        assert "Embedded tier · weights none · licence MIT · cpu · float32 · 2.0 M parameters · 8 MB" in line
        assert 'aria-live="polite"' in line and 'data-state="ready"' in line

    def test_a_user_error_reaches_the_client_escaped_and_without_paths(self, client):
        with pytest.raises(Exception, match="Give 0 or more") as caught:
            client.predict(-1, api_name="/double")
        assert "/home" not in str(caught.value) and "<b>" not in str(caught.value)

    def test_an_unexpected_error_is_logged_and_hidden(self, client, caplog):
        with pytest.raises(Exception, match="Something went wrong in “double”") as caught:
            client.predict(0, api_name="/double")
        assert "ZeroDivision" not in str(caught.value) and "ZeroDivisionError" in caplog.text

    def test_generators_stream_and_their_errors_are_mapped(self, client):
        job = client.submit(1, api_name="/count")
        assert job.result(timeout=30) == 2 and job.outputs() == [1, 2]
        with pytest.raises(Exception, match="Below 0"):
            client.submit(-1, api_name="/count").result(timeout=30)

    def test_every_event_has_a_name(self, client):
        named = client.view_api(return_format="dict", print_info=False)
        assert named["unnamed_endpoints"] == {}
        assert {"/double", "/count", "/doubler_status", "/open_tab"} <= set(named["named_endpoints"])

    @pytest.mark.parametrize("path", ["gradio_api/file=app.py", "gradio_api/file=/etc/passwd", "monitoring/summary"])
    def test_nothing_on_the_disk_is_public(self, client, path):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(client.src.rstrip("/") + "/" + path)
        assert caught.value.code in (403, 404)

    def test_an_upload_above_the_limit_is_refused(self):
        assert app.launch_arguments(AppOptions())["max_file_size"] == "200mb"

    def test_present_mode_has_large_type_and_no_footer(self):
        plain, present = (app.launch_arguments(AppOptions(present=mode)) for mode in (False, True))
        assert present["footer_links"] == [] and plain["footer_links"]
        assert len(present["css"]) > len(plain["css"])

    def test_nothing_comes_from_other_machines(self):
        theme = app.launch_arguments(AppOptions())["theme"]
        assert not [url for url in theme._stylesheets if url.startswith("http")]
        assert "url(http" not in theme._get_theme_css() + app.launch_arguments(AppOptions())["css"]


class TestErrorMapping:
    def test_signatures_survive_for_gradio(self):
        import inspect

        from demos.parts import user_errors

        def handler(image: str, progress=gr.Progress(), request: gr.Request | None = None):  # noqa: B008
            yield image

        wrapped = user_errors(handler)
        assert inspect.signature(wrapped) == inspect.signature(handler)
        assert inspect.isgeneratorfunction(wrapped) and list(wrapped("x")) == ["x"]

    def test_gradio_errors_pass(self):
        from demos.parts import user_errors

        @user_errors
        def handler():
            raise gr.Error("as it is")

        with pytest.raises(gr.Error, match="as it is"):
            handler()

    def test_memory_shortage_gets_advice(self):
        from demos.parts import user_errors

        @user_errors
        def handler():
            raise MemoryError

        with pytest.raises(gr.Error, match="smaller") as caught:
            handler()
        assert caught.value.title == "Not enough memory"


class TestEvidence:
    def test_paper_and_measured_stand_apart_and_text_is_escaped(self):
        from demos.parts import EvidenceRow, evidence_html

        html = evidence_html([EvidenceRow("AP <t>", "38.3", None), EvidenceRow("AP50", None, "0.81 ± 0.02")], "A & B")
        assert "AP &lt;t&gt;" in html and "A &amp; B" in html and "Note" not in html
        assert '<td class="lp-paper">38.3</td><td class="lp-here">–</td>' in html


class TestStatus:
    def test_a_failed_load_says_why_and_what_next(self):
        from demos.parts import status_html
        from models.errors import WeightsNotFound

        def load(report, device):
            raise WeightsNotFound("No weights found. Put <x> there.")

        runtime = Runtime(10**9, device=Device("cpu", None, "float32", False))
        handle = runtime.register("broken", load, estimate_bytes=1)
        with pytest.raises(WeightsNotFound), handle.use():
            pass
        line = status_html(handle)
        assert 'data-state="failed"' in line and "Put &lt;x&gt; there. It is tried again" in line
        runtime.close()

    def test_it_is_asked_for_when_the_page_opens_and_again_every_few_seconds(self):
        from demos.parts import status_line

        runtime = Runtime(10**9, device=Device("cpu", None, "float32", False))
        handle = runtime.register("doubler", lambda report, device: pytest.fail("never used"), estimate_bytes=1)
        with gr.Blocks() as page:
            line = status_line(handle)
        asked = [event for event in page.config["dependencies"] if event["outputs"] == [line._id]]
        assert sorted(name for event in asked for _, name in event["targets"]) == ["load", "tick"]
        assert not any(event["queue"] for event in asked)
        runtime.close()


class TestProcess:
    def test_the_app_serves_says_where_and_cleans_up(self, start_server):
        with start_server([sys.executable, "app.py"]) as server:
            with urllib.request.urlopen(server.url) as page:
                assert b"Live Papers" in page.read()
            deadline = time.monotonic() + 30
            while f"Live Papers: {server.url}" not in server.log.read_text():
                assert time.monotonic() < deadline, server.log.read_text()
                time.sleep(0.05)
            folder = server.log.parent
            private = list(folder.glob("live-papers-*"))
            assert len(private) == 1 and private[0].stat().st_mode & 0o777 == 0o700
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(timeout=20)
            assert list(folder.glob("live-papers-*")) == []

    def test_a_port_in_use_is_said_in_one_line(self, app_server):
        port = app_server.url.rsplit(":", 1)[1]
        done = subprocess.run(
            [sys.executable, "app.py", "--port", port], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "Choose another with --port" in done.stderr and "Traceback" not in done.stderr

    def test_help_is_quick_because_it_imports_nothing(self):
        script = (
            "import sys, app\ntry: app.parse_options(['--help'])\nexcept SystemExit: print('gradio' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("False")
