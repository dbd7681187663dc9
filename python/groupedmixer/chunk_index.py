# SPDX-License-Identifier: MIT
"""What a .gmx file holds, from its header and metadata; pictures' chunks are stepped over."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from typing import IO

from .container import _ALPHA, _CHUNK_HEAD, _CRC, _METADATA, Header, _read_header
from .errors import CorruptError, TruncatedError
from .limits import MAX_METADATA

__all__ = ["ChunkIndex", "read_index"]

_ENOUGH = 4096  # bytes, more than a header can have


@dataclass(frozen=True)
class ChunkIndex:
    """What is known of a file without reading it whole. Only what is here has been checked."""

    header: Header
    has_alpha: bool
    metadata: dict[str, bytes] = field(default_factory=dict)  # icc_profile, exif, xmp; if present


def read_index(stream: IO[bytes]) -> ChunkIndex:
    """Reads the header, then goes from chunk to chunk.

    Parameters
    ----------
    stream
        A .gmx file, open for reading, that can seek.

    Raises
    ------
    NotGmxError, UnsupportedVersionError
        As `groupedmixer.container.parse_header` does.
    CorruptError
        Likewise, or if metadata are damaged.
    TruncatedError
        If the file ends before its last chunk begins.
    """
    stream.seek(0, os.SEEK_END)
    end = stream.tell()
    stream.seek(0)
    header, count, at = _read_header(memoryview(stream.read(_ENOUGH)))
    has_alpha = False
    metadata = {}
    for index in range(count):
        if at + _CHUNK_HEAD.size > end:
            raise TruncatedError(f"the file ends before the head of chunk {index} of {count}")
        stream.seek(at)
        head = stream.read(_CHUNK_HEAD.size)
        raw_type, _, length = _CHUNK_HEAD.unpack(head)
        chunk_type = str(raw_type, "latin-1")
        has_alpha = has_alpha or chunk_type == _ALPHA
        if chunk_type in _METADATA:
            metadata[_METADATA[chunk_type]] = _payload(stream, head, chunk_type, length)
        at += _CHUNK_HEAD.size + length + _CRC.size
    return ChunkIndex(header, has_alpha, metadata)


def _payload(stream: IO[bytes], head: bytes, chunk_type: str, length: int) -> bytes:
    """What follows a chunk's head."""
    if length > MAX_METADATA:
        raise CorruptError(
            f"the chunk '{chunk_type}' must have at most {MAX_METADATA} bytes, got {length}"
        )
    payload, checksum = stream.read(length), stream.read(_CRC.size)
    if len(payload) + len(checksum) < length + _CRC.size:
        raise TruncatedError(f"the file ends inside the chunk '{chunk_type}'")
    if zlib.crc32(payload, zlib.crc32(head)) != _CRC.unpack(checksum)[0]:
        raise CorruptError(f"the checksum of the chunk '{chunk_type}' is wrong")
    return payload
