# SPDX-License-Identifier: MIT
"""Metrics, curves and BD-rate against values by hand; an evaluation's files; targets."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture
from PIL import Image

import groupedmixer
from groupedmixer import cli, search
from groupedmixer.errors import GmxError
from groupedmixer.evaluation import (
    OUTPUT_NAMES,
    Curve,
    Evaluation,
    bpp_at_psnr,
    compare,
    evaluate,
    ms_ssim,
    psnr,
    read_curve,
    results_json,
    table,
)
from groupedmixer.evaluation.pillow_codecs import PILLOW_CODECS, installed_codecs
from groupedmixer.evaluation.sheet import CROP, LABEL, MARGIN, ZOOM
from groupedmixer.images import load_picture
from groupedmixer.search import MAX_ENCODES, TargetError, quality_for

KODAK = os.environ.get("GROUPEDMIXER_KODAK")
PHOTO = Path(__file__).parents[1] / "benchmarks" / "data" / "flowers.png"

OURS = Curve((0.25, 0.5, 1.0, 2.0), (28.0, 31.0, 34.0, 37.0), (0.9, 0.95, 0.98, 0.99))
DOUBLE = Curve((0.5, 1.0, 2.0, 4.0), OURS.psnr, OURS.ms_ssim)  # the same for twice the bytes


def grey_pixels(*values: int) -> np.ndarray[Any, np.dtype[np.uint8]]:  # [1, values, 3]
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, axis=2)


# Metrics


def test_psnr_by_hand() -> None:
    # squared errors 0, 100, 0, 0: mean 25
    found = psnr(grey_pixels(5, 10, 0, 255), grey_pixels(5, 20, 0, 255))
    assert found == pytest.approx(20 * math.log10(255 / 5))
    # 0 - 255 must not wrap around in uint8
    assert psnr(grey_pixels(0), grey_pixels(255)) == 0
    assert psnr(grey_pixels(7), grey_pixels(7)) == 100


def test_ms_ssim_of_equal_and_of_damaged_pictures() -> None:
    original = np.asarray(picture(161, 170))
    assert ms_ssim(original, original) == pytest.approx(1, abs=1e-6)
    little, much = (
        np.clip(
            original.astype(int) + np.random.default_rng(0).integers(-n, n, original.shape), 0, 255
        )
        for n in (5, 50)
    )
    values = [ms_ssim(original, one.astype(np.uint8)) for one in (little, much)]
    assert values[0] is not None and values[1] is not None
    assert 1 > values[0] > values[1] > 0


def test_ms_ssim_is_not_defined_for_small_pictures() -> None:
    small = np.asarray(picture(160, 400))
    assert ms_ssim(small, small) is None


@pytest.mark.parametrize("metric", [psnr, ms_ssim])
def test_metrics_refuse_other_shapes(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"decoded must be \[1, 2, 3\].*got \[1, 1, 3\]"):
        metric(grey_pixels(1, 2), grey_pixels(1))


# Curves and BD-rate


@pytest.mark.parametrize("metric", ["psnr", "ms_ssim"])
@pytest.mark.parametrize(("anchor", "percent"), [(OURS, 0.0), (DOUBLE, -50.0)])
def test_bd_rate_by_hand(metric: Any, anchor: Curve, percent: float) -> None:
    found = compare(OURS, anchor, metric)
    assert found is not None and found.note == ""
    assert found.percent == pytest.approx(percent, abs=1e-6)


def test_no_overlap_is_said() -> None:
    found = compare(OURS, Curve((1.0, 2.0), (40.0, 42.0)))
    assert found is not None and found.percent is None
    assert found.note == "no overlap: 28.00 to 37.00 dB against 40.00 to 42.00 dB"


def test_little_overlap_is_said() -> None:
    found = compare(OURS, Curve((1.0, 2.0), (36.0, 42.0)))
    assert found is not None and found.percent is not None
    assert found.note == "only over 36.00 to 37.00 dB"


@pytest.mark.parametrize(
    ("anchor", "note"),
    [
        (Curve((1.0,), (30.0,)), "the other curve has one point, two are needed"),
        (Curve((1.0, 2.0, 3.0), (30.0, 29.0, 33.0)), "the other curve is not strictly monotone"),
    ],
)
def test_curves_without_a_bd_rate(anchor: Curve, note: str) -> None:
    found = compare(OURS, anchor)
    assert found is not None and (found.percent, found.note) == (None, note)


def test_a_missing_metric_is_not_compared() -> None:
    assert compare(OURS, Curve((1.0, 2.0), (30.0, 33.0)), "ms_ssim") is None


def test_rate_at_equal_psnr() -> None:
    assert bpp_at_psnr(OURS, 31.0) == pytest.approx(0.5)
    assert bpp_at_psnr(OURS, 29.5) == pytest.approx(math.sqrt(0.25 * 0.5))
    assert bpp_at_psnr(OURS, 27.9) is None
    assert bpp_at_psnr(OURS, 37.1) is None


@pytest.mark.parametrize(
    "content",
    [
        {"bpp": [2, 1], "psnr": [33, 30], "ms-ssim": [0.99, 0.9]},
        {"results": {"bpp": [1, 2], "psnr-rgb": [30, 33], "ms-ssim-rgb": [0.9, 0.99]}},
        {"results": {"bpp": [1, 2], "psnr": [30, 33], "ms-ssim-db": [10, 20]}},
    ],
)
def test_formats_of_published_curves(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(content))
    curve = read_curve(path)
    assert (curve.bpp, curve.psnr) == ((1, 2), (30, 33))
    assert curve.ms_ssim == pytest.approx((0.9, 0.99))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[1, 2]", 'no "bpp"'),
        ('{"Kodak": {"bpp": [1]}}', 'no "bpp"'),
        ('{"bpp": [1, 2]}', "must have one of psnr"),
        ('{"bpp": [1, 2], "psnr": [30]}', "psnr must have 2 values, got 1"),
        ('{"bpp": [1, 2], "psnr": [30, NaN]}', "psnr must be finite"),
        ('{"bpp": [0, 2], "psnr": [30, 33]}', "bpp must be positive"),
        ('{"bpp": [1, 2], "ms-ssim": [0.9, 9.9]}', "ms_ssim must be finite and in 0.0..1.0"),
        ('{"bpp": 1, "psnr": [30]}', "a list of numbers"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "strange.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"strange.json must hold.*{reason}"):
        read_curve(path)


# A whole evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    picture(168, 200).save(path / "a.png")
    Image.merge("RGBA", (*picture(200, 168, 1).split(), Image.new("L", (168, 200), 9))).save(
        path / "b.PNG"
    )
    (path / "broken.png").write_bytes(b"no picture")
    (path / "notes.txt").write_text("not a picture by its name")
    return path


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "far.json"
    path.write_text('{"results": {"bpp": [1, 2], "psnr": [70, 80]}}')
    return path


@pytest.fixture(scope="module")
def evaluated(
    folder: Path,
    points: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_codec: groupedmixer.Codec,
) -> tuple[Evaluation, Path]:
    output = tmp_path_factory.mktemp("evaluation") / "new" / "folder"
    evaluation = evaluate(
        folder,
        tiny_codec,
        [4, 0.5],
        codecs=["jpeg", "webp"],
        points={"far": points},
        output=output,
        sheet_bpp=2.0,
    )
    return evaluation, output


def test_measurements_are_those_of_the_codec(
    evaluated: tuple[Evaluation, Path], folder: Path, tiny_codec: groupedmixer.Codec
) -> None:
    evaluation, _ = evaluated
    assert evaluation.pictures == ("a.png", "b.PNG")
    assert evaluation.qualities("groupedmixer-tiny-test") == (0.5, 4)
    rgb = np.array(Image.open(folder / "b.PNG").convert("RGB"))  # alpha is dropped
    data = tiny_codec.compress(rgb, 4)
    (found,) = (
        one
        for one in evaluation.measurements
        if (one.picture, one.codec, one.quality) == ("b.PNG", "groupedmixer-tiny-test", 4)
    )
    assert found.bytes == len(data)
    assert found.bpp == 8 * len(data) / (168 * 200)
    assert found.psnr == psnr(rgb, np.asarray(tiny_codec.decompress(data)))


def test_broken_pictures_are_reported(evaluated: tuple[Evaluation, Path]) -> None:
    ((name, reason),) = evaluated[0].failures
    assert name == "broken.png"
    assert "Pillow" in reason


def test_results_json(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, output = evaluated
    results = json.loads((output / "results.json").read_text())
    assert results == results_json(evaluation)
    ours = results["codecs"]["groupedmixer-tiny-test"]
    assert list(results["codecs"]) == ["groupedmixer-tiny-test", "jpeg", "webp"]
    for codec in results["codecs"].values():
        lengths = {len(codec[key]) for key in ("quality", "bpp", "psnr", "ms_ssim")}
        assert len(lengths) == 1
    rows = [
        one
        for one in evaluation.measurements
        if one.codec == "groupedmixer-tiny-test" and one.quality == 4
    ]
    assert ours["bpp"][1] == pytest.approx(sum(one.bpp for one in rows) / 2)
    assert ours["psnr"][1] == pytest.approx(sum(one.psnr for one in rows) / 2)
    assert set(results["bd_rate"]["groupedmixer-tiny-test"]) == {"jpeg", "webp", "far"}
    assert results["bd_rate"]["groupedmixer-tiny-test"]["far"] is None
    assert "far" in results["bd_rate_notes"]["groupedmixer-tiny-test"]
    assert set(results["bd_rate_ms_ssim"]["groupedmixer-tiny-test"]) == {"jpeg", "webp"}
    assert results["skipped"][0]["picture"] == "broken.png"


def test_results_csv(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, output = evaluated
    rows = list(csv.DictReader((output / "results.csv").open()))
    per_picture = 2 + sum(len(PILLOW_CODECS[name].qualities) for name in ("jpeg", "webp"))
    assert len(rows) == len(evaluation.measurements) == 2 * per_picture
    for row in rows:
        bpp = 8 * int(row["bytes"]) / (int(row["width"]) * int(row["height"]))
        assert float(row["bpp"]) == pytest.approx(bpp, abs=1e-6)
        assert 0 < float(row["ms_ssim"]) <= 1


def test_drawings(evaluated: tuple[Evaluation, Path]) -> None:
    output = evaluated[1]
    assert sorted(path.name for path in output.iterdir()) == sorted(OUTPUT_NAMES)
    with Image.open(output / "rd.png") as plot:
        assert plot.size == (1200, 900)
        assert len(np.unique(np.asarray(plot.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    svg = (output / "rd.svg").read_text()
    assert svg.rstrip().endswith("</svg>")
    with Image.open(output / "sheet.png") as sheet:  # original, JPEG, WebP, ours; 2 pictures
        assert sheet.size[0] == 4 * (ZOOM * CROP + MARGIN) + MARGIN
        assert sheet.size[1] == 2 * (ZOOM * CROP + LABEL + MARGIN) + MARGIN
        pixels = np.asarray(sheet)
    blocks = pixels[MARGIN : MARGIN + 2 * 160, MARGIN : MARGIN + 2 * 160]
    assert np.array_equal(blocks[::2], blocks[1::2])  # nearest neighbour
    assert np.array_equal(blocks[:, ::2], blocks[:, 1::2])


def test_table() -> None:
    ours, jpeg = (
        Curve(curve.bpp[:2], OURS.psnr[:2] if OURS.psnr else None) for curve in (OURS, DOUBLE)
    )
    comparison = compare(ours, jpeg)
    missing = compare(ours, Curve((1.0, 2.0), (40.0, 42.0)))
    assert comparison is not None and missing is not None
    from groupedmixer.evaluation import Measurement

    measurements = tuple(
        Measurement("a.png", "ours", quality, 100, 100, 1, 30.0, None) for quality in (0.0, 7.0)
    )
    text = table(
        Evaluation(
            name="ours",
            weights="w-1",
            measurements=measurements,
            curves={"ours": ours, "jpeg": jpeg},
            published={},
            bd_rate={"jpeg": comparison, "far": missing},
            bd_rate_ms_ssim={},
            failures=(),
        )
    )
    assert "| quality | bpp | PSNR dB | MS-SSIM | JPEG bpp |" in text
    assert "| 0 | 0.250 | 28.00 | - | 0.500 |" in text
    assert "| 7 | 0.500 | 31.00 | - | 1.000 |" in text
    assert "| jpeg | -50.0 % | - |" in text
    assert "| far | no overlap: " in text
    assert "No MS-SSIM" in text and "a.png" in text


def test_small_pictures_have_no_ms_ssim_mean(
    tmp_path: Path, folder: Path, tiny_codec: groupedmixer.Codec
) -> None:
    shutil.copy(folder / "a.png", tmp_path)
    picture(40, 56).save(tmp_path / "small.png")
    evaluation = evaluate(tmp_path, tiny_codec, [3], codecs=["jpeg"])
    assert evaluation.too_small_for_ms_ssim() == ("small.png",)
    assert all(one["ms_ssim"][0] is None for one in results_json(evaluation)["codecs"].values())
    known = {one.picture for one in evaluation.measurements if one.ms_ssim is not None}
    assert known == {"a.png"}


@pytest.mark.parametrize("name", installed_codecs())
def test_every_codec_codes_and_decodes(name: str, tmp_path: Path) -> None:
    codec = PILLOW_CODECS[name]
    image = picture(64, 80)
    sizes = []
    for quality in (codec.qualities[0], codec.qualities[-1]):
        path = tmp_path / f"picture{codec.suffix}"
        path.write_bytes(codec.encode(image, quality))
        sizes.append(path.stat().st_size)
        assert psnr(np.asarray(image), codec.decode(path)) > 15
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"qualities": []}, "qualities must have at least one value"),
        ({"qualities": [1, 1.0]}, "qualities must be different"),
        ({"qualities": [8]}, "quality must be in 0..7, got 8"),
        ({"codecs": ["bmp"]}, "codecs must be of jpeg, webp, avif, jxl, got 'bmp'"),
        ({"points": {"jpeg": "far.json"}}, "got 'jpeg'"),
    ],
)
def test_arguments_are_checked(
    folder: Path,
    points: Path,
    tiny_codec: groupedmixer.Codec,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Any,
    reason: str,
) -> None:
    monkeypatch.chdir(points.parent)
    with pytest.raises(ValueError, match=reason):
        evaluate(folder, tiny_codec, **arguments)


def test_codecs_that_are_not_installed(
    folder: Path, tiny_codec: groupedmixer.Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    assert "jxl" not in installed_codecs()
    with pytest.raises(ValueError, match="pip install pillow-jxl-plugin"):
        evaluate(folder, tiny_codec, codecs=["jxl"])


def test_the_extra_is_named(
    folder: Path, tiny_codec: groupedmixer.Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bjontegaard", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r"bjontegaard: pip install 'groupedmixer\[eval\]'"):
        evaluate(folder, tiny_codec)


def test_folders_without_pictures(tmp_path: Path, tiny_codec: groupedmixer.Codec) -> None:
    with pytest.raises(GmxError, match="must hold pictures"):
        evaluate(tmp_path, tiny_codec)
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(GmxError, match="none of its 1 pictures"):
        evaluate(tmp_path, tiny_codec)
    with pytest.raises(OSError):
        evaluate(tmp_path / "absent", tiny_codec)


# The command line


@pytest.fixture
def tiny_is_rt(monkeypatch: pytest.MonkeyPatch, tiny_codec: groupedmixer.Codec) -> None:
    monkeypatch.setattr(groupedmixer, "load", lambda name, device="cpu": tiny_codec, raising=False)


def test_eval_command(
    tiny_is_rt: None, folder: Path, points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(folder), "--qualities", "0", "7", "--codecs", "jpeg"]
    command += ["--points", f"away={points}", "--output", str(tmp_path / "out")]
    assert cli.main(command) == 1  # broken.png
    out, err = capsys.readouterr()
    assert out == (tmp_path / "out" / "table.md").read_text()
    assert out.startswith("groupedmixer-rt (tiny-test, ")
    assert "| away | no overlap" in out
    assert [line.split(": ")[0] for line in err.splitlines()[:2]] == ["a.png", "b.PNG"]
    assert "broken.png: " in err

    assert cli.main(command) == 1
    assert "--force" in capsys.readouterr().err
    before = (tmp_path / "out" / "results.csv").read_bytes()
    assert cli.main([*command, "--force", "--json", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert set(json.loads(out)["codecs"]) == {"groupedmixer-rt", "jpeg"}
    assert len(err.splitlines()) == 1
    assert (tmp_path / "out" / "results.csv").read_bytes() == before


def test_eval_exits_with_0_if_all_is_well(
    tiny_is_rt: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(20, 30).save(tmp_path / "one.png")
    command = ["eval", str(tmp_path), "--qualities", "3", "--codecs", "jpeg"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("\n| 3 | ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


@pytest.mark.parametrize("given", [["a/x.json", "b/x.json"], ["=x.json"], ["name="]])
def test_points_need_distinct_names(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "folder", "--points", *given]) == 2
    assert "--points" in capsys.readouterr().err


def test_the_command_knows_all_codecs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["eval", "folder", "--codecs", "?"])
    message = capsys.readouterr().err
    assert all(name in message.split("choose from")[1] for name in PILLOW_CODECS)


# Targets


@pytest.fixture(scope="module")
def rt() -> groupedmixer.Codec:
    return groupedmixer.load("rt")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB").crop((160, 160, 288, 288))


def test_a_target_rate_is_a_limit(rt: groupedmixer.Codec, photo: Image.Image) -> None:
    found = quality_for(rt, photo, target_bpp=1.0)
    assert 0.99 < found.bpp <= 1.0
    assert found.bpp == 8 * len(found.data) / 128**2
    assert found.data == rt.compress(photo, found.quality)
    assert found.psnr is None
    assert found.encodes <= MAX_ENCODES


def test_a_target_psnr_is_reached(rt: groupedmixer.Codec, photo: Image.Image) -> None:
    found = quality_for(rt, photo, target_psnr=32.0)
    assert found.psnr is not None
    assert 32.0 <= found.psnr < 32.1
    assert found.psnr == psnr(np.asarray(photo), np.asarray(rt.decompress(found.data)))
    assert found.encodes <= MAX_ENCODES


def test_targets_that_every_quality_meets(rt: groupedmixer.Codec, photo: Image.Image) -> None:
    assert quality_for(rt, photo, target_bpp=100).quality == 7
    assert quality_for(rt, photo, target_psnr=5).quality == 0


def test_targets_out_of_reach(rt: groupedmixer.Codec, photo: Image.Image) -> None:
    with pytest.raises(TargetError, match=r"target_bpp must be at least 0\.\d+ .*got 0.01"):
        quality_for(rt, photo, target_bpp=0.01)
    with pytest.raises(TargetError, match=r"target_psnr must be at most \d+\.\d\d .*got 90"):
        quality_for(rt, photo, target_psnr=90)


@pytest.mark.parametrize(
    "targets",
    [{}, {"target_bpp": 1, "target_psnr": 30}, {"target_bpp": 0}, {"target_psnr": math.nan}],
)
def test_targets_are_checked(tiny_codec: groupedmixer.Codec, targets: Any) -> None:
    with pytest.raises(ValueError, match="target_"):
        quality_for(tiny_codec, picture(8, 8), **targets)


class BentCodec:
    """Bytes that rise as a high power of the quality: hard for a secant."""

    def __init__(self) -> None:
        self.encodes = 0

    def compress(self, image: object, quality: float) -> bytes:
        self.encodes += 1
        return bytes(100 + int(9000 * (quality / 7) ** 6))


@pytest.mark.parametrize("target", [0.09, 0.2, 1.0, 5.0])
def test_the_search_is_short_on_bent_curves(target: float) -> None:
    codec: Any = BentCodec()
    found = search.quality_for(codec, picture(100, 100), target_bpp=target)
    assert codec.encodes == found.encodes <= MAX_ENCODES
    assert 0.8 * target < found.bpp <= target


def test_compress_with_targets(
    tmp_path: Path,
    photo: Image.Image,
    rt: groupedmixer.Codec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(groupedmixer, "load", lambda name, device="cpu": rt, raising=False)
    source, target = tmp_path / "photo.png", tmp_path / "photo.gmx"
    photo.save(source)
    command = ["compress", str(source), str(target), "--force"]
    assert cli.main([*command, "--target-bpp", "1"]) == 0
    line = capsys.readouterr().out
    found = quality_for(rt, load_picture(source), target_bpp=1)
    assert target.read_bytes() == found.data
    assert f" bpp, quality {found.quality:.8g}, " in line
    assert cli.main([*command, "--target-psnr", "30"]) == 0
    line = capsys.readouterr().out
    assert " dB, quality " in line
    assert 30 <= psnr(np.asarray(photo), np.asarray(rt.decompress(target.read_bytes()))) < 30.1
    assert cli.main([*command, "--target-psnr", "90"]) == 1
    assert "photo.png: target_psnr must be at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["-q", "4", "--target-bpp", "1"],
        ["--target-bpp", "1", "--target-psnr", "30"],
        ["--target-bpp", "0"],
        ["--target-psnr", "nan"],
        ["--target-psnr", "much"],
    ],
)
def test_targets_on_the_command_line_are_checked(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compress", "photo.png", *options])
    assert stopped.value.code == 2


@pytest.mark.slow
@pytest.mark.skipif(KODAK is None, reason="GROUPEDMIXER_KODAK names no folder of the 24 pictures")
@pytest.mark.parametrize("name", ["kodim01", "kodim23"])
def test_bytes_and_psnr_rise_with_the_quality(rt: groupedmixer.Codec, name: str) -> None:
    original = load_picture(Path(str(KODAK)) / f"{name}.png")
    found = []
    for quality in np.arange(0, 7.01, 0.25):
        data = rt.compress(original, float(quality))
        found.append((len(data), psnr(original.rgb, np.asarray(rt.decompress(data)))))
    sizes, qualities = zip(*found, strict=True)
    assert all(np.diff(sizes) > 0), sizes
    assert all(np.diff(qualities) > 0), qualities
