# SPDX-License-Identifier: MIT
"""Integer probability tables for the coder, from real-valued densities.

Two choices make a table: which values it holds, and how the 4096 counts are shared out.

*Support.* A value in the table costs every other value a little, as it takes a count of the 4096
whatever its probability: log2(4096 / 4095) = 2^-11.5 bits a symbol. Left to the escape it costs
itself about 8 bits more, the byte in the escape section. The two balance at a probability of
2^-14.5, and rarer values at the ends of the range are left to the escape (`TAIL`).

*Counts.* The code length is a sum of concave functions of the counts, so moving single counts to
where they gain most until no move helps ends at the best table there is, not just at a good one.

Tables are part of a model: they are stored with its weights and never computed anew, because
logarithms, exponentials and erfc differ between machines (keep ``counts``, ``sizes`` and
``offsets``, which make the same `Tables` again). This module needs numpy but not torch.

>>> from groupedmixer_ext import rans
>>> scales = np.geomspace(0.1, 10, 16)
>>> tables = laplace_tables(scales)
>>> random = np.random.default_rng(0)
>>> indexes = random.integers(0, 16, 1000).astype(np.uint8)
>>> symbols = np.rint(random.laplace(0, scales[indexes])).astype(np.int16)
>>> data = rans.encode(symbols, indexes, tables)
>>> bool((rans.decode(data, indexes, tables) == symbols).all())
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from groupedmixer_ext.rans import PRECISION, Tables

__all__ = [
    "TAIL",
    "gaussian_tables",
    "laplace_tables",
    "quantize_pmf",
    "symmetric_tables",
    "tables_from_pmfs",
]

TAIL = 2.0**-14.5
"""Values less probable than this are better escaped."""

# Symbols are int16, so no value farther out needs a probability of its own.
_MAX_REACH = 2**15 - 1

# Scales after which a tail is below 2^-50, far beyond any sensible support.
_GAUSSIAN_REACH = 8.0
_LAPLACE_REACH = 35.0


def quantize_pmf(pmf: ArrayLike, precision: int = PRECISION) -> NDArray[np.uint16]:
    """Shares ``2 ** precision`` counts out so that the expected code length is least.

    Parameters
    ----------
    pmf : array of float  # [n], 2 <= n <= 2 ** precision
        Finite and not negative, of any positive sum. The last one is the escape's.
    precision : int
        1 .. 16; the coder's own is 12.

    Returns
    -------
    uint16 array  # [n]
        Each at least 1, also where the probability is 0; their sum is exact.

    Raises
    ------
    ValueError
        If an argument breaks a rule above.

    Examples
    --------
    >>> quantize_pmf([0.7, 0.2, 0.1, 0.0], precision=4).tolist()
    [10, 3, 2, 1]
    """
    weights = _checked_pmf(pmf)
    if not 1 <= precision <= 16:
        raise ValueError(f"precision must be 1 .. 16, got {precision}")
    total = 1 << precision
    if weights.size > total:
        raise ValueError(f"pmf must have at most {total} elements, got {weights.size}")

    counts: NDArray[Any] = np.maximum(np.floor(weights * total), 1.0)
    gains = _gain(weights, counts)  # of one count more, [n]
    losses = _gain(weights, counts - 1)  # of one count less, [n]

    def move(slot: int, step: int) -> None:
        counts[slot] += step
        gains[slot] = _gain(weights[slot], counts[slot])
        losses[slot] = _gain(weights[slot], counts[slot] - 1)

    missing = total - int(counts.sum())
    for _ in range(missing):
        move(int(gains.argmax()), 1)
    for _ in range(-missing):
        move(int(losses.argmin()), -1)
    while gains.max() > losses.min():
        best, worst = int(gains.argmax()), int(losses.argmin())
        move(best, 1)
        move(worst, -1)
    shares: NDArray[np.uint16] = counts.astype(np.uint16)
    return shares


def tables_from_pmfs(
    pmfs: Sequence[ArrayLike], offsets: Sequence[int] | NDArray[Any], tail: float = TAIL
) -> Tables:
    """Builds one table a density, of any shape.

    Parameters
    ----------
    pmfs : sequence of float arrays  # T of [n_t + 1]
        Probabilities of the values ``offset .. offset + n_t - 1`` and, last, of all others, which
        may be 0. Each array is finite, not negative, and of any positive sum.
    offsets : sequence of int  # [T]
        The value of each density's first element.
    tail : float
        Values at the ends with a lower probability are left to the escape. 0 keeps all.

    Returns
    -------
    Tables
        Table t is that of ``pmfs[t]``. Every int16 value can be coded with each, at the price of an
        escape (about a byte more) where the table does not hold it.

    Raises
    ------
    ValueError
        If an argument breaks a rule above, there are no pmfs, a value lies outside int16, or what
        `tail` leaves of a table has more than 4096 slots.

    Examples
    --------
    Two densities, over 0 .. 2 and over -5 .. -4; both leave a little to the values beyond.

    >>> tables = tables_from_pmfs([[0.5, 0.3, 0.19, 0.01], [0.6, 0.39, 0.01]], [0, -5])
    >>> tables.sizes.tolist(), tables.offsets.tolist()
    ([4, 3], [0, -5])
    >>> tables.counts.tolist()
    [2048, 1229, 778, 41, 2458, 1597, 41]
    """
    if len(pmfs) != len(offsets):
        raise ValueError(f"offsets must have one element a pmf, {len(pmfs)}, got {len(offsets)}")
    counts, sizes, firsts = [], [], []
    for pmf, offset in zip(pmfs, offsets, strict=True):
        trimmed, skipped = _trim(_checked_pmf(pmf), tail)
        counts.append(quantize_pmf(trimmed))
        sizes.append(trimmed.size)
        firsts.append(int(offset) + skipped)
    return Tables(
        np.concatenate(counts) if counts else np.empty(0, np.uint16),
        np.array(sizes, np.int32),
        np.array(firsts, np.int32),
    )


def gaussian_tables(sigmas: ArrayLike, tail: float = TAIL) -> Tables:
    """Tables of zero-mean Gaussians integrated over the integers' unit intervals.

    A value k has the probability of k - 1/2 .. k + 1/2. To code around a mean, subtract it before
    rounding: ``symbols = rint(y - mean)``.

    Parameters
    ----------
    sigmas : array of float  # [T]
        Standard deviations, above 0.
    tail : float
        As in `tables_from_pmfs`.

    Returns
    -------
    Tables
        Table t is that of ``sigmas[t]``.

    Raises
    ------
    ValueError
        If sigmas are not as above or empty, or a table would need more than 4096 slots. With the
        default tail, sigmas above 960 are too large for a good table.

    Examples
    --------
    >>> tables = gaussian_tables([0.5, 2.0])
    >>> tables.sizes.tolist(), tables.offsets.tolist()
    ([6, 18], [-2, -8])
    >>> tables.counts[:6].tolist()  # of -2 .. 2 and the escape
    [6, 644, 2795, 644, 6, 1]
    """

    def upper_tail(sigma: float) -> Callable[[float], float]:
        scale = 1 / (sigma * math.sqrt(2))
        return lambda x: 0.5 * math.erfc(x * scale)

    return _symmetric_tables("sigmas", sigmas, upper_tail, _GAUSSIAN_REACH, tail)


def laplace_tables(scales: ArrayLike, tail: float = TAIL) -> Tables:
    """Tables of zero-mean Laplace densities integrated over the integers' unit intervals.

    The density of scale b is ``exp(-|x| / b) / (2 b)``; its standard deviation is ``sqrt(2) b``. A
    value k has the probability of k - 1/2 .. k + 1/2. To code around a median, subtract it before
    rounding.

    Parameters
    ----------
    scales : array of float  # [T]
        Mean absolute deviations b, above 0.
    tail : float
        As in `tables_from_pmfs`.

    Returns
    -------
    Tables
        Table t is that of ``scales[t]``.

    Raises
    ------
    ValueError
        If scales are not as above or empty, or a table would need more than 4096 slots. With the
        default tail, scales above 740 are too large for a good table.

    Examples
    --------
    >>> tables = laplace_tables([0.5, 2.0])
    >>> tables.sizes.tolist(), tables.offsets.tolist()
    ([12, 36], [-5, -17])
    >>> tables.counts[4:7].tolist()  # of -1, 0 and 1 in the first table
    [651, 2587, 651]
    """

    def upper_tail(scale: float) -> Callable[[float], float]:
        return lambda x: 0.5 * math.exp(-x / scale)

    return _symmetric_tables("scales", scales, upper_tail, _LAPLACE_REACH, tail)


def symmetric_tables(
    scales: ArrayLike,
    upper_tail: Callable[[float], Callable[[float], float]],
    reach: float,
    tail: float = TAIL,
) -> Tables:
    """Tables of a family of densities, symmetric around 0, that differ in their scale.

    A value k has the probability of k - 1/2 .. k + 1/2, as differences of upper tails.

    Parameters
    ----------
    scales : array of float  # [T]
        Above 0.
    upper_tail : callable
        Of a scale gives the function of x >= 0 that is P(X > x).
    reach : float
        In scales, above 0: where P(X > x) is far below `TAIL`.
    tail : float
        As in `tables_from_pmfs`.

    Returns
    -------
    Tables
        Table t is that of ``scales[t]``.

    Raises
    ------
    ValueError
        If scales or reach are not as above or scales are empty, or a table would need more than
        4096 slots.

    Examples
    --------
    >>> tables = symmetric_tables([0.5, 2.0], lambda b: lambda x: 0.5 * math.exp(-x / b), 35)
    >>> bool((tables.counts == laplace_tables([0.5, 2.0]).counts).all())
    True
    """
    if not (math.isfinite(reach) and reach > 0):
        raise ValueError(f"reach must be finite and above 0, got {reach}")
    return _symmetric_tables("scales", scales, upper_tail, reach, tail)


def _symmetric_tables(
    name: str,
    scales: ArrayLike,  # [T]
    upper_tail: Callable[[float], Callable[[float], float]],  # scale -> P(X > x)
    reach: float,  # in scales
    tail: float,
) -> Tables:
    """Tables of a family of symmetric densities that differ in their scale."""
    values = np.asarray(scales, np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got shape {list(values.shape)}")
    for scale in values:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"{name} must be finite and above 0, got {scale}")
    pmfs = [
        _symmetric_pmf(upper_tail(float(scale)), min(math.ceil(reach * scale), _MAX_REACH))
        for scale in values
    ]
    return tables_from_pmfs(pmfs, [-(pmf.size // 2 - 1) for pmf in pmfs], tail)


def _checked_pmf(pmf: ArrayLike) -> NDArray[np.float64]:
    weights = np.asarray(pmf, np.float64)
    if weights.ndim != 1 or weights.size < 2:
        raise ValueError(
            f"pmf must have 1 dimension and at least 2 elements, got shape {list(weights.shape)}"
        )
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(
            "pmf must be finite, not negative and of a positive sum, "
            f"got {weights.min()} .. {weights.max()}"
        )
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


def _gain(weights: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    """What one count more than `counts` saves of the expected code length; infinite at 0 counts."""
    numerator = np.asarray(counts, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        saved = np.asarray(weights) * np.log1p(1.0 / numerator)
    return np.where(numerator > 0, saved, np.inf)


def _trim(pmf: NDArray[np.float64], tail: float) -> tuple[NDArray[np.float64], int]:
    """Moves rare values at the ends to the escape; returns the rest and how many went in front."""
    values = pmf[:-1]
    kept = np.flatnonzero(values >= min(tail, values.max()))
    first, last = int(kept[0]), int(kept[-1])
    escape = pmf[-1] + values[:first].sum() + values[last + 1 :].sum()
    return np.append(values[first : last + 1], escape), first


def _symmetric_pmf(
    upper_tail: Callable[[float], float],  # P(X > x), for x > 0
    reach: int,
) -> NDArray[np.float64]:  # [2 * reach + 2]
    """Probabilities of -reach .. reach and, last, of all others.

    Differences of upper tails, not of a distribution function near 1: they keep their relative
    precision however small they are.
    """
    above = np.array([upper_tail(k + 0.5) for k in range(reach + 1)])  # P(X > k + 1/2)
    positive = above[:-1] - above[1:]
    return np.concatenate([positive[::-1], [1 - 2 * above[0]], positive, [2 * above[-1]]])
