"""Factors, magnitudes and angles against closed forms (specification section 11.3)."""

import math

import mpmath
import numpy as np
import pytest

from models import longrope
from models.errors import BadInput
from models.longrope.rope import (
    MAX_POSITION,
    METHODS,
    critical_index,
    falling,
    longrope2_factors,
    magnitude_of,
    pinned,
    scaling,
)
from models.longrope.tables import get, published

FAR = np.array([0, 1, 63, 4095, 4096, 131_071, MAX_POSITION])


def plain_angles(positions, dim, base):
    return positions[:, None] * np.array([base ** (-2 * i / dim) for i in range(dim // 2)])


@pytest.mark.parametrize(("length", "scale", "m"), [(4096, 32, 1.1902), (4096, 512, 1.3229), (8192, 16, 1.1435)])
def test_su_magnitude(length, scale, m):
    assert round(magnitude_of("su", length, length * scale), 4) == m


@pytest.mark.parametrize("target", [4096, 8192, 131_072, 2_097_152])
def test_su_squared_times_log_window_is_log_target(target):
    assert magnitude_of("su", 4096, target) ** 2 * math.log(4096) == pytest.approx(math.log(target), abs=1e-12)


def test_other_magnitudes():
    assert magnitude_of("yarn", 4096, 131_072) == pytest.approx(1.3466, abs=5e-5)
    assert magnitude_of("yarn", 4096, 4096) == magnitude_of("su", 4096, 2048) == 1
    assert magnitude_of("1.25", 4096, 8192) == magnitude_of(1.25, 4096, 8192) == 1.25
    for bad in ("large", "nan", -1.0, 0.0, math.inf):
        with pytest.raises(BadInput, match="magnitude"):
            magnitude_of(bad, 4096, 8192)


def test_factor_one_is_plain_rope():
    rope = scaling("longrope", 64, 1e5, 8192, 65_536, 1.0, np.ones(32))
    np.testing.assert_allclose(rope.angles(FAR), plain_angles(FAR, 64, 1e5), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(rope.angles(FAR), scaling("none", 64, 1e5, 8192, 65_536).angles(FAR))


def test_factor_s_is_position_interpolation():
    rope = scaling("longrope", 64, 1e5, 8192, 65_536, 1.0, np.full(32, 8.0))
    np.testing.assert_allclose(rope.angles(FAR), scaling("pi", 64, 1e5, 8192, 65_536).angles(FAR), rtol=0, atol=1e-9)
    np.testing.assert_allclose(rope.angles(FAR), plain_angles(FAR / 8, 64, 1e5), rtol=0, atol=1e-9)


def test_ntk_is_a_larger_base():
    d, s, positions = 64, 8.0, FAR[FAR < 200_000]
    rope = scaling("ntk", d, 1e4, 4096, 32_768)
    np.testing.assert_allclose(
        rope.angles(positions), plain_angles(positions, d, 1e4 * s ** (d / (d - 2))), rtol=1e-12, atol=1e-9
    )


def test_dynamic_ntk_is_the_published_base():
    d, original, length = 64, 4096, 16_384
    rope = scaling("dynamic_ntk", d, 1e4, original, length)
    factor = length / original
    base = 1e4 * (factor * length / original - (factor - 1)) ** (d / (d - 2))
    positions = np.arange(100)
    np.testing.assert_allclose(rope.angles(positions), plain_angles(positions, d, base), rtol=1e-12)
    assert (scaling("dynamic_ntk", d, 1e4, original, original).rescale_factors == 1).all()


def test_yarn_blends_frequencies():
    d, base, window, s = 128, 1e4, 4096, 8
    rope = scaling("yarn", d, base, window, window * s)
    low = math.floor(d * math.log(window / (32 * 2 * math.pi)) / (2 * math.log(base)))
    high = math.ceil(d * math.log(window / (2 * math.pi)) / (2 * math.log(base)))
    assert (low, high) == (20, 46)
    for i, factor in enumerate(rope.rescale_factors):
        ramp = min(max((i - low) / (high - low), 0), 1)
        assert 1 / factor == pytest.approx(ramp / s + 1 - ramp, rel=1e-12)
    assert rope.magnitude == pytest.approx(0.1 * math.log(8) + 1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_without_stretch_is_plain(method):
    rope = scaling(method, 64, 1e4, 4096, 4096, table=np.ones(32) if method == "longrope" else None)
    np.testing.assert_allclose(rope.rescale_factors, 1, rtol=1e-12)
    assert rope.magnitude == 1


def test_n_hat_beyond_the_sequence_is_plain_rope():
    table = get("2048k_la2_256k").factors
    positions = np.arange(500)
    rope = longrope.factors("longrope", 128, 1e4, 4096, 2_097_152, 1.0, table, n_hat=500)
    plain = scaling("none", 128, 1e4, 4096, 2_097_152)
    np.testing.assert_array_equal(rope.cos_sin(positions), plain.cos_sin(positions))
    assert (rope.angles(np.array([500])) != plain.angles(np.array([500]))).any()


@pytest.mark.parametrize(
    ("dim", "base", "window", "index"),
    [(96, 1e4, 2048, 31), (128, 5e5, 8192, 35), (128, 1e4, 4096, 46), (96, 1e4, 4096, 34)],
)
def test_critical_index(dim, base, window, index):
    assert critical_index(dim, base, window) == index


def test_longrope2_shape_is_phi_4s_table():
    table = get("phi4_mini_long").factors
    shaped = longrope2_factors(96, 1e4, 4096, 131_072, 31, table)
    np.testing.assert_allclose(shaped, table, rtol=1e-8)
    np.testing.assert_allclose(longrope2_factors(96, 1e4, 4096, 131_072, 31, table[31:]), table, rtol=1e-8)
    plain = scaling("longrope2", 64, 1e5, 8192, 65_536)
    assert plain.rescale_factors[0] == 1 and plain.rescale_factors[-1] == 8 and not plain.notes


@pytest.mark.parametrize("name", ["2048k_la2_256k", "2048k_mis_128k"])
def test_cos_and_sin_are_exact_at_the_last_position(name):
    """Against exact arithmetic with 60 digits."""
    rope = get(name).scaling(1.0)
    angles = rope.angles(np.array([MAX_POSITION]))[0]
    cos, sin = rope.cos_sin(np.array([MAX_POSITION]))
    with mpmath.workdps(60):
        for pair, factor in enumerate(rope.rescale_factors):
            exact = MAX_POSITION * mpmath.mpf(10_000) ** (mpmath.mpf(-pair) / 64) / mpmath.mpf(float(factor))
            assert abs(exact - mpmath.mpf(float(angles[pair]))) <= 1e-9
            assert abs(float(mpmath.cos(exact)) - cos[0, pair]) < 1e-7
            assert abs(float(mpmath.sin(exact)) - sin[0, pair]) < 1e-7
    assert cos.dtype == sin.dtype == np.float32


def test_angles_in_float32_would_be_wrong():
    """The guard of the test above: the error it looks for is really there in float32."""
    factors = get("2048k_la2_256k").factors
    speed = (1e4 ** (-np.arange(64) / 64) / factors).astype(np.float32)
    wrong = np.cos(np.float32(MAX_POSITION) * speed)
    right = get("2048k_la2_256k").scaling(1.0).cos_sin(np.array([MAX_POSITION]))[0][0]
    assert np.abs(wrong - right).max() > 0.05


@pytest.mark.parametrize("position", [4096, 4097, 8192])
def test_same_cos_and_sin_as_transformers_formula(position):
    """`rope_type: longrope` of transformers, written out in float32: exact to 1e-3 around the window."""
    table = get("phi3_mini_long")
    inverse = 1.0 / (table.factors.astype(np.float32) * np.float32(1e4) ** (np.arange(0, 96, 2, dtype=np.float32) / 96))
    m = math.sqrt(1 + math.log(32) / math.log(4096))
    cos, sin = table.scaling().cos_sin(np.array([position]))
    np.testing.assert_allclose(cos[0], np.cos(np.float32(position) * inverse) * m, atol=1e-3)
    np.testing.assert_allclose(sin[0], np.sin(np.float32(position) * inverse) * m, atol=1e-3)


def test_pinned_takes_one_table_for_the_whole_request():
    short, long = get("phi3_mini_short").scaling(), get("phi3_mini_long").scaling()
    assert pinned(short, long, 4096) is short
    assert pinned(short, long, 4097) is long


def test_rows_for_layers():
    rows = np.stack([np.ones(4), np.full(4, 2.0)])
    rope = scaling("longrope", 8, 1e4, 64, 128, 1.0, rows)
    np.testing.assert_allclose(rope.angles(np.array([10]), 0), 2 * rope.angles(np.array([10]), 1))
    assert scaling("longrope", 8, 1e4, 64, 128, 1.0, np.ones((3, 4))).rescale_factors.shape == (4,)


def test_wrong_length_names_the_expected_count():
    with pytest.raises(BadInput, match=r"64 numbers; this model needs 48 \(rotary_dim/2\)"):
        scaling("longrope", 96, 1e4, 4096, 131_072, table=np.ones(64))


@pytest.mark.parametrize("value", [math.nan, -1.0, 0.0, math.inf, 1e9])
def test_impossible_factors_are_refused(value):
    with pytest.raises(BadInput, match="Factor 2 is"):
        scaling("longrope", 8, 1e4, 64, 128, table=[1, 1, value, 2])


def test_a_falling_table_is_noted_and_used():
    rope = scaling("longrope", 8, 1e4, 64, 128, table=[1, 3, 2, 4])
    assert "not monotone" in rope.notes[0] and "pair 2" in rope.notes[0]
    assert rope.rescale_factors.tolist() == [1, 3, 2, 4]
    assert {name for name, table in published().items() if falling(table.factors)} == {
        *("ft_mis_128k", "256k_mis_128k", "512k_mis_128k", "1024k_mis_128k", "2048k_mis_128k"),
        *("ft_mis_256k", "512k_mis_256k", "1024k_mis_256k", "2048k_mis_256k"),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "alibi"}, "Unknown method 'alibi'.*yarn"),
        ({"rotary_dim": 7}, "even number"),
        ({"base": 1.0}, "base"),
        ({"target_length": 3_000_000}, "2,097,152"),
        ({"original_length": 0}, "window"),
        ({"n_hat": -1}, "n-hat"),
        ({"method": "longrope"}, "needs a factor table"),
        ({"method": "longrope", "table": ["a"] * 32}, "not a list of numbers"),
        ({"method": "longrope2", "critical": 32}, "critical pair"),
        ({"method": "longrope2", "critical": 20, "table": [8.0] * 3}, "There are 3 factors"),
    ],
)
def test_bad_settings(change, words):
    settings = {"method": "pi", "rotary_dim": 64, "base": 1e4, "original_length": 4096, "target_length": 8192}
    with pytest.raises(BadInput, match=words):
        scaling(**(settings | change))


@pytest.mark.parametrize(
    "positions", [np.array([0.5]), np.array([-1]), np.array([MAX_POSITION + 1]), np.zeros((1, 1), int)]
)
def test_bad_positions(positions):
    with pytest.raises(BadInput):
        scaling("none", 8, 1e4, 64, 64).cos_sin(positions)
