# SPDX-License-Identifier: MIT
"""docs/bitstream.md and docs/numerics.md are complete: a decoder written from them alone reads what
the package writes, to the bit."""

from __future__ import annotations

import dataclasses
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import spec_decoder
from conftest import picture, random_model
from PIL import Image
from spec_decoder import SpecError
from test_container import chunk
from test_images import exif_of, srgb_profile, xmp_of

import groupedmixer
from groupedmixer import container

OWN_ORDER = tuple((c, i, j) for j in (1, 0) for c in (1, 0) for i in (0, 1, 2))


@pytest.fixture(scope="module")
def weights_path(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("specification") / "tiny.safetensors"
    groupedmixer.save_weights(tiny_model, path, "tiny-test")
    return path


@pytest.fixture(scope="module")
def sample(tiny_codec) -> bytes:
    return tiny_codec.compress(picture(24, 40, 5), 3)


def with_alpha(image: Image.Image) -> Image.Image:
    gradient = np.add.outer(np.arange(image.height), np.arange(image.width)) % 256
    image.putalpha(Image.fromarray(gradient.astype(np.uint8)))
    return image


def check(codec, weights_path: Path, image: Image.Image, quality: float) -> None:
    """Both decoders agree to the bit, and the independent one finds the file's checksums."""
    data = codec.compress(image, quality)
    decoded = spec_decoder.decode(data, weights_path)
    latent = codec.decode_latent(container.parse(data))[0].permute(1, 2, 0).cpu().numpy()
    np.testing.assert_array_equal(decoded.latent, latent, strict=True)
    reference = codec.decompress(data)
    assert (reference.mode, reference.size) == (image.mode, image.size)
    if image.mode == "RGBA":
        np.testing.assert_array_equal(decoded.alpha, np.asarray(reference.getchannel("A")))
        np.testing.assert_array_equal(decoded.alpha, np.asarray(image.getchannel("A")))
        reference = reference.convert("RGB")
    else:
        assert decoded.alpha is None
    assert decoded.metadata == {
        kind: image.info[key].removeprefix(b"Exif\0\0")
        for kind, key in ((b"ICCP", "icc_profile"), (b"EXIF", "exif"), (b"XMPP", "xmp"))
        if key in image.info
    }
    np.testing.assert_array_equal(decoded.pixels, np.asarray(reference), strict=True)


@pytest.mark.parametrize(
    "change",
    [
        {"patch": (1, 2), "width": 64, "slices": 4, "lrp": False, "layers": 3},
        {"patch": (3, 2), "order": OWN_ORDER},
        {"latent_channels": 160, "width": 64, "slices": 1},
    ],
    ids=["two heads", "an order of its own", "a segment over both embeddings"],
)
def test_other_configurations(change, tmp_path):
    config = dataclasses.replace(groupedmixer.get_config("tiny"), **change)
    weights = groupedmixer.save_weights(
        random_model(config, 3), tmp_path / "w.safetensors", "other"
    )
    check(groupedmixer.Codec(weights), tmp_path / "w.safetensors", picture(150, 100, 8), 5.5)


@pytest.mark.parametrize("quality", [0, 3.3, 7])
def test_rgb_of_odd_size(tiny_codec, weights_path, quality):
    check(tiny_codec, weights_path, picture(65, 129, 1), quality)


def test_several_windows_each_way(tiny_codec, weights_path):
    check(tiny_codec, weights_path, picture(260, 280, 9), 4)


def test_rgba(tiny_codec, weights_path):
    check(tiny_codec, weights_path, with_alpha(picture(33, 50, 2)), 3.3)


def test_constant_alpha(tiny_codec, weights_path):
    image = picture(33, 50, 2)
    image.putalpha(77)
    check(tiny_codec, weights_path, image, 3.3)


def test_metadata(tiny_codec, weights_path):
    image = picture(20, 30, 2)
    image.info["icc_profile"] = srgb_profile()
    image.info["exif"] = exif_of(1).tobytes()
    image.info["xmp"] = xmp_of(1)
    check(tiny_codec, weights_path, image, 3.3)


def test_metadata_out_of_place(sample, weights_path):
    end = 7 + int.from_bytes(sample[5:7], "little") + 4
    head = bytearray(sample[:end])
    exif = chunk(b"EXIF", b"II*\0", flags=0)
    for chunks in (
        [exif, sample[end:], exif],  # behind the streams
        [exif, exif, sample[end:]],
        [chunk(b"EXIF", b"II*\0", flags=1), sample[end:]],
        [chunk(b"EXIF", b"", flags=0), sample[end:]],
    ):
        head[end - 6 : end - 4] = (len(chunks) + 1).to_bytes(2, "little")
        head[end - 4 :] = zlib.crc32(head[: end - 4]).to_bytes(4, "little")
        with pytest.raises(SpecError, match="EXIF"):
            spec_decoder.decode(bytes(head) + b"".join(chunks), weights_path)


def test_greyscale(tiny_codec, weights_path):
    check(tiny_codec, weights_path, picture(47, 20, 3).convert("L"), 3.3)


def test_one_pixel(tiny_codec, weights_path):
    check(tiny_codec, weights_path, picture(1, 1, 6), 7)


def test_two_tiles(tiny_codec, weights_path):
    check(tiny_codec, weights_path, picture(40, 1100, 4), 5.75)


def test_bundled_weights():
    codec = groupedmixer.load("rt")
    path = Path(groupedmixer.__file__).parent / "weights" / f"{codec.name}.safetensors"
    check(codec, path, picture(33, 50, 7), 4)


def stream_of(data: bytes) -> slice:
    """Where the payload of STRM lies in the file."""
    start = data.index(b"STRM") + 13
    return slice(start, start + int.from_bytes(data[start - 8 : start], "little"))


def flip(data: bytes, position: int) -> bytearray:
    flipped = bytearray(data)
    flipped[position] ^= 0x10
    return flipped


def test_other_arithmetic(sample, weights_path):
    changed = bytearray(sample.replace(b"f32-seg128-kv16-v1", b"f32-seg128-kv16-v2"))
    end = 7 + int.from_bytes(sample[5:7], "little")
    changed[end : end + 4] = zlib.crc32(changed[:end]).to_bytes(4, "little")
    with pytest.raises(SpecError, match="arithmetic"):
        spec_decoder.decode(bytes(changed), weights_path)


def test_other_checksum(sample, weights_path):
    start = sample.index(b"TILE")
    changed = flip(sample, start + 13 + 4 + 4)  # behind the count and the first length
    end = start + 13 + 12
    changed[end : end + 4] = zlib.crc32(changed[start:end]).to_bytes(4, "little")
    with pytest.raises(SpecError, match="another checksum"):
        spec_decoder.decode(bytes(changed), weights_path)


def test_flipped_byte_breaks_the_chunk_crc(sample, weights_path):
    stream = stream_of(sample)
    flipped = flip(sample, (stream.start + stream.stop) // 2)
    with pytest.raises(SpecError, match="CRC of chunk"):
        spec_decoder.decode(bytes(flipped), weights_path)


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 0.999])
def test_flipped_byte_behind_a_repaired_crc(sample, weights_path, part):
    """Then it is up to the rules of the stream and the checksum of the tile."""
    stream = stream_of(sample)
    flipped = flip(sample, stream.start + int(part * (stream.stop - stream.start)))
    crc = zlib.crc32(flipped[stream.start - 13 : stream.stop])
    flipped[stream.stop : stream.stop + 4] = crc.to_bytes(4, "little")
    with pytest.raises(SpecError):
        spec_decoder.decode(bytes(flipped), weights_path)


