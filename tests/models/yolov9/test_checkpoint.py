"""Published checkpoint formats, damaged files and hostile ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.errors import BadInput, UnsafeCheckpoint, UserError, WeightsCorrupt, WeightsNotFound
from models.yolov9 import blocks, convert
from models.yolov9.checkpoint import (
    describe,
    load_network,
    mit_to_official,
    read,
    read_checkpoint,
    to_inference,
)
from models.yolov9.network import SIZES, Detect, DualDetect, Network, build, fuse

ROOT = Path(__file__).resolve().parents[3]


pytestmark = pytest.mark.usefixtures("one_thread")


class TestTrainingForm:
    @pytest.mark.parametrize("size", SIZES)
    def test_converted_output_is_the_main_output(self, size, tmp_path):
        dual = _network(f"yolov9-{size}", 80 if size == "t" else 3)
        torch.save(_halves(dual.state_dict()), tmp_path / "dual.pt")
        network, info, names = load_network(tmp_path / "dual.pt")
        assert (info.name, info.form, info.naming) == (f"gelan-{size}", "training", "official")
        assert info.parameters == sum(p.numel() for p in dual.parameters())
        assert names is None and not network.training
        assert torch.equal(_output(network), _output(dual))

    def test_keys_are_the_published_ones_in_float32(self, tmp_path):
        torch.save(_halves(_network("yolov9-t").state_dict()), tmp_path / "x.pt")
        tensors = read_checkpoint(tmp_path / "x.pt")
        assert tensors.keys() == _network("gelan-t").state_dict().keys()
        assert {t.dtype for k, t in tensors.items() if "num_batches" not in k} == {torch.float32}

    def test_only_dual_networks_are_converted(self):
        with pytest.raises(BadInput, match="last layer is 22"):
            to_inference(_network("gelan-t").state_dict())


class TestOfficialPickles:
    """Whole models pickled by classes of `models.yolo` and `models.common`, read where those do not exist."""

    @pytest.mark.parametrize("name", ["gelan-t", "gelan-m", "yolov9-t", "yolov9-m"])
    def test_stripped_file(self, name, tmp_path):
        source = _network(name)
        names = [f"thing {i}" for i in range(80)]
        _save_official(tmp_path / "x.pt", {"model": (source, names), "ema": None, "epoch": -1, "optimizer": None})
        network, info, found = load_network(tmp_path / "x.pt")
        assert info.form == ("training" if name.startswith("yolov9") else "inference")
        assert found == names
        assert torch.equal(_output(network), _output(source))

    def test_names_as_a_dict(self, tmp_path):
        _save_official(tmp_path / "x.pt", {"model": (_network("gelan-t", 3), {0: "a", 1: "b", 2: "c"})})
        assert read(tmp_path / "x.pt").class_names == ["a", "b", "c"]

    def test_names_of_another_class_count_are_left_out(self, tmp_path):
        _save_official(tmp_path / "x.pt", {"model": (_network("gelan-t", 3), ["a", "b"])})
        assert read(tmp_path / "x.pt").class_names is None

    def test_unstripped_file_gives_the_average(self, tmp_path):
        model, average = _network("yolov9-t", 3), _network("yolov9-t", 3, seed=1)
        weight = next(model.parameters()).detach()
        checkpoint = {
            "epoch": 12,
            "best_fitness": np.array([0.25]),
            "updates": np.float64(3.0),
            "model": (model, list("abc")),
            "ema": (average, list("xyz")),
            "optimizer": {
                "state": {0: {"momentum_buffer": weight.clone(), "step": torch.tensor(3.0)}},
                "param_groups": [{"lr": 0.01, "nesterov": True, "params": [0, 1, 2]}],
            },
            "opt": {"hyp": {"lr0": 0.01}, "save_dir": Path("runs"), "freeze": [0]},
            "git": {"remote": None},
            "date": "2024-02-18T00:00:00",
        }
        _save_official(tmp_path / "last.pt", checkpoint)
        network, _, names = load_network(tmp_path / "last.pt")
        assert names == ["x", "y", "z"]
        assert torch.equal(_output(network), _output(average))
        assert not torch.equal(_output(network), _output(model))

    def test_whole_model_without_a_dict(self, tmp_path):
        source = _network("gelan-t", 3)
        _save_official(tmp_path / "x.pt", (source, list("abc")))
        assert torch.equal(_output(load_network(tmp_path / "x.pt")[0]), _output(source))

    def test_pickle_protocol_4(self, tmp_path):
        source = _network("gelan-t", 3)
        _save_official(tmp_path / "x.pt", {"model": (source, list("abc"))}, pickle_protocol=4)
        assert torch.equal(_output(load_network(tmp_path / "x.pt")[0]), _output(source))

    def test_non_persistent_buffers_are_not_read(self, tmp_path):
        source = _network("gelan-t", 3)
        network = deepcopy(source)
        network.model[0].register_buffer("scratch", torch.ones(2), persistent=False)
        _save_official(tmp_path / "x.pt", {"model": (network, [])})
        assert read_checkpoint(tmp_path / "x.pt").keys() == source.state_dict().keys()

    def test_modules_that_contain_themselves(self, tmp_path):
        loop = nn.Sequential(nn.Linear(1, 1))
        loop.add_module("again", loop)
        torch.save({"model": loop}, tmp_path / "x.pt")
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / "x.pt")


class TestMitFiles:
    @pytest.mark.parametrize(
        ("size", "parameters", "deployed"),
        [
            ("t", 3_717_744, 2_442_672),
            ("s", 9_804_576, 7_226_240),
            ("m", 32_878_496, 20_124_032),
            ("c", 51_182_144, 25_498_784),
        ],
    )
    def test_with_and_without_auxiliary_branch(self, size, parameters, deployed, tmp_path):
        dual = _network(f"yolov9-{size}")
        expected = _output(dual)
        lightning = {f"model.model.{key}": tensor for key, tensor in _halves(_mit_state_dict(dual)).items()}
        torch.save({"state_dict": lightning, "epoch": 1, "loops": {}}, tmp_path / "x.ckpt")
        network, info, _ = load_network(tmp_path / "x.ckpt")
        assert (info.form, info.naming, info.parameters) == ("training", "mit", parameters)
        assert torch.equal(_output(network), expected)

        torch.save(_halves(_mit_state_dict(network)), tmp_path / "deploy.pt")
        again, info, _ = load_network(tmp_path / "deploy.pt")
        assert (info.form, info.naming, info.parameters) == ("inference", "mit", deployed)
        assert torch.equal(_output(again), expected)

    def test_keys_of_both_forms(self):
        for name in ("gelan-t", "yolov9-t", "gelan-c", "yolov9-c"):
            network = _network(name)
            assert mit_to_official(_mit_state_dict(network)).keys() == network.state_dict().keys()

    def test_averaged_weights_of_lightning_are_preferred(self, tmp_path):
        model, average = _network("gelan-t", 3), _network("gelan-t", 3, seed=1)
        both = {f"model.model.{k}": t for k, t in _mit_state_dict(model).items()}
        both |= {f"ema.model.{k}": t for k, t in _mit_state_dict(average).items()}
        torch.save({"state_dict": both}, tmp_path / "x.ckpt")
        assert torch.equal(_output(load_network(tmp_path / "x.ckpt")[0]), _output(average))


class TestDescribe:
    @pytest.mark.parametrize("size", SIZES)
    def test_sizes_and_class_counts(self, size):
        for kind, form in (("gelan", "inference"), ("yolov9", "training")):
            with torch.device("meta"):
                network = build(f"{kind}-{size}", 3)
            info = describe(network.state_dict())
            assert (info.name, info.classes, info.form) == (f"gelan-{size}", 3, form)

    @pytest.mark.parametrize("width", [64, 80, 128])
    def test_class_width_of_t_comes_from_the_tensors(self, width, tmp_path):
        with torch.device("meta"):
            shapes = build("gelan-t", class_width=width).state_dict()
        torch.save({key: torch.zeros(t.shape, dtype=t.dtype) for key, t in shapes.items()}, tmp_path / "t.pt")
        network, info, _ = load_network(tmp_path / "t.pt")
        assert info.class_width == width == network.head.cv3[0][0].conv.out_channels

    def test_three_classes(self, tmp_path):
        torch.save(_network("gelan-s", 3).state_dict(), tmp_path / "s.pt")
        network, info, _ = load_network(tmp_path / "s.pt")
        assert info.classes == 3 and _output(network).shape[1] == 7

    def test_fused_weights_are_refused(self, tmp_path):
        torch.save(fuse(deepcopy(_network("gelan-t", 3))).state_dict(), tmp_path / "fused.pt")
        with pytest.raises(BadInput, match="already fused.*Use the file it was made from"):
            read_checkpoint(tmp_path / "fused.pt")

    def test_shape_mismatches_are_named(self, tmp_path):
        tensors = dict(_network("gelan-t", 3).state_dict())
        tensors["model.22.cv3.1.2.weight"] = torch.zeros(80, 64, 1, 1)
        tensors["model.4.cv4.conv.weight"] = torch.zeros(64, 128, 3, 3)
        del tensors["model.7.cv1.bn.bias"]
        tensors["model.7.extra"] = torch.zeros(1)
        torch.save(tensors, tmp_path / "x.pt")
        with pytest.raises(BadInput) as caught:
            read_checkpoint(tmp_path / "x.pt")
        message = str(caught.value)
        assert "4 tensors do not fit gelan-t with 3 classes" in message
        assert "model.22.cv3.1.2.weight is 80x64x1x1, not 3x64x1x1" in message
        assert "model.4.cv4.conv.weight is 64x128x3x3, not 64x128x1x1" in message
        assert "model.7.cv1.bn.bias is missing" in message
        assert "model.7.extra is not part of the network" in message

    def test_other_networks_are_refused(self, tmp_path):
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pt")
        with pytest.raises(BadInput, match=r"x\.pt: these are not the weights of a YOLOv9"):
            read_checkpoint(tmp_path / "x.pt")

    @pytest.mark.parametrize(
        ("key", "value", "error"),
        [
            ("model.0.conv.weight", torch.full((16, 3, 3, 3), float("nan")), WeightsCorrupt),
            ("model.0.conv.weight", torch.ones((16, 3, 3, 3), dtype=torch.int64), BadInput),
        ],
    )
    def test_values_that_cannot_be_weights(self, key, value, error, tmp_path):
        torch.save({**_network("gelan-t", 3).state_dict(), key: value}, tmp_path / "x.pt")
        with pytest.raises(error, match=key):
            read_checkpoint(tmp_path / "x.pt")


class TestDamagedFiles:
    @pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.999])
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_truncated(self, keep, suffix, tmp_path):
        whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
        state = dict(_network("gelan-t", 3).state_dict())
        (torch.save if suffix == "pt" else save_file)(state, whole)
        path.write_bytes(whole.read_bytes()[: int(keep * whole.stat().st_size)])
        with pytest.raises(WeightsCorrupt, match=f"cut.{suffix}") as caught:
            read_checkpoint(path)
        assert str(tmp_path) not in str(caught.value)

    def test_missing_file(self, tmp_path):
        with pytest.raises(WeightsNotFound, match=r"no file nothing\.pt"):
            read_checkpoint(tmp_path / "nothing.pt")

    def test_folder(self, tmp_path):
        with pytest.raises(UserError):
            read_checkpoint(tmp_path)

    def test_something_else(self, tmp_path):
        (tmp_path / "photo.pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        with pytest.raises(BadInput, match=r"photo\.pt is not a checkpoint"):
            read_checkpoint(tmp_path / "photo.pt")

    def test_zip_of_something_else(self, tmp_path):
        _write_zip(tmp_path / "x.pt", {"readme.txt": b"hello"})
        with pytest.raises(BadInput, match="not a PyTorch checkpoint"):
            read_checkpoint(tmp_path / "x.pt")

    def test_torchscript(self, tmp_path):
        _write_zip(tmp_path / "x.pt", {"x/data.pkl": pickle.dumps({}, 2), "x/constants.pkl": b""})
        with pytest.raises(BadInput, match="TorchScript"):
            read_checkpoint(tmp_path / "x.pt")

    def test_nothing_inside(self, tmp_path):
        torch.save({"model": None, "epoch": 3}, tmp_path / "x.pt")
        with pytest.raises(BadInput, match="no model and no state dict"):
            read_checkpoint(tmp_path / "x.pt")

    @pytest.mark.parametrize("data", [None, b"1234"])
    def test_storage_missing_or_short(self, data, tmp_path):
        torch.save({"model.0.conv.weight": torch.ones(4)}, tmp_path / "whole.pt")
        with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        entries = {k: data if k.endswith("data/0") else v for k, v in entries.items()}
        _write_zip(tmp_path / "x.pt", {k: v for k, v in entries.items() if v is not None})
        with pytest.raises(WeightsCorrupt):
            read_checkpoint(tmp_path / "x.pt")

    @pytest.mark.parametrize("data", [b"\x80\x02", b"\x80\x02R.", b"\x80\x02h\x05.", b"\x80\x02)\x85q", b"\xff."])
    def test_broken_pickles(self, data, tmp_path):
        _write_zip(tmp_path / "x.pt", {"x/data.pkl": data})
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / "x.pt")


class _Payload:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _stack_global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that create `marker`, or try to, by every way a pickle can reach code."""
    command = f"touch '{marker}'"
    python = f"open({str(marker)!r}, 'w').close()"
    call = _text(command) + b"\x85R."
    shell = _global("models.common", "Conv") + b")\x81"
    system = _global("os", "system")
    return {
        "os.system": pickle.dumps(_Payload(os.system, command), 2),
        "os.system in a dict": pickle.dumps({"model": [1, _Payload(os.system, command)]}, 4),
        "builtins.eval": pickle.dumps(_Payload(eval, python), 2),
        "builtins.exec": pickle.dumps(_Payload(exec, python), 4),
        "subprocess": pickle.dumps(_Payload(subprocess.call, ["touch", str(marker)]), 2),
        "python 2 name": b"\x80\x02" + _global("__builtin__", "eval") + _text(python) + b"\x85R.",
        "dotted attribute": b"\x80\x02" + _global("models.common", "os.system") + call,
        "dotted module": b"\x80\x02" + _global("models.common.os", "system") + call,
        "dotted attribute, protocol 4": b"\x80\x04" + _stack_global("models.common", "os.system") + call,
        "dotted class attribute": b"\x80\x04" + _stack_global("models.yolo", "Conv.forward") + call,
        "torch module": b"\x80\x04" + _stack_global("torch.nn.modules.module", "torch.hub.load") + call,
        "torch function": b"\x80\x02" + _global("torch.hub", "load") + call,
        "lower-case name": b"\x80\x02" + _global("models.common", "system") + call,
        "line break in a name": b"\x80\x04" + _stack_global("models.common", "Conv\n") + call,
        "stack name that is no text": b"\x80\x04K\x01K\x02\x93.",
        "call of a layer": b"\x80\x02" + _global("models.common", "Conv") + call,
        "call of an object": b"\x80\x02" + shell + call,
        "arguments for a layer": b"\x80\x02" + _global("models.common", "Conv") + _text(command) + b"\x85\x81.",
        "__setstate__": b"\x80\x02" + shell + b"}" + _text("__setstate__") + system + b"sb" + _text(command) + b"b.",
        "attributes of a class": b"\x80\x02" + _global("models.common", "Conv") + b"}b.",
        "attributes of a function": b"\x80\x02" + _global("torch._utils", "_rebuild_tensor_v2") + b"}b.",
        "instruction INST": b"(" + b"S'" + command.replace("'", "").encode() + b"'\nios\nsystem\n.",
        "instruction OBJ": b"(" + system + _text(command) + b"o.",
        "instruction EXT1": b"\x80\x02\x82\x01.",
        "text persistent id": b"Pos.system\n.",
        "storage of a foreign type": b"\x80\x02(" + _text("storage") + system + _text("0") * 2 + b"K\x01tQ.",
        "items of an object": b"\x80\x02" + shell + _text("a") + _text("b") + b"s.",
        "numpy": b"\x80\x02" + _global("numpy.testing._private.utils", "runstring") + _text(python) + b"}\x86R.",
        "many names": b"\x80\x02" + b"".join(_global("models.common", f"C{i}") for i in range(70)) + b".",
    }


