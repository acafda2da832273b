"""YOLOv9's training loss: task-aligned assignment, BCE + CIoU + DFL, auxiliary head at 0.25.

Specification section 11; the expected values of its Appendix B are a test.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import complete_box_iou, complete_box_iou_loss

from models.yolov9.blocks import DFL
from models.yolov9.network import RawMaps, anchor_points

TOP_K, ALPHA, BETA = 10, 0.5, 6.0
GAIN_BOX, GAIN_CLASS, GAIN_DFL = 7.5, 0.5, 1.5
AUXILIARY_WEIGHT = 0.25


@dataclass(frozen=True)
class Losses:
    """`total` is what is minimised (terms times batch size); the others include their gains."""

    total: Tensor
    box: Tensor
    cls: Tensor
    dfl: Tensor


@dataclass(frozen=True)
class Assignment:
    """What each anchor point should predict: `boxes (B, N, 4)` in stride units, soft `scores (B, N, nc)`."""

    boxes: Tensor
    scores: Tensor
    positive: Tensor  # (B, N) bool


def detection_loss(outputs: RawMaps | tuple[RawMaps, RawMaps], targets: Tensor) -> Losses:
    """Loss of a network in train mode.

    Args:
        outputs: the three raw maps of a `gelan-*`, or `(auxiliary, main)` of a `yolov9-*`.
        targets: `(T, 6)` rows of image index, class, centre x, centre y, width, height, normalised 0..1.
    """
    if not isinstance(outputs, tuple):
        return _head_loss(outputs, targets)
    main = _head_loss(outputs[1], targets)
    auxiliary = _head_loss(outputs[0], targets)
    box, cls, dfl = (
        getattr(main, term) + AUXILIARY_WEIGHT * getattr(auxiliary, term) for term in ("box", "cls", "dfl")
    )
    return Losses((box + cls + dfl) * outputs[1][0].shape[0], box, cls, dfl)


def _head_loss(maps: RawMaps, targets: Tensor) -> Losses:
    batch = maps[0].shape[0]
    points, strides = anchor_points([(m.shape[2], m.shape[3]) for m in maps], maps[0].device)
    flat = torch.cat([m.flatten(2) for m in maps], 2).float().transpose(1, 2)  # (B, N, 64 + nc)
    sides, logits = flat.split((4 * DFL.BINS, flat.shape[2] - 4 * DFL.BINS), 2)
    boxes = _boxes(sides, points)
    image_size = torch.tensor((maps[0].shape[3], maps[0].shape[2]), device=flat.device) * 8.0
    truth = _padded(targets, batch, image_size)
    assigned = assign(boxes.detach() * strides, logits.detach().sigmoid(), points * strides, *truth)
    wanted = assigned.boxes / strides
    normaliser = assigned.scores.sum().clamp(min=1)

    cls = F.binary_cross_entropy_with_logits(logits, assigned.scores, reduction="sum") / normaliser
    positive = assigned.positive
    weight = assigned.scores.sum(2)[positive]
    if positive.any():
        box = (complete_box_iou_loss(boxes[positive], wanted[positive], eps=1e-7) * weight).sum() / normaliser
        distance = _distances(wanted, points)[positive]
        dfl = (_dfl(sides[positive], distance) * weight).sum() / normaliser
    else:
        box = dfl = logits.sum() * 0
    box, cls, dfl = box * GAIN_BOX, cls * GAIN_CLASS, dfl * GAIN_DFL
    return Losses((box + cls + dfl) * batch, box, cls, dfl)


@torch.no_grad()
def assign(boxes: Tensor, scores: Tensor, points: Tensor, classes: Tensor, truth: Tensor, valid: Tensor) -> Assignment:
    """Task-aligned assignment: each ground truth takes the 10 inside points of highest score^0.5 * CIoU^6.

    Args:
        boxes: predicted `(B, N, 4)` xyxy pixels. scores: `(B, N, nc)` in 0..1. points: `(N, 2)` pixels.
        classes, truth, valid: padded ground truth `(B, G)` int, `(B, G, 4)` xyxy pixels, `(B, G)` bool.
    """
    b, n, nc = scores.shape
    g = truth.shape[1]
    if g == 0:
        return Assignment(torch.zeros_like(boxes), torch.zeros_like(scores), scores.new_zeros(b, n).bool())
    # A point is a candidate if it lies inside the box. (B, G, N)
    sides = torch.cat((points[None, None] - truth[:, :, None, :2], truth[:, :, None, 2:] - points[None, None]), -1)
    inside = (sides.amin(-1) > 1e-9) & valid[..., None]
    overlap = torch.stack([complete_box_iou(t, p, 1e-7) for t, p in zip(truth, boxes, strict=True)])
    overlap = torch.where(valid[..., None], overlap.clamp(min=0), 0)  # padding has no aspect ratio: nan
    score = scores.gather(2, classes[:, None].expand(b, n, g)).transpose(1, 2)
    metric = score.pow(ALPHA) * overlap.pow(BETA) * inside
    claimed = torch.zeros_like(inside)
    claimed.scatter_(2, metric.topk(min(TOP_K, n), 2).indices, True)
    claimed &= inside

    # A point claimed by several goes to the ground truth with the highest overlap there, claimed or not.
    contested = claimed.sum(1) > 1  # (B, N)
    best = F.one_hot(overlap.argmax(1), g).transpose(1, 2).bool()
    claimed = torch.where(contested[:, None], best, claimed)
    positive = claimed.any(1)
    owner = claimed.float().argmax(1)  # (B, N)

    metric = metric * claimed
    norm = metric * (overlap * claimed).amax(2, keepdim=True) / (metric.amax(2, keepdim=True) + 1e-9)
    soft = norm.amax(1)  # (B, N)
    target_class = classes.gather(1, owner)
    target_scores = torch.zeros_like(scores).scatter_(2, target_class[..., None], (soft * positive)[..., None])
    return Assignment(truth.gather(1, owner[..., None].expand(b, n, 4)), target_scores, positive)


def _boxes(sides: Tensor, points: Tensor) -> Tensor:
    bins = torch.arange(DFL.BINS, device=sides.device, dtype=sides.dtype)
    distance = sides.unflatten(2, (4, DFL.BINS)).softmax(3) @ bins
    return torch.cat((points - distance[..., :2], points + distance[..., 2:]), -1)


def _distances(boxes: Tensor, points: Tensor) -> Tensor:
    distance = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)
    return distance.clamp(0, DFL.BINS - 1 - 0.01)


def _dfl(sides: Tensor, distance: Tensor) -> Tensor:
    """Cross entropy to the two bins around each distance, weighted by closeness. `(P, 64), (P, 4) -> (P,)`."""
    logits = sides.view(-1, DFL.BINS)
    low = distance.long()
    share = (low + 1 - distance).view(-1)
    loss = F.cross_entropy(logits, low.view(-1), reduction="none") * share
    loss = loss + F.cross_entropy(logits, low.view(-1) + 1, reduction="none") * (1 - share)
    return loss.view(-1, 4).mean(1)


def _padded(targets: Tensor, batch: int, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of all images to `(B, G)` classes, `(B, G, 4)` xyxy pixels and a `(B, G)` mask."""
    counts = torch.bincount(targets[:, 0].long(), minlength=batch)
    most = int(counts.max()) if len(targets) else 0
    classes = torch.zeros(batch, most, dtype=torch.long, device=targets.device)
    truth = torch.zeros(batch, most, 4, device=targets.device)
    for i in range(batch):
        rows = targets[targets[:, 0] == i]
        classes[i, : len(rows)] = rows[:, 1].long()
        half = rows[:, 4:6] / 2
        truth[i, : len(rows)] = torch.cat((rows[:, 2:4] - half, rows[:, 2:4] + half), 1) * size.repeat(2)
    valid = torch.arange(most, device=targets.device)[None] < counts[:, None]
    return classes, truth, valid
