# SPDX-License-Identifier: MIT
"""Many files: folders, several at once, going on, verifying, and interruptions at bad times."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from storing_codec import StoringCodec, coded, files, install, picture, run

import groupedmixer
from groupedmixer.batch import Stop, Stopped, run_batch
from groupedmixer.container import parse, write
from groupedmixer.errors import MetadataWarning
from groupedmixer.images import Picture
from groupedmixer.input_files import PICTURE_SUFFIXES, find_inputs
from groupedmixer.printable import printable

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and signals of POSIX")


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """Every test runs in its own folder with the storing codec; collects what was loaded."""
    return install(monkeypatch, tmp_path)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs a command with --json: its exit code and its report."""

    def run_with_json(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = run(*arguments, "--json")
        return code, json.loads(capsys.readouterr().out)

    return run_with_json


Report = Callable[..., tuple[int, Any]]


def test_a_codec_says_how_far_it_is_and_is_stopped_there() -> None:
    told: list[tuple[int, int]] = []
    stop = Stop(lambda done, total: told.append((done, total)))
    stop.progress(0, 9)
    stop.ask()
    with pytest.raises(Stopped):
        stop.progress(1, 9)
    assert told == [(0, 9)]


def noise(name: str, side: int) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def statuses(answer: Any) -> dict[str, str]:
    return {Path(one["source"]).name: one["status"] for one in answer["files"]}


# Folders


def test_a_tree_is_mirrored_and_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/b.png", "in/a.PNG", "in/deep/er/c.tiff", "in/z/d.png"):
        picture(name)
    Path("in/notes.txt").write_text("no picture")
    assert run("compress", "-r", "in", "-o", "out/small") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "in/a.PNG -> out/small/a.gmx",
        "in/b.png -> out/small/b.gmx",
        "in/deep/er/c.tiff -> out/small/deep/er/c.gmx",
        "in/z/d.png -> out/small/z/d.gmx",
    ]
    sizes = [
        sum(path.stat().st_size for path in Path().rglob(f"*.{kind}")) for kind in ("*", "gmx")
    ]
    before = sizes[0] - sizes[1] - Path("in/notes.txt").stat().st_size
    assert lines[-1].startswith(
        f"4 files: 4 done, 1 passed over (1 another suffix); {before} -> {sizes[1]} bytes, "
        f"{8 * sizes[1] / (4 * 240):.4f} bpp; "
    )
    assert run("decompress", "-r", "out/small", "-o", "back") == 0
    assert [name for name in files() if name.startswith("back")] == [
        "back/a.png",
        "back/b.png",
        "back/deep/er/c.png",
        "back/z/d.png",
    ]


def test_without_an_output_files_lie_beside_their_sources() -> None:
    picture("in/a.png")
    picture("in/deep/b.png")
    picture("c.png")
    assert run("compress", "-r", "in", "c.png") == 0
    assert [name for name in files() if name.endswith(".gmx")] == [
        "c.gmx",
        "in/a.gmx",
        "in/deep/b.gmx",
    ]


def test_one_picture_in_a_folder_is_not_written_to_a_file_named_as_the_folder() -> None:
    picture("in/a.png")
    assert run("compress", "-r", "in", "-o", "out") == 0
    assert files() == ["in/a.png", "out/a.gmx"]


def test_the_output_folder_is_not_read_again(report: Report) -> None:
    picture("a.png")
    assert run("compress", "-r", ".", "-o", "coded") == 0
    assert run("decompress", "-r", ".", "-o", "coded/back") == 0
    code, answer = report("compress", "-r", ".", "-o", "coded", "--resume")
    assert (code, statuses(answer)) == (0, {"a.png": "up_to_date"})


def test_an_empty_folder_is_no_error_and_a_missing_one_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("empty").mkdir()
    assert run("compress", "-r", "empty", "-o", "out") == 0
    assert capsys.readouterr().out.startswith("0 files: 0 done; ")
    assert not Path("out").exists()
    assert run("compress", "-r", "missing", "-o", "out") == 1
    assert capsys.readouterr().err == "groupedmixer: missing: No such file or directory\n"


