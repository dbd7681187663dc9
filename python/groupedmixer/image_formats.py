# SPDX-License-Identifier: MIT
"""The formats that decompressed pictures are saved in. Pillow is not imported for the table."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import UnsupportedImageError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class OutputFormat:
    """How Pillow writes a format."""

    pillow_name: str
    suffixes: tuple[str, ...]  # lower case, with the dot; the first is the one given to new files
    keeps_alpha: bool
    options: Mapping[str, object] = field(default_factory=dict)


OUTPUT_FORMATS: Mapping[str, OutputFormat] = {
    "png": OutputFormat("PNG", (".png",), keeps_alpha=True),
    "webp": OutputFormat("WEBP", (".webp",), keeps_alpha=True, options={"lossless": True}),
    "tiff": OutputFormat("TIFF", (".tiff", ".tif"), keeps_alpha=True),
    "bmp": OutputFormat("BMP", (".bmp",), keeps_alpha=False),
    "ppm": OutputFormat("PPM", (".ppm", ".pnm", ".pgm"), keeps_alpha=False),
    "jpeg": OutputFormat("JPEG", (".jpg", ".jpeg"), keeps_alpha=False, options={"quality": 95}),
}


def format_of_suffix(suffix: str) -> OutputFormat | None:
    """The format of a file name's suffix (with the dot, any case), or None."""
    for output_format in OUTPUT_FORMATS.values():
        if suffix.lower() in output_format.suffixes:
            return output_format
    return None


def encode_image(image: Image.Image, output_format: OutputFormat) -> bytes:
    """The bytes of an image file.

    Raises:
        UnsupportedImageError: the format cannot hold the picture's alpha plane or its size.
    """
    name = output_format.pillow_name
    if not output_format.keeps_alpha and image.has_transparency_data:
        raise UnsupportedImageError(
            f"{name} cannot hold the picture's alpha plane; choose PNG, WebP or TIFF"
        )
    stream = io.BytesIO()
    try:
        image.save(stream, format=name, **output_format.options)
    except (ValueError, OSError) as error:
        raise UnsupportedImageError(
            f"{name} cannot hold a picture of {image.width} x {image.height}: {error}"
        ) from error
    return stream.getvalue()
