# SPDX-License-Identifier: MIT
"""The engine on a GPU beside the engine on the CPU: the same bytes, latents, pixels and errors.

Every test runs twice: on the host, with the CUDA sources compiled as C++ (tests/cpp/cuda_host), and
on a GPU (marked ``gpu``).
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import golden_cases
import numpy as np
import pybind11
import pytest
import torch
from conftest import random_model
from test_build import setup
from test_cpp import CUDA_FLAGS, compile_all, compiler, stand_in_sources

import groupedmixer
from groupedmixer import container
from groupedmixer.coding import engine_arguments
from groupedmixer.tiles import tile_grid
from groupedmixer_ext import _device_engine, engine
from groupedmixer_ext.engine import Engine, Region, Settings, Tile

pytestmark = pytest.mark.timeout(1200)  # the first test waits for the compiler

SETTINGS = Settings(1000, 3, 64)


@pytest.fixture(scope="module")
def host_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """groupedmixer_ext._engine_cuda on the stand-in for CUDA."""
    folder = tmp_path_factory.mktemp("engine")
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    command = [compiler(), *flags, *CUDA_FLAGS, *python, "-x", "c++"]
    names = [*setup.sources("*.cu"), *stand_in_sources(), "csrc/codec/engine_cuda_module.cpp"]
    tasks = [setup.compilation(folder, name, command) for name in names]
    objects = compile_all([*tasks, *setup.core_objects(folder, [*flags, "-Wall"])])
    target = folder / "_engine_cuda.so"
    subprocess.run([compiler(), "-shared", *objects, "-pthread", "-o", str(target)], check=True)
    # Of another name than the package's, which a later import would take for this one.
    spec = importlib.util.spec_from_file_location("stand_in._engine_cuda", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "host":
        module = request.getfixturevalue("host_module")
        monkeypatch.setattr(engine, "device_module", lambda: module)
        monkeypatch.setattr(_device_engine, "device_module", lambda: module)
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield str(request.param)


class Pair(NamedTuple):
    cpu: Engine
    gpu: Engine


Make = Callable[..., Pair]


@pytest.fixture
def pair(backend: str, tiny_model: groupedmixer.GroupedMixer) -> Pair:
    """Both engines with the weights of a small model that has pixels and lrp."""
    return make_pair(tiny_model)


def make_pair(model: groupedmixer.GroupedMixer) -> Pair:
    transforms = (model.g_a, model.g_s) if model.config.transform == "patch" else None
    arguments = engine_arguments(model.latent_codec, transforms)
    return Pair(Engine(**arguments), Engine(**arguments, device=0))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth with some noise, so that symbols of all sizes occur."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin((x + 2 * y + 30 * c) / 9.0) for c in range(3)], axis=2)
    return np.clip(128 + 90 * waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def check_picture(pair: Pair, rgb: np.ndarray, settings: Settings, graph: bool) -> None:
    coded, y_hat, _ = pair.cpu.compress(rgb, settings, 1, want_latent=True)
    found, found_y_hat, times = pair.gpu.compress(rgb, settings, 1, want_latent=True)
    assert found == coded
    assert y_hat.tobytes() == found_y_hat.tobytes()
    assert (pair.gpu.report()["graph_nodes"] > 0) == graph
    assert set(times) == {"transform", "hyper", "entropy_model", "rans"}
    size = rgb.shape[:2]
    for grey in (False, True):
        expected, _ = pair.cpu.decompress(coded.tiles, size, settings, 1, None, grey)
        pixels, _ = pair.gpu.decompress(coded.tiles, size, settings, 1, None, grey)
        assert np.array_equal(pixels, expected)


def test_pictures(pair: Pair) -> None:
    for quality, seed in ((0, 0), (1000, 1), (1792, 2)):
        settings = Settings(quality, 3, 64)
        check_picture(pair, picture(40, 56, seed), settings, graph=seed > 0)
    check_picture(pair, picture(1, 1), SETTINGS, graph=False)
    check_picture(pair, picture(40, 56), SETTINGS, graph=True)


def test_regions_and_tiles(pair: Pair) -> None:
    settings = Settings(700, 0, 2)
    rgb = picture(130, 70)
    coded, _, _ = pair.cpu.compress(rgb, settings, 1)
    assert len(coded.tiles) == 15
    for region in (Region(0, 0, 130, 70), Region(100, 30, 101, 31), Region(3, 50, 90, 70)):
        expected, _ = pair.cpu.decompress(coded.tiles, (130, 70), settings, 1, region)
        for _ in range(2):
            pixels, _ = pair.gpu.decompress(coded.tiles, (130, 70), settings, 1, region)
            assert np.array_equal(pixels, expected)


def test_bundled_weights(backend: str) -> None:
    """rt as it is shipped."""
    pair = make_pair(groupedmixer.load_model("rt"))
    check_picture(pair, picture(32, 48), SETTINGS, graph=False)
    if backend == "gpu":
        for seed in range(3):
            check_picture(pair, picture(512, 768, seed), SETTINGS, graph=seed > 0)


@pytest.mark.parametrize("name", ["pixel", "odd", "grey", "tiles"])
def test_golden_files(backend: str, name: str) -> None:
    """Files that must never change decode to the latents that they stand for."""
    model = groupedmixer.load_weights(golden_cases.WEIGHTS).model()
    pair = make_pair(model)
    file = container.parse((golden_cases.GOLDEN / f"{name}.gmx").read_bytes())
    header = file.header
    grid = tile_grid(header.height, header.width, header.tile_latents, *model.config.patch)
    settings = Settings(header.quality, header.skip_below, header.tile_latents)
    tiles = [Tile(tile.stream, tile.latent_crc) for tile in file.tiles]
    y_hat, _ = pair.gpu.decode([tiles], (grid.height, grid.width), [settings], 1)
    latent = torch.from_numpy(y_hat).permute(0, 3, 1, 2).contiguous()
    golden = json.loads(golden_cases.GOLDENS.read_text())["values"][name]
    assert golden_cases.latent_hash(latent) == golden["latent"]


@pytest.mark.parametrize("name", ["fast", "base", "large"])
def test_configurations(backend: str, name: str) -> None:
    """Their widths, groups and patches; on the host with one layer and few channels."""
    config = groupedmixer.get_config(name)
    few = config if backend == "gpu" else dataclasses.replace(config, layers=1)
    small = dataclasses.replace(
        few,
        latent_channels=4 * config.slices,
        hyper_width=8,
        hyper_channels=4,
        transform="patch",
        transform_width=(8, 8),
    )
    pair = make_pair(random_model(small))
    height, width = (2, 4) if backend == "host" else (32, 48)
    check_latents(pair, (1, height, width, small.latent_channels), SETTINGS, graph=False)


def check_latents(
    pair: Pair, shape: tuple[int, int, int, int], settings: Settings, graph: bool, seed: int = 0
) -> None:
    y = np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)
    batch = [settings] * shape[0]
    coded, y_hat, _ = pair.cpu.encode(y, batch, 1)
    found, found_y_hat, _ = pair.gpu.encode(y, batch, 1)
    assert found == coded
    assert found_y_hat.tobytes() == y_hat.tobytes()
    tiles = [one.tiles for one in coded]
    out = np.full(shape, np.nan, np.float32)
    decoded, _ = pair.gpu.decode(tiles, shape[1:3], batch, 1, out=out)
    assert decoded is out
    assert out.tobytes() == y_hat.tobytes()
    assert (pair.gpu.report()["graph_nodes"] > 0) == (graph or shape[0] > 1)


def test_batches_of_different_quality(pair: Pair) -> None:
    y = np.random.default_rng(3).normal(0, 3, (3, 4, 6, 8)).astype(np.float32)
    settings = [Settings(quality, 3, 64) for quality in (0, 900, 1792)]
    coded, y_hat, _ = pair.cpu.encode(y, settings, 1)
    found, found_y_hat, _ = pair.gpu.encode(y, settings, 1)
    assert found == coded
    assert found_y_hat.tobytes() == y_hat.tobytes()
    decoded, _ = pair.gpu.decode([one.tiles for one in coded], (4, 6), settings, 1)
    assert decoded.tobytes() == y_hat.tobytes()


def test_threads_take_turns(pair: Pair) -> None:
    sizes = [(17, 40), (33, 20), (48, 16)]
    expected = [pair.cpu.compress(picture(*size), SETTINGS, 1)[0] for size in sizes]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(3):
            found[i] = pair.gpu.compress(picture(*sizes[i]), SETTINGS, 1)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(sizes))] == expected


def test_errors_are_those_of_the_cpu(pair: Pair) -> None:
    rgb = picture(20, 30)
    coded, _, _ = pair.cpu.compress(rgb, SETTINGS, 1)
    stream = bytearray(coded.tiles[0].stream)
    stream[len(stream) // 2] ^= 4
    broken = [Tile(bytes(stream), coded.tiles[0].checksum)]
    nothing = [Tile(b"", 0)]
    y = np.full((1, 2, 2, 8), np.nan, np.float32)
    far = Region(0, 0, 21, 30)
    calls: list[Callable[[Engine], object]] = [
        lambda e: e.decompress(broken, (20, 30), SETTINGS, 1),
        lambda e: e.decompress(nothing, (20, 30), SETTINGS, 1),
        lambda e: e.decompress([], (20, 30), SETTINGS, 1),
        lambda e: e.decompress(coded.tiles, (20, 30), SETTINGS, 1, far),
        lambda e: e.decompress(coded.tiles, (0, 30), SETTINGS, 1),
        lambda e: e.encode(y, [SETTINGS], 1),
        lambda e: e.encode(y[:, :1], [SETTINGS], 1),
        lambda e: e.encode(y, [Settings(9999, 3, 64)], 1),
        lambda e: e.decode([coded.tiles], (3, 2), [SETTINGS], 1),
    ]
    for call in calls:
        with pytest.raises(Exception) as expected:
            call(pair.cpu)
        with pytest.raises(Exception) as found:
            call(pair.gpu)
        assert found.type is expected.type
        assert str(found.value) == str(expected.value)
    pixels, _ = pair.gpu.decompress(coded.tiles, (20, 30), SETTINGS, 1)
    assert pixels.shape == (20, 30, 3)


def test_arrays_are_checked(pair: Pair) -> None:
    y = np.zeros((1, 2, 2, 8), np.float32)
    for out in (np.zeros((1, 2, 2, 8)), np.zeros((2, 2, 2, 8), np.float32), y[..., ::-1], [1.0]):
        with pytest.raises(ValueError, match="out must be"):
            pair.gpu.encode(y, [SETTINGS], 1, out=out)
    fixed = np.zeros((1, 2, 2, 8), np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        pair.gpu.encode(y, [SETTINGS], 1, out=fixed)


def test_other_devices(backend: str, tiny_model: groupedmixer.GroupedMixer) -> None:
    arguments = engine_arguments(tiny_model.latent_codec)
    for device in (-1, 1000):
        with pytest.raises(ValueError, match=r"device must be 0 \.\. \d+, got"):
            Engine(**arguments, device=device)


def test_no_gpu(tiny_model: groupedmixer.GroupedMixer) -> None:
    """What a machine without a GPU, or a build without CUDA, says."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="no GPU can be used|has no CUDA kernels"):
        Engine(**engine_arguments(tiny_model.latent_codec), device=0)
    with pytest.raises(ValueError, match="PyTorch sees no CUDA device"):
        groupedmixer.load("rt", device="cuda")


