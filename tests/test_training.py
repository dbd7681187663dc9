# SPDX-License-Identifier: MIT
"""Training: data that survives bad files, a loop that learns, ends on time and resumes."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture

import groupedmixer
from groupedmixer.training.data import CropSampler, load_pictures
from groupedmixer.training.loop import Settings, initialise_entropy_model, train


def test_pictures_come_from_folders_and_tar_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "deeper"
    folder.mkdir(parents=True)
    picture(80, 70).save(folder / "good.png")
    picture(80, 70).save(folder / "left-out.png")
    picture(30, 70).save(folder / "small.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not looked at")
    with tarfile.open(tmp_path / "pack.tar", "w") as archive:
        buffer = io.BytesIO()
        picture(64, 64).convert("L").save(buffer, "WEBP")
        member = tarfile.TarInfo("grey.webp")
        member.size = buffer.tell()
        buffer.seek(0)
        archive.addfile(member, buffer)
    sources = [tmp_path / "folder", tmp_path / "pack.tar"]
    pictures, problems = load_pictures(sources, 64, frozenset({"left-out.png"}))
    assert [p.shape for p in pictures] == [(80, 70, 3), (64, 64, 3)]
    assert [problem.split(":")[0].rsplit("/", 1)[1] for problem in problems] == [
        "broken.jpg",
        "small.png",
    ]
    with pytest.raises(ValueError, match="found none"):
        load_pictures([tmp_path / "folder"], 100)


def test_crops_are_seeded_and_go_round() -> None:
    pictures = [np.full((16, 16, 3), value, np.uint8) for value in range(6)]
    first, again = (CropSampler(pictures, 3, 8, seed=1) for _ in range(2))
    seen = []
    for _ in range(4):
        batch = first.next_batch()
        assert torch.equal(batch, again.next_batch())
        assert batch.shape == (3, 3, 8, 8)
        seen += (batch[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


def test_the_loop_learns_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    pictures = [np.asarray(picture(64, 64, seed)) for seed in range(4)]
    data = CropSampler(pictures, 2, 64, seed=0)
    model = groupedmixer.GroupedMixer(groupedmixer.get_config("tiny"))
    initialise_entropy_model(model, data.next_batch())
    checkpoint = tmp_path / "run" / "tiny.ckpt"
    train(model, data, Settings(minutes=0.1, log_every=1, checkpoint=checkpoint))
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if "loss" in line]
    assert len(losses) >= 4
    assert min(losses[-len(losses) // 4 :]) < losses[0]

    # the same run with more time: another process would start like this
    other = groupedmixer.GroupedMixer(groupedmixer.get_config("tiny"))
    trained = train(other, data, Settings(minutes=0.2, checkpoint=checkpoint))
    steps = int(lines[-1].split()[1])
    resumed, *_, done = capsys.readouterr().out.splitlines()
    assert resumed.startswith(f"resumed at step {steps},")
    assert int(done.split()[1]) > steps
    assert all(p.isfinite().all() for p in trained.parameters())


@pytest.mark.slow
def test_the_command_trains_resumes_and_writes_weights(tmp_path: Path) -> None:
    for seed in range(4):
        picture(96, 96, seed).save(tmp_path / f"{seed}.png")
    command = [
        *(sys.executable, "-m", "groupedmixer.training", "--config", "tiny", "--crop", "64"),
        *("--data", str(tmp_path), "--minutes", "0.1", "--batch", "2"),
        *("--checkpoint", str(tmp_path / "tiny.ckpt"), "--output", str(tmp_path / "t.safetensors")),
    ]
    first = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "wrote" in first
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "resumed at step" in again
    codec = groupedmixer.load(str(tmp_path / "t.safetensors"))
    assert codec.decompress(codec.compress(picture(50, 60))).size == (60, 50)