def test_names_that_collide_need_their_suffixes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/a.png", "in/a.bmp", "in/b.png", "in/b.tiff", "in/c.png"):
        picture(name)
    before = files()
    assert run("compress", "-r", "in", "-o", "out", "--resume") == 2
    assert capsys.readouterr().err.endswith(
        "error: in/a.bmp and in/a.png would both be written to out/a.gmx (and 1 more such pairs); "
        "--keep-suffix gives every output a name of its own\n"
    )
    assert files() == before
    assert run("compress", "-r", "in", "-o", "out", "--keep-suffix") == 0
    assert run("decompress", "-r", "out", "-o", "back") == 0
    assert [name for name in files() if name.startswith("back")] == [
        "back/a.bmp.png",
        "back/a.png.png",
        "back/b.png.png",
        "back/b.tiff.png",
        "back/c.png.png",
    ]


@posix
def test_links_and_pipes(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    picture("elsewhere/target.png")
    picture("in/deep/a.png")
    Path("in/deep/up").symlink_to("..", target_is_directory=True)
    Path("in/folder.png").symlink_to("../elsewhere", target_is_directory=True)
    Path("in/link.png").symlink_to("../elsewhere/target.png")
    Path("in/nowhere.png").symlink_to("missing")
    Path("in/circle.png").symlink_to("circle.png")
    os.mkfifo("in/pipe.png")
    code, answer = report("compress", "-r", "in", "-o", "out")
    assert code == 1
    assert statuses(answer) == {
        "a.png": "done",
        "link.png": "done",
        "nowhere.png": "failed",
        "circle.png": "failed",
    }
    assert {one["path"]: one["reason"] for one in answer["passed_over"]} == {
        "in/deep/up": "a link to a folder",
        "in/folder.png": "a link to a folder",
        "in/pipe.png": "not a regular file",
    }
    # By name, a circle fails like any file that cannot be read.
    assert run("compress", "in/circle.png", "in/deep/a.png", "-o", "out", "-f") == 1
    assert "in/circle.png: Too many levels of symbolic links" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png")
    picture("in/closed/b.png")
    scandir = os.scandir

    def refusing(path: Path) -> Any:  # permissions do not bind root
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert run("compress", "-r", "in", "-o", "out") == 1
    captured = capsys.readouterr()
    assert captured.err == "groupedmixer: in/closed: Permission denied\n"
    assert "2 files: 1 done, 1 failed; " in captured.out
    assert captured.out.endswith("failed: in/closed: Permission denied\n")
    assert sorted(os.listdir("out")) == ["a.gmx"]


def test_more_folders_than_python_calls_can_nest() -> None:
    depth = 200  # what pytest can remove again, should this test be cut off
    bottom = Path("d/" * depth)
    bottom.mkdir(parents=True)
    picture(str(bottom / "a.png"))
    usual = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack()) + depth // 2)
        found = find_inputs(["."], recursive=True, suffixes=PICTURE_SUFFIXES, without=os.getcwd())
    finally:
        sys.setrecursionlimit(usual)
    assert [one.path for one in found.inputs] == [bottom / "a.png"]
    assert found.unreadable == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_odd_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"new\nline.png", b"caf\xe9.png", b"-q.png", b" .png", b"\x1b[31m.png", b"x.y.png"]
    names += ["ünï☃.png".encode(), b"%s{}$HOME`ls`.png", b"a" * 240 + b".png"]
    source = picture("one.png").read_bytes()
    os.makedirs("in")
    for name in names:
        Path(os.fsdecode(b"in/" + name)).write_bytes(source)
    assert run("compress", "-r", "in", "-o", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names) + 1
    assert r"in/new\nline.png -> out/new\nline.gmx: " in "\n".join(lines)
    assert "\x1b" not in "".join(lines)
    assert sorted(os.listdir(b"out")) == sorted(name[:-3] + b"gmx" for name in names)
    assert run("decompress", "-r", "out", "-o", "back") == 0
    assert sorted(os.listdir(b"back")) == sorted(names)


def test_names_that_are_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    picture("a.png")
    too_long = "b" * 300
    assert run("compress", "a.png", too_long + ".png", "-o", "out") == 1
    assert "File name too long" in capsys.readouterr().err
    assert run("compress", "a.png", "-o", too_long + "/") == 1
    assert "File name too long" in capsys.readouterr().err
    assert files() == ["a.png", "out/a.gmx"]


