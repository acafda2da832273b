"""The loss against the specification's Appendix B, and its closed-form pieces."""

import numpy as np
import pytest
import torch

from models.yolov9.loss import assign, detection_loss
from models.yolov9.network import anchor_points, build
from tests.models.yolov9.vectors import pseudo_random

LEVELS = ((8, 12), (4, 6), (2, 3))
TARGETS = torch.tensor([[0, 5, 0.5, 0.5, 0.4, 0.6], [0, 17, 0.25, 0.3, 0.2, 0.25], [1, 0, 0.6, 0.55, 0.7, 0.8]])


def raw_maps(first: int) -> list[torch.Tensor]:
    return [
        torch.from_numpy((2 * pseudo_random(2 * 144 * h * w, first + k)).astype(np.float32)).view(2, 144, h, w)
        for k, (h, w) in enumerate(LEVELS)
    ]


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (raw_maps(0), TARGETS, (11050.7402, 5.54953, 5515.2700, 4.55084)),
        ((raw_maps(10), raw_maps(0)), TARGETS, (13019.3838, 6.95749, 6497.1016, 5.63285)),
        (raw_maps(0), TARGETS[:0], (16962.2539, 0, 8481.1270, 0)),
    ],
    ids=["single head", "dual head", "no targets"],
)
def test_appendix_b(outputs, targets, expected):
    losses = detection_loss(outputs, targets)
    found = [float(v) for v in (losses.total, losses.box, losses.cls, losses.dfl)]
    assert found == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_appendix_b_assignment():
    flat = torch.cat([m.flatten(2) for m in raw_maps(0)], 2).transpose(1, 2)
    points, strides = anchor_points(LEVELS)
    distance = flat[..., :64].unflatten(2, (4, 16)).softmax(3) @ torch.arange(16.0)
    boxes = torch.cat((points - distance[..., :2], points + distance[..., 2:]), -1) * strides
    size = torch.tensor((96.0, 64.0)).repeat(2)
    centre, half = TARGETS[:, 2:4], TARGETS[:, 4:6] / 2
    xyxy = torch.cat((centre - half, centre + half), 1) * size
    truth = torch.stack((xyxy[:2], torch.stack((xyxy[2], torch.zeros(4)))))
    classes = torch.tensor([[5, 17], [0, 0]])
    valid = torch.tensor([[True, True], [True, False]])
    found = assign(boxes, flat[..., 64:].sigmoid(), points * strides, classes, truth, valid)
    assert found.positive[0].nonzero().flatten().tolist() == [
        14, 15, 26, 27, 28, 29, 40, 42, 43, 53, 54, 64, 65, 66, 120,
    ]  # fmt: skip
    assert found.positive[1].nonzero().flatten().tolist() == [32, 42, 44, 55, 68, 75, 76, 79, 89, 90]
    assert float(found.scores.sum()) == pytest.approx(1.53762, abs=1e-5)


def test_padding_changes_nothing():
    """An image's assignment is the same beside an image with more targets (its own are then padded)."""
    generator = torch.Generator().manual_seed(0)
    points, strides = anchor_points(LEVELS)
    centre = points * strides
    boxes = torch.cat((centre - 12, centre + 14), 1)[None]
    scores = torch.rand(1, len(points), 80, generator=generator)
    classes, truth = torch.tensor([[5]]), torch.tensor([[[20.0, 10, 60, 50]]])
    alone = assign(boxes, scores, centre, classes, truth, torch.tensor([[True]]))
    padded = assign(
        boxes,
        scores,
        centre,
        torch.tensor([[5, 0, 0]]),
        torch.cat((truth, torch.zeros(1, 2, 4)), 1),
        torch.tensor([[True, False, False]]),
    )
    assert alone.positive.any()
    assert torch.equal(alone.positive, padded.positive) and torch.equal(alone.scores, padded.scores)


@pytest.mark.parametrize("name", ["gelan-t", "yolov9-t"])
def test_a_few_steps_lower_the_loss_and_reach_every_weight(name):
    torch.manual_seed(0)
    network = build(name, classes=3, training=True, class_width=80)
    images = torch.rand(2, 3, 96, 96)
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.5, 0.5], [1, 2, 0.4, 0.6, 0.7, 0.3]])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = detection_loss(network(images), targets).total
    before.backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    for _ in range(15):
        optimiser.step()
        optimiser.zero_grad()
        after = detection_loss(network(images), targets).total
        after.backward()
    assert after < 0.8 * before
