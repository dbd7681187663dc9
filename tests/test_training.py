# SPDX-License-Identifier: MIT
"""Training: data that survives bad files, a run that learns, ends on time and survives a kill."""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture, random_model
from pytorch_msssim import ms_ssim

import groupedmixer
from groupedmixer import cli
from groupedmixer.config import LAMBDAS
from groupedmixer.entropy import ScaleMixtureLikelihood, dead_zone
from groupedmixer.mixer import interpolate_levels
from groupedmixer.training import loop
from groupedmixer.training.checkpoint import Position, load_checkpoint, save_checkpoint
from groupedmixer.training.command import add_train_options, settings_of
from groupedmixer.training.data import CropSequence, crop_loader, find_pictures
from groupedmixer.training.loop import train
from groupedmixer.training.loss import rate_distortion_loss
from groupedmixer.training.optimization import (
    initialise_entropy_model,
    make_average,
    make_optimizer,
)
from groupedmixer.training.schedule import done_fraction, learning_rate_scale
from groupedmixer.training.settings import Settings
from groupedmixer.training.trained_model import TrainedModel
from groupedmixer.training.validation import validate

OUTPUT = Path("run/mine.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with six pictures, no two alike."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(6):
        picture(72, 80, seed).save(folder / f"{seed}.png")
    return folder


def pixels(height: int, width: int, *seeds: int) -> torch.Tensor:  # [B, 3, H, W] uint8
    shown = np.stack([np.asarray(picture(height, width, seed)) for seed in seeds])
    return torch.from_numpy(shown).permute(0, 3, 1, 2)


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def encoded(height: int, width: int, format: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    picture(height, width).convert(mode).save(stream, format)
    return stream.getvalue()


def small_run(pictures: Path, output: Path, **changes: Any) -> Settings:
    settings = Settings(
        data=(pictures,), output=output, config="tiny", steps=4, batch=2, crop=64, threads=1
    )
    return dataclasses.replace(settings, accelerator="cpu", progress=False, **changes)


# ---- data -----------------------------------------------------------------------------------


@pytest.fixture
def mixed_sources(tmp_path: Path) -> list[Path]:
    """A folder and a tar file: two good pictures, one left out, two bad ones, a text."""
    folder = tmp_path / "folder" / "deeper"
    folder.mkdir(parents=True)
    picture(80, 70).save(folder / "good.png")
    picture(80, 70).save(folder / "left-out.png")
    picture(30, 70).save(folder / "small.png")
    (folder / "notes.txt").write_text("not looked at")
    with tarfile.open(tmp_path / "pack.tar", "w") as archive:
        add_member(archive, "deep/broken.jpg", b"not a picture")
        add_member(archive, "deep/grey.webp", encoded(64, 64, "WEBP", "L"))
        add_member(archive, "deep/left-out.png", encoded(64, 64, "PNG"))
    return [tmp_path / "folder", tmp_path / "pack.tar"]


def test_pictures_come_from_folders_and_tar_files(mixed_sources: list[Path]) -> None:
    files = find_pictures(mixed_sources, {"left-out.png"})
    assert [str(file).rsplit("/", 1)[1] for file in files] == [
        "good.png",
        "small.png",
        "broken.jpg",
        "grey.webp",
    ]
    crops = CropSequence(files, 64, seed=0)
    assert crops.pictures == 2
    small, broken = crops.problems
    assert small.endswith("small.png: both sides must be at least 64, got 70 x 30")
    assert "pack.tar/deep/broken.jpg: not an image" in broken
    with pytest.raises(ValueError, match="data must hold a picture that can be used, all 4 are"):
        CropSequence(files, 100, seed=0)


def test_data_that_is_no_data(tmp_path: Path, mixed_sources: list[Path]) -> None:
    with pytest.raises(ValueError, match="at least one picture, got 1 in .*, 1 of them excluded"):
        everything = {"good.png", "left-out.png", "small.png"}
        (tmp_path / "one").mkdir()
        picture(8, 8).save(tmp_path / "one" / "good.png")
        find_pictures([tmp_path / "one"], everything)
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        add_member(archive, "one.png", encoded(64, 64, "PNG"))
    with pytest.raises(ValueError, match="uncompressed tar files, got .*packed.tar.gz"):
        find_pictures([tmp_path / "packed.tar.gz"])
    with pytest.raises(FileNotFoundError):
        find_pictures([tmp_path / "missing.tar"])


def test_streamed_crops_are_those_of_memory(pictures: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pack.tar", "w") as archive:
        for path in sorted(pictures.iterdir()):
            archive.add(path, path.name)
    kept = CropSequence(find_pictures([pictures]), 64, seed=3)
    streamed = CropSequence(find_pictures([tmp_path / "pack.tar"]), 64, seed=3, stream=True)
    for number in range(20):
        assert torch.equal(kept[number], streamed[number])


def test_a_streamed_bad_file_is_reported_once_and_replaced(
    mixed_sources: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    crops = CropSequence(find_pictures(mixed_sources), 64, seed=0, stream=True)
    assert all(crops[number].shape == (3, 64, 64) for number in range(30))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("skipped ") for line in lines)
    small = CropSequence(find_pictures(mixed_sources), 100, seed=0, stream=True)
    with pytest.raises(ValueError, match="100 in a row are bad"):
        small[0]


def test_crops_are_seeded_and_go_round(tmp_path: Path) -> None:
    for value in range(6):
        array = np.full((16, 16, 3), 40 * value, np.uint8)
        groupedmixer.images.to_pil(groupedmixer.Picture(array)).save(tmp_path / f"{value}.png")
    files = find_pictures([tmp_path])
    first, again, other = (CropSequence(files, 8, seed) for seed in (1, 1, 2))
    seen = [int(first[number][0, 0, 0]) for number in range(12)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == [40 * value for value in range(6)]
    assert seen[:6] != seen[6:]
    assert seen == [int(again[number][0, 0, 0]) for number in range(12)]
    assert seen != [int(other[number][0, 0, 0]) for number in range(12)]


def test_crops_are_flipped_and_turned(tmp_path: Path) -> None:
    picture(16, 16).save(tmp_path / "one.png")
    crops = CropSequence(find_pictures([tmp_path]), 16, seed=0)
    assert len({crops[number].numpy().tobytes() for number in range(60)}) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_the_crops_out(pictures: Path, workers: int) -> None:
    crops = CropSequence(find_pictures([pictures]), 64, seed=0)
    shares = [list(islice(crop_loader(crops, 2, workers, 5, rank, 2), 3)) for rank in range(2)]
    for place in range(6):
        for rank in range(2):
            batch = shares[rank][place // 2]
            assert torch.equal(batch[place % 2], crops[5 + 2 * place + rank])


# ---- schedule, loss, average ----------------------------------------------------------------


def test_the_schedule_rises_and_falls_with_steps_or_minutes() -> None:
    by_steps = Settings(data=(Path("x"),), output=OUTPUT, steps=200)
    by_time = Settings(data=(Path("x"),), output=OUTPUT, minutes=2)
    assert done_fraction(by_steps, 50, 1e9) == done_fraction(by_time, 10**9, 30.0) == 0.25
    assert done_fraction(by_steps, 201, 0) == done_fraction(by_time, 0, 121) == 1
    assert learning_rate_scale(0.01, 0.02) == pytest.approx(0.5, rel=1e-3)
    assert learning_rate_scale(0.5, 0.02) == pytest.approx(0.5)
    assert learning_rate_scale(1.0, 0.02) == 0.01
    rates = [learning_rate_scale(step / 100, 0.1) for step in range(101)]
    assert int(np.argmax(rates)) == 10


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_the_loss_is_rate_and_distortion_by_hand(metric: str) -> None:
    torch.manual_seed(0)
    x, x_hat = torch.rand(2, 3, 176, 164), torch.rand(2, 3, 176, 164)
    likelihoods = {"y": torch.full((2, 8, 11, 11), 0.5), "z": torch.full((2, 4, 3, 3), 0.25)}
    out = {"x_hat": x_hat, "likelihoods": likelihoods}
    quality = torch.tensor([2.0, 7.0])
    loss, bpp, mse = rate_distortion_loss(x, out, quality, metric)
    assert bpp.tolist() == pytest.approx([(8 * 121 + 2 * 4 * 9) / (176 * 164)] * 2)
    assert mse.tolist() == pytest.approx(((x - x_hat) ** 2 * 255**2).mean((1, 2, 3)).tolist())
    lambdas, distortion = [LAMBDAS[2], LAMBDAS[7]], mse
    if metric == "ms-ssim":
        distortion = 1269 * (1 - ms_ssim(x, x_hat, data_range=1.0, size_average=False))
    by_hand = [
        (float(bpp[i]) + lambdas[i] * float(distortion[i])) / lambdas[i] ** 0.5 for i in range(2)
    ]
    assert float(loss) == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_the_average_follows_at_first_and_smooths_later() -> None:
    model = random_model(groupedmixer.get_config("tiny"))
    average = make_average(model, 0.999)
    gain = model.latent_codec.gain
    kept = average.module.latent_codec.gain
    average.update_parameters(model)
    start = gain.detach().clone()
    with torch.no_grad():
        gain += 1
    average.update_parameters(model)
    assert torch.allclose(kept, start + 1 - 2 / 11)
    average.n_averaged.fill_(10**6)
    before = kept.clone()
    with torch.no_grad():
        gain += 1
    average.update_parameters(model)
    assert torch.allclose(kept, torch.lerp(before, gain, 0.001))


@pytest.mark.parametrize("quality", [0.0, 3.5, 7.0])
def test_training_sees_rate_and_distortion_of_files(quality: float) -> None:
    """Noise in place of rounding would double the rate at quality 0."""
    model = groupedmixer.load_model("rt")
    model.latent_codec.refresh_medians()
    x = pixels(256, 256, 3).float() / 255
    with torch.no_grad():
        coded, trained = model(x, quality), model.train()(x, quality)
    # A skipped symbol is free in a file; in training it costs what its distribution says.
    skipped = coded["likelihoods"]["y"] == 1
    trained["likelihoods"]["y"].masked_fill_(skipped, 1)
    level = torch.tensor([quality])
    _, coded_bpp, coded_mse = rate_distortion_loss(x, coded, level)
    _, trained_bpp, trained_mse = rate_distortion_loss(x, trained, level)
    assert float(trained_bpp) == pytest.approx(float(coded_bpp), rel=0.1)
    assert float(trained_mse) == pytest.approx(float(coded_mse), rel=0.1)


def test_linear_transforms_learn_in_proportion_to_their_weights() -> None:
    model = random_model(groupedmixer.get_config("tiny"))
    settings = Settings(data=(Path("x"),), output=OUTPUT, steps=1, learning_rate=1e-3)
    rates = {
        id(parameter): group["lr"]
        for group in make_optimizer(model, settings).param_groups
        for parameter in group["params"]
    }
    for linear in (model.g_a.linear, model.g_s.linear):
        size = float(linear.weight.detach().square().mean().sqrt())
        assert rates[id(linear.weight)] == pytest.approx(0.3e-3 * size)
        assert rates[id(linear.bias)] == rates[id(linear.weight)]
    assert rates[id(model.latent_codec.gain)] == 1e-3


def test_a_new_entropy_model_starts_at_the_spectrum_of_every_quality() -> None:
    torch.manual_seed(0)
    model = groupedmixer.GroupedMixer(groupedmixer.get_config("rt"))
    codec = model.latent_codec
    x = pixels(128, 128, *range(8)).float() / 255
    initialise_entropy_model(model, x)
    for level in (0.0, 3.5, 7.0):
        quality = torch.full((8,), level)
        with torch.no_grad():
            y = model.g_a(x) * interpolate_levels(codec.gain, quality)[:, :, None, None]
            mean, sigma = y.mean((0, 2, 3)), y.std((0, 2, 3))
            raw_scale = sigma.log()[:, None, None].expand_as(y)
            best = ScaleMixtureLikelihood()(torch.round(y - mean[:, None, None]), raw_scale)
            found = model.train()(x, quality)["likelihoods"]["y"]
        assert float(found.log2().mean() / best.log2().mean()) < 1.2, level


def test_a_new_entropy_model_bears_grey_pictures() -> None:
    model = groupedmixer.GroupedMixer(groupedmixer.get_config("tiny"))
    x = torch.full((4, 3, 64, 64), 0.5)
    initialise_entropy_model(model, x)
    context = model.latent_codec.context
    assert context.head.isfinite().all()
    assert context.head_bias.isfinite().all()


def test_a_new_network_learns_from_the_distortion() -> None:
    """Symbols that are skipped would give g_a no gradient."""
    torch.manual_seed(0)
    model = groupedmixer.GroupedMixer(groupedmixer.get_config("fast"))
    x = pixels(64, 64, 0, 1).float() / 255
    initialise_entropy_model(model, x)
    for level in (0.0, 3.5):
        model.zero_grad()
        out = model.train()(x, torch.full((2,), level))
        (out["x_hat"] - x).square().mean().backward()
        gradients = [p.grad.norm() for p in model.g_a.parameters() if p.grad is not None]
        assert float(torch.stack(gradients).norm()) > 0.01, level


def test_qualities_of_a_batch_cover_the_range_and_each_is_uniform() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([loop.draw_qualities(4) for _ in range(4000)])
    assert drawn.min() == 0 and drawn.max() == 7 * 256
    edges = torch.arange(5) * (7 * 256 + 1) / 4
    ordered = drawn.sort(dim=1).values
    assert (ordered >= edges[:4].floor()).all(), "one of each part in every batch"
    assert (ordered < edges[1:].ceil()).all(), "one of each part in every batch"
    mean = drawn.float().mean(dim=0) / (7 * 256)
    assert ((mean - 0.5).abs() < 0.02).all(), "no place in the batch has a part of its own"
    assert {int(loop.draw_qualities(1)) // 448 for _ in range(100)} >= {0, 1, 2, 3}


# ---- the form at the end --------------------------------------------------------------------


def test_the_coding_form_sees_what_files_hold() -> None:
    model = random_model(groupedmixer.get_config("tiny"))
    with torch.no_grad():  # scales low enough that some symbols are skipped
        model.latent_codec.context.head_bias.chunk(2, dim=1)[1].sub_(1.5)
    model.latent_codec.refresh_medians()
    x = pixels(64, 96, 0, 1).float() / 255
    quality = torch.tensor([1.25, 6.0])
    with torch.no_grad():
        evaluated = model(x, quality)
    model.train()
    out = model(x, quality, as_coded=True)
    skipped = evaluated["likelihoods"]["y"] == 1
    assert 0 < skipped.float().mean() < 1, "the picture must have both kinds of symbols"
    assert torch.allclose(out["x_hat"], evaluated["x_hat"], atol=1e-4)
    for name in ("y", "z"):
        ours, theirs = out["likelihoods"][name], evaluated["likelihoods"][name]
        ours = ours.masked_fill(skipped, 1) if name == "y" else ours
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_coding_form_has_gradients_for_all_that_is_trained() -> None:
    model = random_model(groupedmixer.get_config("tiny")).train()
    model.latent_codec.refresh_medians()
    x = pixels(64, 64, 0).float() / 255
    quality = torch.tensor([3.5])
    rate_distortion_loss(x, model(x, quality, as_coded=True), quality).loss.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == {"latent_codec.entropy_bottleneck.quantiles"}


SLOW_CONFIGS = [
    pytest.param(name, marks=[] if name == "tiny" else pytest.mark.slow)
    for name in groupedmixer.CONFIGS
]


@pytest.mark.parametrize("name", SLOW_CONFIGS)
def test_every_configuration_trains(name: str, tmp_path: Path) -> None:
    settings = Settings(data=(tmp_path,), output=OUTPUT, config=name, steps=1)
    model = loop._model(settings)
    optimizer = make_optimizer(model, settings)
    shown = pixels(64, 64, 0)
    field = torch.tensor([900])
    before = {key: value.clone() for key, value in model.named_parameters()}
    x, quality = shown.float() / 255, field / 256
    # A head that starts at zero shuts all before it off in the first step, and a hyper latent that
    # rounds to zero shuts its gain off in the coding form: hence this order.
    with loop._fast_arithmetic(threads=None):
        for as_coded in (True, False):
            optimizer.zero_grad()
            out = TrainedModel(model)(shown, field, as_coded)
            rate_distortion_loss(x, out, quality).loss.backward()
            trained = [p for p in model.parameters() if p.requires_grad]
            assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
            optimizer.step()
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert still == {"latent_codec.entropy_bottleneck.quantiles"}


# ---- checkpoints ----------------------------------------------------------------------------


def a_run(seed: int, config: str = "tiny") -> tuple[Any, Any, Any]:
    torch.manual_seed(seed)
    model = groupedmixer.GroupedMixer(groupedmixer.get_config(config))
    model.latent_codec.entropy_bottleneck.quantiles.requires_grad_(False)
    optimizer = make_optimizer(model, Settings(data=(Path("x"),), output=OUTPUT, steps=1))
    return model, make_average(model, 0.9), optimizer


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model, average, optimizer = a_run(seed=1)
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    average.update_parameters(model)
    position = Position(step=7, elapsed=1.5, crops=28, mean_norm=0.1, as_coded=True)
    save_checkpoint(path, model, average, optimizer, position, {"scale": 2.0})
    assert os.listdir(tmp_path) == ["a.safetensors"]

    others = a_run(seed=2)
    assert load_checkpoint(path, *others) == (position, {"scale": 2.0})
    for ours, theirs in zip((model, average), others[:2], strict=True):
        expected, got = ours.state_dict(), theirs.state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    for index, state in optimizer.state_dict()["state"].items():
        for field, value in state.items():
            assert torch.equal(value, others[2].state_dict()["state"][index][field])


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_checkpoint(path, *a_run(0))
    groupedmixer.save_weights(random_model(groupedmixer.get_config("tiny")), path, "a")
    with pytest.raises(ValueError, match="must be a checkpoint of format .*, got 'groupedmixer-w"):
        load_checkpoint(path, *a_run(0))
    model, average, optimizer = a_run(0)
    save_checkpoint(path, model, average, optimizer, Position(), {})
    model.config = groupedmixer.get_config("rt")
    with pytest.raises(ValueError, match="must be a checkpoint of the configuration .*rt"):
        load_checkpoint(path, model, average, optimizer)


# ---- runs -----------------------------------------------------------------------------------


def test_a_killed_run_ends_as_one_that_was_not(pictures: Path, tmp_path: Path) -> None:
    """All in processes of their own: what other tests leave in PyTorch may change last bits."""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}

    def command(output: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "groupedmixer", "train", "--config", "tiny", "--crop", "64"),
            *("--data", str(pictures), "--steps", "40", "--final", "0.2", "--batch", "2"),
            *("--threads", "1", "--accelerator", "cpu", "--log-every", "1"),
            *("--checkpoint-every", "0", "--output", str(output), "--resume", "auto"),
        ]

    def run(output: Path) -> str:
        done = subprocess.run(
            command(output), env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    whole, output = (tmp_path / name / "mine.safetensors" for name in ("whole", "killed"))
    assert "resumed" not in run(whole)
    with subprocess.Popen(
        command(output), stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 10 "):
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()

    lines = run(output).splitlines()
    step = int(next(line for line in lines if line.startswith("resumed")).split()[3].rstrip(","))
    assert 9 <= step < 40
    fingerprints = [groupedmixer.load_weights(path).fingerprint for path in (whole, output)]
    assert fingerprints[0] == fingerprints[1]

    codec = groupedmixer.load(output)
    image = picture(50, 60)
    restored = codec.decompress(codec.compress(image))
    error = np.asarray(restored, np.float64) - np.asarray(image)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 15

    shown = [np.array(picture(64, 64, seed)) for seed in range(2)]
    start = loop._model(small_run(pictures, output))
    trained = groupedmixer.load_model(whole)
    before, after = (
        sum(point.loss for point in validate(model, shown, (1.0, 3.5, 6.0)))
        for model in (start, trained)
    )
    assert after < before


def test_a_run_by_minutes_ends_on_time_and_goes_on_with_what_was_left(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count()
    # Every look at the clock takes 0.1 s: a step with its line, which looks three times, 0.3 s.
    clock = SimpleNamespace(monotonic=lambda: 0.1 * next(ticks))
    monkeypatch.setattr(loop, "time", clock)
    settings = small_run(pictures, tmp_path / "mine.safetensors", log_every=1)
    settings = dataclasses.replace(settings, steps=None, minutes=0.05)
    train(settings)
    lines = capsys.readouterr().out.splitlines()
    rates = [float(line.split(" lr ")[1].split()[0]) for line in lines if " lr " in line]
    assert rates[-1] < 0.1 * max(rates), "the schedule must be finished"
    assert f"done: {len(rates)} steps, 0.1 min" in lines
    assert 0.3 * len(rates) == pytest.approx(3, abs=0.4)

    train(dataclasses.replace(settings, minutes=0.08, resume="auto", force=True))
    lines = capsys.readouterr().out.splitlines()
    assert f"resumed at step {len(rates)}, 0.1 min" in lines
    further = sum(" lr " in line for line in lines)
    assert 0.3 * further == pytest.approx(1.8, abs=0.4)


def test_a_warm_start_from_released_weights(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_run(pictures, tmp_path / "mine.safetensors", warm_start="rt")
    settings = dataclasses.replace(settings, config=None, steps=1, batch=1, learning_rate=1e-6)
    weights = train(settings)
    released = groupedmixer.load_model("rt")
    name = "latent_codec.context.head"
    start = released.get_parameter(name).half()
    assert torch.allclose(weights.state[name].float(), start.float(), atol=1e-3)
    assert weights.fingerprint != groupedmixer.load("rt").fingerprint
    with pytest.raises(
        ValueError, match=r"configuration tiny as it is now, got rt of Config\(name='rt'"
    ):
        loop._model(dataclasses.replace(settings, config="tiny"))


def test_a_warm_start_takes_the_dead_zone_of_the_tables_to_be(tmp_path: Path) -> None:
    model = random_model(groupedmixer.get_config("tiny"))
    model.latent_codec.dead_zone.fill_(0.7)
    groupedmixer.save_weights(model, tmp_path / "older.safetensors", "older")
    settings = small_run(tmp_path, tmp_path / "mine.safetensors", config=None)
    started = loop._model(
        dataclasses.replace(settings, warm_start=str(tmp_path / "older.safetensors"))
    )
    assert torch.equal(started.latent_codec.dead_zone, dead_zone())
    assert started.latent_codec.y_tables.counts.numel() == 0


def test_nothing_is_overwritten_unasked(pictures: Path, tmp_path: Path) -> None:
    settings = small_run(pictures, tmp_path / "mine.safetensors", steps=1)
    settings.checkpoint_path.write_bytes(b"of another run")
    with pytest.raises(FileExistsError, match="--resume auto goes on from it"):
        train(settings)
    with pytest.raises(FileNotFoundError, match="resume must be 'auto' or a checkpoint"):
        train(dataclasses.replace(settings, resume="missing.safetensors"))
    settings.output.write_bytes(b"weights")
    with pytest.raises(FileExistsError, match="use --force"):
        train(settings)
    assert settings.output.read_bytes() == b"weights"


def test_validation_tensorboard_and_mixed_precision(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = small_run(pictures, tmp_path / "mine.safetensors", log_every=2)
    settings = dataclasses.replace(
        settings,
        precision="bf16-mixed",
        validation=pictures,
        validation_qualities=(2.0, 7.0),
        log=tmp_path / "log",
    )
    train(settings)
    lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line.startswith("validation ")]
    assert [line.split(" loss")[0] for line in lines] == [
        "validation step 4 quality 2",
        "validation step 4 quality 7",
    ]
    low, high = (float(line.split("bpp ")[1].split()[0]) for line in lines)
    assert 0 < low < high
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert events.Scalars("validation/bpp/7")[0].value == pytest.approx(high, abs=1e-4)


def test_validation_is_the_rate_of_files() -> None:
    shown = picture(128, 192)
    model = groupedmixer.load_model("rt")
    (point,) = validate(model, [np.array(shown)], (4.0,))
    codec = groupedmixer.load("rt")
    data = codec.compress(shown, quality=4.0)
    error = np.asarray(codec.decompress(data), np.float64) - np.asarray(shown)
    assert point.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=0.05)
    overhead = 8 * 120 / (128 * 192)  # header, checksums, ends of streams
    assert point.bpp == pytest.approx(8 * len(data) / (128 * 192), abs=overhead)


def test_a_lost_run_stops(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        measured = rate_distortion_loss(*args)
        return measured._replace(loss=measured.loss * float("nan"))

    monkeypatch.setattr(loop, "rate_distortion_loss", broken)
    monkeypatch.setattr(loop, "_PATIENCE", 3)
    with pytest.raises(FloatingPointError, match="3 gradients in a row were not finite"):
        train(small_run(pictures, tmp_path / "mine.safetensors"))


@pytest.mark.slow
def test_two_processes_train_together(pictures: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "groupedmixer", "train", "--accelerator", "cpu", "--devices", "2"),
        *("--config", "tiny", "--crop", "64", "--batch", "2", "--steps", "4", "--threads", "1"),
        *("--data", str(pictures), "--validation", str(pictures), "--log-every", "2"),
        *("--final", "0.5", "--output", str(tmp_path / "mine.safetensors")),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nstep 4 ") == 1, "one process reports"
    codec = groupedmixer.load(tmp_path / "mine.safetensors")
    assert codec.decompress(codec.compress(picture(50, 60))).size == (60, 50)


# ---- the command line -----------------------------------------------------------------------


def parsed(*options: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_train_options(parser)
    return settings_of(parser.parse_args(["--data", "a", "b.tar", *options]))


def test_options_are_the_fields_of_settings(tmp_path: Path) -> None:
    output = ("--output", str(OUTPUT))
    plain = Settings(data=(Path("a"), Path("b.tar")), output=OUTPUT, minutes=60)
    assert parsed(*output) == plain
    (tmp_path / "names").write_text("one.png\ntwo.png\n")
    options = ("--steps", "9", "--exclude", str(tmp_path / "names"), "--no-stream", "--final", ".1")
    changed = dataclasses.replace(plain, minutes=None, steps=9, stream=False, final=0.1)
    changed = dataclasses.replace(changed, exclude=frozenset({"one.png", "two.png"}))
    assert parsed(*output, *options) == changed


@pytest.fixture
def usage(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def run(*options: str) -> str:
        assert cli.main(["train", "--data", "x", "--output", str(OUTPUT), *options]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    yield run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "mine.ckpt"), "output must end in .safetensors, got mine.ckpt"),
        (("--output", "Mine.safetensors"), "output's name must be"),
        (("--minutes", "0"), "minutes must be positive and finite, got 0.0"),
        (("--steps", "0"), "steps must be at least 1, got 0"),
        (("--workers", "-1"), "workers must not be negative, got -1"),
        (("--ema", "1"), "ema must be in 0..1, 1 not included, got 1.0"),
        (("--crop", "8"), "crop must be at least 16 for the metric mse, got 8"),
        (
            ("--metric", "ms-ssim", "--crop", "160"),
            "crop must be at least 161 for the metric ms-ssim, got 160",
        ),
        (("--validation-qualities", "8"), "validation_qualities must be in 0..7, got 8.0"),
        (("--checkpoint-every", "-1"), "checkpoint_every must not be negative, got -1.0"),
        (("--exclude", "missing"), "No such file"),
    ],
)
def test_usage_errors_name_argument_rule_and_value(
    usage: Any, options: tuple[str, ...], message: str
) -> None:
    assert message in usage(*options)


def test_failures_are_one_line(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", "--data", str(pictures), "--output", str(tmp_path / "mine.safetensors")]
    assert cli.main([*command, "--accelerator", "cpu", "--devices", "none"]) == 1
    error = "accelerator, devices and nodes must fit this machine, got cpu, none and 1: "
    assert error in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert cli.main([*command, "--accelerator", "cuda"]) == 1
        assert "must fit this machine, got cuda, auto and 1: " in capsys.readouterr().err
        assert cli.main([*command, "--precision", "16-mixed"]) == 1
        error = "groupedmixer: training: precision must be 32-true or bf16-mixed without a GPU"
        assert capsys.readouterr().err.startswith(error)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert cli.main(command) == 1
    assert "pip install 'groupedmixer[train]'" in capsys.readouterr().err
