# SPDX-License-Identifier: MIT
"""The pixels of a Pillow image of any mode as samples of 8 bits, upright.

READ ME FIRST
- Samples are copied out of Pillow in bands, so that a large picture is in memory twice, not five
  times.
- 16-bit grey becomes 8 bits by round(v / 257). 16-bit colour arrives from Pillow with 8 bits
  already (it keeps the high byte; grey with alpha comes as colour). Floating point is refused.
- Where Pillow hands on numbers of another meaning than the mode's, this module knows better: a
  PNG's colour key counts in the file's bits, a TIFF's grey may have 12 bits or white at zero.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from .errors import UnsupportedImageError
from .metadata import clean_icc_profile, warn_dropped

__all__ = ["CONVERTED_MODES", "colour_key", "upright_samples"]

_UInt8Array: TypeAlias = npt.NDArray[np.uint8]
_Samples: TypeAlias = tuple[_UInt8Array, _UInt8Array | None]
"""Grey [H, W] or colour [H, W, 3] samples, and alpha [H, W]."""


_GREY_MODES = ("1", "L", "LA", "La")
_WIDE_GREY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
CONVERTED_MODES = {"CMYK": "CMYK", "LAB": "Lab "}
"""Modes converted to sRGB through their profile, and what ICC calls the colour space."""

# EXIF orientation -> (swap rows and columns, then reverse rows, reverse columns)
_ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_INVERSE_ORIENTATIONS = {6: 8, 8: 6}  # each of the others is its own inverse

_BAND_PIXELS = 1 << 20  # taken out of Pillow at a time

# PNG samples of these bits, as Pillow calls them -> their steps when they have become 8 bits.
_NARROW_GREY = {"L;2": 85, "L;4": 17}
_WIDE_COLOUR = "RGB;16B"

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def colour_key(image: Image.Image) -> object:
    """The transparent colour of an image, in the bits that its samples will have, or None.

    Of a PNG file, ask before it is loaded (as Pillow's save() does): how many bits its samples had
    is forgotten then. A key of 2 or 4 bits matches no sample, and what it marks becomes opaque.

    Raises:
        UnsupportedImageError: it has a colour of 16 bits, and the samples will have 8.
    """
    key = image.info.get("transparency")
    if key is None or image.format != "PNG":
        return key
    tiles = getattr(image, "tile", ())
    stored = tiles[0].args if tiles else None
    if stored == _WIDE_COLOUR or (isinstance(key, tuple) and max(key) > 255):
        raise UnsupportedImageError(
            f"16-bit colour cannot have a transparent colour, got {key}, as its low bytes are not "
            "read: save it with an alpha channel, or with 8 bits"
        )
    step = _NARROW_GREY.get(stored) if isinstance(stored, str) else None
    if step is not None and isinstance(key, int) and key * step <= 255:
        return key * step
    return key


def upright_samples(
    image: Image.Image, orientation: object, key: object, profile: bytes | None
) -> tuple[_UInt8Array, _UInt8Array | None, bool]:
    """The samples of a loaded image, turned as its orientation says.

    Args:
        image: of any mode but "F".
        orientation: EXIF's; what is none of 2..8 is upright.
        key: of `colour_key`.
        profile: the ICC profile that samples of CONVERTED_MODES go through.

    Returns:
        rgb [H, W, 3]; alpha [H, W] or None; whether the image is grey.

    Raises:
        UnsupportedImageError: a mode or values that cannot be coded.
    """
    samples_of = _converter(image, profile)
    rows = max(1, _BAND_PIXELS // image.width)

    def band(top: int) -> Image.Image:
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        if key is not None:
            part.info["transparency"] = key
        return part

    bands = (samples_of(band(top)) for top in range(0, image.height, rows))
    turned = orientation in _ORIENTATIONS and _ORIENTATIONS[orientation][0]
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    inverse = _INVERSE_ORIENTATIONS.get(orientation, orientation)  # type: ignore[call-overload]
    rgb = np.empty((height, width, 3), np.uint8)
    alpha = None
    grey = False
    top = 0
    for colour, band_alpha in bands:
        below = top + len(colour)
        grey = colour.ndim == 2
        _upright(rgb, inverse)[top:below] = colour[..., None] if grey else colour
        if band_alpha is not None:
            if alpha is None:
                alpha = np.empty((height, width), np.uint8)
            _upright(alpha, inverse)[top:below] = band_alpha
        top = below
    return rgb, alpha, grey


def _converter(image: Image.Image, profile: bytes | None) -> Callable[[Image.Image], _Samples]:
    """What turns a part of this image into samples."""
    if image.mode in _WIDE_GREY_MODES:
        return _wide_grey(image)
    if image.mode in _GREY_MODES:
        return _grey_alpha if image.has_transparency_data else _grey
    if image.mode not in _COLOUR_MODES:
        modes = ", ".join(_GREY_MODES + _WIDE_GREY_MODES + _COLOUR_MODES)
        raise UnsupportedImageError(f"the image's mode must be one of {modes}, got {image.mode}")
    if image.has_transparency_data:
        return _colour_alpha
    if image.mode in CONVERTED_MODES and profile:
        try:
            return _through_profile(image.mode, bytes(profile))
        except (ValueError, ImageCms.PyCMSError, OSError) as error:
            warn_dropped(f"{image.mode} ICC profile", error)
    return _colour


def _grey(image: Image.Image) -> _Samples:
    return np.asarray(image.convert("L")), None


def _grey_alpha(image: Image.Image) -> _Samples:
    grey_alpha = np.asarray(image.convert("LA"))  # there is no way from La to anything but LA
    return grey_alpha[..., 0], grey_alpha[..., 1]


def _colour(image: Image.Image) -> _Samples:
    return np.asarray(image.convert("RGB")), None


def _colour_alpha(image: Image.Image) -> _Samples:
    rgba = np.asarray(image.convert("RGBA"))
    return rgba[..., :3], rgba[..., 3]


def _wide_grey(image: Image.Image) -> Callable[[Image.Image], _Samples]:
    """For grey samples of 16 bits, which mode "I" holds in 32, or of 12 bits in a TIFF file."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_TIFF_BITS)
    if bits == (16,) and tags.get(_TIFF_SAMPLE_FORMAT) == (_SIGNED,):
        raise UnsupportedImageError(
            "samples of 16 bits must be unsigned, those of this TIFF file are signed"
        )
    highest = 4095 if bits == (12,) else 65535
    white_is_zero = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO

    def convert(band: Image.Image) -> _Samples:
        values = np.asarray(band).astype(np.int32)
        low, high = values.min(), values.max()
        if low < 0 or high > highest:
            raise UnsupportedImageError(
                f"samples of mode {image.mode} must be in 0..{highest}, got {low}..{high}"
            )
        grey = ((values * 255 + highest // 2) // highest).astype(np.uint8)
        if white_is_zero:
            np.subtract(255, grey, out=grey)
        transparent = band.info.get("transparency")
        if transparent is None:
            return grey, None
        return grey, np.where(values == transparent, 0, 255).astype(np.uint8)

    return convert


def _through_profile(mode: str, profile: bytes) -> Callable[[Image.Image], _Samples]:
    """A conversion to sRGB. ValueError, PyCMSError or OSError: the profile cannot be used."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(clean_icc_profile(profile, CONVERTED_MODES[mode]))),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
    )

    def convert(image: Image.Image) -> _Samples:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # None is for inPlace=True only
        return np.asarray(converted), None

    return convert


def _upright(plane: Any, orientation: object) -> Any:
    """[H, W] or [H, W, C] samples turned as the EXIF orientation says; unknown ones are upright."""
    if plane is None or orientation not in _ORIENTATIONS:
        return plane
    swap, reverse_rows, reverse_columns = _ORIENTATIONS[orientation]
    if swap:
        plane = plane.swapaxes(0, 1)
    return plane[:: -1 if reverse_rows else 1, :: -1 if reverse_columns else 1]
