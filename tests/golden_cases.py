# SPDX-License-Identifier: MIT
"""What the golden files hold, and how it is measured: see tests/golden/README.md.

As a program it measures in a process of its own and prints the result as JSON, so that
GROUPEDMIXER_ISA and the floating-point mode are the process's.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import groupedmixer
from groupedmixer import container
from groupedmixer.coding import ARITHMETIC_ID, LatentCoder
from groupedmixer.entropy import symbol_tables
from groupedmixer.export import Weights, load_weights
from groupedmixer_ext import ops, rans

GOLDEN = Path(__file__).resolve().parent / "golden"
WEIGHTS = GOLDEN / "golden.safetensors"
GOLDENS = GOLDEN / "goldens.json"


class PictureCase(NamedTuple):
    """A picture that is a file of the golden folder."""

    name: str
    height: int
    width: int
    channels: int  # 0: grey, [H, W]
    quality: float


PICTURES = (
    PictureCase("pixel", 1, 1, 3, 7),
    PictureCase("odd", 65, 129, 3, 4),
    PictureCase("coarse", 150, 100, 3, 0),
    PictureCase("grey", 40, 57, 0, 2.7),
    PictureCase("alpha", 33, 50, 4, 5.5),
    PictureCase("tiles", 40, 1100, 3, 7),
)


class LatentCase(NamedTuple):
    """A latent under seeded weights of a configuration, which are too large to be stored."""

    config: str
    height: int
    width: int
    quality: float
    tile: int


LATENTS = (LatentCase("rt", 6, 14, 3.3, 8), LatentCase("base", 4, 6, 5.25, 64))


class Pass(NamedTuple):
    """Circumstances that no result may depend on."""

    threads: int
    flush_denormal: bool = False
    round_upwards: bool = False


PASSES = (Pass(1), Pass(2, flush_denormal=True), Pass(3, round_upwards=True))

# ---- inputs and weights: of PCG64's raw numbers and exact arithmetic, the same everywhere --------


def normal(seed: int, *shape: int) -> np.ndarray:
    """About normal: sums of four 16-bit numbers, so that no mathematical library has a say."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    sums = sum((raw >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64) for shift in (0, 16))
    sums += sum(
        (raw >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64) for shift in (32, 48)
    )
    return ((sums - 2 * 65535) / 37837.0).reshape(shape)


