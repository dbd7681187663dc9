# SPDX-License-Identifier: MIT
"""EXIF, XMP and ICC profiles on their way into a file: what is changed, kept and refused."""

from __future__ import annotations

import io
import random
import struct
import time

import pytest
from PIL import ExifTags, Image

from groupedmixer.limits import MAX_METADATA
from groupedmixer.metadata import clean_exif, clean_icc_profile, clean_xmp

ORIENTATION, MAKE, EXIF_DIRECTORY = 0x0112, 0x010F, 0x8769
THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 0x0201, 0x0202
BYTE, ASCII, SHORT, LONG = 1, 2, 3, 4
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


def entry(order: str, tag: int, kind: int, value: int | bytes, count: int = 1) -> bytes:
    """A directory's entry; `value` is a number, or the four bytes that stand for it."""
    if isinstance(value, int):
        value = struct.pack(order + {BYTE: "B", SHORT: "H"}.get(kind, "I"), value)
    return struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")


def directory(order: str, entries: list[bytes], following: int = 0) -> bytes:
    return (
        struct.pack(order + "H", len(entries))
        + b"".join(entries)
        + struct.pack(order + "I", following)
    )


def block(order: str, *parts: bytes) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "I", 8) + b"".join(parts)


@ORDERS
@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_set_in_place(order: str, kind: int, orientation: int) -> None:
    maker_note = entry(order, MAKE, ASCII, 34, count=9)

    def data(value: int) -> bytes:
        entries = [maker_note, entry(order, ORIENTATION, kind, value)]
        return block(order, directory(order, entries), b"the maker")

    assert clean_exif(data(orientation)) == data(1)
    assert clean_exif(b"Exif\0\0" + data(orientation)) == data(1)


@ORDERS
def test_data_without_an_orientation_stay_as_they_are(order: str) -> None:
    data = block(order, directory(order, [entry(order, MAKE, ASCII, b"GM")]), b"anything")
    assert clean_exif(data) == data
    assert clean_exif(data[:-12]) == data[:-12]  # the last offset is missing


@ORDERS
def test_a_thumbnail_at_the_end_is_cut_off(order: str) -> None:
    """Layout: first directory at 8, Exif directory at 38, the second at 56, thumbnail at 86."""
    below = directory(order, [entry(order, 0x8827, SHORT, 200)])
    thumbnail = [
        entry(order, THUMBNAIL_OFFSET, LONG, 86),
        entry(order, THUMBNAIL_LENGTH, LONG, 1000),
    ]
    entries = [entry(order, ORIENTATION, SHORT, 6), entry(order, EXIF_DIRECTORY, LONG, 38)]
    data = block(
        order, directory(order, entries, 56), below, directory(order, thumbnail), bytes(1000)
    )
    entries[0] = entry(order, ORIENTATION, SHORT, 1)
    assert clean_exif(data) == block(order, directory(order, entries), below)


@ORDERS
def test_a_thumbnail_before_other_data_is_unlinked(order: str) -> None:
    """Layout: first directory at 8, the second at 26, a value of the first at 44."""
    entries = [entry(order, MAKE, ASCII, 44, count=9)]
    rest = directory(order, [entry(order, THUMBNAIL_OFFSET, LONG, 53)]) + b"the maker" + bytes(9)
    data = block(order, directory(order, entries, 26), rest)
    assert clean_exif(data) == block(order, directory(order, entries), rest)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"must have 1\.\.4194304 bytes, it has 0"),
        (b"II*\0" + bytes(MAX_METADATA), r"it has 4194308"),
        (b"nonsense", "must begin with"),
        (b"II*\0", "must begin with"),
        (b"II*\0\xff\0\0\0", "directory is at 255 of 8 bytes"),
        (b"II*\0\0\0\0\0\0\0", "directory is at 0 of 10 bytes"),
        (block("<", b"\2\0", bytes(12)), "directory of 2 entries ends behind its 22 bytes"),
        (block("<", directory("<", [entry("<", ORIENTATION, ASCII, 6)])), "one whole number"),
        (block("<", directory("<", [entry("<", ORIENTATION, SHORT, 6, 2)])), "got 2 of type 3"),
    ],
)
def test_exif_that_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        clean_exif(data)


def test_hostile_directories_take_linear_time() -> None:
    """Every entry points to the same directory of entries that point to it again."""
    entries = [entry("<", EXIF_DIRECTORY, LONG, 8)] * 20000
    data = block("<", directory("<", entries, 8))
    start = time.perf_counter()
    clean_exif(data)
    assert time.perf_counter() - start < 30  # squared, it would be many minutes


def test_damaged_exif_is_refused_or_bounded() -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "a maker of cameras"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 200
    original = exif.tobytes()[6:]
    source = random.Random(0)
    refused = 0
    for _ in range(3000):
        data = bytearray(original)
        for _ in range(source.randint(1, 3)):
            data[source.randrange(len(data))] = source.choice((0, 1, 8, 127, 255))
        try:
            assert len(clean_exif(bytes(data))) <= len(data)
        except ValueError as error:
            assert str(error)
            refused += 1
    assert 100 < refused < 2900


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'<a tiff:Orientation="6"/>', b'<a tiff:Orientation="1"/>'),
        (b"<a tiff:Orientation = '8' b=\"6\"/>", b"<a tiff:Orientation = '1' b=\"6\"/>"),
        (b"<t:Orientation>3</t:Orientation>", b"<t:Orientation>1</t:Orientation>"),
        (b'<t:Orientation x="2"> 3<', b'<t:Orientation x="2"> 1<'),
        (b"<a>Orientation 6</a>\0\0 ", b"<a>Orientation 6</a>"),
        ("<?xpacket begin='\ufeff'?><é/>".encode(), "<?xpacket begin='\ufeff'?><é/>".encode()),
    ],
)
def test_xmp_is_turned_upright(before: bytes, after: bytes) -> None:
    assert clean_xmp(before) == after
    assert clean_xmp(before.decode()) == after


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "must have 1"),
        (b"\0 \0", "must have 1"),
        (b"<" * (MAX_METADATA + 1), "it has 4194305"),
        ("<é/>".encode("latin-1"), "not UTF-8"),
        ("<x/>".encode("utf-16-le"), "not XML"),
        (b"nonsense", "not XML"),
        (b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', "XML entities"),
    ],
)
def test_xmp_that_is_refused(packet: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        clean_xmp(packet)


def profile(space: bytes, size: int = 132, length: int = 132) -> bytes:
    head = struct.pack(">I", size) + bytes(12) + space + bytes(16) + b"acsp"
    return head.ljust(length, b"\0")


def test_profiles() -> None:
    assert clean_icc_profile(profile(b"GRAY"), "GRAY") == profile(b"GRAY")
    for data, reason in (
        (b"", "must have 1"),
        (profile(b"RGB ")[:127], "no header"),
        (profile(b"RGB ").replace(b"acsp", b"ACSP"), "no header"),
        (profile(b"RGB ", size=500), "gives it 500 bytes, it has 132"),
        (profile(b"CMYK"), "its colour space is 'CMYK', that of the samples is 'RGB '"),
    ):
        with pytest.raises(ValueError, match=reason):
            clean_icc_profile(data, "RGB ")


def test_pillow_reads_what_is_kept() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[MAKE] = "a maker of cameras"
    stream = io.BytesIO()
    Image.new("L", (4, 2)).save(stream, "PNG", exif=clean_exif(exif.tobytes()))
    with Image.open(stream) as image:
        assert dict(image.getexif()) == {ORIENTATION: 1, MAKE: "a maker of cameras"}
