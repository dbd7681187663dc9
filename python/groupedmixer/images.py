# SPDX-License-Identifier: MIT
"""Pictures in and out: files, Pillow images, arrays and tensors; the alpha plane's PNG.

READ ME FIRST
- The codec sees 8-bit RGB, an optional 8-bit alpha plane and a flag that says "this was grey".
- What becomes of 16 bits and of other modes is said in samples.py.
- The EXIF (or XMP) orientation is applied to the samples, and EXIF and XMP then say "upright".
- ICC profiles: RGB samples keep an RGB profile and grey ones a grey profile, unconverted. CMYK and
  Lab samples are converted to sRGB through theirs, which is then dropped. So is a profile of
  another colour space than the samples, a damaged one, and PNG's gAMA and cHRM.
- Metadata that cannot be kept are dropped with a MetadataWarning; no picture is refused for them.
- A fully opaque alpha plane is still an alpha plane: it is coded, in 70 bytes, and comes back.
- A .gmx file is no picture to code: nobody means to lose something twice. Pillow images are taken
  whatever they were opened from.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from .container import SIGNATURE
from .errors import CorruptError, MetadataWarning, UnsupportedImageError
from .image_formats import descriptive_exif
from .limits import MAX_PIXELS, MAX_SIDE, check_pixels
from .metadata import (
    EXIF_PREFIX,
    clean_exif,
    clean_icc_profile,
    clean_xmp,
    warn_dropped,
)
from .pillow_guard import pillow_errors, pillow_limit
from .samples import CONVERTED_MODES, colour_key, upright_samples

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "as_picture",
    "decode_alpha",
    "encode_alpha",
    "from_pil",
    "load_picture",
    "read_picture",
    "to_pil",
]

_UInt8Array: TypeAlias = npt.NDArray[np.uint8]
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What is left out of a damaged PNG, the least first: the profile and the orientation matter.
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_METADATA = (
    ("texts", _PNG_TEXTS),
    ("texts, EXIF and profile", (*_PNG_TEXTS, b"eXIf", b"iCCP")),
)

# What Pillow calls EXIF as PNG held them before there was a chunk for them, and a PNG's XMP.
_OTHER_KEYS = {"exif": "Raw profile type exif", "xmp": "XML:com.adobe.xmp"}

# Floats may miss [0, 1] by half a level: they round to the level 0 or 255 all the same.
_FLOAT_SLACK = 0.5 / 255


@dataclass(frozen=True, eq=False)
class Picture:
    """Samples ready to be coded; they may share memory with what they were made from.

    Raises:
        UnsupportedImageError: a side is not in 1..2^20.
        ValueError: an array's dtype, shape or layout is not the one below.
    """

    rgb: npt.NDArray[np.uint8]  # [H, W, 3], C-contiguous; three equal channels where grey
    alpha: npt.NDArray[np.uint8] | None = None  # [H, W], C-contiguous, straight (not premultiplied)
    grey: bool = False
    # Metadata as .gmx files hold them; None: there are none. Nothing checks them here.
    icc_profile: bytes | None = None  # of an RGB colour space, or of a grey one where grey
    exif: bytes | None = None  # from the byte-order mark on; its orientation is 1 or absent
    xmp: bytes | None = None  # an XMP packet in UTF-8; its orientation is 1 or absent

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] != 3:
            raise ValueError(f"rgb must be [H, W, 3], got {list(self.rgb.shape)}")
        _check_sides(self.width, self.height)
        if self.alpha is not None and self.alpha.shape != self.rgb.shape[:2]:
            raise ValueError(
                f"alpha must be {list(self.rgb.shape[:2])} as rgb, got {list(self.alpha.shape)}"
            )
        for name, plane in (("rgb", self.rgb), ("alpha", self.alpha)):
            if plane is None:
                continue
            if plane.dtype != np.uint8:
                raise ValueError(f"{name} must be uint8, got {plane.dtype}")
            if not plane.flags.c_contiguous:
                raise ValueError(f"{name} must be C-contiguous, got strides {plane.strides}")

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return int(self.rgb.shape[1])

    def without_metadata(self) -> Picture:
        """The same samples (not copied) without ICC profile, EXIF and XMP."""
        return replace(self, icc_profile=None, exif=None, xmp=None)


def load_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads an image file. Its size is checked before its pixels are decoded.

    Raises:
        OSError: the file cannot be read.
        PixelLimitError: it has more than max_pixels pixels.
        UnsupportedImageError: Pillow cannot read it, it is a .gmx file, or as from_pil() says.
    """
    with open(path, "rb") as stream:
        return read_picture(stream, max_pixels)


