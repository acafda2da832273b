"""Data in, augmentation, schedule, resuming, and the whole recipe on a data set small enough to learn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from models import weights
from models.errors import BadInput
from models.runtime import Device
from models.yolov9.augment import Augmentation, Labelled, affine, copy_paste, flipped, mixup, mosaic_of
from models.yolov9.checkpoint import load_network, to_inference
from models.yolov9.data import FolderBatches
from models.yolov9.datasets import DataSet, load_labelled, read_samples
from models.yolov9.evaluate import _coco_metrics, mean_average_precision
from models.yolov9.network import build, fuse
from models.yolov9.pipeline import Detector
from models.yolov9.train import EMBEDDED, Recipe, make_optimiser, set_rates, started_from, train

NAMES = ["red square", "green disc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve pictures with a red square and a green disc each, labelled in YOLO and in COCO format."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    images, notes = [], []
    for k in range(12):
        picture = Image.new("RGB", (120, 90), (90, 90, 100))
        draw = ImageDraw.Draw(picture)
        lines = []
        for label, colour in ((0, (230, 30, 30)), (1, (30, 220, 40))):
            x, y = rng.integers(5, 30) + 55 * label, rng.integers(5, 40)
            side = int(rng.integers(25, 40))
            shape = draw.rectangle if label == 0 else draw.ellipse
            shape((x, y, x + side - 1, y + side - 1), fill=colour)
            lines.append(f"{label} {(x + side / 2) / 120} {(y + side / 2) / 90} {side / 120} {side / 90}")
            box = [int(x), int(y), side, side]
            notes.append({"id": len(notes) + 1, "image_id": k, "category_id": 5 + 2 * label, "bbox": box, "iscrowd": 0})
        picture.save(root / "images" / f"{k}.png")
        (root / "labels" / f"{k}.txt").write_text("\n".join(lines) + "\n")
        images.append({"id": k, "width": 120, "height": 90, "file_name": f"{k}.png"})
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": NAMES}))
    categories = [{"id": 5, "name": NAMES[0]}, {"id": 7, "name": NAMES[1]}]
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return root


def test_yolo_and_coco_read_the_same(folder):
    a = DataSet.read(folder / "data.yaml")
    b = DataSet.read(folder / "coco.json", folder / "images")
    assert a.names == b.names == tuple(NAMES)
    by_name = {item.image.name: item for item in b.items}
    for item in a.items:
        first, second = load_labelled(item), load_labelled(by_name[item.image.name])
        np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-6)
        assert first.classes.tolist() == second.classes.tolist()


@pytest.mark.parametrize(
    "line",
    [
        "2 0.5 0.5 0.1 0.1",
        "0 0.5 0.5 0.1",
        "0 0.5 0.5 nan 0.1",
        "a b c d e",
        "0 1.5 0.5 0.1 0.1",
        "0.5 0.5 0.5 0.1 0.1",
    ],
)
def test_bad_labels_name_the_file_and_line(tmp_path, line):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n" + line + "\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": NAMES}))
    with pytest.raises(BadInput, match=r"a\.txt, line 2"):
        DataSet.read(tmp_path / "data.yaml")


def square(x: int, y: int, side: int, size: int = 100, polygon: bool = False) -> Labelled:
    image = np.zeros((size, size, 3), np.uint8)
    image[y : y + side, x : x + side] = 255
    box = np.array([[x, y, x + side, y + side]], np.float64)
    corners = [np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], np.float64)]
    return Labelled(image, np.array([1]), box, corners if polygon else [])


def fits(part: Labelled, slack: float = 2.0) -> bool:
    """The only box is that of the white pixels."""
    ys, xs = np.nonzero(part.image[..., 0] > 127)
    return np.abs(part.boxes[0] - (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)).max() <= slack


@pytest.mark.parametrize("polygon", [False, True])
def test_flip_and_affine_move_boxes_with_the_picture(polygon):
    part = square(20, 30, 40, polygon=polygon)
    assert fits(flipped(part), 0)
    for seed in range(20):
        moved = affine(part, 100, np.random.default_rng(seed), Augmentation(scale=0.3))
        assert len(moved.boxes) == 1 and fits(moved)


def test_mosaic_keeps_every_object_where_it_is():
    parts = [square(30, 30, 40) for _ in range(4)]
    for seed in range(10):
        whole = mosaic_of(parts, 100, np.random.default_rng(seed))
        for box in whole.boxes:
            x0, y0, x1, y1 = box.astype(int)
            assert (whole.image[y0:y1, x0:x1, 0] == 255).all()


def test_mixup_keeps_both_labels_and_copy_paste_adds_a_mirrored_object():
    rng = np.random.default_rng(0)
    assert len(mixup(square(0, 0, 30), square(60, 60, 30), rng).boxes) == 2
    pasted = copy_paste(square(5, 40, 20, polygon=True), rng, 1.0)
    assert pasted.boxes[1].tolist() == [75, 40, 95, 60]
    assert (pasted.image[41:59, 76:94] == 255).all()


def test_schedule_by_hand():
    recipe = Recipe(epochs=10, warmup_epochs=2)
    optimiser = make_optimiser(build("gelan-t", 2), recipe)
    rates = []
    for step in range(1000):
        set_rates(optimiser, recipe, step, 100, 1000)
        rates.append([g["lr"] for g in optimiser.param_groups] + [optimiser.param_groups[0]["momentum"]])
    assert rates[0] == [0.1, 0.0, 0.0, 0.8]
    assert rates[200][0] == pytest.approx(0.01 * (1 - 200 / 999 * 0.99)) and rates[200][3] == pytest.approx(0.937)
    assert rates[-1][:3] == pytest.approx([0.0001] * 3)


TINY = Recipe(
    network="yolov9-t", size=96, batch=2, epochs=1, optimiser="adamw", accumulate=False, save_every=3, class_width=80
)


def test_a_killed_run_resumes_to_the_same_weights(folder, tmp_path):
    """Six steps in one go, or three, a kill, and three more."""
    data = FolderBatches(DataSet.read(folder / "data.yaml"), 96, 2, seed=0, mosaic_until=1)
    assert data.steps_per_epoch == 6
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a parallel sum may differ between runs
    try:
        train(TINY, data, tmp_path / "whole")
        with pytest.raises(InterruptedError):
            train(TINY, _Killed(data, 4), tmp_path / "parts")
        assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["state"]["step"] == 3
        train(TINY, data, tmp_path / "parts")
    finally:
        torch.set_num_threads(threads)
    whole, parts = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in ("whole", "parts"))
    for key, tensor in whole["net"].items():
        torch.testing.assert_close(parts["net"][key], tensor, rtol=0, atol=0, msg=key)
    with pytest.raises(BadInput, match="another recipe"):
        train(replace(TINY, lr=0.5), data, tmp_path / "parts")


class _Killed:
    """The same batches, but the process dies when step `at` is asked for."""

    def __init__(self, data: FolderBatches, at: int) -> None:
        self.data, self.at = data, at
        self.classes, self.steps_per_epoch = data.classes, data.steps_per_epoch

    def from_step(self, start: int, total: int):
        inner = self.data.from_step(start, total)
        at = self.at

        class Dying(torch.utils.data.Dataset):
            def __len__(self):
                return len(inner)

            def __getitem__(self, i):
                if start + i == at:
                    raise InterruptedError
                return inner[i]

        return Dying()


def test_the_recipe_learns_and_its_file_loads(folder, tmp_path):
    """Sixty steps on twelve easy pictures: the detector finds most of them."""
    recipe = replace(TINY, network="gelan-t", size=128, batch=4, epochs=40, lr=3e-3, warmup_epochs=2, warmup_steps=5,
                     ema_decay=0.9, ema_ramp=5, save_every=1000)  # fmt: skip
    data = FolderBatches(DataSet.read(folder / "data.yaml"), 128, 4, 0, 0, Augmentation(scale=0.2))
    train(recipe, data, tmp_path)
    network, info, _ = load_network(tmp_path / "best.safetensors")
    assert (info.name, info.classes, info.class_width) == ("gelan-t", 2, 80)
    detector = Detector(fuse(network), NAMES, Device("cpu", None, "float32", False))
    metrics = mean_average_precision(detector, read_samples(folder / "data.yaml"), 128)
    assert metrics["AP50"] > 0.5


def test_average_precision_by_hand():
    truth = {
        "images": [{"id": 0, "width": 100, "height": 100}],
        "categories": [{"id": 0, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 0, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
        ],
    }
    hit = {"image_id": 0, "category_id": 0, "bbox": [10, 10, 40, 40], "score": 0.9}
    miss = {"image_id": 0, "category_id": 0, "bbox": [60, 60, 20, 20], "score": 0.95}
    assert _coco_metrics(truth, [hit])["AP"] == pytest.approx(1)
    assert _coco_metrics(truth, [miss, hit])["AP50"] == pytest.approx(0.5)
    assert _coco_metrics(truth, [])["AP50"] == 0


def test_training_can_start_from_shipped_weights():
    shipped = weights.read_safetensors(weights.ASSETS / "yolov9" / "yolov9-t-embedded.safetensors")
    started = started_from(weights.ASSETS / "yolov9" / "yolov9-t-embedded.safetensors", EMBEDDED, 80)
    back = to_inference(started.state_dict())
    assert back.keys() == shipped.keys()
    assert all(torch.equal(back[name], value.to(back[name].dtype)) for name, value in shipped.items())
    main, auxiliary = started.model[12].state_dict(), started.model[25].state_dict()
    assert all(torch.equal(main[name], auxiliary[name]) for name in main)
