# SPDX-License-Identifier: MIT
"""Rate-distortion curves: means over a set of pictures, and published ones from JSON files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Curve", "bpp_at_psnr", "decibels", "read_curve"]


@dataclass(frozen=True)
class Curve:
    """Points of one codec, by rising rate.

    Parameters
    ----------
    bpp
        Bits per pixel, at least one point.
    psnr
        dB over RGB, as many as ``bpp``; None if it is not known.
    ms_ssim
        0..1, as many as ``bpp``; None if it is not known.

    Raises
    ------
    ValueError
        If a list has another length, or a value is not finite or out of range.
    """

    bpp: tuple[float, ...]
    psnr: tuple[float, ...] | None
    ms_ssim: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.bpp:
            raise ValueError("bpp must have at least one value, got none")
        ranges = {"bpp": (0.0, math.inf), "psnr": (-math.inf, math.inf), "ms_ssim": (0.0, 1.0)}
        for name, (low, high) in ranges.items():
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != len(self.bpp):
                raise ValueError(f"{name} must have {len(self.bpp)} values, got {len(values)}")
            for value in values:
                if not (math.isfinite(value) and low <= value <= high):
                    raise ValueError(f"{name} must be finite and in {low}..{high}, got {value}")
        if min(self.bpp) == 0:
            raise ValueError("bpp must be positive, got 0")

    def sorted(self) -> Curve:
        """The same points by rising rate."""
        order = sorted(range(len(self.bpp)), key=self.bpp.__getitem__)

        def pick(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(values[i] for i in order)

        return Curve(
            pick(self.bpp),
            None if self.psnr is None else pick(self.psnr),
            None if self.ms_ssim is None else pick(self.ms_ssim),
        )


def decibels(
    ms_ssim: Sequence[float],  # [points] in 0..1
) -> tuple[float, ...]:  # [points] dB
    """-10 log10(1 - MS-SSIM), the scale on which curves of it are compared.

    Capped where the pictures are equal in float32, at 70 dB.
    """
    return tuple(-10 * math.log10(max(1 - value, 1e-7)) for value in ms_ssim)


def bpp_at_psnr(curve: Curve, psnr: float) -> float | None:
    """Bits per pixel at which a curve has this PSNR (dB): the logarithm of its rate, interpolated
    linearly. None outside the curve, and where its PSNR does not rise with its rate.
    """
    curve = curve.sorted()
    if curve.psnr is None or any(np.diff(curve.psnr) <= 0):
        return None
    if not curve.psnr[0] <= psnr <= curve.psnr[-1]:
        return None
    return float(np.exp(np.interp(psnr, curve.psnr, np.log(curve.bpp))))


# Names of one quantity in the files of compressai, of papers' tables and of other projects.
_PSNR = ("psnr", "psnr-rgb")
_MS_SSIM = ("ms_ssim", "ms-ssim", "ms-ssim-rgb")
_MS_SSIM_DB = ("ms-ssim-db", "ms-ssim-db-rgb")


def read_curve(path: str | os.PathLike[str]) -> Curve:
    """A published curve from a JSON file.

    ``{"results": {"bpp": [...], "psnr-rgb": [...], "ms-ssim-rgb": [...]}}`` as compressai writes
    it, with or without the outer object; ``psnr``, ``ms-ssim`` and ``ms-ssim-db`` (decibels) are
    understood too, and points may come in any order.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds something else; the message names the file.
    """
    try:
        return _curve(json.loads(Path(path).read_text(encoding="utf-8"))).sorted()
    except (ValueError, TypeError) as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise ValueError(f"{os.fspath(path)} must hold a rate-distortion curve: {error}") from error


def _curve(content: Any) -> Curve:
    fields = content.get("results", content) if isinstance(content, Mapping) else None
    if not isinstance(fields, Mapping) or "bpp" not in fields:
        raise ValueError('there is no "bpp" in it, nor in its "results"')
    psnr = _first(fields, _PSNR)
    ms_ssim = _first(fields, _MS_SSIM)
    if ms_ssim is None and (in_decibels := _first(fields, _MS_SSIM_DB)) is not None:
        ms_ssim = tuple(1 - 10 ** (-value / 10) for value in in_decibels)
    if psnr is None and ms_ssim is None:
        known = ", ".join((*_PSNR, *_MS_SSIM, *_MS_SSIM_DB))
        raise ValueError(f"it must have one of {known}, got {', '.join(fields)}")
    return Curve(_numbers(fields["bpp"]), psnr, ms_ssim)


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> tuple[float, ...] | None:
    for name in names:
        if name in fields:
            return _numbers(fields[name])
    return None


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError(f"a list of numbers is needed, got {values!r}")
    return tuple(float(value) for value in values)
