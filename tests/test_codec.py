# SPDX-License-Identifier: MIT
"""From pictures to files and back, with a tiny model: sizes, kinds, damage, processes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import golden_cases
import numpy as np
import pytest
import torch
from conftest import picture, random_model
from PIL import ExifTags, Image, ImageOps
from test_container import chunk, repaired
from test_images import exif_of, srgb_profile, xmp_of

import groupedmixer
from groupedmixer import cli, container, tiled
from groupedmixer.coding import CodedTile, LatentCoder
from groupedmixer.errors import (
    ArithmeticMismatchError,
    GmxError,
    MetadataWarning,
    NotGmxError,
    PixelLimitError,
    TruncatedError,
    UnsupportedVersionError,
    WrongWeightsError,
)
from groupedmixer.export import export_weights, load_weights, save_weights
from groupedmixer.image_formats import OUTPUT_FORMATS, encode_image
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_turned_once(
    tiny_codec: groupedmixer.Codec, orientation: int, tmp_path: Path
) -> None:
    """From a JPEG file to a .gmx file to a JPEG file, with all that says how it stands."""
    image = picture(40, 60)
    image.save(
        tmp_path / "turned.jpg",
        exif=exif_of(orientation),
        xmp=xmp_of(orientation),
        icc_profile=srgb_profile(),
    )
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "turned.jpg"))
    data = tiny_codec.compress(Image.open(tmp_path / "turned.jpg"))
    decoded = tiny_codec.decompress(data)
    expected = tiny_codec.decompress(tiny_codec.compress(np.asarray(upright)))
    assert decoded.size == upright.size
    assert np.array_equal(np.asarray(decoded), np.asarray(expected))
    assert decoded.getexif().get(ExifTags.Base.Orientation) == 1
    assert decoded.info["icc_profile"] == srgb_profile()
    jpeg = encode_image(decoded, OUTPUT_FORMATS["jpeg"])
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg)))
    assert shown.size == upright.size
    difference = np.asarray(shown, float) - np.asarray(decoded)
    other = np.asarray(decoded.transpose(Image.Transpose.ROTATE_180), float)
    assert np.abs(difference).mean() < np.abs(other - np.asarray(decoded)).mean() / 2
    assert shown.getexif()[ExifTags.Base.Artist] == "A. Nonymous"


def test_metadata_may_be_left_out(tiny_codec: groupedmixer.Codec) -> None:
    image = picture(20, 30)
    bare = tiny_codec.compress(image)
    image.info["icc_profile"] = srgb_profile()
    image.info["exif"] = exif_of(1).tobytes()
    image.info["xmp"] = xmp_of(1)
    assert tiny_codec.compress(image, metadata=False) == bare
    full = tiny_codec.compress(image)
    assert [one.type for one in container.read_chunks(full)] == [
        "ICCP", "EXIF", "XMPP", "TILE", "STRM",
    ]  # fmt: skip
    for box in (None, (3, 4, 10, 11)):
        decoded = tiny_codec.decompress(full, region=box)
        assert decoded.info == image.info
        assert np.array_equal(
            np.asarray(decoded), np.asarray(tiny_codec.decompress(bare, region=box))
        )
    assert tiny_codec.decompress(bare).info == {}


def test_damaged_metadata_are_a_warning_of_the_codec(tiny_codec: groupedmixer.Codec) -> None:
    image = picture(20, 30)
    bare = tiny_codec.compress(image)
    image.info["exif"] = b"Exif\0\0nonsense"
    with pytest.warns(MetadataWarning, match="EXIF is dropped"):
        assert tiny_codec.compress(image) == bare


def test_arrays_and_tensors_are_images_too(tiny_codec: groupedmixer.Codec) -> None:
    image = picture(33, 20)
    array = np.asarray(image)
    data = tiny_codec.compress(image)
    assert tiny_codec.compress(array) == data
    assert tiny_codec.compress(torch.from_numpy(array.copy())) == data
    floats = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
    assert tiny_codec.compress(floats) == data
    with pytest.raises(TypeError, match="image must be"):
        tiny_codec.compress("a path")


def test_greyscale_comes_back_grey(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(20, 20).convert("L"))
    assert container.parse_header(data).colour_space == container.ColourSpace.GREY
    assert tiny_codec.decompress(data).mode == "L"


SMALL_ELIC = dataclasses.replace(
    groupedmixer.get_config("tiny"),
    transform="elic",
    transform_width=(8, 8),
    transform_depth=(0, 0),
)


def test_the_picture_comes_back() -> None:
    """A fresh model is a block-transform codec: colours and sides must be where they were."""
    torch.manual_seed(0)
    config = dataclasses.replace(groupedmixer.get_config("tiny"), latent_channels=256)
    model = groupedmixer.GroupedMixer(config).eval()
    model.latent_codec.context.head_bias.data[:, 128:] = 3.0
    codec = groupedmixer.Codec(groupedmixer.export_weights(model, "fresh"))
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8))
    image = coarse.resize((100, 70), Image.Resampling.BICUBIC)
    decoded = np.asarray(codec.decompress(codec.compress(image, 7.0)), np.float64)
    assert np.abs(decoded - np.asarray(image)).mean() < 2
    decoded = np.asarray(codec.decompress(codec.compress(image.convert("L"), 7.0)), np.float64)
    assert np.abs(decoded - np.asarray(image.convert("L"))).mean() < 2


def test_decoded_latent_is_the_encoders(tiny_model: groupedmixer.GroupedMixer) -> None:
    coder, config = tiny_model.latent_codec.coder(), tiny_model.config
    y = torch.randn(1, config.latent_channels, 6, 10) * 4
    coded = coder.encode(y, [6.2])[0]
    assert torch.equal(coder.decode([coded.tiles], (6, 10), [6.2]), coded.y_hat)
    assert coded.num_symbols == y.numel() + config.hyper_channels * 2 * 3
    assert 0 < coded.num_coded <= coded.num_symbols


@pytest.mark.parametrize(
    ("patch", "slices", "tiles"), [((3, 1), 4, 3 * 2), ((1, 1), 1, 3 * 2), ((9, 4), 2, 5 * 2)]
)
def test_tiles_of_any_grouping_round_trip(patch: tuple[int, int], slices: int, tiles: int) -> None:
    tiny = groupedmixer.get_config("tiny")
    codec = random_model(dataclasses.replace(tiny, patch=patch, slices=slices)).latent_codec
    coder: LatentCoder = codec.coder()
    height = 45 if patch[0] == 9 else 39
    y = torch.randn(1, tiny.latent_channels, height, 20) * 3
    coded = coder.encode(y, [4.0], tile=16)[0]
    assert len(coded.tiles) == tiles
    assert torch.equal(coder.decode([coded.tiles], (height, 20), [4.0], tile=16), coded.y_hat)
    swapped = [coded.tiles[1], coded.tiles[0], *coded.tiles[2:]]
    with pytest.raises(ArithmeticMismatchError, match="tile 0"):
        coder.decode([swapped], (height, 20), [4.0], tile=16)


def test_large_latents_escape_and_come_back(tiny_model: groupedmixer.GroupedMixer) -> None:
    coder = tiny_model.latent_codec.coder()
    y = torch.randn(1, tiny_model.config.latent_channels, 4, 4) * 30000
    coded = coder.encode(y, [7.0])[0]
    assert coded.num_escaped > 0
    assert torch.equal(coder.decode([coded.tiles], (4, 4), [7.0]), coded.y_hat)


def test_bad_latents_are_refused(tiny_model: groupedmixer.GroupedMixer) -> None:
    coder, m = tiny_model.latent_codec.coder(), tiny_model.config.latent_channels
    with pytest.raises(FloatingPointError, match="not finite"):
        coder.encode(torch.full((1, m, 4, 4), float("nan")), [4.0])
    with pytest.raises(ValueError, match=rf"y must be \[B, H, W, {m}\].*got \[1, 4, 4, {m - 1}\]"):
        coder.encode(torch.zeros(1, m - 1, 4, 4), [4.0])
    with pytest.raises(ValueError, match="height must be a multiple of 2, .* got 5"):
        coder.encode(torch.zeros(1, m, 5, 4), [4.0])
    with pytest.raises(ValueError, match="tiles must be 1, got 2"):
        coder.decode([[CodedTile(b"", 0)] * 2], (4, 4), [4.0])


def test_weights_that_are_nan_are_an_error(tiny_model: groupedmixer.GroupedMixer) -> None:
    broken = copy.deepcopy(tiny_model)
    with torch.no_grad():
        broken.latent_codec.context.embed_group.fill_(float("nan"))
    with pytest.raises(ValueError, match="embed_group must be finite .* got nan"):
        broken.compress(torch.rand(1, 3, 32, 32))


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
        with pytest.raises(ArithmeticMismatchError):
            tiny_codec.decompress(forged)


def damaged_payloads(source: random.Random, data: bytes) -> bytes:
    """Some bytes of the tile table or of the streams changed, removed or added, well framed."""
    chunks = container.read_chunks(data)
    framed = sum(len(chunk(one.type.encode(), bytes(one.payload))) for one in chunks)
    result = data[: len(data) - framed]
    chosen = source.choice(("TILE", "STRM", "STRM"))
    for one in chunks:
        payload = bytearray(one.payload)
        for _ in range(source.randint(1, 3) if one.type == chosen else 0):
            damage(source, payload)
        result += chunk(one.type.encode(), bytes(payload))
    return result


def damage(source: random.Random, data: bytearray) -> None:
    at = source.randrange(len(data))
    action = source.randrange(5)
    if action == 0:
        data[at] ^= 1 << source.randrange(8)
    elif action == 1:
        data[at] = source.choice((0, 1, 127, 128, 255))
    elif action == 2 and len(data) > 8:
        del data[at : at + source.randint(1, 4)]
    elif action == 3:
        data[at:at] = source.randbytes(source.randint(1, 4))
    else:
        other = source.randrange(len(data))
        data[at], data[other] = data[other], data[at]


@pytest.mark.parametrize("name", ["pixel", "odd", "alpha", "tiles"])
def test_any_damage_under_repaired_checksums_is_an_error_or_harmless(name: str) -> None:
    codec = groupedmixer.Codec(load_weights(golden_cases.WEIGHTS))
    data = (golden_cases.GOLDEN / f"{name}.gmx").read_bytes()
    original, expected = container.parse(data), codec.decompress(data)
    source = random.Random(f"damage of {name}")
    refused = 0
    for _ in range(800):
        if source.random() < 0.7:
            damaged = damaged_payloads(source, data)
        else:  # anywhere, header and frames too
            anywhere = bytearray(data)
            damage(source, anywhere)
            damaged = repaired(bytes(anywhere))
        try:
            decoded = codec.decompress(damaged, max_pixels=100_000)
        except GmxError:
            refused += 1
            continue
        file = container.parse(damaged)
        assert decoded.size == (file.header.width, file.header.height)
        if (file.header, file.alpha) == (original.header, original.alpha):
            assert decoded.tobytes() == expected.tobytes()
    assert refused > 400


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
    model = random_model(groupedmixer.get_config("tiny"), seed=5)
    other = groupedmixer.Codec(export_weights(model, "tiny-other"))
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


def test_weights_files(tiny_model: groupedmixer.GroupedMixer, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    saved = save_weights(tiny_model, path, "tiny-test")
    codec = groupedmixer.load(path)
    assert (codec.name, codec.fingerprint) == ("tiny-test", saved.fingerprint)
    weights = load_weights(path)
    parameters = dict(tiny_model.named_parameters())
    assert all(weights.state[key].dtype == torch.float16 for key in parameters)
    assert export_weights(weights.model(), "tiny-test").fingerprint == saved.fingerprint
    with pytest.raises(ValueError, match="name must be 1..32 characters"):
        save_weights(tiny_model, path, "My Model")
    (tmp_path / "junk.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        groupedmixer.load(str(tmp_path / "junk.safetensors"))
    with pytest.raises(OSError, match="absent"):
        groupedmixer.load(str(tmp_path / "absent.safetensors"))


def test_the_command_line_with_real_weights(
    tiny_model: groupedmixer.GroupedMixer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, image, coded, restored = (
        str(tmp_path / name) for name in ("w.safetensors", "a.png", "a.gmx", "b.png")
    )
    save_weights(tiny_model, weights, "tiny-test")
    picture(40, 50).save(image)
    assert cli.main(["compress", image, coded, "--model", weights]) == 0
    assert cli.main(["decompress", coded, restored, "--model", weights]) == 0
    assert Image.open(restored).size == (50, 40)
    assert cli.main(["decompress", coded, "-f"]) == 1
    assert "the file needs the weights 'tiny-test'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert cli.main(["decompress", coded, "-f", "--device", "cuda"]) == 1
        assert "PyTorch sees no CUDA device" in capsys.readouterr().err


def test_running_out_of_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    codec = groupedmixer.Codec(export_weights(random_model(SMALL_ELIC), "elic"))
    data = codec.compress(picture(20, 20))
    monkeypatch.setattr(codec, "_g_s", fail)
    monkeypatch.setattr(codec, "_g_a", fail)
    with pytest.raises(MemoryError):
        codec.decompress(data)
    with pytest.raises(MemoryError):
        codec.compress(picture(20, 20))


def test_a_codec_made_in_inference_mode(tiny_model: groupedmixer.GroupedMixer) -> None:
    with torch.inference_mode():
        codec = groupedmixer.Codec(export_weights(tiny_model, "tiny-test"))
    assert codec.decompress(codec.compress(picture(20, 30))).size == (30, 20)


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
    pixels = [tiny_codec.decompress(data).tobytes() for data in expected]

    def work(index: int) -> bool:
        same = True
        for _ in range(3):
            data = tiny_codec.compress(images[index])
            same &= data == expected[index]
            same &= tiny_codec.decompress(data).tobytes() == pixels[index]
        return same

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4


def test_stages_add_up(tiny_codec: groupedmixer.Codec) -> None:
    encode, decode = Stages(), Stages()
    start = time.perf_counter()
    data = tiny_codec.compress(picture(600, 600), stages=encode)
    middle = time.perf_counter()
    tiny_codec.decompress(data, stages=decode)
    end = time.perf_counter()
    names = {"transform", "hyper", "entropy_model", "rans", "file"}
    for stages, total in ((encode, middle - start), (decode, end - middle)):
        assert set(stages.seconds) == names
        assert all(seconds > 0 for seconds in stages.seconds.values())
        assert sum(stages.seconds.values()) <= total


def test_the_command_line_says_nothing_it_need_not(
    tiny_model: groupedmixer.GroupedMixer, tmp_path: Path
) -> None:
    """No warnings of libraries on stderr; one line for each bad file, which names it."""
    save_weights(tiny_model, tmp_path / "w.safetensors", "tiny-test")
    picture(20, 30).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    command = [sys.executable, "-m", "groupedmixer", "compress", "good.png", "text.png"]
    options = ["--model", "w.safetensors", "--no-progress"]
    result = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == "groupedmixer: text.png: not an image that Pillow can read\n"
    assert result.stdout.startswith("good.png -> good.gmx: ")


@pytest.mark.parametrize("size", [(70, 50), (1100, 40), (40, 1300), (333, 20)])
@pytest.mark.parametrize("config", [groupedmixer.get_config("tiny"), SMALL_ELIC])
def test_a_region_is_a_part_of_the_whole(
    config: groupedmixer.Config, size: tuple[int, int]
) -> None:
    """Of the patch transforms to the bit, of PyTorch's to a level that rounds the other way."""
    codec = groupedmixer.Codec(export_weights(random_model(config), "w"))
    width, height = size
    image = picture(height, width)
    image.putalpha(picture(height, width, seed=1).convert("L"))
    data = codec.compress(image, 6.0)
    whole = codec.decompress(data)
    boxes = [(0, 0, 1, 1), (width - 1, height - 1, width, height), (0, 0, width, height)]
    boxes += [(width // 3, height // 4, 2 * width // 3, height // 2), (3, 5, 19, 16)]
    for box in boxes:
        part = codec.decompress(data, region=box)
        expected = np.asarray(whole.crop(box), np.int16)
        difference = np.abs(np.asarray(part, np.int16) - expected).max()
        assert part.mode == whole.mode
        assert difference <= (0 if config.transform == "patch" else 1)


def test_a_region_decodes_only_its_tiles(tiny_codec: groupedmixer.Codec) -> None:
    file = container.parse(tiny_codec.compress(picture(30, 2100)))
    assert len(file.tiles) == 3
    broken = dataclasses.replace(file.tiles[2], latent_crc=file.tiles[2].latent_crc ^ 1)
    data = container.write(dataclasses.replace(file, tiles=(*file.tiles[:2], broken)))
    tiny_codec.decompress(data, region=(0, 0, 1500, 30))
    with pytest.raises(ArithmeticMismatchError, match="tile 2"):
        tiny_codec.decompress(data, region=(0, 0, 2048, 30))


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (5, 5, 4, 9), (-1, 0, 5, 5), (0, 0, 71, 5), (0, 0, 5, 51)]
)
def test_regions_outside_the_picture(
    tiny_codec: groupedmixer.Codec, box: tuple[int, int, int, int]
) -> None:
    with pytest.raises(ValueError, match="region must be .* inside the picture of 70 x 50"):
        tiny_codec.decompress(tiny_codec.compress(picture(50, 70)), region=box)


def test_tiled_transforms_agree_with_the_whole() -> None:
    """A margin too small would show as differences of many levels along the tiles' borders."""
    torch.manual_seed(0)
    model = random_model(SMALL_ELIC).eval()
    x = torch.rand(1, 3, 16 * 45, 16 * 30)
    with torch.no_grad():
        y = model.g_a(x)
        assert torch.allclose(tiled.analyse(model.g_a, x, tile=16), y, atol=1e-4 * float(y.std()))
        whole = model.g_s(y)[0]
        for top, left, pixels in tiled.synthesise(model.g_s, y, (3, 40), (2, 29), tile=16):
            expected = whole[:, top : top + pixels.shape[1], left : left + pixels.shape[2]]
            assert torch.allclose(pixels, expected, atol=1e-4 * float(whole.std()))
