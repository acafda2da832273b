"""The P-diff tab: networks from noise, how new they are, the whole pipeline live, evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.pdiff_evidence import show_evidence
from demos.registry import AppOptions, demo
from models import pdiff
from models.errors import BadInput, Cancelled
from models.runtime import Handle, Runtime

if TYPE_CHECKING:
    from PIL import Image

    from models.pdiff.pipeline import Checkpoints, Pipeline

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "pdiff"
# Titles here so that opening the page needs no torch; a test compares them with models.pdiff.zoo.ZOOS.
ZOOS = {
    "digits-q": "Noisy digits, MLP: batch norms",
    "digits-f": "Noisy digits, small MLP: all of it",
    "mnist-cnn": "MNIST, CNN: all of it",
    "emoji-bn": "Emoji, ConvNet: batch norms",
    "digits-x": "Failure: 60 separate networks",
}
SAMPLERS = {
    "ddim-20": "DDIM, 20 steps",
    "ddim-50": "DDIM, 50 steps",
    "ddpm-1000": "DDPM, 1 000 steps, as in the paper",
}
MOST, DEFAULT, COMPARED, NOISY = 1000, 100, 30, 0.5
ZOO_BYTES = 200_000_000
FRAME_SECONDS = 0.7
# Gradio's sketchpad opens without a tool in hand.
PICK_BRUSH = """() => document.querySelector('#pdiff-sketch button[aria-label="Brush"]')?.click()"""
JOBS: dict[str, Any] = {"concurrency_id": "pdiff", "concurrency_limit": 1}
Handles = Mapping[str, Handle]


@dataclass(frozen=True)
class Order:
    """What the Generate controls hold, checked: over the API anything can arrive."""

    zoo: str
    count: int
    seed: int
    sampler: str

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Order:
        zoo, count, seed, sampler = values
        if zoo not in ZOOS or sampler not in SAMPLERS:
            raise BadInput(f"Choose a zoo of {', '.join(ZOOS)} and a sampler of {', '.join(SAMPLERS)}.")
        numbers = _whole("The number of networks", count), _whole("The seed", seed)
        if not 1 <= numbers[0] <= MOST:
            raise BadInput(f"Generate between 1 and {MOST} networks; got {numbers[0]}.")
        return cls(zoo, *numbers, sampler)


def build(options: AppOptions, runtime: Runtime) -> None:
    """Lays out the tab and wires its events. Called inside the demo's `gr.Tab`."""
    handles = {
        zoo: runtime.register(f"pdiff-{zoo}", pdiff.loader(zoo), estimate_bytes=ZOO_BYTES, description=title)
        for zoo, title in ZOOS.items()
    }
    parts.paper_card(demo("pdiff"))
    state = gr.State(None, time_to_live=3600)  # zoo, latents, accuracies, wrong predictions as bits
    with gr.Tabs():
        with gr.Tab("Generate"):
            zoo = _generate_tab(handles, state)
        with gr.Tab("How new is it?"):
            _novelty_tab(handles, state)
        with gr.Tab("Live pipeline"):
            _live_tab()
        with gr.Tab("Evidence"):
            show_evidence(ASSETS / "evidence")
        with gr.Tab("How it works"):
            _explanation()
    line = gr.HTML(parts.status_html(handles[pdiff.DEFAULT_ZOO]), elem_id="pdiff-status", padding=False)
    gr.on(
        [gr.Timer(5.0).tick, zoo.change],
        lambda zoo: parts.status_html(handles[zoo if zoo in ZOOS else pdiff.DEFAULT_ZOO]),
        zoo,
        line,
        api_name="pdiff_status",
        show_progress="hidden",
        queue=False,
    )


# ---- generate ---------------------------------------------------------------------------------------------


