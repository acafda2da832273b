"""The SDXL-Lightning tab over its API: on tiny random networks in the published layout, and on the shipped ones."""

import pickle
import re
import sys
import time

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import save_file

from demos import sdxl_lightning_parts as tab
from models import video
from models.sdxl_lightning import metadata, schedulers
from models.weights import ASSETS
from tests.models.sdxl_lightning.conftest import kohya_lora, official_folder, small_unet, xl_unet  # noqa: F401

SHIPPED = ASSETS / "sdxl_lightning"
SIZE = "64 x 64"
CONTROLS = {
    "prompt": "a blue apple", "steps": 2, "seed": 3, "fresh": False, "count": 1, "size": SIZE, "start": None,
    "strength": 1, "form": "best", "teacher_steps": 3, "guidance": 2.0, "lora": None, "lora_scale": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(start_server, official_folder):  # noqa: F811
    """The official tier on a folder of tiny random networks; the Hub is out of reach."""
    command = [sys.executable, "app.py", "--demos", "sdxl_lightning", "--tier", "official"]
    with start_server([*command, "--weights-dir", str(official_folder), "--device", "cpu"]) as server:
        yield server


@pytest.fixture
def client(server):
    return Client(server.url, verbose=False)  # a visitor of its own


def generate(client, **changes):
    picture, said, seed, gallery, save = client.predict(
        *(CONTROLS | changes).values(), api_name="/sdxl_lightning_generate"
    )
    return picture, said, seed, gallery, save


def test_the_tab_and_the_sampler_agree():
    assert tab.STEPS == schedulers.STEPS and tab.MOST_TEACHER_STEPS == schedulers.MOST_TEACHER_STEPS


@pytest.mark.parametrize("steps", [1, 2, 4, 8, "teacher"])
def test_every_network_draws_and_the_png_says_how(client, steps):
    picture, said, seed, gallery, save = generate(client, steps=steps, count=2)
    settings = metadata.read(picture)
    teacher = steps == "teacher"
    assert (settings.prompt, settings.seed, settings.steps) == ("a blue apple", 3, 3 if teacher else steps)
    assert settings.guidance == (2.0 if teacher else None) and settings.model == "SDXL-Lightning"
    assert f"{6 if teacher else steps} network evaluation" in said and "seed 3 to 4" in said
    assert Image.open(picture).size == (64, 64) and seed == 3 and len(gallery) == 2
    assert metadata.read(save["value"] if isinstance(save, dict) else save) == settings


def test_settings_inside_a_png_draw_the_same_picture_again(client):
    picture, *_ = generate(client, steps=4, seed=77, size="72 x 48")
    prompt, steps, seed, fresh, size, *_ = client.predict(handle_file(picture), api_name="/sdxl_lightning_reuse")
    assert (prompt, int(steps), seed, fresh, size) == ("a blue apple", 4, 77, False, "72 x 48")
    again, *_ = generate(client, prompt=prompt, steps=int(steps), seed=seed, size=size)
    assert Image.open(again).tobytes() == Image.open(picture).tobytes()


def test_a_new_seed_each_time(client):
    seeds = {generate(client, fresh=True)[2] for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed <= tab.MOST_SEED for seed in seeds)


def test_from_a_picture(client, tmp_path):
    start = tmp_path / "start.png"
    Image.linear_gradient("L").save(start)
    picture, said, *_ = generate(client, steps=4, start=handle_file(str(start)), strength=1)
    assert "1 network evaluation" in said and metadata.read(picture).strength == "1/4"
    other, *_ = generate(client, steps=4, start=handle_file(str(start)), strength=4)
    assert Image.open(other).tobytes() != Image.open(picture).tobytes()


BAD = (
    ({"prompt": ""}, "The prompt is empty"),
    ({"prompt": "x" * 10_000}, "at most 1,000"),
    ({"prompt": "a\x00b"}, "control characters"),
    ({"steps": 3}, "not in the list of choices|no student of 3"),
    ({"steps": 16}, "not in the list of choices|no student of 16"),
    ({"steps": 1, "form": "lora"}, "no 1-step LoRA"),
    ({"seed": -1}, "seed"),
    ({"seed": None}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"count": 0}, "minimum|from 1 to 16"),
    ({"count": 17}, "maximum|from 1 to 16"),
    ({"size": "65 x 64"}, "off the latent grid: sides are multiples of 4"),
    ({"size": "1024 x 1024"}, "more than 4 times 64 x 64"),
    ({"size": "99996 x 99996"}, "Choose a smaller size|more than"),
    ({"size": "large"}, "not a size"),
    ({"size": "-64 x 64"}, "not a size"),
    ({"steps": "teacher", "teacher_steps": 65}, "maximum|from 1 to 64"),
    ({"steps": "teacher", "guidance": 99}, "maximum|from 1 to 30"),
)


