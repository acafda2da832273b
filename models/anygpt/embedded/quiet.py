"""Makes the adapters quiet in plain text, in closed form, so that there SmolLM2 writes as it did.

An adapter adds up @ down @ x to what a matrix makes of x. `quieten` takes, of all `down'`, the one that changes least
of what is added for the lessons' x and adds least for those of plain text:

    min  E |(down' - down) x|^2 over lessons + weight * E |down' x|^2 over text:   down' = down L (L + weight T)^-1

with L and T the second moments E x x' of both. This is RegMean (Jin et al., 2023, arXiv 2212.09849), which merges the
matrices of two models, for SmolLM2 and what was trained of it; it leaves an adapter's rank as it is.

`lower` sees to the new tokens, which are likely in places of plain text where none ever comes. Inside a run only new
tokens are compared, so what is added to all of them there changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.anygpt.embedded.network import Network
from models.anygpt.vocabulary import Vocabulary

RIDGE = 1e-4  # of the mean second moment, added so that none is zero

Batch = tuple[Tensor, Tensor]  # ids (B, T), and which of them count, bool (B, T)


@torch.no_grad()
def moments(network: Network, batches: Iterable[Batch], adapted: bool = True) -> dict[str, Tensor]:
    """E x x' of the inputs of each adapted matrix, (in, in), by its name in `network.down`."""
    sums: dict[str, Tensor] = {}
    tokens = 0
    counted = torch.empty(0)

    def see(key: str, x: Tensor) -> None:
        rows = x[counted].float()
        sums[key] = sums.get(key, 0) + rows.T @ rows

    network.watch = see
    try:
        for ids, counted in batches:
            network(ids, adapted)
            tokens += int(counted.sum())
    finally:
        network.watch = None
    return {key: total / tokens for key, total in sums.items()}


@torch.no_grad()
def quieten(network: Network, lessons: dict[str, Tensor], text: dict[str, Tensor], weight: float) -> None:
    """Changes every `down`. lessons, text: `moments`; weight: of plain text against lessons, 0 changes nothing."""
    for key, down in network.down.items():
        wanted, unwanted = lessons[key].double(), text[key].double()
        ridge = torch.eye(len(wanted), dtype=torch.float64) * RIDGE * wanted.diagonal().mean()
        # down L (L + weight T)^-1, as the solution of a symmetric system.
        right = wanted + ridge
        down.copy_(torch.linalg.solve(right + weight * unwanted, right @ down.double().T).T)


@torch.no_grad()
def lower(network: Network, vocabulary: Vocabulary, text: Iterable[Batch], by: float) -> float:
    """Makes the scores of codes and end markers lower by `by` in plain text, on average; start markers stay.

    Returns how far their rows move, as a share of their length.
    """
    mean = torch.cat([network(ids)[counted].float() for ids, counted in text]).mean(0)
    move = by * mean / mean.square().sum()
    old = len(network.weights.embedding)
    ids = [token for units in vocabulary.media.values() for token in (*units.ids, units.end)]
    rows = network.rows[torch.tensor(ids) - old]
    network.rows[torch.tensor(ids) - old] = rows - move
    return float(move.norm() / rows.norm(dim=1).mean())
