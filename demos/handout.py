"""The run of show: every demo's paper, claims and prepared example, as a page to read from and to print.

    python -m demos.handout handout.html
    python -m demos.handout handout.pdf --lang ja

PDF is printed by the Chromium or Chrome of this machine; HTML can be printed by any browser.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from demos.registry import DEMOS, Demo

ADDRESS = "run-of-show"
ASSETS = Path(__file__).resolve().parent.parent / "assets"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
Translate = Callable[[str], str]


def body(demos: Sequence[Demo], of: Translate) -> str:
    """One section a demo, without its picture. HTML, its texts through `of`."""
    return _translated("".join(_section(place, demo, "") for place, demo in enumerate(demos, 1)), of)


def document(demos: Sequence[Demo], of: Translate, lang: str) -> str:
    """A whole page that needs no other file: one sheet of paper a demo, with the drawing of how it works."""
    sections = "".join(_section(place, demo, _drawing(demo)) for place, demo in enumerate(demos, 1))
    page = f'<body><h1>Live Papers: run of show</h1><div class="lp-show">{sections}</div></body>'
    return (
        f'<!DOCTYPE html><html lang="{lang}"><head><meta charset="utf-8"><title>Live Papers</title>'
        f"<style>{_STYLE}</style></head>{_translated(page, of)}</html>\n"
    )


def _section(place: int, demo: Demo, drawing: str) -> str:
    claims = "".join(f"<li>{escape(claim)}</li>" for claim in demo.claims)
    example = (
        f"<p><strong>Prepared example.</strong> <span>{escape(demo.example.says)}</span></p>" if demo.example else ""
    )
    return (
        f'<section class="lp-demo"><h2>{place} · {escape(demo.title)}</h2>'
        f'<p>{escape(demo.paper)}<br><a href="{escape(demo.url)}">{escape(demo.url)}</a></p>'
        f"<h3>What the paper claims</h3><ul>{claims}</ul>{example}"
        f"<p><span>Key {place}, then R</span> · <code>?tab={escape(demo.slug)}</code></p>{drawing}</section>"
    )


def _drawing(demo: Demo) -> str:
    path = ASSETS / demo.slug / "how_it_works.png"
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="How it works">'


def _translated(html: str, of: Translate) -> str:
    from demos import language

    return language.html(html, of)


_STYLE = """
@page { size: A4; margin: 15mm; }
body { font: 11pt/1.45 system-ui, sans-serif; color: #111827; max-width: 180mm; margin: 0 auto; padding: 4mm; }
h2 { margin: 0 0 .3em; } h3 { margin: .8em 0 .2em; } a { color: #0f766e; } ul { margin: .2em 0; }
.lp-demo { break-after: page; margin-bottom: 3em; } .lp-demo:last-child { break-after: auto; }
img { max-width: 100%; max-height: 130mm; }
@media print { body { padding: 0; } }
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demos.handout", description="Writes the run of show to a file.")
    parser.add_argument("file", type=Path, help="ends in .html or .pdf")
    parser.add_argument("--lang", choices=("en", "ja"), default="en")
    options = parser.parse_args(arguments)
    page = document(DEMOS, _table(options.lang), options.lang)
    if options.file.suffix == ".html":
        options.file.write_text(page, encoding="utf-8")
    elif options.file.suffix == ".pdf":
        _print(page, options.file)
    else:
        parser.error(f"{options.file.name} ends in neither .html nor .pdf")


def _table(lang: str) -> Translate:
    if lang == "en":
        return str
    from demos import language

    return language.read(lang)


def _print(page: str, target: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("No Chromium or Chrome is installed here. Write .html instead, and print it with any browser.")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "handout.html"
        source.write_text(page, encoding="utf-8")
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium has no sandbox for root
        command = [browser, "--headless", "--disable-gpu", "--no-pdf-header-footer", *["--no-sandbox"] * root]
        command += [f"--user-data-dir={folder}/profile", f"--print-to-pdf={target.resolve()}", source.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or not target.is_file():
        sys.exit(f"{Path(browser).name} could not print. Write .html instead.\n{done.stderr[-500:]}")


if __name__ == "__main__":
    main()
