"""The miniature's language model: adapters and new rows only, added without a difference; training that resumes."""

import random
from dataclasses import replace

import pytest
import torch

from models.anygpt.embedded import library, lm, train
from models.anygpt.embedded.layout import LAYOUT
from models.anygpt.embedded.network import Network
from models.anygpt.vocabulary import Words, extend
from models.errors import WeightsCorrupt, WeightsNotFound
from models.longrope.network import prepare, read_config
from tests.models.anygpt.test_instructions import books, spell  # noqa: F401 - a fixture, and the words' codes
from tests.models.anygpt.tiny import llama_tokenizer, tiny_llama

TEXT = 400


@pytest.fixture(scope="module")
def words() -> Words:
    tokenizer = llama_tokenizer(TEXT)
    return Words(tokenizer, extend(tokenizer, layout=LAYOUT))


@pytest.fixture(scope="module")
def base():
    """Shapes and weights of a small Llama without the new tokens, its head tied."""
    model = tiny_llama(TEXT, tie_word_embeddings=True, hidden_size=32)
    config = read_config(model.config.to_dict())
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return model, config, tensors


def network(base, words, seed: int = 0) -> Network:
    _, config, tensors = base
    weights = prepare(config, tensors, torch.float32)
    return Network(config, weights, lm.first_rows(weights.embedding, words.vocabulary, seed), rank=4, seed=seed)


def trained(net: Network) -> Network:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for up in net.up.values():
            up.copy_(0.1 * torch.randn(up.shape, generator=generator))
    return net


def logits(net: Network, ids: torch.Tensor) -> torch.Tensor:
    return net(ids) @ torch.cat((net.weights.embedding, net.rows)).T


def test_untrained_it_is_the_language_model_itself(base, words):
    model, *_ = base
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(logits(network(base, words), ids)[..., :TEXT], model(input_ids=ids).logits)


def test_merged_weights_compute_what_adapters_compute(base, words, tmp_path):
    _, config, tensors = base
    net = trained(network(base, words))
    model = lm.merged(config, tensors, net.state_dict())
    ids = torch.cat((torch.arange(10), torch.arange(TEXT, TEXT + 30)))[None]
    with torch.no_grad():
        ours = logits(net, ids)
        assert (ours[..., :TEXT] - base[0](input_ids=ids[:, :10]).logits.mean()).abs().max() > 0.01
        torch.testing.assert_close(model(input_ids=ids).logits, ours)


def test_kept_in_16_bits_and_read_again(base, words, tmp_path):
    net = trained(network(base, words))
    lm.write(net, tmp_path / lm.FILE)
    other = network(base, words, seed=5)
    lm.read_into(other, tmp_path / lm.FILE)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor.half().float(), rtol=0, atol=0)
    broken = {name: tensor[:3] for name, tensor in net.state_dict().items()}
    _, config, tensors = base
    with pytest.raises(WeightsCorrupt, match="not those of this language model"):
        lm.merged(config, tensors, broken)


def test_only_adapters_and_new_rows_are_trained(base, words):
    net = trained(network(base, words))
    names = {name.partition(".")[0] for name, _ in net.named_parameters()}
    assert names == {"rows", "down", "up"}
    before = [tensor.clone() for tensor in (net.weights.embedding, net.weights.layers[0].qkv)]
    ids = torch.randint(0, words.vocabulary.size, (2, 30))
    loss, _ = train.losses(net, words.vocabulary, ids, torch.ones_like(ids, dtype=torch.bool))
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert torch.equal(before[0], net.weights.embedding)
    assert torch.equal(before[1], net.weights.layers[0].qkv)


def test_new_rows_are_as_long_as_the_words_and_near_their_own_medium(base, words):
    embedding = base[2][lm.EMBEDDING]
    rows = lm.first_rows(embedding, words.vocabulary, 0)
    assert float(rows.norm(dim=1).mean() / embedding.norm(dim=1).mean()) == pytest.approx(1, abs=0.15)
    image, speech = (torch.tensor(words.vocabulary.units(m).ids) - TEXT for m in ("image", "speech"))

    def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.cosine_similarity(rows[one[:100], None], rows[None, other[100:200]], dim=-1).mean())

    assert likeness(image, image) > 0.7 > likeness(image, speech) + 0.2


