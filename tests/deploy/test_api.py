"""The API page is the app's own, its calls work as they stand there, and so do the example scripts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demos.registry import DEMOS
from deploy import api_page

ROOT = Path(__file__).resolve().parent.parent.parent
NO_MODEL = pytest.mark.skipif(
    not (ROOT / "assets" / "anygpt" / "lm.safetensors").exists(), reason="the miniature AnyGPT's weights are not there"
)
SLUGS = [pytest.param(demo.slug, marks=NO_MODEL if demo.slug == "anygpt" else ()) for demo in DEMOS]
SAID = {
    "yolov9": "bus 0.",
    "pdiff": "was the best of them",
    "longrope": "the key is",
    "sdxl_lightning": "cat with sunglasses: ",
    "anygpt": "assistant:",
}


def test_the_page_is_what_the_app_offers_now():
    assert api_page.PAGE.read_text() == api_page.page(), "run: python -m deploy.api_page"


@pytest.mark.parametrize("slug", SLUGS)
def test_the_example_script_works(app_server, slug):
    assert_example_works(slug, app_server.url)


def assert_example_works(slug: str, url: str) -> None:
    command = [sys.executable, f"examples/{slug}.py", url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert SAID[slug] in done.stdout


@pytest.mark.parametrize("slug", SLUGS)
def test_the_curl_commands_work(app_server, slug):
    assert shutil.which("curl"), "The commands on the page are curl's: apt-get install curl"
    script = f"set -euo pipefail\n{api_page.curl(slug, app_server.url)}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "event: complete" in done.stdout, done.stdout[-1000:]


class TestModelContextProtocol:
    def test_without_its_package_the_option_says_what_to_install(self):
        script = (
            "import sys, importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *more: None if name == 'mcp' else find(name, *more)\n"
            "import app; sys.argv[1:] = ['--mcp']; app.main()"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and 'pip install "gradio[mcp]' in done.stderr
        assert "Traceback" not in done.stderr

    def test_off_is_the_default_and_answers_nothing(self, app_server):
        import httpx

        for method in ("GET", "POST"):
            assert httpx.request(method, f"{app_server.url}/gradio_api/mcp/", trust_env=False).status_code in (404, 405)
