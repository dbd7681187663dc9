# SPDX-License-Identifier: MIT
"""A folder of some hundred and more files, good, broken and odd, through the real command line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, features

from groupedmixer import cli
from groupedmixer.container import read_chunks
from groupedmixer.metrics import psnr

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="links, pipes, names of any bytes")

# Far above what a turned, shifted or wrongly coloured decode reaches, far below quality 7.
LEAST_PSNR = 15.0


@dataclass(frozen=True)
class Case:
    """A file below the folder, and what becomes of it."""

    name: bytes
    make: Callable[[str], object]  # makes it at this path
    status: str = "done"  # failed, or passed over
    error: str = ""  # a part of the failure


def ramp(mode: str = "RGB", size: tuple[int, int] = (24, 17)) -> Image.Image:
    """A picture that looks otherwise when it is turned or its channels are swapped."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    rgb = np.stack([40 + 150 * x, 220 - 180 * y, 60 + 60 * x * y], axis=-1).round().astype(np.uint8)
    grey = rgb[..., 0] // 2 + rgb[..., 1] // 2
    alpha = (255 * x).astype(np.uint8)
    match mode:
        case "1":
            return Image.fromarray((x > 0.4) & (y < 0.6))
        case "L":
            return Image.fromarray(grey)
        case "LA":
            return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
        case "I;16":
            return Image.fromarray(grey.astype(np.uint16) * 257)
        case "F":
            return Image.fromarray(grey.astype(np.float32) / 255)
        case "RGBA":
            return Image.fromarray(np.dstack([rgb, alpha]))
        case "P":
            return Image.fromarray(rgb).quantize(64)
        case "LAB":
            return Image.merge("LAB", Image.fromarray(rgb).split())
    return Image.fromarray(rgb).convert(mode)


def image_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def saved(
    kind: str, mode: str = "RGB", size: tuple[int, int] = (24, 17), **options: Any
) -> Callable[[str], object]:
    return holding(image_bytes(ramp(mode, size), kind, **options))


def holding(data: bytes) -> Callable[[str], object]:
    return lambda path: Path(path).write_bytes(data)


def turned(orientation: int) -> Callable[[str], object]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved("JPEG", quality=95, exif=exif)


def wide_png(channels: int, colour_type: int) -> bytes:
    """A PNG of 16-bit colour, which Pillow does not write."""
    samples = np.asarray(ramp("RGBA" if channels == 4 else "RGB")).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    return png(24, 17, 16, colour_type, zlib.compress(rows))


