"""Detection from a picture to boxes: letterbox, network, NMS, boxes back in the picture's pixels.

Specification section 10: RGB in 0..1 without mean or std, grey 114 padding to the smallest multiple of 32,
best class per position, class-aware NMS by torchvision.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from models.errors import BadInput
from models.images import read_image
from models.runtime import Device
from models.yolov9.detections import Detections, Timing
from models.yolov9.network import Network

GREY = 114
MAX_CANDIDATES = 30_000
MAX_SIZE = 1536
STRIDE = 32


class Detector:
    """A fused network on a device. Safe to call from several threads at once."""

    def __init__(self, network: Network, names: Sequence[str], device: Device) -> None:
        self.names = tuple(names)
        self.device = torch.device(device.name)
        self.dtype = _fast_dtype(device)
        self.network = network.eval().to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def detect(
        self,
        image: str | Path | bytes | Image.Image | np.ndarray,
        confidence: float = 0.25,
        iou: float = 0.45,
        size: int = 640,
        classes: Sequence[int] | None = None,
        max_detections: int = 300,
        agnostic: bool = False,
    ) -> Detections:
        """Finds objects in one picture.

        Args:
            image: anything `models.images.read_image` takes; an array is RGB.
            confidence: keep scores above this, 0..1. iou: overlap above which NMS drops the weaker box, 0..1.
            size: longer side of the network's input in pixels, 32..1536; rounded up to a multiple of 32 with
                a warning. classes: class indices to keep, `None` for all. max_detections: at least 1.
            agnostic: let boxes of different classes suppress each other.

        Raises:
            BadInput: an unreadable picture or a setting out of range.
        """
        size = check_settings(confidence, iou, size, classes, max_detections, len(self.names))
        start = time.perf_counter()
        picture = np.asarray(read_image(image))
        x, _ = letterbox(picture, size)
        tensor = torch.from_numpy(x).permute(2, 0, 1)[None].to(self.device, self.dtype) / 255
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        ready = time.perf_counter()
        output = self.network(tensor).float().cpu()
        predicted = time.perf_counter()
        boxes, scores, class_ids = suppress(output[0], confidence, iou, classes, max_detections, agnostic)
        boxes = unletterbox(boxes, x.shape[:2], picture.shape[:2])
        done = time.perf_counter()
        return Detections(
            boxes.numpy(),
            scores.numpy(),
            class_ids.numpy(),
            self.names,
            (picture.shape[1], picture.shape[0]),
            Timing((ready - start) * 1e3, (predicted - ready) * 1e3, (done - predicted) * 1e3),
        )


def _fast_dtype(device: Device) -> torch.dtype:
    """Half precision where it was measured to be faster (tests/benchmarks/bench_yolov9_speed.py)."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and device.native_bf16 else torch.float32


def letterbox(
    image: np.ndarray, size: int, square: bool = False, upscale: bool = True
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Resizes to fit `size` and pads with grey to multiples of 32 (or to the full square).

    Args:
        image: (H, W, 3) uint8. Returns the padded picture and its (top, bottom, left, right) padding.
    """
    h, w = image.shape[:2]
    ratio = min(size / h, size / w)
    if not upscale:
        ratio = min(ratio, 1.0)
    # A picture of 1 x 1000 still needs one pixel of height.
    new_w, new_h = max(1, round(w * ratio)), max(1, round(h * ratio))
    if (new_w, new_h) != (w, h):
        image = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    dw, dh = size - new_w, size - new_h
    if not square:
        dw, dh = dw % STRIDE, dh % STRIDE
    top, bottom = round(dh / 2 - 0.1), round(dh / 2 + 0.1)
    left, right = round(dw / 2 - 0.1), round(dw / 2 + 0.1)
    padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(GREY,) * 3)
    return padded, (top, bottom, left, right)


def unletterbox(boxes: Tensor, network_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Boxes `(N, 4)` xyxy from the letterboxed input (height, width) back to the picture (height, width)."""
    (nh, nw), (h, w) = network_size, image_size
    gain = min(nh / h, nw / w)
    pad = torch.tensor(((nw - w * gain) / 2, (nh - h * gain) / 2)).repeat(2)
    limit = torch.tensor((w, h, w, h), dtype=torch.float32)
    return torch.minimum(((boxes - pad) / gain).clamp(min=0), limit)


def suppress(
    prediction: Tensor,
    confidence: float,
    iou: float,
    classes: Sequence[int] | None = None,
    max_detections: int = 300,
    agnostic: bool = False,
    multi_label: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression of one picture's decoded output.

    Args:
        prediction: `(4 + classes, N)`, centre x, centre y, width, height, then scores.
        multi_label: one candidate for every class above `confidence` (validation), not only the best.

    Returns boxes `(M, 4)` xyxy, scores `(M,)`, class indices `(M,)`, best first.
    """
    boxes, scores = prediction[:4].T, prediction[4:].T
    if multi_label:
        rows, class_ids = (scores > confidence).nonzero(as_tuple=True)
        values = scores[rows, class_ids]
    else:
        values, class_ids = scores.max(1)
        rows = (values > confidence).nonzero(as_tuple=True)[0]
        values, class_ids = values[rows], class_ids[rows]
    if classes is not None:
        wanted = torch.isin(class_ids, torch.tensor(list(classes), dtype=class_ids.dtype))
        rows, values, class_ids = rows[wanted], values[wanted], class_ids[wanted]
    order = values.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    rows, values, class_ids = rows[order], values[order], class_ids[order]
    half = boxes[rows, 2:] / 2
    xyxy = torch.cat((boxes[rows, :2] - half, boxes[rows, :2] + half), 1)
    groups = torch.zeros_like(class_ids) if agnostic else class_ids
    keep = batched_nms(xyxy, values, groups, iou)[:max_detections]
    return xyxy[keep], values[keep], class_ids[keep]


def check_settings(
    confidence: float,
    iou: float,
    size: int,
    classes: Sequence[int] | None,
    max_detections: int,
    class_count: int,
) -> int:
    """Validates the settings of `Detector.detect`; returns the size as a multiple of 32."""
    for name, value in (("confidence", confidence), ("IoU", iou)):
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
            raise BadInput(f"The {name} threshold is {value!r}. Give a number from 0 to 1.")
    if not isinstance(size, int) or not STRIDE <= size <= MAX_SIZE:
        raise BadInput(f"The size is {size!r}. Give a whole number of pixels from {STRIDE} to {MAX_SIZE}.")
    if not isinstance(max_detections, int) or max_detections < 1:
        raise BadInput(f"At most {max_detections!r} detections were asked for. Give a whole number from 1.")
    for index in classes or ():
        if not 0 <= index < class_count:
            raise BadInput(f"There is no class {index}. These weights have classes 0 to {class_count - 1}.")
    if size % STRIDE:
        rounded = math.ceil(size / STRIDE) * STRIDE
        warnings.warn(f"The size {size} is not a multiple of {STRIDE}: {rounded} is used.", stacklevel=3)
        return rounded
    return size