def read_picture(stream: BinaryIO, max_pixels: int = MAX_PIXELS) -> Picture:
    """As load_picture(), from an open file.

    Warns (MetadataWarning) of metadata that had to be dropped.

    Raises:
        PixelLimitError, UnsupportedImageError: as load_picture() says.
    """
    start = stream.tell()
    if stream.read(len(SIGNATURE)) == SIGNATURE:
        raise UnsupportedImageError(
            "the input must be a picture, it is a .gmx file; decompress it first if it is to be "
            "coded again, which loses more"
        )
    stream.seek(start)
    try:
        return _read(stream, max_pixels)
    except UnsupportedImageError as error:
        failure = error
    # Pillow gives up a PNG whose texts or profile are damaged, or expand to more than 1 MiB.
    for what, types in _PNG_METADATA:
        stream.seek(start)
        bare = _png_without(types, stream)
        if bare is None:
            continue
        try:
            picture = _read(bare, max_pixels)
        except UnsupportedImageError as error:
            failure = error
            continue
        warnings.warn(f"{what} of the PNG are dropped: damaged or oversized", MetadataWarning, 2)
        return picture
    raise failure


def _read(stream: BinaryIO, max_pixels: int) -> Picture:
    with pillow_limit(max_pixels):
        with pillow_errors(UnsupportedImageError, "not an image that Pillow can read", max_pixels):
            image = Image.open(stream)
        with image:
            check_pixels(image.width, image.height, max_pixels)
            return from_pil(image)


def _png_without(types: tuple[bytes, ...], stream: BinaryIO) -> BinaryIO | None:
    """A copy of a PNG file without chunks of these types; None where it has none of them."""
    if stream.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
        return None
    kept, dropped = io.BytesIO(), False
    kept.write(_PNG_SIGNATURE)
    while len(head := stream.read(8)) == 8:
        body = stream.read(int.from_bytes(head[:4], "big") + 4)  # with its CRC
        if head[4:] in types:
            dropped = True
        else:
            kept.write(head + body)
    kept.seek(0)
    return kept if dropped else None


def from_pil(image: Image.Image, metadata: Mapping[str, bytes | None] | None = None) -> Picture:
    """The samples of a Pillow image of any mode but "F", turned upright, and its metadata.

    A file of several frames is refused, except MPO: that is a photograph (JPEG) whose further
    frames are previews or depth maps, and the first is taken.

    Warns (MetadataWarning) of metadata that had to be dropped.

    Args:
        image: is left as it is, but loaded.
        metadata: in place of what `image.info` has of "exif", "icc_profile" and "xmp"; None for
            none. The orientation is that of the EXIF data given.

    Raises:
        UnsupportedImageError: several frames, a mode or size that cannot be coded, or pixels that
            Pillow cannot decode.
        PixelLimitError: Pillow's own limit, met while it decodes.
    """
    _check_sides(image.width, image.height)
    _check_one_frame(image)
    with pillow_errors(UnsupportedImageError, "the image cannot be decoded"):
        key = colour_key(image)
        image.load()
        told = _with_metadata(image, metadata) if metadata else image
        orientation, exif = _orientation_and_exif(told)
        profile = told.info.get("icc_profile")
        rgb, alpha, grey = upright_samples(image, orientation, key, profile)
    return Picture(
        rgb,
        alpha,
        grey,
        icc_profile=None if image.mode in CONVERTED_MODES else _kept_profile(profile, grey),
        exif=exif,
        xmp=_kept_xmp(told),
    )


