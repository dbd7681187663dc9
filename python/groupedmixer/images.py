# SPDX-License-Identifier: MIT
"""Pictures in and out: files, Pillow images, arrays and tensors; the alpha plane's PNG.

READ ME FIRST
- The codec sees 8-bit RGB, an optional 8-bit alpha plane and a flag that says "this was grey".
- 16-bit grey becomes 8 bits by round(v / 257). 16-bit colour arrives from Pillow with 8 bits
  already (it keeps the high byte).
- The EXIF orientation is applied to the samples and then forgotten.
- An embedded ICC profile is applied to CMYK only. RGB samples are kept as they are.
- A fully opaque alpha plane is still an alpha plane: it is coded and comes back.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from .errors import CorruptError, GmxError, PixelLimitError, UnsupportedImageError
from .limits import MAX_PIXELS, MAX_SIDE, check_pixels

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

_UInt8Array = npt.NDArray[np.uint8]

_GREY_MODES = ("1", "L", "LA", "La")
_WIDE_GREY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

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

# Floats may miss [0, 1] by half a level: they round to the level 0 or 255 all the same.
_FLOAT_SLACK = 0.5 / 255

_pillow_limit_lock = threading.Lock()


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

    Raises:
        PixelLimitError, UnsupportedImageError: as load_picture() says.
    """
    with _pillow_limit(max_pixels):
        with _pillow_errors(UnsupportedImageError, "not an image that Pillow can read"):
            image = Image.open(stream)
        with image:
            check_pixels(image.width, image.height, max_pixels)
            return from_pil(image)


def from_pil(image: Image.Image) -> Picture:
    """The samples of a Pillow image of any mode but "F", with its EXIF orientation applied.

    A file of several frames is refused, except MPO: that is a photograph (JPEG) whose further
    frames are previews or depth maps, and the first is taken.

    Raises:
        UnsupportedImageError: several frames, a mode or size that cannot be coded, an ICC profile
            of a CMYK image that cannot be used, or pixels that Pillow cannot decode.
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
        colour, alpha = _samples(image)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return _picture(_upright(colour, orientation), _upright(alpha, orientation))


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
    """A Pillow image of mode L, LA, RGB or RGBA; no metadata."""
    colour = Image.fromarray(picture.rgb[..., 0] if picture.grey else picture.rgb)
    if picture.alpha is not None:
        colour.putalpha(Image.fromarray(picture.alpha))
    return colour


def encode_alpha(alpha: npt.NDArray[np.uint8]) -> bytes:
    """The alpha plane, [H, W] uint8, as an 8-bit grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(alpha).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def decode_alpha(
    data: bytes | bytearray | memoryview, width: int, height: int
) -> npt.NDArray[np.uint8]:
    """The alpha plane of a file; its format, mode and size are checked before it is decoded.

    Args:
        data: an 8-bit grey PNG.
        width, height: the picture's size, which the plane must have.

    Returns:
        [height, width] uint8

    Raises:
        CorruptError: it is anything else, or damaged.
    """
    with _pillow_limit(width * height), _pillow_errors(CorruptError, "the alpha plane is damaged"):
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            found = (image.mode, image.width, image.height, getattr(image, "n_frames", 1))
            if found != ("L", width, height, 1):
                raise CorruptError(
                    f"the alpha plane must be one 8-bit grey frame (L) of {width} x {height}, "
                    f"got {found[3]} of mode {found[0]}, {found[1]} x {found[2]}"
                )
            return np.array(image)


@contextmanager
def _pillow_errors(error_type: type[GmxError], what: str) -> Iterator[None]:
    """Turns whatever Pillow raises into `error_type`, and its pixel limit into ours."""
    try:
        yield
    except (GmxError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if issubclass(error_type, CorruptError):
            raise error_type(f"{what}: {error}") from error
        raise PixelLimitError(str(error)) from error
    except UnidentifiedImageError as error:  # its text names an object, not a file
        raise error_type(what) from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise error_type(f"{what}: {error}") from error


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Lets Pillow open pictures of max_pixels; only where its own limit is lower is it touched."""
    if Image.MAX_IMAGE_PIXELS is None or max_pixels <= Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _pillow_limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_sides(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UnsupportedImageError(
            f"width and height must be in 1..{MAX_SIDE} pixels, got {width} x {height}"
        )


def _samples(image: Image.Image) -> tuple[_UInt8Array, _UInt8Array | None]:
    """Grey [H, W] or colour [H, W, 3] samples as stored, and alpha [H, W]."""
    if image.mode in _WIDE_GREY_MODES:
        return _wide_grey(image)
    if image.mode in _GREY_MODES:
        if not image.has_transparency_data:
            return np.array(image.convert("L")), None
        # There is no way from La to anything but LA.
        grey_alpha = np.array(image.convert("LA"))
        return grey_alpha[..., 0], grey_alpha[..., 1]
    if image.mode not in _COLOUR_MODES:
        modes = ", ".join(_GREY_MODES + _WIDE_GREY_MODES + _COLOUR_MODES)
        raise UnsupportedImageError(f"the image's mode must be one of {modes}, got {image.mode}")
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        return np.array(_cmyk_to_srgb(image, image.info["icc_profile"])), None
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    rgba = np.array(image.convert("RGBA"))
    return rgba[..., :3], rgba[..., 3]


def _wide_grey(image: Image.Image) -> tuple[_UInt8Array, _UInt8Array | None]:
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


def _cmyk_to_srgb(image: Image.Image, icc_profile: bytes) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise UnsupportedImageError(
            f"the CMYK image's ICC profile cannot be used ({error}); remove it or convert to RGB"
        ) from error
    assert converted is not None  # None is for inPlace=True only
    return converted


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
