"""A replayed network answers what the network answers, for every timestep and shape."""

import pytest
import torch

from models.sdxl_lightning.replay import Replayed
from tests.models.sdxl_lightning.conftest import small_unet


@pytest.fixture(scope="module")
def pair():
    network = small_unet()
    return network, Replayed(network, 8, (16, 32))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 8, 8), (1, 4, 8, 12)])
def test_same_answer(pair, shape):
    network, replayed = pair
    passes = []
    hook = network.conv_in.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        for t in (999.0, 249.0, 1.0):
            given = torch.randn(shape), torch.tensor(t), torch.randn(shape[0], 16, 32)
            torch.testing.assert_close(replayed(*given)[0], network(*given, return_dict=False)[0])
    hook.remove()
    assert len(passes) == (3 if shape == (1, 4, 8, 8) else 6)  # replaying runs no Python of the network


def test_weights_are_shared_and_counted_once(pair):
    network, replayed = pair
    assert sum(p.numel() for p in replayed.parameters()) == sum(p.numel() for p in network.parameters())
    assert replayed.config.in_channels == 4
