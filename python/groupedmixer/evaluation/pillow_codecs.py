# SPDX-License-Identifier: MIT
"""The codecs that Pillow brings, to measure beside ours in the same run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from ..errors import UnsupportedImageError

__all__ = ["PILLOW_CODECS", "PillowCodec", "installed_codecs"]

_QUALITIES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


@dataclass(frozen=True)
class PillowCodec:
    """How Pillow writes a format, and at which of its qualities it is measured."""

    title: str
    pillow_name: str
    suffix: str
    qualities: tuple[int, ...] = _QUALITIES
    options: Mapping[str, object] = field(default_factory=dict)
    package: str | None = None  # the plugin that brings the format; None: Pillow itself

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """The bytes of a file.

        Raises
        ------
        UnsupportedImageError
            If the format cannot hold the picture.
        """
        stream = io.BytesIO()
        try:
            image.save(stream, self.pillow_name, quality=quality, **self.options)
        except (ValueError, OSError, RuntimeError) as error:
            raise UnsupportedImageError(
                f"{self.title} cannot hold a picture of {image.width} x {image.height}: {error}"
            ) from error
        return stream.getvalue()

    def decode(self, path: Path) -> npt.NDArray[np.uint8]:  # [H, W, 3]
        """The samples of a file, as RGB."""
        with Image.open(path, formats=[self.pillow_name]) as image:
            return np.array(image.convert("RGB"))

    def is_installed(self) -> bool:
        """Whether this Pillow can write the format."""
        if self.package is None:
            return self.pillow_name == "JPEG" or bool(features.check(self.pillow_name.lower()))
        try:
            __import__(self.package)  # registers the format
        except ImportError:
            return False
        return True


PILLOW_CODECS: Mapping[str, PillowCodec] = {
    "jpeg": PillowCodec("JPEG", "JPEG", ".jpg", options={"optimize": True}),
    # Its quality 5 is already better than our quality 0.
    "webp": PillowCodec("WebP", "WEBP", ".webp", (1, *_QUALITIES), {"method": 6}),
    "avif": PillowCodec("AVIF", "AVIF", ".avif"),
    "jxl": PillowCodec("JPEG XL", "JXL", ".jxl", package="pillow_jxl"),
}


def installed_codecs() -> tuple[str, ...]:
    """Those of `PILLOW_CODECS` that can be measured here."""
    return tuple(name for name, codec in PILLOW_CODECS.items() if codec.is_installed())
