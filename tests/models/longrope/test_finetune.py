"""The second stage: its network is the engine's, its lessons stand where they say, its state is taken up."""

import random

import numpy as np
import pytest
import torch

from models import longrope
from models.errors import WeightsCorrupt
from models.longrope.adapter import put_in
from models.longrope.engine import Engine, Reading
from models.longrope.finetune import NEAR_NEEDLE, Adapted, Lesson, losses, scattered
from models.longrope.pipeline import Model
from models.longrope.retrieval import make_prompt
from models.longrope.rope import scaling
from models.longrope.tables import stretched
from tests.models.longrope.test_engine import CONFIG, random_weights

YARN = scaling("yarn", 16, 1e4, 32, 128)
IDS = torch.randint(0, 97, (26,), generator=torch.Generator().manual_seed(5))
CONTEXT, ANSWER = 18, 23


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CONFIG, random_weights(CONFIG, tied=False))


def made(plain: bool = False, jumps: tuple = (), weight: torch.Tensor | None = None) -> Lesson:
    far = Reading(jumps=jumps).positions(0, len(IDS))
    weight = torch.ones(len(IDS)) if weight is None else weight
    return Lesson(IDS, CONTEXT, ANSWER, np.arange(len(IDS)), far, weight, plain, False)


@pytest.mark.parametrize("jumps", [(), ((4, 20), (12, 55))])
def test_exact_lessons_are_read_as_the_engine_reads(engine, jumps):
    network = Adapted(CONFIG, engine.weights)
    loss, _, found = losses(network, made(jumps=jumps), YARN)
    theirs, likeliest = engine.forced(IDS.tolist(), ANSWER, YARN, Reading(jumps=jumps))
    assert torch.allclose(loss, theirs.mean(), atol=1e-5) and found == bool(likeliest.all())


def test_blockwise_lessons_are_read_as_the_engine_reads(engine):
    network = Adapted(CONFIG, engine.weights)
    reading = Reading("blockwise", block=CONTEXT, anchor=8, question=len(IDS) - 1 - CONTEXT)
    theirs = engine.losses(IDS.tolist(), ANSWER, YARN, reading)
    assert torch.allclose(losses(network, made(plain=True), YARN)[0], theirs.mean(), atol=1e-5)


def test_a_token_weighs_as_many_as_it_stands_for():
    """Attention to a key of weight 3 is attention to three such keys."""
    network = Adapted(CONFIG, Engine(CONFIG, random_weights(CONFIG)).weights)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(CONFIG.heads, 1, CONFIG.head_dim, generator=generator)
    k, v = (torch.randn(CONFIG.kv_heads, 5, CONFIG.head_dim, generator=generator) for _ in range(2))
    three = [0, 1, 1, 1, 2, 3, 4]
    heavy = torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0]).log()
    assert torch.allclose(
        network._attend(q, k, v, heavy), network._attend(q, k[:, three], v[:, three], None), atol=1e-6
    )


@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_scattered_filler_stands_all_over_the_text_and_the_needle_at_its_depth(depth):
    model, length = longrope.load(device="cpu"), 1_000_000
    prompt = make_prompt(model, 400, depth, 2)
    at = scattered(prompt, length, random.Random(0))
    first, last = prompt.needle
    assert (np.diff(at) > 0).all() and at[0] == 0 and at[prompt.length - 1] == length - 1
    assert abs((at[first] - first) / (length - prompt.length) - depth) < 1e-3
    beside = at[max(first - NEAR_NEEDLE, 0) : min(last + NEAR_NEEDLE, prompt.length - prompt.question_tokens)]
    assert (np.diff(beside) == 1).all()  # as in a whole text
    assert (np.diff(at[prompt.length - prompt.question_tokens :]) == 1).all()
    assert (np.diff(at) > 1).sum() > 8


def test_what_was_trained_is_put_into_the_weights(engine):
    network = Adapted(CONFIG, engine.weights, rank=3)
    for parameter in network.up.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    with_it = Engine(CONFIG, random_weights(CONFIG, tied=False))
    with_it.weights = put_in(with_it.weights, network.state_dict())
    loss = losses(network, made(jumps=((4, 20),)), YARN)[0]
    theirs = with_it.losses(IDS.tolist(), ANSWER, YARN, Reading(jumps=((4, 20),)))
    assert torch.allclose(loss, theirs.mean(), atol=1e-4)
    assert not torch.allclose(engine.losses(IDS.tolist(), ANSWER, YARN, Reading(jumps=((4, 20),))), theirs, atol=1e-3)
    with pytest.raises(WeightsCorrupt):
        put_in(engine.weights, {})


def test_the_shipped_adapter_finds_keys_where_the_model_does_not():
    """Held-out prompts spread over 128k positions; 256 tokens are really read."""
    plain = longrope.load(device="cpu")
    assert plain.tuned is not None

    def found(model: Model) -> int:
        rope = model.scaling("longrope", 131_072, stretched("smollm2", 8192, 131_072, 32)[0][1])
        hits = 0
        for trial in range(8):
            prompt = make_prompt(model, 256, (trial + 0.5) / 8, 7_000_000 + trial)
            reading = Reading(jumps=prompt.spread(131_072))
            hits += bool(model.engine.forced(*prompt.answered(model), rope, reading)[1].all())
        return hits

    assert found(plain.tuned) >= 6 > found(plain)