def test_truncated_file(sample, weights_path):
    for size in (0, 3, 20, len(sample) // 2, len(sample) - 1):
        with pytest.raises(SpecError):
            spec_decoder.decode(sample[:size], weights_path)


def test_example_of_the_specification():
    table = spec_decoder.Table(-1, [1024, 2048, 512, 512])
    stream = spec_decoder.Stream(bytes.fromhex("00 02 db040400 00ee 0603"))
    assert stream.decode_group([0] * 7, [table], 0) == [0, -1, 5, 1, -3, 1, 1]
    stream.finish()


def is_nearest(x: np.float32, exact: Fraction) -> bool:
    """No other float32 is nearer; of two that are as near, x is the even one."""
    others = (np.nextafter(x, np.float32(side)) for side in (-np.inf, np.inf))
    distance = abs(Fraction(float(x)) - exact)
    other = min(abs(Fraction(float(y)) - exact) for y in others)
    return distance < other or (distance == other and x.view(np.int32) % 2 == 0)


def test_fused_multiply_add_is_exact():
    """Also where a sum misses the middle of two numbers by less than float64 tells."""
    random = np.random.default_rng(0)
    count = 1000
    mantissa = random.integers(2**23, 2**24, (3, count)).astype(np.float32)
    exponent = random.integers(-60, 10, (3, count))
    any_size = np.ldexp(mantissa, exponent)
    any_size *= random.choice(np.float32([-1, 1]), any_size.shape)
    miss = np.ldexp(np.float32(1), -random.integers(1, 24, count))
    half = np.float32(2**-12)
    middle = (half * (1 + miss), half * (1 - miss), np.ldexp(mantissa[0], -23))
    subnormal = (mantissa[0], np.ldexp(mantissa[1], -172), np.ldexp(mantissa[2], -160))
    cancelling = (any_size[0], any_size[1], -(any_size[0] * any_size[1]))
    for a, b, c in (any_size, middle, subnormal, cancelling):
        results = spec_decoder.fma(a, b, c)
        assert results.dtype == np.float32
        for x, *factors in zip(results, a, b, c, strict=True):
            p, q, r = (Fraction(float(factor)) for factor in factors)
            assert is_nearest(x, p * q + r)
    product = middle[0].astype(np.float64) * middle[1]
    assert np.any((product + middle[2]).astype(np.float32) != spec_decoder.fma(*middle))
