"""The P-diff tab over its API, with the shipped zoos."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import load_file

from demos import pdiff as tab
from demos import pdiff_evidence, pdiff_novelty
from models.pdiff.zoo import DEFAULT_ZOO, ZOOS


@pytest.fixture
def client(app_server):
    return Client(app_server.url, verbose=False)  # a visitor of its own


def generate(client, zoo="digits-q", count=12, seed=0, sampler="ddim-20"):
    return client.predict(zoo, count, seed, sampler, api_name="/pdiff_generate")


def test_the_tab_knows_the_shipped_zoos():
    assert {name: recipe.title for name, recipe in ZOOS.items()} == tab.ZOOS and DEFAULT_ZOO in tab.ZOOS


@pytest.mark.parametrize("zoo", [*tab.ZOOS])
def test_every_zoo_generates_and_is_used(client, zoo):
    done, latents, accuracy, summary, number = generate(client, zoo, 3)
    assert "Done" in done and '<td class="lp-here">3</td>' in summary and "ensemble" in summary
    assert latents["plot"].startswith("data:image") and accuracy["plot"].startswith("data:image")
    ours, original, said, seen = client.predict(number["value"], api_name="/pdiff_example")
    assert len(ours["confidences"]) == 3
    assert sum(c["confidence"] for c in original["confidences"]) <= 1.001
    assert "on the test set" in said and "Test picture" in said
    assert min(Image.open(seen).size) > 190


def test_a_network_is_used_and_downloaded(client, tmp_path):
    generate(client)
    picture = tmp_path / "one.png"
    one = Image.new("L", (120, 120), 255)
    one.paste(0, (52, 20, 68, 100))
    one.save(picture)
    ours, original, said, seen = client.predict(3, handle_file(str(picture)), api_name="/pdiff_picture")
    assert ours["label"] == original["label"] == "1" and "Network 3" in said
    again, *_, said = client.predict(5, api_name="/pdiff_again")  # the same picture, another network
    assert again["label"] == "1" and "Network 5" in said
    button = client.predict(3, api_name="/pdiff_file")
    state = load_file(button["value"] if isinstance(button, dict) else button)
    assert state["2.weight"].shape == (128,) and all(
        t.isfinite().all() for t in state.values() if t.is_floating_point()
    )
    other = load_file(Path(client.predict(4, api_name="/pdiff_file")["value"]))
    assert not torch.equal(state["2.weight"], other["2.weight"]) and torch.equal(state["1.weight"], other["1.weight"])


@pytest.mark.parametrize("size", [(1, 1), (2000, 3)])
@pytest.mark.parametrize("mode", ["1", "LA", "P", "CMYK", "I;16"])
def test_pictures_of_any_size_and_mode_answer_or_say_why(client, tmp_path, size, mode):
    generate(client, count=2)
    picture = tmp_path / ("p.tif" if mode in ("CMYK", "I;16") else "p.png")
    Image.new(mode, size, 0).save(picture)
    with pytest.raises(AppError, match="The drawing is empty"):
        client.predict(0, handle_file(str(picture)), api_name="/pdiff_picture")


def test_comparison_names_every_baseline(client):
    generate(client, count=20)
    said, scatter, bars, table = client.predict(api_name="/pdiff_novelty")
    assert "noise of equal accuracy" in said and "generative model" in said
    assert scatter["plot"].startswith("data:image") and bars["plot"].startswith("data:image")
    for name in ("originals", "generated", "noise", "interpolation", "mean of 16", "gaussian"):
        assert name in table


def test_two_visitors_at_once_each_get_their_own(client, app_server):
    other = Client(app_server.url, verbose=False)
    jobs = [
        c.submit("digits-q", count, 0, "ddim-20", api_name="/pdiff_generate") for c, count in ((client, 3), (other, 5))
    ]
    for job, count in zip(jobs, (3, 5), strict=True):
        assert f'<td class="lp-here">{count}</td>' in job.result()[3]
    other.predict(4, api_name="/pdiff_example")
    with pytest.raises(AppError, match="not among them|maximum"):
        client.predict(4, api_name="/pdiff_example")


def test_visitors_do_not_see_each_other_s_networks(client, app_server):
    generate(client, count=2)
    stranger = Client(app_server.url, verbose=False)
    with pytest.raises(AppError, match="Press Generate first"):
        stranger.predict(api_name="/pdiff_novelty")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 0}, "less than minimum value 1"),
        ({"count": 10**6}, "greater than maximum value 1000"),
        ({"count": 2.5}, "whole number"),
        ({"seed": None}, "whole number"),
        ({"zoo": "../../etc"}, "not in the list of choices"),
        ({"sampler": "ddim-9999"}, "not in the list of choices"),
    ],
)
def test_impossible_orders_say_what_is_possible(client, changes, says):
    with pytest.raises(AppError, match=says):
        generate(client, **changes)


def test_numbers_outside_are_refused(client):
    generate(client, count=2)
    for number in (2, -1, 1e9):
        with pytest.raises(AppError, match="numbered 0 to 1|maximum|minimum"):
            client.predict(number, api_name="/pdiff_example")


@pytest.mark.parametrize("count", [0, 49, 10**6])
def test_the_live_pipeline_refuses_other_counts(client, count):
    with pytest.raises(AppError, match="minimum value 50|maximum value 300"):
        client.predict(count, 0, api_name="/pdiff_live")


def group(accuracy, similar, distance):
    return tuple(np.full(3, value) for value in (accuracy, similar, distance))


BASE = {
    "originals": group(80, 0.9, 0.1), "noise": group(80, 0.9, 0.5), "mean of 16": group(81, 0.8, 1.0),
    "gaussian": group(80, 0.7, 3.0), "interpolation": group(80, 0.9, 0.3),
}  # fmt: skip


@pytest.mark.parametrize(
    ("generated", "scale", "says"),
    [
        (group(80, 0.8, 1.0), 0.2, "Farther from every original than noise of equal accuracy, in parameters and in"),
        (group(80, 0.95, 1.0), 0.2, "in parameters, not in behaviour"),
        (group(80, 0.8, 0.3), 0.2, "Not farther from the originals"),
        (group(80, 0.95, 0.3), 0.2, "shows nothing new"),
        (group(80, 0.99, 0.05), 0.2, "only memorises"),
        (group(80, 0.8, 1.0), 0.0, "no noise of equal accuracy"),
        (group(10, 0.3, 9.0), 0.2, "do not work"),
    ],
)
def test_the_verdict_follows_the_figures(generated, scale, says):
    lines = pdiff_novelty.verdict({**BASE, "generated": generated}, scale)
    assert says in lines[0]
    assert len(lines) == 1 or "mean of 16" in lines[1] or "gaussian" in lines[1]


def zoo_row(best, mean, nearest, similar):
    return {
        "zoo": "z", "noise_scale": 0.2,
        "groups": {"originals": {"best": 80.0, "mean": 79.0}, "noise": {"nearest": 0.5, "max_similarity": 0.9},
                   "generated": {"best": best, "mean": mean, "nearest": nearest, "max_similarity": similar}},
    }  # fmt: skip


def test_targets_are_met_only_if_every_seed_meets_them():
    good, bad = zoo_row(79.95, 79.2, 1.0, 0.8), zoo_row(79.5, 80.0, 0.3, 0.95)
    assert [row.note for row in pdiff_evidence.zoo_targets([good, good])] == ["met"] * 3
    rows = pdiff_evidence.zoo_targets([good, bad])
    assert [row.note for row in rows] == ["missed"] * 3
    assert "-0.05, -0.50" in rows[0].here and "better than the originals" in rows[1].here


def test_recorded_evidence_is_complete_and_shown():
    folder = Path(tab.ASSETS) / "evidence"
    for name in ("zoos", "table", "ablations", "speed"):
        assert (folder / f"{name}.json").exists(), name
    rows = pdiff_evidence.zoo_targets(json.loads((folder / "zoos.json").read_text())["result"]["rows"])
    assert len(rows) == 3 * (len(tab.ZOOS) - 1)
    speed = pdiff_evidence.speed_targets(json.loads((folder / "speed.json").read_text())["result"]["rows"])
    assert len(speed) == 5 and {row.note for row in speed} <= {"met", "missed"}
