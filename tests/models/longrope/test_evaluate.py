"""The evaluation's command on a tiny model of random weights: what it records, keeps and does not do twice."""

import json

import pytest

from models.errors import BadInput
from models.longrope import evaluate, tables
from tests.models.longrope.tiny import tiny_folder

WINDOW = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", window=WINDOW)


@pytest.fixture
def command(folder, tmp_path, monkeypatch):
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for module in (evaluate, tables):
        monkeypatch.setattr(module, "SEARCHED", tmp_path / "tables")

    def run(*words: object) -> None:
        given = [*map(str, words), "--tier", "official", "--path", str(folder), "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["evaluate", *given, "--block", "128", "--anchor", "64"])
        evaluate.main()

    return run


def recorded(name: str) -> dict:
    return json.loads((evaluate.EVIDENCE / f"{name}.json").read_text())["result"]


def test_blockwise_trials_are_counted_by_length_and_method(command, tmp_path):
    command("blockwise", "--lengths", 700, 1400, "--trials", 3, 2, "--methods", "none", "pi")
    rows = recorded("blockwise")["rows"]
    assert {(row["method"], row["length"], row["trials"]) for row in rows} == {
        ("none", 700, 3), ("pi", 700, 3), ("none", 1400, 2), ("pi", 1400, 2),
    }  # fmt: skip
    assert all((row["mode"], row["block"], row["anchor"]) == ("blockwise", 128, 64) for row in rows)
    reading = recorded("reading")["rows"]
    assert [row["length"] for row in reading] == [700, 1400]
    assert all(row["read_seconds"] > 0 and len(row["key"]) == 5 for row in reading)

    log = tmp_path / "runs" / "longrope" / "blockwise.jsonl"
    before = log.read_text()
    command("blockwise", "--lengths", 700, 1400, "--trials", 3, 2, "--methods", "none", "pi")
    assert log.read_text() == before  # nothing is asked twice


def test_what_another_run_recorded_is_kept(command):
    command("blockwise", "--lengths", 700, "--trials", 2, "--methods", "none", "--runs", "first")
    command("blockwise", "--lengths", 700, "--trials", 3, "--methods", "none", "ntk", "--runs", "second")
    found = recorded("blockwise")
    assert {(row["method"], row["trials"]) for row in found["rows"]} == {("none", 3), ("ntk", 3)}
    command("blockwise", "--lengths", 900, "--trials", 1, "--methods", "none", "--runs", "third")
    again = recorded("blockwise")
    assert {(row["method"], row["length"]) for row in again["rows"]} == {("none", 700), ("ntk", 700), ("none", 900)}
    assert all(row in again["rows"] for row in found["rows"])
    assert len({row["length"] for row in recorded("reading")["rows"]}) == 2


def test_reading_ends_when_its_minutes_are_over_and_the_record_says_so(command):
    command("blockwise", "--lengths", 700, "--trials", 1, "--methods", "none", "--minutes", 0)
    (row,) = recorded("reading")["rows"]
    assert row["stopped"] == "0 minutes were over" and 0 < row["read"] < 700
    assert not (evaluate.EVIDENCE / "blockwise.json").exists()


def test_a_search_on_whole_prompts_starts_from_the_shorter_table(command, folder):
    command("search", "--whole", "--lengths", 1024, 1536, "--iterations", 0, "--prompts", 2)
    first, second = recorded("search")["runs"]
    assert set(first["before"]) == {"PI", "NTK", "YaRN"} and set(second["before"]) == {
        *first["before"],
        "table for 1024",
    }
    for run in (first, second):
        assert run["evaluations"] == 24 and run["after"] == min(run["curve"]) <= min(run["before"].values())
    assert tables.searched_lengths(folder.name) == [1024, 1536]
    command("blockwise", "--lengths", 1100, 2048, "--trials", 1, "--methods", "longrope")
    assert [row["method"] for row in recorded("blockwise")["rows"]] == ["longrope", "longrope stretched"]


def test_a_stopped_search_ships_its_best_table_so_far(command, folder, tmp_path):
    command("search", "--whole", "--lengths", 1024, "--iterations", 0, "--prompts", 1)
    log = tmp_path / "runs" / "longrope" / "search-1024-42.jsonl"
    whole = recorded("search")["runs"]
    log.write_text("".join(log.read_text().splitlines(True)[:11]))  # ten tables were tried
    command("ship", "--whole", "--lengths", 1024, "--prompts", 1)
    (run,) = recorded("search")["runs"]
    assert run["evaluations"] == 10 and run["curve"] == whole[0]["curve"][:10] and run["after"] == run["curve"][-1]
    assert run["before"] == pytest.approx(whole[0]["before"], rel=1e-2)  # the log's seeds are rounded to the grid
    _, factors = tables.searched(folder.name, 1024, len(run["factors"]))
    assert list(factors) == pytest.approx(run["factors"])
    log.write_text("".join(log.read_text().splitlines(True)[:3]))
    with pytest.raises(BadInput, match="ends before"):
        command("ship", "--whole", "--lengths", 1024)


@pytest.mark.parametrize("n", [5, 20, 100])
def test_depths_are_spread_evenly_however_many_there_are(n):
    depths = sorted(evaluate._spaced(trial) for trial in range(n))
    gaps = [b - a for a, b in zip([0, *depths], [*depths, 1], strict=True)]
    assert max(gaps) < 2.2 / n and evaluate._spaced(0) == 0.5


@pytest.mark.parametrize(
    "words", [("search", "--lengths", 1024, "--whole", "--ray", "local"),
              ("passkey", "--lengths", 1024, 2048, "--trials", 1, 2)],
)  # fmt: skip
def test_arguments_that_do_not_go_together(command, words):
    with pytest.raises(SystemExit):
        command(*words)
