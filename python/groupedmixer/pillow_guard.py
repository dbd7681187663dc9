# SPDX-License-Identifier: MIT
"""Pillow at arm's length: its errors become ours, and its limit of pixels gives way to ours."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from .errors import CorruptError, GmxError, MetadataWarning, PixelLimitError
from .limits import pixel_limit_error

__all__ = ["pillow_errors", "pillow_limit"]


@contextmanager
def pillow_errors(
    error_type: type[GmxError], what: str, max_pixels: int | None = None
) -> Iterator[None]:
    """Turns whatever Pillow raises into `error_type`, and its pixel limit into ours.

    Args:
        error_type: of all but the pixel limit; CorruptError of that, too.
        what: what went wrong, in words.
        max_pixels: our limit, to be named where Pillow's is met first.
    """
    try:
        yield
    except (GmxError, MemoryError, MetadataWarning):  # a warning where warnings are errors
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if issubclass(error_type, CorruptError):
            raise error_type(f"{what}: {error}") from error
        if max_pixels is None:
            raise PixelLimitError(str(error)) from error
        size = re.search(r"\((\d+) pixels\)", str(error))  # Pillow tells no width and height
        raise pixel_limit_error(size[1] if size else "more", max_pixels) from error
    except UnidentifiedImageError as error:  # its text names an object, not a file
        raise error_type(what) from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise error_type(f"{what}: {error}") from error


class _PillowLimit:
    """Pillow's limit of pixels, which is one for the process, raised while pictures are read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[int] = []  # by those who read now, on any thread
        self._own: int | None = None  # Pillow's, while there are any

    @contextmanager
    def __call__(self, max_pixels: int) -> Iterator[None]:
        """Lets Pillow open pictures of max_pixels; a limit that is higher already stays."""
        with self._lock:
            if not self._wanted:
                self._own = Image.MAX_IMAGE_PIXELS
            self._wanted.append(max_pixels)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(max_pixels)
                self._set()

    def _set(self) -> None:
        if self._own is not None:
            Image.MAX_IMAGE_PIXELS = max([self._own, *self._wanted])


pillow_limit = _PillowLimit()
