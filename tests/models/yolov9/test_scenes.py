"""Batched composites: boxes fit what is visible, batches repeat, labels come in the promised shares."""

import numpy as np
import pytest
import torch

from models.yolov9.network import build
from models.yolov9.pretrain import Classifier
from models.yolov9.scenes import SPRITE, Scenes, _sprite, _targets
from models.yolov9.train import AUXILIARY_COPIES, EMBEDDED, started_from


@pytest.fixture(scope="module")
def scenes():
    def picture(colour, h=40, w=40):
        return np.full((h, w, 4), (*colour, 255), np.uint8)

    pictures = [picture((255, 0, 0)), picture((0, 255, 0)), picture((0, 0, 255), h=20), picture((255, 255, 255))]
    return Scenes(pictures, [3, 3, 5, -1], photos=[], favoured=[5])


def test_a_batch_depends_only_on_its_seed(scenes):
    first, again, other = (scenes.make(seed, 4, 64, most=2) for seed in (7, 7, 8))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_images_and_targets_have_the_promised_form(scenes):
    images, targets = scenes.make(1, 32, 64, most=3)
    assert images.shape == (32, 3, 64, 64) and images.dtype == torch.uint8
    assert set(targets[:, 1].tolist()) <= {3.0, 5.0}  # what has label -1 has no box
    assert torch.equal(targets[:, 0], targets[:, 0].sort().values)
    assert targets[:, 0].long().bincount().max() <= 3
    left, right = targets[:, 2] - targets[:, 4] / 2, targets[:, 2] + targets[:, 4] / 2
    assert left.min() >= 0 and right.max() <= 1 and targets[:, 4:].min() > 0


def test_favoured_labels_make_up_half_of_all_draws(scenes):
    chances = scenes.chances / scenes.chances.sum()
    assert chances[scenes.labels == 5].sum() == pytest.approx(0.5)
    # The others share the rest a label, not a picture: two pictures of 3 together weigh as much as the one of -1.
    assert chances[scenes.labels == 3].sum() == pytest.approx(0.25)


def test_boxes_follow_the_visible_part():
    own = torch.zeros(3, 10, 10, dtype=torch.bool)
    own[:, 2:8, 1:9] = True
    seen = own.clone()
    seen[1, :, 5:] = False  # right half hidden
    seen[2, 3:] = False  # nearly all hidden: loses its label
    rows = _targets(seen, own, torch.tensor([4, 6, 8]))
    torch.testing.assert_close(rows, torch.tensor([[0, 4, 0.5, 0.5, 0.8, 0.6], [1, 6, 0.3, 0.5, 0.4, 0.6]]))


def test_sprites_are_premultiplied_and_fill_their_square():
    picture = np.zeros((50, 100, 4), np.uint8)
    picture[..., 0], picture[..., 3] = 200, 128
    sprite = _sprite(picture)
    assert sprite.shape == (4, SPRITE, SPRITE)
    assert sprite[3, SPRITE // 2].min() == 128  # as wide as fits
    assert sprite[3, 0].max() == 0  # and centred
    assert sprite[0, SPRITE // 2, SPRITE // 2] == pytest.approx(200 * 128 / 255, abs=1)


def test_training_starts_from_the_pretrained_layers(tmp_path):
    torch.manual_seed(1)
    network = build("gelan-t", 80)
    torch.save({"network": network.state_dict()}, tmp_path / "last.pt")
    started = started_from(tmp_path / "last.pt", EMBEDDED, 80)
    for i in range(22):
        theirs, ours = network.model[i].state_dict(), started.model[i].state_dict()
        assert all(torch.equal(theirs[k], ours[k]) for k in theirs)
    for main, auxiliary in AUXILIARY_COPIES.items():
        theirs, ours = started.model[main].state_dict(), started.model[auxiliary].state_dict()
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in theirs)


def test_the_classifier_uses_every_layer_below_the_head():
    torch.manual_seed(0)
    model = Classifier(build("gelan-t", 80), 7).train()
    logits = model(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    silent = {n.split(".")[1] for n, p in model.network.named_parameters() if p.requires_grad and p.grad is None}
    assert silent == {"22"}  # the head
