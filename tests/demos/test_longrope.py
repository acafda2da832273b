"""The LongRoPE tab over its API, with the real embedded model."""

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from demos.longrope import FOLDER, Question
from models.errors import BadInput
from models.longrope.rope import scaling
from models.longrope.tables import write_csv, write_json

SETTINGS = {
    "power": 9, "depth": 0.5, "trials": 1, "seed": 0, "methods": ["none"], "mode": "exact", "kv": "float32",
    "magnitude": "", "n_hat": 0, "table": "", "text": "", "file": None, "needle": "", "question": "", "key": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def client(app_server):
    return Client(app_server.url, verbose=False)


def ask(client, **changes):
    return client.predict(*{**SETTINGS, **changes}.values(), api_name="/longrope_passkey")


def test_passkey_is_found(client):
    prompt, progress, table, summary, _ = ask(client)
    assert "<mark" in prompt and "Done" in progress
    row = dict(zip(table["headers"], table["data"][0], strict=True))
    assert row["key"] in row["answer"] and row["right"] == "yes" and row["mode"] == "exact"
    assert "1 of 1" in summary and "interval" in summary


def test_a_key_in_a_quarter_of_a_million_tokens_is_found_while_one_waits(client):
    """32 times the trained window: blocks that say the same are read once, and the page says how much that was."""
    wanted = {"power": 18, "depth": 0.4, "seed": 3, "methods": ["longrope_tuned"], "mode": "blockwise", "kv": "int8"}
    _, progress, table, summary, _ = ask(client, **wanted)
    assert "Done" in progress and " of 262,124 tokens were not read" in progress
    assert table["data"][0][6] == "yes" and "1 of 1" in summary


def test_a_sentence_of_ones_own_in_a_text_of_ones_own(client):
    prompt, _, table, *_ = ask(
        client, text="The rain fell. Nobody spoke. A dog barked far away. ", needle="<b>Anna</b> likes 31415.",
        question="<b>Anna</b> likes", key="31415",
    )  # fmt: skip
    assert "&lt;b&gt;Anna" in prompt and "repeated" in prompt  # shown as text, never as markup
    assert table["data"][0][4] == "31415"


@pytest.mark.parametrize(
    "changes",
    [
        {"power": 40}, {"power": float("nan")}, {"trials": 0}, {"trials": 10**6}, {"methods": []},
        {"methods": ["../x"]}, {"mode": "fast"}, {"kv": "int2"}, {"magnitude": "loud", "power": 14, "methods": ["pi"]},
        {"table": "1,2,3", "power": 14, "methods": ["longrope"]}, {"depth": float("nan")}, {"depth": 2},
        {"table": "nan\n" * 32, "power": 14, "methods": ["longrope"]}, {"needle": "only a needle"}, {"n_hat": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_get_a_message_and_start_nothing(client, changes):
    with pytest.raises((AppError, ValueError)):
        ask(client, **changes)


def test_a_table_of_the_wrong_length_names_the_right_one(client):
    with pytest.raises(AppError, match="needs 32"):
        ask(client, power=14, methods=["longrope"], table="1\n2\n3\n")


@pytest.mark.parametrize(("factor", "found"), [(1.0, "yes"), (40.0, "no")])
def test_a_table_of_ones_own_is_used(client, factor, found):
    long = scaling("longrope", 64, 1e5, 8192, 8192, table=[factor] * 32)
    for table in (write_json(long), write_csv(long.rescale_factors)):
        rows = ask(client, methods=["longrope"], table=table)[2]["data"]
        assert rows[0][6] == found  # the newest answer is the first row


def test_a_falling_table_is_used_with_a_note(client):
    prompt, *_ = ask(client, methods=["longrope"], table="1\n" * 30 + "2\n1\n")
    assert "falls at pair 31" in prompt


def test_a_published_table_fills_the_box_and_must_fit_the_model(client):
    table = client.predict("ft_la2_128k", api_name="/longrope_published")
    assert len(table.split()) == 64
    with pytest.raises(AppError, match="needs 32"):
        ask(client, power=14, methods=["longrope"], table=table)
    assert client.predict("", api_name="/longrope_published") == ""


@pytest.mark.parametrize(
    "changes",
    [{0: 3}, {1: "free"}, {2: None}, {3: "speed"}, {3: "text", 4: "too short"}],
    ids=str,
)
def test_bad_searches_get_a_message(client, changes):
    settings = [4, "demo", 42, "needle", "", False]
    for index, value in changes.items():
        settings[index] = value
    with pytest.raises((AppError, ValueError)):
        client.predict(*settings, api_name="/longrope_search")


def test_cost_of_two_million_tokens(client):
    text = client.predict("LLaMA-2-7B", 21, "bfloat16", "A100 80 GB", 8, api_name="/longrope_cost")
    assert "1,024.0 GiB" in text  # the specification's figure
    with pytest.raises(AppError):
        client.predict("LLaMA-2-7B", 21, "bfloat16", "A100 80 GB", -1, api_name="/longrope_cost")


def test_one_user_never_sees_anothers_answers(app_server):
    first, second = (Client(app_server.url, verbose=False) for _ in range(2))
    ask(first)
    assert len(ask(second)[2]["data"]) == 1


def test_a_short_run_does_not_wait_for_the_end_of_a_long_one(app_server):
    patient, quick = (Client(app_server.url, verbose=False) for _ in range(2))
    asked = {**SETTINGS, "power": 15, "methods": ["longrope"]}
    long_run = patient.submit(*asked.values(), api_name="/longrope_passkey")
    for said in long_run:
        if "tokens/s" in str(said[1]):
            break
    assert "Done" in ask(quick)[1]
    assert not long_run.done()
    patient.predict(api_name="/longrope_cancel")
    assert "Cancelled" in long_run.result(timeout=120)[1]


def test_the_fine_tuned_model_is_offered_by_the_embedded_tier_only(app_server):
    table = ask(Client(app_server.url, verbose=False), methods=["none", "longrope_tuned"])[2]
    rows = [dict(zip(table["headers"], row, strict=True)) for row in table["data"]]
    assert {row["method"] for row in rows} == {"None", "LongRoPE, fine-tuned"}
    assert all(row["right"] == "yes" for row in rows)
    with pytest.raises(BadInput, match="embedded"):
        Question.of(tuple({**SETTINGS, "methods": ["longrope_tuned"]}.values()), FOLDER)
