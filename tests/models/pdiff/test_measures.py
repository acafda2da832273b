"""Accuracy and similarity against hand-made cases; the fast evaluation against the plain one."""

import math

import pytest
import torch

from models.errors import BadInput
from models.pdiff import data, measures, networks
from models.pdiff.measures import Evaluator
from models.pdiff.vectors import unflatten

A = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
B = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


def test_similarity_by_hand():
    # Wrong on {0, 1} and on {0, 2}: one in common, three in all. Nobody wrong: the same.
    wanted = torch.tensor([[1 / 3, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(measures.similarity(A, B), wanted)
    assert torch.equal(measures.similarity(A, B), measures.similarity(B, A).T)
    with pytest.raises(BadInput):
        measures.similarity(A, B[:, :3])


def test_accuracies_by_hand():
    assert measures.accuracies(A).tolist() == [50, 100]


def test_max_similarity_leaves_a_network_itself_out():
    similar = measures.similarity(B, B)
    assert measures.max_similarity(similar).tolist() == [1, 1, 1]
    torch.testing.assert_close(measures.max_similarity(similar, True), torch.tensor([1 / 3, 1 / 3, 0.0]))


def test_nearest_by_hand():
    originals = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    vectors = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    torch.testing.assert_close(measures.nearest(vectors, originals), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(measures.nearest(originals, originals, True), torch.tensor([5.0, 5.0]))


def test_nearest_of_close_vectors_far_from_zero():
    originals = torch.full((30, 50), 1000.0)
    vectors = originals[:1] + 0.01
    assert float(measures.nearest(vectors, originals)[0]) == pytest.approx(0.01 * math.sqrt(50), rel=0.02)


@pytest.mark.parametrize(
    ("network", "name", "kind"),
    [("mlp-bn-128", "digits", "norm"), ("mlp-ln", "digits", "all"), ("cnn-3", "mnist", "all"),
     ("convnet-bn", "emoji", "norm"), ("vit-tiny", "emoji", "norm"), ("convnext-atto", "emoji", "norm")],
)  # fmt: skip
def test_many_at_once_equal_one_by_one(network, name, kind):
    source = data.load(name)
    x, y = source.test_x[:150], source.test_y[:150]
    net = networks.build(network, source).eval()
    layout = networks.subset(net, kind)
    own = torch.cat([dict(net.named_parameters())[n].detach().flatten() for n in layout.names])
    vectors = own + 0.1 * torch.randn((3, layout.size), generator=torch.Generator().manual_seed(0))
    evaluator = Evaluator(net, layout, x, y)
    fast = evaluator.logits(vectors)
    for i, vector in enumerate(vectors):  # the official way: load the checkpoint, run the whole network
        net.load_state_dict({**net.state_dict(), **{k: t[0] for k, t in unflatten(vector[None], layout).items()}})
        with torch.inference_mode():
            slow = net(x)
        torch.testing.assert_close(fast[i], slow, atol=1e-5, rtol=1e-5)
    assert torch.equal(evaluator.wrong(vectors), fast.argmax(-1) != y)


def test_progress_counts_to_the_end(blobs, small):
    net = networks.build("mlp-ln", blobs).eval()
    seen: list[tuple[int, int]] = []
    Evaluator(net, small.layout, blobs.test_x, blobs.test_y).wrong(
        small.vectors.repeat(2, 1), lambda d, t: seen.append((d, t))
    )
    assert [d for d, _ in seen] == list(range(1, 81)) and {t for _, t in seen} == {80}


def test_nan_is_refused(blobs, small):
    evaluator = Evaluator(networks.build("mlp-ln", blobs), small.layout, blobs.test_x, blobs.test_y)
    vectors = small.vectors[:2].clone()
    vectors[1, 5] = torch.nan
    with pytest.raises(BadInput, match="number 1"):
        evaluator.logits(vectors)


def test_baselines_have_the_statistics_they_claim():
    generator = torch.Generator().manual_seed(0)
    originals = 5 + torch.tensor([1.0, 0.1, 0.0]) * torch.randn((400, 3), generator=generator)
    drawn = measures.gaussian(originals, 4000, 1)
    torch.testing.assert_close(drawn.std(0), originals.std(0), atol=0.02, rtol=0.05)
    averaged = measures.averages(originals, 2000, 16, 1)
    torch.testing.assert_close(averaged.std(0), originals.std(0) / 4, atol=0.02, rtol=0.1)
    between = measures.interpolated(originals, 500, 1)
    assert (between >= originals.min(0).values).all() and (between <= originals.max(0).values).all()
    noisy = measures.noised(originals, 4000, 2.0, 1)
    torch.testing.assert_close(noisy.std(0), originals.std(0) * math.sqrt(5), atol=0.05, rtol=0.05)
    assert torch.equal(noisy[:, 2], torch.full((4000,), float(originals[0, 2])))  # what never changes gets no noise


def test_between_share():
    pattern = torch.linspace(-1, 1, 1000)
    same = pattern.repeat(5, 1)
    assert measures.between_share(same) == pytest.approx(0, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    assert measures.between_share(torch.randn((200, 1000), generator=generator)) == pytest.approx(1, abs=0.02)
