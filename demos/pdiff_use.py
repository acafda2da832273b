"""Using a generated network: draw a digit, drop a picture, take a test picture, download it."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demos import parts
from demos.pdiff_parts import Generated, Handles, kept
from demos.sketch import sketchpad
from models.errors import BadInput
from models.runtime import Report

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from models.pdiff.pipeline import Pipeline

SEEN_SIDE = 200  # px, about
Looked = dict[str, Any]  # what the networks look at: zoo, x (1, C, H, W), note


def use_panel(handles: Handles, state: gr.State, zoo: gr.Dropdown, most: int) -> gr.Slider:
    """Lays out the panel. `state` holds the visitor's networks; the slider that picks one is returned."""
    gr.Markdown("### Use one of them")
    looked = gr.State(None, time_to_live=3600)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            number = gr.Slider(0, most - 1, 0, step=1, label="Network", elem_id="pdiff-number")
            example = gr.Button("A test picture", elem_id="pdiff-example")
            download = gr.DownloadButton("Download as safetensors", interactive=False, elem_id="pdiff-download")
            picture = parts.image_file(
                label="Or a picture", sources=["upload", "clipboard"], elem_id="pdiff-picture", height=210
            )
        with gr.Column(scale=2, min_width=320):
            with gr.Column(min_width=320) as canvas:
                sketch = sketchpad(
                    label="Draw a digit", canvas_size=(320, 320), elem_id="pdiff-sketch", layers=False,
                    brush=gr.Brush(default_size=26, colors=["#000000"], color_mode="fixed"), sources=(),
                )  # fmt: skip
            seen = gr.Image(
                label="What the networks see", interactive=False, height=SEEN_SIDE + 20, elem_id="pdiff-seen",
                format="png", buttons=[],
            )  # fmt: skip
        with gr.Column(scale=2, min_width=320):
            said = gr.Markdown(
                "Generate first, then draw or drop a picture. The noisy digits have 8 x 8 pixels; the MNIST zoo reads "
                "drawings better.",
                elem_id="pdiff-said", min_height=50,
            )  # fmt: skip
            ours = gr.Label(label="The generated network says", num_top_classes=3, elem_id="pdiff-ours")
            original = gr.Label(label="The first original says", num_top_classes=3, elem_id="pdiff-original")
    answers: list[Any] = [ours, original, said]
    outputs = [*answers, seen, looked]

    @parts.user_errors
    def predict_drawing(state: Generated | None, number: float, drawing: bytes | str | None) -> tuple[Any, ...]:
        from models.images import read_image

        picture = None if drawing is None else read_image(drawing)
        if picture is None or _blank(picture):
            return None, None, "Draw a digit with a thick line.", None, None
        return _look(handles, kept(state), number, picture)

    @parts.user_errors
    def predict_picture(state: Generated | None, number: float, path: str | None) -> tuple[Any, ...]:
        from models.images import read_image

        if path is None:
            return None, None, "", None, None
        return _look(handles, kept(state), number, read_image(path))

    @parts.user_errors
    def predict_example(state: Generated | None, number: float) -> tuple[Any, ...]:
        return _look(handles, kept(state), number, None)

    @parts.user_errors
    def predict_again(state: Generated | None, number: float, looked: Looked | None) -> tuple[Any, ...]:
        if state is None or looked is None or looked["zoo"] != state["zoo"]:
            return None, None, "Draw or drop a picture, or take a test picture."
        return _answers(handles, state, number, looked)

    @parts.user_errors
    def offer_download(state: Generated | None, number: float) -> Any:
        if state is None:
            return gr.DownloadButton(interactive=False)
        index = _index(state, number)
        path = parts.private_folder() / f"{state['zoo']}-generated-{index}.safetensors"
        path.write_bytes(handles[state["zoo"]].run(partial(_file, _latent(state, index))))
        return gr.DownloadButton(value=str(path), interactive=True)

    quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 4}
    sketch.change(
        predict_drawing, [state, number, sketch], outputs, api_name="pdiff_draw", trigger_mode="always_last", **quick
    )
    picture.change(predict_picture, [state, number, picture], outputs, api_name="pdiff_picture", **quick)
    example.click(predict_example, [state, number], outputs, api_name="pdiff_example", **quick)
    picked = [state.change, number.release]
    gr.on(picked, predict_again, [state, number, looked], answers, api_name="pdiff_again", **quick)
    gr.on(picked, offer_download, [state, number], download, api_name="pdiff_file", **quick)
    zoo.change(
        lambda zoo: gr.Column(visible=not str(zoo).startswith("emoji")),
        zoo, canvas, api_name="pdiff_sketch", queue=False, show_progress="hidden",
    )  # fmt: skip
    return number


