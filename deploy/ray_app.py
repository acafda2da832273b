"""The suite on Ray Serve: one light page, and behind it a deployment for the models of each demo.

    serve run deploy.ray_app:app                          # on http://127.0.0.1:7860
    serve run deploy.ray_app:app demos=yolov9,anygpt      # the app's own options, or their variables

See README.md beside this file for the settings of each model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when Ray is imported, here and in the processes it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # five seconds are few on a busy machine

import ray
import yaml
from ray import serve

import app as suite
from demos.registry import AppOptions
from deploy.remote import Model, RemoteRuntime, Replica, slug_of
from models.runtime import Runtime

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

logger = logging.getLogger(__name__)

PAGE = "page"
SETTINGS = "LIVE_PAPERS_RAY"  # names a YAML file
# What a replica reserves and holds, where the settings say nothing. Whole numbers of cores are not reserved, so that
# all models find a place on a machine of two. GPUs only where the cluster has one: then a card holds one of each.
CPUS = 0.2
GPUS = {"yolov9": 0.1, "longrope": 0.3, "sdxl_lightning": 0.3, "anygpt": 0.3}  # P-diff's networks are too small
DEFAULTS: dict[str, Any] = {"max_ongoing_requests": 32, "graceful_shutdown_timeout_s": 60.0}
QUIET = {"enable_access_log": False}  # every open page asks for its status line every five seconds
KNOWN = (
    "num_replicas",
    "autoscaling_config",
    "ray_actor_options",
    "max_ongoing_requests",
    "graceful_shutdown_timeout_s",
)
# Arguments of `launch` that `mount_gradio_app` has, too; where the app listens is Serve's affair.
MOUNTED = ("auth", "max_file_size", "allowed_paths", "enable_monitoring", "run_history", "footer_links", "ssr_mode",
           "show_error", "app_kwargs", "mcp_server", "theme", "css", "head")  # fmt: skip


def app(arguments: Mapping[str, str]) -> Application:
    """What `serve run` starts. arguments: options of the app by name; others come from the environment.

    Connects to the cluster at RAY_ADDRESS, or starts one on this machine.
    """
    options = suite.parse_options([f"--{name}={value}" for name, value in arguments.items()])
    if options.share:
        raise ValueError("--share opens a tunnel to one process and is not for Ray Serve. Leave it out.")
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address, namespace="serve", include_dashboard=None if address else False)
    serve.start(http_options={"host": options.host, "port": options.port})
    return build(options, read_settings(os.environ.get(SETTINGS)))


def build(options: AppOptions, settings: Mapping[str, Mapping[str, Any]]) -> Application:
    """The page bound to its models. settings: options of Ray Serve by slug, see `read_settings`."""
    models = known_models(options)
    placed = {slug: _placed(slug, settings.get(slug, {})) for slug in models}
    environment = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False"}  # a tab's functions come from its module
    if options.tier == "embedded":
        environment |= {"HF_HUB_OFFLINE": "1"}
    deployment: Any = serve.deployment  # its types know no keyword arguments beside a class
    bound = [
        deployment(Replica, name=slug, **placed[slug]).bind(each, options.memory_limit, options.device, environment)
        for slug, each in models.items()
    ]
    return page(options, {slug: _most(placed[slug]) for slug in models}).bind(*bound)


def known_models(options: AppOptions) -> dict[str, list[Model]]:
    """The models that the tabs register, by slug. The tabs are laid out once for it; nothing is loaded."""
    runtime = Runtime(device="cpu")
    suite.build_app(options, runtime)
    found: dict[str, list[Model]] = {}
    for handle in runtime.handles():
        model = Model(handle.name, handle.loader, handle.estimate_bytes, handle.description)
        found.setdefault(slug_of(handle.name), []).append(model)
    return found


def page(options: AppOptions, replicas: Mapping[str, int]) -> serve.Deployment:
    """The deployment of the page: exactly one process, as Gradio's queue and its visitors' state live in one.

    replicas: of each demo's models, at most.
    """

    def build_page() -> FastAPI:
        return asgi(options, replicas)

    as_deployment: Any = serve.deployment(  # its types do not know classes that `ingress` makes
        serve.ingress(build_page)(),
        name=PAGE,
        num_replicas=1,
        max_ongoing_requests=2000,  # every open page holds a stream or two
        ray_actor_options={"num_cpus": 0},
        logging_config=QUIET,
    )
    return as_deployment


def asgi(options: AppOptions, replicas: Mapping[str, int]) -> FastAPI:
    """The page as an ASGI app, made in its replica."""
    context = serve.get_replica_context()
    assert_alone(context.world_size)
    suite.prepare_process(options)
    import gradio as gr
    from fastapi import FastAPI

    runtime = RemoteRuntime({slug: serve.get_deployment_handle(slug, context.app_name) for slug in replicas})
    blocks = suite.build_app(options, runtime)
    for event in blocks.fns.values():
        if isinstance(event.concurrency_limit, int):
            event.concurrency_limit *= replicas.get(_slug_of_event(event, replicas), 1)
    launch = suite.launch_arguments(options)
    blocks.state_session_capacity = launch["state_session_capacity"]
    return gr.mount_gradio_app(FastAPI(), blocks, "/", **{name: launch[name] for name in MOUNTED})


def assert_alone(pages: int) -> None:
    """Raises RuntimeError if there is more than one page."""
    if pages != 1:
        raise RuntimeError(
            f"The deployment {PAGE!r} has {pages} replicas. It must have one: a visitor's queue and state are in its "
            "memory. Give the models more replicas instead."
        )


def read_settings(path: str | None) -> dict[str, dict[str, Any]]:
    """Options of Ray Serve for the models of each demo, from a YAML file; none without a file.

    Raises ValueError naming what is unknown, or not in the form it must have.
    """
    if not path:
        return {}
    read = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    slugs = [demo.slug for demo in suite.DEMOS]
    if not isinstance(read, dict) or not all(isinstance(each, dict) for each in read.values()):
        raise ValueError(f"{Path(path).name} must name demos, and under each its options; see deploy/README.md.")
    for slug, given in read.items():
        if slug not in slugs:
            raise ValueError(f"{Path(path).name}: there are no models of {slug!r}. Known: {', '.join(slugs)}.")
        if unknown := sorted(set(given) - set(KNOWN)):
            raise ValueError(f"{Path(path).name}: {slug} has {', '.join(unknown)}. Known: {', '.join(KNOWN)}.")
    return read


def _placed(slug: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the deployment of a demo's models."""
    resources: dict[str, Any] = {"num_cpus": CPUS}
    if ray.is_initialized() and ray.cluster_resources().get("GPU"):
        resources["num_gpus"] = GPUS.get(slug, 0)
    several = {} if "autoscaling_config" in given else {"num_replicas": 1}
    return (
        DEFAULTS
        | {"logging_config": QUIET}
        | several
        | dict(given)
        | {"ray_actor_options": resources | given.get("ray_actor_options", {})}
    )


def _most(placed: Mapping[str, Any]) -> int:
    """How many replicas there can be."""
    scaled = placed.get("autoscaling_config")
    return int(scaled.get("max_replicas", 1) if scaled else placed["num_replicas"])


def _slug_of_event(event: Any, slugs: Mapping[str, int]) -> str:
    """Which demo an event of the page is of; "" for none."""
    names = (str(event.concurrency_id), str(event.api_name))
    return next((slug for slug in slugs if any(name.startswith(slug) for name in names)), "")
