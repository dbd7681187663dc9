# SPDX-License-Identifier: MIT
"""Pictures in and out: every mode, orientation and refusal."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from groupedmixer import samples
from groupedmixer.errors import (
    CorruptError,
    MetadataWarning,
    PixelLimitError,
    UnsupportedImageError,
)
from groupedmixer.image_formats import OUTPUT_FORMATS, encode_image, format_of_suffix
from groupedmixer.images import (
    MAX_PIXELS,
    Picture,
    as_picture,
    decode_alpha,
    encode_alpha,
    from_pil,
    load_picture,
    read_picture,
    to_pil,
)
from groupedmixer.limits import MAX_METADATA
from groupedmixer.pillow_guard import pillow_limit

HEIGHT, WIDTH = 5, 7
GREY: npt.NDArray[np.uint8] = np.arange(0, 245, 7, np.uint8).reshape(HEIGHT, WIDTH)
ALPHA: npt.NDArray[np.uint8] = GREY[::-1].copy()
RGB: npt.NDArray[np.uint8] = np.stack([GREY, 255 - GREY, GREY // 2], axis=2).astype(np.uint8)
RGBA: npt.NDArray[np.uint8] = np.dstack([RGB, ALPHA])

TIFF_ORIENTATION = 0x0112


def same(picture: Picture, image: Image.Image) -> bool:
    """Whether a picture has the samples of an image of mode L, LA, RGB or RGBA."""
    return to_pil(picture).mode == image.mode and np.array_equal(
        np.asarray(to_pil(picture)), np.asarray(image)
    )


def png(width: int, height: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG made by hand, for what Pillow cannot write."""

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_part(b"IHDR", head)
        + extra
        + png_part(b"IDAT", zlib.compress(rows))
        + png_part(b"IEND", b"")
    )


def png_part(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_grey_modes(mode: str) -> None:
    if mode.startswith("I;16"):
        dtype = ">u2" if mode == "I;16B" else "<u2"
        wide = GREY.astype(dtype) * 257
        image = Image.frombytes(mode, (WIDTH, HEIGHT), wide.tobytes())
        expected = Image.fromarray(GREY)
    elif mode == "I":
        image = Image.fromarray(GREY.astype(np.int32) * 257)
        expected = Image.fromarray(GREY)
    elif mode == "1":
        image = expected = Image.fromarray(GREY > 100)
        expected = expected.convert("L")
    elif mode == "L":
        image = expected = Image.fromarray(GREY)
    else:
        expected = Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)]))
        image = expected.convert(mode)
    assert image.mode == mode
    picture = from_pil(image)
    assert picture.grey
    assert same(picture, expected)
    assert np.array_equal(picture.rgb[..., 0], picture.rgb[..., 2])


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "P"])
def test_colour_modes_without_alpha(mode: str) -> None:
    image = Image.fromarray(RGB)
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        converted = ImageCms.applyTransform(image, to_lab)
        assert converted is not None
        image = converted
    else:
        image = image.convert(mode)
    assert image.mode == mode
    picture = from_pil(image)
    assert not picture.grey
    assert same(picture, image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "PA", "P"])
def test_colour_modes_with_alpha(mode: str) -> None:
    image = Image.fromarray(RGBA)
    if mode == "P":
        image = Image.fromarray(RGB).convert("P")
        image.info["transparency"] = 3
    elif mode == "PA":
        image = Image.fromarray(RGB).convert("P").convert("PA")
        image.putalpha(Image.fromarray(ALPHA))
    else:
        image = image.convert(mode)
    assert image.mode == mode
    assert same(from_pil(image), image.convert("RGBA"))


def test_a_colour_key_becomes_alpha() -> None:
    grey = Image.fromarray(GREY)
    grey.info["transparency"] = int(GREY[0, 1])
    picture = from_pil(grey)
    assert picture.grey
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, GREY[0, 1] == GREY)

    colour = Image.fromarray(RGB)
    colour.info["transparency"] = tuple(int(v) for v in RGB[2, 3])
    alpha = from_pil(colour).alpha
    assert alpha is not None
    assert alpha[2, 3] == 0
    assert alpha[0, 0] == 255

    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    wide.info["transparency"] = int(GREY[0, 1]) * 257
    alpha = from_pil(wide).alpha
    assert alpha is not None
    assert np.array_equal(alpha == 0, GREY[0, 1] == GREY)


def test_a_fully_opaque_alpha_plane_is_kept() -> None:
    image = Image.new("RGBA", (3, 2), (1, 2, 3, 255))
    assert to_pil(from_pil(image)).mode == "RGBA"


