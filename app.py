"""Starts Live Papers: reads the options, builds one tab a demo, launches. `python app.py --help`."""

import argparse
import atexit
import gc
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from demos.registry import DEMOS, AppOptions, Demo, Language, Tier
from deploy import spaces
from models.heap import share_heaps

if TYPE_CHECKING:
    import gradio as gr

    from models.runtime import ModelRuntime

# Read by Gradio when it is imported, which is why Gradio is imported in functions below.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

MAX_UPLOAD = "200mb"
# A tenth of the default: whoever waits for the interpreter between two small products, as all tabs do when many are in
# use, waits for a slice of each of the others.
SWITCH_SECONDS = 0.0005
Choice = TypeVar("Choice", bound=str)


def main() -> None:
    # What is imported and built here stays: looking for garbage in it would take a tenth of the start.
    gc.disable()
    sys.setswitchinterval(SWITCH_SECONDS)
    share_heaps()
    options = parse_options()
    prepare_process(options)
    signal.signal(signal.SIGTERM, _exit)  # or `kill` would leave the folder for uploads behind
    demo = build_app(options)
    spaces.lend_gpu(demo)
    try:
        demo.launch(**launch_arguments(options), prevent_thread_lock=True)
    except OSError as error:
        sys.exit(f"Port {options.port} on {options.host} cannot be used ({error}). Choose another with --port.")
    gc.freeze()
    gc.enable()
    print(f"Live Papers: {_address(options)}", flush=True)
    if options.share and options.auth is None:
        print("Anyone who has the public link can use it. Ask for a password with --auth USER:PASS.", flush=True)
    demo.block_thread()


def build_app(options: AppOptions, runtime: "ModelRuntime | None" = None, demos: Sequence[Demo] = DEMOS) -> "gr.Blocks":
    """The app as Blocks, not launched. Imports no model; `runtime` defaults to a new one from the options."""
    import gradio as gr

    from demos.guard import GuardedBlocks
    from models.runtime import configure

    runtime = runtime or configure(memory_limit_bytes=options.memory_limit, device=options.device)
    chosen = {demo.slug: demo for demo in demos}
    with GuardedBlocks(title="Live Papers", analytics_enabled=False, fill_width=True, delete_cache=(60, 600)) as app:
        # While the app is empty: `queue` sets up the server once more, with all that it serves.
        # Not `api_open`: a direct call would go past the queue and its limits.
        app.queue(max_size=64, default_concurrency_limit=1, api_open=False)
        each: dict[str, gr.Tab] = {}
        with gr.Tabs(selected=options.demos[0], elem_id="demos") as tabs:
            for slug in options.demos:
                with gr.Tab(chosen[slug].title, id=slug, elem_id=f"{slug}-tab") as tab:
                    chosen[slug].load_build()(options, runtime)
                # ?tab=<slug> is the address of a tab: a click writes it, opening the page reads it.
                tab.select(None, js=_REMEMBER_TAB.replace("SLUG", slug))
                each[slug] = tab
        opened = app.load(
            _tab_of_address(options.demos),
            None,
            tabs,
            api_name="open_tab",
            queue=False,
            show_progress="hidden",
        )
        opened.then(None, js=_START_REMEMBERING)
        if options.present:
            from demos import present

            present.add(each, [chosen[slug] for slug in options.demos], runtime)
        if options.lang != "en":
            from demos import language

            language.translate(app, language.read(options.lang))
    if options.present:
        present.add_run_of_show(app, [chosen[slug] for slug in options.demos], _texts(options.lang))
    return app


