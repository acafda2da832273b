"""The lean loop against plain diffusers calls of the same weights; orders; image-to-image; walks; errors."""

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors.torch import save_file

from models.errors import BadInput, Cancelled, WeightsNotFound
from models.sdxl_lightning.pipeline import MOST_PICTURES, TEACHER, Family, Network, Order, Student, placed
from models.sdxl_lightning.schedulers import SDXL_BASE, student_scheduler, teacher_scheduler
from tests.models.sdxl_lightning.conftest import kohya_lora, small_unet

NETWORKS = {TEACHER: 0, Network(1, "unet"): 1, Network(2, "lora"): 2, Network(4, "lora"): 4}


def family(pipe, dtype=torch.float32):
    sources = {network: (lambda seed=seed: small_unet(seed)) for network, seed in NETWORKS.items()}
    absent = {Network(8, "unet"): "The 8-step student is not trained yet."}
    ours = copy.deepcopy(pipe)
    ours.vae.to(dtype)
    return Family(ours, dict(SDXL_BASE), sources, absent, placed("cpu", dtype), dtype, native=(32, 32), guidance=3.0)


@pytest.fixture
def ours(small_pipe):
    return family(small_pipe)


def plain(pipe, order, scheduler, **more):
    """What diffusers itself draws."""
    pipe = copy.deepcopy(pipe)
    pipe.unet, pipe.scheduler = small_unet(NETWORKS[order.network]), scheduler
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(order.seed + i) for i in range(order.count)]
    return pipe(
        order.prompt, num_images_per_prompt=order.count, generator=generators, height=32, width=32, **more
    ).images


def difference(first, second):
    return np.abs(
        np.stack([np.asarray(a, np.float32) for a in first]) - np.stack([np.asarray(b, np.float32) for b in second])
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_students_draw_what_diffusers_draws(small_pipe, ours, steps):
    order = Order("a blue apple", ours.student(steps), seed=5, count=3)
    made = ours.generate(order)
    expected = plain(
        small_pipe, order, student_scheduler(SDXL_BASE, steps), num_inference_steps=steps, guidance_scale=0
    )
    assert difference(made.images, expected).max() <= 1
    assert (made.steps, made.evaluations, made.seeds) == (steps, steps, [5, 6, 7])


def test_bfloat16_draws_the_same_within_two_levels(small_pipe):
    order = Order("a blue apple", Network(2, "lora"), seed=5, count=3)
    made = family(small_pipe, torch.bfloat16).generate(order)
    expected = plain(small_pipe, order, student_scheduler(SDXL_BASE, 2), num_inference_steps=2, guidance_scale=0)
    assert 0 < difference(made.images, expected).mean() <= 2


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_teacher_draws_what_diffusers_draws(small_pipe, ours, guidance):
    order = Order("a red cat", TEACHER, steps=5, seed=1, count=2, guidance=guidance)
    made = ours.generate(order)
    expected = plain(small_pipe, order, teacher_scheduler(SDXL_BASE), num_inference_steps=5, guidance_scale=guidance)
    assert difference(made.images, expected).max() <= 1
    assert made.evaluations == (5 if guidance == 1 else 10)


def test_order_one_then_four_equals_a_fresh_four(small_pipe):
    four = Order("a blue apple", Network(4, "lora"), seed=3)
    used, fresh = family(small_pipe), family(small_pipe)
    used.generate(Order("a blue apple", Network(1, "unet"), seed=3))
    assert used.generate(four).images[0].tobytes() == fresh.generate(four).images[0].tobytes()


@pytest.mark.parametrize("strength", [1, 2, 4])
def test_image_to_image_is_diffusers_own(small_pipe, ours, strength):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    order = Order("a red cat", Network(4, "lora"), seed=2, picture=picture, strength=strength)
    made = ours.generate(order)
    pipe = copy.deepcopy(small_pipe)
    theirs = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    theirs.unet, theirs.scheduler = small_unet(4), student_scheduler(SDXL_BASE, 4)
    # Ours starts from the mean of the encoder's distribution: give theirs its latents, which draw nothing from it.
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        order.prompt, image=ours.encode(picture, (32, 32)), strength=strength / 4, num_inference_steps=4,
        guidance_scale=0, generator=torch.Generator().manual_seed(2),
    ).images  # fmt: skip
    assert difference(made.images, expected).max() <= 1
    assert made.steps == strength


def test_each_picture_depends_on_its_own_seed_only(ours):
    many = ours.generate(Order("a cat", Network(2, "lora"), seed=10, count=11))
    one = ours.generate(Order("a cat", Network(2, "lora"), seed=19))
    assert difference([many.images[9]], one.images).max() <= 1
    assert len({image.tobytes() for image in many.images}) == 11


def test_an_embedding_is_computed_once(ours):
    for seed in range(3):
        ours.generate(Order("a blue apple", Network(1, "unet"), seed=seed))
    ours.generate(Order("  a   blue\napple ", Network(2, "lora")))
    assert ours.encoder.hits == 3


def test_a_walk_starts_and_ends_at_the_two_prompts(ours):
    order = Order("a red cat", Network(2, "lora"), seed=4)
    frames = list(ours.walk(order, "a pink fox", 6))
    ends = [ours.generate(replace(order, prompt=prompt)).images[0] for prompt in ("a red cat", "a pink fox")]
    assert len(frames) == 6
    assert difference([frames[0], frames[-1]], ends).max() <= 1
    assert np.any(frames[2] != frames[0])