def test_16_bits_round_to_the_nearest_level() -> None:
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for array in (values, values.astype(np.int32)):
        assert np.array_equal(from_pil(Image.fromarray(array)).rgb[..., 0], expected)


def test_16_bit_files(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "grey.png")
    assert np.array_equal(load_picture(tmp_path / "grey.png").rgb[..., 0], GREY)
    wide = np.repeat(RGB, 2, axis=2).reshape(HEIGHT, -1)  # both bytes alike: v * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    (tmp_path / "colour.png").write_bytes(png(WIDTH, HEIGHT, 16, 2, rows))
    assert np.array_equal(load_picture(tmp_path / "colour.png").rgb, RGB)


def tiff(bits: int, photometric: int, samples: bytes, sample_format: int = 1) -> bytes:
    """A grey TIFF file of one row, made by hand, for what Pillow reads and does not write."""
    tags = {
        256: 8 * len(samples) // bits,  # width
        257: 1,  # height
        258: bits,
        259: 1,  # no compression
        262: photometric,
        273: 8,  # where the samples begin
        278: 1,  # rows in a strip
        279: len(samples),
        339: sample_format,
    }
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHIHH", tag, 3, 1, tags[tag], 0) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + directory + bytes(4)


@pytest.mark.parametrize(
    ("bits", "photometric", "digits", "expected"),
    [
        (16, 1, "0000 8180 ffff", [0, 128, 255]),
        (16, 0, "0000 8180 ffff", [255, 127, 0]),  # white is zero
        (12, 1, "00 0f ff 80 90 01", [0, 255, 128, 0]),  # 0x809 * 255 / 4095 is 127.99
    ],
)
def test_grey_tiff_files_of_many_bits(
    bits: int, photometric: int, digits: str, expected: list[int]
) -> None:
    data = io.BytesIO(tiff(bits, photometric, bytes.fromhex(digits)))
    assert read_picture(data).rgb[0, :, 0].tolist() == expected


def test_signed_samples_are_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="must be unsigned"):
        read_picture(io.BytesIO(tiff(16, 1, bytes(6), sample_format=2)))


@pytest.mark.parametrize(("depth", "key"), [(1, 1), (2, 2), (2, 3), (4, 10), (8, 77), (16, 500)])
def test_a_colour_key_of_any_depth(depth: int, key: int) -> None:
    """Pillow widens samples of two and four bits, and not their key."""
    row = 0
    for value in (0, key, 1, key, 0, 0, 0, 0):
        row = row << depth | value
    mask = [255, 0, 0 if key == 1 else 255, 0, 255, 255, 255, 255]
    part = png_part(b"tRNS", struct.pack(">H", key))
    rows = b"\0" + row.to_bytes(depth, "big")
    picture = read_picture(io.BytesIO(png(8, 1, depth, 0, rows, part)))
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == mask
    assert picture.rgb[0, 1, 0] == round(key * 255 / (2**depth - 1))


def test_a_colour_key_of_16_bit_colour_is_refused() -> None:
    """Pillow would compare the low bytes of the key with the high bytes of the samples."""
    part = png_part(b"tRNS", struct.pack(">HHH", 0xABCD, 0x1234, 0x5678))
    data = png(1, 1, 16, 2, b"\0" + bytes(6), part)
    with pytest.raises(UnsupportedImageError, match="cannot have a transparent colour, got"):
        read_picture(io.BytesIO(data))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        with pytest.raises(UnsupportedImageError, match="cannot have a transparent colour, got"):
            from_pil(image)


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_integers_beyond_16_bits_are_refused(value: int) -> None:
    image = Image.fromarray(np.array([[0, value]], np.int32))
    with pytest.raises(UnsupportedImageError, match=r"must be in 0\.\.65535"):
        from_pil(image)


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="mode must be one of .*, got F"):
        from_pil(Image.new("F", (2, 2)))


