# SPDX-License-Identifier: MIT
"""The largest pictures: what the format can hold, and what is accepted unless the caller says."""

from __future__ import annotations

from .errors import PixelLimitError

MAX_SIDE = 1 << 20
"""The largest width and height a .gmx file can hold, in pixels."""

MAX_PIXELS = 1 << 27
"""The default of every `max_pixels`: width x height of the largest picture accepted.

134 megapixels; docs/performance.md says what memory they take.
"""

MAX_METADATA = 1 << 22
"""The most bytes that a file holds of an ICC profile, of EXIF data and of an XMP packet, each."""


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuses a picture before memory is taken for it.

    Args:
        width, height: the size in pixels.
        max_pixels: the largest width * height allowed.

    Raises:
        PixelLimitError: the picture is larger.
    """
    if width * height > max_pixels:
        raise pixel_limit_error(f"{width} x {height} = {width * height}", max_pixels)


def pixel_limit_error(size: str, max_pixels: int) -> PixelLimitError:
    """The error that tells a picture's size, in words, and the limit it exceeds."""
    return PixelLimitError(
        f"the picture must have at most max_pixels = {max_pixels} pixels, got {size}; raise the "
        "limit if you trust its source"
    )
