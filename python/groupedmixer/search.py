# SPDX-License-Identifier: MIT
"""The quality that meets a target: a rate not to be exceeded, or a PSNR to be reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .container import MAX_QUALITY, QUALITY_STEPS
from .errors import GmxError
from .images import as_picture
from .metrics import psnr

if TYPE_CHECKING:
    from .codec import Codec

__all__ = ["MAX_ENCODES", "Found", "TargetError", "quality_for"]

MAX_ENCODES = 8

_TOP = MAX_QUALITY * QUALITY_STEPS
# Close enough to stop: two or three steps of 1/256 of the quality.
_BITS_SLACK = 0.005  # of log2(bpp): 0.35 % of the bytes
_PSNR_SLACK = 0.02  # dB


class TargetError(GmxError):
    """The picture cannot be coded within the target: relax it as the message says."""


@dataclass(frozen=True)
class Found:
    """A quality, and the file that it makes."""

    quality: float  # 0..7, a multiple of 1/256
    data: bytes  # the .gmx file
    bpp: float  # bits per pixel of the file
    psnr: float | None  # dB over RGB of the real decode; None if the target is a rate
    encodes: int  # files that were made on the way


def quality_for(
    codec: Codec,
    image: object,
    *,
    target_bpp: float | None = None,
    target_psnr: float | None = None,
    on_encode: Callable[[int], None] = lambda encodes: None,
) -> Found:
    """Searches the quality of a picture for one target, with at most `MAX_ENCODES` (8) encodes.

    ``target_bpp`` is a limit: the finest quality found whose whole file stays within it.
    ``target_psnr`` is a demand: the smallest quality found whose decode reaches it. The search
    stops within 0.35 % of the bytes or 0.02 dB of the target, on its good side. A target that
    every quality meets gives the end of the scale (7 for a rate, 0 for a PSNR).

    Parameters
    ----------
    codec
        Bytes and PSNR must rise with the quality.
    image
        As for `groupedmixer.Codec.compress`. Its alpha plane counts in the rate, not in the PSNR.
    target_bpp
        Bits per pixel, positive.
    target_psnr
        dB, over RGB.
    on_encode
        Called before each encode with the number of those done; what it raises ends the search.

    Raises
    ------
    TargetError
        If quality 0 exceeds the rate, or quality 7 does not reach the PSNR.
    ValueError
        If not exactly one target is given, or it is not a positive number.
    GmxError, TypeError, MemoryError
        As `groupedmixer.Codec.compress` and `groupedmixer.Codec.decompress`.
    """
    if (target_bpp is None) == (target_psnr is None):
        raise ValueError(
            "exactly one of target_bpp and target_psnr must be given, got "
            f"{target_bpp} and {target_psnr}"
        )
    for name, value in (("target_bpp", target_bpp), ("target_psnr", target_psnr)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")
    picture = as_picture(image)
    pixels = picture.width * picture.height
    encodes = 0

    def encode(step: int) -> Found:
        nonlocal encodes
        on_encode(encodes)
        encodes += 1
        quality = step / QUALITY_STEPS
        data = codec.compress(picture, quality)
        found_psnr = None
        if target_psnr is not None:
            # The limit on pixels guards against files of others; this one is our own.
            decoded = codec.decompress(data, max_pixels=pixels)
            found_psnr = psnr(picture.rgb, np.asarray(decoded.convert("RGB")))
        return Found(quality, data, 8 * len(data) / pixels, found_psnr, encodes)

    if target_bpp is not None:
        ends = encode(0), encode(_TOP)
        if ends[0].bpp > target_bpp:
            raise TargetError(
                f"target_bpp must be at least {ends[0].bpp:.4f} for this picture (quality 0), "
                f"got {target_bpp:g}"
            )
        wanted = math.log2(target_bpp)
        found = _bracket(
            encode, ends, lambda one: math.log2(one.bpp) - wanted, _BITS_SLACK, below=True
        )
    else:
        assert target_psnr is not None
        ends = encode(0), encode(_TOP)
        if _psnr(ends[1]) < target_psnr:
            raise TargetError(
                f"target_psnr must be at most {_psnr(ends[1]):.2f} for this picture "
                f"(quality {MAX_QUALITY}), got {target_psnr:g}"
            )
        demand = target_psnr
        found = _bracket(encode, ends, lambda one: _psnr(one) - demand, _PSNR_SLACK, below=False)
    return Found(found.quality, found.data, found.bpp, found.psnr, encodes)


def _psnr(found: Found) -> float:
    assert found.psnr is not None, "measured where the target is a PSNR"
    return found.psnr


def _bracket(
    encode: Callable[[int], Found],
    ends: tuple[Found, Found],
    excess: Callable[[Found], float],
    slack: float,
    *,
    below: bool,
) -> Found:
    """The best found whose excess over the target is at most 0 (below) or at least 0.

    Regula falsi between two bracketing files, aimed at the middle of the slack. Where one end is
    kept twice its value counts half (the Illinois rule): a bent curve would hold it for ever.
    """
    aim = -slack / 2 if below else slack / 2
    low, high = (ends[0], 0), (ends[1], _TOP)
    under, over = excess(low[0]) - aim, excess(high[0]) - aim
    if below and excess(high[0]) <= 0:
        return high[0]
    if not below and excess(low[0]) >= 0:
        return low[0]
    moved = ""
    for _ in range(2, MAX_ENCODES):
        found = low[0] if below else high[0]
        if high[1] - low[1] <= 1 or abs(excess(found)) <= slack:
            break
        # Against rounding at the ends: |share| stays in 0..1 where an end is beyond the aim.
        share = min(max(under / (under - over), 0.0), 1.0) if under < over else 0.5
        step = low[1] + round(share * (high[1] - low[1]))
        step = min(max(step, low[1] + 1), high[1] - 1)
        middle = encode(step)
        value = excess(middle)
        if value <= 0 if below else value < 0:
            low, under = (middle, step), value - aim
            over /= 2 if moved == "low" else 1
            moved = "low"
        else:
            high, over = (middle, step), value - aim
            under /= 2 if moved == "high" else 1
            moved = "high"
    return low[0] if below else high[0]