def test_printable() -> None:
    assert printable("a b/ü.png") == "a b/ü.png"
    assert printable("a\nb\x1b\udce9\u202e") == r"a\nb\x1b\udce9\u202e"


# Going on


def test_resume_makes_what_is_missing_old_or_other(report: Report) -> None:
    names = ("done", "missing", "touched", "damaged", "finer")
    for name in names:
        picture(f"in/{name}.png")
    command = ("compress", "-r", "in", "-o", "out", "--resume")
    assert report(*command)[0] == 0
    Path("out/missing.gmx").unlink()
    written = Path("out/touched.gmx").stat().st_mtime_ns
    os.utime("in/touched.png", ns=(written + 1, written + 1))
    data = Path("out/damaged.gmx").read_bytes()
    Path("out/damaged.gmx").write_bytes(data[:-1])
    assert run("compress", "in/finer.png", "-o", "out/", "--force", "-q", "5", "--quiet") == 0

    code, answer = report(*command)
    assert code == 0
    assert statuses(answer) == {
        name + ".png": "up_to_date" if name == "done" else "done" for name in names
    }
    assert answer["summary"]["up_to_date"] == 1
    assert Path("out/damaged.gmx").read_bytes() == data
    assert parse(Path("out/finer.gmx").read_bytes()).header.quality == 4 * 256
    os.utime("in/touched.png", ns=(written, written))  # as old as its output
    assert set(statuses(report(*command)[1]).values()) == {"up_to_date"}


