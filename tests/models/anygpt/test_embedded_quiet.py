"""Adapters made quiet in plain text: the least change of what they add elsewhere, and new tokens unlikely there."""

import pytest
import torch

from models.anygpt.embedded import quiet
from tests.models.anygpt.test_embedded_lm import TEXT, base, network, trained, words  # noqa: F401 - fixtures


def batches(low: int, high: int, seed: int) -> list[quiet.Batch]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(low, high, (3, 2, 40), generator=generator)
    counted = torch.ones_like(ids, dtype=torch.bool)
    counted[:, :, 30:] = False
    return list(zip(ids, counted, strict=True))


def test_moments_are_those_of_what_the_matrices_read_and_leave_the_rest_out(base, words):  # noqa: F811
    net = trained(network(base, words))
    found = quiet.moments(net, batches(0, TEXT, 1))
    assert set(found) == set(net.down) and net.watch is None
    ids = torch.stack([ids for ids, _ in batches(0, TEXT, 1)])[..., :30].flatten(0, 1)  # what is left out comes last
    with torch.no_grad():
        seen = torch.cat((net.weights.embedding, net.rows))[ids]
        first = torch.nn.functional.rms_norm(
            seen, seen.shape[-1:], net.weights.layers[0].attention_norm, net.config.eps
        )
    rows = first.flatten(0, 1)
    torch.testing.assert_close(found["0_qkv"], rows.T @ rows / len(rows))


def test_what_is_added_in_text_falls_and_no_other_change_would_cost_less(base, words):  # noqa: F811
    net = trained(network(base, words))
    media, text = (
        quiet.moments(net, batches(TEXT, TEXT + 800, 2)),
        quiet.moments(net, batches(0, TEXT, 3), adapted=False),
    )
    before = {key: down.detach().clone() for key, down in net.down.items()}

    def cost(key: str, down: torch.Tensor, weight: float) -> float:
        apart = down - before[key]
        return float(((apart @ media[key]) * apart).sum() + weight * ((down @ text[key]) * down).sum())

    quiet.quieten(net, media, text, 0.0)
    for key, down in net.down.items():
        torch.testing.assert_close(down.detach(), before[key], rtol=1e-3, atol=1e-4)
    quiet.quieten(net, media, text, 2.0)
    for key, down in net.down.items():
        least = cost(key, down.detach(), 2.0)
        assert least < cost(key, before[key], 2.0)
        for seed in range(5):
            noise = torch.randn(down.shape, generator=torch.Generator().manual_seed(seed))
            assert least < cost(key, down.detach() + 0.1 * noise, 2.0)
    added = {key: float(((down.detach() @ text[key]) * down.detach()).sum()) for key, down in net.down.items()}
    assert all(added[key] < float(((before[key] @ text[key]) * before[key]).sum()) for key in added)


def test_codes_become_unlikely_in_text_and_keep_their_distance_from_one_another(base, words):  # noqa: F811
    net, vocabulary = trained(network(base, words)), words.vocabulary
    text = batches(0, TEXT, 4)
    inside = [token - TEXT for units in vocabulary.media.values() for token in (*units.ids, units.end)]
    starts = [units.start - TEXT for units in vocabulary.media.values()]
    with torch.no_grad():
        hidden = torch.cat([net(ids)[counted] for ids, counted in text])
        rows = net.rows.detach().clone()
        before = hidden @ rows.T
        share = quiet.lower(net, vocabulary, text, 5.0)
        after = hidden @ net.rows.T
    torch.testing.assert_close(after[:, starts], before[:, starts])
    fall = (before - after)[:, inside]
    torch.testing.assert_close(fall, fall[:, :1].expand_as(fall), atol=1e-4, rtol=1e-4)
    assert float(fall.mean()) == pytest.approx(5.0, rel=1e-3)
    moved = (net.rows.detach() - rows)[inside].norm(dim=1)
    torch.testing.assert_close(moved, (share * rows[inside].norm(dim=1).mean()).expand_as(moved))
