# SPDX-License-Identifier: MIT
"""The bundled weights on real pictures: sizes against the model's own estimate and against JPEG."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import groupedmixer
from groupedmixer import container
from groupedmixer.images import Picture, load_picture, to_pil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from demo import PHOTO, jpeg_bytes_at, psnr  # noqa: E402

KODAK = os.environ.get("GROUPEDMIXER_KODAK")
MIDDLE = 4.0


def estimated_bytes(model: groupedmixer.GroupedMixer, picture: Picture, quality: float) -> float:
    """Size by the likelihoods of the training form."""
    x = torch.from_numpy(picture.rgb).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        likelihoods = model(x, quality)["likelihoods"]
    return sum(-p.double().log2().sum().item() for p in likelihoods.values()) / 8


def test_a_photo_is_smaller_than_a_jpeg_of_its_quality() -> None:
    codec = groupedmixer.load("rt")
    picture = load_picture(PHOTO)
    data = codec.compress(picture, MIDDLE)
    quality = psnr(codec.decompress(data), to_pil(picture))
    assert quality > 28
    jpeg = jpeg_bytes_at(to_pil(picture), quality)
    assert jpeg is not None
    assert len(data) < jpeg


def test_bytes_are_those_of_the_training_forms_likelihoods() -> None:
    picture = load_picture(PHOTO)
    size = len(groupedmixer.load("rt").compress(picture, MIDDLE))
    assert abs(size / estimated_bytes(groupedmixer.load_model("rt"), picture, MIDDLE) - 1) < 0.01


def test_quality_is_monotone() -> None:
    codec = groupedmixer.load("rt")
    picture = load_picture(PHOTO)
    found = []
    for quality in np.linspace(0, 7, 15):
        data = codec.compress(picture, float(quality))
        found.append((len(data), psnr(codec.decompress(data), to_pil(picture))))
    assert found == sorted(found)
    assert sorted(f[1] for f in found) == [f[1] for f in found]


def run_codec(direction: str, path: Path, environment: dict[str, str]) -> None:
    """Codes the photo to a file, or decodes it, in a process of its own."""
    script = (
        "import sys, groupedmixer\n"
        "from groupedmixer.images import load_picture\n"
        "codec = groupedmixer.load('rt')\n"
        "if sys.argv[1] == 'decompress':\n"
        "    codec.decompress(open(sys.argv[3], 'rb').read())\n"
        "else:\n"
        "    open(sys.argv[3], 'wb').write(codec.compress(load_picture(sys.argv[2])))\n"
    )
    command = [sys.executable, "-c", script, direction, PHOTO, path]
    subprocess.run(command, check=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def coded_with_two_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arithmetic") / "photo.gmx"
    run_codec("compress", path, {"OMP_NUM_THREADS": "2"})
    return path


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
    coded_with_two_threads: Path, environment: dict[str, str]
) -> None:
    """Other thread counts and instruction sets sum in other orders; the latent is the same.

    With bundled weights, as the products of a tiny model are too small to be split over threads.
    """
    run_codec("decompress", coded_with_two_threads, environment)


def test_the_model_has_a_card() -> None:
    card = (ROOT / "python/groupedmixer/weights/README.md").read_text()
    for name in groupedmixer.available():
        codec = groupedmixer.load(name)
        assert codec.name == name
        assert codec.fingerprint.hex() in card


@pytest.mark.slow
@pytest.mark.skipif(KODAK is None, reason="GROUPEDMIXER_KODAK names no folder of the 24 pictures")
def test_kodak_through_the_command_line(tmp_path: Path) -> None:
    """All pictures in one process, back in another; latents compared, sizes against estimates."""
    paths = sorted(Path(str(KODAK)).glob("*.png"))
    assert len(paths) == 24
    coded_paths = [tmp_path / "gmx" / f"{path.stem}.gmx" for path in paths]
    for command in (
        ["compress", *paths, "-o", tmp_path / "gmx", "-q", MIDDLE],
        ["decompress", *coded_paths, "-o", tmp_path / "png"],
    ):
        arguments = [sys.executable, "-m", "groupedmixer", *map(str, command)]
        subprocess.run(arguments, check=True)
    codec, model = groupedmixer.load("rt"), groupedmixer.load_model("rt")
    total = estimate = 0.0
    for path, coded_path in zip(paths, coded_paths, strict=True):
        picture = load_picture(path)
        data = coded_path.read_bytes()
        coded = codec.encode_latent(picture, MIDDLE)
        assert torch.equal(codec.decode_latent(container.parse(data)), coded.y_hat)
        restored = Image.open(tmp_path / "png" / f"{path.stem}.png")
        assert np.array_equal(np.asarray(restored), np.asarray(codec.decompress(data)))
        ours = estimated_bytes(model, picture, MIDDLE)
        # Heads, checksums and the coder's states are bytes, whatever the size of the file.
        assert abs(len(data) - ours) < 160 + 0.005 * ours, path.name
        total, estimate = total + len(data), estimate + ours
    print(f"{total:.0f} bytes, {100 * (total / estimate - 1):+.2f} % of the estimate")
