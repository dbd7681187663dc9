# SPDX-License-Identifier: MIT
"""BD-rate: the mean difference in bytes at equal quality, where two curves have quality in common.

READ ME FIRST
- The mean is of the logarithm of the rate, over the qualities that both curves cover, akima
  between the points (package bjontegaard). MS-SSIM is compared in decibels.
- A curve that is not strictly monotone, or has no quality in common with the other, has no
  BD-rate: a note says so in place of a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .curves import Curve, decibels
from .extras import require

__all__ = ["Comparison", "compare"]

# Below this share of the tested curve's range, a mean over the rest is easily misread.
_ENOUGH = 0.5


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Parameters
    ----------
    percent
        BD-rate; below 0 where the tested codec needs fewer bytes. None if there is none.
    note
        Why there is none, or what to beware of; empty if there is nothing to say.
    """

    percent: float | None
    note: str = ""


def compare(
    tested: Curve, anchor: Curve, metric: Literal["psnr", "ms_ssim"] = "psnr"
) -> Comparison | None:
    """BD-rate of ``tested`` against ``anchor``; None if one of them does not have the metric.

    Raises
    ------
    ImportError
        If the package bjontegaard is not installed.
    """
    bjontegaard = require("bjontegaard")
    tested, anchor = tested.sorted(), anchor.sorted()
    y_tested, y_anchor = _distortion(tested, metric), _distortion(anchor, metric)
    if y_tested is None or y_anchor is None:
        return None
    for whose, curve, values in (
        ("the tested", tested, y_tested),
        ("the other", anchor, y_anchor),
    ):
        if len(values) < 2:
            return Comparison(None, f"{whose} curve has one point, two are needed")
        if not (_rises(curve.bpp) and _rises(values)):
            return Comparison(None, f"{whose} curve is not strictly monotone")
    low, high = max(y_tested[0], y_anchor[0]), min(y_tested[-1], y_anchor[-1])
    if high <= low:
        return Comparison(
            None,
            f"no overlap: {y_tested[0]:.2f} to {y_tested[-1]:.2f} dB against "
            f"{y_anchor[0]:.2f} to {y_anchor[-1]:.2f} dB",
        )
    percent = bjontegaard.bd_rate(
        list(anchor.bpp),
        list(y_anchor),
        list(tested.bpp),
        list(y_tested),
        method="akima",
        require_matching_points=False,
        min_overlap=0,  # checked above, and said in the note below
    )
    share = (high - low) / (y_tested[-1] - y_tested[0])
    note = f"only over {low:.2f} to {high:.2f} dB" if share < _ENOUGH else ""
    return Comparison(float(percent), note)


def _distortion(curve: Curve, metric: str) -> tuple[float, ...] | None:
    """dB, rising with quality."""
    if metric == "psnr":
        return curve.psnr
    return None if curve.ms_ssim is None else decibels(curve.ms_ssim)


def _rises(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values))