def test_previews_come_after_each_step_and_the_last_is_the_picture(ours):
    seen = []
    made = ours.generate(
        Order("a cat", Network(4, "lora")), lambda done, total, draw: seen.append((done, total, draw()))
    )
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert difference([seen[-1][2]], made.images).max() <= 1


def test_cancelling_stops_before_the_next_pass(ours):
    passes = []
    network, _ = ours.network(Order("a cat", Network(4, "lora")))
    network.register_forward_hook(lambda *_: passes.append(1))

    def stop(done, total, draw):
        if done == 2:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        ours.generate(Order("a cat", Network(4, "lora")), stop)
    assert len(passes) == 2
    assert len(ours.generate(Order("a cat", Network(4, "lora"))).images) == 1


def test_two_visitors_with_different_steps_do_not_disturb_each_other(small_pipe):
    ours, orders = (
        family(small_pipe),
        [Order("a cat", Network(1, "unet"), seed=1), Order("a dog", Network(4, "lora"), seed=1)],
    )
    alone = [family(small_pipe).generate(order).images[0].tobytes() for order in orders]
    wrong = []

    def visit(order, expected):
        for _ in range(6):
            if ours.generate(order).images[0].tobytes() != expected:
                wrong.append(order)

    threads = [threading.Thread(target=visit, args=pair) for pair in zip(orders, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_lora_of_your_own_changes_the_picture_and_leaves_the_network(ours, tmp_path):
    save_file(kohya_lora(small_unet(), 9), tmp_path / "mine.safetensors")
    order = Order("a cat", Network(1, "unet"), seed=1)
    before = ours.generate(order).images[0].tobytes()
    changed = ours.generate(replace(order, lora=tmp_path / "mine.safetensors"))
    assert changed.images[0].tobytes() != before and "layers changed" in changed.notes[0]
    assert ours.generate(replace(order, lora=tmp_path / "mine.safetensors", lora_scale=0)).images[0].tobytes() == before
    assert ours.generate(order).images[0].tobytes() == before


def test_networks_leave_memory_when_others_come(ours):
    ours.resident = 2
    first, _ = ours.network(Order("a", Network(1, "unet")))
    assert ours.network(Order("b", Network(1, "unet")))[0] is first
    for network in (Network(2, "lora"), Network(4, "lora")):
        ours.network(Order("a", network))
    assert len(ours._networks) == 2 and ours.network(Order("a", Network(1, "unet")))[0] is not first


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ("  \n\t ", "empty"),
        ("x" * 10_000, "10,000 characters; at most 1,000"),
        ("a \x00 cat", "U[+]0000"),
        ("bell \x07", "U[+]0007"),
        ("half \ud800", "U[+]D800"),
        (None, "must be text"),
        (7, "must be text"),
        ("猫 кот", "knows none"),
    ],
)
def test_prompts_that_cannot_be_drawn(ours, prompt, says):
    with pytest.raises(BadInput, match=says):
        ours.generate(Order(prompt, Network(1, "unet")))


def test_long_and_foreign_prompts_are_drawn_with_a_note(ours):
    notes = ours.generate(Order("cat " * 100, Network(1, "unet"))).notes
    assert notes == ("The prompt has 100 tokens; the text encoder reads the first 14.",)
    notes = ours.generate(Order("cat кот собака", Network(1, "unet"))).notes
    assert "does not know" in notes[0] and "English" in notes[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": (33, 32)}, "off the latent grid: sides are multiples of 4"),
        ({"size": (0, 32)}, "off the latent grid"),
        ({"size": (-32, 32)}, "off the latent grid"),
        ({"size": (128, 64)}, "more than 4 times 32 x 32"),
        ({"size": (10**6, 10**6)}, "Choose a smaller size"),
        ({"count": 0}, f"1 to {MOST_PICTURES} pictures"),
        ({"count": 65}, f"1 to {MOST_PICTURES} pictures"),
        ({"count": 17, "size": (64, 64)}, "1 to 16 pictures"),
        ({"seed": -1}, "Seeds go from 0"),
        ({"seed": 2**32}, "Seeds go from 0"),
        ({"steps": 3}, "runs 1 steps, not 3"),
        ({"guidance": 7.5}, "distilled"),
        ({"strength": 1}, "needs a picture and a strength"),
        ({"network": TEACHER}, "how many steps the teacher"),
        ({"network": TEACHER, "steps": 1000}, "1 to 64"),
        ({"network": TEACHER, "steps": 4, "guidance": 99}, "from 1 [(]none[)] to 30"),
        ({"picture": Image.new("RGB", (32, 32)), "strength": 2}, "1 to 1 can be run"),
    ],
)
def test_orders_that_cannot_be_drawn(ours, changes, says):
    with pytest.raises(BadInput, match=says):
        ours.generate(replace(Order("a cat", Network(1, "unet")), **changes))


def test_a_student_that_is_not_here_says_why(ours):
    with pytest.raises(WeightsNotFound, match="8-step student is not trained yet"):
        ours.student(8)
    with pytest.raises(WeightsNotFound, match="8-step student is not trained yet"):
        ours.generate(Order("a cat", Network(8, "unet")))
    with pytest.raises(BadInput, match="1, 2, 4, 8"):
        ours.student(3)


def test_the_short_way(ours):
    images = Student(ours, ours.student(2)).generate("a cat", seed=3, size=(40, 32), count=2)
    assert [image.size for image in images] == [(40, 32)] * 2
