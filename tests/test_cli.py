# SPDX-License-Identifier: MIT
"""The command line with a codec that stores samples: paths, exit codes, and what is left behind."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from storing_codec import StoringCodec, coded, files, install, picture, run

import groupedmixer
from groupedmixer import cli
from groupedmixer.coding import ARITHMETIC_ID
from groupedmixer.container import parse
from groupedmixer.errors import CorruptError, WrongWeightsError


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """Every test runs in its own folder with the storing codec; collects what was loaded."""
    return install(monkeypatch, tmp_path)


def test_in_out_and_back(capsys: pytest.CaptureFixture[str], loads: list[tuple[str, str]]) -> None:
    source = picture("photo.png", "RGBA")
    assert run("compress", "photo.png", "small.gmx", "-q", "2.5") == 0
    assert run("decompress", "small.gmx", "back.png") == 0
    with Image.open(source) as before, Image.open("back.png") as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
    assert parse(Path("small.gmx").read_bytes()).header.quality == 640
    assert loads == [("rt", "cpu"), ("rt-1", "cpu")]  # the file names its weights
    first, second = capsys.readouterr().out.splitlines()
    length = Path("small.gmx").stat().st_size
    assert first.startswith(f"photo.png -> small.gmx: {length} bytes, {8 * length / 240:.4f} bpp, ")
    assert first.endswith(" s")
    assert second.startswith("small.gmx -> back.png: ")


def test_model_and_device_are_handed_on(loads: list[tuple[str, str]]) -> None:
    picture("photo.png")
    assert run("compress", "photo.png", "--model", "base", "--device", "cuda") == 0
    assert loads == [("base", "cuda")]


def test_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    picture("photo.png")
    assert run("compress", "photo.png", "--threads", "3") == 0
    assert seen == [3]


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        (["a/one.png"], ["a/one.gmx"]),
        (["a/one.png", "b/two.png"], ["a/one.gmx", "b/two.gmx"]),
        (["a/one.png", "-o", "out"], ["out"]),
        (["a/one.png", "-o", "out/"], ["out/one.gmx"]),
        (["a/one.png", "-o", "b"], ["b/one.gmx"]),
        (["a/one.png", "b/two.png", "-o", "new/out"], ["new/out/one.gmx", "new/out/two.gmx"]),
        (["a/one.png", "b/OUT.GMX"], ["b/OUT.GMX"]),
    ],
)
def test_where_compress_writes(arguments: list[str], outputs: list[str]) -> None:
    picture("a/one.png")
    picture("b/two.png")
    before = set(files())
    assert run("compress", *arguments) == 0
    assert sorted(set(files()) - before) == outputs


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        (["a/one.gmx"], ["a/one.png"]),
        (["a/one.gmx", "b/two.gmx"], ["a/one.png", "b/two.png"]),
        (["a/one.gmx", "b/two.gmx", "--format", "tiff"], ["a/one.tiff", "b/two.tiff"]),
        (
            ["a/one.gmx", "b/two.gmx", "-o", "out", "--format", "jpeg"],
            ["out/one.jpg", "out/two.jpg"],
        ),
        (["a/one.gmx", "-o", "out.webp"], ["out.webp"]),
        (["a/one.gmx", "b/out.BMP", "--format", "tiff"], ["b/out.BMP"]),
    ],
)
def test_where_decompress_writes(arguments: list[str], outputs: list[str]) -> None:
    coded("a/one.gmx")
    coded("b/two.gmx")
    before = set(files())
    assert run("decompress", *arguments) == 0
    assert sorted(set(files()) - before) == outputs
    for output in outputs:
        with Image.open(output) as image:
            assert image.size == (20, 12)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["compress", "a/one.png", "b/one.png", "-o", "out"], "would both be written to"),
        (["compress", "a/one.png", "a/../a/one.png"], "would both be written to"),
        (["compress", "a/one.png", "a/one.jpg"], "would both be written to"),
        (["compress", "a/one.png", "a/one.jpg"], "--keep-suffix gives every output a name"),
        (["compress", "-r", "a", "b", "-o", "out"], "would both be written to"),
        (["compress", "a/one.png", "a/two.png", "-o", "a/one.png"], "must be a folder"),
        (["compress", "a/one.png", "-o", "a/one.png/"], "must be a folder"),
        (["compress", "a/one.png", "-o", "a/one.png"], "is also an input"),
        (["compress", "a/one.png", "out.gmx", "-o", "out"], "two outputs"),
        (["compress", "."], "not a file name"),
        (["decompress", "a/one.png"], "is also an input"),
        (["decompress", "a/one.gmx", "out.xyz"], "must end in one of .png"),
        (["decompress", "a/one.gmx", "out/"], "must end in one of .png"),
        (["decompress", "a/one.gmx", "-o", "out"], "must end in one of .png"),
    ],
)
def test_usage_errors_come_before_any_work(
    arguments: list[str],
    reason: str,
    loads: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture("a/one.png")
    picture("b/one.png")
    before = files()
    assert run(*arguments, "--force") == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: groupedmixer ")
    assert reason in error
    assert files() == before
    assert not loads


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["shrink"], "invalid choice"),
        (["compress"], "required: IN"),
        (["compress", "a.png", "-q", "7.01"], "must be in 0..7, got 7.01"),
        (["compress", "a.png", "-q", "nan"], "must be in 0..7, got nan"),
        (["compress", "a.png", "-q", "fine"], "must be in 0..7, got fine"),
        (["compress", "a.png", "--threads", "0"], "whole number from 1 up, got 0"),
        (["compress", "a.png", "--max-pixels", "-5"], "whole number from 1 up, got -5"),
        (["compress", "a.png", "--device", "tpu"], "invalid choice"),
        (["decompress", "a.gmx", "--format", "gif"], "invalid choice"),
        (["decompress", "a.gmx", "--region", "0,0,5"], "LEFT,TOP,WIDTH,HEIGHT in pixels, got 0,0"),
        (["decompress", "a.gmx", "--region=-1,0,5,5"], "LEFT,TOP,WIDTH,HEIGHT in pixels, got -1"),
        (["decompress", "a.gmx", "--region", "0,0,5,0"], "from 1 up, got 0,0,5,0"),
        (["verify", "a.gmx", "--jobs", "0"], "whole number from 1 up, got 0"),
    ],
)
def test_argparse_refuses(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err


def test_existing_outputs_are_kept_unless_forced(capsys: pytest.CaptureFixture[str]) -> None:
    picture("one.png")
    picture("two.png")
    Path("one.gmx").write_bytes(b"precious")
    assert run("compress", "one.png", "two.png") == 1
    assert Path("one.gmx").read_bytes() == b"precious"
    assert Path("two.gmx").exists()
    assert capsys.readouterr().err == (
        "groupedmixer: one.png: the output one.gmx exists (use --force to replace it)\n"
    )
    assert run("compress", "one.png", "two.png", "--force") == 0
    assert parse(Path("one.gmx").read_bytes())


def test_only_regular_files_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    picture("one.png")
    Path("one.gmx").mkdir()
    assert run("compress", "one.png", "--force") == 1
    assert "not a regular file" in capsys.readouterr().err
    assert run("compress", "one.png", "-o", os.devnull, "--force") == 1
    assert not stat.S_ISREG(os.stat(os.devnull).st_mode)


def test_failures_do_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    picture("good.png")
    picture("large.png", shape=(100, 100))
    Path("text.png").write_bytes(b"hello")
    Path("folder.png").mkdir()
    arguments = ("missing.png", "text.png", "folder.png", "large.png", "good.png")
    assert run("compress", *arguments, "--max-pixels", "9999") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "groupedmixer: missing.png: No such file or directory"
    assert lines[1].startswith("groupedmixer: text.png: not an image that Pillow can read")
    assert lines[2] == "groupedmixer: folder.png: Is a directory"
    assert lines[3].startswith("groupedmixer: large.png: the picture must have at most max_pixels")
    assert Path("good.gmx").exists()


def test_a_gmx_file_is_not_compressed_again(capsys: pytest.CaptureFixture[str]) -> None:
    coded("a.gmx")
    Path("renamed.png").write_bytes(Path("a.gmx").read_bytes())
    before = files()
    assert run("compress", "a.gmx", "renamed.png", "-o", "out/") == 1
    for name, line in zip(
        ("a.gmx", "renamed.png"), capsys.readouterr().err.splitlines(), strict=True
    ):
        assert line.startswith(f"groupedmixer: {name}: the input must be a picture, it is a .gmx ")
    assert files() == before


def test_decompress_failures(capsys: pytest.CaptureFixture[str]) -> None:
    coded("good.gmx", "RGBA")
    Path("bad.gmx").write_bytes(Path("good.gmx").read_bytes()[:-1])
    Path("empty.gmx").write_bytes(b"")
    assert run("decompress", "bad.gmx", "empty.gmx", "good.gmx") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["bad.gmx", "empty.gmx"]
    assert Path("good.png").exists()

    assert run("decompress", "good.gmx", "good.jpg") == 1
    assert "JPEG cannot hold the picture's alpha plane" in capsys.readouterr().err
    assert run("decompress", "good.gmx", "-f", "--max-pixels", "239") == 1
    assert "max_pixels = 239" in capsys.readouterr().err
    assert not Path("good.jpg").exists()


def test_the_output_folder_of_a_named_file_must_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture("one.png")
    assert run("compress", "one.png", "nowhere/one.gmx") == 1
    assert "the output's folder nowhere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        WrongWeightsError("rt-9", bytes(8)),
        ImportError("no native code"),
        ValueError("no model of that name"),
        RuntimeError("no CUDA here"),
    ],
)
def test_a_model_that_cannot_be_loaded(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(name: str, device: str = "cpu") -> StoringCodec:
        raise error

    monkeypatch.setattr(groupedmixer, "load", load)
    picture("one.png")
    assert run("compress", "one.png", "--model", "rt-9") == 1
    assert capsys.readouterr().err == f"groupedmixer: model rt-9: {error}\n"


def failing_with(error: BaseException) -> Callable[..., bytes]:
    def compress(*arguments: object, **options: object) -> bytes:
        raise error

    return compress


def test_expected_and_unexpected_errors_of_the_codec(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("one.png")
    for error, reason in ((CorruptError("odd"), "odd"), (MemoryError(), "not enough memory")):
        monkeypatch.setattr(StoringCodec, "compress", failing_with(error))
        assert run("compress", "one.png") == 1
        assert capsys.readouterr().err == f"groupedmixer: one.png: {reason}\n"
    monkeypatch.setattr(StoringCodec, "compress", failing_with(ZeroDivisionError("odd")))
    assert run("compress", "one.png") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == (
        "groupedmixer: one.png: an error of this program, see its traceback: ZeroDivisionError: odd"
    )


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture("one.png")
    monkeypatch.setattr(StoringCodec, "compress", failing_with(KeyboardInterrupt()))
    assert run("compress", "one.png") == 130
    assert capsys.readouterr().err == "groupedmixer: interrupted\n"
    assert files() == ["one.png"]


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)]
)
def test_nothing_is_left_of_a_write_that_fails(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture("one.png")
    Path("one.gmx").write_bytes(b"precious")
    seen: list[list[str]] = []

    def replace(source: str, target: str) -> None:
        seen.append(files())
        raise error

    monkeypatch.setattr(os, "replace", replace)
    assert run("compress", "one.png", "--force") == code
    assert len(seen[0]) == 3  # the data was complete, in a file of the same folder
    assert files() == ["one.gmx", "one.png"]
    assert Path("one.gmx").read_bytes() == b"precious"
    if code == 1:
        assert capsys.readouterr().err == "groupedmixer: one.png: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_outputs_have_the_usual_permissions() -> None:
    picture("one.png")
    before = os.umask(0o027)
    try:
        assert run("compress", "one.png") == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("one.gmx").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("names", "options", "terminal", "expected"),
    [
        (["one.png"], [], True, {"tile"}),
        (["one.png"], [], False, set()),
        (["one.png", "two.png"], [], True, {"file"}),
        (["one.png", "two.png"], [], False, set()),
        (["one.png", "two.png"], ["--no-progress"], True, set()),
        (["one.png", "two.png"], ["--quiet"], True, set()),
        (["one.png"], ["--progress"], False, {"tile"}),
        (["one.png"], ["--progress", "--quiet"], False, {"tile"}),
    ],
)
def test_progress(
    names: list[str],
    options: list[str],
    terminal: bool,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in names:
        picture(name)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert run("compress", *names, *options) == 0
    captured = capsys.readouterr()
    units = {unit for unit in ("file", "tile") if f"{unit}/s" in captured.err}
    assert units == expected
    if "tile" in expected:
        assert "0/2" in captured.err  # the codec says so
    lines = {1: 1, 2: 2 + 1}[len(names)]  # a summary where there are several
    assert len(captured.out.splitlines()) == (0 if "--quiet" in options else lines)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    coded("one.gmx", "RGBA")
    length = Path("one.gmx").stat().st_size
    assert run("info", "one.gmx") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one.gmx"
    assert lines[1] == f"  file        {length} bytes, {8 * length / 240:.4f} bpp, format 0"
    assert lines[2] == "  picture     20 x 12, srgb, 8 bits, alpha"
    assert lines[3] == "  quality     4"
    assert lines[4] == "  weights     rt-1 (0000000000000000)"
    assert lines[5] == f"  arithmetic  {ARITHMETIC_ID}"
    assert lines[6] == "  coder       skip below 0, tiles 1 (up to 64 x 64 latents)"
    assert lines[7].startswith("  chunks      TILE 12, STRM 720, ALPH ")


def test_info_json(capsys: pytest.CaptureFixture[str]) -> None:
    coded("one.gmx")
    Path("bad.gmx").write_bytes(b"hello")
    assert run("info", "one.gmx", "bad.gmx", "--json") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("groupedmixer: bad.gmx: not a .gmx file")
    length = Path("one.gmx").stat().st_size
    assert json.loads(captured.out) == {
        "files": [
            {
                "path": "one.gmx",
                "bytes": length,
                "bpp": 8 * length / 240,
                "format_version": 0,
                "weights": {"name": "rt-1", "fingerprint": "0000000000000000"},
                "arithmetic": ARITHMETIC_ID,
                "quality": 4.0,
                "width": 20,
                "height": 12,
                "colour_space": "srgb",
                "bit_depth": 8,
                "alpha": False,
                "skip_below": 0,
                "tile_latents": 64,
                "tiles": 1,
                "chunks": [
                    {"type": "TILE", "must_understand": True, "bytes": 12},
                    {"type": "STRM", "must_understand": True, "bytes": 720},
                ],
            }
        ]
    }


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--help"],
        ["compress", "--help"],
        ["decompress", "-h"],
        ["verify", "-h"],
        ["--version"],
    ):
        with pytest.raises(SystemExit) as end:
            run(*arguments)
        assert end.value.code == 0
        assert "groupedmixer" in capsys.readouterr().out


def test_info_and_version_start_without_the_heavy_imports() -> None:
    path = coded("one.gmx")
    program = (
        "import sys; from groupedmixer.cli import main\n"
        f"assert main(['info', {str(path)!r}]) == 0\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'compressai'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    root = Path(cli.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def run_module(*arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "groupedmixer", *arguments]
    return subprocess.run(command, env=environment, capture_output=True)


def test_python_dash_m() -> None:
    done = run_module("info", "missing.gmx")
    assert done.returncode == 1
    assert done.stderr == b"groupedmixer: missing.gmx: No such file or directory\n"


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_file_names_that_cannot_be_printed() -> None:
    name = b"caf\xe9.gmx"
    os.rename(coded("one.gmx"), name)
    done = run_module("info", name)
    assert done.returncode == 0
    assert done.stdout.startswith(b"caf\\udce9.gmx\n")