def test_resume_makes_anew_what_other_weights_made(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("a.png")
    assert run("compress", "a.png", "-o", "out/") == 0
    monkeypatch.setattr(StoringCodec, "fingerprint", b"trained1")
    assert statuses(report("compress", "a.png", "-o", "out/", "--resume")[1]) == {"a.png": "done"}


def test_resume_makes_anew_what_needs_another_arithmetic(report: Report) -> None:
    """Nothing here could decode it."""
    picture("a.png")
    assert run("compress", "a.png") == 0
    made = Path("a.gmx").read_bytes()
    file = parse(made)
    foreign = replace(file, header=replace(file.header, arithmetic_id="f32-of-tomorrow"))
    Path("a.gmx").write_bytes(write(foreign))
    assert statuses(report("compress", "a.png", "--resume")[1]) == {"a.png": "done"}
    assert Path("a.gmx").read_bytes() == made


def test_resume_replaces_no_file_of_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    picture("a.png")
    Path("a.gmx").write_bytes(b"precious")
    assert run("compress", "a.png", "--resume") == 1
    assert "the output a.gmx exists (use --force to replace it)" in capsys.readouterr().err
    assert Path("a.gmx").read_bytes() == b"precious"
    assert run("compress", "a.png", "--resume", "--force") == 0


def test_decompress_resumes_and_never_replaces_an_original(report: Report) -> None:
    picture("older.png")
    assert run("compress", "older.png") == 0
    coded("in/done.gmx")
    os.utime("older.png", ns=(0, 0))
    code, answer = report("decompress", "older.gmx", "--resume")
    assert (code, statuses(answer)) == (1, {"older.gmx": "failed"})
    assert "exists (use --force" in answer["files"][0]["error"]

    command = ("decompress", "-r", "in", "-o", "out", "--resume")
    assert statuses(report(*command)[1]) == {"done.gmx": "done"}
    assert statuses(report(*command)[1]) == {"done.gmx": "up_to_date"}
    # Another size and another format are no earlier output of this command.
    assert report(*command, "--region", "0,0,5,4")[0] == 1
    Image.new("RGB", (20, 12)).save("out/done.png", format="BMP")
    assert report(*command)[0] == 1
    assert statuses(report(*command, "--force")[1]) == {"done.gmx": "done"}


def test_decompress_resumes_beyond_pillows_limit(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded("a.gmx")
    assert report("decompress", "a.gmx")[0] == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it has 240
    code, answer = report("decompress", "a.gmx", "--resume")
    assert (code, statuses(answer)) == (0, {"a.gmx": "up_to_date"})


# Regions


def test_region(report: Report) -> None:
    noise("a.png", 16)
    assert run("compress", "a.png") == 0
    code, answer = report("decompress", "a.gmx", "b.png", "--region", "3,4,5,6")
    assert code == 0
    with Image.open("a.png") as whole, Image.open("b.png") as part:
        assert np.array_equal(np.asarray(whole.crop((3, 4, 8, 10))), np.asarray(part))
    assert (answer["files"][0]["width"], answer["files"][0]["height"]) == (16, 16)
    code, answer = report("decompress", "a.gmx", "c.png", "--region", "12,0,5,6")
    assert code == 1
    assert answer["files"][0]["error"] == (
        "the region must be inside the picture of 16 x 16 pixels, got 12,0,5,6"
    )


# Verifying


def test_verify_reports_the_psnr(capsys: pytest.CaptureFixture[str]) -> None:
    picture("a.png", "RGBA")
    assert run("compress", "a.png", "--verify") == 0
    assert ", 100.00 dB, quality 4, " in capsys.readouterr().out  # samples are stored


@pytest.mark.parametrize(
    ("mode", "fault", "message"),
    [
        ("RGB", lambda image: image.crop((0, 0, 9, 9)), "must decode to 20 x 12 colour without"),
        ("RGB", lambda image: image.convert("L"), "got 20 x 12 grey without alpha"),
        ("RGBA", lambda image: image.convert("RGB"), "got 20 x 12 colour without alpha"),
        ("RGBA", lambda image: Image.new("RGBA", image.size), "alpha plane must decode without"),
    ],
)
def test_a_file_that_does_not_verify_is_not_written(
    mode: str,
    fault: Callable[[Image.Image], Image.Image],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decompress = StoringCodec.decompress
    monkeypatch.setattr(
        StoringCodec, "decompress", lambda *a, **options: fault(decompress(*a, **options))
    )
    picture("a.png", mode)
    Path("a.gmx").write_bytes(b"earlier")
    assert run("compress", "a.png", "--force", "--verify") == 1
    assert message in capsys.readouterr().err
    assert Path("a.gmx").read_bytes() == b"earlier"


def test_a_file_that_does_not_decode_is_not_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compress = StoringCodec.compress
    monkeypatch.setattr(
        StoringCodec, "compress", lambda *a, **options: compress(*a, **options)[:-1]
    )
    picture("a.png")
    assert run("compress", "a.png", "--verify") == 1
    assert "a.png: the new file does not decode: the file ends inside" in capsys.readouterr().err
    assert files() == ["a.png"]


def test_the_verify_command(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    good = coded("in/good.gmx")
    Path("in/deep").mkdir()
    damaged = bytearray(good.read_bytes())
    damaged[-6] ^= 1
    Path("in/deep/bad.gmx").write_bytes(damaged)
    before = files()
    assert run("verify", "in/good.gmx") == 0
    length = good.stat().st_size
    assert capsys.readouterr().out.startswith(
        f"in/good.gmx: {length} bytes, {8 * length / 240:.4f} bpp, quality 4, "
    )
    code, answer = report("verify", "-r", "in", "--jobs", "2")
    assert code == 1
    assert statuses(answer) == {"good.gmx": "done", "bad.gmx": "failed"}
    assert answer["files"][0]["target"] is None
    assert answer["files"][0]["bytes_out"] is None
    assert "checksum is wrong" in answer["files"][1]["error"]
    assert files() == before


# Several at once


def test_jobs_run_at_once_and_report_in_order(
    monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    torch = pytest.importorskip("torch")
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    together = threading.Barrier(3, timeout=30)
    last_first = [threading.Event() for _ in range(3)]
    compress = StoringCodec.compress

    def waiting(
        self: StoringCodec, image: Picture, quality: float = 4.0, **options: object
    ) -> bytes:
        index = image.width - 10
        together.wait()  # for ever, were there fewer than three
        if index < 2:
            assert last_first[index + 1].wait(30)
        last_first[index].set()
        return compress(self, image, quality)

    monkeypatch.setattr(StoringCodec, "compress", waiting)
    for index in range(3):
        picture(f"in/{index}.png", shape=(10 + index, 5))
    code, answer = report("compress", "-r", "in", "-o", "out", "--jobs", "3")
    assert code == 0
    assert list(statuses(answer)) == ["0.png", "1.png", "2.png"]
    assert threads == [2]


def test_the_report_as_json(report: Report) -> None:
    picture("in/a.png")
    Path("in/bad.png").write_bytes(b"")
    Path("in/other").write_bytes(b"")
    code, answer = report("compress", "-r", "in", "-o", "out", "--verify", "-q", "2")
    assert code == 1
    length = Path("out/a.gmx").stat().st_size
    seconds = answer["files"][0].pop("seconds")
    assert 0 <= seconds <= answer["summary"].pop("seconds")
    assert answer == {
        "files": [
            {
                "source": "in/a.png",
                "target": "out/a.gmx",
                "status": "done",
                "bytes_in": Path("in/a.png").stat().st_size,
                "bytes_out": length,
                "gmx_bytes": length,
                "width": 20,
                "height": 12,
                "quality": 2.0,
                "psnr": 100.0,
                "bpp": 8 * length / 240,
            },
            {
                "source": "in/bad.png",
                "target": "out/bad.gmx",
                "status": "failed",
                "error": "not an image that Pillow can read",
            },
        ],
        "passed_over": [{"path": "in/other", "reason": "another suffix"}],
        "interrupted": False,
        "summary": {
            "done": 1,
            "up_to_date": 0,
            "failed": 1,
            "left": 0,
            "passed_over": 1,
            "bytes_in": Path("in/a.png").stat().st_size,
            "bytes_out": length,
            "bpp": 8 * length / 240,
        },
    }


def test_json_where_nothing_can_be_done(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    """A program that reads the report gets one, whatever happens."""

    def refuse(name: str, device: str) -> StoringCodec:
        raise ValueError(f"name must be one of rt, got {name!r}")

    monkeypatch.setattr(groupedmixer, "load", refuse, raising=False)
    picture("a.png")
    code, answer = report("compress", "a.png", "--model", "nope")
    assert (code, answer["files"], answer["summary"]["left"]) == (1, [], 1)


def test_warnings_name_their_file(
    monkeypatch: pytest.MonkeyPatch, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    compress = StoringCodec.compress

    def warning(
        self: StoringCodec, image: Picture, quality: float = 4.0, **options: object
    ) -> bytes:
        if image.width != 11:
            warnings.warn("EXIF is damaged", MetadataWarning, 2)
        return compress(self, image, quality)

    monkeypatch.setattr(StoringCodec, "compress", warning)
    for index in range(3):
        picture(f"{index}.png", shape=(10 + index, 5))
    names = ("0.png", "1.png", "2.png")
    assert run("compress", *names, "--jobs", "3", "--quiet") == 0
    assert capsys.readouterr().err == (
        "groupedmixer: 0.png: warning: EXIF is damaged\n"
        "groupedmixer: 2.png: warning: EXIF is damaged\n"
    )
    code, answer = report("compress", *names, "--force")
    assert code == 0
    assert [one.get("warnings") for one in answer["files"]] == [
        ["EXIF is damaged"],
        None,
        ["EXIF is damaged"],
    ]


@pytest.mark.parametrize("options", [[], ["--target-bpp", "99"]])
def test_no_metadata(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes | None] = []
    compress = StoringCodec.compress

    def looking(
        self: StoringCodec, image: Picture, quality: float = 4.0, **options: object
    ) -> bytes:
        seen.append(image.icc_profile)
        return compress(self, image, quality)

    monkeypatch.setattr(StoringCodec, "compress", looking)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (20, 12)).save("a.png", icc_profile=profile)
    assert run("compress", "a.png", *options) == 0
    assert set(seen) == {profile}
    seen.clear()
    assert run("compress", "a.png", *options, "--force", "--no-metadata") == 0
    assert set(seen) == {None}


# Interruptions


def in_the_main_thread(condition: Callable[[], bool]) -> None:
    """Waits until the signal that was sent has been dealt with."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def watch_for_the_end(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a batch asks its jobs to end."""
    asked = threading.Event()
    ask = Stop.ask

    def watched(self: Stop) -> None:
        asked.set()
        ask(self)

    monkeypatch.setattr(Stop, "ask", watched)
    return asked


@posix
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_while_coding(
    number: signal.Signals,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = watch_for_the_end(monkeypatch)
    compress = StoringCodec.compress

    def interrupted(
        self: StoringCodec, image: Picture, quality: float = 4.0, **options: object
    ) -> bytes:
        if image.width == 12:
            os.kill(os.getpid(), number)
            assert asked.wait(30)
        return compress(self, image, quality)

    monkeypatch.setattr(StoringCodec, "compress", interrupted)
    for index in range(5):
        picture(f"in/{index}.png", shape=(10 + index, 5))
    before = signal.getsignal(signal.SIGTERM)
    assert run("compress", "-r", "in", "-o", "out", "--json") == code
    captured = capsys.readouterr()
    assert captured.err == f"groupedmixer: {word}\n"
    answer = json.loads(captured.out)
    assert answer["interrupted"]
    assert (answer["summary"]["done"], answer["summary"]["left"]) == (2, 3)
    assert statuses(answer) == {"0.png": "done", "1.png": "done"}
    assert sorted(os.listdir("out")) == ["0.gmx", "1.gmx"]
    assert signal.getsignal(signal.SIGTERM) == before


@posix
def test_ctrl_c_while_writing_lets_the_write_finish(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = watch_for_the_end(monkeypatch)
    rename = os.replace

    def interrupted(source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(30)
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    picture("in/0.png")
    picture("in/1.png")
    assert run("compress", "-r", "in", "-o", "out") == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("in/0.png -> out/0.gmx: ")
    assert lines[1].startswith("2 files: 1 done, 1 left; ")
    assert sorted(os.listdir("out")) == ["0.gmx"]
    assert parse(Path("out/0.gmx").read_bytes())


@posix
def test_a_search_ends_between_two_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    encodes: list[float] = []
    ask, compress = Stop.ask, StoringCodec.compress
    monkeypatch.setattr(Stop, "ask", lambda self: (ask(self), asked.set()))

    def interrupted(
        self: StoringCodec, image: Picture, quality: float = 4.0, **options: object
    ) -> bytes:
        encodes.append(quality)
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(30)
        return compress(self, image, quality)

    monkeypatch.setattr(StoringCodec, "compress", interrupted)
    picture("a.png")
    assert run("compress", "a.png", "--target-bpp", "99") == 130
    assert len(encodes) == 1
    assert files() == ["a.png"]


def test_what_a_job_raises_stops_the_batch_and_comes_out() -> None:
    started: list[int] = []
    results: list[int] = []
    failed = threading.Event()

    def work(job: int, stop: Stop) -> int:
        started.append(job)
        if job == 1:
            failed.set()
            raise ZeroDivisionError
        if job == 2:
            in_the_main_thread(lambda: stop_is_asked(stop))
            stop.check()
        return job

    with pytest.raises(ZeroDivisionError):
        run_batch(range(50), work, results.append, parallel=1)
    assert results == [0]
    assert len(started) <= 3


def stop_is_asked(stop: Stop) -> bool:
    try:
        stop.check()
    except Stopped:
        return True
    return False


# Disks


@contextmanager
def small_files() -> Iterator[None]:
    """No file of more than 4096 bytes can be written: for as short as can be, since pytest's own
    output may be a longer one."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_half_way(capsys: pytest.CaptureFixture[str]) -> None:
    picture("in/0.png")
    noise("in/1.png", 60)
    picture("in/2.png")
    Path("out").mkdir()
    Path("out/1.gmx").write_bytes(b"earlier")
    with small_files():
        code = run("compress", "-r", "in", "-o", "out", "--force")
    assert code == 1
    assert capsys.readouterr().err == "groupedmixer: in/1.png: File too large\n"
    assert sorted(os.listdir("out")) == ["0.gmx", "1.gmx", "2.gmx"]
    assert Path("out/1.gmx").read_bytes() == b"earlier"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(5):
        noise(f"in/{index}.png", 90)  # 24 KiB each: two fit
    assert run("compress", "-r", "in", "-o", str(small_disk / "out"), "--jobs", "2") == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors
    assert all(line.endswith(": No space left on device") for line in errors)
    left = sorted(small_disk.rglob("*.*"))
    assert len(left) == 5 - len(errors)
    for path in left:
        assert parse(path.read_bytes())
