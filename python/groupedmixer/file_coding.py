# SPDX-License-Identifier: MIT
"""One file to another: what the commands do with each of their files, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image

from . import container
from .batch import Stop
from .coding import ARITHMETIC_ID
from .container import QUALITY_STEPS, Header, quality_field
from .errors import GmxError, NotGmxError
from .image_formats import OutputFormat, encode_image
from .images import Picture, as_picture, load_picture
from .limits import MAX_PIXELS
from .metrics import psnr
from .output_files import Job, check_target, write_atomically
from .pillow_guard import pillow_limit
from .search import quality_for

if TYPE_CHECKING:
    from .codec import Codec

__all__ = ["Done", "Region", "VerifyError", "compress_file", "decompress_file", "verify_file"]

Region: TypeAlias = tuple[int, int, int, int]
"""(left, top, width, height) in pixels."""


class VerifyError(GmxError):
    """A file just made does not decode to its picture: nothing was written, report it."""


@dataclass(frozen=True)
class Done:
    """What was made of a file, or found in it."""

    bytes_in: int
    bytes_out: int | None  # None where nothing was to be written
    gmx_bytes: int  # of the .gmx file, be it the input or the output
    width: int  # of the picture in it, pixels
    height: int
    quality: float  # of the .gmx file
    psnr: float | None = None  # dB over RGB, where it was measured

    @property
    def bpp(self) -> float:
        """Bits of the .gmx file per pixel."""
        return 8 * self.gmx_bytes / (self.width * self.height)


def compress_file(
    codec: Codec,
    job: Job,
    *,
    quality: float = 4.0,
    target_bpp: float | None = None,
    target_psnr: float | None = None,
    metadata: bool = True,
    max_pixels: int = MAX_PIXELS,
    force: bool = False,
    resume: bool = False,
    verify: bool = False,
    stop: Stop | None = None,
) -> Done | None:
    """An image file to a .gmx file. None if ``resume`` found it done.

    Parameters
    ----------
    codec
        May be used by other threads at the same time.
    job
        Where from and where to.
    quality
        0..7, where no target is given.
    target_bpp, target_psnr
        At most one; see `groupedmixer.search.quality_for`.
    metadata
        Whether to store the ICC profile, EXIF data and XMP.
    max_pixels
        Larger pictures are refused before memory is taken for them.
    force
        Replace an output that exists.
    resume
        Leave the output alone if it is a whole .gmx file, not older than its source, of these
        weights, of this version's arithmetic and of this quality (if that is given and not
        searched). Another .gmx file is replaced; a file of another kind is not, without ``force``.
    verify
        Decode the new file before it is written. It must decode, with the latent's checksum, to a
        picture of the same size and kind and to the same alpha plane; its PSNR is reported.
    stop
        What may end the work before anything is written, see `groupedmixer.batch`.

    Raises
    ------
    OSError
        If a file cannot be read or written, or the output exists and may not be replaced.
    VerifyError
        If ``verify`` found a fault.
    GmxError, MemoryError
        As `groupedmixer.Codec.compress`, or if a target cannot be met.
    """
    stop = stop or Stop()
    searched = target_bpp is not None or target_psnr is not None
    replace = force
    if resume and job.target.is_file():
        field = None if searched else quality_field(quality)
        earlier = _earlier_gmx(job, codec.fingerprint, field)
        if earlier == "done":
            return None
        replace = force or earlier == "other"
    check_target(job.target, force=replace, make_folder=job.make_folder)
    bytes_in = job.source.stat().st_size
    picture = load_picture(job.source, max_pixels)
    if not metadata:
        picture = picture.without_metadata()
    stop.check()
    found_psnr = None
    if searched:
        found = quality_for(
            codec,
            picture,
            target_bpp=target_bpp,
            target_psnr=target_psnr,
            on_encode=lambda encodes: stop.check(),
        )
        data, quality, found_psnr = found.data, found.quality, found.psnr
    else:
        data = codec.compress(picture, quality=quality, progress=stop.progress)
    stop.check()
    if verify:
        found_psnr = _verified_psnr(codec, picture, data, stop)
    stop.commit()
    write_atomically(job.target, data, force=replace, make_folder=job.make_folder)
    return Done(
        bytes_in,
        len(data),
        len(data),
        picture.width,
        picture.height,
        quality_field(quality) / QUALITY_STEPS,
        found_psnr,
    )


def decompress_file(
    find_codec: Callable[[bytes], Codec],
    job: Job,
    output_format: OutputFormat,
    *,
    region: Region | None = None,
    max_pixels: int = MAX_PIXELS,
    force: bool = False,
    resume: bool = False,
    stop: Stop | None = None,
) -> Done | None:
    """A .gmx file, or a region of it, to an image file. None if ``resume`` found it done.

    Parameters
    ----------
    find_codec
        Given the file's bytes, the codec that reads it.
    job
        Where from and where to.
    output_format
        Of the image file.
    region
        (left, top, width, height) in pixels; the whole picture where None.
    max_pixels
        Larger pictures are refused before memory is taken for them.
    force
        Replace an output that exists.
    resume
        Leave the output alone if it is an image of the right format and size, not older than its
        source. Anything else is not replaced without ``force``: it may be somebody's original.
    stop
        What may end the work before anything is written, see `groupedmixer.batch`.

    Raises
    ------
    OSError
        If a file cannot be read or written, or the output exists and may not be replaced.
    GmxError, MemoryError
        As `groupedmixer.Codec.decompress`, if the region is not inside the picture, or if the
        format cannot hold it.
    """
    stop = stop or Stop()
    if not (resume and job.target.is_file()):  # before the file is read: most often it decides
        check_target(job.target, force=force, make_folder=job.make_folder)
    data = job.source.read_bytes()
    header = container.parse_header(data)
    box = None if region is None else _box(region, header)
    if resume and job.target.is_file():
        size = (header.width, header.height) if region is None else region[2:]
        if _is_decoded(job, size, output_format):
            return None
        check_target(job.target, force=force)
    stop.check()
    codec = find_codec(data)
    image = codec.decompress(data, max_pixels=max_pixels, region=box, progress=stop.progress)
    stop.check()
    output = encode_image(image, output_format)
    stop.commit()
    write_atomically(job.target, output, force=force, make_folder=job.make_folder)
    return _done(data, header, len(output))


def verify_file(
    find_codec: Callable[[bytes], Codec],
    source: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    stop: Stop | None = None,
) -> Done:
    """Decodes a .gmx file, every checksum compared, and writes nothing.

    ``find_codec``, ``max_pixels``, ``stop`` and the errors are those of `decompress_file`.
    """
    stop = stop or Stop()
    data = source.read_bytes()
    codec = find_codec(data)
    stop.check()
    codec.decompress(data, max_pixels=max_pixels, progress=stop.progress)
    return _done(data, container.parse_header(data), None)


def _done(data: bytes, header: Header, bytes_out: int | None) -> Done:
    quality = header.quality / QUALITY_STEPS
    return Done(len(data), bytes_out, len(data), header.width, header.height, quality)


def _earlier_gmx(job: Job, fingerprint: bytes, quality: int | None) -> str:
    """What the target, a file, is: "done", "other" (a .gmx file to be replaced) or "foreign"."""
    try:
        header = container.parse(job.target.read_bytes()).header
    except NotGmxError:
        return "foreign"
    except GmxError:  # damaged, or of another version
        return "other"
    is_same = (
        header.weights_fingerprint == fingerprint
        and header.arithmetic_id == ARITHMETIC_ID
        and quality in (None, header.quality)
    )
    return "done" if is_same and _is_as_new(job) else "other"


def _is_decoded(job: Job, size: tuple[int, int], output_format: OutputFormat) -> bool:
    try:
        with (
            pillow_limit(size[0] * size[1]),
            Image.open(job.target, formats=[output_format.pillow_name]) as image,
        ):
            found = image.size
    except (OSError, ValueError, Image.DecompressionBombError):  # no such image
        return False
    return found == size and _is_as_new(job)


def _is_as_new(job: Job) -> bool:
    return job.target.stat().st_mtime_ns >= job.source.stat().st_mtime_ns


def _box(region: Region, header: Header) -> Region:
    """(left, upper, right, lower), if the region is inside the picture."""
    left, top, width, height = region
    if left + width > header.width or top + height > header.height:
        raise GmxError(
            f"the region must be inside the picture of {header.width} x {header.height} pixels, "
            f"got {left},{top},{width},{height}"
        )
    return (left, top, left + width, top + height)


def _verified_psnr(codec: Codec, picture: Picture, data: bytes, stop: Stop) -> float:
    """dB between a picture and what its file decodes to, latent checksums compared."""
    try:
        # The limit on pixels guards against files of others; this one is our own.
        limit = picture.width * picture.height
        decoded = as_picture(codec.decompress(data, max_pixels=limit, progress=stop.progress))
    except GmxError as error:
        raise VerifyError(f"the new file does not decode: {error}") from error
    kinds = [
        f"{one.width} x {one.height} {'grey' if one.grey else 'colour'} "
        f"{'without' if one.alpha is None else 'with'} alpha"
        for one in (picture, decoded)
    ]
    if kinds[0] != kinds[1]:
        raise VerifyError(f"the new file must decode to {kinds[0]}, got {kinds[1]}")
    if picture.alpha is not None and (picture.alpha != decoded.alpha).any():
        raise VerifyError("the new file's alpha plane must decode without loss, it differs")
    return psnr(picture.rgb, decoded.rgb)