def _with_metadata(image: Image.Image, metadata: Mapping[str, bytes | None]) -> Image.Image:
    """An image of no pixels, with an image's metadata or what is given in their place."""
    replaced = {name for key in metadata for name in (key, _OTHER_KEYS.get(key))}
    told = Image.Image()
    told.info = {key: value for key, value in image.info.items() if key not in replaced}
    if image.format == "TIFF" and "exif" not in metadata:
        told.info["exif"] = descriptive_exif(image.getexif())
    told.info.update({key: value for key, value in metadata.items() if value})
    return told


def _check_one_frame(image: Image.Image) -> None:
    """Refuses animations and files of several pages.

    Raises:
        UnsupportedImageError: the image has several frames, and is no photograph in an MPO file.
    """
    with pillow_errors(UnsupportedImageError, "the image cannot be decoded"):
        frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise UnsupportedImageError(
            f"an image must have one frame, got {frames}; animations and multi-page files "
            "cannot be coded (save a frame of its own, or pass image.copy())"
        )


def _orientation_and_exif(image: Image.Image) -> tuple[object, bytes | None]:
    """The orientation that the samples still need, and the EXIF data to keep."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        data = _exif_bytes(image, exif)
    except Exception as error:  # Pillow's parser raises nearly anything on damaged data
        warn_dropped("EXIF", error)
        return 1, None
    if data is None:
        return orientation, None
    try:
        return orientation, clean_exif(data)
    except ValueError as error:
        warn_dropped("EXIF", error)
        return orientation, None


def _exif_bytes(image: Image.Image, exif: Image.Exif) -> bytes | None:
    if image.format == "TIFF":
        return descriptive_exif(exif) or None
    if data := image.info.get("exif"):
        return bytes(data)
    if _OTHER_KEYS["exif"] in image.info:
        return exif.tobytes()
    return None


def _kept_profile(profile: bytes | None, grey: bool) -> bytes | None:
    if not profile:
        return None
    try:
        return clean_icc_profile(bytes(profile), "GRAY" if grey else "RGB ")
    except ValueError as error:
        warn_dropped("ICC profile", error)
        return None


def _kept_xmp(image: Image.Image) -> bytes | None:
    packet = image.info.get("xmp") or image.info.get(_OTHER_KEYS["xmp"])
    if not packet:
        return None
    try:
        return clean_xmp(packet)
    except ValueError as error:
        warn_dropped("XMP", error)
        return None


def as_picture(image: object) -> Picture:
    """A Picture out of anything the codec accepts.

    Args:
        image: one of
            - a Picture (returned as it is) or a Pillow image (see from_pil);
            - uint8 [H, W], [H, W, 3] or [H, W, 4] (RGBA), numpy or torch;
            - floating point [3, H, W] in [0, 1], numpy or torch, scaled by 255 and rounded. Values
              up to half a level (1/510) outside the range count as 0 and 1, others are refused.

    Raises:
        TypeError: the object is none of these.
        UnsupportedImageError: dtype, shape or values do not fit, or as from_pil() says.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        return from_pil(image)
    array = _as_numpy(image)
    if array.dtype == np.uint8:
        return _from_bytes(array)
    if np.issubdtype(array.dtype, np.floating):
        return _from_floats(array)
    raise UnsupportedImageError(
        f"image must be uint8 (0..255) or floating point (0..1), got {array.dtype}"
    )


def to_pil(picture: Picture) -> Image.Image:
    """A Pillow image of mode L, LA, RGB or RGBA; metadata are in its `info`.

    They have the keys and the form that Pillow gives those of a JPEG: "icc_profile", "exif" (with
    its prefix) and "xmp".
    """
    image = Image.fromarray(picture.rgb[..., 0] if picture.grey else picture.rgb)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    if picture.icc_profile is not None:
        image.info["icc_profile"] = picture.icc_profile
    if picture.exif is not None:
        image.info["exif"] = EXIF_PREFIX + picture.exif
    if picture.xmp is not None:
        image.info["xmp"] = picture.xmp
    return image


