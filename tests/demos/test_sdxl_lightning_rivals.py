"""The other methods' rows in the Evidence panel."""

import json

import gradio as gr
import pytest

from demos.sdxl_lightning_rivals import COMMAND, show_rivals, table

SHIPPED = {"name": "student, LoRA", "steps": 4, "fid": 953.2, "patch_fid": 1361.8, "match": 0.56, "training_steps": 695}
LCM = {
    "name": "LCM-style, full", "steps": 4, "fid": 990.0, "patch_fid": 1400.4, "match": 0.5, "training_steps": 150,
    "share": 150 / 695, "cpu_minutes": 3.04,
    "against_shipped": {"fid": [-5.0, 70.2], "patch_fid": [10.0, 60.0], "match": [-0.081, -0.034]},
}  # fmt: skip


def shown(folder):
    with gr.Blocks() as page:
        show_rivals(folder)
    return page


def words(page):
    blocks = page.blocks.values()
    return " ".join(block.value for block in blocks if isinstance(block, gr.Markdown | gr.HTML))


def test_a_rival_is_shown_with_its_budget_cost_and_interval():
    html = table([LCM, SHIPPED], "origin")
    for text in ("150 (22%)", "3.0", "990 (-5 to +70)", "1400 (+10 to +60)", "50% (-8 to -3)", ">695<", ">56%<"):
        assert text in html, text


def test_rows_are_ordered_by_steps_and_names_are_escaped():
    html = table([{**SHIPPED, "steps": 8}, {**SHIPPED, "name": "<b>", "steps": 1}], "origin")
    assert "<b>" not in html and html.index("&lt;b&gt;") < html.index("student")


def test_without_a_record_the_panel_says_how_to_make_it(tmp_path):
    assert COMMAND in words(shown(tmp_path))


@pytest.mark.parametrize("teacher", [True, False])
def test_the_teacher_at_the_same_steps_stands_beside_them(tmp_path, teacher):
    source = {"date": "2026-11-28", "machine": "two cores", "command": COMMAND}
    result = {"captions": 1000, "resampled": 100, "rows": [SHIPPED, LCM]}
    (tmp_path / "rivals.json").write_text(json.dumps({"provenance": source, "result": result}))
    if teacher:
        rows = [{**SHIPPED, "name": "teacher", "steps": n, "fid": 800.0 + n} for n in (4, 32)]
        (tmp_path / "quality.json").write_text(json.dumps({"provenance": source, "result": {"rows": rows}}))
    page = shown(tmp_path)
    said = words(page)
    assert "1000 held-out captions" in said and "100 resamplings" in said
    assert ("804" in said) == teacher and "832" not in said
    plots = [block for block in page.blocks.values() if isinstance(block, gr.LinePlot)]
    assert [plot.y for plot in plots] == ["fid", "patch_fid", "match"]
