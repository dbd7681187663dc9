# SPDX-License-Identifier: MIT
"""The .gmx format in Pillow, used as people use Pillow."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image, ImageCms, ImageOps, ImageSequence, PngImagePlugin, UnidentifiedImageError

import groupedmixer
from groupedmixer import container, pillow_plugin
from groupedmixer.import_hooks import after_import


@pytest.fixture(autouse=True)
def known(tiny_codec: groupedmixer.Codec) -> Iterator[None]:
    """Pillow decodes the tiny model's files."""
    pillow_plugin.use_codec(tiny_codec)
    yield
    pillow_plugin._codecs.clear()


@pytest.fixture(scope="module")
def data(tiny_codec: groupedmixer.Codec) -> bytes:
    return tiny_codec.compress(picture(70, 90), 4.0)


@pytest.fixture
def path(data: bytes, tmp_path: Path) -> Path:
    (tmp_path / "photo.gmx").write_bytes(data)
    return tmp_path / "photo.gmx"


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))


# --- registration ---------------------------------------------------------------------------------


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_pillow_knows_the_format() -> None:
    assert Image.registered_extensions()[".gmx"] == "GMX"
    assert Image.MIME["GMX"] == "image/x-gmx"


@pytest.mark.parametrize(
    "imports",
    [
        "import groupedmixer; from PIL import Image",
        "from PIL import Image; import groupedmixer",
        "import groupedmixer; import PIL.Image as Image; import importlib; importlib.reload(Image)",
    ],
)
def test_the_order_of_imports_does_not_matter(imports: str) -> None:
    program = (
        f"import sys; {imports}; print('GMX' in Image.SAVE, Image.EXTENSION.get('.gmx'),"
        " 'torch' in sys.modules, type(Image.__loader__).__name__,"
        " Image.__spec__.loader is Image.__loader__)"
    )
    assert run(program) == "True GMX False SourceFileLoader True"


def test_importing_us_imports_no_pillow_and_no_numpy() -> None:
    heavy = "{'PIL', 'numpy', 'torch', 'compressai', 'groupedmixer.container'}"
    assert run(f"import sys, groupedmixer; print(sorted({heavy} & {{*sys.modules}}))") == "[]"


def test_an_installation_that_lacks_a_part_says_so(path: Path) -> None:
    program = f"""
import importlib.util, warnings
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import groupedmixer
from PIL import Image, UnidentifiedImageError
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        Image.open({str(path)!r})
    except UnidentifiedImageError:
        print([str(one.message) for one in seen], "GMX" in Image.SAVE)
"""
    expected = "GMX files cannot be read: torch is not installed (pip install groupedmixer)"
    assert run(program) == f"{[expected]} False"


