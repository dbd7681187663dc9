# SPDX-License-Identifier: MIT
"""What a .gmx file holds, from its header and metadata; pictures' chunks are stepped over."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from typing import IO

from .container import ALPHA_CHUNK, CHECKSUM, CHUNK_HEAD, METADATA_FIELDS, Header, read_header
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
    header, count, at = read_header(stream.read(_ENOUGH))
    has_alpha = False
    metadata = {}
    for index in range(count):
        if at + CHUNK_HEAD.size > end:
            raise TruncatedError(f"the file ends before the head of chunk {index} of {count}")
        stream.seek(at)
        head = stream.read(CHUNK_HEAD.size)
        raw_type, _, length = CHUNK_HEAD.unpack(head)
        chunk_type = str(raw_type, "latin-1")
        has_alpha = has_alpha or chunk_type == ALPHA_CHUNK
        if chunk_type in METADATA_FIELDS:
            metadata[METADATA_FIELDS[chunk_type]] = _payload(stream, head, chunk_type, length)
        at += CHUNK_HEAD.size + length + CHECKSUM.size
    return ChunkIndex(header, has_alpha, metadata)


def _payload(stream: IO[bytes], head: bytes, chunk_type: str, length: int) -> bytes:
    """What follows a chunk's head."""
    if length > MAX_METADATA:
        raise CorruptError(
            f"the chunk '{chunk_type}' must have at most {MAX_METADATA} bytes, got {length}"
        )
    payload, checksum = stream.read(length), stream.read(CHECKSUM.size)
    if len(payload) + len(checksum) < length + CHECKSUM.size:
        raise TruncatedError(f"the file ends inside the chunk '{chunk_type}'")
    if zlib.crc32(payload, zlib.crc32(head)) != CHECKSUM.unpack(checksum)[0]:
        raise CorruptError(f"the checksum of the chunk '{chunk_type}' is wrong")
    return payload
