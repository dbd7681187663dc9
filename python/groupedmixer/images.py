# SPDX-License-Identifier: MIT
"""Pictures in and out: files, Pillow images, arrays and tensors; the alpha plane's PNG.

READ ME FIRST
- The codec sees 8-bit RGB, an optional 8-bit alpha plane and a flag that says "this was grey".
- 16-bit grey becomes 8 bits by round(v / 257). 16-bit colour arrives from Pillow with 8 bits
  already (it keeps the high byte; grey with alpha comes as colour). Floating point is refused.
- The EXIF (or XMP) orientation is applied to the samples, and EXIF and XMP then say "upright".
- ICC profiles: RGB samples keep an RGB profile and grey ones a grey profile, unconverted. CMYK and
  Lab samples are converted to sRGB through theirs, which is then dropped. So is a profile of
  another colour space than the samples, a damaged one, and PNG's gAMA and cHRM.
- Metadata that cannot be kept are dropped with a MetadataWarning; no picture is refused for them.
- A fully opaque alpha plane is still an alpha plane: it is coded, in 70 bytes, and comes back.
- Samples are copied out of Pillow in bands, so that a large picture is in memory twice, not five
  times.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from .errors import (
    CorruptError,
    GmxError,
    MetadataWarning,
    PixelLimitError,
    UnsupportedImageError,
)
from .image_formats import descriptive_exif
from .limits import MAX_PIXELS, MAX_SIDE, check_pixels
from .metadata import EXIF_PREFIX, clean_exif, clean_icc_profile, clean_xmp

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
_Samples: TypeAlias = tuple[_UInt8Array, _UInt8Array | None]
"""Grey [H, W] or colour [H, W, 3] samples, and alpha [H, W]."""

_GREY_MODES = ("1", "L", "LA", "La")
_WIDE_GREY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# Modes that are converted through their profile, and what ICC calls the colour space.
_CONVERTED_MODES = {"CMYK": "CMYK", "LAB": "Lab "}

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

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP")

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
        UnsupportedImageError: Pillow cannot read it, or as from_pil() says.
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
    try:
        return _read(stream, max_pixels)
    except UnsupportedImageError:
        # Pillow gives up a PNG whose texts or profile are damaged, or expand to more than 1 MiB.
        stream.seek(start)
        bare = _png_without_metadata(stream)
        if bare is None:
            raise
        picture = _read(bare, max_pixels)
    warnings.warn("damaged or oversized texts of the PNG are dropped", MetadataWarning, 2)
    return picture


def _read(stream: BinaryIO, max_pixels: int) -> Picture:
    with _pillow_limit(max_pixels):
        with _pillow_errors(UnsupportedImageError, "not an image that Pillow can read"):
            image = Image.open(stream)
        with image:
            check_pixels(image.width, image.height, max_pixels)
            return from_pil(image)


def _png_without_metadata(stream: BinaryIO) -> BinaryIO | None:
    """A copy of a PNG file without its texts, EXIF and profile; None where it has none of them."""
    if stream.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
        return None
    kept, dropped = io.BytesIO(), False
    kept.write(_PNG_SIGNATURE)
    while len(head := stream.read(8)) == 8:
        body = stream.read(int.from_bytes(head[:4], "big") + 4)  # with its CRC
        if head[4:] in _PNG_METADATA:
            dropped = True
        else:
            kept.write(head + body)
    kept.seek(0)
    return kept if dropped else None


def from_pil(image: Image.Image) -> Picture:
    """The samples of a Pillow image of any mode but "F", turned upright, and its metadata.

    A file of several frames is refused, except MPO: that is a photograph (JPEG) whose further
    frames are previews or depth maps, and the first is taken.

    Warns (MetadataWarning) of metadata that had to be dropped.

    Raises:
        UnsupportedImageError: several frames, a mode or size that cannot be coded, or pixels that
            Pillow cannot decode.
        PixelLimitError: Pillow's own limit, met while it decodes.
    """
    _check_sides(image.width, image.height)
    with _pillow_errors(UnsupportedImageError, "the image cannot be decoded"):
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise UnsupportedImageError(
                f"an image must have one frame, got {frames}; animations and multi-page files "
                "cannot be coded (save a frame of its own, or pass image.copy())"
            )
        image.load()
        orientation, exif = _orientation_and_exif(image)
        picture = _upright_samples(image, orientation)
    return replace(
        picture,
        icc_profile=_kept_profile(image, picture.grey),
        exif=exif,
        xmp=_kept_xmp(image),
    )


def _orientation_and_exif(image: Image.Image) -> tuple[object, bytes | None]:
    """The orientation that the samples still need, and the EXIF data to keep."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        data = _exif_bytes(image, exif)
    except Exception as error:  # Pillow's parser raises nearly anything on damaged data
        _warn_dropped("EXIF", error)
        return 1, None
    if data is None:
        return orientation, None
    try:
        return orientation, clean_exif(data)
    except ValueError as error:
        _warn_dropped("EXIF", error)
        return orientation, None


