"""Which rivals are measured, at what cost, and how far apart two students are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.sdxl_lightning.compare import interval, merged, rivals
from models.sdxl_lightning.distil import save_student
from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import build_unet
from models.sdxl_lightning.rivals import Cost, budget


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A shipped teacher, and rivals: LCM after 50 and 500 steps, a whole 4-step student, a longer 2-step LoRA."""
    shipped, runs = tmp_path_factory.mktemp("shipped"), tmp_path_factory.mktemp("rivals")
    torch.manual_seed(0)
    network = build_unet()
    network.save_pretrained(shipped / "teacher_unet")  # type: ignore[operator]
    (runs / "lcm").mkdir()
    for steps in (50, 500):
        save_student(network, runs / "lcm" / f"{steps}.safetensors")
    state(runs / "lcm", 600, 1200.0)
    (runs / "full-4").mkdir()
    save_student(network, runs / "full-4" / "student.safetensors")
    state(runs / "full-4" / "4-free", 30, 60.0)
    (runs / "longer-2").mkdir()
    save_student(LoraNetwork(network), runs / "longer-2" / "student.safetensors")
    for phase, steps in (("2-judged", 200), ("2-free", 100)):
        state(runs / "longer-2" / phase, steps, 2.0 * steps)
    return shipped, runs


def state(folder: Path, steps: int, cpu: float) -> None:
    folder.mkdir(exist_ok=True)
    torch.save({"step": steps, "cpu": cpu}, folder / "last.pt")


def test_lcm_is_taken_where_it_had_at_most_the_shipped_students_steps(folders: tuple[Path, Path]) -> None:
    found = {entry.model.steps: entry for entry in rivals(*folders) if entry.model.name == "LCM-style, full"}
    assert {n: entry.path.stem for n, entry in found.items()} == {8: "50", 4: "500", 2: "500", 1: "500"}
    assert found[8].cost == Cost(50, 100.0)  # in proportion: 1 200 seconds for 600 steps
    assert found[4].share == 500 / budget(4)
    noise, words = torch.randn(1, 16, 16, 16), torch.randn(1, 20, 384)
    assert found[1].model.draws is not None
    assert found[1].model.draws(noise, words).shape == noise.shape


def test_changed_stages_are_found_with_their_form_and_cost(folders: tuple[Path, Path]) -> None:
    found = {entry.model.name: entry for entry in rivals(*folders) if "LCM" not in entry.model.name}
    assert {name: entry.model.steps for name, entry in found.items()} == {
        "merged and trained whole, full": 4,
        "longer adversarial phases, LoRA": 2,
    }
    assert found["merged and trained whole, full"].cost == Cost(30, 60.0)
    assert found["longer adversarial phases, LoRA"].cost == Cost(300, 600.0)


def test_a_student_is_as_far_as_itself_and_a_worse_one_farther() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator)
    near, far = (real + torch.randn(200, 4, generator=generator) * size for size in (0.1, 2.0))
    ruler = SimpleNamespace(real=(real, real), matched=lambda whole: (whole - real).norm(dim=1) < 1)
    same = interval(ruler, (near, near), (near, near))  # type: ignore[arg-type]
    assert same == {"fid": [0, 0], "patch_fid": [0, 0], "match": [0, 0]}
    worse = interval(ruler, (far, far), (near, near))  # type: ignore[arg-type]
    assert worse["fid"][0] > 0 and worse["patch_fid"][0] > 0 and worse["match"][1] < 0
    better = interval(ruler, (near, near), (far, far))  # type: ignore[arg-type]
    assert better["fid"] == pytest.approx([-worse["fid"][1], -worse["fid"][0]])


def test_rows_of_rivals_that_are_gone_stay() -> None:
    same = {"captions": 8, "offered": 4, "resampled": 2}
    before = {**same, "rows": [{"name": "a", "steps": 4, "fid": 1.0}, {"name": "b", "steps": 4, "fid": 2.0}]}
    now = {**same, "rows": [{"name": "a", "steps": 4, "fid": 3.0}]}
    assert [row["fid"] for row in merged(before, now)["rows"]] == [3.0, 2.0]
    assert merged({**before, "captions": 9}, now) == merged({}, now) == now
