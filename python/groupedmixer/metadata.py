# SPDX-License-Identifier: MIT
"""ICC profiles, EXIF and XMP on their way into a file: checked, and turned upright with the pixels.

READ ME FIRST
- clean_* return the bytes that a .gmx file stores, or raise ValueError with the reason why they
  had better be dropped. The caller drops them, which warn_dropped() tells: no picture is refused
  for its metadata.
- The pixels are stored upright, so an orientation in EXIF or XMP is set to 1 in place. All other
  bytes stay where they are, as maker notes hold offsets that nobody but the camera knows.
- The thumbnail in EXIF shows the picture before it was turned, in a size that may exceed ours: it
  is cut off.
- Decoders call nothing in here.
"""

from __future__ import annotations

import re
import struct
import warnings
from dataclasses import dataclass

from .errors import MetadataWarning
from .limits import MAX_METADATA

__all__ = ["EXIF_PREFIX", "clean_exif", "clean_icc_profile", "clean_xmp", "warn_dropped"]

EXIF_PREFIX = b"Exif\0\0"
"""What JPEG and Pillow put before EXIF data, and .gmx files do not."""

_ICC_HEADER = 128
_ORIENTATION = 0x0112
_SUB_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # Exif, GPS, interoperability
_THUMBNAIL_OFFSET = 0x0201
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_ORIENTATION_FORMATS = {1: "B", 3: "H", 4: "I"}  # by the entry's type

# An attribute or an element, whatever prefix the TIFF namespace has.
_XMP_ORIENTATION = re.compile(
    rb"""([\w.-]+:Orientation\s*=\s*["']|<[\w.-]+:Orientation(?:\s[^>]*)?>)(\s*)[0-9]+"""
)


def clean_icc_profile(profile: bytes, space: str) -> bytes:
    """An ICC profile whose header is right and which is one for the samples.

    Args:
        profile: the profile.
        space: the colour space of the samples as ICC spells it, e.g. "RGB " or "GRAY".

    Raises:
        ValueError: it is no profile, one of another colour space, or too long.
    """
    _check_length(profile)
    if len(profile) < _ICC_HEADER or profile[36:40] != b"acsp":
        raise ValueError("it has no header of an ICC profile")
    if (size := int.from_bytes(profile[:4], "big")) != len(profile):
        raise ValueError(f"its header gives it {size} bytes, it has {len(profile)}")
    if profile[16:20] != space.encode("ascii"):
        found = profile[16:20].decode("latin-1")
        raise ValueError(f"its colour space is {found!r}, that of the samples is {space!r}")
    return profile


def clean_exif(data: bytes) -> bytes:
    """EXIF data with orientation 1 (where it has one) and without a thumbnail.

    Args:
        data: from the byte-order mark on, or with "Exif" and two zero bytes before it.

    Raises:
        ValueError: its first directory is damaged, or it is too long.
    """
    block = bytearray(data.removeprefix(EXIF_PREFIX))
    _check_length(block)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None or len(block) < 8:
        raise ValueError(f"it must begin with 'II*\\0' or 'MM\\0*', got {bytes(block[:4])!r}")
    (start,) = struct.unpack_from(order + "I", block, 4)
    first = _directory(block, order, start)
    for entry in first.entries:
        if entry.tag != _ORIENTATION:
            continue
        if entry.type not in _ORIENTATION_FORMATS or entry.count != 1:
            raise ValueError(
                f"its orientation must be one whole number, got {entry.count} of type {entry.type}"
            )
        struct.pack_into(order + _ORIENTATION_FORMATS[entry.type], block, entry.value_at, 1)
    if first.next:
        _cut_thumbnail(block, order, first)
    return bytes(block)


def clean_xmp(data: bytes | str) -> bytes:
    """An XMP packet, UTF-8, whose orientation (where it has one) is 1.

    Raises:
        ValueError: it is no XML in UTF-8, has entities of its own, or is too long.
    """
    packet = data.encode() if isinstance(data, str) else data
    packet = packet.rstrip(b"\0 ")
    _check_length(packet)
    try:
        packet.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    if not packet.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<") or b"\0" in packet:
        raise ValueError("it is not XML")
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        raise ValueError("it declares XML entities, which may expand to any size")
    return _XMP_ORIENTATION.sub(rb"\g<1>\g<2>1", packet)


def warn_dropped(what: str, reason: object) -> None:
    """Warns (MetadataWarning) that a part of the metadata is left out, and why."""
    warnings.warn(f"the image's {what} is dropped: {reason}", MetadataWarning, 3)


def _check_length(data: bytes | bytearray) -> None:
    if not 1 <= len(data) <= MAX_METADATA:
        raise ValueError(f"it must have 1..{MAX_METADATA} bytes, it has {len(data)}")


@dataclass(frozen=True)
class _Entry:
    tag: int
    type: int
    count: int
    value_at: int  # of the value, or of its offset where it has more than four bytes


@dataclass(frozen=True)
class _Directory:
    entries: tuple[_Entry, ...]
    next_at: int  # where the offset of the next directory stands
    next: int  # that offset, 0: there is none


def _directory(block: bytearray, order: str, start: int) -> _Directory:
    """The directory at `start`, with its frame checked but not what its entries point to."""
    if not 8 <= start <= len(block) - 2:
        raise ValueError(f"its directory is at {start} of {len(block)} bytes")
    (count,) = struct.unpack_from(order + "H", block, start)
    next_at = start + 2 + 12 * count
    if next_at > len(block):
        raise ValueError(f"its directory of {count} entries ends behind its {len(block)} bytes")
    entries = []
    for at in range(start + 2, next_at, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", block, at)
        entries.append(_Entry(tag, kind, values, at + 8))
    if next_at + 4 > len(block):  # some writers leave the last offset out
        return _Directory(tuple(entries), next_at, 0)
    (following,) = struct.unpack_from(order + "I", block, next_at)
    return _Directory(tuple(entries), next_at, following)


def _cut_thumbnail(block: bytearray, order: str, first: _Directory) -> None:
    """Unlinks the second directory, and shortens the block where nothing else lies behind it."""
    struct.pack_into(order + "I", block, first.next_at, 0)
    try:
        second = _directory(block, order, first.next)
        used = _end(block, order, first)
    except ValueError:  # which bytes are the thumbnail's cannot be told
        return
    starts = [first.next]
    for entry in second.entries:
        if entry.tag == _THUMBNAIL_OFFSET:
            starts += struct.unpack_from(order + "I", block, entry.value_at)
    if min(starts) >= used:
        del block[min(starts) :]


def _end(block: bytearray, order: str, directory: _Directory, depth: int = 0) -> int:
    """The end of all that a directory and those below it consist of and point to."""
    end = directory.next_at + 4
    below: dict[int, int] = {}  # a tag counts once, however often it is there: time stays linear
    for entry in directory.entries:
        size = _TYPE_BYTES.get(entry.type, 1) * entry.count
        (offset,) = struct.unpack_from(order + "I", block, entry.value_at)
        if size > 4:
            end = max(end, offset + size)
        elif entry.tag in _SUB_DIRECTORIES:
            below[entry.tag] = offset
    if depth < 2:
        for offset in below.values():
            end = max(end, _end(block, order, _directory(block, order, offset), depth + 1))
    return end
