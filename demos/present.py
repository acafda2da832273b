"""Presenting: keys that move between the demos and start their prepared examples, help, and models loaded ahead.

The page says what a key does when "?" is pressed. Nothing here is on the page without `--present`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from demos import handout
from demos.registry import Demo
from models.errors import UserError
from models.runtime import ModelRuntime

logger = logging.getLogger(__name__)

KEYS = (
    ("PageDown, PageUp", "next and previous demo; a presenter's remote sends these"),
    ("1 to 9", "the demo of that number"),
    ("R", "run the prepared example of this demo"),
    ("N", "run of show, in a window of its own"),
    ("?", "this help; Escape closes it"),
)


def add(tabs: Mapping[str, gr.Tab], demos: Sequence[Demo], runtime: ModelRuntime) -> None:
    """Loads the models of the demo that is open and of the next one whenever a tab is opened. Inside the Blocks.

    tabs: by slug. demos: those shown, in their order.
    """
    for place, demo in enumerate(demos):
        ahead = [demo.slug, demos[(place + 1) % len(demos)].slug]
        tabs[demo.slug].select(
            _loading(runtime, ahead), queue=False, show_progress="hidden", api_name=f"{demo.slug}_load_ahead",
            api_visibility="private",
        )  # fmt: skip


def add_run_of_show(app: gr.Blocks, demos: Sequence[Demo], of: Callable[[str], str]) -> None:
    """The run of show as a page of its own. Outside the Blocks."""
    with app.route("Run of show", handout.ADDRESS, show_in_navbar=False):
        gr.HTML(handout.body(demos, of), padding=False, elem_id="run-of-show")


def head(demos: Sequence[Demo], of: Callable[[str], str]) -> str:
    """The script of the keys and the help, for the page's head."""
    from demos import language

    known = [{"slug": demo.slug, "press": demo.example.press if demo.example else []} for demo in demos]
    words = {"help": language.html(_help(demos), of), "button": of("Keys and run of show")}
    return _SCRIPT.replace("DEMOS", _inline(known)).replace("WORDS", _inline(words)).replace("ADDRESS", handout.ADDRESS)


def load_ahead(runtime: ModelRuntime, slugs: Sequence[str]) -> None:
    """Loads the first model of each demo, one after the other. What fails is said when the demo is used."""
    for slug in slugs:
        mine = [handle for handle in runtime.handles() if handle.name.split("-")[0] == slug]
        for handle in mine[:1]:
            try:
                handle.run(_nothing)
            except UserError as error:
                logger.info("%s was not loaded ahead: %s", handle.name, error)


def _loading(runtime: ModelRuntime, slugs: Sequence[str]) -> Callable[[], None]:
    def load() -> None:
        threading.Thread(target=load_ahead, args=(runtime, slugs), name="load-ahead", daemon=True).start()

    return load


def _nothing(model: Any, report: Any) -> None:
    """Loads the model."""


def _help(demos: Sequence[Demo]) -> str:
    keys = "".join(
        f"<tr><th scope='row'><kbd>{escape(key)}</kbd></th><td>{escape(does)}</td></tr>" for key, does in KEYS
    )
    shows = "".join(
        f"<li><strong>{escape(demo.title)}</strong><br><span>{escape(demo.example.says)}</span></li>"
        for demo in demos
        if demo.example
    )
    return (
        f"<h2>Keys</h2><table>{keys}</table><h2>Run of show</h2><ol>{shows}</ol>"
        f'<p><a href="{handout.ADDRESS}" target="_blank">Run of show, to print</a></p>'
        '<form method="dialog"><button>Close</button></form>'
    )


def _inline(value: Any) -> str:
    """A value inside a script: nothing in it ends the script."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


_SCRIPT = """<script>
(() => {
  const demos = DEMOS, words = WORDS;
  const button = slug => document.getElementById(slug + "-tab-button");
  const open = () => demos.findIndex(({ slug }) => button(slug)?.getAttribute("aria-selected") === "true");

  function show(place) {
    const tab = button(demos[(place + demos.length) % demos.length].slug);
    if (!tab) return;
    tab.click();
    tab.focus();
    window.scrollTo(0, 0);
  }

  // Each element is pressed once it can be; one after "see " is only waited for. Another demo opened ends it.
  async function run() {
    const place = open(), start = Date.now();
    for (const step of demos[place]?.press ?? []) {
      const seen = step.startsWith("see "), query = seen ? step.slice(4) : step;
      let found = null;
      while (!found) {
        if (open() !== place || Date.now() - start > 60000) return;
        found = [...document.querySelectorAll("#" + demos[place].slug + "-tab " + query)]
          .find(each => each.getClientRects().length && !each.disabled);
        if (!found) await new Promise(resolve => setTimeout(resolve, 100));
      }
      if (!seen) found.click();
    }
  }

  const help = document.createElement("dialog");
  help.className = "lp-help";
  help.setAttribute("aria-label", words.button);
  help.innerHTML = words.help;
  const ask = document.createElement("button");
  ask.className = "lp-ask";
  ask.textContent = "?";
  ask.setAttribute("aria-label", words.button);
  ask.addEventListener("click", () => help.showModal());
  const put = () => location.pathname.endsWith("ADDRESS") || document.body.append(help, ask);
  if (document.body) put(); else addEventListener("DOMContentLoaded", put);

  const typing = "textarea, select, [contenteditable=true], "
    + "input:not([type=checkbox], [type=radio], [type=button], [type=file])";
  document.addEventListener("keydown", event => {
    const { key, target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || target.closest?.(typing) || open() < 0) return;
    const keys = {
      PageDown: () => show(open() + 1),
      PageUp: () => show(open() - 1),
      r: run,
      n: () => window.open("ADDRESS"),
      "?": () => help.open ? help.close() : help.showModal(),
    };
    const number = /^[1-9]$/.test(key) && demos[key - 1] && (() => show(key - 1));
    const act = keys[key.length === 1 ? key.toLowerCase() : key] ?? number;
    if (!act || (help.open && key !== "?")) return;
    event.preventDefault();
    act();
  });
})();
</script>"""
