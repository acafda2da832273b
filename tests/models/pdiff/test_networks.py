"""Parameter counts as specified, the choice of parameters, and vectors of them."""

import pytest
import torch

from models.errors import BadInput
from models.pdiff import data, networks
from models.pdiff.vectors import check_finite, flatten, layout_of, unflatten

SIZES = [
    ("mlp-bn-128", "digits", "norm", 512),
    ("mlp-bn-512", "digits", "norm", 2048),
    ("mlp-ln", "digits", "all", 1858),
    ("cnn-3", "mnist", "all", 10_853),
    ("cnn-3", "mnist", "last:2", 1_430),
    ("convnet-bn", "emoji", "norm", 224),
    ("resnet-18", "mnist", "norm", 2048),
    ("vit-tiny", "emoji", "norm", 768),
    ("convnext-atto", "emoji", "norm", 1280),
]


@pytest.mark.parametrize(("network", "name", "kind", "size"), SIZES)
def test_number_of_generated_parameters(network, name, kind, size):
    source = data.load(name)
    net = networks.build(network, source).eval()
    layout = networks.subset(net, kind)
    assert layout.size == size
    assert not any("running" in name for name in layout.names)
    with torch.inference_mode():
        assert net(source.test_x[:2]).shape == (2, 10)


@pytest.mark.parametrize(("network", "name", "kind", "size"), SIZES)
def test_vectors_and_tensors_round_trip(network, name, kind, size):
    net = networks.build(network, data.load(name))
    layout = networks.subset(net, kind)
    vectors = torch.arange(2 * size, dtype=torch.float32).reshape(2, size)
    tensors = unflatten(vectors, layout)
    assert torch.equal(flatten(tensors, layout), vectors)
    net.load_state_dict({**net.state_dict(), **{k: t[1] for k, t in tensors.items()}})
    assert float(net.state_dict()[layout.names[0]].flatten()[0]) == size  # the second row's first number


@pytest.mark.parametrize(("network", "name", "kind", "size"), SIZES)
def test_front_and_back_make_the_network(network, name, kind, size):
    source = data.load(name)
    net = networks.build(network, source).eval()
    layout = networks.subset(net, kind)
    front, back = networks.split(net, layout)
    with torch.inference_mode():
        assert torch.equal(back(front(source.test_x[:3])), net(source.test_x[:3]))
    assert set(layout.names) <= {name for name, _ in back.named_parameters()}


def test_the_resnet_subset_is_the_last_block():
    net = networks.build("resnet-18", data.load("emoji"))
    layout = networks.subset(net, "norm")
    assert list(layout.shapes) == [(512,)] * 4
    assert len({name.split(".")[0] for name in layout.names}) == 1


def test_kinds():
    net = networks.build("mlp-bn-128", data.load("digits"))
    both, first, second = (networks.subset(net, kind).names for kind in ("norm", "norm:0-1", "norm:1-2"))
    assert first + second == both
    assert networks.subset(net, "last:1").names == ("7.weight", "7.bias")
    assert len(networks.subset(net, "all").names) == len(list(net.parameters()))
    for bad in ("", "some", "last:0", "norm:5-6"):
        with pytest.raises(BadInput):
            networks.subset(net, bad)


def test_any_network_of_torchvision():
    source = data.load("emoji")
    net = networks.build("torchvision:squeezenet1_1", source).eval()
    assert networks.subset(net, "last:1").size == 512 * 10 + 10
    with pytest.raises(BadInput, match="torchvision has no model"):
        networks.build("torchvision:nothing", source)
    with pytest.raises(BadInput, match="mlp-ln"):
        networks.build("nothing", source)


def test_wrong_vectors_are_refused():
    net = networks.build("mlp-ln", data.load("digits"))
    layout = networks.subset(net, "all")
    with pytest.raises(BadInput, match="1858"):
        unflatten(torch.zeros(1, 1857), layout)
    with pytest.raises(BadInput, match="shape"):
        flatten({name: torch.zeros(1, 3) for name in layout.names}, layout)
    with pytest.raises(BadInput, match="No such parameter: nothing"):
        layout_of(net, ["nothing"])
    vectors = torch.zeros(3, 4)
    vectors[1, 2] = torch.nan
    with pytest.raises(BadInput, match="number 1"):
        check_finite(vectors, "Checkpoints")