def launch_arguments(options: AppOptions) -> dict[str, Any]:
    """Arguments for `Blocks.launch`; nothing on the disk is public but what Gradio itself serves."""
    from starlette.middleware import Middleware

    from demos import theme
    from deploy.gate import Gate
    from deploy.limits import Limits

    limits = Limits(requests_per_second=options.rate_limit)
    gate = Middleware(Gate, limits, proxies=options.proxies, on_spaces=spaces.on_spaces())
    return {
        "server_name": options.host,
        "server_port": options.port,
        "share": options.share,
        "auth": options.auth,
        "max_file_size": MAX_UPLOAD,
        "allowed_paths": [],
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": [] if options.present else ["api", "settings"],
        "ssr_mode": False,
        "show_error": False,
        "quiet": True,
        "state_session_capacity": 1000,
        "app_kwargs": {"middleware": [gate]},
        "mcp_server": options.mcp,
        "theme": theme.theme(options.present),
        "css": theme.css(options.present),
        "head": _head(options),
    }


def parse_options(arguments: Sequence[str] | None = None) -> AppOptions:
    """Options from the command line, else from the environment, else their defaults. Exits on bad values."""
    slugs = ",".join(demo.slug for demo in DEMOS)
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="Live Papers: papers you can try, in one Gradio app.",
        epilog="Every option can also be set by the environment variable named with it.",
    )

    def option(name: str, default: str, convert: Any, help: str, **more: Any) -> None:
        variable = "LIVE_PAPERS_" + name.upper().replace("-", "_")
        # argparse passes a default that is text through `type`, so both ways get the same checks.
        parser.add_argument(
            f"--{name}",
            type=convert,
            default=os.environ.get(variable) or default,
            help=f"{help} [{variable}]",
            **more,
        )

    switch = {"nargs": "?", "const": True, "metavar": "yes|no"}
    option("demos", slugs, _demos, f"demos to show, in this order, of: {slugs}", metavar="A,B")
    option("host", "0.0.0.0" if spaces.on_spaces() else "127.0.0.1", str, "address to listen on; 0.0.0.0 for all")
    option("port", "7860", _port, "port to listen on")
    option("share", "no", _switch, "make a public link through Gradio's tunnel", **switch)
    option("auth", "", _auth, "ask for this name and password", metavar="USER:PASS")
    option("tier", "embedded", _tier, "embedded: weights that come with the app; official: the published ones")
    option("weights-dir", "", _folder, "folder with weights that you brought", metavar="FOLDER")
    option("longrope-url", "", _server, "official LongRoPE model on an OpenAI-compatible server", metavar="URL[#MODEL]")
    option("anygpt-url", "", _server, "official AnyGPT language model on such a server", metavar="URL[#MODEL]")
    option("lm-key", "", _key, "key of these servers; better in the environment", metavar="KEY")
    option("device", "auto", _device, "auto, cpu, cuda, cuda:N or mps")
    option("memory-limit", "", _bytes, "memory for all models together, such as 8GB (default: 80 %% of it)")
    option("rate-limit", "100", _rate, "requests a second from one address, as a lasting rate; 0 for no limit")
    option("proxies", "1" if spaces.on_spaces() else "0", _count, "trusted proxies in front of the app")
    option("lang", "en", _language, "language of the page: en (English) or ja (Japanese)", metavar="en|ja")
    option("mcp", "no", _switch, "offer the API as tools to language models, at /gradio_api/mcp/", **switch)
    option("present", "no", _switch, "for a projector: large type; press ? for its keys", **switch)
    options = AppOptions(**vars(parser.parse_args(arguments)))
    if (options.longrope_url or options.anygpt_url) and (options.tier != "official" or options.weights_dir is None):
        parser.error(
            "--longrope-url and --anygpt-url need --tier official and --weights-dir FOLDER, for the model's tokenizer"
        )
    return options


