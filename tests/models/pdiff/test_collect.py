"""Collections: consecutive steps of real training, and many runs side by side."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from models.errors import BadInput
from models.pdiff import networks
from models.pdiff.collect import collect, collect_independent, network_of, state_dict, train_stacked
from models.pdiff.measures import Evaluator, accuracies
from models.pdiff.networks import subset
from tests.models.pdiff.conftest import QUICK


def test_checkpoints_are_consecutive_steps_that_work(small, blobs):
    assert small.vectors.shape == (40, small.layout.size)
    steps = (small.vectors[1:] - small.vectors[:-1]).norm(dim=1)
    apart = torch.cdist(small.vectors, small.vectors)[0, -1]
    assert 0 < steps.max() < apart  # small steps, and they lead away
    wrong = Evaluator(network_of(small, blobs), small.layout, blobs.test_x, blobs.test_y).wrong(small.vectors)
    assert accuracies(wrong).min() > 60  # a third is chance


def test_the_rest_of_the_network_stays(blobs):
    c = collect("mlp-bn-128", blobs, "norm", 5, schedule=QUICK)
    state = state_dict(c, c.vectors[-1])
    changed = {name for name in state if not torch.equal(state[name], c.base[name])}
    assert changed == set(c.layout.names)  # the running statistics too
    network_of(c, blobs).load_state_dict(state)


def test_runs_side_by_side_equal_the_same_runs_alone(blobs):
    net = networks.build("mlp-ln", blobs)
    layout = subset(net, "all")
    starts = [networks.build("mlp-ln", blobs, seed).state_dict() for seed in (3, 4, 5)]
    stacked = {name: torch.stack([s[name] for s in starts]) for name in layout.names}
    together = train_stacked(net, layout, stacked, blobs, QUICK, [7, 8, 9], 6, lambda *_: None)
    for i, start in enumerate(starts):
        alone = plain_training(net, layout, start, blobs, seed=7 + i, steps=6)
        for name in layout.names:
            torch.testing.assert_close(together[name][i], alone[name], atol=1e-5, rtol=1e-5)


def plain_training(net, layout, start, data, seed, steps):
    """The same without vmap: one network, autograd, AdamW."""
    parameters = {name: start[name].clone().requires_grad_() for name in layout.names}
    optimiser = torch.optim.AdamW(parameters.values(), QUICK.lr, weight_decay=QUICK.weight_decay)
    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(seed * 10_007))
    for chosen in order.split(QUICK.batch)[:steps]:
        loss = F.cross_entropy(functional_call(net, parameters, (data.train_x[chosen],)), data.train_y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: p.detach() for name, p in parameters.items()}


def test_several_runs_start_from_one_base(blobs):
    c = collect("mlp-ln", blobs, "all", 12, runs=3, schedule=QUICK)
    first, second, third = c.vectors.reshape(3, 4, -1)
    assert not torch.equal(first, second)
    # One step from the same start: closer to each other than four steps apart.
    assert (first[0] - third[0]).norm() < (first[0] - first[3]).norm() * 2


def test_independent_networks_differ_much_more(blobs):
    near = collect("mlp-ln", blobs, "all", 6, schedule=QUICK).vectors
    far = collect_independent("mlp-ln", blobs, 6, schedule=QUICK).vectors
    assert torch.pdist(far).mean() > 3 * torch.pdist(near).mean()
    with pytest.raises(BadInput, match="batch normalisation"):
        collect_independent("mlp-bn-128", blobs, 2)


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (10_000, 1), (10, 3), (10, 0)])
def test_impossible_counts_are_refused(blobs, count, runs):
    with pytest.raises(BadInput, match="Collect between"):
        collect("mlp-ln", blobs, "all", count, runs=runs)
