"""Students as folders for the Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn

from models.sdxl_lightning import hub
from models.sdxl_lightning.distil import save_student
from models.sdxl_lightning.lora import LoraNetwork
from models.sdxl_lightning.network import build_unet
from models.sdxl_lightning.schedule import scheduler_config


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_unet()


def test_a_folder_is_read_by_diffusers_and_the_network_stays_as_it_was(network: nn.Module, tmp_path: Path) -> None:
    folder = hub.write(network, tmp_path / "lightning-4step", 4, "Made for a test.", scheduler_config(), "apache-2.0")
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "UNet2DConditionModel"
    again = UNet2DConditionModel.from_pretrained(folder)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(again.state_dict()[name].float(), tensor, atol=1e-3, rtol=1e-3)
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["lightning-4step"]


def test_students_are_merged_or_taken_from_the_whole_network_that_was_trained(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, rivals, out = (tmp_path / name for name in ("shipped", "rivals", "out"))
    network.save_pretrained(shipped / "teacher_unet")  # type: ignore[operator]
    lora = LoraNetwork(network, rank=64)
    for up in lora.up.values():
        nn.init.normal_(up, std=0.02)
    for steps in (8, 4, 2):
        save_student(lora, shipped / f"lightning_{steps}step_lora.safetensors")
    save_student(network, shipped / "lightning_1step_unet_x0.safetensors")
    (rivals / "full-4").mkdir(parents=True)
    save_student(network, rivals / "full-4" / "student.safetensors")
    given = ["hub", "--weights", str(shipped), "--rivals", str(rivals), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    hub.main()
    merged, layer = lora.merged(), "mid_block.resnets.0.conv1.weight"
    for steps, expected in ((8, merged[layer]), (4, network.state_dict()[layer]), (2, merged[layer])):
        found = UNet2DConditionModel.from_pretrained(out / f"lightning-{steps}step").state_dict()[layer].float()
        torch.testing.assert_close(found, expected.detach(), atol=2e-3, rtol=2e-2)
    assert not torch.allclose(merged[layer], network.state_dict()[layer], atol=5e-3)
    one = EulerDiscreteScheduler.from_pretrained(out / "lightning-1step" / "scheduler")
    assert one.config["prediction_type"] == "sample"
    assert "unconditional objective" in (out / "lightning-4step" / "README.md").read_text()
    assert "unconditional objective" not in (out / "lightning-8step" / "README.md").read_text()
