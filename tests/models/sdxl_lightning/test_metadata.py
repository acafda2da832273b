"""Settings in PNGs: there and back, and everything that is not ours."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from models.errors import BadInput
from models.sdxl_lightning import metadata
from models.sdxl_lightning.metadata import Settings

ONE = Settings("a blue apple", 7, 4, "4-step LoRA", 256, 256, "embedded")


def written(path, chunk):
    info = PngImagePlugin.PngInfo()
    if chunk is not None:
        info.add_itxt(metadata.CHUNK, chunk)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


@settings(max_examples=30, deadline=None)
@given(prompt=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=200), seed=st.integers(0, 2**32 - 1))
def test_there_and_back(tmp_path_factory, prompt, seed):
    kept = Settings(
        prompt, seed, 1, "1-step network", 256, 320, "x", guidance=None, strength="1/4", lora="a.safetensors"
    )
    path = tmp_path_factory.mktemp("png") / "p.png"
    picture = Image.effect_noise((256, 320), 50).convert("RGB")
    path.write_bytes(metadata.to_png(picture, kept))
    assert metadata.read(path) == kept
    assert Image.open(path).convert("RGB").tobytes() == picture.tobytes()


def test_other_tools_find_a_line_of_text(tmp_path):
    (tmp_path / "p.png").write_bytes(metadata.to_png(Image.new("RGB", (256, 256)), ONE))
    with Image.open(tmp_path / "p.png") as picture:
        said = picture.text["parameters"]
    assert said.startswith("a blue apple\nSteps: 4") and "Seed: 7" in said and "Size: 256x256" in said
    assert "CFG" not in said


GOOD = {name: getattr(ONE, name) for name in ONE.__dataclass_fields__}


@pytest.mark.parametrize(
    "chunk",
    ["", "null", "[]", "{", json.dumps({"prompt": "x"}), json.dumps(GOOD | {"more": 1}),
     json.dumps(GOOD | {"seed": "7"}), json.dumps(GOOD | {"steps": True}),
     json.dumps(GOOD | {"prompt": ["x"]}), json.dumps(GOOD | {"guidance": "6"})],
)  # fmt: skip
def test_settings_of_another_form_are_refused(tmp_path, chunk):
    with pytest.raises(BadInput, match="form"):
        metadata.read(written(tmp_path / "p.png", chunk))


def test_files_without_settings_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no settings"):
        metadata.read(written(tmp_path / "p.png", None))
    with pytest.raises(BadInput, match="no settings"):
        metadata.read(written(tmp_path / "q.png", json.dumps(GOOD | {"prompt": "x" * 20_000})))
    Image.new("RGB", (4, 4)).save(tmp_path / "p.jpg")
    with pytest.raises(BadInput, match="not a PNG"):
        metadata.read(tmp_path / "p.jpg")
    (tmp_path / "no.png").write_bytes(b"hello")
    with pytest.raises(BadInput, match="not a picture"):
        metadata.read(tmp_path / "no.png")
    (tmp_path / "cut.png").write_bytes(metadata.to_png(Image.new("RGB", (64, 64)), ONE)[:60])
    with pytest.raises(BadInput):
        metadata.read(tmp_path / "cut.png")
