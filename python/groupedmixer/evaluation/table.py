# SPDX-License-Identifier: MIT
"""The evaluation as a Markdown table."""

from __future__ import annotations

from .curves import bpp_at_psnr
from .pillow_codecs import PILLOW_CODECS
from .results import Evaluation

__all__ = ["table"]


def table(evaluation: Evaluation) -> str:
    """Means per quality with the others' rate at the same PSNR, then the BD-rates."""
    ours = evaluation.curves[evaluation.name]
    others = {name: curve for name, curve in evaluation.curves.items() if name != evaluation.name}
    assert ours.psnr is not None, "measured curves have a PSNR"
    count = len(evaluation.pictures)
    lines = [
        f"{evaluation.name} ({evaluation.weights}) on {count} picture{'s' * (count != 1)}: "
        "bits per pixel of the files, means over the pictures.",
    ]
    if others:
        lines.append(
            "The other codecs' bits per pixel are interpolated in the logarithm to the PSNR of "
            "the row (-: outside their curve)."
        )
    small = evaluation.too_small_for_ms_ssim()
    if small:
        lines.append(f"No MS-SSIM, which {_listed(small)} would need to be larger for.")
    titles = [f"{PILLOW_CODECS[name].title} bpp" for name in others]
    rows = [["quality", "bpp", "PSNR dB", "MS-SSIM", *titles]]
    for i, quality in enumerate(evaluation.qualities(evaluation.name)):
        at_psnr = [bpp_at_psnr(curve, ours.psnr[i]) for curve in others.values()]
        rows.append(
            [
                f"{quality:g}",
                f"{ours.bpp[i]:.3f}",
                f"{ours.psnr[i]:.2f}",
                "-" if ours.ms_ssim is None else f"{ours.ms_ssim[i]:.4f}",
                *("-" if bpp is None else f"{bpp:.3f}" for bpp in at_psnr),
            ]
        )
    lines += ["", *_markdown(rows)]
    if evaluation.bd_rate or evaluation.bd_rate_ms_ssim:
        rows = [["BD-rate against", "over PSNR", "over MS-SSIM"]]
        for name in dict.fromkeys((*evaluation.bd_rate, *evaluation.bd_rate_ms_ssim)):
            rows.append([name, _bd_rate(evaluation, name, False), _bd_rate(evaluation, name, True)])
        lines += ["", *_markdown(rows)]
    return "\n".join(lines) + "\n"


def _bd_rate(evaluation: Evaluation, name: str, over_ms_ssim: bool) -> str:
    found = (evaluation.bd_rate_ms_ssim if over_ms_ssim else evaluation.bd_rate).get(name)
    if found is None:
        return "-"
    number = "" if found.percent is None else f"{found.percent:+.1f} %"
    if number and found.note:
        return f"{number} ({found.note})"
    return number or found.note


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others"


def _markdown(rows: list[list[str]]) -> list[str]:
    ruler = ["---"] * len(rows[0])
    return ["| " + " | ".join(row) + " |" for row in (rows[0], ruler, *rows[1:])]
