"""COCO mean average precision (pycocotools) and the flash-card test.

    python -m models.yolov9.evaluate --data embedded --out assets/yolov9/evidence/embedded.json
    python -m models.yolov9.evaluate --data my/data.yaml --weights my.safetensors
    python -m models.yolov9.evaluate --data annotations.json --images val2017 --tier official --size c

Protocol (specification, section 13): confidence 0.001, IoU 0.7, 300 boxes, one candidate a class, no up-scaling.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models import yolov9
from models.records import record
from models.yolov9 import art
from models.yolov9.classes import COCO_NAMES
from models.yolov9.compose import Composer, Sample
from models.yolov9.pipeline import Detector, letterbox, suppress, unletterbox

CONFIDENCE, IOU, MAX_DETECTIONS = 0.001, 0.7, 300
VALIDATION_SEED = 900_000_000  # far from any training seed
CARD_VIEWS = 5  # pictures of each card


def mean_average_precision(detector: Detector, samples: Iterable[Sample], size: int) -> dict[str, Any]:
    """COCO metrics over labelled pictures: `AP`, `AP50`, `AP75`, sizes, `AR100`, and `AP50` by class name."""
    images: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image_id, sample in enumerate(samples):
        h, w = sample.image.shape[:2]
        images.append({"id": image_id, "width": w, "height": h})
        for label, cx, cy, bw, bh in sample.labels.tolist():
            box = [(cx - bw / 2) * w, (cy - bh / 2) * h, bw * w, bh * h]
            truth.append(
                {"id": len(truth) + 1, "image_id": image_id, "category_id": int(label), "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
        for box, score, label in zip(*candidates(detector, sample.image, size), strict=True):
            x1, y1, x2, y2 = box
            found.append(
                {
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(detector.names)]
    return _coco_metrics({"images": images, "annotations": truth, "categories": categories}, found)


@torch.inference_mode()
def candidates(detector: Detector, image: np.ndarray, size: int) -> tuple[list[list[float]], list[float], list[int]]:
    """Boxes (xyxy pixels), scores and classes by the validation protocol."""
    x, _ = letterbox(image, size, upscale=False)
    tensor = torch.from_numpy(x).permute(2, 0, 1)[None].to(detector.device, detector.dtype) / 255
    output = detector.network(tensor).float().cpu()[0]
    boxes, scores, classes = suppress(output, CONFIDENCE, IOU, max_detections=MAX_DETECTIONS, multi_label=True)
    return unletterbox(boxes, x.shape[:2], image.shape[:2]).tolist(), scores.tolist(), classes.tolist()


def card_accuracy(
    detector: Detector,
    composer: Composer,
    cutouts: dict[int, list[np.ndarray]],
    size: int,
    views: int = CARD_VIEWS,
) -> dict[str, Any]:
    """Share of printed cards, seen through the camera model, whose highest-scored box has the right label."""
    right: dict[str, list[bool]] = {}
    for label, pictures in cutouts.items():
        for k, picture in enumerate(pictures):
            for view in range(views):
                seed = VALIDATION_SEED + label * 100_000 + k * 100 + view
                sample = composer.card(seed, size, label, picture)
                found = detector.detect(sample.image, confidence=0.05, size=size)
                hit = len(found) > 0 and int(found.class_ids[0]) == label
                right.setdefault(COCO_NAMES[label], []).append(hit)
    by_class = {name: float(np.mean(hits)) for name, hits in right.items()}
    every = [hit for hits in right.values() for hit in hits]
    return {
        "cards": len(every),
        "accuracy": float(np.mean(every)),
        "class_mean": float(np.mean(list(by_class.values()))),
        "by_class": by_class,
    }


def embedded_report(detector: Detector, art_folder: Path, pictures: int, size: int) -> dict[str, Any]:
    """What the shipped weights reach on composites and cards of the vendor that training never saw."""
    held_out = Composer.from_art(art_folder, (art.HELD_OUT_VENDOR,))
    seen = Composer.from_art(art_folder)
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + pictures)

    def scenes(composer: Composer) -> Iterator[Sample]:
        return (composer.scene(seed, size) for seed in seeds)

    # One picture a class for the cards: skin tones and colours of one drawing would count many times.
    cards = {label: found[:3] for label, found in held_out.cutouts.items()}
    return {
        "size": size,
        "held_out_vendor": art.HELD_OUT_VENDOR,
        "classes_trained": [COCO_NAMES[i] for i in seen.classes],
        "held_out_composites": mean_average_precision(detector, scenes(held_out), size),
        "training_vendors_new_composites": mean_average_precision(detector, scenes(seen), size),
        "cards": card_accuracy(detector, held_out, cards, size),
    }


def _coco_metrics(truth: dict[str, Any], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
        if not found:
            return {"images": len(truth["images"]), **dict.fromkeys(names, 0.0), "AP50_by_class": {}}
        evaluation = COCOeval(coco, coco.loadRes(list(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # IoU 0.5, all areas: (recalls, classes)
    by_class = {
        truth["categories"][k]["name"]: float(precision[:, k].mean())
        for k in range(precision.shape[1])
        if (precision[:, k] > -1).any()
    }
    figures = {n: float(v) for n, v in zip(names, evaluation.stats, strict=False)}
    return {"images": len(truth["images"]), **figures, "AP50_by_class": by_class}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="'embedded', a YOLO data.yaml, or a COCO annotation file")
    parser.add_argument("--images", type=Path, help="image folder of a COCO annotation file")
    parser.add_argument("--art", type=Path, default=Path("runs/yolov9/art"))
    parser.add_argument("--tier", default="embedded")
    parser.add_argument("--size", help="t, s, m, c or e (official tier)")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pixels", type=int, help="input size; 320 for embedded data, else 640")
    parser.add_argument("--pictures", type=int, default=500, help="composites (embedded data)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    detector = yolov9.load(args.tier, args.size, args.weights, args.device, args.weights_dir)
    if args.data == "embedded":
        result = embedded_report(detector, args.art, args.pictures, args.pixels or 320)
    else:
        from models.yolov9.datasets import read_samples

        result = mean_average_precision(detector, read_samples(Path(args.data), args.images), args.pixels or 640)
    if args.out:
        record(args.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