def pixels(case: PictureCase) -> np.ndarray:
    """Flat squares with edges, a ramp and noise; alpha is a pattern of its own."""
    shape = (case.height, case.width, max(case.channels, 1))
    seed = 1000 + len(case.name)
    squares = 60 * normal(seed, -(-case.height // 11), -(-case.width // 11), shape[2])
    flat = squares.repeat(11, axis=0).repeat(11, axis=1)[: case.height, : case.width]
    ramp = np.arange(case.width)[None, :, None] * 40 // case.width + 100
    values = np.floor(flat + ramp + 8 * normal(seed + 1, *shape)).clip(0, 255).astype(np.uint8)
    return values if case.channels else values[:, :, 0]


def latent(case: LatentCase) -> Tensor:  # [1, M, H, W]
    channels = groupedmixer.get_config(case.config).latent_channels
    return torch.from_numpy(4 * normal(77, 1, channels, case.height, case.width)).float()


# Of patch transforms: y is a few steps large, and few pixels are black or white.
SCALES = {"g_a.linear.weight": 16, "g_s.linear.weight": 1 / 32, "g_s.network.5.weight": 1 / 64}


def parameter(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Every part speaks, activations stay about 1, and sigma is about e."""
    x = normal(seed, *shape)
    ones = ("norm.weight", "mlp.0.weight", "hyper_gain", "hyper_inverse_gain", "shrinkage")
    if name.endswith(ones):
        return 1 + 0.1 * x
    if name.endswith("gain"):
        return (0.3 + 0.4 * np.arange(shape[0]))[:, None] * (1 + 0.05 * x)
    if name.endswith("head_bias"):
        return 0.3 * x + np.arange(shape[1]) // (shape[1] // 2)
    if name.startswith("g_s.") and name.endswith(("linear.bias", "network.5.bias")):
        return 0.05 * x + (0.5 if "linear" in name else 0)
    if name.endswith(("bias", "embed_group", "embed_level", "start")):
        return 0.3 * x
    fan_in = shape[-1] if "context" in name else int(np.prod(shape[1:]))
    return SCALES.get(name, 1) * x / np.sqrt(fan_in)


def fill(module: nn.Module, seed: int) -> None:
    """Replaces every parameter, in the order of their names."""
    with torch.no_grad():
        for index, (name, target) in enumerate(sorted(module.named_parameters())):
            values = parameter(name, tuple(target.shape), seed + index)
            target.copy_(torch.from_numpy(values).half())


def set_tables(codec: groupedmixer.GroupedMixerLatentCodec, y_tables: rans.Tables) -> None:
    """z takes some of y's tables: what a bottleneck gives is up to PyTorch's functions."""
    starts = np.concatenate([[0], np.cumsum(y_tables.sizes)])
    chosen = [40 + channel % 8 for channel in range(codec.config.hyper_channels)]
    counts = np.concatenate([y_tables.counts[starts[i] : starts[i + 1]] for i in chosen])
    codec.y_tables.set(y_tables)
    codec.z_tables.set(rans.Tables(counts, y_tables.sizes[chosen], y_tables.offsets[chosen]))
    codec.z_medians = torch.from_numpy(normal(5, len(chosen))).float()


def make_weights() -> groupedmixer.GroupedMixer:
    """The model whose exported weights are stored."""
    model = groupedmixer.GroupedMixer(groupedmixer.get_config("tiny"))
    fill(model, 100)
    set_tables(model.latent_codec, symbol_tables())
    return model


def make_coder(config: str, stored: Weights) -> LatentCoder:
    """Seeded weights; y's tables and thresholds, which functions of float64 made, are stored."""
    codec = groupedmixer.GroupedMixerLatentCodec(groupedmixer.get_config(config))
    fill(codec, 5000)
    tiny = stored.model().latent_codec
    codec.thresholds = tiny.thresholds
    codec.dead_zone = tiny.dead_zone
    set_tables(codec, tiny.y_tables.build())
    return LatentCoder(codec)


# ---- measurements --------------------------------------------------------------------------------


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def latent_hash(y_hat: Tensor) -> str:
    """Of float32 in the order [1, M, H, W], -0 as +0."""
    return sha256((y_hat.numpy() + np.float32(0)).astype("<f4").tobytes())


def file_hash(data: bytes) -> str:
    """Of a file but for its alpha plane, a PNG: what deflates it is up to Pillow."""
    file = container.parse(data)
    return sha256(container.write(dataclasses.replace(file, alpha=None)))


def joined_regions(codec: groupedmixer.Codec, data: bytes, case: PictureCase) -> np.ndarray:
    """The picture decoded in parts; of ``tiles``, each part needs some of the tiles only."""
    rows = sorted({0, case.height // 3, case.height})
    columns = sorted({0, *range(case.width * 2 // 5, case.width, 400), case.width})
    return np.concatenate(
        [
            np.concatenate(
                [
                    np.asarray(codec.decompress(data, region=(left, top, right, bottom)))
                    for left, right in zip(columns, columns[1:], strict=False)
                ],
                axis=1,
            )
            for top, bottom in zip(rows, rows[1:], strict=False)
        ]
    )


def measure_picture(codec: groupedmixer.Codec, case: PictureCase, data: bytes) -> dict[str, str]:
    """``data``: the file to decode; what is encoded is measured beside it."""
    return {
        "file": file_hash(data),
        "encoded": file_hash(codec.compress(pixels(case), case.quality)),
        "latent": latent_hash(codec.decode_latent(container.parse(data))),
        "pixels": sha256(np.asarray(codec.decompress(data)).tobytes()),
        "joined regions": sha256(joined_regions(codec, data, case).tobytes()),
    }


def measure_latent(coder: LatentCoder, case: LatentCase) -> dict[str, str]:
    coded = coder.encode(latent(case), [case.quality], tile=case.tile)[0]
    size = (case.height, case.width)
    decoded = coder.decode([coded.tiles], size, [case.quality], tile=case.tile)
    assert coded.y_hat is not None
    return {
        "streams": sha256(b"".join(bytes(tile.stream) for tile in coded.tiles)),
        "y_hat": latent_hash(coded.y_hat),
        "decoded": latent_hash(decoded),
    }


@contextmanager
def rounding_upwards() -> Iterator[None]:
    """The floating-point mode of the calling thread, which threads it starts inherit."""
    upwards = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    assert library.fesetround(upwards) == 0
    try:
        assert (np.ones(16, np.float32) + np.float32(2**-60) > 1).all()  # the mode is in force
        yield
    finally:
        assert library.fesetround(0) == 0


def measure(passes: tuple[Pass, ...] = PASSES) -> list[dict[str, dict[str, str]]]:
    """Every case under every pass; the large latents once where there are no vectors."""
    stored = load_weights(WEIGHTS)
    codec = groupedmixer.Codec(stored)
    coders = {case.config: make_coder(case.config, stored) for case in LATENTS}
    files = {case: (GOLDEN / f"{case.name}.gmx").read_bytes() for case in PICTURES}
    results = []
    for index, one in enumerate(passes):
        latents = LATENTS if index == 0 or ops.active_isa() != "scalar" else ()
        torch.set_num_threads(one.threads)
        torch.set_flush_denormal(one.flush_denormal)
        measured: dict[str, dict[str, str]] = {}

        def run(measured: dict[str, dict[str, str]], latents: tuple[LatentCase, ...]) -> None:
            for picture, data in files.items():
                measured[picture.name] = measure_picture(codec, picture, data)
            for case in latents:
                measured[case.config] = measure_latent(coders[case.config], case)

        if one.round_upwards:
            with rounding_upwards():
                run(measured, latents)
        else:
            run(measured, latents)
        results.append(measured)
    return results


def identity() -> dict[str, object]:
    """What may not stay as it is when a golden changes."""
    return {"arithmetic": ARITHMETIC_ID, "container version": container.FORMAT_VERSION}


if __name__ == "__main__":
    print(json.dumps({"isa": ops.active_isa(), "passes": measure()}))
