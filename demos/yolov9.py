"""The YOLOv9 tab: detection on the webcam, in a picture, in a video, with evidence and explanation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from demos import parts
from demos.registry import AppOptions, demo
from demos.yolov9_overlay import OVERLAY_CSS, OVERLAY_HTML, OVERLAY_JS
from models import yolov9
from models.errors import BadInput
from models.runtime import ModelHandle, ModelRuntime, Progress, Report
from models.yolov9.classes import COCO_NAMES

if TYPE_CHECKING:
    from models.yolov9.detections import Detections
    from models.yolov9.pipeline import Detector
    from models.yolov9.track import Tracker

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "yolov9"
SIZES = {"embedded": (128, 192, 256, 320, 416, 640), "official": (320, 416, 512, 640, 960, 1280)}
# The embedded weights were trained on small pictures: 128 for a card held up or one large object, 192 for scenes.
DEFAULT_SIZE = {"embedded": 128, "official": 640}
SIZE_HINT = {"embedded": "128 for one large object, 192 or 256 for scenes", "official": None}
EMBEDDED_BYTES, OFFICIAL_BYTES = 60_000_000, {"t": 60e6, "s": 110e6, "m": 220e6, "c": 300e6, "e": 500e6}
FORMATS = ("JSON", "CSV", "COCO", "YOLO")
SUFFIX = {"JSON": ".json", "CSV": ".csv", "COCO": ".json", "YOLO": ".txt"}
PREVIEW_SECONDS = 0.5
LOADING_SECONDS = 10.0  # Gradio ends a stream, without a word, whose first answer takes 30
# One group for the long jobs, so that a video cannot starve the webcams.
JOBS: dict[str, Any] = {"concurrency_id": "yolov9", "concurrency_limit": 2}


def build(options: AppOptions, runtime: ModelRuntime) -> None:
    """Lays out the tab and wires its events. Called inside the demo's `gr.Tab`."""
    handles = _register(options, runtime)
    parts.paper_card(demo("yolov9"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            settings = _settings(options, handles)
        with gr.Column(scale=3), gr.Tabs():
            with gr.Tab("Webcam"):
                _webcam_tab(handles, settings)
            with gr.Tab("Image"):
                _image_tab(handles, settings)
            with gr.Tab("Video"):
                _video_tab(handles, settings)
            with gr.Tab("Evidence"):
                _evidence()
            with gr.Tab("How it works"):
                _explanation()
    for handle in handles.values():
        parts.status_line(handle)


# ---- models and settings ----------------------------------------------------------------------------------


def _register(options: AppOptions, runtime: ModelRuntime) -> dict[str, ModelHandle]:
    """One lazy model a size that can be chosen in this tier."""
    if options.tier == "embedded":
        load = yolov9.loader("embedded")
        return {"t": runtime.register("yolov9", load, estimate_bytes=EMBEDDED_BYTES, description="YOLOv9-T")}
    found = [s for s in "tsmce" if options.weights_dir and _official_file(options.weights_dir, s)]
    return {
        size: runtime.register(
            f"yolov9-{size}",
            yolov9.loader("official", size, weights_dir=options.weights_dir),
            estimate_bytes=int(OFFICIAL_BYTES[size]),
            description=f"YOLOv9-{size.upper()}",
        )
        for size in found or ["c"]  # without any file the tab opens, and says at first use what to download
    }


def _official_file(folder: str, size: str) -> bool:
    return any(path.suffix in (".pt", ".safetensors") for path in Path(folder).glob(f"yolov9-{size}*"))


def _settings(options: AppOptions, handles: dict[str, ModelHandle]) -> list[gr.components.Component]:
    """The controls, in the order of `Settings`' fields."""
    weights = gr.Radio(
        [(handle.description, size) for size, handle in handles.items()],
        value=next(iter(handles)),
        label="Network",
        visible=len(handles) > 1,
    )
    confidence = gr.Slider(0, 1, 0.25, step=0.01, label="Confidence", info="Hide boxes scored below this")
    iou = gr.Slider(0, 1, 0.45, step=0.01, label="Overlap (IoU)", info="Merge boxes that overlap more")
    size = gr.Radio(
        list(SIZES[options.tier]),
        value=DEFAULT_SIZE[options.tier],
        label="Input size (px)",
        info=SIZE_HINT[options.tier],
    )
    classes = gr.Dropdown(
        [(name, i) for i, name in enumerate(COCO_NAMES)], multiselect=True, label="Only these classes"
    )
    track = gr.Checkbox(False, label="Number the objects (tracking)")
    with gr.Accordion("More", open=False):
        limit = gr.Slider(1, 300, 100, step=1, label="At most this many boxes")
        agnostic = gr.Checkbox(False, label="Let boxes of different classes merge")
        scores = gr.Checkbox(True, label="Show scores")
    return [weights, confidence, iou, size, classes, track, limit, agnostic, scores]


@dataclass(frozen=True)
class Settings:
    """What the controls hold, checked: over the API anything can arrive."""

    weights: str
    confidence: float
    iou: float
    size: int
    classes: list[int] | None
    track: bool
    limit: int
    agnostic: bool
    scores: bool

    @classmethod
    def of(cls, handles: dict[str, ModelHandle], values: tuple[Any, ...]) -> Settings:
        weights, confidence, iou, size, classes, track, limit, agnostic, scores = values
        if weights not in handles:
            raise BadInput(f"There is no network {weights!r} here. Choose one of {', '.join(handles)}.")
        try:
            numbers = float(confidence), float(iou), int(size), int(limit)
            wanted = [int(c) for c in classes] if classes else None
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput("A setting is not a number. Use the controls on the left.") from error
        confidence, iou, size, limit = numbers
        return cls(weights, confidence, iou, size, wanted, bool(track), limit, bool(agnostic), bool(scores))

    def detect(self, handle: ModelHandle, image: np.ndarray, progress: Progress | None = None) -> Detections:
        """Objects in a picture, (H, W, 3) uint8 RGB."""
        return handle.run(partial(_detect, self, image), progress=progress)


def _detect(chosen: Settings, image: np.ndarray, detector: Detector, report: Report) -> Detections:
    """Runs where the detector is."""
    c = chosen
    return detector.detect(image, c.confidence, c.iou, c.size, c.classes, c.limit, c.agnostic)


# ---- webcam -----------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """One visitor's webcam: their own tracker and frame rate."""

    tracker: Tracker | None = None
    seen: float | None = None
    fps: float = 0.0
    frames: int = 0

    def tick(self) -> float:
        """Frames a second, averaged over about ten frames."""
        now = time.perf_counter()
        if self.seen is not None and now > self.seen:
            rate = 1 / (now - self.seen)
            self.fps = rate if self.frames < 2 else self.fps + 0.1 * (rate - self.fps)
        self.seen = now
        self.frames += 1
        return self.fps


def _webcam_tab(handles: dict[str, ModelHandle], settings: list[gr.components.Component]) -> None:
    webcam = parts.camera(
        label="Webcam: allow the camera, then press the record button",
        elem_id="yolov9-webcam",
        height=500,
        webcam_options=gr.WebcamOptions(
            mirror=False, constraints={"video": {"width": 640, "height": 480, "frameRate": 30}}
        ),
    )
    # Boxes travel as numbers and are drawn over the live picture in the browser: no frame is sent back.
    overlay = gr.HTML(
        value=None,
        html_template=OVERLAY_HTML,
        css_template=OVERLAY_CSS,
        js_on_load=OVERLAY_JS,
        elem_id="yolov9-overlay",
    )
    state = gr.State(None, time_to_live=3600)

    @parts.user_errors
    def detect_webcam(
        frame: np.ndarray | None, stream: Stream | None, *values: Any
    ) -> tuple[dict[str, Any] | None, Stream | None]:
        if frame is None:  # the camera stopped
            return None, None
        stream = stream or Stream()
        chosen = Settings.of(handles, values)
        if not _loaded_soon(handles[chosen.weights]):
            return None, stream
        found = chosen.detect(handles[chosen.weights], frame)
        if chosen.track:
            stream.tracker = stream.tracker or _new_tracker()
            found = stream.tracker.update(found)
        else:
            stream.tracker = None
        return _overlay_value(found, stream.tick(), chosen.scores), stream

    webcam.stream(
        detect_webcam,
        [webcam, state, *settings],
        [overlay, state],
        api_name="yolov9_webcam",
        stream_every=0.04,
        time_limit=None,
        concurrency_id="yolov9-webcam",
        concurrency_limit=16,
        show_progress="hidden",
    )


def _loaded_soon(handle: ModelHandle) -> bool:
    """Whether the model is there, or is within `LOADING_SECONDS`; if not, it goes on loading."""
    if handle.status().state == "ready":
        return True
    loading = ThreadPoolExecutor(1)
    loaded = loading.submit(handle.run, _nothing)
    loading.shutdown(wait=False)
    try:
        loaded.result(LOADING_SECONDS)
    except TimeoutError:
        return False
    return True


def _nothing(detector: Detector, report: Report) -> None:
    """Work that only has the model loaded."""


def _new_tracker(rate: float = 30.0) -> Tracker:
    from models.yolov9.track import Tracker

    return Tracker(rate)


def _overlay_value(found: Detections, fps: float, scores: bool) -> dict[str, Any]:
    from models.yolov9.export import as_dict

    timing = found.timing
    times = {"pre": timing.pre_ms, "network": timing.network_ms, "nms": timing.nms_ms, "fps": fps}
    return {**as_dict(found), "counts": found.counts(), "times": times, "scores": scores}


# ---- image ------------------------------------------------------------------------------------------------


def _image_tab(handles: dict[str, ModelHandle], settings: list[gr.components.Component]) -> None:
    with gr.Row():
        picture = parts.image_file(label="Picture: drop, paste or take one", elem_id="yolov9-image", height=420)
        result = gr.Image(
            label="Detections",
            format="png",
            interactive=False,
            elem_id="yolov9-image-result",
            height=420,
            alt_text="The picture with boxes",
        )
    run = gr.Button("Detect", variant="primary", elem_id="yolov9-image-run")
    summary = gr.HTML(elem_id="yolov9-image-summary")
    with gr.Accordion("Table and export", open=False):
        table = gr.Dataframe(headers=["name", "score", "x1", "y1", "x2", "y2"], interactive=False)
        save = _export_row()
    found_state = gr.State(None)

    @parts.user_errors
    def detect_image(path: str | None, *values: Any) -> tuple[Any, ...]:
        if path is None:
            raise BadInput("There is no picture yet. Drop one, paste one, or click an example below.")
        from models.images import read_image
        from models.yolov9.draw import annotate

        chosen = Settings.of(handles, values)
        image = np.asarray(read_image(path))
        found = chosen.detect(handles[chosen.weights], image, gr.Progress())
        drawn = annotate(image, found, chosen.scores)
        return drawn, _summary([found]), _rows(found), [found]

    event = {
        "fn": detect_image,
        "inputs": [picture, *settings],
        "outputs": [result, summary, table, found_state],
        **JOBS,
    }
    run.click(**event, api_name="yolov9_image")
    picture.input(**event, api_name="yolov9_image_dropped", show_progress="minimal")
    examples = sorted(str(path) for path in (ASSETS / "examples").glob("*.jpg"))
    gr.Examples(examples, picture, label="Examples: click one, then Detect")
    _wire_export(save, found_state, "yolov9_image_export")


def _summary(frames: list[Detections]) -> str:
    """Counts in words and where the time went. HTML."""
    counts: dict[str, int] = {}
    for found in frames:
        for name, count in found.counts().items():
            counts[name] = max(counts.get(name, 0), count)
    words = ", ".join(f"{count} {escape(name)}" for name, count in counts.items()) or "Nothing found"
    n = len(frames)
    pre, network, nms = (
        sum(getattr(f.timing, part) for f in frames) / n for part in ("pre_ms", "network_ms", "nms_ms")
    )
    size = frames[0].image_size
    return (
        f'<p class="lp-summary"><strong>{words}</strong> · {size[0]} x {size[1]} · '
        f"pre {pre:.1f} ms, network {network:.1f} ms, NMS {nms:.1f} ms</p>"
    )


def _rows(found: Detections) -> list[list[Any]]:
    return [
        [found.names[c], round(float(s), 3), *(round(float(v), 1) for v in box)]
        for box, s, c in zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True)
    ]


# ---- video ------------------------------------------------------------------------------------------------


def _video_tab(handles: dict[str, ModelHandle], settings: list[gr.components.Component]) -> None:
    with gr.Row():
        video = gr.Video(label="Video: drop or record one", elem_id="yolov9-video", height=420)
        with gr.Column():
            preview = gr.Image(
                label="Working on",
                format="jpeg",
                interactive=False,
                height=420,
                visible=False,
                alt_text="Current frame",
            )
            result = gr.Video(label="Annotated video", interactive=False, elem_id="yolov9-video-result", height=420)
    with gr.Row():
        run = gr.Button("Detect in every frame", variant="primary", elem_id="yolov9-video-run")
        stop = gr.Button("Cancel", variant="stop", elem_id="yolov9-video-cancel")
    progress_text = gr.HTML(elem_id="yolov9-video-progress")
    with gr.Accordion("Export", open=False):
        save = _export_row()
    found_state = gr.State(None)
    outputs = [preview, result, progress_text, found_state]
    cancel = parts.cancel_by(stop, "yolov9_video_cancel", progress_text, [run.click])

    @parts.user_errors
    def detect_video(path: str | None, cancel: parts.Cancel, *values: Any) -> Iterator[tuple[Any, ...]]:
        with parts.turn(cancel):
            if path is None:
                raise BadInput("There is no video yet. Drop one, or record one with the camera.")
            chosen = Settings.of(handles, values)
            yield from _annotate_video(handles[chosen.weights], chosen, path, cancel)

    run.click(
        detect_video, [video, cancel, *settings], outputs, **JOBS, api_name="yolov9_video", show_progress="hidden"
    )
    _wire_export(save, found_state, "yolov9_video_export")


def _annotate_video(
    handle: ModelHandle, chosen: Settings, path: str, cancel: parts.Cancel
) -> Iterator[tuple[Any, ...]]:
    """Yields previews and progress, last the finished MP4. A cancelled run leaves no file."""
    from models import video
    from models.yolov9.draw import annotate

    info = video.probe(path)
    tracker = _new_tracker(float(info.rate)) if chosen.track else None
    frames: list[Detections] = []
    target = parts.private_folder() / "detections.mp4"
    finished = False
    started = shown = time.perf_counter()
    try:
        with video.Writer(target, info.width, info.height, Fraction(info.rate)) as writer:
            for frame in video.read_frames(path):
                if cancel["asked"]:
                    yield gr.Image(visible=False), gr.Video(visible=True), "<p>Cancelled.</p>", gr.skip()
                    return
                found = chosen.detect(handle, frame)
                found = tracker.update(found) if tracker else found
                drawn = annotate(frame, found, chosen.scores)
                writer.write(drawn)
                frames.append(found)
                now = time.perf_counter()
                if now - shown > PREVIEW_SECONDS or len(frames) == 1:
                    shown = now
                    bar = _progress(len(frames), info.frames, now - started)
                    yield gr.Image(drawn, visible=True), gr.Video(visible=False), bar, gr.skip()
        finished = True
    finally:
        if not finished:
            target.unlink(missing_ok=True)
            target.parent.rmdir()
    rate = len(frames) / (time.perf_counter() - started)
    text = f"{_summary(frames)}<p>{len(frames)} frames at {rate:.1f} frames/s. Counts are the most in one frame.</p>"
    yield gr.Image(visible=False), gr.Video(str(target), visible=True), text, frames


def _progress(done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    if not total:
        return f"<p>{done} frames, {rate:.1f} frames/s</p>"
    left = (total - done) / rate if rate else 0
    return (
        f'<p><progress max="{total}" value="{done}"></progress> {done} of {total} frames, '
        f"{rate:.1f} frames/s, about {max(left, 0):.0f} s left</p>"
    )


# ---- export -----------------------------------------------------------------------------------------------


def _export_row() -> tuple[gr.Radio, gr.Button, gr.File]:
    with gr.Row():
        kind = gr.Radio(list(FORMATS), value="JSON", label="Format")
        make = gr.Button("Make the file")
        file = gr.File(label="Download", interactive=False)
    return kind, make, file


def _wire_export(row: tuple[gr.Radio, gr.Button, gr.File], found: gr.State, api_name: str) -> None:
    kind, make, file = row

    @parts.user_errors
    def export_detections(frames: list[Detections] | None, chosen: str) -> str:
        from models.yolov9.export import export

        if not frames:
            raise BadInput("There is nothing to export yet. Press Detect first.")
        text = export(frames, chosen)
        path = parts.private_folder() / f"detections-{chosen.lower()}{SUFFIX[chosen]}"
        path.write_text(text)
        return str(path)

    make.click(export_detections, [found, kind], file, api_name=api_name)


# ---- evidence and explanation -----------------------------------------------------------------------------


def _evidence() -> None:
    from demos.yolov9_evidence import show_evidence

    show_evidence(ASSETS / "evidence")


def _explanation() -> None:
    gr.Markdown(
        "**The problem.** Every layer throws information away; a deep network's gradients then come from an "
        "incomplete picture of the input.\n\n"
        "**PGI** trains with an auxiliary branch that still sees enough of the input, and hands its gradients to "
        "the main branch. It is cut off for inference, so it costs nothing there.\n\n"
        "**GELAN** is ELAN with any block inside: here CSP with re-parameterised convolutions, which fuse into "
        "single ones for inference. The numbers in the drawing are read from the network that runs here."
    )
    parts.drawing(ASSETS / "how_it_works.png", "YOLOv9-T: main branch and PGI branch")
    cards = ASSETS / "flash_cards.pdf"
    if cards.exists():
        gr.Markdown("Print these cards, or show them on a phone, and hold them before the camera:")
        gr.File(str(cards), label="Flash cards, one class a page", interactive=False)
