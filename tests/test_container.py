# SPDX-License-Identifier: MIT
"""The container: what is written comes back, and no bytes whatever do harm."""

from __future__ import annotations

import pickle
import random
import struct
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupedmixer.container import (
    SIGNATURE,
    ColourSpace,
    GmxFile,
    Header,
    Tile,
    check_tiles,
    parse,
    parse_header,
    quality_field,
    read_chunks,
    write,
)
from groupedmixer.errors import (
    CorruptError,
    GmxError,
    NotGmxError,
    PixelLimitError,
    TruncatedError,
    UnsupportedVersionError,
    WrongWeightsError,
)
from groupedmixer.limits import MAX_METADATA
from groupedmixer.tiles import tile_grid

HEADER = Header(
    weights_fingerprint=bytes(range(8)),
    weights_name="rt-1",
    arithmetic_id="arithmetic-1",
    quality=1024,
    width=300,
    height=200,
    skip_below=3,
    tile_latents=16,
)
SMALL = GmxFile(HEADER, (Tile(b"first stream", 0xDEADBEEF), Tile(b"second", 7)), alpha=b"a png")

FULL = replace(SMALL, icc_profile=b"a profile", exif=b"II*\0", xmp=b"<x/>")

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=32)
HEADERS = st.builds(
    Header,
    weights_fingerprint=st.binary(min_size=8, max_size=8),
    weights_name=NAMES,
    arithmetic_id=NAMES,
    quality=st.integers(0, 1792),
    width=st.integers(1, 1 << 20),
    height=st.integers(1, 1 << 10),
    colour_space=st.sampled_from(ColourSpace),
    bit_depth=st.just(8),
    skip_below=st.integers(0, 64),
    tile_latents=st.sampled_from([16, 32, 64]),
)


def chunk(chunk_type: bytes, payload: bytes, flags: int = 1) -> bytes:
    checked = chunk_type + struct.pack("<BQ", flags, len(payload)) + payload
    return checked + struct.pack("<I", zlib.crc32(checked))


def header_bytes(chunk_count: int, body: bytes | None = None) -> bytes:
    """The small file's header (or another body's) with any number of chunks announced."""
    if body is None:
        data = write(SMALL)
        body = data[7 : 7 + struct.unpack_from("<H", data, 5)[0]]
    body = body[:-2] + struct.pack("<H", chunk_count)
    checked = SIGNATURE + b"\0" + struct.pack("<H", len(body)) + body
    return checked + struct.pack("<I", zlib.crc32(checked))


def header_body() -> bytes:
    return header_bytes(0)[7:-4]


TILE = chunk(b"TILE", struct.pack("<5I", 2, 12, 0xDEADBEEF, 6, 7))
STRM = chunk(b"STRM", b"first streamsecond")
ALPH = chunk(b"ALPH", b"a png")
ICCP = chunk(b"ICCP", b"a profile", flags=0)
EXIF = chunk(b"EXIF", b"II*\0", flags=0)
XMPP = chunk(b"XMPP", b"<x/>", flags=0)


def repaired(data: bytes) -> bytes:
    """Recomputes every checksum that can still be found, so that damage gets past them."""
    fixed = bytearray(data)
    if len(fixed) < 7:
        return bytes(fixed)
    at = 7 + struct.unpack_from("<H", fixed, 5)[0]
    start = 0
    while at + 4 <= len(fixed):
        struct.pack_into("<I", fixed, at, zlib.crc32(fixed[start:at]))
        start = at + 4
        if start + 13 > len(fixed):
            break
        at = start + 13 + struct.unpack_from("<Q", fixed, start + 5)[0]
    return bytes(fixed)


def read_all(data: bytes) -> None:
    """Every reading function; whatever each raises must be an expected error."""
    for read in (parse, parse_header, read_chunks):
        try:
            read(data)
        except GmxError as error:
            assert str(error)


@pytest.mark.parametrize("file", [SMALL, FULL])
def test_a_file_comes_back(file: GmxFile) -> None:
    assert parse(write(file)) == file
    assert parse_header(write(file)) == HEADER


def test_the_bytes_are_those_of_the_specification() -> None:
    body = (
        bytes(range(8))
        + b"\x04rt-1"
        + b"\x0carithmetic-1"
        + struct.pack("<H", 1024)
        + struct.pack("<II", 300, 200)
        + bytes([0, 8, 3])
        + struct.pack("<HH", 16, 3)
    )
    head = b"\x8bGMX\x00" + struct.pack("<H", len(body)) + body
    assert write(SMALL) == head + struct.pack("<I", zlib.crc32(head)) + TILE + STRM + ALPH


