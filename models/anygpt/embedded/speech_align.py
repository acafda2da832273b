"""The loss of the ear: every alignment of the phones to the frames, summed; pauses between words are optional.

CTC (Graves et al., 2006) without its blank and with the labels' prior divided out (as hybrid systems do), because a
blank would leave one frame a phone and no durations: here each phone covers the frames in which it sounds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.anygpt.embedded.speech_ear import SILENCE

NEVER = -1e4  # a log-probability that still has a gradient


def states(words: list[list[int]]) -> list[int]:
    """Silence, the phones of the first word, silence, the phones of the second, ..., silence."""
    found = [SILENCE]
    for word in words:
        found += [*word, SILENCE]
    return found


def alignment_loss(scores: Tensor, targets: list[list[int]]) -> Tensor:
    """Minus the log of the sum over all alignments, in nats a frame.

    Args:
        scores: (B, T, K), log-probabilities, divided by the priors where wanted.
        targets: for each of B clips its states, which begin and end with silence.
    """
    batch, frames, _ = scores.shape
    most = max(map(len, targets))
    labels = torch.zeros(batch, most, dtype=torch.long)
    for row, target in enumerate(targets):
        labels[row, : len(target)] = torch.tensor(target)
    emitted = scores.gather(2, labels[:, None].expand(-1, frames, -1))  # (B, T, S)
    skip = torch.full((batch, most), NEVER)  # into a state over the silence before it
    skip[:, 2:] = torch.where(labels[:, 1:-1] == SILENCE, 0.0, NEVER)
    first = torch.full((batch, most), NEVER)
    first[:, :2] = 0.0
    total = first + emitted[:, 0]
    for frame in range(1, frames):
        one = torch.nn.functional.pad(total[:, :-1], (1, 0), value=NEVER)
        two = torch.nn.functional.pad(total[:, :-2], (2, 0), value=NEVER) + skip
        total = torch.logsumexp(torch.stack((total, one, two)), 0) + emitted[:, frame]
    last = torch.tensor([len(target) for target in targets])[:, None] - 1
    return -torch.logaddexp(total.gather(1, last), total.gather(1, last - 1)).mean() / frames


def silenced(scores: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Scores (B, T, K) that allow nothing but silence before frame `begin` and after frame `end`, both (B,).

    Otherwise the first and the last phone may cover the silence around a sentence, and learn to.
    """
    frame = torch.arange(scores.shape[1])
    outside = (frame < begin[:, None]) | (frame > end[:, None])
    speech = torch.arange(scores.shape[2]) != SILENCE
    return scores.masked_fill(outside[..., None] & speech, NEVER)


def best_alignment(scores: np.ndarray, codes: list[int]) -> np.ndarray:
    """How many frames each code lasts, (m,), at least 1: the best way to read the codes in order (Viterbi).

    Args:
        scores: (T, K), log-probabilities, T at least m.
    """
    emitted = scores[:, codes]
    total = np.full(len(codes), -np.inf)
    total[0] = emitted[0, 0]
    moved = np.zeros(emitted.shape, bool)
    for frame in range(1, len(emitted)):
        before = np.concatenate(([-np.inf], total[:-1]))
        moved[frame] = before > total
        total = np.maximum(before, total) + emitted[frame]
    counts = np.zeros(len(codes), np.int64)
    code = len(codes) - 1
    for frame in range(len(emitted) - 1, -1, -1):
        counts[code] += 1
        code -= moved[frame, code]
    return counts
