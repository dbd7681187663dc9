# SPDX-License-Identifier: MIT

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from groupedmixer_ext import rans, tables

weights = hnp.arrays(
    np.float64,
    st.integers(2, 60),
    elements=st.floats(0, 1, allow_subnormal=False) | st.just(1e-12),
).filter(lambda pmf: pmf.sum() > 1e-9)


def expected_bits(pmf: np.ndarray, counts: np.ndarray, precision: int = 12) -> float:
    return float((pmf * (precision - np.log2(counts.astype(np.float64)))).sum())


def entropy(pmf: np.ndarray) -> float:
    positive = pmf[pmf > 0]
    return float(-(positive * np.log2(positive)).sum())


@given(weights)
@settings(max_examples=200, deadline=None)
def test_quantize_pmf_keeps_the_rules_and_no_move_helps(pmf: np.ndarray) -> None:
    counts = tables.quantize_pmf(pmf)
    assert counts.dtype == np.uint16 and counts.min() >= 1 and counts.sum() == 4096
    pmf = pmf / pmf.sum()
    best = expected_bits(pmf, counts)
    for taken in np.flatnonzero(counts > 1):
        moved = np.repeat(counts[None].astype(np.int64), counts.size, axis=0)
        moved[:, taken] -= 1
        moved[np.arange(counts.size), np.arange(counts.size)] += 1
        assert ((pmf * (12 - np.log2(moved))).sum(axis=1) >= best - 1e-9).all()


def test_quantize_pmf_matches_exhaustive_search() -> None:
    pmf = np.array([0.62, 0.3, 0.05, 0.03])
    splits = [
        np.array([a, b, c, 16 - a - b - c])
        for a in range(1, 14)
        for b in range(1, 15 - a)
        for c in range(1, 16 - a - b)
    ]
    best = min(expected_bits(pmf, split, 4) for split in splits)
    assert expected_bits(pmf, tables.quantize_pmf(pmf, precision=4), 4) == pytest.approx(best)


@pytest.mark.parametrize(
    ("pmf", "precision", "message"),
    [
        ([1.0], 12, "at least 2"),
        ([[0.5, 0.5]], 12, "1 dimension"),
        ([0.5, -0.1], 12, "not negative"),
        ([0.5, math.nan], 12, "finite"),
        ([0.0, 0.0], 12, "positive sum"),
        ([0.5, 0.5], 0, "precision must be 1 .. 16, got 0"),
        ([0.5] * 5, 2, "at most 4 elements, got 5"),
    ],
)
def test_quantize_pmf_errors(pmf: list[float], precision: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.quantize_pmf(pmf, precision)


@pytest.mark.parametrize("sigma", [0.05, 0.11, 0.3, 1.0, 7.3, 64.0, 256.0])
def test_gaussian_tables_are_symmetric_and_near_the_entropy(sigma: float) -> None:
    built = tables.gaussian_tables([sigma])
    values = int(built.sizes[0]) - 1
    assert values % 2 == 1 and built.offsets[0] == -(values // 2)
    k = np.arange(values) - values // 2
    scale = 1 / (sigma * math.sqrt(2))
    pmf = np.array(
        [0.5 * (math.erfc((abs(v) - 0.5) * scale) - math.erfc((abs(v) + 0.5) * scale)) for v in k]
    )
    pmf = np.append(pmf, 1 - pmf.sum())
    # An escape costs about a byte. What 12 bits can tell apart bounds the rest.
    cost = expected_bits(pmf, built.counts) + 8 * pmf[-1]
    assert cost < entropy(pmf) + 0.001 + 0.004 * values / 256 * 8
    if sigma >= 1:
        ideal = math.log2(sigma * math.sqrt(2 * math.pi * math.e))
        assert cost < ideal + 0.06


def test_support_is_near_the_best_there_is() -> None:
    wide = tables.tables_from_pmfs([tables._gaussian_pmf(3.0)], [-24], tail=0)
    pmf = tables._gaussian_pmf(3.0)
    assert wide.sizes[0] == pmf.size

    def cost(reach: int) -> float:
        middle = pmf.size // 2 - 1
        kept = pmf[middle - reach : middle + reach + 1]
        cut = np.append(kept, 1 - kept.sum())
        return expected_bits(cut, tables.quantize_pmf(cut)) + 8 * cut[-1]

    chosen = (int(tables.gaussian_tables([3.0]).sizes[0]) - 2) // 2
    assert cost(chosen) <= min(cost(reach) for reach in range(4, 20)) + 1e-4


def test_trimming_moves_the_offset_and_the_mass() -> None:
    pmf = [1e-7, 1e-7, 0.5, 0.0, 0.25, 1e-7, 0.25 - 3e-7]
    built = tables.tables_from_pmfs([pmf, [0.5, 0.5]], [-5, 9])
    assert built.sizes.tolist() == [4, 2]
    assert built.offsets.tolist() == [-3, 9]
    assert built.counts[:4].tolist() == [2047, 1, 1024, 1024]


def test_tables_code_what_they_were_made_for() -> None:
    sigmas = np.geomspace(0.11, 64, 64)
    built = tables.gaussian_tables(sigmas)
    random = np.random.default_rng(0)
    indexes = random.integers(0, 64, 200_000).astype(np.uint8)
    symbols = np.rint(random.normal(0, sigmas[indexes])).astype(np.int16)
    data = rans.encode(symbols, indexes, built)
    assert np.array_equal(rans.decode(data, indexes, built), symbols)
    bits = sum(entropy(tables._gaussian_pmf(s)) for s in sigmas) * indexes.size / 64
    assert 8 * len(data) < 1.008 * bits


def test_table_argument_errors() -> None:
    with pytest.raises(ValueError, match="sigmas must be finite and above 0, got 0.0"):
        tables.gaussian_tables([1.0, 0.0])
    with pytest.raises(ValueError, match="1 dimension"):
        tables.gaussian_tables([[1.0]])
    with pytest.raises(ValueError, match="one element a pmf, 1, got 2"):
        tables.tables_from_pmfs([[0.5, 0.5]], [0, 1])
    with pytest.raises(ValueError, match="sizes must name 1"):
        tables.gaussian_tables([])
