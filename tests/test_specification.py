# SPDX-License-Identifier: MIT
"""docs/bitstream.md is complete: a decoder written from it alone reads what the package writes."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest
import spec_decoder
from conftest import picture, random_model
from PIL import Image
from spec_decoder import SpecError

import groupedmixer

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
    """Both decoders agree. The latent is equal to the bit, or the checksum would have failed."""
    data = codec.compress(image, quality)
    reference = codec.decompress(data)
    pixels, alpha = spec_decoder.decode(data, weights_path)
    assert (reference.mode, reference.size) == (image.mode, image.size)
    if image.mode == "RGBA":
        np.testing.assert_array_equal(alpha, np.asarray(reference.getchannel("A")))
        np.testing.assert_array_equal(alpha, np.asarray(image.getchannel("A")))
        reference = reference.convert("RGB")
    else:
        assert alpha is None
    expected = np.asarray(reference)
    assert pixels.shape == expected.shape
    # The package synthesises in float32, so a sample at the border of rounding may differ.
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), rtol=0, atol=1)
    assert np.mean(pixels != expected) < 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"patch": (1, 2), "width": 64, "slices": 4, "lrp": False, "layers": 3},
        {
            "patch": (3, 2),
            "order": tuple((c, i, j) for j in (1, 0) for c in (1, 0) for i in range(3)),
        },
    ],
    ids=["two heads", "an order of its own"],
)
def test_other_configurations(change, tmp_path):
    config = dataclasses.replace(groupedmixer.get_config("tiny"), **change)
    weights = groupedmixer.save_weights(
        random_model(config, 3), tmp_path / "w.safetensors", "other"
    )
    check(groupedmixer.Codec(weights), tmp_path / "w.safetensors", picture(150, 181, 8), 5.5)


@pytest.mark.parametrize("quality", [0, 3.3, 7])
def test_rgb_of_odd_size(tiny_codec, weights_path, quality):
    check(tiny_codec, weights_path, picture(65, 129, 1), quality)


def test_rgba(tiny_codec, weights_path):
    check(tiny_codec, weights_path, with_alpha(picture(33, 50, 2)), 3.3)


def test_greyscale(tiny_codec, weights_path):
    check(tiny_codec, weights_path, picture(47, 20, 3).convert("L"), 3.3)


def test_one_pixel(tiny_codec, weights_path):
    check(tiny_codec, weights_path, picture(1, 1, 6), 7)


def test_two_tiles(tiny_codec, weights_path):
    check(tiny_codec, weights_path, picture(40, 1100, 4), 5.75)


def stream_of(data: bytes) -> slice:
    """Where the payload of STRM lies in the file."""
    start = data.index(b"STRM") + 13
    return slice(start, start + int.from_bytes(data[start - 8 : start], "little"))


def flip(data: bytes, position: int) -> bytearray:
    flipped = bytearray(data)
    flipped[position] ^= 0x10
    return flipped


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
