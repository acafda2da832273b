"""Published tables, CSV and JSON."""

import json

import numpy as np
import pytest

from models.errors import BadInput
from models.longrope.rope import scaling
from models.longrope.tables import (
    MAX_BYTES,
    for_length,
    get,
    product,
    published,
    read_csv,
    read_json,
    write_csv,
    write_json,
)


def test_all_tables_are_there():
    tables = published()
    assert len(tables) == 38
    assert all(table.factors.shape == (table.rotary_dim // 2,) for table in tables.values())
    assert sum(table.rotary_dim == 96 for table in tables.values()) == 8
    assert tables["8k_la2_128k"].factors[-1] == 3 and tables["ft_la2_128k"].target_length == 131_072


def test_phi_4_minis_list_is_a_power_curve():
    factors = get("phi4_mini_long").factors
    np.testing.assert_allclose(factors[:32], [32.03 ** (i / 31) for i in range(32)], rtol=1e-8)


def test_published_product_lies_on_the_search_grid():
    quotient = get("1024k_la2_128k").factors / get("ft_la2_128k").factors
    np.testing.assert_allclose(quotient, np.round(quotient, 2), atol=2e-4)
    assert round(float(quotient.max()), 3) == 8.98
    np.testing.assert_allclose(
        product(get("ft_la2_128k").factors, np.round(quotient, 2)), get("1024k_la2_128k").factors
    )


@pytest.mark.parametrize(
    ("model", "fine_tuned", "tokens", "name"),
    [
        ("la2", 128, 4096, "4k_la2_128k"),
        ("la2", 128, 4097, "8k_la2_128k"),
        ("la2", 128, 100_000, "ft_la2_128k"),
        ("la2", 256, 100_000, "ft_la2_256k"),
        ("mis", 128, 20_000, "ft_mis_128k"),
        ("mis", 256, 2_097_152, "2048k_mis_256k"),
    ],
)
def test_table_by_length(model, fine_tuned, tokens, name):
    assert for_length(model, fine_tuned, tokens).name == name


@pytest.mark.parametrize("text", ["1\n1.5\n2\n", "1,1.5,2\n", "1,1.5,2,\n1,1.5,2,\n", b"\xef\xbb\xbf1\r\n1.5\r\n2"])
def test_csv_forms(text):
    factors, notes = read_csv(text, 3)
    assert factors.tolist() == [1, 1.5, 2] and notes == []


def test_csv_round_trip():
    table = get("2048k_mis_256k").factors
    factors, notes = read_csv(write_csv(table), 64)
    np.testing.assert_array_equal(factors, table)
    assert "not monotone" in notes[0]
    rows = np.stack([table, table + 1])
    np.testing.assert_allclose(read_csv(write_csv(rows), 64)[0], rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("1\n2\n", r"needs 3 \(rotary_dim/2\)"),
        ("1\nlambda\n3", "'lambda' is not a number"),
        ("1\nnan\n3", "Factor 1 is nan"),
        ("1\n-2\n3", "Factor 1 is -2"),
        ("1,2,3\n1,2", "different lengths"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not text"),
        (b"1\n\x002\n", "not text"),
        ("1," * (MAX_BYTES // 2 + 1), "bytes"),
        ("1," * 200_000, "more than"),
    ],
)
def test_bad_csv(text, words):
    with pytest.raises(BadInput, match=words):
        read_csv(text, 3)


def test_json_round_trip():
    long, short = get("phi3_mini_long").scaling(), get("phi3_mini_short").scaling(1.0)
    text = write_json(long, short)
    content = json.loads(text)
    assert content["rope_type"] == "longrope" and content["factor"] == 32 and "attention_factor" not in content
    read_short, read_long = read_json(text, 48)
    np.testing.assert_array_equal(read_long.rescale_factors, long.rescale_factors)
    np.testing.assert_array_equal(read_short.rescale_factors, short.rescale_factors)
    assert read_long.magnitude == pytest.approx(1.1902, abs=5e-5)
    assert read_short.magnitude == read_long.magnitude  # as transformers: also below the window


def test_json_states_another_magnitude():
    rope = scaling("yarn", 96, 1e4, 4096, 131_072)
    assert json.loads(write_json(rope))["attention_factor"] == pytest.approx(1.3466, abs=5e-5)
    assert read_json(write_json(rope), 48)[1].magnitude == pytest.approx(rope.magnitude)


def test_a_whole_configuration_of_the_first_revision():
    config = {
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    }
    short, long = read_json(json.dumps(config), 48)
    assert long.scale == 32 and long.rescale_factors[0] == 2 and short.target_length == 4096


def test_json_cannot_hold_n_hat_or_layers():
    with pytest.raises(BadInput, match="n-hat.*CSV"):
        write_json(scaling("yarn", 8, 1e4, 64, 128, n_hat=4))
    with pytest.raises(BadInput, match="each layer"):
        write_json(scaling("longrope", 4, 1e4, 64, 128, table=[[1, 2], [1, 3]]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not an object"),
        ('{"rope_type": "yarn"}', "'yarn'"),
        ('{"rope_type": "longrope"}', "original_max_position_embeddings is missing"),
        ('{"rope_type": "longrope", "original_max_position_embeddings": "x"}', "above 0"),
        ('{"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": NaN}', "factor is"),
        ('{"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1]}', "needs 2"),
        ('{"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1, 1]}', "long_factor"),
    ],
)
def test_bad_json(content, words):
    with pytest.raises(BadInput, match=words):
        read_json(content, 2)


def test_unknown_names():
    with pytest.raises(BadInput, match="ft_la2_128k"):
        get("64k")
    with pytest.raises(BadInput, match="la2 or mis"):
        for_length("phi", 128, 10)
    with pytest.raises(BadInput, match="length"):
        for_length("la2", 128, 10**7)
