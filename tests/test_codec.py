# SPDX-License-Identifier: MIT
"""From pictures to files and back, with a tiny model: sizes, kinds, damage, processes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture, random_model
from PIL import Image

import groupedmixer
from groupedmixer import container
from groupedmixer.coding import LatentCoder
from groupedmixer.errors import (
    ArithmeticMismatchError,
    CorruptError,
    GmxError,
    NotGmxError,
    PixelLimitError,
    TruncatedError,
    UnsupportedVersionError,
    WrongWeightsError,
)
from groupedmixer.export import load_state, save_weights
from groupedmixer.stages import Stages

SIZES = [(1, 1), (1, 7), (17, 33), (65, 129), (513, 769)]


@pytest.mark.parametrize("size", SIZES)
def test_any_size(tiny_codec: groupedmixer.Codec, size: tuple[int, int]) -> None:
    data = tiny_codec.compress(picture(*size), 3.5)
    image = tiny_codec.decompress(data)
    assert image.mode == "RGB"
    assert (image.height, image.width) == size
    assert tiny_codec.compress(picture(*size), 3.5) == data


@pytest.mark.parametrize(
    ("mode", "result"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"),
     ("CMYK", "RGB"), ("YCbCr", "RGB"), ("I;16", "L")],
)  # fmt: skip
def test_any_kind(tiny_codec: groupedmixer.Codec, mode: str, result: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50)
    else:
        image = picture(30, 40).convert(mode)
    decoded = tiny_codec.decompress(tiny_codec.compress(image))
    assert decoded.mode == result
    assert decoded.size == (40, 30)


def test_alpha_is_lossless(tiny_codec: groupedmixer.Codec) -> None:
    image = picture(45, 61)
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61), np.uint8))
    image.putalpha(alpha)
    decoded = tiny_codec.decompress(tiny_codec.compress(image))
    assert np.array_equal(np.asarray(decoded.getchannel("A")), np.asarray(alpha))


def test_arrays_and_tensors_are_images_too(tiny_codec: groupedmixer.Codec) -> None:
    image = picture(33, 20)
    array = np.asarray(image)
    data = tiny_codec.compress(image)
    assert tiny_codec.compress(array) == data
    assert tiny_codec.compress(torch.from_numpy(array.copy())) == data
    floats = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
    assert tiny_codec.compress(floats) == data
    with pytest.raises((TypeError, ValueError, GmxError)):
        tiny_codec.compress("a path")


def test_greyscale_comes_back_grey(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(20, 20).convert("L"))
    assert container.parse_header(data).colour_space == container.ColourSpace.GREY
    assert tiny_codec.decompress(data).mode == "L"


def test_decoded_latent_is_the_encoders(tiny_model: groupedmixer.GroupedMixer) -> None:
    coder = tiny_model.latent_codec.coder()
    y = torch.randn(1, 32, 6, 10) * 4
    coded = coder.encode(y, 6.2)
    decoded = coder.decode(coded.streams, (6, 10), 6.2)
    assert torch.equal(coded.y_hat, decoded.y_hat)
    assert coded.checksums == decoded.checksums
    # the latent is within half a step (and the correction of lrp) where it is not skipped
    scaled = y * tiny_model.latent_codec.gain[0, 0]
    assert scaled.shape == decoded.y_hat.shape


@pytest.mark.parametrize("config", [
    dataclasses.replace(groupedmixer.get_config("tiny"), patch=(3, 1), slices=4),
    dataclasses.replace(groupedmixer.get_config("tiny"), lrp=False, slices=1, patch=(1, 1)),
])  # fmt: skip
def test_tiles_of_any_grouping_round_trip(config: groupedmixer.Config) -> None:
    codec = random_model(config).latent_codec
    coder: LatentCoder = codec.coder()
    y = torch.randn(1, 32, 39, 20) * 3
    coded = coder.encode(y, 4.0, tile=16)
    assert len(coded.streams) == (3 * 2 if config.patch == (3, 1) else 3 * 2)
    decoded = coder.decode(coded.streams, (39, 20), 4.0, tile=16)
    assert torch.equal(coded.y_hat, decoded.y_hat)
    assert coded.checksums == decoded.checksums


def test_large_latents_escape_and_come_back(tiny_model: groupedmixer.GroupedMixer) -> None:
    coder = tiny_model.latent_codec.coder()
    y = torch.randn(1, 32, 4, 4) * 30000
    coded = coder.encode(y, 7.0)
    assert torch.equal(coder.decode(coded.streams, (4, 4), 7.0).y_hat, coded.y_hat)


def test_bad_latents_are_refused(tiny_model: groupedmixer.GroupedMixer) -> None:
    coder = tiny_model.latent_codec.coder()
    with pytest.raises(ValueError, match="y must be finite"):
        coder.encode(torch.full((1, 32, 4, 4), float("nan")), 4.0)
    with pytest.raises(ValueError, match=r"y must be \[1, 32, H, W\].*got \[1, 31, 4, 4\]"):
        coder.encode(torch.zeros(1, 31, 4, 4), 4.0)
    with pytest.raises(ValueError, match="streams must be one a tile, 1, got 2"):
        coder.decode([b"", b""], (4, 4), 4.0)


def test_every_truncation_is_an_error(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(40, 40))
    for length in range(len(data)):
        with pytest.raises(TruncatedError if length else NotGmxError):
            tiny_codec.decompress(data[:length])


def test_flipped_bits_are_errors(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(40, 40))
    positions = random.Random(0).sample(range(8 * len(data)), 400)
    for position in positions:
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(GmxError):
            tiny_codec.decompress(damaged)


def test_damage_under_a_repaired_checksum_is_an_error(tiny_codec: groupedmixer.Codec) -> None:
    """A stream whose bytes were changed on purpose: never noise, a crash or a hang."""
    file = container.parse(tiny_codec.compress(picture(40, 40)))
    stream = bytes(file.tiles[0].stream)
    for position in random.Random(1).sample(range(8 * len(stream)), 200):
        damaged = bytearray(stream)
        damaged[position // 8] ^= 1 << position % 8
        tile = dataclasses.replace(file.tiles[0], stream=bytes(damaged))
        forged = container.write(dataclasses.replace(file, tiles=(tile,)))
        with pytest.raises((ArithmeticMismatchError, CorruptError)):
            tiny_codec.decompress(forged)


def test_foreign_newer_and_oversized_files(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(40, 40))
    with pytest.raises(NotGmxError):
        tiny_codec.decompress(b"")
    with pytest.raises(NotGmxError):
        tiny_codec.decompress(b"A text file, of some length, with nothing of ours in it.\n" * 9)
    with pytest.raises(UnsupportedVersionError):
        tiny_codec.decompress(data[:4] + b"\x01" + data[5:])
    with pytest.raises(PixelLimitError):
        tiny_codec.decompress(data, max_pixels=1599)
    tiny_codec.decompress(data, max_pixels=1600)
    header = dataclasses.replace(container.parse(data).header, arithmetic_id="from-the-future")
    other = container.write(dataclasses.replace(container.parse(data), header=header))
    with pytest.raises(UnsupportedVersionError, match="from-the-future"):
        tiny_codec.decompress(other)


def test_wrong_weights_are_refused_by_name(tiny_codec: groupedmixer.Codec) -> None:
    other = groupedmixer.Codec(random_model(groupedmixer.get_config("tiny"), seed=5), "tiny-other")
    data = other.compress(picture(20, 20))
    with pytest.raises(WrongWeightsError, match="'tiny-other'.*'tiny-test'"):
        tiny_codec.decompress(data)
    with pytest.raises(WrongWeightsError, match="'tiny-other'"):
        groupedmixer.load_for(data)


def test_a_fresh_process_decodes_the_same_bytes(
    tiny_model: groupedmixer.GroupedMixer, tiny_codec: groupedmixer.Codec, tmp_path: Path
) -> None:
    save_weights(tiny_model, tmp_path / "w.safetensors", "tiny-test")
    (tmp_path / "in.gmx").write_bytes(tiny_codec.compress(picture(70, 90)))
    script = (
        "import sys, hashlib, groupedmixer\n"
        "codec = groupedmixer.load(sys.argv[1])\n"
        "image = codec.decompress(open(sys.argv[2], 'rb').read())\n"
        "print(hashlib.sha256(image.tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "w.safetensors", tmp_path / "in.gmx"]
    outputs = {subprocess.run(command, check=True, capture_output=True).stdout for _ in range(2)}
    here = tiny_codec.decompress((tmp_path / "in.gmx").read_bytes())
    assert outputs == {hashlib.sha256(here.tobytes()).hexdigest().encode() + b"\n"}


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "3"},
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "GROUPEDMIXER_ISA": "scalar"},
    ],
    ids=["1 thread", "3 threads", "no vectors", "avx2"],
)
def test_files_decode_under_other_arithmetic(
    tiny_model: groupedmixer.GroupedMixer,
    tiny_codec: groupedmixer.Codec,
    tmp_path: Path,
    environment: dict[str, str],
) -> None:
    """Other thread counts and instruction sets sum in other orders; the latent is the same."""
    save_weights(tiny_model, tmp_path / "w.safetensors", "tiny-test")
    (tmp_path / "in.gmx").write_bytes(tiny_codec.compress(picture(200, 300), 6.0))
    script = (
        "import sys, groupedmixer\n"
        "codec = groupedmixer.load(sys.argv[1])\n"
        "codec.decompress(open(sys.argv[2], 'rb').read())\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "w.safetensors", tmp_path / "in.gmx"]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def test_weights_files(tiny_model: groupedmixer.GroupedMixer, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    mark = save_weights(tiny_model, path, "tiny-test")
    codec = groupedmixer.load(str(path))
    assert (codec.name, codec.fingerprint) == ("tiny-test", mark)
    name, state = load_state(path)
    parameters = dict(tiny_model.named_parameters())
    assert name == "tiny-test"
    assert all(state[key].dtype == torch.float16 for key in parameters)
    (tmp_path / "junk.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        groupedmixer.load(str(tmp_path / "junk.safetensors"))
    with pytest.raises(OSError, match="absent"):
        groupedmixer.load(str(tmp_path / "absent.safetensors"))


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="there are none for 'base' yet"):
        groupedmixer.load("base")
    with pytest.raises(ValueError, match="got 'nonesuch'"):
        groupedmixer.load("nonesuch")
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'mps'"):
        groupedmixer.load("rt", device="mps")


def test_threads_share_a_codec(tiny_codec: groupedmixer.Codec) -> None:
    images = [picture(60, 50, seed) for seed in range(4)]
    expected = [tiny_codec.compress(image) for image in images]
    found: dict[int, bytes] = {}

    def work(index: int) -> None:
        for _ in range(3):
            found[index] = tiny_codec.compress(images[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == expected


def test_stages_add_up(tiny_codec: groupedmixer.Codec) -> None:
    encode, decode = Stages(), Stages()
    data = tiny_codec.compress(picture(64, 64), stages=encode)
    tiny_codec.decompress(data, stages=decode)
    names = {"transform", "hyper", "entropy_model", "rans", "file"}
    assert set(encode.seconds) == set(decode.seconds) == names
    assert all(seconds > 0 for seconds in encode.seconds.values())
