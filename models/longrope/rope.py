"""Rotary position embeddings stretched beyond the trained window: every method as one table of factors.

A method is a factor for each rotary pair, `theta_i / lambda_i`, from position n_hat on (LongRoPE, arXiv 2402.13753,
equation 3), and a magnitude m that multiplies cos and sin. Formulas: specification, sections 1, 6.3 and 8.
Angles are float64 up to the very end: in float32 a cosine near position 2 million is off by up to 0.12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import BadInput

METHODS = ("none", "pi", "ntk", "dynamic_ntk", "yarn", "longrope", "longrope2")
MAX_POSITION = 2_097_151
MAX_FACTOR = 1e6
YARN_BETAS = (32.0, 1.0)  # turns within the window: above the first untouched, below the second interpolated


@dataclass(frozen=True, eq=False)
class RopeScaling:
    """One method's factors, ready to rotate.

    rescale_factors: float64 (pairs,), or (layers, pairs) for a table with a row for each layer; pair i turns by
        position * base^(-2i/rotary_dim) / factor. Positions below `n_hat` keep the original angle.
    magnitude: what cos and sin are multiplied by, so attention logits are multiplied by its square.
    original_length, target_length: tokens the model was trained for, and is asked to read.
    notes: what a user should know about the table, such as factors that fall.
    """

    method: str
    rescale_factors: np.ndarray
    base: float
    original_length: int
    target_length: int
    magnitude: float = 1.0
    n_hat: int = 0
    notes: tuple[str, ...] = ()

    @property
    def pairs(self) -> int:
        return self.rescale_factors.shape[-1]

    @property
    def rotary_dim(self) -> int:
        return 2 * self.pairs

    @property
    def scale(self) -> float:
        """How many times the trained window: s = L'/L."""
        return self.target_length / self.original_length

    def angles(self, positions: np.ndarray, layer: int = 0) -> np.ndarray:
        """Radians, float64 (T, pairs), of whole positions (T,)."""
        positions = np.asarray(positions)
        plain = self.base ** (-np.arange(self.pairs, dtype=np.float64) / self.pairs)
        factors = self.rescale_factors if self.rescale_factors.ndim == 1 else self.rescale_factors[layer]
        turned = positions.astype(np.float64)[:, None] * np.where(
            positions[:, None] < self.n_hat, plain, plain / factors
        )
        return turned

    def cos_sin(self, positions: np.ndarray, layer: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin times the magnitude, float32 (T, pairs) each, rounded once from float64.

        Raises:
            BadInput: positions that are not whole numbers from 0 to 2 097 151.
        """
        positions = np.asarray(positions)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise BadInput("Positions are whole numbers in one row: 16-bit floats cannot count past 256 or 2048.")
        if positions.size and not 0 <= positions.min() <= positions.max() <= MAX_POSITION:
            raise BadInput(f"A position is outside 0 to {MAX_POSITION:,}. Use a shorter text.")
        angles = self.angles(positions, layer)
        return (
            (np.cos(angles) * self.magnitude).astype(np.float32),
            (np.sin(angles) * self.magnitude).astype(np.float32),
        )


def scaling(
    method: str,
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
    magnitude: str | float | None = None,
    table: Sequence[float] | np.ndarray | None = None,
    n_hat: int = 0,
    critical: int | None = None,
    yarn_betas: tuple[float, float] = YARN_BETAS,
) -> RopeScaling:
    """Factors of a method by name.

    Args:
        method: one of `METHODS`. `longrope` needs `table`; `longrope2` takes the pairs from `critical` on from
            `table` (or L'/L) and lays the NTK curve below them.
        rotary_dim: dimensions of a head that are rotated, even; less than the head's with partial rotary.
        base: the model's rotary base, above 1. original_length, target_length: tokens.
        magnitude: "su", "yarn" or a number; None is what the method's authors use (`default_magnitude`).
        n_hat: positions below it keep the original angles; 0 for none.
        critical: first pair that is stretched fully, for longrope2; None is the theoretical index.

    Raises:
        BadInput: an unknown method, a number out of range or a table of the wrong length.
    """
    if method not in METHODS:
        raise BadInput(f"Unknown method {method!r}. Choose one of {', '.join(METHODS)}.")
    _check_numbers(rotary_dim, base, original_length, target_length, n_hat)
    pairs, scale = rotary_dim // 2, target_length / original_length
    notes: tuple[str, ...] = ()
    if method == "longrope":
        if table is None:
            raise BadInput("LongRoPE needs a factor table. Choose a published one, search one or upload a CSV.")
        factors = check_factors(table, pairs)
        notes = tuple(filter(None, [falling(factors)]))
    elif method == "longrope2":
        factors = longrope2_factors(rotary_dim, base, original_length, target_length, critical, table)
        notes = tuple(filter(None, [falling(factors)]))
    elif method == "yarn":
        factors = yarn_factors(rotary_dim, base, original_length, scale, yarn_betas)
    elif method == "pi":
        factors = np.full(pairs, max(scale, 1.0))
    elif method == "ntk":
        factors = ntk_factors(rotary_dim, scale)
    elif method == "dynamic_ntk":
        factors = dynamic_ntk_factors(rotary_dim, original_length, target_length, scale)
    else:
        factors = np.ones(pairs)
    policy = default_magnitude(method) if magnitude is None else magnitude
    m = magnitude_of(policy, original_length, target_length)
    return RopeScaling(method, factors, float(base), original_length, target_length, m, n_hat, notes)


def default_magnitude(method: str) -> str | float:
    """The magnitude policy a method's authors use."""
    return {"yarn": "yarn", "longrope": "su", "longrope2": "su"}.get(method, 1.0)


def magnitude_of(policy: str | float, original_length: int, target_length: int) -> float:
    """The magnitude m (specification section 1).

    policy: "su", sqrt(1 + ln s / ln L), so that m^2 ln L = ln L'; "yarn", 0.1 ln s + 1; or a number above 0.
    """
    if isinstance(policy, str) and policy not in ("su", "yarn"):
        try:
            policy = float(policy)
        except ValueError:
            raise BadInput(f"Unknown magnitude {policy!r}. Choose su, yarn or a number such as 1.0.") from None
    if not isinstance(policy, str):
        if not math.isfinite(policy) or not 0 < policy <= 100:
            raise BadInput(f"The magnitude is {policy}. Give a number above 0 and at most 100.")
        return float(policy)
    scale = target_length / original_length
    if scale <= 1:
        return 1.0
    if policy == "su":
        return math.sqrt(1 + math.log(scale) / math.log(original_length))
    return 0.1 * math.log(scale) + 1


def ntk_factors(rotary_dim: int, scale: float) -> np.ndarray:
    """NTK-aware: base' = base * s^(d/(d-2)), which is factor s^(2i/(d-2)) for pair i."""
    if rotary_dim == 2:
        return np.ones(1)
    return max(scale, 1.0) ** (2 * np.arange(rotary_dim // 2) / (rotary_dim - 2))


def dynamic_ntk_factors(rotary_dim: int, original_length: int, length: int, factor: float) -> np.ndarray:
    """Dynamic NTK at one length: NTK with scale factor * length / L - (factor - 1); the plain angles up to L."""
    if length <= original_length:
        return np.ones(rotary_dim // 2)
    return ntk_factors(rotary_dim, factor * length / original_length - (factor - 1))


def yarn_factors(
    rotary_dim: int,
    base: float,
    original_length: int,
    scale: float,
    betas: tuple[float, float] = YARN_BETAS,
) -> np.ndarray:
    """YaRN: 1/factor blends 1 and 1/s with a ramp over the pairs, by how often they turn within the window."""
    low, high = (_pair_of_turns(rotary_dim, base, original_length, beta) for beta in betas)
    first, last = max(math.floor(low), 0), min(math.ceil(high), rotary_dim - 1)
    width = (last - first) or 0.001
    ramp = np.clip((np.arange(rotary_dim // 2) - first) / width, 0, 1)
    return 1 / (ramp / max(scale, 1.0) + (1 - ramp))


def longrope2_factors(
    rotary_dim: int,
    base: float,
    original_length: int,
    target_length: int,
    critical: int | None = None,
    upper: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """LongRoPE2's shape: `upper` (or L'/L) from pair `critical` on, factor_c^(i/c) below it.

    upper: one factor for each pair from `critical` on, or a whole table whose lower part is replaced.
    """
    pairs = rotary_dim // 2
    c = min(critical_index(rotary_dim, base, original_length), pairs - 1) if critical is None else critical
    if not 1 <= c < pairs:
        raise BadInput(f"The critical pair is {c}. Give a whole number from 1 to {pairs - 1}.")
    factors = np.full(pairs, max(target_length / original_length, 1.0))
    if upper is not None:
        given = np.asarray(upper, dtype=np.float64).reshape(-1)
        if len(given) not in (pairs, pairs - c):
            raise BadInput(f"There are {len(given)} factors. Give {pairs - c} from the critical pair on, or {pairs}.")
        factors[c:] = given[-(pairs - c) :]
    factors[:c] = factors[c] ** (np.arange(c) / c)
    return check_factors(factors, pairs)


def critical_index(rotary_dim: int, base: float, original_length: int) -> int:
    """Theoretical first pair that does not finish a turn within the window: ceil(d/2 * log_base(L / 2 pi))."""
    return math.ceil(_pair_of_turns(rotary_dim, base, original_length, 1.0))


def pinned(short: RopeScaling, long: RopeScaling, total_tokens: int) -> RopeScaling:
    """The one table of a request: long if prompt and answer together leave the trained window, else short.

    A switch in the middle would leave keys in the cache that were turned by the other table (section 7.3).
    """
    return long if total_tokens > long.original_length else short


def check_factors(table: Sequence[float] | np.ndarray, pairs: int) -> np.ndarray:
    """A table as float64 (pairs,) or (layers, pairs); equal rows become one.

    Raises:
        BadInput: another length than `pairs`, or factors that are not finite numbers above 0.
    """
    try:
        factors = np.array(table, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInput(f"The factor table is not a list of numbers. Give {pairs} numbers, one for each pair.") from None
    if factors.ndim not in (1, 2) or factors.size == 0 or factors.shape[-1] != pairs:
        given = " x ".join(str(side) for side in factors.shape) or "1"
        raise BadInput(
            f"The factor table has {given} numbers; this model needs {pairs} (rotary_dim/2), in one row or in one "
            "row for each layer. Choose a table made for this model."
        )
    bad = ~np.isfinite(factors) | (factors <= 0) | (factors > MAX_FACTOR)
    if bad.any():
        where = int(np.argwhere(bad)[0][-1])
        value = factors[bad][0]
        raise BadInput(
            f"Factor {where} is {value:g}. Factors are numbers above 0 and at most {MAX_FACTOR:g}; "
            "1 keeps a pair as it is."
        )
    if factors.ndim == 2 and (factors == factors[0]).all():
        return factors[0].copy()
    return factors


def falling(factors: np.ndarray) -> str | None:
    """A note that names the pairs where a table falls, or None; nine published tables fall somewhere."""
    rows = np.atleast_2d(factors)
    pairs = sorted({int(pair) + 1 for row in rows for pair in np.nonzero(np.diff(row) < 0)[0]})
    if not pairs:
        return None
    return (
        f"The table is not monotone: it falls at pair {', '.join(map(str, pairs))}. It is used as given; "
        "searched tables normally rise, so check that the numbers are in order."
    )


def _pair_of_turns(rotary_dim: int, base: float, original_length: int, turns: float) -> float:
    """The (fractional) pair that turns so often within the window."""
    return rotary_dim * math.log(original_length / (2 * math.pi * turns)) / (2 * math.log(base))


def _check_numbers(rotary_dim: int, base: float, original_length: int, target_length: int, n_hat: int) -> None:
    if rotary_dim < 2 or rotary_dim % 2:
        raise BadInput(f"The rotary dimension is {rotary_dim}. Give an even number from 2.")
    if not math.isfinite(base) or base <= 1:
        raise BadInput(f"The rotary base is {base}. Give a number above 1, such as 10000.")
    if original_length < 2 or not 1 <= target_length <= MAX_POSITION + 1:
        raise BadInput(
            f"The window is {original_length} tokens and the target {target_length}. Give a window from 2 and a "
            f"target from 1 to {MAX_POSITION + 1:,} tokens."
        )
    if n_hat < 0:
        raise BadInput(f"n-hat is {n_hat}. Give the number of first tokens that keep their angles, 0 or more.")