def _exif_bytes(image: Image.Image, exif: Image.Exif) -> bytes | None:
    if image.format == "TIFF":
        return descriptive_exif(exif) or None
    if data := image.info.get("exif"):
        return bytes(data)
    if "Raw profile type exif" in image.info:  # how PNG held EXIF before it had a chunk for it
        return exif.tobytes()
    return None


def _kept_profile(image: Image.Image, grey: bool) -> bytes | None:
    profile = image.info.get("icc_profile")
    if not profile or image.mode in _CONVERTED_MODES:
        return None
    try:
        return clean_icc_profile(bytes(profile), "GRAY" if grey else "RGB ")
    except ValueError as error:
        _warn_dropped("ICC profile", error)
        return None


def _kept_xmp(image: Image.Image) -> bytes | None:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if not packet:
        return None
    try:
        return clean_xmp(packet)
    except ValueError as error:
        _warn_dropped("XMP", error)
        return None


def _warn_dropped(what: str, reason: Exception) -> None:
    warnings.warn(f"the image's {what} is dropped: {reason}", MetadataWarning, 2)


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
    with _pillow_limit(width * height), _pillow_errors(CorruptError, "the alpha plane is damaged"):
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


@contextmanager
def _pillow_errors(error_type: type[GmxError], what: str) -> Iterator[None]:
    """Turns whatever Pillow raises into `error_type`, and its pixel limit into ours."""
    try:
        yield
    except (GmxError, MemoryError, MetadataWarning):  # a warning where warnings are errors
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if issubclass(error_type, CorruptError):
            raise error_type(f"{what}: {error}") from error
        raise PixelLimitError(str(error)) from error
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


_pillow_limit = _PillowLimit()


def _check_sides(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UnsupportedImageError(
            f"width and height must be in 1..{MAX_SIDE} pixels, got {width} x {height}"
        )


def _upright_samples(image: Image.Image, orientation: object) -> Picture:
    """The samples of an image, turned as its orientation says."""
    samples_of = _converter(image)
    rows = max(1, _BAND_PIXELS // image.width)
    bands = (
        samples_of(image.crop((0, top, image.width, min(top + rows, image.height))))
        for top in range(0, image.height, rows)
    )
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
    return Picture(rgb, alpha, grey)


def _converter(image: Image.Image) -> Callable[[Image.Image], _Samples]:
    """What turns a part of this image into samples."""
    if image.mode in _WIDE_GREY_MODES:
        return _wide_grey
    if image.mode in _GREY_MODES:
        return _grey_alpha if image.has_transparency_data else _grey
    if image.mode not in _COLOUR_MODES:
        modes = ", ".join(_GREY_MODES + _WIDE_GREY_MODES + _COLOUR_MODES)
        raise UnsupportedImageError(f"the image's mode must be one of {modes}, got {image.mode}")
    if image.has_transparency_data:
        return _colour_alpha
    profile = image.info.get("icc_profile")
    if image.mode in _CONVERTED_MODES and profile:
        try:
            return _through_profile(image.mode, bytes(profile))
        except (ValueError, ImageCms.PyCMSError, OSError) as error:
            _warn_dropped(f"{image.mode} ICC profile", error)
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


def _wide_grey(image: Image.Image) -> _Samples:
    """Grey samples of 16 bits, which mode "I" holds in 32."""
    values = np.asarray(image).astype(np.int32)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise UnsupportedImageError(
            f"samples of mode {image.mode} must be in 0..65535, got {low}..{high}"
        )
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey, None
    return grey, np.where(values == transparent, 0, 255).astype(np.uint8)


def _through_profile(mode: str, profile: bytes) -> Callable[[Image.Image], _Samples]:
    """A conversion to sRGB. ValueError, PyCMSError or OSError: the profile cannot be used."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(clean_icc_profile(profile, _CONVERTED_MODES[mode]))),
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