def png(width: int, height: int, depth: int, colour_type: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def frames(kind: str) -> bytes:
    return image_bytes(
        ramp(), kind, save_all=True, append_images=[ramp().transpose(Image.Transpose.ROTATE_180)]
    )


def good_cases() -> Iterator[Case]:
    kinds = {
        "PNG": ("png", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        "JPEG": ("jpg", ("L", "RGB", "CMYK", "YCbCr")),
        "TIFF": ("tif", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr", "LAB")),
        "WEBP": ("webp", ("L", "P", "RGB", "RGBA")),
        "BMP": ("bmp", ("1", "L", "P", "RGB", "RGBA")),
        "GIF": ("gif", ("1", "L", "P", "RGB", "RGBA")),
        "PPM": ("ppm", ("1", "L", "RGB")),
        "TGA": ("tga", ("1", "L", "P", "RGB", "RGBA")),
        "PCX": ("pcx", ("1", "L", "P", "RGB")),
        "SGI": ("sgi", ("L", "RGB", "RGBA")),
        "DIB": ("dib", ("RGB",)),
        "ICO": ("ico", ("RGB", "RGBA")),
    }
    if features.check("jpg_2000"):
        kinds["JPEG2000"] = ("jp2", ("L", "RGB", "RGBA"))
    if features.check("avif"):
        kinds["AVIF"] = ("avif", ("RGB", "RGBA"))
    for kind, (suffix, modes) in kinds.items():
        for mode in modes:
            name = f"formats/{suffix}-{mode.replace(';', '-')}.{suffix}"
            yield Case(name.encode(), saved(kind, mode))
    for size in ((1, 1), (1, 33), (40, 1), (2, 3), (15, 16), (17, 16), (130, 5)):
        yield Case(b"sizes/%dx%d.png" % size, saved("PNG", size=size))
    for orientation in range(1, 9):
        yield Case(b"turned/%d.jpg" % orientation, turned(orientation))
    yield Case(b"16/rgb.png", holding(wide_png(3, 2)))
    yield Case(b"16/rgba.png", holding(wide_png(4, 6)))
    yield Case(b"odd/png.jpg", saved("PNG"))
    yield Case(b"odd/jpeg.png", saved("JPEG", quality=95))
    yield Case(b"odd/progressive.jpeg", saved("JPEG", quality=95, progressive=True))
    yield Case(b"odd/see-through.png", saved("PNG", "P", transparency=3))
    yield Case(b"odd/colour-key.png", saved("PNG", "RGB", transparency=(40, 220, 60)))
    yield Case(b"odd/tail.png", holding(image_bytes(ramp(), "PNG") + b"and more"))
    for name in (
        b"a\nb.png",
        b"caf\xe9.PNG",
        "ünï☃.png".encode(),
        b"-o.png",
        b"$(x) 'y' \"z\".png",
    ):
        yield Case(b"names/" + name, saved("PNG"))
    yield Case(b"odd/no-end.png", holding(image_bytes(ramp(), "PNG")[:-12]))  # all pixels are there
    yield Case(b"folder.png/within.png", saved("PNG"))
    yield Case(b"links/file.png", lambda path: os.symlink("../sizes/2x3.png", path))


def bad_cases() -> Iterator[Case]:
    def failing(name: bytes, make: Callable[[str], object], error: str) -> Case:
        return Case(b"bad/" + name, make, "failed", error)

    unreadable = "not an image that Pillow can read"
    yield failing(b"empty.png", holding(b""), unreadable)
    yield failing(b"text.jpg", holding(b"this is no picture\n" * 9), unreadable)
    yield failing(b"zeros.tif", holding(bytes(2000)), unreadable)
    for kind, suffix in (("PNG", b"png"), ("JPEG", b"jpg"), ("WEBP", b"webp"), ("TIFF", b"tif")):
        data = image_bytes(ramp(size=(64, 64)), kind)
        for part in (8, 50, 90):
            name = b"cut-%d.%s" % (part, suffix)
            yield failing(name, holding(data[: len(data) * part // 100]), "")
    data = bytearray(image_bytes(ramp(), "PNG"))
    data[data.index(b"IDAT") + 9] ^= 0xFF
    yield failing(b"flipped.png", holding(bytes(data)), "the image cannot be decoded")
    for kind, suffix in (("GIF", b"gif"), ("WEBP", b"webp"), ("PNG", b"apng"), ("TIFF", b"tiff")):
        yield failing(b"frames." + suffix, holding(frames(kind)), "one frame, got 2")
    yield failing(b"float.tif", saved("TIFF", "F"), "mode must be one of")
    # Some bytes that claim gigapixels.
    bomb = png(40000, 40000, 8, 2, zlib.compress(bytes(100)))
    yield failing(b"bomb.png", holding(bomb), "pixels")
    yield failing(b"long.png", holding(png(1 << 21, 1, 8, 0, zlib.compress(bytes(9)))), "2097152")
    yield failing(b"nowhere.png", lambda path: os.symlink("missing", path), "No such file")
    yield failing(b"circle.png", lambda path: os.symlink("circle.png", path), "Too many levels")
    if os.geteuid() != 0:  # root reads everything

        def closed(path: str) -> None:
            Path(path).write_bytes(image_bytes(ramp(), "PNG"))
            os.chmod(path, 0)

        yield failing(b"closed.png", closed, "Permission denied")


def cases() -> list[Case]:
    found = [*good_cases(), *bad_cases()]
    for name, make in (
        (b"other/notes.txt", holding(b"notes")),
        (b"other/picture", saved("PNG")),
        (b"other/Thumbs.db", holding(b"\0")),
        (b"other/drawing.svg", holding(b"<svg/>")),
        (b"other/up", lambda path: os.symlink("..", path)),
        (b"other/pipe.png", os.mkfifo),
    ):
        found.append(Case(name, make, "passed over"))
    return found


def state(folder: Path) -> dict[str, object]:
    """Everything about a tree that a command must not change."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        readable = path.is_file() and os.access(path, os.R_OK)
        data = hashlib.sha256(path.read_bytes()).hexdigest() if readable else None
        found[str(path)] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ino, data)
    return found


def command_line(*arguments: str) -> tuple[int, Any, list[str]]:
    """Exit code, report and lines on stderr of a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "groupedmixer", *arguments, "--json"],
        env=environment,
        capture_output=True,
        timeout=200,
    )
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("groupedmixer: ") for line in lines), done.stderr.decode()
    return done.returncode, json.loads(done.stdout), lines


def reference(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """RGB and alpha as Pillow alone sees them."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            grey = Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
            return np.asarray(grey.convert("RGB")), None
        if upright.has_transparency_data:
            rgba = np.asarray(upright.convert("RGBA"))
            return rgba[..., :3], rgba[..., 3]
        return np.asarray(upright.convert("RGB")), None


def test_a_folder_of_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, coded, back = (tmp_path / name for name in ("in", "coded", "back"))
    made = cases()
    assert len(made) >= 100
    for case in made:
        path = os.fsdecode(os.path.join(os.fsencode(source), case.name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        case.make(path)
    before = state(source)
    expected = {os.fsdecode(case.name): case for case in made}
    done = {name for name, case in expected.items() if case.status == "done"}
    command = ("compress", "-r", str(source), "-o", str(coded), "--keep-suffix", "-q", "7")
    command += ("--verify", "--jobs", "2")
    code, report, errors = command_line(*command)

    assert code == 1
    files = {os.path.relpath(one["source"], source): one for one in report["files"]}
    passed_over = {os.path.relpath(one["path"], source) for one in report["passed_over"]}
    found = {name: one["status"] for name, one in files.items()}
    assert found | dict.fromkeys(passed_over, "passed over") == {
        name: case.status for name, case in expected.items()
    }
    for name, case in expected.items():
        if case.status == "failed":
            assert case.error in files[name]["error"], name
    assert len(errors) == sum(case.status == "failed" for case in made)
    summary = report["summary"]
    assert summary["done"] == len(done)
    assert summary["failed"] == len(errors)
    assert summary["passed_over"] == len(passed_over)
    outputs = {name + ".gmx" for name in done}
    assert {str(path.relative_to(coded)) for path in coded.rglob("*") if path.is_file()} == outputs
    assert summary["bytes_out"] == sum((coded / name).stat().st_size for name in outputs)
    assert state(source) == before

    # What is done is not done again, and what failed is told again.
    capsys.readouterr()
    assert cli.main([*command, "--resume", "--json"]) == 1
    again = json.loads(capsys.readouterr().out)["summary"]
    assert (again["done"], again["up_to_date"], again["failed"]) == (0, len(done), len(errors))

    assert cli.main(["decompress", "-r", str(coded), "-o", str(back), "--quiet", "-j", "2"]) == 0
    for name in done:
        rgb, alpha = reference(source / name)
        with Image.open(back / (name + ".png")) as image:
            assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1, name
            decoded = np.asarray(image.convert("RGBA"))
            assert image.has_transparency_data == (alpha is not None), name
        assert decoded.shape[:2] == rgb.shape[:2], name
        assert psnr(rgb, decoded[..., :3]) > LEAST_PSNR, name
        if alpha is not None:
            assert np.array_equal(alpha, decoded[..., 3]), name


def test_damage_in_every_part_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every field of the header and of every chunk, and every end between two of them."""
    source, folder, back = tmp_path / "a.png", tmp_path / "coded", tmp_path / "back"
    ramp("RGBA", (90, 70)).save(source)
    folder.mkdir()
    assert cli.main(["compress", str(source), str(folder / "good.gmx"), "--quiet"]) == 0
    data = (folder / "good.gmx").read_bytes()
    chunks = read_chunks(data)
    assert {"TILE", "STRM", "ALPH"} <= {chunk.type for chunk in chunks}
    header_end = len(data) - sum(len(chunk.payload) + 17 for chunk in chunks)
    places = {f"header-{at}": at for at in range(0, header_end, 3)}
    cuts = {"empty": 0, "in-header": 20, "header-only": header_end}
    at = header_end
    for chunk in chunks:
        end = at + 13 + len(chunk.payload)
        for part, place in (
            ("type", at),
            ("flags", at + 4),
            ("length", at + 5),
            ("first", at + 13),
            ("middle", (at + 13 + end) // 2),
            ("last", end - 1),
            ("checksum", end + 3),
        ):
            places[f"{chunk.type}-{part}"] = place
        cuts[f"{chunk.type}-head"] = at + 7
        cuts[f"{chunk.type}-half"] = (at + end) // 2
        cuts[f"{chunk.type}-end"] = end + 3
        at = end + 4
    assert at == len(data)
    for name, place in places.items():
        damaged = bytearray(data)
        damaged[place] ^= 0x11
        (folder / f"flip-{name}.gmx").write_bytes(damaged)
    for name, length in cuts.items():
        (folder / f"cut-{name}.gmx").write_bytes(data[:length])
    (folder / "tail.gmx").write_bytes(data + b"\0")
    (folder / "png.gmx").write_bytes(source.read_bytes())
    (folder / "zeros.gmx").write_bytes(bytes(len(data)))
    before = state(folder)

    for command in (
        ["verify", "-r", str(folder)],
        ["decompress", "-r", str(folder), "-o", str(back)],
    ):
        capsys.readouterr()
        assert cli.main([*command, "--json"]) == 1
        captured = capsys.readouterr()
        report = json.loads(captured.out)
        done = [one["source"] for one in report["files"] if one["status"] == "done"]
        assert done == [str(folder / "good.gmx")]
        assert report["summary"]["failed"] == len(places) + len(cuts) + 3
        assert len(captured.err.splitlines()) == report["summary"]["failed"]  # and no traceback
    assert [path.name for path in back.iterdir()] == ["good.png"]
    assert state(folder) == before
