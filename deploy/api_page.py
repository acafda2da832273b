"""Writes docs/API.md from the app itself: `python -m deploy.api_page`. A test compares the two, and runs the calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demos.registry import DEMOS, AppOptions

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "API.md"
URL = "http://127.0.0.1:7860"
FILE = {"path": "'$FILE'", "meta": {"_type": "gradio.FileData"}}
# For each tab one call with curl: what is uploaded first, the endpoint, and what differs from its defaults.
CALLS: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "yolov9": ("assets/yolov9/cards/bus.png", "yolov9_image", {"path": FILE}),
    "pdiff": (None, "pdiff_generate", {"param_2": 10}),
    "longrope": (None, "longrope_passkey", {"param_2": 9, "param_13": None}),
    "sdxl_lightning": (
        None,
        "sdxl_lightning_generate",
        {"param_2": "cat with sunglasses", "param_8": None, "param_13": None},
    ),
    "anygpt": (None, "anygpt_chat", {"message": {"text": "Hello", "files": []}}),
}
INTRODUCTION = f"""# API

Every control of every tab can be used from a program. This page is made from the app (`python -m deploy.api_page`); a
running app also shows it under “Use via API”, and as OpenAPI at `/gradio_api/openapi.json`. The embedded tier is
described here; other weights offer other choices.

**With Python**: `pip install gradio_client`, then the scripts below (`python examples/yolov9.py {URL}`). One `Client`
is one visitor: what a call leaves behind, such as generated networks, the next call of the same client finds. Inputs
that are not given keep the value they have on the page; a file has always to be given, as `None` where there is none.

**With curl**: a call is asked for with POST, which answers with its number, and followed with GET as server-sent
events; the last is `complete` with the outputs, or `error` with a message. Files are uploaded first.

**As tools of a language model**: `python app.py --mcp` (needs `python -m pip install "gradio[mcp]=={{version}}"`)
offers the same endpoints by the Model Context Protocol at `{URL}/gradio_api/mcp/`.

**Refusals**: 429 with `Retry-After` for too many requests or waiting jobs from one address, 503 when the queue is
full, 413 for what is too large, 401 where a password is asked for (`Client(url, auth=(name, password))`). Everything
else that is wrong with a call is an `error` event that says what to do. Limits: [SECURITY.md](../SECURITY.md).
"""


def page() -> str:
    """The whole page, from the app as it is built now."""
    import gradio as gr

    from app import build_app

    info = build_app(AppOptions()).get_api_info()
    parts = [INTRODUCTION.replace("{version}", gr.__version__)]
    for demo in DEMOS:
        endpoints = {name: info["named_endpoints"][name] for name in sorted(info["named_endpoints"])}
        mine = {name: about for name, about in endpoints.items() if name.startswith(f"/{demo.slug}_")}
        example = (ROOT / "examples" / f"{demo.slug}.py").read_text()
        parts.append(f"\n## {demo.title}\n\n```python\n{example}```\n\n```sh\n{curl(demo.slug)}```\n")
        parts += [_endpoint(name, about) for name, about in mine.items()]
    return "".join(parts)


def curl(slug: str, url: str = URL) -> str:
    """The tab's call as shell commands, to be run in the repository's folder."""
    upload, name, values = CALLS[slug]
    body = json.dumps(values)
    first = f"FILE=$(curl -sF files=@{upload} $URL/gradio_api/upload | cut -d '\"' -f 2)\n" if upload else ""
    return (
        f"URL={url}\n{first}"
        f"ID=$(curl -s $URL/gradio_api/call/v2/{name} -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}' | cut -d '\"' -f 4)\n"
        f"curl -sN $URL/gradio_api/call/v2/{name}/$ID\n"
    )


def _endpoint(name: str, about: Any) -> str:
    lines = [f"\n### `{name}`\n\n"]
    if about["parameters"]:
        lines += ["| input | control | takes | if not given |\n|---|---|---|---|\n", *map(_input, about["parameters"])]
    returned = ", ".join(map(_output, about["returns"]))
    lines.append(f"\nGives: {returned or 'nothing'}.\n")
    return "".join(lines)


def _output(about: Any) -> str:
    """Gradio numbers what has no label; such a number changes with every widget that is added."""
    return (
        about["component"] if about["label"].startswith("value_") else f"{_cell(about['label'])} ({about['component']})"
    )


def _input(about: Any) -> str:
    default = json.dumps(about["parameter_default"]) if about["parameter_has_default"] else "has to be given"
    cells = (f"`{about['parameter_name']}`", about["label"], ", ".join(_takes(about)), _cell(default, code=True))
    return f"| {' | '.join(_cell(cell) for cell in cells[:3])} | {cells[3]} |\n"


def _takes(about: Any) -> Iterator[str]:
    schema = about["type"]
    choices = schema.get("enum") or schema.get("items", {}).get("enum")
    if schema.get("type") == "array" and choices:
        yield "any of"
    if choices:
        shown = [f"`{json.dumps(choice, ensure_ascii=False)}`" for choice in choices[:12]]
        yield " ".join(shown) + (f" … ({len(choices)} in all)" if len(choices) > 12 else "")
        return
    yield about["python_type"]["type"].split("(", maxsplit=1)[0]
    if description := schema.get("description"):
        yield description.removeprefix("numeric value ")


def _cell(text: str, code: bool = False) -> str:
    """Text that fits into a table's cell."""
    short = text if len(text) <= 80 else text[:77] + "…"
    clean = short.replace("|", "\\|").replace("\n", " ")
    return f"`{clean}`" if code and text != "has to be given" else clean


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)}: {len(PAGE.read_text().splitlines())} lines")


if __name__ == "__main__":
    main()
