# SPDX-License-Identifier: MIT
"""The .gmx container, format version 0: bytes to checked fields and back.

READ ME FIRST
- Integers are little-endian. A header is followed by typed chunks; each ends in its own CRC-32.
- The bytes are not trusted: every length is compared with what is left of the input before it is
  used, and the number of tiles with the picture's size, so memory is bounded by the input's length.
- Payloads are never copied: parse() returns views of the caller's buffer. Do not write to that
  buffer while they are in use.
- k_h and k_w, and with them the exact number of tiles, come from the weights: after parse(), call
  check_tiles() with tiles.tile_grid(...).count.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from .errors import CorruptError, NotGmxError, TruncatedError, UnsupportedVersionError
from .limits import MAX_METADATA, MAX_SIDE, check_pixels
from .tiles import LATENT_STRIDE, MAX_TILE, MIN_TILE, is_tile_size

SIGNATURE = b"\x8bGMX"
FORMAT_VERSION = 0

QUALITY_STEPS = 256  # steps of the quality field per level
MAX_QUALITY = 7
MAX_SKIP_BELOW = 64
FINGERPRINT_BYTES = 8
MAX_NAME = 32

_MAX_U32 = (1 << 32) - 1
_NAME = re.compile(rf"[a-z0-9._-]{{1,{MAX_NAME}}}")
_CHUNK_TYPE = re.compile(rb"[A-Za-z]{4}")
_MUST_UNDERSTAND = 1

_PREFIX = struct.Struct("<4sBH")  # signature, format version, length of the header body
# quality, width, height, colour space, bit depth, skip_below, tile_latents, number of chunks
_HEADER_TAIL = struct.Struct("<HIIBBBHH")
CHECKSUM = struct.Struct("<I")
"""Behind the header and each chunk: the CRC-32 of all of it."""
CHUNK_HEAD = struct.Struct("<4sBQ")
"""Type, flags, length of the payload."""
_TILE_COUNT = struct.Struct("<I")
_TILE_ENTRY = struct.Struct("<II")  # length of the stream, CRC-32 of the decoded latent's bits

_MIN_BODY = FINGERPRINT_BYTES + 2 * (1 + 1) + _HEADER_TAIL.size
_MAX_BODY = FINGERPRINT_BYTES + 2 * (1 + MAX_NAME) + _HEADER_TAIL.size

_TILES, _STREAMS, ALPHA_CHUNK = "TILE", "STRM", "ALPH"
METADATA_FIELDS = {"ICCP": "icc_profile", "EXIF": "exif", "XMPP": "xmp"}
"""The types of chunks with metadata, and the fields of `GmxFile` that hold them."""
# Metadata come first: a reader has them before it has loaded the streams.
_CHUNK_ORDER = (*METADATA_FIELDS, _TILES, _STREAMS, ALPHA_CHUNK)
_REQUIRED_CHUNKS = (_TILES, _STREAMS)


class ColourSpace(IntEnum):
    """What the samples mean."""

    SRGB = 0
    GREY = 1


@dataclass(frozen=True)
class Header:
    """What a reader must know before it decodes. docs/bitstream.md has the limits in a table."""

    weights_fingerprint: bytes  # 8 bytes: finds the weights
    weights_name: str  # [a-z0-9._-]{1,32}: tells a person which weights these are
    arithmetic_id: str  # the same alphabet, e.g. "f32-seg128-kv16-v1"
    quality: int  # round(256 * quality), 0..1792
    width: int  # pixels, 1..2^20
    height: int  # pixels, 1..2^20
    colour_space: ColourSpace = ColourSpace.SRGB
    bit_depth: int = 8  # bits per sample; 8 is the only value so far
    skip_below: int = 0  # scale indexes below this code nothing, 0..64
    tile_latents: int = 64  # side of a tile in latents, 16, 32 or 64


@dataclass(frozen=True)
class Tile:
    """One tile: its rANS stream (the first tile's begins with z) and its latent's checksum."""

    stream: bytes | memoryview
    latent_crc: int  # CRC-32 of the decoded latent's bits


@dataclass(frozen=True)
class GmxFile:
    """The content of a .gmx file."""

    header: Header
    tiles: tuple[Tile, ...]  # raster order
    alpha: bytes | memoryview | None = None  # 8-bit grey PNG of exactly width x height
    ignored: tuple[str, ...] = ()  # types of the optional chunks this version does not know
    # Metadata, 1..2^22 bytes each. They are stored as they are and never looked into here.
    icc_profile: bytes | memoryview | None = None  # of the samples' colour space
    exif: bytes | memoryview | None = None  # from the byte-order mark on; orientation 1 or none
    xmp: bytes | memoryview | None = None  # an XMP packet in UTF-8; orientation 1 or none


@dataclass(frozen=True)
class Chunk:
    """One chunk as it lies in the file, its checksum already verified."""

    type: str  # 4 ASCII letters
    must_understand: bool
    payload: memoryview


def quality_field(quality: float) -> int:
    """The header's quality field, round(256 * quality) with halves to even.

    Raises:
        ValueError: quality is not in 0..7 (NaN included).
    """
    if not 0 <= quality <= MAX_QUALITY:
        raise ValueError(f"quality must be in 0..{MAX_QUALITY}, got {quality}")
    return round(QUALITY_STEPS * quality)


def write(file: GmxFile) -> bytes:
    """The bytes of a .gmx file.

    Raises:
        ValueError: a field breaks a rule that parse() checks, or `ignored` is not empty (the
            content of ignored chunks is not kept, so they cannot be written back).
    """
    fault = _header_fault(file.header) or _tiles_fault(file.header, len(file.tiles))
    if fault:
        raise ValueError(fault)
    if file.ignored:
        raise ValueError(f"ignored must be empty, got {file.ignored}")
    for index, tile in enumerate(file.tiles):
        if len(tile.stream) > _MAX_U32:
            raise ValueError(
                f"tiles[{index}].stream must be shorter than 2^32 bytes, got {len(tile.stream)}"
            )
        if not 0 <= tile.latent_crc <= _MAX_U32:
            raise ValueError(
                f"tiles[{index}].latent_crc must be in 0..2^32-1, got {tile.latent_crc}"
            )

    chunks: list[tuple[str, list[bytes | memoryview]]] = []
    for chunk_type, field in METADATA_FIELDS.items():
        payload = getattr(file, field)
        if payload is None:
            continue
        fault = _metadata_fault(field, len(payload))
        if fault:
            raise ValueError(fault)
        chunks.append((chunk_type, [payload]))
    table = [_TILE_COUNT.pack(len(file.tiles))]
    table += [_TILE_ENTRY.pack(len(tile.stream), tile.latent_crc) for tile in file.tiles]
    chunks += [
        (_TILES, [b"".join(table)]),
        (_STREAMS, [tile.stream for tile in file.tiles]),
    ]
    if file.alpha is not None:
        chunks.append((ALPHA_CHUNK, [file.alpha]))

    parts: list[bytes | memoryview] = [_pack_header(file.header, len(chunks))]
    for chunk_type, payloads in chunks:
        parts += _pack_chunk(chunk_type, payloads)
    return b"".join(parts)


def parse(data: bytes | bytearray | memoryview, max_pixels: int | None = None) -> GmxFile:
    """Reads and checks a whole .gmx file; all but the tile table are views of `data`.

    Args:
        data: the whole file.
        max_pixels: where given, larger pictures are refused as soon as the header is read.

    Raises:
        NotGmxError: empty, or not a .gmx file.
        UnsupportedVersionError: a newer format version, or an unknown chunk that must be
            understood.
        TruncatedError: the data ends before the file does.
        CorruptError: a checksum, a field or the structure is wrong.
        PixelLimitError: the picture has more than max_pixels pixels.
    """
    view = _view(data)
    header, chunk_count, end = read_header(view)
    if max_pixels is not None:
        check_pixels(header.width, header.height, max_pixels)
    payloads: dict[str, memoryview] = {}
    ignored: list[str] = []
    for chunk in _read_chunks(view, end, chunk_count):
        if chunk.type in _CHUNK_ORDER:
            _check_place(chunk, payloads)
            payloads[chunk.type] = chunk.payload
        elif chunk.must_understand:
            raise UnsupportedVersionError(
                f"the file has a chunk '{chunk.type}' that must be understood and is unknown to "
                "this version of groupedmixer; a newer version is needed"
            )
        else:
            ignored.append(chunk.type)
    for required in _REQUIRED_CHUNKS:
        if required not in payloads:
            raise CorruptError(f"the chunk '{required}' is missing")
    tiles = _read_tiles(header, payloads[_TILES], payloads[_STREAMS])
    metadata = {field: payloads.get(chunk_type) for chunk_type, field in METADATA_FIELDS.items()}
    return GmxFile(header, tiles, payloads.get(ALPHA_CHUNK), tuple(ignored), **metadata)


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """Reads and checks the header alone; `data` may end right after it.

    Raises:
        NotGmxError, UnsupportedVersionError, TruncatedError, CorruptError: as parse() does.
    """
    return read_header(data)[0]


def read_header(data: bytes | bytearray | memoryview) -> tuple[Header, int, int]:
    """As parse_header(); returns also the number of chunks and the offset of the first one."""
    view = _view(data)
    if not view:
        raise NotGmxError("the file is empty")
    signature = bytes(view[: len(SIGNATURE)])
    if not SIGNATURE.startswith(signature):
        raise NotGmxError(f"not a .gmx file: it begins with {signature!r}, not {SIGNATURE!r}")
    if len(view) <= len(SIGNATURE):
        raise TruncatedError(f"the file ends after {len(view)} bytes, inside its signature")
    version = view[len(SIGNATURE)]
    if version > FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"the file has format version {version}, this groupedmixer reads up to "
            f"{FORMAT_VERSION}; a newer version is needed"
        )
    if len(view) < _PREFIX.size:
        raise TruncatedError(f"the file ends after {len(view)} bytes, inside its header")
    _, _, body_length = _PREFIX.unpack_from(view)
    if not _MIN_BODY <= body_length <= _MAX_BODY:
        raise CorruptError(
            f"the header's length must be in {_MIN_BODY}..{_MAX_BODY}, got {body_length}"
        )
    body_end = _PREFIX.size + body_length
    if len(view) < body_end + CHECKSUM.size:
        raise TruncatedError(f"the file ends after {len(view)} bytes, inside its header")
    if zlib.crc32(view[:body_end]) != CHECKSUM.unpack_from(view, body_end)[0]:
        raise CorruptError("the header's checksum is wrong")
    header, chunk_count = _parse_body(view[_PREFIX.size : body_end])
    return header, chunk_count, body_end + CHECKSUM.size


def read_chunks(data: bytes | bytearray | memoryview) -> tuple[Chunk, ...]:
    """All chunks in file order, unknown ones included; their payloads are not looked into.

    Raises:
        NotGmxError, UnsupportedVersionError, TruncatedError, CorruptError: as parse() does, except
            that chunks may be of any type and in any order.
    """
    view = _view(data)
    _, chunk_count, end = read_header(view)
    return tuple(_read_chunks(view, end, chunk_count))


def check_tiles(file: GmxFile, expected: int) -> None:
    """Compares the number of tiles with that of the weights' tile_grid().

    Raises:
        CorruptError: they differ.
    """
    if len(file.tiles) != expected:
        raise CorruptError(
            f"the file must have {expected} tiles for a picture of {file.header.width} x "
            f"{file.header.height} pixels, got {len(file.tiles)}"
        )


def check_name(field: str, name: str) -> None:
    """ValueError unless a file can hold this name: 1..32 characters of ``[a-z0-9._-]``."""
    fault = _name_fault(field, name)
    if fault:
        raise ValueError(fault)


def _name_fault(field: str, name: str) -> str | None:
    if _NAME.fullmatch(name):
        return None
    return f"{field} must be 1..{MAX_NAME} characters out of [a-z0-9._-], got {name!r}"


def _view(data: bytes | bytearray | memoryview) -> memoryview:
    return memoryview(data).cast("B").toreadonly()


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _tile_size_rule(tile_latents: int) -> str:
    return f"tile_latents must be a power of two in {MIN_TILE}..{MAX_TILE}, got {tile_latents}"


def _header_fault(header: Header) -> str | None:
    """The first rule that a field breaks, in words; None where all are kept."""
    if len(header.weights_fingerprint) != FINGERPRINT_BYTES:
        return (
            f"weights_fingerprint must be {FINGERPRINT_BYTES} bytes, "
            f"got {len(header.weights_fingerprint)}"
        )
    for field in ("weights_name", "arithmetic_id"):
        fault = _name_fault(field, getattr(header, field))
        if fault:
            return fault
    for field, low, high in (
        ("quality", 0, QUALITY_STEPS * MAX_QUALITY),
        ("width", 1, MAX_SIDE),
        ("height", 1, MAX_SIDE),
        ("bit_depth", 8, 8),
        ("skip_below", 0, MAX_SKIP_BELOW),
    ):
        value = getattr(header, field)
        if not low <= value <= high:
            return f"{field} must be in {low}..{high}, got {value}"
    if header.colour_space not in tuple(ColourSpace):
        known = ", ".join(f"{space.value} ({space.name})" for space in ColourSpace)
        return f"colour_space must be one of {known}, got {header.colour_space}"
    if not is_tile_size(header.tile_latents):
        return _tile_size_rule(header.tile_latents)
    return None


def _metadata_fault(name: str, length: int) -> str | None:
    if 1 <= length <= MAX_METADATA:
        return None
    return f"{name} must have 1..{MAX_METADATA} bytes, got {length}"


def _tiles_fault(header: Header, count: int) -> str | None:
    """The rule that bounds the number of tiles where k_h and k_w (1..16) are not known yet."""
    # The pitch is the tile size rounded down to a multiple of k, which takes less than half of
    # it; rounding the grid up to a multiple of k adds at most one row and one column.
    tile_pixels = header.tile_latents * LATENT_STRIDE
    rows = _ceil_div(header.height, tile_pixels)
    columns = _ceil_div(header.width, tile_pixels)
    low, high = rows * columns, (2 * rows + 1) * (2 * columns + 1)
    if not low <= count <= high:
        return f"the number of tiles must be in {low}..{high} for this size, got {count}"
    return None


def _pack_header(header: Header, chunk_count: int) -> bytes:
    weights_name = header.weights_name.encode("ascii")
    arithmetic_id = header.arithmetic_id.encode("ascii")
    body = (
        header.weights_fingerprint
        + bytes([len(weights_name)])
        + weights_name
        + bytes([len(arithmetic_id)])
        + arithmetic_id
        + _HEADER_TAIL.pack(
            header.quality,
            header.width,
            header.height,
            header.colour_space,
            header.bit_depth,
            header.skip_below,
            header.tile_latents,
            chunk_count,
        )
    )
    checked = _PREFIX.pack(SIGNATURE, FORMAT_VERSION, len(body)) + body
    return checked + CHECKSUM.pack(zlib.crc32(checked))


def _pack_chunk(chunk_type: str, parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    length = sum(len(part) for part in parts)
    flags = 0 if chunk_type in METADATA_FIELDS else _MUST_UNDERSTAND
    head = CHUNK_HEAD.pack(chunk_type.encode("ascii"), flags, length)
    crc = zlib.crc32(head)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return [head, *parts, CHECKSUM.pack(crc)]


def _parse_body(body: memoryview) -> tuple[Header, int]:
    """The fields of a header whose checksum is right: they may still break any rule."""
    fingerprint = bytes(body[:FINGERPRINT_BYTES])
    weights_name, at = _read_name(body, FINGERPRINT_BYTES)
    arithmetic_id, at = _read_name(body, at)
    if len(body) - at != _HEADER_TAIL.size:
        raise CorruptError(
            f"the header must have {_HEADER_TAIL.size} bytes after its names, got {len(body) - at}"
        )
    quality, width, height, space, depth, skip_below, tile_latents, chunk_count = (
        _HEADER_TAIL.unpack_from(body, at)
    )
    header = Header(
        weights_fingerprint=fingerprint,
        weights_name=weights_name,
        arithmetic_id=arithmetic_id,
        quality=quality,
        width=width,
        height=height,
        colour_space=space,
        bit_depth=depth,
        skip_below=skip_below,
        tile_latents=tile_latents,
    )
    fault = _header_fault(header)
    if fault:
        raise CorruptError(f"the header is wrong: {fault}")
    return replace(header, colour_space=ColourSpace(space)), chunk_count


def _read_name(body: memoryview, at: int) -> tuple[str, int]:
    """A name and the offset behind it. A length past the end leaves too few bytes for the rest."""
    if at >= len(body):
        raise CorruptError("the header's names are longer than the header")
    end = at + 1 + body[at]
    # latin-1 maps every byte to a character; those outside the alphabet are refused later.
    return str(body[at + 1 : end], "latin-1"), end


def _read_chunks(view: memoryview, at: int, count: int) -> Iterator[Chunk]:
    """Yields `count` chunks from offset `at`, then insists on the end of the data."""
    for index in range(count):
        if len(view) - at < CHUNK_HEAD.size:
            raise TruncatedError(f"the file ends inside the head of chunk {index} of {count}")
        raw_type, flags, length = CHUNK_HEAD.unpack_from(view, at)
        if not _CHUNK_TYPE.fullmatch(raw_type):
            raise CorruptError(f"chunk {index}: its type must be 4 letters, got {raw_type!r}")
        if flags & ~_MUST_UNDERSTAND:
            raise CorruptError(f"chunk {index}: unknown flags must be 0, got {flags:#04x}")
        payload_at = at + CHUNK_HEAD.size
        left = len(view) - payload_at - CHECKSUM.size
        if length > left:
            raise TruncatedError(
                f"the file ends inside chunk {index} '{raw_type.decode()}': it needs {length} "
                f"bytes and {max(left, 0)} are left"
            )
        payload_end = payload_at + length
        if zlib.crc32(view[at:payload_end]) != CHECKSUM.unpack_from(view, payload_end)[0]:
            raise CorruptError(f"chunk {index}: its checksum is wrong")
        yield Chunk(raw_type.decode(), flags == _MUST_UNDERSTAND, view[payload_at:payload_end])
        at = payload_end + CHECKSUM.size
    if at != len(view):
        raise CorruptError(f"{len(view) - at} bytes follow the last chunk, there must be none")


def _check_place(chunk: Chunk, seen: dict[str, memoryview]) -> None:
    """A known chunk comes once, after those before it in _CHUNK_ORDER, and is marked right."""
    if chunk.type in METADATA_FIELDS:
        if chunk.must_understand:
            raise CorruptError(f"the chunk '{chunk.type}' must not be marked as must-understand")
        fault = _metadata_fault(f"the chunk '{chunk.type}'", len(chunk.payload))
        if fault:
            raise CorruptError(fault)
    elif not chunk.must_understand:
        raise CorruptError(f"the chunk '{chunk.type}' must be marked as must-understand")
    if chunk.type in seen:
        raise CorruptError(f"the chunk '{chunk.type}' comes twice")
    followers = _CHUNK_ORDER[_CHUNK_ORDER.index(chunk.type) :]
    early = [other for other in followers if other in seen]
    if early:
        raise CorruptError(f"the chunk '{chunk.type}' must come before '{early[0]}'")


def _read_tiles(header: Header, table: memoryview, streams: memoryview) -> tuple[Tile, ...]:
    if len(table) < _TILE_COUNT.size:
        raise CorruptError(f"the chunk 'TILE' must hold at least 4 bytes, got {len(table)}")
    (count,) = _TILE_COUNT.unpack_from(table)
    fault = _tiles_fault(header, count)
    if fault:
        raise CorruptError(fault)
    expected = _TILE_COUNT.size + count * _TILE_ENTRY.size
    if len(table) != expected:
        raise CorruptError(
            f"the chunk 'TILE' must hold {expected} bytes for {count} tiles, got {len(table)}"
        )
    tiles: list[Tile] = []
    at = 0
    for length, latent_crc in _TILE_ENTRY.iter_unpack(table[_TILE_COUNT.size :]):
        if length > len(streams) - at:
            raise CorruptError(
                f"tile {len(tiles)}: its stream has {length} bytes, but {len(streams) - at} are "
                "left of the chunk 'STRM'"
            )
        tiles.append(Tile(streams[at : at + length], latent_crc))
        at += length
    if at != len(streams):
        raise CorruptError(
            f"the tiles' streams must fill the chunk 'STRM' of {len(streams)} bytes, got {at}"
        )
    return tuple(tiles)