def test_metadata_come_first_and_need_not_be_understood() -> None:
    assert write(FULL) == header_bytes(6) + ICCP + EXIF + XMPP + TILE + STRM + ALPH
    assert [one.must_understand for one in read_chunks(write(FULL))] == [False] * 3 + [True] * 3
    only_xmp = replace(SMALL, xmp=b"<x/>")
    assert write(only_xmp) == header_bytes(4) + XMPP + TILE + STRM + ALPH


@pytest.mark.parametrize("field", ["icc_profile", "exif", "xmp"])
def test_metadata_have_a_length(field: str) -> None:
    longest = replace(SMALL, **{field: bytes(MAX_METADATA)})
    assert parse(write(longest)) == longest
    for length in (0, MAX_METADATA + 1):
        with pytest.raises(
            ValueError, match=rf"^{field} must have 1\.\.4194304 bytes, got {length}"
        ):
            write(replace(SMALL, **{field: bytes(length)}))


@pytest.mark.parametrize("length", [0, MAX_METADATA + 1])
@pytest.mark.parametrize("kind", [b"ICCP", b"EXIF", b"XMPP"])
def test_parse_refuses_metadata_of_other_lengths(kind: bytes, length: int) -> None:
    data = header_bytes(3) + chunk(kind, bytes(length), flags=0) + TILE + STRM
    with pytest.raises(CorruptError, match=rf"{kind.decode()}' must have 1\.\.4194304 bytes, got"):
        parse(data)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read_without_a_copy_of_its_payloads(kind: type) -> None:
    data = kind(write(SMALL))
    stream = parse(data).tiles[0].stream
    assert isinstance(stream, memoryview)
    assert stream.readonly
    assert stream.obj is memoryview(data).obj


@given(HEADERS, st.data())
@settings(max_examples=100, deadline=None)
def test_all_fields_come_back(header: Header, draw: st.DataObject) -> None:
    grid = tile_grid(header.height, header.width, header.tile_latents, 2, 2)
    crc = draw.draw(st.integers(0, (1 << 32) - 1))
    streams = [draw.draw(st.binary(max_size=40)) for _ in range(min(grid.count, 4))]
    tiles = tuple(Tile(streams[index % 4], crc) for index in range(grid.count))
    metadata = st.none() | st.binary(min_size=1, max_size=20)
    file = GmxFile(
        header,
        tiles,
        draw.draw(st.none() | st.binary(max_size=20)),
        icc_profile=draw.draw(metadata),
        exif=draw.draw(metadata),
        xmp=draw.draw(metadata),
    )
    data = write(file)
    assert parse(data) == file
    assert write(parse(data)) == data
    check_tiles(parse(data), grid.count)


def test_without_alpha() -> None:
    file = replace(SMALL, alpha=None)
    assert parse(write(file)) == file
    assert [one.type for one in read_chunks(write(file))] == ["TILE", "STRM"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_fingerprint", b"short"),
        ("weights_name", ""),
        ("weights_name", "a" * 33),
        ("weights_name", "RT"),
        ("weights_name", "rt\n"),
        ("arithmetic_id", "ä"),
        ("quality", 1793),
        ("quality", -1),
        ("width", 0),
        ("height", (1 << 20) + 1),
        ("colour_space", 2),
        ("bit_depth", 16),
        ("skip_below", 65),
        ("tile_latents", 8),
        ("tile_latents", 128),
        ("tile_latents", 48),
    ],
)
def test_write_refuses_a_field_and_names_it(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        write(replace(SMALL, header=replace(HEADER, **{field: value})))


def test_write_refuses_tiles_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"number of tiles must be in 2\.\.15 .* got 0"):
        write(replace(SMALL, tiles=()))
    with pytest.raises(ValueError, match=r"tiles\[1\]\.latent_crc must be"):
        write(replace(SMALL, tiles=(SMALL.tiles[0], Tile(b"", 1 << 32))))
    with pytest.raises(ValueError, match="ignored must be empty"):
        write(replace(SMALL, ignored=("noTe",)))


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (8, 1, 0),  # length of the weights' name
        (9, 1, ord("R")),
        (13, 1, 33),  # length of the arithmetic id
        (26, 2, 1793),
        (28, 4, 0),
        (32, 4, (1 << 20) + 1),
        (36, 1, 2),
        (37, 1, 16),
        (38, 1, 65),
        (39, 2, 17),
    ],
)
def test_parse_refuses_the_same_fields(offset: int, size: int, value: int) -> None:
    body = bytearray(header_body())
    body[offset : offset + size] = value.to_bytes(size, "little")
    with pytest.raises(CorruptError):
        parse(header_bytes(3, bytes(body)) + TILE + STRM + ALPH)


