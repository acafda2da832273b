"""The app in Firefox, where it is installed (apt-get install firefox-esr): every tab opens, a picture is drawn."""

import shutil

import pytest

from demos.registry import DEMOS
from tests.browser.firefox import Firefox

PROGRAM = shutil.which("firefox-esr") or shutil.which("firefox")
NO_WEBGL = "Error: CanvasRenderer is not yet implemented"  # of Gradio's picture fields, which can do without
VISIBLE = "const e = document.querySelector(arguments[0]); return !!e && e.getClientRects().length > 0"


@pytest.mark.skipif(PROGRAM is None, reason="Firefox is not installed")
def test_every_tab_opens_and_a_picture_is_drawn(app_server, tmp_path):
    assert PROGRAM
    with Firefox(PROGRAM, tmp_path) as firefox:
        firefox.open(app_server.url)
        firefox.wait("return !!document.querySelector('#demos')")
        firefox.run("""window.problems = [];
            addEventListener('error', event => window.problems.push(event.message));
            addEventListener('unhandledrejection', event => window.problems.push(String(event.reason)));""")
        for demo in DEMOS:
            firefox.wait(
                "const tab = document.getElementById(arguments[0]); tab?.click(); return !!tab",
                f"{demo.slug}-tab-button",
            )
            firefox.wait(VISIBLE, f"#{demo.slug}-card")
            assert firefox.run("return document.documentElement.scrollWidth <= innerWidth")
        firefox.run("document.getElementById('sdxl_lightning-tab-button').click()")
        firefox.wait(VISIBLE, "#sdxl_lightning-run")
        firefox.run("document.getElementById('sdxl_lightning-run').click()")
        firefox.wait(VISIBLE, "#sdxl_lightning-picture img", seconds=180)
        assert [problem for problem in firefox.run("return window.problems") if problem != NO_WEBGL] == []