@pytest.mark.parametrize(("changes", "says"), BAD)
def test_orders_that_cannot_be_drawn_say_what_can(client, changes, says):
    with pytest.raises(AppError, match=says):
        generate(client, **changes)


def test_after_errors_the_app_still_draws(client):
    assert generate(client)[0].endswith(".png")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"not a picture", "not a picture"), (b"\x89PNG\r\n\x1a\n" + b"0" * 50, "not a picture|damaged")],
)
def test_damaged_pictures_to_start_from(client, tmp_path, content, says):
    (tmp_path / "start.png").write_bytes(content)
    with pytest.raises(AppError, match=says):
        generate(client, start=handle_file(str(tmp_path / "start.png")))


def test_a_huge_picture_to_start_from(client, tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "huge.png")
    with pytest.raises(AppError, match="144 million pixels; at most 64 million"):
        generate(client, start=handle_file(str(tmp_path / "huge.png")))


def test_loras_of_your_own(client, tmp_path):
    def lora(name, tensors):
        save_file(tensors, tmp_path / name)
        return handle_file(str(tmp_path / name))

    plain, *_ = generate(client, steps=1)
    styled, said, *_ = generate(client, steps=1, lora=lora("style.safetensors", kohya_lora(xl_unet(), 5)))
    assert "layers changed" in said and metadata.read(styled).lora == "style.safetensors"
    assert Image.open(styled).tobytes() != Image.open(plain).tobytes()
    with pytest.raises(AppError, match="made for another"):
        generate(client, lora=lora("other.safetensors", kohya_lora(small_unet(), 5)))
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps({"unet": 1}))
    with pytest.raises(AppError, match="not a complete safetensors file"):
        generate(client, lora=handle_file(str(tmp_path / "evil.safetensors")))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"unet": 1}))
    with pytest.raises(AppError, match="safetensors|file type"):
        generate(client, lora=handle_file(str(tmp_path / "evil.pt")))


