# SPDX-License-Identifier: MIT
"""What an evaluation found, and the files that say it: results.csv and results.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bd_rate import Comparison
from .curves import Curve

__all__ = ["OUTPUT_NAMES", "Evaluation", "Measurement", "mean_curve", "results_csv", "results_json"]

OUTPUT_NAMES = ("results.csv", "results.json", "table.md", "rd.png", "rd.svg", "sheet.png")


@dataclass(frozen=True)
class Measurement:
    """One picture, one codec, one quality."""

    picture: str  # file name
    codec: str
    quality: float  # on the codec's own scale
    width: int  # pixels
    height: int
    bytes: int  # of the file
    psnr: float  # dB
    ms_ssim: float | None  # None for pictures that are too small for it

    @property
    def bpp(self) -> float:
        """Bits per pixel."""
        return 8 * self.bytes / (self.width * self.height)


@dataclass(frozen=True)
class Evaluation:
    """What `groupedmixer.evaluation.evaluate` found.

    Parameters
    ----------
    name
        Of the codec under test in all that follows, such as ``groupedmixer-rt``.
    weights
        Name and fingerprint of its weights, for people.
    measurements
        Of every picture that could be measured.
    curves
        Codec -> means over the pictures, ours first. Points are in the order of the qualities.
    published
        Name -> published curve.
    bd_rate, bd_rate_ms_ssim
        Codec or published curve -> ours against it; only those that have the metric.
    failures
        File name and reason of every picture that was skipped.
    """

    name: str
    weights: str
    measurements: tuple[Measurement, ...]
    curves: Mapping[str, Curve]
    published: Mapping[str, Curve]
    bd_rate: Mapping[str, Comparison]
    bd_rate_ms_ssim: Mapping[str, Comparison]
    failures: tuple[tuple[str, str], ...]

    @property
    def pictures(self) -> tuple[str, ...]:
        """File names of the pictures that were measured."""
        return tuple(dict.fromkeys(one.picture for one in self.measurements))

    def qualities(self, codec: str) -> tuple[float, ...]:
        """The qualities of a codec, in the order of its curve's points."""
        return tuple(dict.fromkeys(one.quality for one in self.measurements if one.codec == codec))

    def too_small_for_ms_ssim(self) -> tuple[str, ...]:
        """File names of pictures without MS-SSIM. One of them, and no mean has it."""
        return tuple(dict.fromkeys(one.picture for one in self.measurements if one.ms_ssim is None))


def mean_curve(measurements: Sequence[Measurement]) -> Curve:
    """Means over the pictures, one codec's measurements given: a point a quality, in their order.

    MS-SSIM is None if a picture lacks it: a mean over other pictures than those of the rate and
    the PSNR would be no point of the same curve.
    """
    by_quality: dict[float, list[Measurement]] = {}
    for one in measurements:
        by_quality.setdefault(one.quality, []).append(one)
    points = list(by_quality.values())
    known = [one.ms_ssim for one in measurements if one.ms_ssim is not None]
    return Curve(
        tuple(_mean([one.bpp for one in point]) for point in points),
        tuple(_mean([one.psnr for one in point]) for point in points),
        tuple(_mean([one.ms_ssim or 0.0 for one in point]) for point in points)
        if len(known) == len(measurements)
        else None,
    )


def results_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation for programs; docs/evaluation.md describes the keys."""
    codecs = {}
    for name, curve in evaluation.curves.items():
        codecs[name] = {
            "quality": list(evaluation.qualities(name)),
            "bpp": list(curve.bpp),
            "psnr": list(curve.psnr or ()),
            "ms_ssim": list(curve.ms_ssim or [None] * len(curve.bpp)),
        }
    result: dict[str, Any] = {
        "weights": evaluation.weights,
        "pictures": list(evaluation.pictures),
        "skipped": [{"picture": name, "reason": why} for name, why in evaluation.failures],
        "codecs": codecs,
    }
    for key, found in (
        ("bd_rate", evaluation.bd_rate),
        ("bd_rate_ms_ssim", evaluation.bd_rate_ms_ssim),
    ):
        result[key] = {evaluation.name: {name: one.percent for name, one in found.items()}}
        notes = {name: one.note for name, one in found.items() if one.note}
        result[f"{key}_notes"] = {evaluation.name: notes}
    return result


def results_csv(evaluation: Evaluation) -> str:
    """A row a picture, codec and quality."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["picture", "codec", "quality", "width", "height", "bytes", "bpp", "psnr", "ms_ssim"]
    )
    for one in evaluation.measurements:
        writer.writerow(
            [
                one.picture,
                one.codec,
                f"{one.quality:g}",
                one.width,
                one.height,
                one.bytes,
                f"{one.bpp:.6f}",
                f"{one.psnr:.4f}",
                "" if one.ms_ssim is None else f"{one.ms_ssim:.6f}",
            ]
        )
    return stream.getvalue()


def write_results(evaluation: Evaluation, folder: Path) -> None:
    """Writes results.csv and results.json. Raises OSError."""
    (folder / "results.csv").write_text(results_csv(evaluation), encoding="utf-8")
    text = json.dumps(results_json(evaluation), indent=2) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