def _generate_tab(handles: Handles, state: gr.State) -> gr.Dropdown:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            zoo = gr.Dropdown([(title, name) for name, title in ZOOS.items()], value=pdiff.DEFAULT_ZOO, label="Zoo")
            count = gr.Slider(1, MOST, DEFAULT, step=1, label="Networks to generate")
            seed = gr.Number(0, precision=0, label="Seed")
            sampler = gr.Radio([(title, name) for name, title in SAMPLERS.items()], value="ddim-50", label="Sampler")
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="pdiff-run")
                stop = gr.Button("Cancel", variant="stop", elem_id="pdiff-cancel")
        with gr.Column(scale=3):
            progress = gr.HTML(
                "<p>Press Generate: parameters come out of noise, become networks, and every one is tested.</p>",
                elem_id="pdiff-progress",
            )
            with gr.Row():
                latents = gr.Plot(label="Latents, from noise to networks", show_label=False, elem_id="pdiff-latents")
                accuracy = gr.Plot(label="Accuracy of every network", show_label=False, elem_id="pdiff-accuracy")
            summary = gr.HTML(elem_id="pdiff-summary")
    cancel = parts.cancel_by(stop, "pdiff_cancel")
    number = _use_panel(handles, state, zoo)

    @parts.user_errors
    def generate_networks(cancel: parts.Cancel, *values: Any) -> Iterator[tuple[Any, ...]]:
        order = Order.of(values)
        cancel["asked"] = False
        yield from _generate(handles[order.zoo], order, cancel)

    run.click(
        generate_networks, [cancel, zoo, count, seed, sampler], [progress, latents, accuracy, summary, number, state],
        **JOBS, api_name="pdiff_generate", show_progress="minimal", show_progress_on=progress,
    )  # fmt: skip
    run.click(None, js=PICK_BRUSH)
    return zoo