def test_the_loss_is_the_tokens_own_inside_a_run_among_the_new_ones(base, words):
    net = trained(network(base, words))
    vocabulary = words.vocabulary
    image = vocabulary.units("image")
    ids = torch.tensor([[5, 6, image.start, image.ids[3], image.ids[9], image.end, 7]])
    learn = torch.tensor([[False, True, True, True, False, True, True]])
    with torch.no_grad():
        scores = logits(net, ids)[0]
    expected = {"text": 0.0, "image": 0.0}
    for at, medium in ((1, "text"), (2, "text"), (3, "image"), (5, "image"), (6, "text")):
        among = scores[at - 1] if medium == "text" else scores[at - 1, TEXT:]
        target = int(ids[0, at]) - (TEXT if medium == "image" else 0)
        expected[medium] -= float(among.log_softmax(-1)[target])
    loss, found = train.losses(net, vocabulary, ids, learn)
    assert float(loss.detach()) == pytest.approx((expected["text"] / 3 + expected["image"] / 2) / 2, rel=1e-4)
    for medium, count in (("text", 3), ("image", 2)):
        assert found[medium].tolist() == [pytest.approx(expected[medium], rel=1e-4), count]
    assert set(found) == {"text", "image"}


def plain_and_mixed(words) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch, all of it learnt: a row of plain text, and one with codes of a picture."""
    text = torch.randint(0, TEXT, (1, 9), generator=torch.Generator().manual_seed(2))
    mixed = torch.tensor([[4, 5, *words.vocabulary.units("image").ids[:7]]])
    ids = torch.cat((text, mixed))
    return ids, torch.ones_like(ids, dtype=torch.bool)


def test_plain_text_is_held_to_what_the_model_said_before(base, words):
    net = trained(network(base, words))
    ids, learn = plain_and_mixed(words)
    with torch.no_grad():
        now = logits(net, ids[:1, :-1])[0].log_softmax(-1)
        before = logits(network(base, words), ids[:1, :-1])[0, :, :TEXT].log_softmax(-1)
    expected = (before.exp() * (before - now[:, :TEXT])).sum()
    _, found = train.losses(net, words.vocabulary, ids, learn)
    assert found["kept"].tolist() == [pytest.approx(float(expected), rel=1e-3), 8]
    assert found["text"][1] == 1  # of the other row
    assert float(expected) > 0.01


def test_the_beginnings_of_music_are_losses_of_their_own(base, words):
    net = trained(network(base, words))
    music = words.vocabulary.units("music")
    ids = torch.tensor([[5, music.start, *[music.ids[0]] * 40, music.end, 5]])
    assert train.tokens_since(ids, music.start)[0].tolist() == [train.NEVER, *range(43)]
    _, found = train.losses(net, words.vocabulary, ids, torch.ones_like(ids, dtype=torch.bool))
    assert {name: int(found[name][1]) for name in found} == {
        "text": 2, "music": 41, "music opening": 2, "music beats": 26
    }  # fmt: skip


def test_what_is_told_of_music_is_a_loss_of_its_own(base, words):
    net = trained(network(base, words))
    music = words.vocabulary.units("music")
    piece = [music.start, *music.ids[:4], music.end]
    telling = min(train.words_of_music() & set(range(TEXT)), default=None)
    assert telling is not None, "the tiny tokenizer knows none of the words"
    ids = torch.tensor([[telling, 5, *piece, telling, 5, *[5] * train.CAPTION, telling]])
    _, found = train.losses(net, words.vocabulary, ids, torch.ones_like(ids, dtype=torch.bool))
    assert int(found["music captions"][1]) == 1  # not the one before the music, nor the one long after it


def test_a_loss_may_weigh_more(base, words):
    net = trained(network(base, words))
    ids, learn = plain_and_mixed(words)
    with torch.no_grad():
        once, found = train.losses(net, words.vocabulary, ids, learn)
        more, _ = train.losses(net, words.vocabulary, ids, learn, {"kept": 3.0})
    means = {name: float(total / count) for name, (total, count) in found.items()}
    assert float(once) == pytest.approx(sum(means.values()) / len(means), rel=1e-5)
    assert float(more) == pytest.approx((sum(means.values()) + 2 * means["kept"]) / (len(means) + 2), rel=1e-5)


class Ticking:
    """A clock of which every reading is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def curriculum(books: library.Library, words: Words) -> train.Curriculum:  # noqa: F811
    recipe = replace(train.Recipe(), batch=1, length=1200, talks_from=0.0, base=0.2)
    return train.Curriculum(recipe, books, words, [("What is it?", "It is this.")], ["some words " * 300])


