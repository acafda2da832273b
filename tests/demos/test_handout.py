"""The run of show as a file, and what --present adds to the page."""

import threading
from pathlib import Path

import pytest

import app
from demos import handout, present
from demos.language import html, read
from demos.registry import DEMOS, AppOptions
from models.errors import WeightsNotFound
from models.runtime import Device, LoadedModel, ModelInfo, Runtime


def test_every_demo_has_an_example_and_a_model_to_load_ahead():
    assert [demo.slug for demo in DEMOS if demo.example is None or not demo.example.press] == []
    runtime = Runtime(10**12, device=Device("cpu", None, "float32", False))
    app.build_app(AppOptions(), runtime)
    names = {handle.name.split("-")[0] for handle in runtime.handles()}
    assert {demo.slug for demo in DEMOS} <= names
    runtime.close()


def test_the_elements_that_an_example_presses_are_in_the_tab():
    ids = {getattr(block, "elem_id", None) for block in app.build_app(AppOptions()).blocks.values()}
    for demo in DEMOS:
        for step in demo.example.press if demo.example else ():
            words = [word for word in step.split() if word.startswith("#")]
            assert {word[1:] for word in words} <= ids, step


def test_html_stands_alone_and_has_every_demo(tmp_path: Path):
    file = tmp_path / "handout.html"
    handout.main([str(file)])
    page = file.read_text(encoding="utf-8")
    for demo in DEMOS:
        assert demo.claims[0].split(",")[0] in page and demo.url in page
    drawings = [demo for demo in DEMOS if (handout.ASSETS / demo.slug / "how_it_works.png").is_file()]
    assert len(drawings) >= 4 and page.count("<img") == page.count('src="data:image/png') == len(drawings)


def test_every_text_has_an_entry():
    table, found = read("ja"), []

    def note(text: str) -> str:
        if table.find(text) is None and not text.startswith(("http", "?tab=")):
            found.append(text)
        return text

    html(handout.document(DEMOS, str, "en").split("</head>")[1], note)
    html(present._help(DEMOS), note)
    assert not found, f"add to demos/ja.json: {found}"


def test_pdf_is_printed(tmp_path: Path):
    handout.main([str(tmp_path / "handout.pdf"), "--lang", "ja"])
    assert (tmp_path / "handout.pdf").read_bytes()[:5] == b"%PDF-"


def test_another_ending_is_refused(capsys):
    with pytest.raises(SystemExit):
        handout.main(["handout.doc"])
    assert "neither .html nor .pdf" in capsys.readouterr().err


def test_no_text_can_end_the_script():
    script = present.head(DEMOS, lambda text: f"{text}</script>")
    assert script.count("</script>") == 1 and script.endswith("</script>")


def test_models_are_loaded_ahead_in_order_and_a_failure_is_left_to_its_demo():
    loaded = []

    def loader(name: str):
        def load(report, device):
            loaded.append(name)
            if name == "b":
                raise WeightsNotFound("Not here.")
            info = ModelInfo("embedded", "none", "MIT", "", 1, 1, device.name, "float32")
            return LoadedModel(name, info)

        return load

    runtime = Runtime(10**9, device=Device("cpu", None, "float32", False))
    for name in ("c-small", "c-large", "b", "a"):
        runtime.register(name, loader(name), estimate_bytes=1)
    present.load_ahead(runtime, ["b", "c", "nobody", "a"])
    assert loaded == ["b", "c-small", "a"]
    assert [handle.status().state for handle in runtime.handles()] == ["ready", "not loaded", "failed", "ready"]
    runtime.close()


def test_opening_a_tab_never_waits_for_a_model():
    started, free = threading.Event(), threading.Event()

    def load(report, device):
        started.set()
        assert free.wait(30)
        return LoadedModel(1, ModelInfo("embedded", "none", "MIT", "", 1, 1, device.name, "float32"))

    runtime = Runtime(10**9, device=Device("cpu", None, "float32", False))
    runtime.register("a", load, estimate_bytes=1)
    present._loading(runtime, ["a"])()  # comes back while the load goes on
    assert started.wait(30) and runtime.handles()[0].status().state == "loading"
    free.set()
    with runtime.handles()[0].use() as model:
        assert model == 1
    runtime.close()


def test_only_present_adds_to_the_page():
    plain, stage = (app.launch_arguments(AppOptions(present=mode)) for mode in (False, True))
    assert plain["head"] is None and "PageDown" in stage["head"]
    pages = [app.build_app(AppOptions(demos=("yolov9",), present=mode)).pages for mode in (False, True)]
    assert len(pages[0]) == 1 and pages[1][1][0] == handout.ADDRESS