@pytest.mark.parametrize("size", [(0, 3), (3, 0), ((1 << 20) + 1, 1)])
def test_sides_out_of_range_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedImageError, match="width and height must be in"):
        from_pil(Image.new("L", size))
    with pytest.raises(UnsupportedImageError, match="width and height must be in"):
        as_picture(np.zeros((size[1], size[0]), np.uint8))
    with pytest.raises(UnsupportedImageError, match="width and height must be in"):
        as_picture(np.zeros((3, size[1], size[0]), np.float32))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, mode: str) -> None:
    array = {"L": GREY, "RGBA": RGBA, "I;16": GREY.astype(np.uint16) * 257}[mode]
    image = Image.fromarray(array)
    exif = Image.Exif()
    exif[TIFF_ORIENTATION] = orientation
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    if mode == "I;16":
        expected = (expected // 257).astype(np.uint8)
    picture = load_picture(path)
    assert np.array_equal(np.asarray(to_pil(picture)), expected)
    assert picture.rgb.flags.c_contiguous
    again = from_pil(to_pil(picture))
    assert np.array_equal(again.rgb, picture.rgb)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
def test_orientation_of_other_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"turned{suffix}"
    exif = Image.Exif()
    exif[TIFF_ORIENTATION] = 6
    Image.fromarray(RGB).save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
    assert expected.size == (HEIGHT, WIDTH)
    assert same(load_picture(path), expected)


def icc_profile(space: bytes, tag: bytes = b"", data: bytes = b"") -> bytes:
    """An ICC profile of version 2 with one tag at most; PCS Lab."""
    tags = struct.pack(">I", 1) + tag + struct.pack(">II", 144, len(data)) if tag else bytes(4)
    size = 128 + len(tags) + len(data)
    head = struct.pack(">I", size) + bytes(4) + b"\x02\x10\0\0" + b"prtr" + space + b"Lab "
    head += bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)  # the illuminant, D50
    return head.ljust(128, b"\0") + tags + data


CYAN_LAB, BLACK_LAB, PAPER_LAB = (55, -37, -50), (10, 0, 0), (100, 0, 0)


def cmyk_profile() -> bytes:
    """A printer whose cyan is that of print and whose other inks are all black."""
    corners = []
    for corner in range(16):  # the last channel changes fastest
        if corner & 0b0111:
            colour = BLACK_LAB
        else:
            colour = CYAN_LAB if corner else PAPER_LAB
        corners += [round(colour[0] * 2.55), colour[1] + 128, colour[2] + 128]
    identity = struct.pack(">9i", *(0x10000 if i % 4 == 0 else 0 for i in range(9)))
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + bytes(corners) + 3 * ramp
    return icc_profile(b"CMYK", b"A2B0", lut)