def _generate(handle: Handle, order: Order, cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    """Latents on their way, then the tested networks. Outputs as `_generate_tab` lists them."""
    from demos.pdiff_plots import accuracy_figure, latent_figure

    still = (gr.skip(),) * 6
    yield "<p>Loading the zoo</p>", *still[1:]
    with handle.use(gr.Progress()) as pipeline:
        originals = pipeline.project(pipeline.original_latents).numpy()
        result: dict[str, Any] = {}
        try:
            for event in parts.streamed(lambda report: _work(pipeline, order, result, report), cancel):
                picture = gr.skip()
                if event["latents"] is not None:
                    picture = latent_figure(event["latents"], originals, event["text"])
                yield _bar(event["text"], event["done"], event["total"]), picture, *still[2:]
        except Cancelled:
            yield "<p>Cancelled. Nothing was kept.</p>", *still[1:]
            return
        groups, ensemble = result["groups"], result["ensemble"]
        final = latent_figure(result["latents2d"], originals, f"{order.count} generated networks")
    best = int(result["state"]["accuracy"].argmax())
    yield (
        f"<p>Done: generated in {result['seconds'][0]:.1f} s, tested in {result['seconds'][1]:.1f} s.</p>",
        final,
        accuracy_figure(groups, ensemble),
        _summary({**groups, "ensemble": ensemble}),
        gr.Slider(value=best, maximum=max(order.count - 1, 1), label=f"Generated network (best: {best})"),
        result["state"],
    )


def _work(pipeline: Pipeline, order: Order, result: dict[str, Any], report: Callable[[Any], None]) -> None:
    """Runs in a thread: samples, decodes, tests. Fills `result`."""
    import numpy as np

    from models.pdiff import measures
    from models.pdiff.pipeline import Checkpoints

    started = time.perf_counter()
    name, steps = order.sampler.split("-")
    shown = 0.0

    def step(done: int, total: int, latents: Any) -> None:
        nonlocal shown
        due = time.perf_counter() - shown > FRAME_SECONDS
        if due:
            shown = time.perf_counter()
        report({"text": f"Denoising, step {done} of {total}", "done": done, "total": total,
                "latents": pipeline.project(latents).numpy() if due else None})  # fmt: skip

    made = pipeline.generate(order.count, order.seed, int(steps), name == "ddpm", step)
    sampled = time.perf_counter()

    def test(done: int, total: int) -> None:
        report({"text": f"Testing network {done} of {total} on {len(pipeline.data.test_y):,} pictures",
                "done": done, "total": total, "latents": None})  # fmt: skip

    wrong = pipeline.wrong(made, test)
    tested = time.perf_counter()
    noise = Checkpoints(measures.noised(pipeline.originals.vectors, COMPARED, NOISY, order.seed), "noise")
    groups = {
        "originals": measures.accuracies(pipeline.original_wrong).numpy(),
        "generated": measures.accuracies(wrong).numpy(),
        "noise": measures.accuracies(pipeline.wrong(noise, test)).numpy(),
    }
    assert made.latents is not None
    result |= {
        "groups": groups,
        "ensemble": float(pipeline.evaluate(pipeline.ensemble())[0]),
        "latents2d": pipeline.project(made.latents).numpy(),
        "seconds": (sampled - started, tested - sampled),
        "state": {"zoo": order.zoo, "latents": made.latents.numpy(), "accuracy": groups["generated"],
                  "wrong": np.packbits(wrong.numpy(), axis=1)},
    }  # fmt: skip


def _summary(groups: Mapping[str, Any]) -> str:
    """Best, mean and worst of each group. HTML."""
    import numpy as np

    names = {
        "noise": f"originals + noise ({NOISY} of each parameter's spread)",
        "ensemble": "ensemble (average of all originals)",
    }
    rows = ""
    for name, values in groups.items():
        a = np.atleast_1d(values)
        cells = "".join(f'<td class="lp-here">{value:.2f}</td>' for value in (a.max(), a.mean(), a.min()))
        rows += f'<tr><th scope="row">{escape(names.get(name, name))}</th><td>{len(a)}</td>{cells}</tr>'
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Networks", "How many", "Best", "Mean", "Worst"))
    return (
        '<div class="lp-evidence"><table><caption>Test accuracy in percent, measured now</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _bar(text: str, done: int, total: int) -> str:
    return f'<p><progress max="{total}" value="{done}"></progress> {escape(text)}</p>'


# ---- use one ----------------------------------------------------------------------------------------------


def _use_panel(handles: Handles, state: gr.State, zoo: gr.Dropdown) -> gr.Slider:
    gr.Markdown("### Use one of them")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            number = gr.Slider(0, MOST - 1, 0, step=1, label="Generated network", elem_id="pdiff-number")
            example = gr.Button("A test picture", elem_id="pdiff-example")
            download = gr.DownloadButton("Download as safetensors", interactive=False, elem_id="pdiff-download")
        with gr.Column(scale=2, min_width=320):
            sketch = gr.Sketchpad(
                type="pil", label="Draw a digit", canvas_size=(320, 320), elem_id="pdiff-sketch", layers=False,
                brush=gr.Brush(default_size=26, colors=["#000000"], color_mode="fixed"), sources=(),
            )  # fmt: skip
            picture = parts.image_file(label="Or a picture", sources=["upload", "clipboard"], elem_id="pdiff-picture")
        with gr.Column(scale=2, min_width=320):
            said = gr.Markdown("Generate first, then draw or drop a picture.", elem_id="pdiff-said")
            ours = gr.Label(label="The generated network says", num_top_classes=3, elem_id="pdiff-ours")
            original = gr.Label(label="An original says", num_top_classes=3, elem_id="pdiff-original")
    outputs: list[Any] = [ours, original, said]

    @parts.user_errors
    def predict_drawing(state: dict | None, number: float, drawing: Any) -> tuple[Any, ...]:
        from models.images import read_image

        if not isinstance(drawing, dict) or drawing.get("composite") is None or _blank(drawing["composite"]):
            return None, None, "Draw a digit with a thick line."
        return _predict(handles, _kept(state), number, read_image(drawing["composite"]))

    @parts.user_errors
    def predict_picture(state: dict | None, number: float, path: str | None) -> tuple[Any, ...]:
        from models.images import read_image

        if path is None:
            return None, None, ""
        return _predict(handles, _kept(state), number, read_image(path))

    @parts.user_errors
    def predict_example(state: dict | None, number: float) -> tuple[Any, ...]:
        return _predict(handles, _kept(state), number, None)

    quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 4}
    sketch.change(
        predict_drawing, [state, number, sketch], outputs, api_name="pdiff_draw", trigger_mode="always_last", **quick
    )
    picture.change(predict_picture, [state, number, picture], outputs, api_name="pdiff_picture", **quick)
    example.click(predict_example, [state, number], outputs, api_name="pdiff_example", **quick)

    @parts.user_errors
    def offer_download(state: dict | None, number: float) -> Any:
        if state is None:
            return gr.DownloadButton(interactive=False)
        index = _index(state, number)
        with handles[state["zoo"]].use() as pipeline:
            path = parts.private_folder() / f"{state['zoo']}-generated-{index}.safetensors"
            pipeline.save_checkpoint(_vector(pipeline, state, index), path)
        return gr.DownloadButton(value=str(path), interactive=True)

    gr.on([state.change, number.release], offer_download, [state, number], download, api_name="pdiff_file", **quick)
    zoo.change(
        lambda zoo: gr.Sketchpad(visible=not str(zoo).startswith("emoji")),
        zoo, sketch, api_name="pdiff_sketch", queue=False, show_progress="hidden",
    )  # fmt: skip
    return number


def _predict(handles: Handles, state: dict, number: float, picture: Image.Image | None) -> tuple[Any, ...]:
    """Probabilities of the generated network and of the first original; without a picture, of a test picture."""
    index = _index(state, number)
    with handles[state["zoo"]].use() as pipeline:
        note = f"Network {index}: {state['accuracy'][index]:.2f} % on the test set."
        if picture is None:
            chosen = (index * 7919 + time.time_ns() // 1_000_000) % len(pipeline.data.test_y)
            x = pipeline.data.test_x[chosen : chosen + 1]
            note += f" Test picture {chosen}: **{pipeline.classes[int(pipeline.data.test_y[chosen])]}**."
        else:
            from models.pdiff.data import prepare

            x = prepare(pipeline.data.name, picture)
        vectors = _vector(pipeline, state, index), pipeline.originals.vectors[0]
        both = [pipeline.predict_prepared(vector, x).tolist() for vector in vectors]
        ours, theirs = (dict(zip(pipeline.classes, p, strict=True)) for p in both)
    return ours, theirs, note


def _vector(pipeline: Pipeline, state: dict, index: int) -> Any:
    import torch

    return pipeline.decode(torch.from_numpy(state["latents"][index : index + 1])).vectors[0]


def _kept(state: dict | None) -> dict:
    if state is None:
        raise BadInput("There is no generated network yet. Press Generate first.")
    return state


def _index(state: dict, number: Any) -> int:
    index = _whole("The network's number", number)
    if not 0 <= index < len(state["latents"]):
        raise BadInput(
            f"There are {len(state['latents'])} generated networks, from 0. Number {index} is not among them."
        )
    return index


def _whole(what: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{what} must be a whole number.") from error
    if number != value:
        raise BadInput(f"{what} must be a whole number; got {value}.")
    return number


def _blank(picture: Image.Image) -> bool:
    """True for an untouched canvas, which is transparent."""
    alpha = picture.convert("RGBA").getchannel("A")
    return alpha.getextrema()[1] == 0


# ---- how new ----------------------------------------------------------------------------------------------


def _novelty_tab(handles: Handles, state: gr.State) -> None:
    gr.Markdown(
        "Two networks are alike if they get the same pictures wrong (IoU of wrong predictions), or if their "
        "parameters are close. A later critique (Zeng et al. 2025) asks whether P-diff does more than simple baselines "
        f"that need no generative model. Here are {COMPARED} of each beside the networks you generated."
    )
    compare = gr.Button("Compare", variant="primary", elem_id="pdiff-compare")
    progress = gr.HTML(elem_id="pdiff-compared")
    scatter = gr.Plot(label="Novelty against accuracy", show_label=False, elem_id="pdiff-novelty")
    bars = gr.Plot(label="How alike, between and within groups", show_label=False, elem_id="pdiff-bars")
    table = gr.HTML(elem_id="pdiff-novelty-table")

    @parts.user_errors
    def compare_networks(state: dict | None) -> Iterator[tuple[Any, ...]]:
        kept = _kept(state)
        still = (gr.skip(),) * 3
        yield "<p>Testing the baselines</p>", *still
        with handles[kept["zoo"]].use(gr.Progress()) as pipeline:
            yield _compare(pipeline, kept)

    compare.click(compare_networks, state, [progress, scatter, bars, table], **JOBS, api_name="pdiff_novelty")


def _compare(pipeline: Pipeline, state: dict) -> tuple[Any, ...]:
    import numpy as np
    import torch

    from demos.pdiff_plots import bars_figure, novelty_figure
    from models.pdiff import measures

    n = len(pipeline.data.test_y)
    wrong = torch.from_numpy(np.unpackbits(state["wrong"], axis=1, count=n).astype(bool))
    made = pipeline.decode(torch.from_numpy(state["latents"]))
    scale = pipeline.noise_as_good(float(measures.accuracies(pipeline.original_wrong).mean()) - 0.1)
    others = pipeline.baselines(COMPARED, noise_scale=scale or NOISY)
    tested: dict[str, tuple[Checkpoints, torch.Tensor]] = {
        "originals": (pipeline.originals, pipeline.original_wrong),
        "generated": (made, wrong),
        **{name: (group, pipeline.wrong(group)) for name, group in others.items()},
    }
    groups, similarities = {}, {}
    for name, (group, errors) in tested.items():
        own = name == "originals"
        similar = measures.similarity(errors, pipeline.original_wrong)
        distance = measures.nearest(group.vectors, pipeline.originals.vectors, own)
        values = measures.accuracies(errors), measures.max_similarity(similar, own), distance
        groups[name] = (values[0].numpy(), values[1].numpy(), values[2].numpy())
        similarities[name] = similar
    among = measures.similarity(wrong, wrong)
    bars = {
        "among originals": float(measures.off_diagonal(similarities["originals"]).mean()),
        "among generated": float(measures.off_diagonal(among).mean()) if len(among) > 1 else 1.0,
        "generated with originals": float(similarities["generated"].mean()),
        "generated with the nearest original": float(groups["generated"][1].mean()),
        "noise with the nearest original": float(groups["noise"][1].mean()),
    }
    return _verdict(groups, scale), novelty_figure(groups), bars_figure(bars), _novelty_table(groups, scale)


def _verdict(groups: Mapping[str, Any], scale: float) -> str:
    """What the figures say, in one sentence each."""
    mean = {name: [float(v.mean()) for v in values] for name, values in groups.items()}
    accuracy, similar, distance = mean["generated"]
    lines = []
    if accuracy < mean["originals"][0] - 5:
        lines.append("The generated networks do not work: this collection cannot be learned.")
    elif scale and distance > mean["noise"][2]:
        lines.append(
            f"Generated networks are farther from every original ({distance:.2f}) than originals with as much noise as "
            f"they bear ({mean['noise'][2]:.2f}), at accuracy {accuracy:.2f} against {mean['noise'][0]:.2f} %."
        )
    else:
        lines.append("Generated networks are no farther from the originals than noise of equal accuracy.")
    simple = min(("mean of 16", "gaussian"), key=lambda name: abs(mean[name][1] - similar))
    lines.append(
        f"The baseline most like them is “{simple}”: {mean[simple][0]:.2f} %, similarity {mean[simple][1]:.3f} against "
        f"{accuracy:.2f} % and {similar:.3f}. It needs no generative model."
    )
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _novelty_table(groups: Mapping[str, Any], scale: float) -> str:
    names = {"noise": f"originals + noise ({scale or NOISY} of the spread)"}
    rows = "".join(
        f'<tr><th scope="row">{escape(names.get(name, name))}</th>'
        + "".join(f'<td class="lp-here">{values[i].mean():.{digits}f}</td>' for i, digits in ((0, 2), (1, 3), (2, 2)))
        + "</tr>"
        for name, values in groups.items()
    )
    titles = ("Networks", "Accuracy (%)", "Largest IoU with an original", "Distance to the nearest original")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        '<div class="lp-evidence"><table><caption>Means over each group, measured now</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


# ---- live pipeline ----------------------------------------------------------------------------------------


def _live_tab() -> None:
    gr.Markdown(
        "Everything from nothing, in front of you: train a network on noisy digits, keep a checkpoint after each step, "
        "learn an autoencoder and a latent diffusion on them, generate new networks, test them."
    )
    with gr.Row():
        checkpoints = gr.Slider(50, 300, 300, step=50, label="Checkpoints to collect (K)")
        seed = gr.Number(1, precision=0, label="Seed")
        run = gr.Button("Run everything", variant="primary", elem_id="pdiff-live")
        stop = gr.Button("Cancel", variant="stop", elem_id="pdiff-live-cancel")
    progress = gr.HTML("<p>Takes about two minutes on two cores.</p>", elem_id="pdiff-live-progress")
    curves = gr.Plot(label="Losses", show_label=False, elem_id="pdiff-curves")
    accuracy = gr.Plot(label="Accuracy of every network", show_label=False, elem_id="pdiff-live-accuracy")
    summary = gr.HTML(elem_id="pdiff-live-summary")
    cancel = parts.cancel_by(stop, "pdiff_live_cancel")

    @parts.user_errors
    def run_live(cancel: parts.Cancel, checkpoints: float, seed: float) -> Iterator[tuple[Any, ...]]:
        count, number = _whole("The number of checkpoints", checkpoints), _whole("The seed", seed)
        if not 50 <= count <= 300:
            raise BadInput(f"Collect between 50 and 300 checkpoints; got {count}.")
        cancel["asked"] = False
        yield from _live(count, number, cancel)

    run.click(
        run_live, [cancel, checkpoints, seed], [progress, curves, accuracy, summary], **JOBS, api_name="pdiff_live",
        show_progress="minimal", show_progress_on=progress,
    )  # fmt: skip


def _live(count: int, seed: int, cancel: parts.Cancel) -> Iterator[tuple[Any, ...]]:
    from demos.pdiff_plots import accuracy_figure, curves_figure
    from models.pdiff.train import Progress

    started = time.perf_counter()
    losses: dict[str, list[float]] = {}
    drawn = 0.0
    names = {"collect": "Training and collecting", "autoencoder": "Autoencoder", "diffusion": "Latent diffusion"}
    result: dict[str, Any] = {}
    try:
        for event in parts.streamed(lambda report: _run_live(count, seed, result, report), cancel):
            if isinstance(event, Progress):
                losses.setdefault(event.stage, []).append(event.loss)
            if time.perf_counter() - drawn > 1.5:
                drawn = time.perf_counter()
                bar = _bar(str(event), 1, 1)
                if isinstance(event, Progress):
                    text = f"{names[event.stage]}, step {event.step} of {event.total}"
                    bar = _bar(text, event.step, event.total)
                yield bar, curves_figure(losses), gr.skip(), gr.skip()
    except Cancelled:
        yield "<p>Cancelled.</p>", curves_figure(losses), None, ""
        return
    groups, ensemble = result["groups"], result["ensemble"]
    yield (
        f"<p>Done in {time.perf_counter() - started:.0f} s: from no network at all to {DEFAULT} new ones.</p>",
        curves_figure(losses),
        accuracy_figure(groups, ensemble),
        _summary({**groups, "ensemble": ensemble}),
    )


def _run_live(count: int, seed: int, result: dict[str, Any], report: Callable[[Any], None]) -> None:
    """Runs in a thread: the whole pipeline of the smallest zoo."""
    from models.pdiff import data, measures
    from models.pdiff.collect import collect
    from models.pdiff.pipeline import Pipeline
    from models.pdiff.train import LIVE, Progress, fit
    from models.pdiff.zoo import ZOOS as RECIPES
    from models.pdiff.zoo import Zoo

    recipe = RECIPES[pdiff.DEFAULT_ZOO]
    source = data.load(recipe.data)
    collection = collect(
        recipe.network, source, recipe.kind, count, seed,
        report=lambda step, total, loss: report(Progress("collect", step, total, loss)),
    )  # fmt: skip
    generator = fit(collection, LIVE, seed, report)
    pipeline = Pipeline("live", Zoo(collection, generator, {}), source)
    made = pipeline.generate(DEFAULT, seed, 50, on_step=lambda done, total, _: report(f"Denoising {done} of {total}"))
    wrong = pipeline.wrong(made, lambda done, total: report(f"Testing generated network {done} of {total}"))
    originals = pipeline.evaluator.wrong(
        pipeline.originals.vectors, lambda done, total: report(f"Testing original {done} of {total}")
    )
    result |= {
        "groups": {
            "originals": measures.accuracies(originals).numpy(),
            "generated": measures.accuracies(wrong).numpy(),
        },
        "ensemble": float(pipeline.evaluate(pipeline.ensemble())[0]),
    }


# ---- explanation ------------------------------------------------------------------------------------------


def _explanation() -> None:
    gr.Markdown(
        "**The idea.** Train a network, then keep training a few of its parameters and save them after every step. "
        "These checkpoints are the data. An autoencoder squeezes each into a short latent; a diffusion model learns "
        "the latents. From noise it makes new latents, the decoder makes parameters of them, and the result is a "
        "network.\n\n"
        "**What to expect.** P-diff samples new parameters near the average of one training run. Averaging gains "
        "accuracy too, so compare with “mean of 16” and the ensemble. From networks of different seeds it learns "
        "nothing that works: their neurons are permuted, and what lies between two of them is no network.\n\n"
        "**Here** everything is trained by this project in small; no weights of the paper were published. The picture "
        "is drawn from the shapes of the networks this tab uses."
    )
    drawing = ASSETS / "how_it_works.png"
    if drawing.exists():
        gr.Image(str(drawing), show_label=False, interactive=False, alt_text="From checkpoints to latents and back")
