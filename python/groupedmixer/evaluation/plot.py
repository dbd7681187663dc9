# SPDX-License-Identifier: MIT
"""PSNR over bits per pixel, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .curves import Curve
from .extras import require
from .pillow_codecs import PILLOW_CODECS
from .results import Evaluation

__all__ = ["draw_curves"]

_SIZE = (8.0, 6.0)  # inches
_DPI = 150


def draw_curves(evaluation: Evaluation, paths: Sequence[Path]) -> None:
    """Writes the plot to files, whose suffixes decide their formats.

    Ours is drawn thick, the measured ones thin, published ones dashed. The axes show the range of
    ours; the rest of the others' curves is cut off.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If a file cannot be written.
    """
    require("matplotlib")
    # Not pyplot: it keeps figures and asks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    ours = evaluation.curves[evaluation.name]
    measured = [name for name in evaluation.curves if name != evaluation.name]
    for i, name in enumerate(measured):
        _draw(axes, evaluation.curves[name], PILLOW_CODECS[name].title, f"C{i + 1}", "-")
    for i, (name, curve) in enumerate(evaluation.published.items()):
        if curve.psnr is not None:
            _draw(axes, curve, f"{name} (published)", f"C{(len(measured) + i + 1) % 10}", "--")
    _draw(axes, ours, evaluation.name, "black", "-", width=2.5)
    assert ours.psnr is not None, "measured curves have a PSNR"
    axes.set_xlim(0, 1.15 * max(ours.bpp))
    margin = 0.1 * (max(ours.psnr) - min(ours.psnr)) + 0.5
    axes.set_ylim(min(ours.psnr) - margin, max(ours.psnr) + margin)
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel("PSNR over RGB [dB]")
    count = len(evaluation.pictures)
    axes.set_title(f"Means over {count} picture{'s' * (count != 1)}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    for path in paths:
        figure.savefig(path, dpi=_DPI)


def _draw(
    axes: object, curve: Curve, label: str, colour: str, style: str, width: float = 1.2
) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    curve = curve.sorted()
    assert curve.psnr is not None
    axes.plot(
        curve.bpp,
        curve.psnr,
        style,
        color=colour,
        linewidth=width,
        marker="o",
        markersize=1.5 + 1.2 * width,
        label=label,
    )
