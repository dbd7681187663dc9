# SPDX-License-Identifier: MIT
"""A sheet to judge by eye: the same crop of a few pictures by several codecs, at equal bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..images import Picture, load_picture, to_pil
from ..limits import MAX_PIXELS
from ..metrics import psnr
from ..search import TargetError, quality_for
from .pillow_codecs import PILLOW_CODECS

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["CROP", "LABEL", "MARGIN", "ZOOM", "draw_sheet"]

CROP = 192  # pixels of the picture
ZOOM = 2  # nearest neighbour: what is seen are the samples
LABEL = 40  # pixels below a crop, two lines
MARGIN = 8
_PICTURES = 4
_LINE = 18


@dataclass(frozen=True)
class _Version:
    """One codec's version of a picture."""

    label: str  # two lines
    image: Image.Image  # RGB


def draw_sheet(
    paths: Sequence[Path],
    name: str,
    codec: Codec,
    others: Sequence[str],
    target_bpp: float,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """A row a picture, a column a codec, the original first.

    Parameters
    ----------
    paths
        Pictures, at least one; four spread over them are taken.
    name, codec
        What is under test.
    others
        Names of `PILLOW_CODECS`.
    target_bpp
        Bits per pixel of our files, or the nearest that the codec can do. The others' files are
        those whose size comes nearest to ours; the labels say all sizes.
    max_pixels
        For reading the pictures.

    Returns
    -------
    Image.Image
        RGB, ``2 + len(others)`` columns of `ZOOM` x `CROP` pixels and `MARGIN`.
    """
    taken = [paths[i] for i in sorted({int(x) for x in np.linspace(0, len(paths) - 1, _PICTURES)})]
    rows = [
        _row(path, load_picture(path, max_pixels), name, codec, others, target_bpp)
        for path in taken
    ]
    cell_width, cell_height = ZOOM * CROP + MARGIN, ZOOM * CROP + LABEL + MARGIN
    size = ((2 + len(others)) * cell_width + MARGIN, len(rows) * cell_height + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_LINE - 4)
    for i, row in enumerate(rows):
        box = _busiest_crop(row[0].image)
        for j, version in enumerate(row):
            left, top = MARGIN + j * cell_width, MARGIN + i * cell_height
            crop = version.image.crop(box)
            zoomed = crop.resize((ZOOM * crop.width, ZOOM * crop.height), Image.Resampling.NEAREST)
            sheet.paste(zoomed, (left, top))
            first, second = version.label.split("\n")
            below = top + ZOOM * CROP + 2
            draw.text((left, below), first, fill="black", font=font)
            draw.text((left, below + _LINE), second, fill="black", font=font)
    return sheet


def _row(
    path: Path,
    picture: Picture,
    name: str,
    codec: Codec,
    others: Sequence[str],
    target_bpp: float,
) -> list[_Version]:
    picture = Picture(picture.rgb, None, picture.grey)
    image = to_pil(picture)
    data = _nearest_ours(codec, picture, target_bpp)
    decoded = codec.decompress(data, max_pixels=picture.width * picture.height)
    versions = [_Version(f"{path.name}\noriginal", image.convert("RGB"))]
    versions += [_nearest_other(other, picture, image, len(data)) for other in others]
    versions.append(_version(name, picture, data, decoded.convert("RGB")))
    return versions


def _version(title: str, picture: Picture, data: bytes, decoded: Image.Image) -> _Version:
    bpp = 8 * len(data) / (picture.width * picture.height)
    quality = psnr(picture.rgb, np.asarray(decoded))
    label = f"{title}\n{len(data)} bytes, {bpp:.3f} bpp, {quality:.2f} dB"
    return _Version(label, decoded)


def _nearest_ours(codec: Codec, picture: Picture, target_bpp: float) -> bytes:
    try:
        return quality_for(codec, picture, target_bpp=target_bpp).data
    except TargetError:  # the smallest file is the nearest
        return codec.compress(picture, 0.0)


def _nearest_other(name: str, picture: Picture, image: Image.Image, size: int) -> _Version:
    """By bisection over the whole qualities: files grow with them."""
    codec = PILLOW_CODECS[name]
    low, high = 1, 100
    nearest: tuple[int, bytes] | None = None
    while low <= high:
        quality = (low + high) // 2
        data = codec.encode(image, quality)
        if nearest is None or abs(len(data) - size) < abs(len(nearest[1]) - size):
            nearest = (quality, data)
        if len(data) > size:
            high = quality - 1
        else:
            low = quality + 1
    assert nearest is not None
    with Image.open(io.BytesIO(nearest[1])) as decoded:
        return _version(f"{codec.title} {nearest[0]}", picture, nearest[1], decoded.convert("RGB"))


def _busiest_crop(image: Image.Image) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of the crop with the largest mean gradient, on a grid."""
    width, height = min(CROP, image.width), min(CROP, image.height)
    grey = np.asarray(image.convert("L"), np.float64)
    busy = np.zeros_like(grey)
    busy[1:] += np.abs(np.diff(grey, axis=0))
    busy[:, 1:] += np.abs(np.diff(grey, axis=1))
    corners = [
        (top, left)
        for top in range(0, image.height - height + 1, CROP // 6)
        for left in range(0, image.width - width + 1, CROP // 6)
    ]
    top, left = max(
        corners, key=lambda at: busy[at[0] : at[0] + height, at[1] : at[1] + width].sum()
    )
    return (left, top, left + width, top + height)