def test_lessons_are_the_same_for_the_same_step(books, words):  # noqa: F811
    plan = curriculum(books, words)
    for step in (0, 7):
        one, other = plan.batch(step, 0.5), curriculum(books, words).batch(step, 0.5)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(plan.batch(0, 0.5)[0], plan.batch(7, 0.5)[0])


@pytest.mark.parametrize(("openings", "drawn", "medium"), [(1.0, 0.0, "music"), (0.0, 1.0, "image")])
def test_a_page_of_captions_takes_the_first_row(books, words, openings, drawn, medium):  # noqa: F811
    plan = curriculum(books, words)
    plan.recipe = replace(plan.recipe, openings=openings, drawn=drawn)
    numbers = train.media(words.vocabulary)
    number = 1 + list(words.vocabulary.media).index(medium)
    for step in range(4):
        ids, learn = plan.batch(step, 0.5)
        seen = numbers[ids[0]]
        assert set(seen.tolist()) == {0, number}
        assert learn[0].any()
        if medium == "image":  # a caption asks for its picture, never the other way round
            assert not learn[0][(seen == 0) & (ids[0] != words.vocabulary.units("image").start)].any()


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(base, words, books, tmp_path, monkeypatch):  # noqa: F811
    class Fixed(train.Curriculum):
        """Small batches, so that it is quick."""

        def batch(self, step: int, progress: float):
            ids = torch.randint(0, words.vocabulary.size, (2, 24), generator=torch.Generator().manual_seed(step))
            return ids, torch.ones_like(ids, dtype=torch.bool)

    plan = Fixed(train.Recipe(warm_up=3), books, words, [], [])
    whole = train.Training(network(base, words), plan.recipe, tmp_path / "whole")
    train.run(whole, plan, minutes=10 / 60, clock=Ticking())

    half = train.Training(network(base, words), plan.recipe, tmp_path / "half")

    class Stopped(Fixed):
        def batch(self, step: int, progress: float):
            if step == 5:
                half.save()
                raise KeyboardInterrupt
            return super().batch(step, progress)

    with pytest.raises(KeyboardInterrupt):
        train.run(half, Stopped(plan.recipe, books, words, [], []), minutes=10 / 60, clock=Ticking())
    again = train.Training(network(base, words, seed=9), plan.recipe, tmp_path / "half")
    again.restore()
    assert 0 < again.step < whole.step
    train.run(again, plan, minutes=10 / 60, clock=Ticking())
    assert again.step == whole.step
    for (name, one), other in zip(whole.network.named_parameters(), again.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert (tmp_path / "half" / lm.FILE).exists()


def test_made_quiet_it_says_more_of_what_it_said_before_in_plain_text(base, words, books, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(train, "QUIET_BATCHES", 6)
    plan = curriculum(books, words)
    training = train.Training(trained(network(base, words)), plan.recipe, tmp_path)
    net = training.network
    ids = torch.tensor([plan.plain(random.Random(1)).ids])

    def apart() -> float:
        with torch.no_grad():
            return float(train.gone_apart(net, ids, net(ids), net.rows).mean())

    before = apart()
    train.quieten(training, plan, weight=1.0, lower=0.0)
    quiet = apart()
    train.quieten(training, plan, weight=0.0, lower=3.0)
    assert apart() < quiet < before
    again = train.Training(network(base, words, seed=9), plan.recipe, tmp_path)
    again.restore()
    torch.testing.assert_close(again.network.down["0_qkv"], net.down["0_qkv"])
    plan.texts = []
    with pytest.raises(WeightsNotFound, match="no plain text"):
        train.quieten(training, plan, weight=1.0, lower=0.0)