def test_hooks_run_for_their_module_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooked_module.py").write_text("value = 1\n")
    (tmp_path / "other_module.py").write_text("value = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    seen: list[int] = []
    try:
        after_import("hooked_module", lambda: seen.append(sys.modules["hooked_module"].value))
        __import__("other_module")
        assert seen == []
        spec = importlib.util.find_spec("hooked_module")  # without importing it
        assert spec is not None and spec.loader.get_source("hooked_module") == "value = 1\n"
        __import__("hooked_module")
        __import__("hooked_module")
        assert seen == [1]
        after_import("hooked_module", lambda: seen.append(3))  # it is there already
        assert seen == [1, 3]
        hook = next(finder for finder in sys.meta_path if finder not in before)
        listed = list(sys.meta_path)
        sys.meta_path.remove(hook)  # and asked all the same, as in the midst of another import
        assert hook.find_spec("hooked_module") is None
        sys.meta_path[:] = listed
        after_import("hooked_module_that_is_missing", lambda: seen.append(4))
        with pytest.raises(ModuleNotFoundError, match="hooked_module_that_is_missing"):
            __import__("hooked_module_that_is_missing")
    finally:
        sys.meta_path[:] = before
    assert seen == [1, 3]


# --- opening --------------------------------------------------------------------------------------


def test_opening_reads_the_header_alone(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class CountingFile(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            result = super().read(size)
            self.taken += len(result)
            return result

    random = np.random.default_rng(0).integers(0, 256, (500, 400, 4), np.uint8)
    stream = CountingFile()
    codec = pillow_plugin._codecs[container.parse_header(data).weights_fingerprint]
    stream.write(codec.compress(random, 4.0))
    image = Image.open(stream)
    assert (image.size, image.mode, image.format) == ((400, 500), "RGBA", "GMX")
    assert image.get_format_mimetype() == "image/x-gmx"
    assert stream.taken < 5000 < len(stream.getvalue())
    image.load()
    assert stream.taken > len(stream.getvalue())


def test_what_the_header_says(path: Path, tiny_codec: groupedmixer.Codec) -> None:
    with Image.open(path) as image:
        assert (image.size, image.mode) == ((90, 70), "RGB")
        assert image.info["quality"] == 4.0
        assert image.info["weights"] == tiny_codec.name
        assert image.info["fingerprint"] == tiny_codec.fingerprint.hex()
        assert image.info["arithmetic"] == container.parse_header(path.read_bytes()).arithmetic_id


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes(mode: str, tiny_codec: groupedmixer.Codec) -> None:
    stream = io.BytesIO()
    original = picture(33, 47).convert(mode)
    original.save(stream, format="GMX", codec=tiny_codec, quality=5)
    image = Image.open(stream)
    assert image.mode == mode
    assert same(image, tiny_codec.decompress(stream.getvalue()))


def test_everyday_uses(path: Path, data: bytes, tiny_codec: groupedmixer.Codec) -> None:
    decoded = tiny_codec.decompress(data)
    with Image.open(path) as image:
        assert same(image, decoded)
        image.thumbnail((40, 40))
        assert image.size == (40, 31)
    with path.open("rb") as stream, Image.open(stream) as image:
        assert same(ImageOps.mirror(image), ImageOps.mirror(decoded))
        assert not stream.closed
    image = Image.open(path)
    assert same(image.copy(), decoded) and same(copy.deepcopy(image), decoded)
    assert same(pickle.loads(pickle.dumps(image)), decoded)
    assert same(Image.open(path).crop((3, 4, 30, 20)), decoded.crop((3, 4, 30, 20)))
    assert same(Image.open(path).convert("L"), decoded.convert("L"))
    assert same(Image.open(path, formats=["GMX"]), decoded)
    lazily = Image.open(path)
    lazily.putpixel((1, 2), (7, 8, 9))  # loads
    assert lazily.getpixel((1, 2)) == (7, 8, 9)
    with Image.open(path) as image:
        assert len(list(ImageSequence.Iterator(image))) == 1
        with pytest.raises(EOFError):
            image.seek(1)
        image.seek(0)
        assert image.tell() == 0
    with pytest.raises(ValueError, match="closed"):
        image.load()


def test_files_are_closed_and_can_be_removed(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = Image.open(path)
        image.load()
        assert image.fp is None
        path.unlink()
        assert image.getpixel((0, 0)) == Image.Image.getpixel(image, (0, 0))
        del image


def test_png_of_a_gmx_and_back(path: Path, tmp_path: Path, data: bytes, tiny_codec) -> None:
    with Image.open(path) as image:
        image.save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as image:
        assert same(image, tiny_codec.decompress(data))


def test_many_threads_open_at_once(path: Path, data: bytes, tiny_codec) -> None:
    decoded = tiny_codec.decompress(data)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: Image.open(path).convert("RGB"), range(24)))
    assert all(same(image, decoded) for image in images)


# --- damaged and foreign files --------------------------------------------------------------------


def test_what_is_no_gmx(tmp_path: Path) -> None:
    for name, content in (
        ("empty", b""),
        ("text", b"hello"),
        ("gmx", b"\x8bGM"),
        ("zero", bytes(9)),
    ):
        wrong = tmp_path / f"{name}.gmx"
        wrong.write_bytes(content)
        with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
            Image.open(wrong)
    picture(5, 5).save(tmp_path / "png.gmx", format="PNG")
    with Image.open(tmp_path / "png.gmx") as image:
        assert image.format == "PNG"
    with pytest.raises(FileNotFoundError):
        Image.open(tmp_path / "missing.gmx")


def test_every_truncation_is_an_os_error(data: bytes) -> None:
    for length in range(4, len(data), 7):
        with pytest.raises(OSError):
            Image.open(io.BytesIO(data[:length])).load()
    header = data[:60]
    with pytest.raises(
        UnidentifiedImageError, match="cannot identify image file .*: the file ends"
    ):
        Image.open(io.BytesIO(header))
    with pytest.raises(OSError, match="the file ends inside chunk 1 'STRM'"):
        Image.open(io.BytesIO(data[:-3])).load()


def test_damage_is_found_by_load_and_by_verify(data: bytes) -> None:
    for position in range(10, len(data), 11):
        broken = bytearray(data)
        broken[position] ^= 4
        with pytest.raises(OSError):
            Image.open(io.BytesIO(broken)).verify()
        with pytest.raises(OSError):
            Image.open(io.BytesIO(broken)).load()


def test_lengths_of_chunks_are_not_trusted(data: bytes) -> None:
    header = container.parse_header(data)
    start = data.index(b"TILE")
    assert header.width == 90
    for length in (2**64 - 1, 2**63, 2**40):
        broken = data[: start + 5] + struct.pack("<Q", length) + data[start + 13 :]
        with pytest.raises(UnidentifiedImageError, match="before the head of chunk 1 of 2"):
            Image.open(io.BytesIO(broken))


def test_verify_of_a_good_file(path: Path) -> None:
    image = Image.open(path)
    image.verify()
    with pytest.raises(ValueError, match="closed"):  # as Pillow has it: open it again
        image.load()


def test_weights_that_are_not_at_hand(path: Path, tiny_codec: groupedmixer.Codec) -> None:
    pillow_plugin._codecs.clear()
    with Image.open(path) as image:
        assert image.size == (90, 70)
        with pytest.raises(OSError, match=f"the file needs the weights '{tiny_codec.name}'"):
            image.load()


def test_the_limit_is_pillows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(path) as image:
        image.load()


# --- saving ---------------------------------------------------------------------------------------


def test_saving_is_compressing(tmp_path: Path, data: bytes, tiny_codec) -> None:
    target = tmp_path / "saved.gmx"
    picture(70, 90).save(target, codec=tiny_codec)
    assert target.read_bytes() == data  # 4 is the default quality
    picture(70, 90).save(target, codec=tiny_codec, quality=1.5)
    assert container.parse_header(target.read_bytes()).quality == 384
    stream = io.BytesIO(b"in front")
    stream.seek(8)
    picture(70, 90).save(stream, format="gmx", codec=tiny_codec)
    assert stream.getvalue() == b"in front" + data


def test_bundled_weights_stay_loaded(tmp_path: Path) -> None:
    target = tmp_path / "saved.gmx"
    picture(20, 30).save(target, quality=3.0, model="rt")
    first = pillow_plugin._codec("rt")
    assert pillow_plugin._codec("rt") is first
    assert target.read_bytes() == first.compress(picture(20, 30), 3.0)
    with Image.open(target) as image:
        assert same(image, first.decompress(target.read_bytes()))


def test_weights_of_ones_own(tmp_path: Path, tiny_model: groupedmixer.GroupedMixer) -> None:
    pillow_plugin._codecs.clear()
    path = tmp_path / "own.safetensors"
    weights = groupedmixer.save_weights(tiny_model, path, "tiny-test")
    picture(20, 30).save(tmp_path / "saved.gmx", model=path)
    assert Image.open(tmp_path / "saved.gmx").info["fingerprint"] == weights.fingerprint.hex()
    with Image.open(tmp_path / "saved.gmx") as image:
        image.load()  # what this process has saved, it can open


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quality": 75}, ValueError, "quality must be in 0..7, got 75"),
        ({"model": "no-such-weights", "codec": None}, ValueError, "name must be one of"),
    ],
)
def test_refused_options_leave_no_file(options, error, message, tmp_path: Path, tiny_codec) -> None:
    with pytest.raises(error, match=message):
        picture(5, 5).save(tmp_path / "saved.gmx", **{"codec": tiny_codec, **options})
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_coded_leaves_no_file(tmp_path: Path, tiny_codec) -> None:
    with pytest.raises(OSError, match="cannot write as GMX: .*got F"):
        Image.new("F", (5, 5)).save(tmp_path / "saved.gmx", codec=tiny_codec)
    frames = [picture(9, 9, seed) for seed in (1, 2)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with (
        Image.open(tmp_path / "two.gif") as animation,
        pytest.raises(OSError, match="cannot write as GMX: an image must have one frame, got 2"),
    ):
        animation.save(tmp_path / "saved.gmx", codec=tiny_codec)
    assert [path.name for path in tmp_path.iterdir()] == ["two.gif"]


def test_orientation_of_a_given_exif_is_applied_once(tmp_path: Path, tiny_codec) -> None:
    upright = picture(40, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rows are the picture's columns
    upright.rotate(90, expand=True).save(tmp_path / "turned.gmx", codec=tiny_codec, exif=exif)
    with Image.open(tmp_path / "turned.gmx") as image:
        assert image.size == upright.size
        image.load()
        assert image.getexif().get(0x0112, 1) == 1
        assert same(ImageOps.exif_transpose(image), image.convert(image.mode))
    turned = upright.rotate(90, expand=True)
    turned.info["exif"] = exif.tobytes()
    turned.save(tmp_path / "upright.gmx", codec=tiny_codec, exif=None)
    with Image.open(tmp_path / "upright.gmx") as image:
        assert image.size == (40, 24)
    assert turned.info["exif"] == exif.tobytes()  # the caller's image is as it was


@pytest.mark.parametrize("option", ["exif", "icc_profile", "xmp"])
def test_options_do_not_hide_several_frames(option: str, tmp_path: Path, tiny_codec) -> None:
    frames = [picture(9, 9, seed) for seed in (1, 2)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with (
        Image.open(tmp_path / "two.gif") as animation,
        pytest.raises(OSError, match="must have one frame, got 2"),
    ):
        animation.save(tmp_path / "saved.gmx", codec=tiny_codec, **{option: None})


def test_options_replace_one_kind_of_metadata_and_leave_the_others(
    tmp_path: Path, tiny_codec
) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", xmp)
    picture(20, 30).save(tmp_path / "photo.png", pnginfo=texts, exif=exif)
    picture(20, 30).save(tmp_path / "photo.tif", exif=exif)

    def saved(name: str, **options: object) -> dict[str, object]:
        with Image.open(tmp_path / name) as image:
            image.save(tmp_path / "saved.gmx", codec=tiny_codec, **options)
        with Image.open(tmp_path / "saved.gmx") as image:
            return dict(image.info)

    assert {"exif", "xmp"} <= {*saved("photo.png", icc_profile=None)}
    assert "xmp" not in saved("photo.png", xmp=None)  # Pillow has it under two names
    assert "exif" not in saved("photo.png", exif=None)
    assert "exif" in saved("photo.tif", xmp=None)
    assert "exif" not in saved("photo.tif", exif=None)


def test_metadata_are_there_before_the_pixels(tmp_path: Path, tiny_codec) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a description"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    target = tmp_path / "saved.gmx"
    original = picture(20, 30)
    original.save(target, codec=tiny_codec, icc_profile=profile, exif=exif, xmp=xmp)
    assert "exif" not in original.info
    with Image.open(target) as image:
        before = dict(image.info)
        assert (before["icc_profile"], before["xmp"]) == (profile, xmp)
        assert image.getexif()[0x010E] == "a description"
        image.load()
        assert image.info == before
        image.save(tmp_path / "again.gmx", codec=tiny_codec, icc_profile=None)
        image.save(tmp_path / "saved.png")
    with Image.open(tmp_path / "again.gmx") as image:
        assert "icc_profile" not in image.info
        assert image.info["xmp"] == xmp
    with Image.open(tmp_path / "saved.png") as image:
        assert image.info["icc_profile"] == profile


def test_damaged_metadata_are_refused(tmp_path: Path, tiny_codec) -> None:
    target = tmp_path / "saved.gmx"
    picture(20, 30).save(target, codec=tiny_codec, xmp=b"<x:xmpmeta/>" * 9)
    data = target.read_bytes()
    start = data.index(b"XMPP")
    flipped = data[: start + 20] + b"?" + data[start + 21 :]
    with pytest.raises(UnidentifiedImageError, match="checksum of the chunk 'XMPP' is wrong"):
        Image.open(io.BytesIO(flipped))
    with pytest.raises(UnidentifiedImageError, match="ends inside the chunk 'XMPP'"):
        Image.open(io.BytesIO(data[: start + 30]))
    huge = data[: start + 5] + struct.pack("<Q", 1 << 40) + data[start + 13 :]
    with pytest.raises(UnidentifiedImageError, match="'XMPP' must have at most 4194304 bytes"):
        Image.open(io.BytesIO(huge))
