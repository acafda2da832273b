"""The P-diff tab over its API, with the shipped zoos."""

from pathlib import Path

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import load_file

from demos import pdiff as tab
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
    assert "Done" in done and "<td>3</td>" in summary and "ensemble" in summary
    assert latents["plot"].startswith("data:image") and accuracy["plot"].startswith("data:image")
    ours, original, said = client.predict(number["value"], api_name="/pdiff_example")
    assert len(ours["confidences"]) == 3
    assert sum(c["confidence"] for c in original["confidences"]) <= 1.001
    assert "on the test set" in said


def test_a_network_is_used_and_downloaded(client, tmp_path):
    generate(client)
    picture = tmp_path / "one.png"
    one = Image.new("L", (120, 120), 255)
    one.paste(0, (52, 20, 68, 100))
    one.save(picture)
    ours, original, said = client.predict(3, handle_file(str(picture)), api_name="/pdiff_picture")
    assert ours["label"] == original["label"] == "1" and "Network 3" in said
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
    assert "generative model" in said
    assert scatter["plot"].startswith("data:image") and bars["plot"].startswith("data:image")
    for name in ("originals", "generated", "noise", "interpolation", "mean of 16", "gaussian"):
        assert name in table


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
