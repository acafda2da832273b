"""Crops and pretraining: what the data promise, and that the result is one detection can start from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models.yolov9 import art
from models.yolov9.classes import COCO_NAMES
from models.yolov9.crops import NOTHING, Crops, restyled
from models.yolov9.data import CompositeBatches, Stage
from models.yolov9.pretrain import RARE, Pretraining, accuracy, middle, pretrain
from models.yolov9.train import EMBEDDED, started_from

pytestmark = pytest.mark.usefixtures("one_thread")
CAT, DOG = COCO_NAMES.index("cat"), COCO_NAMES.index("dog")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    """Two vendors: red squares are cats, green discs dogs; vendor b has no dog but many cats. Grey distractors."""
    root = tmp_path_factory.mktemp("art")

    def save(folder: str, name: str, colour: tuple[int, int, int], disc: bool) -> None:
        picture = Image.new("RGBA", (90, 70))
        shape = ImageDraw.Draw(picture).ellipse if disc else ImageDraw.Draw(picture).rectangle
        shape((5, 5, 85, 65), fill=(*colour, 255))
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)

    save("a/cat", "1", (220, 30, 30), False)
    save("a/dog", "1", (30, 220, 30), True)
    for k in range(9):
        save("b/cat", str(k), (200, 40, 40), False)
    save(f"{art.DISTRACTORS}/noto", "1", (128, 128, 128), True)
    return root


@pytest.fixture(scope="module")
def crops(drawings) -> Crops:
    return Crops(drawings, ("a", "b"), backgrounds=8)


def test_a_batch_is_its_seed(crops):
    one, again, other = crops.batch((1, 2), 40, 64), crops.batch((1, 2), 40, 64), crops.batch((1, 3), 40, 64)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (40, 3, 64, 64) and one[0].dtype == torch.float32
    assert one[0].min() >= 0 and one[0].max() <= 1
    assert set(one[1].tolist()) <= {CAT, DOG, NOTHING}


def test_classes_and_vendors_come_equally_often(crops):
    labels = torch.cat([crops.batch((4, k), 200, 32)[1] for k in range(5)])
    cats, dogs = int((labels == CAT).sum()), int((labels == DOG).sum())
    assert abs(cats - dogs) < 0.12 * 1000
    assert [len(vendor) for vendor in crops.by_class[CAT]] == [1, 9]


def test_restyled_cutouts_keep_their_class_and_change_their_look(drawings):
    made = restyled(drawings, ("a", "b"), per_class=12, pixels=64)
    assert sorted(made) == [CAT, DOG] and all(len(found) == 12 for found in made.values())
    for picture in made[DOG]:
        assert picture.dtype == np.uint8 and picture.shape[2] == 4 and max(picture.shape[:2]) <= 64
        assert picture[..., 3].max() == 255 and picture[0, 0, 3] < 128  # a disc leaves its corners free
    colours = [picture[picture.shape[0] // 2, picture.shape[1] // 2, :3].astype(int) for picture in made[DOG]]
    assert np.ptp(np.stack(colours), axis=0).max() > 40


def test_the_middle_of_a_class_map():
    logits = torch.zeros(1, 2, 8, 8)
    logits[0, 0, 2:6, 2:6] = 3  # the middle half
    logits[0, 1, 0] = 100  # an edge
    assert middle(logits).tolist() == [[3, 0, 0]]
    assert middle(torch.ones(1, 2, 2, 2)).tolist() == [[1, 1, 0]]


def test_pretraining_learns_and_detection_starts_from_it(drawings, crops, tmp_path):
    how = Pretraining(steps=60, batch=16, large_every=100, lr=3e-3)
    net = pretrain(how, crops, Crops(drawings, ("b",), backgrounds=8, seed=1), tmp_path)
    images, labels = crops.batch((9, 9), 60, 64, 0.3)
    assert (tmp_path / "last.pt").exists()
    started = started_from(tmp_path / "detector.pt", EMBEDDED, len(COCO_NAMES))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), started.state_dict().values(), strict=True))
    for tower in (*started.head.cv3, *started.head.cv5):
        tower[-1].bias.data += float(np.log(RARE))
    assert accuracy(started, images, labels) > 0.4


def test_stages_follow_one_another():
    class Recorder:
        def scene(self, seed, size, most, extent):
            self.asked = (size, most)
            raise StopIteration

    stages = (Stage(0.5, (32,), most=1), Stage(1.0, (64,), most=5))
    recorder = Recorder()
    batches = CompositeBatches(recorder, stages, 1, 2, 0)  # type: ignore[arg-type]
    for step, wanted in ((0, (32, 1)), (99, (32, 1)), (100, (64, 5)), (199, (64, 5))):
        with pytest.raises((RuntimeError, StopIteration)):
            batches.make(step)
        assert recorder.asked == wanted