def encode_alpha(alpha: npt.NDArray[np.uint8]) -> bytes:
    """The alpha plane, [H, W] uint8, as an 8-bit grey PNG; one of 1 x 1 where it is constant."""
    if alpha.min() == alpha.max():
        alpha = np.ascontiguousarray(alpha[:1, :1])
    stream = io.BytesIO()
    Image.fromarray(alpha).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def decode_alpha(
    data: bytes | bytearray | memoryview, width: int, height: int
) -> npt.NDArray[np.uint8]:
    """The alpha plane of a file; its format, mode and size are checked before it is decoded.

    Args:
        data: an 8-bit grey PNG.
        width, height: the picture's size, which the plane must have, unless it has one sample.

    Returns:
        [height, width] uint8

    Raises:
        CorruptError: it is anything else, or damaged.
    """
    with pillow_limit(width * height), pillow_errors(CorruptError, "the alpha plane is damaged"):
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            frames = getattr(image, "n_frames", 1)
            sizes = ((width, height), (1, 1))
            if image.mode != "L" or image.size not in sizes or frames != 1:
                raise CorruptError(
                    f"the alpha plane must be one 8-bit grey frame (L) of {width} x {height} or "
                    f"1 x 1, got {frames} of mode {image.mode}, {image.width} x {image.height}"
                )
            plane = np.array(image)
            if image.size == (width, height):
                return plane
            return np.full((height, width), plane[0, 0])


def _check_sides(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UnsupportedImageError(
            f"width and height must be in 1..{MAX_SIDE} pixels, got {width} x {height}"
        )


def _picture(colour: _UInt8Array, alpha: _UInt8Array | None) -> Picture:
    """A Picture out of grey [H, W] or colour [H, W, 3] samples and alpha [H, W], strided or not."""
    grey = colour.ndim == 2
    rgb = np.repeat(colour[..., None], 3, axis=2) if grey else colour
    # Writable as well as contiguous: torch.from_numpy() warns otherwise.
    return Picture(
        rgb=np.require(rgb, requirements=["C", "W"]),
        alpha=None if alpha is None else np.require(alpha, requirements=["C", "W"]),
        grey=grey,
    )


def _as_numpy(image: object) -> npt.NDArray[Any]:
    if isinstance(image, np.ndarray):
        return image
    torch = sys.modules.get("torch")  # a tensor can only exist where torch is loaded
    if torch is not None and isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        array = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        return np.asarray(array)
    raise TypeError(
        "image must be a Pillow image, a numpy array, a torch tensor or a Picture, "
        f"got {type(image).__name__}"
    )


def _from_bytes(array: npt.NDArray[Any]) -> Picture:
    if array.ndim == 2:
        return _picture(array, None)
    if array.ndim == 3 and array.shape[2] == 3:
        return _picture(array, None)
    if array.ndim == 3 and array.shape[2] == 4:
        return _picture(array[..., :3], array[..., 3])
    raise UnsupportedImageError(
        f"a uint8 image must be [H, W], [H, W, 3] or [H, W, 4], got {list(array.shape)}"
    )


def _from_floats(array: npt.NDArray[Any]) -> Picture:
    if array.ndim != 3 or array.shape[0] != 3:
        raise UnsupportedImageError(
            f"a floating-point image must be [3, H, W], got {list(array.shape)}"
        )
    _check_sides(array.shape[2], array.shape[1])
    if not np.isfinite(array).all():
        raise UnsupportedImageError("a floating-point image must be finite, got NaN or infinity")
    low, high = float(array.min()), float(array.max())
    if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
        raise UnsupportedImageError(
            f"a floating-point image must have values in [0, 1], got {low:g}..{high:g}"
        )
    levels = np.clip(np.rint(array.astype(np.float32) * 255), 0, 255).astype(np.uint8)
    return _picture(levels.transpose(1, 2, 0), None)