# ---- with PyTorch on the GPU --------------------------------------------------------------------


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.mark.gpu
def test_arrays_on_the_device(cuda: torch.device, tiny_model: groupedmixer.GroupedMixer) -> None:
    """Latents that PyTorch makes on a stream of its own, and gets back there."""
    pair = make_pair(tiny_model)
    y = torch.randn(2, 8, 12, 8, generator=torch.Generator().manual_seed(1)) * 3
    expected, y_hat, _ = pair.cpu.encode(y.numpy(), [SETTINGS] * 2, 1)
    stream = torch.cuda.Stream(cuda)
    for _ in range(3):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # so y is late
            late = y.to(cuda, non_blocking=True) * 1
            out = torch.empty_like(late)
            coded, found, _ = pair.gpu.encode(
                late, [SETTINGS] * 2, 1, stream=stream.cuda_stream, out=out
            )
        assert coded == expected
        assert found is out
        assert torch.equal(out.cpu(), torch.from_numpy(y_hat))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "base"])
def test_codec(cuda: torch.device, name: str) -> None:
    """Files of either device are read on the other, at two sizes in turn."""
    model = random_model(groupedmixer.get_config(name))
    weights = groupedmixer.export_weights(model, "test")
    cpu, gpu = (groupedmixer.Codec(weights, device) for device in ("cpu", "cuda"))
    for _ in range(3):
        for size in ((96, 64), (48, 130)):
            rgb = picture(*size)
            file = gpu.compress(rgb)
            if name == "tiny":
                assert file == cpu.compress(rgb)
                assert np.array_equal(gpu.decompress(file), cpu.decompress(file))
            parsed = groupedmixer.container.parse(file)
            assert torch.equal(gpu.decode_latent(parsed).cpu(), cpu.decode_latent(parsed))