def test_foreign_pngs_carry_no_settings(client, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    with pytest.raises(AppError, match="no settings of this app"):
        client.predict(handle_file(str(tmp_path / "mine.png")), api_name="/sdxl_lightning_reuse")


def test_live_follows_and_says_quietly_what_is_wrong(client):
    picture, said = client.predict("a blue ap", 1, 0, api_name="/sdxl_lightning_live")
    assert metadata.read(picture).steps == 1 and "1 network evaluation" in said
    for prompt, says in (("", "Type what"), ("x" * 5000, "at most 1,000"), ("a\x07", "control characters")):
        _, said = client.predict(prompt, 1, 0, api_name="/sdxl_lightning_live")
        assert says in said


def test_comparison_shows_every_network_and_its_cost(client):
    said, grid = client.predict("a blue apple <b>", 1, api_name="/sdxl_lightning_compare")[:2]
    assert grid.count("<img") == 9 and "a blue apple &lt;b&gt;" in grid and "<b>" not in grid
    costs = [int(count) for count in re.findall(r", (\d+) evaluation", grid)]
    assert costs == [1, 2, 4, 8, 2, 4, 8, 16, 64]
    assert "Seed 1" in said and "guidance 6" in said


def test_seeds_have_one_picture_each(client):
    said, pictures = client.predict("a cat", 2, 10, 8, api_name="/sdxl_lightning_seeds")
    assert [each["caption"] for each in pictures] == [f"seed {n}" for n in range(10, 18)]
    assert [metadata.read(each["image"]).seed for each in pictures] == [*range(10, 18)] and "8 pictures" in said


def test_a_walk_is_a_film_there_and_back(client):
    said, film, gif = client.predict("a cat", "a dog", 1, 0, 7, api_name="/sdxl_lightning_walk")
    path = film["video"] if isinstance(film, dict) else film
    frames = list(video.read_frames(path))
    assert len(frames) == 12 and frames[0].shape == (64, 64, 3) and "7 pictures" in said
    with Image.open(gif["value"] if isinstance(gif, dict) else gif) as moving:
        assert moving.n_frames == 12
    with pytest.raises(AppError, match="empty"):
        client.predict("a cat", " ", 1, 0, 7, api_name="/sdxl_lightning_walk")


def test_cancel_stops_in_the_middle(client):
    job = client.submit(*(CONTROLS | {"steps": "teacher", "teacher_steps": 64, "count": 16}).values(),
                        api_name="/sdxl_lightning_generate")  # fmt: skip
    deadline = time.monotonic() + 120
    while not any("Step" in str(each[1]) for each in job.outputs()) and time.monotonic() < deadline:
        time.sleep(0.05)  # until it has begun
    client.predict(api_name="/sdxl_lightning_cancel")
    assert "Cancelled" in job.result(timeout=120)[1]
    assert generate(client)[0].endswith(".png")


def test_two_visitors_typing_at_once_get_their_own_pictures(server):
    prompts = ["a cat", "a blue apple", "a dog", "two pears"]
    visitors = [Client(server.url, verbose=False) for _ in prompts[:2]]
    alone = {}
    for prompt in prompts:
        for steps in (1, 4):
            path = visitors[0].predict(prompt, steps, 5, api_name="/sdxl_lightning_live")[0]
            alone[prompt, steps] = np.asarray(Image.open(path), np.float32)
    wanted = [(prompt, steps) for prompt in prompts for steps in (1, 4)]
    jobs = [(key, visitors[i % 2].submit(*key, 5, api_name="/sdxl_lightning_live")) for i, key in enumerate(wanted * 2)]
    for key, job in jobs:
        found = np.asarray(Image.open(job.result(timeout=120)[0]), np.float32)
        # Not the same to the bit: fewer threads for each, so sums are rounded in another order, in bfloat16 where the
        # CPU computes in it.
        others = [picture for (prompt, _), picture in alone.items() if prompt != key[0]]
        assert 5 * np.abs(found - alone[key]).mean() < min(np.abs(found - other).mean() for other in others)


def test_the_policy_of_the_official_tier_is_stated(server, app_server):
    import httpx

    stated = "Neither publisher ships a safety filter"
    assert stated in httpx.get(f"{server.url}/config").text
    assert stated not in httpx.get(f"{app_server.url}/config").text


@pytest.mark.skipif(not (SHIPPED / "teacher_unet").is_dir(), reason="the trained networks are not here yet")
def test_the_embedded_tier_draws_or_says_why_not(app_server):
    client = Client(app_server.url, verbose=False)
    picture, said, *_ = generate(client, steps="teacher", teacher_steps=8, size="256 x 256")
    pixels = np.asarray(Image.open(picture), float)
    assert pixels.shape == (256, 256, 3) and pixels[:8, :8].mean() > 200  # a drawing on white
    assert "16 network evaluations" in said
    said, grid = client.predict("a blue apple", 1, api_name="/sdxl_lightning_compare")[:2]
    assert grid.count("<img") + grid.count('class="why"') == 9
    assert metadata.read(picture).network == "teacher"
