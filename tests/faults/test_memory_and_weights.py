"""Memory that runs out, weights that rot on the disk, a clock that jumps."""

import ast
import shutil
from pathlib import Path

import pytest

from models import weights
from models.errors import OutOfMemory, WeightsCorrupt, is_out_of_memory
from models.runtime import Device, LoadedModel, ModelInfo, Runtime
from tests.calls import Caller

ROOT = Path(__file__).resolve().parent.parent.parent
CPU = Device("cpu", None, "float32", False)


def too_much_memory() -> BaseException:
    """What torch really raises on this machine for an exabyte."""
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


class TestMemory:
    def test_torchs_own_error_on_the_cpu_is_known(self):
        assert is_out_of_memory(too_much_memory())
        assert not is_out_of_memory(RuntimeError("a shape mismatch"))

    def test_while_loading_says_so_and_the_next_use_works(self, held):
        import torch

        url, job = held
        job.may_load.set()
        job.fail_with = [too_much_memory(), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
        caller = Caller(url)
        for _ in range(3):
            assert "not enough memory to load held" in caller.said("once", "x")
            assert job.handle.status().state == "failed" and job.handle._runtime.memory_used() == 0
        assert caller.call("once", "x") == ("complete", ["x"])

    def test_while_working_says_so_and_the_model_stays(self):
        from demos.parts import user_errors

        runtime = Runtime(10**9, device=CPU)
        info = ModelInfo("embedded", "none", "MIT", "", 1, 1000, "cpu", "float32")
        handle = runtime.register("m", lambda report, device: LoadedModel("m", info), estimate_bytes=1000)

        @user_errors
        def work() -> None:
            with handle.use():
                raise too_much_memory()

        import gradio as gr

        with pytest.raises(gr.Error, match="Try a smaller one") as caught:
            work()
        assert caught.value.title == OutOfMemory.title
        assert handle.status().state == "ready" and handle.status().users == 0
        runtime.close()


class TestWeights:
    @pytest.mark.parametrize("damage", ["a bit", "the end", "everything"])
    def test_rotten_weights_are_named_and_mended_ones_work(self, tmp_path, monkeypatch, damage):
        """The shipped YOLOv9 file, damaged in a copy of its folder, then put back: no restart is needed."""
        from models import yolov9

        shutil.copytree(ROOT / "assets" / "yolov9", tmp_path / "yolov9", ignore=shutil.ignore_patterns("*.pdf"))
        monkeypatch.setattr(weights, "ASSETS", tmp_path)
        runtime = Runtime(10**9, device=CPU)
        handle = runtime.register("yolov9", yolov9.loader("embedded"), estimate_bytes=60_000_000)
        target = next((tmp_path / "yolov9").glob("*.safetensors"))
        whole = target.read_bytes()
        rotten = {
            "a bit": whole[:-1] + bytes([whole[-1] ^ 1]),
            "the end": whole[: len(whole) // 2],
            "everything": bytes(len(whole)),
        }[damage]
        target.write_bytes(rotten)
        with pytest.raises(WeightsCorrupt, match=target.name), handle.use():
            pass
        assert handle.status().state == "failed" and target.name in (handle.status().error or "")
        target.write_bytes(whole)
        with handle.use() as detector:
            assert detector.detect(ROOT / "assets" / "yolov9" / "cards" / "bus.png", size=64).names
        runtime.close()


class TestClock:
    """Durations are monotonic: a clock set back or forth changes no wait and no timeout."""

    def test_no_module_measures_by_the_wall_clock(self):
        allowed = {("deploy/gate.py", "_sweep"), ("demos/pdiff_use.py", "_look"), ("models/records.py", "provenance")}
        found = set()
        for path in [ROOT / "app.py", *(p for f in ("models", "demos", "deploy") for p in (ROOT / f).rglob("*.py"))]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.time", "time.time_ns"):
                        found.add((str(path.relative_to(ROOT)), function.name))
        assert not {entry for entry in found if "train" not in entry[0]} - allowed

    @pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
    def test_jobs_loads_and_limits_do_not_notice(self, held, monkeypatch, jump):
        import time

        url, job = held
        job.may_load.set()
        caller = Caller(url)
        assert caller.call("once", "before") == ("complete", ["before"])
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        assert caller.call("once", "after") == ("complete", ["after"])
        assert job.handle._runtime.unload_idle() == [] and job.handle.status().state == "ready"