@pytest.mark.gpu
def test_latent_codec(cuda: torch.device, tiny_model: groupedmixer.GroupedMixer) -> None:
    codec = tiny_model.latent_codec
    y = torch.randn(2, 8, 6, 4, generator=torch.Generator().manual_seed(2)) * 3
    expected = codec.compress(y)
    moved = copy.deepcopy(codec).to(cuda)
    coded = moved.compress(y.to(cuda))
    assert coded["strings"] == expected["strings"]
    decoded = moved.decompress(expected["strings"], expected["shape"])
    assert decoded["y_hat"].device == cuda
    assert torch.equal(decoded["y_hat"].cpu(), coded["y_hat"].cpu())


@pytest.mark.gpu
def test_out_of_memory(cuda: torch.device, tiny_model: groupedmixer.GroupedMixer) -> None:
    """A full GPU is a MemoryError, and the engine goes on afterwards."""
    pair = make_pair(tiny_model)
    free, _ = torch.cuda.mem_get_info(cuda)
    hog = torch.empty(free - (64 << 20), dtype=torch.uint8, device=cuda)
    y = np.zeros((1, 2048, 2048, 8), np.float32)
    with pytest.raises(MemoryError, match="out of memory on the GPU"):
        pair.gpu.encode(y, [SETTINGS], 1)
    del hog
    torch.cuda.empty_cache()
    check_latents(pair, (1, 4, 4, 8), SETTINGS, graph=False)