def prepare_process(options: AppOptions) -> None:
    """Settings that libraries read when they are imported, and a private folder for uploads and results."""
    spaces.prepare()
    if options.mcp and importlib.util.find_spec("mcp") is None:
        sys.exit('--mcp needs a package more: python -m pip install "gradio[mcp]==6.31.0"')
    if options.tier == "embedded":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not os.environ.get("GRADIO_TEMP_DIR"):
        folder = tempfile.mkdtemp(prefix="live-papers-")  # mode 0700
        os.environ["GRADIO_TEMP_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


def _address(options: AppOptions) -> str:
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    return f"http://{f'[{host}]' if ':' in host else host}:{options.port}"


def _tab_of_address(slugs: Sequence[str]) -> Any:
    import gradio as gr

    def open_tab(request: gr.Request) -> Any:
        wanted = dict(request.query_params).get("tab")
        return gr.Tabs(selected=wanted) if wanted in slugs else gr.skip()

    return open_tab


# The first tab reports itself selected when the page opens, before the address is read: not to be remembered.
_START_REMEMBERING = "() => { window.livePapersOpened = true; }"
_REMEMBER_TAB = """() => {
  if (!window.livePapersOpened) return;
  const address = new URL(window.location);
  address.searchParams.set("tab", "SLUG");
  window.history.replaceState(null, "", address);
}"""


def _head(options: AppOptions) -> str | None:
    """Scripts for the page: its language; with --present, the keys."""
    scripts = [_SPEAK.replace("LANG", options.lang)] if options.lang != "en" else []
    if options.present:
        from demos import present

        known = {demo.slug: demo for demo in DEMOS}
        shown = [known[slug] for slug in options.demos if slug in known]
        scripts.append(present.head(shown, _texts(options.lang)))
    return "".join(scripts) or None


def _texts(lang: Language) -> Callable[[str], str]:
    """Gives a text of the page in its language."""
    if lang == "en":
        return str
    from demos import language

    return language.read(lang)


_SPEAK = '<script>document.documentElement.lang = "LANG";</script>'


# Each of these checks the text of one option; argparse shows the message and exits.


def _demos(text: str) -> tuple[str, ...]:
    known = [demo.slug for demo in DEMOS]
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        _refuse(f"unknown demo {', '.join(map(repr, unknown)) or repr(text)}; known: {', '.join(known)}")
    return names


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        _refuse(f"{text!r} is not a port; give a number from 1 to 65535, such as 7860")
    return int(text)


def _switch(text: str) -> bool:
    values = {
        "1": True,
        "yes": True,
        "true": True,
        "on": True,
        "0": False,
        "no": False,
        "false": False,
        "off": False,
    }
    if text.strip().lower() not in values:
        _refuse(f"{text!r} is neither yes nor no")
    return values[text.strip().lower()]


def _auth(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        _refuse("give a name and a password with a colon between them, such as guest:secret")
    return user, password


def _tier(text: str) -> Tier:
    return _one_of(text, "a tier", "embedded", "official")


def _language(text: str) -> Language:
    return _one_of(text, "a language of the page", "en", "ja")


def _one_of(text: str, what: str, *known: Choice) -> Choice:
    for choice in known:
        if text == choice:
            return choice
    _refuse(f"{text!r} is not {what}; choose {' or '.join(known)}")


def _folder(text: str) -> str | None:
    if text and not os.path.isdir(text):
        _refuse(f"there is no folder {text!r}; give an existing folder with weights files")
    return text or None


def _server(text: str) -> str | None:
    from models.completions import Address
    from models.errors import BadInput

    try:
        if text:
            Address.parse(text)
    except BadInput as error:
        _refuse(str(error))
    return text or None


def _key(text: str) -> str | None:
    if not re.fullmatch(r"[!-~]*", text):
        _refuse("a key is printable ASCII characters without spaces")
    return text or None


def _rate(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        _refuse(f"{text!r} is not a rate; give a number such as 100, or 0 for no limit")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,2}", text):
        _refuse(f"{text!r} is not a number of proxies; give 0, 1 or 2")
    return int(text)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        _refuse(f"{text!r} is not a device; choose auto, cpu, cuda, cuda:N or mps")
    return text


def _bytes(text: str) -> int | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB)", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        _refuse(f"{text!r} is not an amount of memory; write it like 800MB or 8GB")
    return int(float(match[1]) * {"MB": 1e6, "GB": 1e9}[match[2].upper()])


def _refuse(message: str) -> NoReturn:
    raise argparse.ArgumentTypeError(message)


if __name__ == "__main__":
    main()