@pytest.mark.parametrize("size", [0, 28, 92, 65535])
def test_header_length_is_bounded_before_it_is_used(size: int) -> None:
    with pytest.raises(CorruptError, match="header's length"):
        parse(SIGNATURE + b"\0" + struct.pack("<H", size))


def test_bytes_behind_the_known_header_fields_are_refused() -> None:
    with pytest.raises(CorruptError, match="must have 17 bytes after its names, got 18"):
        parse_header(header_bytes(3, header_body() + b"\0"))


def test_names_longer_than_the_header_are_refused() -> None:
    body = bytearray(header_body())
    body[8] = 255
    with pytest.raises(CorruptError, match="names are longer"):
        parse_header(header_bytes(3, bytes(body)))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", NotGmxError),
        (b"\x89PNG\r\n\x1a\n", NotGmxError),
        (b"\x8b", TruncatedError),
        (b"\x8bG!", NotGmxError),
        (SIGNATURE, TruncatedError),
        (SIGNATURE + b"\x01", UnsupportedVersionError),
        (SIGNATURE + b"\xff who knows", UnsupportedVersionError),
        (SIGNATURE + b"\x00", TruncatedError),
    ],
)
def test_the_first_bytes_decide(data: bytes, error: type[GmxError]) -> None:
    with pytest.raises(error):
        parse(data)


def test_empty_says_so() -> None:
    with pytest.raises(NotGmxError, match="empty"):
        parse(b"")


@pytest.mark.parametrize("file", [SMALL, FULL])
def test_every_truncation_is_diagnosed(file: GmxFile) -> None:
    data = write(file)
    for length in range(1, len(data)):
        with pytest.raises(TruncatedError):
            parse(data[:length])
        read_all(data[:length])


@pytest.mark.parametrize("file", [SMALL, FULL])
def test_every_flipped_bit_is_noticed(file: GmxFile) -> None:
    data = bytearray(write(file))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(GmxError):
            parse(data)
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("file", [SMALL, FULL])
def test_random_damage_is_an_expected_error(file: GmxFile) -> None:
    random_source = random.Random(20240501)
    original = write(file)
    parsed = 0
    for _ in range(1500):
        data = bytearray(original)
        for _ in range(random_source.randint(1, 4)):
            at = random_source.randrange(len(data))
            action = random_source.randrange(4)
            if action == 0:
                data[at] = random_source.randrange(256)
            elif action == 1:
                data[at] = random_source.choice((0, 1, 127, 128, 255))
            elif action == 2:
                del data[at : at + random_source.randint(1, 8)]
            else:
                data[at:at] = random_source.randbytes(random_source.randint(1, 8))
        read_all(bytes(data))
        read_all(repaired(bytes(data)))
        try:
            again = parse(repaired(bytes(data)))
        except GmxError:
            continue
        parsed += 1
        if not again.ignored:
            assert parse(write(again)) == again
    assert parsed > 50  # repairing works: damage reaches the code behind the checksums


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_behind_a_good_prefix(tail: bytes) -> None:
    read_all(SIGNATURE + b"\0" + tail)
    read_all(header_bytes(3) + tail)
    read_all(repaired(header_bytes(3) + tail))