def _look(handles: Handles, state: Generated, number: float, picture: Image.Image | None) -> tuple[Any, ...]:
    """Answers for a picture, or without one for a test picture; what is seen of it; and that kept."""
    _index(state, number)
    chosen = time.time_ns() // 1_000_000 * 7919
    x, note = handles[state["zoo"]].run(partial(_prepared, picture, chosen))
    looked: Looked = {"zoo": state["zoo"], "x": x, "note": note}
    return *_answers(handles, state, number, looked), _shown(x), looked


def _answers(handles: Handles, state: Generated, number: float, looked: Looked) -> tuple[Any, Any, str]:
    """Probabilities of the generated network and of the first original, and a line about them."""
    index = _index(state, number)
    ours, theirs = handles[state["zoo"]].run(partial(_predicted, _latent(state, index), looked["x"]))
    return ours, theirs, f"Network {index}: {state['accuracy'][index]:.2f} % on the test set.{looked['note']}"


# The next three run where the zoo is. A latent is (1, d) float32, a prepared picture (1, C, H, W) float32.


def _prepared(picture: Image.Image | None, chosen: int, pipeline: Pipeline, report: Report) -> tuple[np.ndarray, str]:
    """A picture as the networks see it, or without one the `chosen`-th test picture, counted around; and its note."""
    from models.pdiff.data import prepare

    if picture is not None:
        return prepare(pipeline.data.name, picture).numpy(), ""
    chosen %= len(pipeline.data.test_y)
    truth = pipeline.classes[int(pipeline.data.test_y[chosen])]
    return pipeline.data.test_x[chosen : chosen + 1].numpy(), f" Test picture {chosen}: **{truth}**."


def _predicted(latent: np.ndarray, x: np.ndarray, pipeline: Pipeline, report: Report) -> list[dict[str, float]]:
    """Probabilities by class, of the generated network and of the first original."""
    import torch

    vectors = _vector(pipeline, latent), pipeline.originals.vectors[0]
    answers = (pipeline.predict_prepared(vector, torch.from_numpy(x)).tolist() for vector in vectors)
    return [dict(zip(pipeline.classes, answer, strict=True)) for answer in answers]


def _file(latent: np.ndarray, pipeline: Pipeline, report: Report) -> bytes:
    """The generated network as a safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        pipeline.save_checkpoint(_vector(pipeline, latent), path)
        return path.read_bytes()


def _shown(x: np.ndarray) -> np.ndarray:
    """A prepared picture, (1, C, H, W), about 200 pixels large with its own pixels visible, framed; (S, S, 3) uint8."""
    import numpy as np

    picture = np.clip(x[0].transpose(1, 2, 0) * 255, 0, 255).astype(np.uint8)  # added noise reaches beyond 0..1
    times = max(1, SEEN_SIDE // picture.shape[0])
    picture = picture.repeat(times, 0).repeat(times, 1)
    if picture.shape[2] == 1:
        picture = picture.repeat(3, 2)
    return np.pad(picture, ((4, 4), (4, 4), (0, 0)), constant_values=128)


def _vector(pipeline: Pipeline, latent: np.ndarray) -> Any:
    import torch

    return pipeline.decode(torch.from_numpy(latent)).vectors[0]


def _latent(state: Generated, index: int) -> np.ndarray:
    return state["latents"][index : index + 1]


def _index(state: Generated, number: Any) -> int:
    index = parts.whole("The network's number", number)
    if not 0 <= index < len(state["latents"]):
        raise BadInput(
            f"There are {len(state['latents'])} generated networks, from 0. Number {index} is not among them."
        )
    return index


def _blank(picture: Image.Image) -> bool:
    """True for an untouched canvas, which is transparent and so was laid on white."""
    return picture.convert("L").getextrema()[0] == 255
