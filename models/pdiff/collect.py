"""Trains networks and keeps their checkpoints: what P-diff learns from (specification A.1, A.3, F.2).

Runs of a collection train side by side, 20 at most: their parameters are stacked and one `vmap` takes all gradients.
AdamW works number by number, so a stacked run equals the same run alone. Such a group is a job for `models.tasks`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from models.errors import BadInput
from models.pdiff.data import Data
from models.pdiff.measures import FRONT_CHUNK
from models.pdiff.networks import build, split, subset
from models.pdiff.vectors import Layout, flatten, unflatten
from models.tasks import Pool

Report = Callable[[int, int, float], None]  # step, of how many, loss
Runs = tuple[dict[str, Tensor], list[int]]
MOST = 2000
GROUP = 20  # the same in this process and as Ray tasks: some kernels round differently for one network and for many


@dataclass(frozen=True)
class Schedule:
    """How the base is trained, and how the checkpoints are collected (learning rate constant and high, A.1)."""

    base_lr: float = 5e-3
    base_epochs: int = 6
    lr: float = 0.03
    weight_decay: float = 5e-4
    batch: int = 128


# F.2 for the digit networks, A.3 for the others (full networks need lower rates than normalisation layers).
SCHEDULES = {
    "mlp-ln": Schedule(lr=0.02),
    "cnn-3": Schedule(base_lr=3e-3, base_epochs=12, lr=0.003),
    "convnet-bn": Schedule(base_epochs=8, lr=0.03),
    "resnet-18": Schedule(base_lr=5e-4, base_epochs=5, lr=0.03),
    "vit-tiny": Schedule(base_lr=5e-4, base_epochs=8, lr=0.03),
    "convnext-atto": Schedule(base_lr=1e-3, base_epochs=8, lr=0.03),
}


@dataclass(frozen=True)
class Collection:
    """Checkpoints of one network.

    vectors: (K, D) float32. base: the whole state dict that the vectors belong to.
    network, data, kind: as `networks.build`, `data.load` and `networks.subset` take them.
    """

    vectors: Tensor
    layout: Layout
    base: dict[str, Tensor]
    network: str
    data: str
    kind: str
    seed: int


def schedule_of(network: str) -> Schedule:
    """The schedule for a network by name."""
    return SCHEDULES.get(network, Schedule())


def collect(
    network: str,
    data: Data,
    kind: str = "norm",
    count: int = 300,
    seed: int = 0,
    runs: int = 1,
    schedule: Schedule | None = None,
    report: Report = lambda step, total, loss: None,
    pool: Pool | None = None,
) -> Collection:
    """Trains a base network, then the chosen parameters only, keeping one checkpoint a step.

    All other parameters and the running statistics stay as they are (eval mode throughout, F.2). With `runs`
    several such second stages start from the same base with other batches; each gives its share of `count`. With a
    `pool` they train there, and are reported group by group.
    Raises `BadInput` for a count outside 2 to 2 000 or one that the runs do not divide.
    """
    if not 2 <= count <= MOST or runs < 1 or count % runs:
        raise BadInput(f"Collect between 2 and {MOST} checkpoints, a multiple of the {runs} runs; got {count}.")
    schedule = schedule or schedule_of(network)
    steps = count // runs
    net = build(network, data, seed)
    base_total = schedule.base_epochs * (len(data.train_x) // schedule.batch)
    total = base_total + steps * -(-runs // GROUP)
    base_steps = train_base(net, data, schedule, seed, lambda step, loss: report(step, total, loss))
    layout = subset(net, kind)
    state = net.state_dict()
    start = {name: state[name].expand(runs, *state[name].shape) for name in layout.names}
    training = Training(net, layout, data, schedule, steps, every_step=True)
    seeds = [seed * 1000 + r for r in range(runs)]
    rows = _train(training, start, seeds, lambda step, loss: report(base_steps + step, total, loss), pool)
    return Collection(rows, layout, _copy(state), network, data.name, kind, seed)


def collect_independent(
    network: str,
    data: Data,
    count: int = 60,
    seed: int = 0,
    schedule: Schedule | None = None,
    report: Report = lambda step, total, loss: None,
    pool: Pool | None = None,
) -> Collection:
    """One checkpoint each of `count` networks trained from different initial weights: the failure case (F.2, X).

    pool: as in `collect`.
    Raises `BadInput` for a network with batch normalisation, whose statistics are not among the parameters.
    """
    if not 2 <= count <= MOST:
        raise BadInput(f"Collect between 2 and {MOST} checkpoints; got {count}.")
    schedule = schedule or schedule_of(network)
    schedule = replace(schedule, lr=schedule.base_lr)
    nets = [build(network, data, seed * 1000 + i) for i in range(count)]
    if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in nets[0].modules()):
        raise BadInput(f"{network} has batch normalisation; choose a network without, such as mlp-ln.")
    layout = subset(nets[0], "all")
    states = [net.state_dict() for net in nets]
    start = {name: torch.stack([state[name] for state in states]) for name in layout.names}
    steps = schedule.base_epochs * (len(data.train_x) // schedule.batch)
    seeds = [seed * 1000 + i for i in range(count)]
    total = steps * -(-count // GROUP)
    training = Training(nets[0], layout, data, schedule, steps, every_step=False)
    rows = _train(training, start, seeds, lambda step, loss: report(step, total, loss), pool)
    return Collection(rows, layout, _copy(states[0]), network, data.name, "all", seed)


@dataclass(frozen=True, eq=False)
class Training:
    """What all runs of a collection share: for `models.tasks`, the function that trains a group of them.

    every_step: keep the parameters after each step, not only after the last.
    """

    network: nn.Sequential
    layout: Layout
    data: Data
    schedule: Schedule
    steps: int
    every_step: bool

    def __call__(self) -> Callable[[Runs], tuple[Tensor, float]]:
        return self.run

    def run(self, runs: Runs, watch: Callable[[int, float], None] = lambda step, loss: None) -> tuple[Tensor, float]:
        """Parameters (R * steps, D) run by run, or (R, D), and the last mean loss.

        runs: where each starts, (R, *shape) by name, and its seed.
        """
        start, seeds = runs
        kept: list[Tensor] = []
        last = float("nan")

        def keep(step: int, loss: float, stacked: dict[str, Tensor]) -> None:
            nonlocal last
            last = loss
            if self.every_step:
                kept.append(flatten(stacked, self.layout))
            watch(step, loss)

        final = train_stacked(self.network, self.layout, start, self.data, self.schedule, seeds, self.steps, keep)
        if not self.every_step:
            return flatten(final, self.layout), last
        return torch.stack(kept).transpose(0, 1).reshape(-1, self.layout.size), last


def _train(
    training: Training,
    start: dict[str, Tensor],
    seeds: list[int],
    report: Callable[[int, float], None],
    pool: Pool | None,
) -> Tensor:
    """All runs, group by group. start: (runs, *shape) by name."""
    places = [slice(first, first + GROUP) for first in range(0, len(seeds), GROUP)]
    groups: list[Runs] = [({name: t[place].clone() for name, t in start.items()}, seeds[place]) for place in places]
    rows: list[Tensor] = []
    if pool is None:
        for number, group in enumerate(groups):
            rows.append(training.run(group, functools.partial(_count_on, report, number * training.steps))[0])
    else:
        for part, loss in pool.map(training, groups):
            rows.append(part)
            report(len(rows) * training.steps, loss)
    return torch.cat(rows)


def _count_on(report: Callable[[int, float], None], before: int, step: int, loss: float) -> None:
    report(before + step, loss)


def train_base(
    network: nn.Sequential, data: Data, schedule: Schedule, seed: int, report: Callable[[int, float], None]
) -> int:
    """Trains all parameters with AdamW and a cosine over the epochs (A.1). Leaves eval mode. Returns the steps."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), schedule.base_lr, weight_decay=schedule.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, schedule.base_epochs)
    step = 0
    for epoch in range(schedule.base_epochs):
        for chosen in _batches(len(data.train_x), schedule.batch, seed, epoch):
            loss = F.cross_entropy(network(data.train_x[chosen]), data.train_y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            report(step, float(loss.detach()))
        cosine.step()
    network.eval()
    return step


def train_stacked(
    network: nn.Sequential,
    layout: Layout,
    start: dict[str, Tensor],
    data: Data,
    schedule: Schedule,
    seeds: list[int],
    steps: int,
    keep: Callable[[int, float, dict[str, Tensor]], None],
) -> dict[str, Tensor]:
    """Trains R copies of the layout's parameters side by side, each on its own order of batches.

    start: tensors (R, *shape) by name. `keep(step, mean loss, tensors)` sees the parameters after each step.
    The front of the network, which does not change, runs over the training pictures once.
    """
    front, back = split(network.eval(), layout)
    with torch.no_grad():
        features = torch.cat([front(part) for part in data.train_x.split(FRONT_CHUNK)])
    parameters = [start[name].detach().clone() for name in layout.names]
    optimiser = torch.optim.AdamW(parameters, schedule.lr, weight_decay=schedule.weight_decay)

    def loss_of(tensors: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(back, dict(zip(layout.names, tensors, strict=True)), (x,)), y)

    many = vmap(grad_and_value(loss_of))
    orders = [_endless(len(features), schedule.batch, seed) for seed in seeds]
    for step in range(1, steps + 1):
        chosen = torch.stack([next(order) for order in orders])
        gradients, losses = many(parameters, features[chosen], data.train_y[chosen])
        for parameter, g in zip(parameters, gradients, strict=True):
            parameter.grad = g
        optimiser.step()
        keep(step, float(losses.detach().mean()), dict(zip(layout.names, (p.clone() for p in parameters), strict=True)))
    return dict(zip(layout.names, parameters, strict=True))


def network_of(collection: Collection, data: Data) -> nn.Sequential:
    """The collection's base network in eval mode."""
    net = build(collection.network, data)
    net.load_state_dict(collection.base)
    return net.eval()


def state_dict(collection: Collection, vector: Tensor) -> dict[str, Tensor]:
    """The whole state dict of one checkpoint, (D,)."""
    tensors = unflatten(vector[None], collection.layout)
    return {**collection.base, **{name: tensor[0] for name, tensor in tensors.items()}}


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _batches(n: int, batch: int, seed: int, epoch: int) -> list[Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 10_007 + epoch))
    return list(order[: n // batch * batch].split(batch))


def _endless(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    epoch = 0
    while True:
        yield from _batches(n, batch, seed, epoch)
        epoch += 1