@functools.cache
def srgb_profile() -> bytes:
    """One profile, as each that is made has the time of its making in it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_with_a_profile_goes_through_it(tmp_path: Path, suffix: str) -> None:
    image = Image.new("CMYK", (48, 16))
    image.paste((255, 0, 0, 0), (16, 0, 32, 16))
    image.paste((0, 0, 0, 255), (32, 0, 48, 16))
    image.save(tmp_path / f"inks{suffix}", icc_profile=cmyk_profile())
    picture = load_picture(tmp_path / f"inks{suffix}")
    paper, cyan, black = (picture.rgb[8, x].astype(int) for x in (8, 24, 40))
    assert paper.min() > 250
    assert np.abs(cyan - (0, 146, 218)).max() < 12  # CYAN_LAB in sRGB; (0, 255, 255) without it
    assert black.max() < 40
    assert picture.icc_profile is None


@pytest.mark.parametrize("profile", [b"not a profile", srgb_profile(), icc_profile(b"CMYK")])
def test_cmyk_with_a_useless_profile_is_cmyk_without_one(profile: bytes) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    image.info["icc_profile"] = profile
    with pytest.warns(MetadataWarning, match="CMYK ICC profile is dropped"):
        picture = from_pil(image)
    assert same(picture, image.convert("RGB"))
    assert picture.icc_profile is None


@pytest.mark.parametrize(
    ("array", "space", "kept"),
    [
        (RGB, b"RGB ", True),
        (RGBA, b"RGB ", True),
        (GREY, b"GRAY", True),
        (RGB, b"GRAY", False),
        (GREY, b"RGB ", False),
        (RGB, b"CMYK", False),
    ],
)
def test_a_profile_is_kept_where_it_fits_the_samples(
    array: npt.NDArray[np.uint8], space: bytes, kept: bool
) -> None:
    image = Image.fromarray(array)
    image.info["icc_profile"] = icc_profile(space)
    if not kept:
        with pytest.warns(MetadataWarning, match="ICC profile is dropped: its colour space is"):
            assert from_pil(image).icc_profile is None
        return
    picture = from_pil(image)
    assert picture.icc_profile == icc_profile(space)
    assert same(picture, Image.fromarray(array))  # unconverted
    assert picture.without_metadata().icc_profile is None
    assert picture.without_metadata().rgb is picture.rgb


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[TIFF_ORIENTATION] = orientation
    exif[ExifTags.Base.Artist] = "A. Nonymous"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 200
    return exif


def xmp_of(orientation: int, *, element: bool = False) -> bytes:
    attribute, inside = f' tiff:Orientation="{orientation}"', ""
    if element:
        attribute, inside = "", f"<tiff:Orientation>{orientation}</tiff:Orientation>"
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{inside}é</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


NO_TURN = xmp_of(1).replace(b' tiff:Orientation="1"', b" ")  # Pillow turns a TIFF while it loads


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_metadata_of_files_come_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"turned{suffix}"
    output_format = format_of_suffix(suffix)
    assert output_format is not None
    image = Image.fromarray(np.kron(RGB, np.ones((16, 16, 1), np.uint8)))
    image.info["icc_profile"] = srgb_profile()
    image.info["xmp"] = xmp_of(orientation)
    if suffix == ".tif":  # whose directory is where the orientation stands
        directory = exif_of(orientation)
        directory[700] = xmp_of(orientation)
        image.save(path, exif=directory.tobytes())
    else:
        image.info["exif"] = exif_of(orientation).tobytes()
        path.write_bytes(encode_image(image, output_format))
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored)
    picture = load_picture(path)
    assert same(picture, expected)
    assert picture.icc_profile == srgb_profile()
    assert picture.xmp == (xmp_of(1) if suffix != ".tif" or orientation == 1 else NO_TURN)
    assert picture.exif is not None
    exif = Image.Exif()
    exif.load(picture.exif)
    assert exif.get(TIFF_ORIENTATION, 1) == 1
    assert exif[ExifTags.Base.Artist] == "A. Nonymous"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 200
    # Nothing is left that would turn it again, neither for us nor for those who read our outputs.
    assert same(from_pil(to_pil(picture)), expected)
    plain = replace(picture, icc_profile=None)  # which not all formats can hold
    for other in OUTPUT_FORMATS.values():
        with Image.open(io.BytesIO(encode_image(to_pil(plain), other))) as back:
            assert ImageOps.exif_transpose(back).size == expected.size


@pytest.mark.parametrize("name", ["png", "webp", "tiff", "jpeg"])
def test_output_formats_take_the_metadata(name: str) -> None:
    picture = Picture(RGB, icc_profile=srgb_profile(), exif=exif_of(1).tobytes()[6:], xmp=xmp_of(1))
    data = encode_image(to_pil(picture), OUTPUT_FORMATS[name])
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == srgb_profile()
        assert image.info["xmp"] == xmp_of(1)
        assert image.getexif()[ExifTags.Base.Artist] == "A. Nonymous"
        back = from_pil(image)
    assert (back.icc_profile, back.xmp) == (picture.icc_profile, picture.xmp)
    if name != "tiff":
        assert back.exif == picture.exif


def test_metadata_that_an_output_format_cannot_hold_are_dropped() -> None:
    image = Image.fromarray(RGB)
    image.info["exif"] = b"Exif\0\0II*\0" + bytes(70000)
    image.info["xmp"] = b"<x>" + b" " * 70000 + b"</x>"
    with pytest.warns(MetadataWarning) as caught:
        data = encode_image(image, OUTPUT_FORMATS["jpeg"])
    assert [str(one.message).split(" of it")[0] for one in caught] == [
        "the image's EXIF is dropped: JPEG holds at most 65533 bytes",
        "the image's XMP is dropped: JPEG holds at most 65504 bytes",
    ]
    assert len(data) < 10000


@pytest.mark.parametrize("name", ["png", "webp", "tiff", "jpeg"])
def test_a_grey_profile_is_not_written_beside_colour(name: str) -> None:
    image = Image.fromarray(GREY)
    image.info["icc_profile"] = icc_profile(b"GRAY")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = encode_image(image, OUTPUT_FORMATS[name])
    with Image.open(io.BytesIO(data)) as back:
        assert (back.info.get("icc_profile") is None) == (back.mode == "RGB")
        assert len(caught) == (back.mode == "RGB")


@pytest.mark.parametrize("name", ["bmp", "ppm"])
def test_a_format_without_profiles_says_that_one_is_lost(name: str) -> None:
    image = Image.fromarray(RGB)
    image.info["exif"] = exif_of(1).tobytes()  # is gone, too, but nothing looks wrong without it
    encode_image(image, OUTPUT_FORMATS[name])
    image.info["icc_profile"] = srgb_profile()
    with pytest.warns(MetadataWarning, match=f"ICC profile is dropped: {name.upper()} cannot hold"):
        encode_image(image, OUTPUT_FORMATS[name])


def test_hostile_exif_does_not_reach_the_directory_of_a_tiff() -> None:
    image = Image.fromarray(RGB)
    hostile = Image.Exif()
    hostile[256], hostile[273] = 100000, 7  # ImageWidth, StripOffsets
    image.info["exif"] = hostile.tobytes()
    with Image.open(io.BytesIO(encode_image(image, OUTPUT_FORMATS["tiff"]))) as back:
        assert np.array_equal(np.asarray(back), RGB)
    random = np.random.default_rng(0)
    data = bytearray(exif_of(1).tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(200):
            damaged = bytearray(data)
            for at in random.integers(6, len(data), 3):
                damaged[at] = random.integers(0, 256)
            image.info["exif"] = bytes(damaged)
            with Image.open(io.BytesIO(encode_image(image, OUTPUT_FORMATS["tiff"]))) as back:
                assert np.array_equal(np.asarray(back), RGB)


@pytest.mark.parametrize("name", ["png", "webp", "tiff", "jpeg"])
def test_any_metadata_of_a_file_can_be_written(name: str) -> None:
    """A .gmx file hands its metadata on unchecked."""
    random = np.random.default_rng(0)
    picture = as_picture(GREY)
    for start in (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        for length in (1, 9, 40, 3000):
            noise = start + random.bytes(length)
            hostile = replace(picture, icc_profile=noise, exif=noise, xmp=noise)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = encode_image(to_pil(hostile), OUTPUT_FORMATS[name])
                with Image.open(io.BytesIO(data)) as back:
                    assert back.size == (WIDTH, HEIGHT)
                    if name != "jpeg":
                        assert np.array_equal(np.asarray(back.convert("L")), GREY)


def test_damaged_metadata_do_not_stop_a_good_picture(tmp_path: Path) -> None:
    """Every byte of the EXIF data of a JPEG is changed in turn."""
    path = tmp_path / "photo.jpg"
    Image.fromarray(RGB).save(path, exif=exif_of(1))
    data = path.read_bytes()
    begin = data.index(b"Exif\0\0") + 6
    with Image.open(path) as image:
        end = begin + len(image.info["exif"]) - 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for at in range(begin, end):
            for value in (0, 255, data[at] ^ 1):
                path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
                assert {WIDTH, HEIGHT} == set(load_picture(path).rgb.shape[:2])


def test_a_png_with_bombs_for_metadata_is_a_good_picture(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    bomb = zlib.compress(bytes(1 << 24), 9)
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    for kind, head in (
        (b"zTXt", b"Comment\0\0"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
        (b"iCCP", b"profile\0\0"),
    ):
        part = png_part(kind, head + bomb)
        path.write_bytes(png(WIDTH, HEIGHT, 8, 2, rows, part))
        with pytest.warns(MetadataWarning, match="of the PNG are dropped"):
            picture = load_picture(path)
        assert np.array_equal(picture.rgb, RGB)
        assert (picture.icc_profile, picture.xmp) == (None, None)
    path.write_bytes(png(WIDTH, HEIGHT, 8, 2, b"too little", part))
    with pytest.raises(UnsupportedImageError, match="cannot be decoded"):
        load_picture(path)


def test_a_bad_text_of_a_png_costs_neither_profile_nor_orientation() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * (1 << 21), zip=True)  # Pillow reads 1 MiB
    stream = io.BytesIO()
    options = {"pnginfo": texts, "exif": exif_of(6), "icc_profile": srgb_profile()}
    Image.fromarray(RGB).save(stream, "PNG", **options)
    stream.seek(0)
    with pytest.warns(MetadataWarning, match="^texts of the PNG are dropped: damaged or oversized"):
        picture = read_picture(stream)
    assert picture.rgb.shape == (WIDTH, HEIGHT, 3)
    assert picture.icc_profile == srgb_profile()
    assert picture.exif is not None


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("exif", b"Exif\0\0nonsense", "EXIF is dropped"),
        ("exif", b"Exif\0\0II*\0\xff\0\0\0", "EXIF is dropped"),
        ("xmp", b"<x>\0</x>", "XMP is dropped: it is not XML"),
        ("xmp", b"<x>" * MAX_METADATA, "XMP is dropped: it must have 1..4194304 bytes"),
        ("icc_profile", b"profile", "ICC profile is dropped: it has no header"),
    ],
)
def test_metadata_that_cannot_be_kept(key: str, value: bytes, reason: str) -> None:
    image = Image.fromarray(RGB)
    image.info[key] = value
    with pytest.warns(MetadataWarning, match=reason):
        picture = from_pil(image)
    assert (picture.icc_profile, picture.exif, picture.xmp) == (None, None, None)
    assert same(picture, Image.fromarray(RGB))


def test_png_texts_that_hold_exif(tmp_path: Path) -> None:
    data = exif_of(6).tobytes()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    Image.fromarray(RGB).save(tmp_path / "old.png", pnginfo=texts)
    picture = load_picture(tmp_path / "old.png")
    assert (picture.height, picture.width) == (WIDTH, HEIGHT)
    exif = Image.Exif()
    assert picture.exif is not None
    exif.load(picture.exif)
    assert exif[TIFF_ORIENTATION] == 1
    assert exif[ExifTags.Base.Artist] == "A. Nonymous"


def test_large_pictures_are_taken_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_BAND_PIXELS", 2 * WIDTH)
    profile = cmyk_profile()
    inks = Image.fromarray(RGB).convert("CMYK")
    whole = ImageCms.profileToProfile(
        inks,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert whole is not None
    inks.info["icc_profile"] = profile
    assert same(from_pil(inks), whole)
    for orientation in range(1, 9):
        image = Image.fromarray(RGBA)
        image.getexif()[TIFF_ORIENTATION] = orientation
        assert same(from_pil(image), ImageOps.exif_transpose(image))


@pytest.mark.parametrize("mode", ["1", "LA", "I;16", "I;16B", "P", "PA", "YCbCr"])
def test_bands_of_all_kinds_join(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (WIDTH, HEIGHT), bytes(RGBA[..., :2].tobytes()))
    else:
        image = Image.fromarray(RGB).convert("P" if mode == "PA" else mode.removesuffix("A"))
        image = image.convert(mode)
    if mode in ("P", "I;16"):
        image.info["transparency"] = image.getpixel((2, 3))
    whole = from_pil(image)
    monkeypatch.setattr(samples, "_BAND_PIXELS", 2 * WIDTH)
    assert same(from_pil(image), to_pil(whole))
    assert (whole.alpha is None) == (mode in ("1", "I;16B", "YCbCr"))


def test_16_bit_colour_files_lose_their_low_bytes_and_no_more(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for kind, channels in ((2, 3), (6, 4), (4, 2)):  # RGB, RGBA, grey with alpha
        wide = random.integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in wide)
        (tmp_path / "wide.png").write_bytes(png(WIDTH, HEIGHT, 16, kind, rows))
        picture = load_picture(tmp_path / "wide.png")
        high = (wide >> 8).astype(np.uint8)
        if kind == 4:
            high = high[..., [0, 0, 0, 1]]
        assert np.array_equal(picture.rgb, high[..., :3])
        if channels != 3:
            assert picture.alpha is not None
            assert np.array_equal(picture.alpha, high[..., 3])


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_alpha_plane_costs_next_to_nothing(value: int) -> None:
    alpha = np.full((512, 768), value, np.uint8)
    data = encode_alpha(alpha)
    assert len(data) < 80
    assert np.array_equal(decode_alpha(data, 768, 512), alpha)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"frames{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImageError, match="must have one frame, got 3"):
        load_picture(path)
    with Image.open(path) as image:
        assert from_pil(image.copy()).height == 8


def test_the_first_frame_of_an_mpo_photograph_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, format="MPO", save_all=True, append_images=frames[1:])
    assert load_picture(path).rgb[0, 0, 0] > 250


def test_the_pixel_limit_comes_before_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20000, 8000, 8, 0, b"no such pixels"))
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(PixelLimitError, match="20000 x 8000"):
            load_picture(path)
    path.write_bytes(png(20000, 20000, 8, 0, b"no such pixels"))
    # Beyond twice the limit Pillow raises an error of its own, and tells no width and height.
    with pytest.raises(PixelLimitError, match="max_pixels = 134217728 pixels, got 400000000; "):
        load_picture(path)
    assert before == Image.MAX_IMAGE_PIXELS
    assert MAX_PIXELS == 2**27


def test_warnings_as_errors_are_the_pixel_limit_too(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20000, 8000, 8, 0, b"no such pixels"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(PixelLimitError):
            load_picture(path)


def test_a_higher_limit_lifts_pillows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = tmp_path / "picture.png"
    Image.fromarray(RGBA).save(path)
    assert same(load_picture(path, WIDTH * HEIGHT), Image.fromarray(RGBA))
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(PixelLimitError):
        load_picture(path, WIDTH * HEIGHT - 1)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert np.array_equal(decode_alpha(encode_alpha(ALPHA), WIDTH, HEIGHT), ALPHA)


def test_readers_share_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends does not lower the limit for another that still reads."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    first, second = pillow_limit(100), pillow_limit(50)
    with first:
        second.__enter__()
        assert Image.MAX_IMAGE_PIXELS == 100
    assert Image.MAX_IMAGE_PIXELS == 50
    with pillow_limit(5):
        assert Image.MAX_IMAGE_PIXELS == 50
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pillow_limit(5):
        assert Image.MAX_IMAGE_PIXELS is None


def test_a_gmx_file_is_no_picture_to_code(tmp_path: Path) -> None:
    """Not even where Pillow can read it."""
    (tmp_path / "photo.png").write_bytes(b"\x8bGMX and the rest")
    with pytest.raises(UnsupportedImageError, match="it is a .gmx file; decompress it first"):
        load_picture(tmp_path / "photo.png")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_picture(tmp_path / "missing.png")
    (tmp_path / "text.png").write_bytes(b"hello")
    with pytest.raises(UnsupportedImageError, match="not an image"):
        load_picture(tmp_path / "text.png")
    stream = io.BytesIO()
    Image.fromarray(RGB).resize((300, 300)).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:-200])
    with pytest.raises(UnsupportedImageError, match="cannot be decoded"):
        load_picture(tmp_path / "cut.png")


def test_pillow_images_and_pictures_are_taken_as_they_are() -> None:
    picture = as_picture(Image.fromarray(RGBA))
    assert as_picture(picture) is picture
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("array", [GREY, RGB, RGBA])
def test_uint8_arrays_and_tensors(array: npt.NDArray[np.uint8]) -> None:
    torch = pytest.importorskip("torch")
    strided = np.repeat(array, 2, axis=0)[::2]
    read_only = array.copy()
    read_only.flags.writeable = False
    for image in (array, strided, read_only, torch.from_numpy(array.copy())):
        picture = as_picture(image)
        assert same(picture, Image.fromarray(array))
        assert picture.grey == (array.ndim == 2)
        assert picture.rgb.flags.c_contiguous
        assert picture.rgb.flags.writeable


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_float_tensors(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    levels = torch.from_numpy(RGB.transpose(2, 0, 1).copy())
    tensor = (levels.double() / 255).to(getattr(torch, dtype)).requires_grad_()
    picture = as_picture(tensor)
    if dtype == "bfloat16":
        assert np.abs(picture.rgb.astype(int) - RGB).max() <= 1
        return
    assert np.array_equal(picture.rgb, RGB)
    assert np.array_equal(as_picture(tensor.detach().numpy()).rgb, RGB)


def test_floats_may_miss_the_range_by_half_a_level() -> None:
    near = np.full((3, 1, 2), -0.0019, np.float32)
    near[..., 1] = 1.0019
    assert as_picture(near).rgb[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((3, 2, 2), 1.002), r"values in \[0, 1\]"),
        (np.full((3, 2, 2), -0.002), r"values in \[0, 1\]"),
        (np.full((3, 2, 2), np.nan), "must be finite"),
        (np.full((3, 2, 2), -np.inf), "must be finite"),
        (np.zeros((2, 2, 3)), r"must be \[3, H, W\], got \[2, 2, 3\]"),
        (np.zeros((1, 3, 2, 2)), r"must be \[3, H, W\]"),
        (np.zeros((3, 8, 8), np.uint8), r"must be \[H, W\], .* got \[3, 8, 8\]"),
        (np.zeros(3, np.uint8), r"must be \[H, W\]"),
        (np.zeros((2, 2, 3), np.uint16), "must be uint8 .* got uint16"),
        (np.zeros((2, 2), bool), "must be uint8 .* got bool"),
    ],
)
def test_arrays_that_do_not_fit(array: npt.NDArray[np.generic], reason: str) -> None:
    with pytest.raises(UnsupportedImageError, match=reason):
        as_picture(array)


@pytest.mark.parametrize("thing", [None, "photo.png", [[1, 2], [3, 4]], b"bytes"])
def test_other_things_are_a_type_error(thing: object) -> None:
    with pytest.raises(TypeError, match="image must be a Pillow image"):
        as_picture(thing)


def test_a_picture_checks_its_arrays() -> None:
    with pytest.raises(ValueError, match=r"rgb must be \[H, W, 3\]"):
        Picture(GREY)
    with pytest.raises(ValueError, match="rgb must be C-contiguous, got strides"):
        Picture(RGB[:, ::-1])
    with pytest.raises(ValueError, match="rgb must be uint8, got int16"):
        Picture(RGB.astype(np.int16))
    with pytest.raises(ValueError, match=r"alpha must be \[5, 7\] as rgb, got \[5, 6\]"):
        Picture(RGB, ALPHA[:, :6].copy())
    with pytest.raises(ValueError, match=r"alpha must be \[5, 7\] as rgb, got \[5, 7, 1\]"):
        Picture(RGB, ALPHA[..., None])


@pytest.mark.parametrize(
    ("picture", "mode"),
    [
        (as_picture(GREY), "L"),
        (as_picture(RGB), "RGB"),
        (as_picture(RGBA), "RGBA"),
        (Picture(np.repeat(GREY[..., None], 3, axis=2), ALPHA, grey=True), "LA"),
    ],
)
def test_to_pil(picture: Picture, mode: str) -> None:
    image = to_pil(picture)
    assert image.mode == mode
    assert same(from_pil(image), image)


def test_alpha_comes_back() -> None:
    data = encode_alpha(ALPHA)
    assert np.array_equal(decode_alpha(memoryview(data), WIDTH, HEIGHT), ALPHA)


def encoded(array: npt.NDArray[np.generic], image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, image_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        encoded(ALPHA, "TIFF"),
        encoded(RGB, "PNG"),
        encoded(ALPHA.astype(np.uint16), "PNG"),
        encoded(ALPHA > 9, "PNG"),
        encoded(ALPHA[:-1], "PNG"),
        encoded(ALPHA[:1, :2], "PNG"),
        encoded(ALPHA.T.copy(), "PNG"),
        encoded(ALPHA, "PNG", save_all=True, append_images=[Image.fromarray(GREY)]),
        png(30000, 30000, 8, 0, b""),
        png(WIDTH, HEIGHT, 8, 0, b"too little"),
        png(WIDTH, HEIGHT, 8, 0, b"\x09" * (WIDTH + 1) * HEIGHT),
    ],
)
def test_alpha_that_is_anything_else_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError, match="the alpha plane"):
        decode_alpha(data, WIDTH, HEIGHT)


def test_damaged_alpha_is_corrupt_or_harmless() -> None:
    data = bytearray(encode_alpha(ALPHA))
    for at in range(len(data)):
        for value in (0, 255, data[at] ^ 1):
            damaged = bytes(data[:at]) + bytes([value]) + bytes(data[at + 1 :])
            try:
                assert decode_alpha(damaged, WIDTH, HEIGHT).shape == (HEIGHT, WIDTH)
            except CorruptError:
                pass


def test_alpha_cut_short_is_corrupt() -> None:
    data = encode_alpha(ALPHA)
    for length in range(len(data) - 24):  # checksums and the end marker hold no pixels
        with pytest.raises(CorruptError):
            decode_alpha(data[:length], WIDTH, HEIGHT)


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
@pytest.mark.parametrize("array", [GREY, RGB, RGBA])
def test_output_formats(name: str, array: npt.NDArray[np.uint8]) -> None:
    output_format = OUTPUT_FORMATS[name]
    image = Image.fromarray(array)
    if array is RGBA and not output_format.keeps_alpha:
        with pytest.raises(UnsupportedImageError, match="cannot hold the picture's alpha"):
            encode_image(image, output_format)
        return
    with Image.open(io.BytesIO(encode_image(image, output_format))) as back:
        assert back.format == output_format.pillow_name
        if name != "jpeg":
            assert np.array_equal(np.asarray(back.convert(image.mode)), array)


def test_formats_keep_what_is_invisible() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    noise[::2, :, 3] = 0
    for one in OUTPUT_FORMATS.values():
        if one.keeps_alpha:
            with Image.open(io.BytesIO(encode_image(Image.fromarray(noise), one))) as back:
                assert np.array_equal(np.asarray(back.convert("RGBA")), noise), one.pillow_name


def test_a_picture_too_large_for_the_format() -> None:
    with pytest.raises(UnsupportedImageError, match="WEBP cannot hold a picture of 16384 x 1"):
        encode_image(Image.new("L", (16384, 1)), OUTPUT_FORMATS["webp"])


def test_suffixes() -> None:
    assert format_of_suffix(".JPG") is OUTPUT_FORMATS["jpeg"]
    assert format_of_suffix(".tif") is OUTPUT_FORMATS["tiff"]
    assert format_of_suffix(".gmx") is None
    assert format_of_suffix("") is None
