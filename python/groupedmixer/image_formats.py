# SPDX-License-Identifier: MIT
"""The formats that decompressed pictures are saved in. Pillow is not imported for the table."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import UnsupportedImageError
from .metadata import warn_dropped

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class OutputFormat:
    """How Pillow writes a format."""

    pillow_name: str
    suffixes: tuple[str, ...]  # lower case, with the dot; the first is the one given to new files
    keeps_alpha: bool
    metadata: tuple[str, ...] = ()  # of "icc_profile", "exif" and "xmp", those that it takes
    keeps_grey: bool = True  # or makes colour of it
    options: Mapping[str, object] = field(default_factory=dict)


_NAMES = {"icc_profile": "ICC profile", "exif": "EXIF", "xmp": "XMP"}
_ALL = tuple(_NAMES)

OUTPUT_FORMATS: Mapping[str, OutputFormat] = {
    "png": OutputFormat("PNG", (".png",), keeps_alpha=True, metadata=_ALL),
    # exact: also what is invisible is kept.
    "webp": OutputFormat(
        "WEBP",
        (".webp",),
        keeps_alpha=True,
        metadata=_ALL,
        keeps_grey=False,
        options={"lossless": True, "exact": True},
    ),
    "tiff": OutputFormat("TIFF", (".tiff", ".tif"), keeps_alpha=True, metadata=_ALL),
    "bmp": OutputFormat("BMP", (".bmp",), keeps_alpha=False),
    "ppm": OutputFormat("PPM", (".ppm", ".pnm", ".pgm"), keeps_alpha=False),
    "jpeg": OutputFormat(
        "JPEG", (".jpg", ".jpeg"), keeps_alpha=False, metadata=_ALL, options={"quality": 95}
    ),
}


_JPEG_LIMITS = {"exif": 65533, "xmp": 65504}  # bytes of one segment; profiles take several

# What a directory says of the photograph, not of how samples are stored: ImageDescription, Make,
# Model, XResolution, YResolution, ResolutionUnit, Software, DateTime, Artist, Copyright.
_DESCRIPTIVE_TAGS = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432)
_DESCRIPTIVE_DIRECTORIES = (34665, 34853)  # Exif, GPS
_TIFF_XMP = 700


def format_of_suffix(suffix: str) -> OutputFormat | None:
    """The format of a file name's suffix (with the dot, any case), or None."""
    for output_format in OUTPUT_FORMATS.values():
        if suffix.lower() in output_format.suffixes:
            return output_format
    return None


def encode_image(image: Image.Image, output_format: OutputFormat) -> bytes:
    """The bytes of an image file, with the metadata of `image.info` that the format takes.

    Warns (MetadataWarning) of metadata that exceed what the format can hold, and of an ICC profile
    where it cannot hold one, or none of grey samples.

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
        image.save(stream, format=name, **output_format.options, **_metadata(image, output_format))
    except (ValueError, OSError) as error:
        raise UnsupportedImageError(
            f"{name} cannot hold a picture of {image.width} x {image.height}: {error}"
        ) from error
    return stream.getvalue()


def descriptive_exif(exif: Image.Exif, xmp: bytes = b"") -> bytes:
    """EXIF data of what may move between EXIF and a TIFF file's directory, or none.

    The latter also describes how samples are stored, which is no business of another file's. `xmp`
    is for the directory of a TIFF file, where it has a tag.
    """
    from PIL import Image

    kept = Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    if xmp:
        kept[_TIFF_XMP] = xmp
    found = bool(kept)
    for tag in _DESCRIPTIVE_DIRECTORIES:
        if directory := exif.get_ifd(tag):
            kept.get_ifd(tag).update(directory)
            found = True
    return kept.tobytes() if found else b""


def _metadata(image: Image.Image, output_format: OutputFormat) -> dict[str, object]:
    """The arguments of Pillow's save() for the metadata in `image.info`."""
    found: dict[str, bytes] = {}
    for key in _ALL:
        data = image.info.get(key)
        if data is None:
            continue
        obstacle = _obstacle(key, len(data), image.mode in ("L", "LA"), output_format)
        if obstacle is not None:
            warn_dropped(_NAMES[key], obstacle)
        elif key in output_format.metadata:
            found[key] = data
    arguments: dict[str, object] = dict(found)
    if output_format.pillow_name == "PNG" and "xmp" in found:
        from PIL import PngImagePlugin

        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", found["xmp"])
        del arguments["xmp"]
        arguments["pnginfo"] = texts
    elif output_format.pillow_name == "TIFF":
        arguments.pop("xmp", None)
        arguments["exif"] = _tiff_directory(found.get("exif", b""), found.get("xmp", b""))
    return arguments


def _obstacle(key: str, length: int, grey: bool, output_format: OutputFormat) -> str | None:
    """Why a user should hear that a format cannot hold this, or None."""
    name = output_format.pillow_name
    if key == "icc_profile":  # without which colours look wrong; the others are only gone
        if key not in output_format.metadata:
            return f"{name} cannot hold one"
        if grey and not output_format.keeps_grey:
            return f"{name} makes colour of grey samples"
    limit = _JPEG_LIMITS.get(key)
    if name == "JPEG" and limit is not None and length > limit:
        return f"JPEG holds at most {limit} bytes of it, got {length}"
    return None


def _tiff_directory(exif: bytes, xmp: bytes) -> bytes:
    from PIL import Image

    parsed = Image.Exif()
    try:
        if exif:
            parsed.load(exif)
        return descriptive_exif(parsed, xmp)
    except Exception as error:  # Pillow's parser raises nearly anything on damaged data
        warn_dropped("EXIF", f"TIFF cannot hold it ({error})")
        return descriptive_exif(Image.Exif(), xmp)
