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
logarithms and erfc differ between machines. This module needs numpy but not torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from groupedmixer_ext.rans import PRECISION, Tables

__all__ = ["TAIL", "gaussian_tables", "quantize_pmf", "tables_from_pmfs"]

TAIL = 2.0**-14.5
"""Values less probable than this are better escaped."""


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
    """Builds one table a density.

    Parameters
    ----------
    pmfs : sequence of float arrays  # T of [n_t + 1]
        Probabilities of the values ``offset .. offset + n_t - 1`` and, last, of all others.
    offsets : sequence of int  # [T]
        The value of each density's first element.
    tail : float
        Values at the ends with a lower probability are left to the escape. 0 keeps all.
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

    Parameters
    ----------
    sigmas : array of float  # [T]
        Standard deviations, above 0.
    tail : float
        As in `tables_from_pmfs`.
    """
    values = np.asarray(sigmas, np.float64)
    if values.ndim != 1:
        raise ValueError(f"sigmas must have 1 dimension, got shape {list(values.shape)}")
    for sigma in values:
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigmas must be finite and above 0, got {sigma}")
    pmfs = [_gaussian_pmf(float(sigma)) for sigma in values]
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


def _gaussian_pmf(sigma: float) -> NDArray[np.float64]:
    """Probabilities of -n .. n and, last, of all others; n is far beyond any sensible support."""
    reach = math.ceil(8 * sigma)
    scale = 1 / (sigma * math.sqrt(2))
    above = np.array([0.5 * math.erfc((k + 0.5) * scale) for k in range(reach + 1)])  # P(x > k)
    positive = above[:-1] - above[1:]
    return np.concatenate([positive[::-1], [1 - 2 * above[0]], positive, [2 * above[-1]]])