@pytest.mark.parametrize("length", [1 << 31, 1 << 40, (1 << 64) - 1])
def test_a_huge_length_takes_no_memory(length: int) -> None:
    data = header_bytes(2) + b"TILE\x01" + struct.pack("<Q", length) + bytes(100)
    tracemalloc.start()
    with pytest.raises(TruncatedError):
        parse(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()


@pytest.mark.parametrize("count", [0, 1, 16, (1 << 32) - 1])
def test_the_number_of_tiles_is_bounded_by_the_size(count: int) -> None:
    tile = chunk(b"TILE", struct.pack("<5I", count, 12, 0, 6, 0))
    tracemalloc.start()
    with pytest.raises(CorruptError, match=r"number of tiles must be in 2\.\.15"):
        parse(header_bytes(2) + tile + STRM)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()


@pytest.mark.parametrize(
    "table",
    [
        b"",
        struct.pack("<4I", 2, 12, 0, 6),
        struct.pack("<6I", 2, 12, 0, 6, 0, 0),
        struct.pack("<5I", 2, 12, 0, 5, 0),  # one byte of STRM is left
        struct.pack("<5I", 2, 12, 0, 7, 0),
        struct.pack("<5I", 2, 0xFFFFFFFF, 0, 19, 0),  # their sum wraps to 18 in 32 bits
    ],
)
def test_the_tile_table_must_fit_the_streams(table: bytes) -> None:
    with pytest.raises(CorruptError):
        parse(header_bytes(2) + chunk(b"TILE", table) + STRM)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([], "'TILE' is missing"),
        ([TILE], "'STRM' is missing"),
        ([STRM], "'TILE' is missing"),
        ([STRM, TILE], "'TILE' must come before 'STRM'"),
        ([TILE, ALPH, STRM], "'STRM' must come before 'ALPH'"),
        ([TILE, TILE, STRM], "'TILE' comes twice"),
        ([TILE, STRM, ALPH, ALPH], "'ALPH' comes twice"),
        ([chunk(b"TILE", TILE[13:-4], flags=0), STRM], "marked as must-understand"),
        ([EXIF, EXIF, TILE, STRM], "'EXIF' comes twice"),
        ([EXIF, ICCP, TILE, STRM], "'ICCP' must come before 'EXIF'"),
        ([TILE, STRM, XMPP], "'XMPP' must come before 'TILE'"),
        ([chunk(b"XMPP", b"<x/>"), TILE, STRM], "'XMPP' must not be marked as must-understand"),
        ([TILE, STRM, chunk(b"noTe", b"", flags=2)], "unknown flags"),
        ([TILE, STRM, chunk(b"no e", b"")], "4 letters"),
    ],
)
def test_chunks_out_of_place(chunks: list[bytes], reason: str) -> None:
    with pytest.raises(CorruptError, match=reason):
        parse(header_bytes(len(chunks)) + b"".join(chunks))


def test_bytes_behind_the_last_chunk() -> None:
    with pytest.raises(CorruptError, match="1 bytes follow"):
        parse(write(SMALL) + b"\0")
    with pytest.raises(CorruptError, match="bytes follow"):
        parse(header_bytes(2) + TILE + STRM + ALPH)


def test_unknown_chunks_are_ignored_where_they_may_be() -> None:
    note, more = chunk(b"noTe", b"hello", flags=0), chunk(b"more", b"", flags=0)
    data = header_bytes(6) + note + TILE + more + STRM + ALPH + note
    assert parse(data) == replace(SMALL, ignored=("noTe", "more", "noTe"))
    assert [(one.type, one.must_understand) for one in read_chunks(data)][:2] == [
        ("noTe", False),
        ("TILE", True),
    ]


def test_an_unknown_chunk_that_must_be_understood_asks_for_a_newer_version() -> None:
    data = header_bytes(3) + TILE + STRM + chunk(b"NEWS", b"hello", flags=1)
    with pytest.raises(UnsupportedVersionError, match="'NEWS'.*newer version"):
        parse(data)
    assert read_chunks(data)[2].type == "NEWS"


def test_max_pixels_is_checked_before_the_chunks() -> None:
    assert parse(write(SMALL), max_pixels=60000) == SMALL
    with pytest.raises(PixelLimitError, match="300 x 200"):
        parse(header_bytes(3), max_pixels=59999)


@given(
    st.integers(1, 1 << 14),
    st.integers(1, 1 << 14),
    st.sampled_from([16, 32, 64]),
    st.integers(1, 16),
    st.integers(1, 16),
)
@settings(max_examples=50, deadline=None)
def test_every_grid_can_be_written(
    width: int, height: int, tile: int, multiple_h: int, multiple_w: int
) -> None:
    header = replace(HEADER, width=width, height=height, tile_latents=tile)
    grid = tile_grid(height, width, tile, multiple_h, multiple_w)
    file = parse(write(GmxFile(header, (Tile(b"", 0),) * grid.count)))
    check_tiles(file, grid.count)


def test_check_tiles() -> None:
    check_tiles(SMALL, 2)
    with pytest.raises(CorruptError, match="must have 4 tiles"):
        check_tiles(SMALL, 4)


def test_quality_field() -> None:
    assert quality_field(0) == 0
    assert quality_field(7) == 1792
    assert quality_field(4.001) == 1024
    for wrong in (-0.001, 7.001, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="quality must be in"):
            quality_field(wrong)


def test_wrong_weights_names_both_sides_and_can_be_pickled() -> None:
    error = WrongWeightsError("rt-2", b"\1" * 8, [("rt-1", b"\2" * 8)])
    assert str(error) == (
        "the file needs the weights 'rt-2' (0101010101010101), available: 'rt-1' (0202020202020202)"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(WrongWeightsError("a", b"\0" * 8)).endswith("available: none")
