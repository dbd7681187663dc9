# SPDX-License-Identifier: MIT
"""Orders in which groups can be coded, as (slice, row phase, column phase) triples."""

from __future__ import annotations

__all__ = ["phases_outer", "slices_outer"]

Order = tuple[tuple[int, int, int], ...]


def slices_outer(slices: int, k_h: int, k_w: int) -> Order:
    """All phases of a slice, then the next slice: the order of a configuration that names none.

    >>> slices_outer(2, 1, 2)
    ((0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1))
    """
    return tuple((c, i, j) for c in range(slices) for i, j in _phases(k_h, k_w))


def phases_outer(slices: int, k_h: int, k_w: int) -> Order:
    """All slices at a phase, then the next phase.

    >>> phases_outer(2, 1, 2)
    ((0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1))
    """
    return tuple((c, i, j) for i, j in _phases(k_h, k_w) for c in range(slices))


def _phases(k_h: int, k_w: int) -> list[tuple[int, int]]:
    """The diagonal first: in 2x2 patches, the phases after it have neighbours on all sides.

    >>> _phases(2, 2)
    [(0, 0), (1, 1), (0, 1), (1, 0)]
    """
    return sorted(
        ((i, j) for i in range(k_h) for j in range(k_w)),
        key=lambda phase: ((phase[1] - phase[0]) % max(k_h, k_w), phase),
    )
