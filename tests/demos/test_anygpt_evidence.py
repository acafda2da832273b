"""The AnyGPT tab's Evidence panel: what it says of records that are there, and of those that are not."""

import json

import pytest

from demos.anygpt_evidence import TASKS, evidence_page, met, read_records
from demos.anygpt_plots import against_targets

SOURCE = {"command": "python -m models.anygpt.embedded.evaluate all", "date": "2026-01-02 03:04 UTC", "machine": "test"}


@pytest.fixture
def folder(tmp_path):
    def share(right, of=100):
        return {"right, %": right, "right": right, "of": of, "interval, %": [right - 5, right + 5],
                "rows": [{"text": "hidden"}], "target": "at least 70 %", "measures": "Counted."}  # fmt: skip

    wrong = {"word error rate, %": 12.5, "interval, %": [10, 15], "target": "at most 15 %", "measures": "Whisper.",
             "rows": [{"text": "hidden"}]}  # fmt: skip
    records = {
        "draw": share(81), "caption": share(52), "tts": wrong,
        "spoken": share(100, 4) | {"slowest, s": 25.0, "target": "all four, under 20 s"},
        "image_codes": {"codes used": 480, "share": 0.123456, "ok": True},
    }  # fmt: skip
    for name, result in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"provenance": SOURCE, "result": result}))
    (tmp_path / "judge.json").write_text(json.dumps({"mean": [1, 2]}))
    return tmp_path


def test_targets_are_judged_from_the_records(folder):
    recorded = read_records(folder)
    assert set(recorded) == {"draw", "caption", "tts", "spoken", "image_codes"}  # the judge is no record
    verdicts = {name: met(TASKS[name], recorded[name]["result"]) for name in TASKS if name in recorded}
    assert verdicts == {"tts": True, "draw": True, "caption": False, "spoken": False}  # too slow
    page = evidence_page(recorded)
    for text in ("81 % (81 of 100)", "at least 70 %: missed", "at most 15 %: met, 95 % interval 10 to 15", "0.1235",
                 "Not measured yet: python -m models.anygpt.embedded.evaluate asr", SOURCE["command"]):  # fmt: skip
        assert text in page
    assert "hidden" not in page


def test_paper_and_measured_stand_in_columns_of_their_own(folder):
    page = evidence_page(read_records(folder))
    assert '<td class="lp-paper">8.5 % (VCTK, 3 s of a voice)</td><td class="lp-here">12.5 %' in page
    assert '<td class="lp-paper">107.5</td><td class="lp-here">–</td>' in page


def test_without_records_nothing_is_claimed(tmp_path):
    page = evidence_page(read_records(tmp_path))
    assert page.count("Not measured yet") == len(TASKS)
    assert read_records(tmp_path / "missing") == {}


def test_the_figure_shows_what_has_an_interval(folder):
    recorded = read_records(folder)
    figure = against_targets({name: recorded[name]["result"] for name in TASKS if name in recorded}, TASKS)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        TASKS[name].title for name in ("spoken", "caption", "draw", "tts")
    ]
