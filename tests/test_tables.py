# SPDX-License-Identifier: MIT

import doctest
import math
from types import ModuleType
from typing import Any

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


def gaussian_pmf(sigma: float) -> np.ndarray:
    """Of -8 sigma .. 8 sigma and, last, of all others."""
    edges = [math.erfc((k + 0.5) / (sigma * math.sqrt(2))) for k in range(math.ceil(8 * sigma) + 1)]
    sides = -0.5 * np.diff(edges)
    return np.concatenate([sides[::-1], [1 - edges[0]], sides, [edges[-1]]])


def laplace_pmf(scale: float) -> np.ndarray:
    """Of -35 b .. 35 b and, last, of all others, by expm1 and a geometric series."""
    k = np.arange(1, math.ceil(35 * scale) + 1)
    sides = -0.5 * math.expm1(-1 / scale) * np.exp(-(k - 0.5) / scale)
    beyond = math.exp(-(k[-1] + 0.5) / scale)
    return np.concatenate([sides[::-1], [-math.expm1(-0.5 / scale)], sides, [beyond]])


FAMILIES = {
    "gaussian": (tables.gaussian_tables, gaussian_pmf),
    "laplace": (tables.laplace_tables, laplace_pmf),
}
in_both_families = pytest.mark.parametrize("family", FAMILIES)


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
    wide = tables.tables_from_pmfs([gaussian_pmf(3.0)], [-24], tail=0)
    pmf = gaussian_pmf(3.0)
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


@in_both_families
def test_tables_code_what_they_were_made_for(family: str) -> None:
    build, pmf_of = FAMILIES[family]
    scales = np.geomspace(0.11, 64, 64)
    built = build(scales)
    random = np.random.default_rng(0)
    indexes = random.integers(0, 64, 200_000).astype(np.uint8)
    draw = random.normal if family == "gaussian" else random.laplace
    symbols = np.rint(draw(0, scales[indexes])).astype(np.int16)
    data = rans.encode(symbols, indexes, built)
    assert np.array_equal(rans.decode(data, indexes, built), symbols)
    bits = sum(entropy(pmf_of(s)) for s in scales) * indexes.size / 64
    assert 8 * len(data) < 1.008 * bits


@in_both_families
@pytest.mark.parametrize("scale", [0.02, 0.11, 0.5, 1.0, 7.3, 100.0])
def test_masses_of_a_family_to_double_precision(
    family: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches `tables_from_pmfs` against integrals of the density with 40 digits."""
    seen: list[np.ndarray] = []
    right = tables.tables_from_pmfs

    def spy(pmfs: list[np.ndarray], offsets: list[int], tail: float) -> rans.Tables:
        seen.extend(pmfs)
        return right(pmfs, offsets, tail)

    monkeypatch.setattr(tables, "tables_from_pmfs", spy)
    FAMILIES[family][0]([scale])
    (pmf,) = seen
    reach = pmf.size // 2 - 1
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):

        def mass_above(x: float) -> Any:
            if family == "laplace":
                return mpmath.exp(-mpmath.mpf(x) / scale) / 2
            return mpmath.erfc(mpmath.mpf(x) / (scale * mpmath.sqrt(2))) / 2

        for k in {0, 1, 2, reach // 2, reach}:
            if k == 0:
                expected = 1 - 2 * mass_above(0.5)
            elif k <= reach:
                expected = mass_above(k - 0.5) - mass_above(k + 0.5)
            else:
                continue
            assert pmf[reach + k] == pytest.approx(float(expected), rel=1e-12, abs=0)
            assert pmf[reach - k] == pmf[reach + k]
        beyond = float(2 * mass_above(reach + 0.5))
        assert pmf[-1] == pytest.approx(beyond, rel=1e-12, abs=0)
    assert pmf.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("scale", [0.05, 0.11, 0.3, 1.0, 7.3, 64.0, 256.0])
def test_laplace_tables_are_symmetric_and_near_the_entropy(scale: float) -> None:
    built = tables.laplace_tables([scale])
    values = int(built.sizes[0]) - 1
    assert values % 2 == 1 and built.offsets[0] == -(values // 2)
    whole = laplace_pmf(scale)
    middle = whole.size // 2 - 1
    kept = whole[middle - values // 2 : middle + values // 2 + 1]
    cost = expected_bits(np.append(kept, 1 - kept.sum()), built.counts) + 8 * (1 - kept.sum())
    assert cost < entropy(whole) + 0.001 + 0.004 * values / 256 * 8


@in_both_families
def test_supports_grow_with_the_scale(family: str) -> None:
    built = FAMILIES[family][0](np.geomspace(0.05, 300, 100))
    assert (np.diff(built.sizes) >= 0).all()
    assert (np.diff(built.offsets) <= 0).all()


def test_laplace_tables_hold_what_is_more_probable_than_the_tail() -> None:
    for scale in (0.3, 2.0, 40.0):
        built = tables.laplace_tables([scale])
        reach = -int(built.offsets[0])
        middle = math.ceil(35 * scale)
        pmf = laplace_pmf(scale)
        assert pmf[middle + reach] >= tables.TAIL > pmf[middle + reach + 1]


@in_both_families
def test_huge_scales_take_no_memory(family: str) -> None:
    with pytest.raises(ValueError, match="at most 4096 elements"):
        FAMILIES[family][0]([1000.0])
    try:
        assert len(FAMILIES[family][0]([1e12])) == 1
    except ValueError as error:
        assert "at most 4096 elements" in str(error)


@pytest.mark.parametrize("module", [rans, tables], ids=["rans", "tables"])
def test_examples_of_the_docstrings_run(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


def test_table_argument_errors() -> None:
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"scales must be finite and above 0, got {scale}"):
            tables.laplace_tables([1.0, scale])
    with pytest.raises(ValueError, match="scales must have 1 dimension"):
        tables.laplace_tables(1.0)
    with pytest.raises(ValueError, match="sizes must name 1"):
        tables.laplace_tables([])
    with pytest.raises(ValueError, match="reach must be finite and above 0, got -1"):
        tables.symmetric_tables([1.0], lambda scale: lambda x: 0.5 * math.exp(-x / scale), -1)
    with pytest.raises(ValueError, match="sigmas must be finite and above 0, got 0.0"):
        tables.gaussian_tables([1.0, 0.0])
    with pytest.raises(ValueError, match="1 dimension"):
        tables.gaussian_tables([[1.0]])
    with pytest.raises(ValueError, match="one element a pmf, 1, got 2"):
        tables.tables_from_pmfs([[0.5, 0.5]], [0, 1])
    with pytest.raises(ValueError, match="sizes must name 1"):
        tables.gaussian_tables([])