class TestHostileFiles:
    @pytest.mark.parametrize("kind", list(_hostile(Path("x"))))
    def test_refused_without_running(self, kind, tmp_path):
        marker = tmp_path / "marker"
        _write_zip(tmp_path / "x.pt", {"x/data.pkl": _hostile(marker)[kind], "x/byteorder": b"little"})
        with pytest.raises(UnsafeCheckpoint, match=r"^x\.pt contains .* nothing in it was run"):
            read_checkpoint(tmp_path / "x.pt")
        assert not marker.exists()

    @pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "builtins.exec", "subprocess", "instruction OBJ"])
    def test_the_payloads_are_real(self, kind, tmp_path):
        marker = tmp_path / "marker"
        pickle.loads(_hostile(marker)[kind])
        assert marker.exists()

    def test_inside_an_official_model(self, tmp_path):
        marker = tmp_path / "marker"
        names = ["a", "b", _Payload(os.system, f"touch '{marker}'")]
        _save_official(tmp_path / "x.pt", {"model": (_network("gelan-t", 3), names)})
        with pytest.raises(UnsafeCheckpoint, match=r"(posix|nt)\.system"):
            read_checkpoint(tmp_path / "x.pt")
        assert not marker.exists()

    def test_legacy_file(self, tmp_path):
        marker = tmp_path / "marker"
        payload = {"model": _Payload(os.system, f"touch '{marker}'")}
        torch.save(payload, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        with pytest.raises(UnsafeCheckpoint, match=r"old\.pt is a bare pickle.*not opened"):
            read_checkpoint(tmp_path / "old.pt")
        (tmp_path / "raw.pt").write_bytes(_hostile(marker)["instruction INST"])
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / "raw.pt")
        assert not marker.exists()

    def test_zip_bomb(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", pickle.dumps({}, 2))
            archive.writestr("x/data/0", bytes(20_000_000))
        with pytest.raises(UnsafeCheckpoint, match="would unpack to"):
            read_checkpoint(tmp_path / "x.pt")

    def test_tensor_that_expands_its_storage(self, tmp_path):
        torch.save({"model.0.conv.weight": torch.ones(1).expand(1_000_000)}, tmp_path / "x.pt")
        with pytest.raises(WeightsCorrupt):
            read_checkpoint(tmp_path / "x.pt")

    def test_nested_dictionary_key(self, tmp_path):
        data = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
        _write_zip(tmp_path / "x.pt", {"x/data.pkl": data})
        with pytest.raises(WeightsCorrupt):
            read_checkpoint(tmp_path / "x.pt")


class TestConvert:
    def test_command(self, tmp_path):
        source = _network("yolov9-t", 3)
        _save_official(tmp_path / "in.pt", {"model": (source, ["ant", "bee", "cat"])})
        done = _run("in.pt", "out.safetensors", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in ("gelan-t", "training", "official", "ant, bee, cat"))
        assert f"{sum(p.numel() for p in source.parameters()):,}" in done.stdout

        stored = load_file(tmp_path / "out.safetensors")
        assert stored["model.0.conv.weight"].dtype == torch.float16
        with safe_open(tmp_path / "out.safetensors", "pt") as file:
            metadata = file.metadata()
        assert (metadata["name"], metadata["classes"], metadata["source"]) == ("gelan-t", "3", "in.pt")
        assert len(metadata["source_sha256"]) == 64 and metadata["licence"] == convert.LICENCE
        assert json.loads(metadata["names"]) == ["ant", "bee", "cat"]

        network, info, names = load_network(tmp_path / "out.safetensors")
        assert info.form == "inference" and names == ["ant", "bee", "cat"]
        assert torch.equal(_output(network), _output(source))

    def test_command_refuses_with_the_message(self, tmp_path):
        marker = tmp_path / "marker"
        _write_zip(tmp_path / "in.pt", {"x/data.pkl": _hostile(marker)["os.system"]})
        done = _run("in.pt", "out.safetensors", folder=tmp_path)
        assert done.returncode == 2
        assert "Checkpoint refused" in done.stderr and "Traceback" not in done.stderr
        assert not marker.exists() and not (tmp_path / "out.safetensors").exists()

    def test_float32(self, tmp_path):
        torch.save(_network("gelan-t", 3).state_dict(), tmp_path / "in.pt")
        assert convert.main([str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors"), "--float32"]) == 0
        assert load_file(tmp_path / "out.safetensors")["model.0.conv.weight"].dtype == torch.float32

    @pytest.mark.parametrize("target", ["out.pt", "no/such/folder/out.safetensors"])
    def test_targets_that_cannot_be_written(self, target, tmp_path, capsys):
        torch.save(_network("gelan-t", 3).state_dict(), tmp_path / "in.pt")
        assert convert.main([str(tmp_path / "in.pt"), str(tmp_path / target)]) == 2
        message = capsys.readouterr().err
        assert Path(target).name in message and str(tmp_path) not in message

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as caught:
            convert.main(["--help"])
        assert caught.value.code == 0 and "OUT.safetensors" in capsys.readouterr().out


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "models.yolov9.convert", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@cache
def _network(name: str, classes: int = 80, seed: int = 0) -> Network:
    """Random weights and statistics, all exact in float16, in eval mode. Not to be changed by a test."""
    with torch.device("meta"):
        network = build(name, classes)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, meta in network.state_dict().items():
        u = torch.rand(meta.shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(7)
        elif ".dfl" in key:
            tensors[key] = torch.arange(16.0).view(meta.shape)
        elif meta.ndim == 4:
            tensors[key] = ((2 * u - 1) * (3 / meta[0].numel()) ** 0.5).half().float()
        else:
            tensors[key] = (u + 0.5).half().float()
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def _halves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the released files are; nothing is lost, the weights of `_network` being exact in float16."""
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def _output(network: nn.Module) -> Tensor:
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        y = network(image)
    assert y.isfinite().all()
    return y


def _write_zip(path: Path, entries: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


# ---- official pickles -------------------------------------------------------------------------------------

_YOLO = {Network: "DetectionModel", Detect: "DDetect", DualDetect: "DualDDetect"}


def _save_official(path: Path, checkpoint: Any, **options: Any) -> None:
    """Saves a checkpoint in which every `(network, names)` is a whole float16 model of official classes."""
    with _official_classes() as classes:
        buffer = io.BytesIO()
        if isinstance(checkpoint, tuple):
            checkpoint = _official_model(*checkpoint, classes)
        else:
            checkpoint = {
                key: _official_model(*value, classes) if isinstance(value, tuple) else value
                for key, value in checkpoint.items()
            }
        torch.save(checkpoint, buffer, **options)
    assert "models.yolo" not in sys.modules and "models.common" not in sys.modules
    path.write_bytes(buffer.getvalue())


@contextmanager
def _official_classes() -> Iterator[dict[type, type]]:
    """Modules `models.yolo` and `models.common` with empty classes, gone again afterwards."""
    common = {
        cls: cls.__name__
        for cls in vars(blocks).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == blocks.__name__
    }
    classes: dict[type, type] = {}
    for module_name, names in (("models.yolo", _YOLO), ("models.common", common)):
        module = types.ModuleType(module_name)
        for ours, name in names.items():
            classes[ours] = type(name, (nn.Module,), {"__module__": module_name})
            setattr(module, name, classes[ours])
        sys.modules[module_name] = module
    try:
        yield classes
    finally:
        del sys.modules["models.yolo"], sys.modules["models.common"]


def _official_model(network: Network, names: Any, classes: dict[type, type]) -> nn.Module:
    model: Any = deepcopy(network).half()
    for attribute in ("name", "sources", "eval_sources", "eval_layers", "_last_use"):
        delattr(model, attribute)
    for i, layer in enumerate(model.model):
        layer.i, layer.f, layer.np = i, -1, sum(p.numel() for p in layer.parameters())
        layer.type = f"models.common.{type(layer).__name__}"
    head = model.model[-1]
    head.stride, head.shape, head.nc = (
        torch.tensor([8.0, 16.0, 32.0]),
        torch.Size([1, 3, 64, 64]),
        head.classes,
    )
    head.anchors = torch.zeros(2, 84).half()
    model.names, model.yaml, model.save, model.nc = (
        names,
        {"nc": head.classes, "ch": 3},
        [4, 6, 9],
        head.classes,
    )
    for module in list(model.modules()):
        module.__class__ = classes.get(type(module), type(module))
    model.model.__class__ = nn.Sequential
    return model


# ---- names of the MIT rewrite (specification, section 12), by block type ----------------------------------


def _mit_state_dict(network: Network) -> dict[str, Tensor]:
    last = len(network.model) - 1
    shift = {22: (0, 0), 29: (0, 1), 38: (-1, 0)}[last]  # of layers up to P5 and of the auxiliary ones
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(network.model):
        if isinstance(layer, Detect | DualDetect):
            tensors |= _mit_head(layer, 30 if last == 29 else 38)
            continue
        auxiliary = i > (22 if shift[0] else 21)
        for path, tensor in _mit_layer(layer):
            tensors[f"{i + shift[auxiliary]}.{path}"] = tensor
    return tensors


def _mit_head(head: Detect | DualDetect, auxiliary: int) -> dict[str, Tensor]:
    towers = [(22, head.cv2, head.cv3)]
    if isinstance(head, DualDetect):
        towers = [(22, head.cv4, head.cv5), (auxiliary, head.cv2, head.cv3)]
    tensors = {}
    for layer, boxes, classes in towers:
        for level in range(3):
            prefix = f"{layer}.heads.{level}"
            tensors |= {f"{prefix}.anchor_conv.{k}": t for k, t in boxes[level].state_dict().items()}
            tensors |= {f"{prefix}.class_conv.{k}": t for k, t in classes[level].state_dict().items()}
            tensors[f"{prefix}.anc2vec.anc2vec.weight"] = torch.arange(16.0).view(1, 16, 1, 1, 1)
    return tensors


def _mit_layer(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        yield name, tensor.detach()
    for name, child in module.named_children():
        renamed = name
        if isinstance(module, blocks.AConv):
            renamed = "conv"
        elif name == "m":
            renamed = "bottleneck"
        elif name.startswith("cv"):
            renamed = f"conv{name[2:]}"
        for path, tensor in _mit_layer(child):
            yield f"{renamed}.{path}", tensor
