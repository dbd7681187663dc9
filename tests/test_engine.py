# SPDX-License-Identifier: MIT
"""The native engine: no circumstance changes a byte, and no argument or stream breaks it."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import groupedmixer
from groupedmixer.coding import SKIP_BELOW, LatentCoder
from groupedmixer.entropy import symbol_tables
from groupedmixer.errors import ArithmeticMismatchError
from groupedmixer.grouping import Grouping
from groupedmixer.mixer import Prediction, interpolate_levels, run_groups
from groupedmixer_ext import ops
from groupedmixer_ext.engine import (
    CodedLatent,
    Engine,
    NonFiniteError,
    Region,
    Settings,
    TableArrays,
    Tile,
    TileError,
)

TINY = groupedmixer.get_config("tiny")
REVERSED = tuple((c, i, j) for j in (1, 0) for c in (1, 0) for i in (1, 0))
CONFIGS = {
    "tiny": TINY,
    "one group": dataclasses.replace(TINY, patch=(1, 1), slices=1, layers=1),
    "3x1, 5 slices": dataclasses.replace(TINY, patch=(3, 1), slices=5, latent_channels=10),
    "9x4, no lrp": dataclasses.replace(TINY, patch=(9, 4), lrp=False),
    "own order, 3 heads": dataclasses.replace(TINY, order=REVERSED, width=96, layers=3),
    # what latent residual prediction gives is wider than any other activation
    "wide slices": dataclasses.replace(TINY, patch=(1, 1), slices=1, layers=1, latent_channels=400),
    "33 channels": dataclasses.replace(TINY, patch=(1, 2), slices=1, latent_channels=33),
}
# Of the group grid; 5 x 17 has cells cut off on all sides in either lattice.
GRIDS = [(1, 1), (1, 3), (5, 17)]
MIDDLE = Settings(4 * 256, SKIP_BELOW, 64)


def make_codec(config: groupedmixer.Config) -> groupedmixer.GroupedMixerLatentCodec:
    codec = groupedmixer.GroupedMixerLatentCodec(config).eval()
    golden_cases.fill(codec, 1)
    golden_cases.set_tables(codec, symbol_tables())
    return codec


def table_arrays(tables: Any) -> TableArrays:
    return TableArrays(tables.counts, tables.sizes, tables.offsets)


@cache
def engine_arguments(name: str, with_transform: bool = False) -> dict[str, Any]:
    """Of `Engine`, for a configuration of `CONFIGS`."""
    config = CONFIGS[name]
    codec = make_codec(config)
    modules = nn.ModuleDict({"latent_codec": codec})
    if with_transform:
        model = groupedmixer.GroupedMixer(config)
        modules["g_a"], modules["g_s"] = model.g_a, model.g_s
        golden_cases.fill(modules, 1)
    weights = {key: value.detach().numpy() for key, value in modules.named_parameters()}
    weights["latent_codec.thresholds"] = codec.thresholds.numpy()
    weights["latent_codec.dead_zone"] = codec.dead_zone.numpy()
    weights["latent_codec.z_medians"] = codec.z_medians.numpy()
    return {
        "weights": weights,
        "latent_channels": config.latent_channels,
        "hyper_width": config.hyper_width,
        "hyper_channels": config.hyper_channels,
        "slices": config.slices,
        "patch": config.patch,
        "width": config.width,
        "layers": config.layers,
        "lrp": config.lrp,
        "order": Grouping(config.slices, *config.patch, config.order).order,
        "patch_transform": (
            (*config.transform_width, *config.transform_depth) if with_transform else None
        ),
        "y_tables": table_arrays(codec.y_tables.build()),
        "z_tables": table_arrays(codec.z_tables.build()),
    }


@cache
def engine_of(name: str) -> Engine:
    return Engine(**engine_arguments(name))


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return Engine(**engine_arguments("tiny", with_transform=True))


def latents(name: str, grid: tuple[int, int], batch: int = 1, seed: int = 7) -> np.ndarray:
    config = CONFIGS[name]
    sides = (grid[0] * config.patch[0], grid[1] * config.patch[1])
    y = 4 * golden_cases.normal(seed, batch, *sides, config.latent_channels)
    return y.astype(np.float32)


def size_of(y: np.ndarray) -> tuple[int, int]:
    return y.shape[1], y.shape[2]


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32), strict=True)


# ---- nothing but weights, latent and settings has a say ------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_any_number_of_threads_and_any_grid(name: str, grid: tuple[int, int]) -> None:
    engine, y = engine_of(name), latents(name, grid)
    coded, y_hat, _ = engine.encode(y, [MIDDLE], 1)
    assert coded[0].num_symbols >= y.size and 0 < coded[0].num_coded <= coded[0].num_symbols
    for threads in (1, 2, 3, 7):
        again, same, _ = engine.encode(y, [MIDDLE], threads)
        assert again == coded
        assert_same_bits(same, y_hat)
        decoded, _ = engine.decode([coded[0].tiles], size_of(y), [MIDDLE], threads)
        assert_same_bits(decoded, y_hat)


@pytest.mark.parametrize("tile", [16, 17, 32, 64])
@pytest.mark.parametrize("name", ["tiny", "9x4, no lrp"])
def test_tiles_of_any_size(name: str, tile: int) -> None:
    """Tiles are rounded down to whole patches; threads share tiles, or each has its own."""
    engine = engine_of(name)
    y = latents(name, (23, 20) if name == "tiny" else (5, 10))
    settings = [MIDDLE._replace(tile=tile)]
    rows, columns = (
        side - side % k for side, k in zip((tile, tile), CONFIGS[name].patch, strict=True)
    )
    coded, y_hat, _ = engine.encode(y, settings, 1)
    assert len(coded[0].tiles) == -(-y.shape[1] // rows) * -(-y.shape[2] // columns)
    for threads in (2, 3, 7):
        assert engine.encode(y, settings, threads)[0] == coded
        assert_same_bits(engine.decode([coded[0].tiles], size_of(y), settings, threads)[0], y_hat)


def test_a_batch_is_its_pictures() -> None:
    """Each with its own quality and what is skipped."""
    engine, y = engine_of("tiny"), latents("tiny", (9, 10), batch=4)
    settings = [
        Settings(256 * quality, skip, 16)
        for quality, skip in zip((0, 3, 7, 7), (3, 0, 9, 64), strict=True)
    ]
    coded, y_hat, _ = engine.encode(y, settings, 3)
    decoded, _ = engine.decode([item.tiles for item in coded], size_of(y), settings, 3)
    assert_same_bits(decoded, y_hat)
    for i, one in enumerate(settings):
        alone, y_hat_alone, _ = engine.encode(y[i : i + 1], [one], 2)
        assert alone == [coded[i]]
        assert_same_bits(y_hat_alone, y_hat[i : i + 1])
    assert len({item.tiles[0].stream for item in coded}) == 4


def test_the_callers_latent_is_not_changed() -> None:
    """The native function scales it in place, so the engine works on a copy."""
    y = latents("tiny", (3, 4))
    for view in (y, np.asfortranarray(y), y[:, ::-1]):
        before = view.copy()
        coded, _, _ = engine_of("tiny").encode(view, [MIDDLE], 1)
        assert np.array_equal(view, before)
        assert coded == engine_of("tiny").encode(before, [MIDDLE], 1)[0]


def test_skipped_groups_of_scales_code_nothing() -> None:
    """With all of them skipped, the bytes are z's, and the latent is the means."""
    engine, y = engine_of("9x4, no lrp"), latents("9x4, no lrp", (2, 3))
    settings = [MIDDLE._replace(skip_below=64)]
    coded, y_hat, _ = engine.encode(y, settings, 1)
    assert coded[0].num_coded == coded[0].num_symbols - y.size
    assert_same_bits(engine.decode([coded[0].tiles], size_of(y), settings, 1)[0], y_hat)


WORKER = """
import pickle, sys
from groupedmixer_ext.engine import Engine, TileError
arguments, cases = pickle.load(open(sys.argv[1], "rb"))
engine = Engine(**arguments)
for path in sys.argv[3:]:
    for (y, settings), (coded, y_hat) in zip(cases, pickle.load(open(path, "rb"))):
        decoded, _ = engine.decode([item.tiles for item in coded], y.shape[1:3], settings, 2)
        assert decoded.tobytes() == y_hat.tobytes(), path
results = [engine.encode(y, settings, 1)[:2] for y, settings in cases]
pickle.dump(results, open(sys.argv[2], "wb"))
assert "torch" not in sys.modules
"""


def test_instruction_sets_decode_each_others_streams(tmp_path: Path) -> None:
    """Each in a process of its own, without torch; the first decodes the last one's in the end."""
    cases = [
        (latents("own order, 3 heads", grid), [MIDDLE._replace(quality=quality)])
        for grid, quality in (((1, 1), 0), ((5, 17), 777), ((9, 4), 7 * 256))
    ]
    (tmp_path / "cases").write_bytes(pickle.dumps((engine_arguments("own order, 3 heads"), cases)))
    available = [isa for isa in ops.ISAS if ops.isa_available(isa)]
    made: list[Path] = []
    for number, isa in enumerate([*available, available[0]]):
        made.append(tmp_path / f"{number}-{isa}")
        command = [sys.executable, "-c", WORKER, tmp_path / "cases", made[-1], *made[:-1]]
        result = subprocess.run(
            list(map(str, command)),
            env={**os.environ, "GROUPEDMIXER_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    for path in made[1:]:
        for (coded, y_hat), (first, y_hat_first) in zip(
            pickle.loads(path.read_bytes()), pickle.loads(made[0].read_bytes()), strict=True
        ):
            assert coded == first
            assert_same_bits(y_hat, y_hat_first)


def test_threads_share_an_engine() -> None:
    """More calls at once than arenas are kept for, of different sizes."""
    engine = engine_of("tiny")
    jobs = [
        (latents("tiny", (1 + i % 5, 3 + i), seed=i), [MIDDLE._replace(quality=200 * (i % 8))])
        for i in range(20)
    ]
    expected = [engine.encode(y, settings, 1)[:2] for y, settings in jobs]

    def work(i: int) -> bool:
        y, settings = jobs[i]
        coded, y_hat, _ = engine.encode(y, settings, 1 + i % 2)
        decoded, _ = engine.decode([coded[0].tiles], size_of(y), settings, 1 + i % 3)
        return coded == expected[i][0] and decoded.tobytes() == expected[i][1].tobytes()

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(work, list(range(20)) * 2))


# ---- processes and memory ------------------------------------------------------------------------


def exit_status_of_fork(action: Callable[[], bool]) -> int:
    """Of a child that runs ``action``: 0 if it is true; killed after a minute."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            status = 0 if action() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_may_fork_between_calls_and_while_others_code() -> None:
    """No thread outlives a call, and no lock is held that a child would wait for."""
    engine, y = engine_of("tiny"), latents("tiny", (12, 11))
    settings = [MIDDLE._replace(tile=16)]
    coded, y_hat, _ = engine.encode(y, settings, 3)

    def codes_the_same() -> bool:
        again, _, _ = engine.encode(y, settings, 3)
        decoded, _ = engine.decode([coded[0].tiles], size_of(y), settings, 2)
        return again == coded and decoded.tobytes() == y_hat.tobytes()

    assert exit_status_of_fork(codes_the_same) == 0
    stop, failures = threading.Event(), []

    def code() -> None:
        while not stop.is_set():
            if not codes_the_same():
                failures.append("other bytes")

    coding = threading.Thread(target=code)
    coding.start()
    try:
        assert [exit_status_of_fork(codes_the_same) for _ in range(8)] == [0] * 8
    finally:
        stop.set()
        coding.join()
    assert not failures
    assert codes_the_same()


MEMORY = """
import pickle, re, sys
from groupedmixer_ext.engine import Engine
arguments, (y, settings) = pickle.load(open(sys.argv[1], "rb"))
engine = Engine(**arguments)

def held_and_peak():
    text = open("/proc/self/status").read()
    return [int(re.search(name + r":\\s+(\\d+) kB", text)[1]) for name in ("VmRSS", "VmHWM")]

print(*held_and_peak())
for _ in range(4):
    coded, y_hat, _ = engine.encode(y, [settings], 1)
    engine.decode([coded[0].tiles], y.shape[1:3], [settings], 1)
    print(*held_and_peak())
"""


def test_memory_is_used_again(tmp_path: Path) -> None:
    """The first call's context cache is still held after it, and later calls need no other."""
    name = "own order, 3 heads"
    config, y = CONFIGS[name], latents(name, (32, 32))
    (tmp_path / "case").write_bytes(pickle.dumps((engine_arguments(name), (y, MIDDLE))))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "case")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (before, _), (held, peak), *_, (held_last, peak_last) = (
        map(int, line.split()) for line in printed.splitlines()
    )
    cache_size = 32 * 32 * config.num_groups * config.layers * 2 * config.width * 2 // 1024
    assert held - before > cache_size
    assert max(held_last - held, peak_last - peak) < cache_size / 8


# ---- against PyTorch -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "3x1, 5 slices", "9x4, no lrp", "own order, 3 heads"])
def test_agrees_with_the_pytorch_form(name: str) -> None:
    """Teacher-forced: PyTorch is given what the engine decoded, and predicts every group from it.

    Beside float32 sums in another order, keys and values are rounded to binary16: 2^-11 of about 1
    in each of L blocks, whose branches do not make it grow.
    Symbols differ only where y - mean is within that of a tie, or a scale of the skip threshold.
    """
    config, codec = CONFIGS[name], make_codec(CONFIGS[name])
    tolerance = config.layers * 2.0**-11
    y = latents(name, (7, 9))
    _, decoded, _ = engine_of(name).encode(y, [Settings(5 * 256 + 64, SKIP_BELOW, 64)], 2)
    quality = torch.tensor([5.25])
    context = codec.context
    with torch.no_grad():
        scaled = torch.from_numpy(y).permute(0, 3, 1, 2)
        scaled = scaled * interpolate_levels(codec.gain, quality)[:, :, None, None]
        z = codec.h_a(scaled) * interpolate_levels(codec.hyper_gain, quality)[:, :, None, None]
        medians = codec.z_medians[:, None, None]
        z_hat = torch.round(z - medians) + medians
        z_hat = z_hat * interpolate_levels(codec.hyper_inverse_gain, quality)[:, :, None, None]
        psi = context.grouping.at_groups(codec.h_s(z_hat, size_of(y)))[0]
        targets = context.grouping.split(scaled)[0]
        engines = context.grouping.split(torch.from_numpy(decoded).permute(0, 3, 1, 2))[0]
        errors: list[Tensor] = []

        def compare(step: int, prediction: Prediction) -> Tensor:
            symbols, skipped = codec.quantise(targets[step], prediction)
            y_hat = symbols.masked_fill(skipped, 0) + prediction.mean
            corrected = context.correct_step(step, y_hat, prediction.features)
            errors.append((engines[step] - corrected).abs())
            return engines[step]

        plain = make_codec(config).context
        plain.config = dataclasses.replace(config, lrp=False)  # the engine's are corrected already
        run_groups(plain, psi, plain.level_embedding(quality)[0], compare)
    error = torch.stack(errors)
    same_symbol = error < 0.25
    assert same_symbol.float().mean() > 1 - 4 * tolerance
    assert error[same_symbol].max() < tolerance


# ---- some of the tiles ---------------------------------------------------------------------------


def test_only_wanted_tiles_are_decoded() -> None:
    """The others are 0, and their bytes do not matter, but for z's in the first."""
    engine, y = engine_of("tiny"), latents("tiny", (16, 24))
    settings = [MIDDLE._replace(tile=16)]
    coded, y_hat, _ = engine.encode(y, settings, 1)
    tiles = coded[0].tiles
    assert len(tiles) == 2 * 3
    for wanted in ([True] * 6, [False] * 6, [False, True, False, False, True, True]):
        spoilt = [
            tile if want or i == 0 else Tile(b"not looked at", 0)
            for i, (tile, want) in enumerate(zip(tiles, wanted, strict=True))
        ]
        part, _ = engine.decode([spoilt], size_of(y), settings, 2, wanted)
        mask = np.kron(np.reshape(wanted, (2, 3)), np.ones((16, 16), bool))[None, :, :, None]
        assert_same_bits(part, np.where(mask, y_hat, np.float32(0)))
    with pytest.raises(TileError, match="tile 0"):
        engine.decode([[Tile(b"no z", 0), *tiles[1:]]], size_of(y), settings, 1, [False] * 6)


# ---- errors --------------------------------------------------------------------------------------


def test_wrong_checksums_are_told_apart_by_tile_and_number() -> None:
    engine, y = engine_of("tiny"), latents("tiny", (16, 16))
    settings = [MIDDLE._replace(tile=16)]
    coded, _, _ = engine.encode(y, settings, 1)
    tiles = list(coded[0].tiles)
    right = tiles[2].checksum
    tiles[2] = Tile(tiles[2].stream, right ^ 5)
    message = f"tile 2 does not decode .* its checksum is {right}, it must be {right ^ 5}"
    with pytest.raises(TileError, match=message):
        engine.decode([tiles], size_of(y), settings, 3)
    with pytest.raises(ValueError, match="tile 2"):  # which it is, too
        engine.decode([tiles], size_of(y), settings, 1)
    swapped = [coded[0].tiles[i] for i in (0, 3, 2, 1)]
    with pytest.raises(TileError, match="tile [13]"):
        engine.decode([swapped], size_of(y), settings, 2)


def test_other_settings_are_errors() -> None:
    """What the bytes depend on and the caller forgot."""
    engine, y = engine_of("tiny"), latents("tiny", (8, 8))
    coded, _, _ = engine.encode(y, [MIDDLE], 1)
    for other in (MIDDLE._replace(quality=1025), MIDDLE._replace(skip_below=50)):
        with pytest.raises(TileError):
            engine.decode([coded[0].tiles], size_of(y), [other], 1)


def mutations(stream: bytes, count: int, seed: int) -> list[bytes]:
    """Flipped bits, cuts, insertions, and bytes of nothing."""
    chance = random.Random(seed)
    changed = []
    while len(changed) < count:
        data, kind = bytearray(stream), chance.randrange(5)
        at = chance.randrange(len(data))
        if kind < 2:
            for _ in range(1 + kind * chance.randrange(8)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = chance.randbytes(1 + chance.randrange(4))
        else:
            data = bytearray(chance.randbytes(chance.randrange(len(stream))))
        if bytes(data) != stream:
            changed.append(bytes(data))
    return changed


@pytest.mark.parametrize("threads", [1, 3])
def test_hostile_streams_are_tile_errors(threads: int) -> None:
    """And nothing else: no crash, no hang. With its own checksum, a stream that parses decodes."""
    engine, y = engine_of("tiny"), latents("tiny", (3, 4))
    coded, _, _ = engine.encode(y, [MIDDLE], 1)
    stream, checksum = coded[0].tiles[0]
    parsed = 0
    for data in mutations(bytes(stream), 300, threads):
        with pytest.raises(TileError) as caught:
            engine.decode([[Tile(data, checksum)]], size_of(y), [MIDDLE], threads)
        found = re.search(r"its checksum is (\d+)", str(caught.value))
        if found is not None:
            parsed += 1
            tile = Tile(data, int(found[1]))
            assert np.isfinite(engine.decode([[tile]], size_of(y), [MIDDLE], 1)[0]).all()
    for length in range(len(stream)):
        with pytest.raises(TileError):
            engine.decode([[Tile(stream[:length], checksum)]], size_of(y), [MIDDLE], 1)
    assert parsed < 300


def test_every_tile_of_a_batch_is_checked() -> None:
    engine, y = engine_of("tiny"), latents("tiny", (8, 24), batch=2)
    settings = [MIDDLE._replace(tile=16)] * 2
    coded, _, _ = engine.encode(y, settings, 1)
    for item in range(2):
        for index in range(3):
            tiles = [list(one.tiles) for one in coded]
            tiles[item][index] = Tile(bytes(tiles[item][index].stream)[:-1], 0)
            for threads in (1, 4):
                with pytest.raises(TileError, match=f"tile {index} "):
                    engine.decode(tiles, size_of(y), settings, threads)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 3])
def test_latents_that_are_not_finite(value: float, threads: int) -> None:
    """Wherever the one number is; in a team, the others must not wait for the one that throws."""
    engine, y = engine_of("tiny"), latents("tiny", (4, 4))
    for position in (0, y.size // 2, y.size - 1):
        broken = y.copy()
        broken.flat[position] = value
        with pytest.raises(NonFiniteError, match="finite"):
            engine.encode(broken, [MIDDLE], threads)
        with pytest.raises(FloatingPointError):
            engine.encode(broken, [MIDDLE], threads)
    assert engine.encode(y, [MIDDLE], threads)[0] == engine.encode(y, [MIDDLE], 1)[0]


@pytest.mark.parametrize("name", ["gain", "context.blocks.1.cross.qkv.weight", "h_s.layers.4.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(name: str, value: float) -> None:
    """Refused at once: attention's clamps could make numbers of them."""
    arguments = engine_arguments("tiny")
    weights = dict(arguments["weights"])
    weights["latent_codec." + name] = weights["latent_codec." + name].copy()
    weights["latent_codec." + name].flat[-1] = value
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        Engine(**{**arguments, "weights": weights})


@pytest.mark.parametrize(
    "name", ["gain", "hyper_inverse_gain", "h_s.layers.4.bias", "context.head", "context.norm.bias"]
)
def test_weights_that_overflow(name: str) -> None:
    """An error in both directions, and never a stream."""
    arguments, y = engine_arguments("tiny"), latents("tiny", (4, 4))
    weights = dict(arguments["weights"])
    weights["latent_codec." + name] = np.full_like(weights["latent_codec." + name], 3e38)
    engine = Engine(**{**arguments, "weights": weights})
    with pytest.raises(NonFiniteError):
        engine.encode(y * 100, [MIDDLE], 2)
    coded, _, _ = engine_of("tiny").encode(y, [MIDDLE], 1)
    if name != "gain":  # the encoder's alone
        with pytest.raises(TileError):
            engine.decode([coded[0].tiles], size_of(y), [MIDDLE], 2)


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arguments: {**arguments, key: value}


def other_weight(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arguments: {**arguments, "weights": {**arguments["weights"], name: value}}


def without_weight(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arguments: {
        **arguments, "weights": {k: v for k, v in arguments["weights"].items() if k != name}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_weight("latent_codec.gain"), r"must have 'latent_codec.gain' of shape \[8, 8\]"),
        (without_weight("latent_codec.context.lrp"), r"'latent_codec.context.lrp' of shape"),
        (without_weight("g_s.network.5.bias"), r"'g_s.network.5.bias' of shape \[192\]"),
        (
            other_weight("latent_codec.gain", np.ones((8, 9))),
            r"gain must .* \[8, 8\], got \[8, 9\]",
        ),
        (other_weight("latent_codec.thresholds", np.ones(62)), r"thresholds .* \[63\], got \[62\]"),
        (other_weight("latent_codec.dead_zone", np.ones(63)), r"dead_zone .* \[64\], got \[63\]"),
        (other_weight("latent_codec.gain", np.zeros((8, 8))), "gain must be positive, got 0"),
        (other_weight("latent_codec.context.head", np.ones(3)), r"head must have the shape"),
        (changed("latent_channels", 10), "must have the shape"),
        (changed("latent_channels", 9), "latent_channels must be a multiple of slices = 2, got 9"),
        (changed("slices", 0), "slices must be at least 1, got 0"),
        (changed("patch", (0, 2)), r"patch\[0\] must be at least 1, got 0"),
        (changed("patch", (2, -1)), r"patch\[1\] must be at least 1, got -1"),
        (changed("patch", (2, 1 << 40)), "patch must be at most 1024"),
        (changed("layers", -1), "layers must be at least 1, got -1"),
        (changed("width", 40), "width must be a multiple of 32, got 40"),
        (changed("order", [(0, 7, 7)] * 8), "order must be a permutation of the 8"),
        (changed("order", [(-1, 0, 0)] * 8), "order must be a permutation of the 8"),
        (changed("order", [(0, 0, 0)] * 8), "order must be a permutation of the 8"),
        (changed("width", 64), "must have the shape"),
        (changed("layers", 3), "weights must have 'latent_codec.context.blocks.2"),
        (changed("patch_transform", (8, 16, 2, 1)), "weights must have 'g_a"),
        (changed("order", [(0, 0, 0)] * 7), "order must be a permutation of the 8"),
    ],
)
def test_weights_that_do_not_fit(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**change(engine_arguments("tiny", with_transform=True)))


def test_tables_that_break_their_rules() -> None:
    arguments = engine_arguments("tiny")
    y_tables, z_tables = arguments["y_tables"], arguments["z_tables"]
    many = TableArrays(
        *(np.tile(y_tables.counts, 5), np.tile(y_tables.sizes, 5), np.tile(y_tables.offsets, 5))
    )
    for key, tables, message in (
        ("z_tables", y_tables, "z_tables must be one a channel of z, 4, got 64"),
        ("y_tables", many, "y_tables must be at most 256, got 320"),
        ("y_tables", y_tables._replace(offsets=y_tables.offsets[1:]), "must agree"),
        ("z_tables", z_tables._replace(counts=z_tables.counts[1:]), "counts"),
    ):
        with pytest.raises(ValueError, match=message):
            Engine(**{**arguments, key: tables})


@pytest.mark.parametrize(
    ("shape", "settings", "threads", "message"),
    [
        ((4, 6, 8), [MIDDLE], 1, r"y must be \[B, H, W, 8\] and not empty, got \[4, 6, 8\]"),
        ((1, 4, 6, 9), [MIDDLE], 1, r"y must be .* got \[1, 4, 6, 9\]"),
        ((1, 0, 6, 8), [MIDDLE], 1, "not empty"),
        ((0, 4, 6, 8), [], 1, "not empty"),
        ((1, 5, 6, 8), [MIDDLE], 1, "height must be a multiple of 2, .* got 5"),
        ((1, 4, 7, 8), [MIDDLE], 1, "width must be a multiple of 2, .* got 7"),
        ((2, 4, 6, 8), [MIDDLE], 1, "settings must be one for each of 2 latents, got 1"),
        ((1, 4, 6, 8), [MIDDLE], 0, "threads must be at least 1, got 0"),
        ((1, 4, 6, 8), [MIDDLE._replace(quality=-1)], 1, "quality must be 0 .. 1792, got -1"),
        ((1, 4, 6, 8), [MIDDLE._replace(quality=1793)], 1, "quality must be 0 .. 1792, got 1793"),
        ((1, 4, 6, 8), [MIDDLE._replace(skip_below=-1)], 1, "skip_below must be 0 .. 64, got -1"),
        ((1, 4, 6, 8), [MIDDLE._replace(skip_below=65)], 1, "skip_below must be 0 .. 64, got 65"),
        ((1, 4, 6, 8), [MIDDLE._replace(tile=1)], 1, "tile must hold a patch .* got 1"),
        ((1, 4, 6, 8), [MIDDLE._replace(tile=2**63 - 1)], 1, "tile must .* at most 1024"),
    ],
)
def test_encode_names_what_is_wrong(
    shape: tuple[int, ...], settings: list[Settings], threads: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine_of("tiny").encode(np.zeros(shape, np.float32), settings, threads)


def test_decode_names_what_is_wrong() -> None:
    engine, y = engine_of("tiny"), latents("tiny", (2, 3))
    coded, _, _ = engine.encode(y, [MIDDLE], 1)
    tiles = coded[0].tiles
    for batch, size, settings, wanted, message in (
        ([], (4, 6), [], None, "settings must be one for each of 0 latents"),
        ([tiles], (4, 6), [], None, "settings must be one for each of 1 latents, got 0"),
        ([tiles], (4, 5), [MIDDLE], None, "width must be a multiple of 2, .* got 5"),
        ([tiles], (0, 6), [MIDDLE], None, "height must be a multiple of 2, .* got 0"),
        ([tiles], (-4, 6), [MIDDLE], None, "negative"),
        ([tiles * 2], (4, 6), [MIDDLE], None, "tiles must be 1, got 2"),
        ([[]], (4, 6), [MIDDLE], None, "tiles must be 1, got 0"),
        ([[]], (4, 6), [MIDDLE._replace(tile=2**63 - 1)], None, "tile must .* at most 1024"),
        ([tiles], (4, 66), [MIDDLE], None, "tiles must be 2, got 1"),
        ([tiles], (4, 6), [MIDDLE], [True, False], "wanted must be one for each of 1 tiles, got 2"),
        ([tiles], (4, 6), [MIDDLE._replace(quality=1793)], None, "quality must be 0 .. 1792"),
        ([[Tile(memoryview(bytes(9))[::2], 0)]], (4, 6), [MIDDLE], None, "contiguous bytes"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            engine.decode(batch, size, settings, 1, wanted)
        assert not isinstance(caught.value, TileError)
    with pytest.raises(ValueError, match="threads must be at least 1, got -3"):
        engine.decode([tiles], (4, 6), [MIDDLE], -3)
    with pytest.raises(TileError):  # another size of as many tiles
        engine.decode([tiles], (4, 8), [MIDDLE], 1)
    for stream in (memoryview(tiles[0].stream), bytearray(tiles[0].stream)):
        decoded, _ = engine.decode(
            [[Tile(memoryview(stream), tiles[0].checksum)]], (4, 6), [MIDDLE], 1
        )
        assert np.isfinite(decoded).all()


def test_inverse_gains_of_any_quality() -> None:
    """Shrinkage over gain, each linear between the levels."""
    engine, weights = engine_of("tiny"), engine_arguments("tiny")["weights"]
    gain, shrinkage = weights["latent_codec.gain"], weights["latent_codec.shrinkage"]
    for level in range(8):
        assert_same_bits(engine.inverse_gains(256 * level), shrinkage[level] / gain[level])
    between = engine.inverse_gains(256 + 64)
    expected = (3 * shrinkage[1] + shrinkage[2]) / (3 * gain[1] + gain[2])
    assert np.allclose(between, expected, rtol=1e-6)
    for quality in (-1, 1793):
        with pytest.raises(ValueError, match=f"quality must be in 0..1792, got {quality}"):
            engine.inverse_gains(quality)


# ---- pixels --------------------------------------------------------------------------------------


def rgb(height: int, width: int) -> np.ndarray:
    return golden_cases.pixels(golden_cases.PictureCase("picture", height, width, 3, 0))


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (31, 300), (90, 70)])
def test_pictures_with_any_number_of_threads(tiny: Engine, size: tuple[int, int]) -> None:
    settings = MIDDLE._replace(tile=8)
    coded, y_hat, _ = tiny.compress(rgb(*size), settings, 1, want_latent=True)
    assert y_hat is not None
    decoded, _ = tiny.decode([coded.tiles], size_of(y_hat[None]), [settings], 1)
    assert_same_bits(decoded[0], y_hat)
    pixels, _ = tiny.decompress(coded.tiles, size, settings, 1)
    grey, _ = tiny.decompress(coded.tiles, size, settings, 1, grey=True)
    assert pixels.shape == grey.shape == (*size, 3) and (grey == grey[:, :, :1]).all()
    for threads in (2, 3, 7):
        again, none, _ = tiny.compress(rgb(*size), settings, threads)
        assert again == coded and none is None
        assert np.array_equal(tiny.decompress(coded.tiles, size, settings, threads)[0], pixels)
    height, width = size
    for box in ((0, 0, 1, 1), (height // 2, width // 3, height, width)):
        part, _ = tiny.decompress(coded.tiles, size, settings, 2, Region(*box))
        assert np.array_equal(part, pixels[box[0] : box[2], box[1] : box[3]])


def test_pictures_name_what_is_wrong(tiny: Engine) -> None:
    coded, _, _ = tiny.compress(rgb(20, 30), MIDDLE, 1)
    for image in (rgb(20, 30)[:, :, :1], rgb(20, 30)[:, :, 0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"rgb must be uint8 \[H, W, 3\]"):
            tiny.compress(image, MIDDLE, 1)
    with pytest.raises(ValueError, match="rgb must be uint8"):
        tiny.compress(rgb(20, 30).astype(np.float32), MIDDLE, 1)
    for region in ((0, 0, 0, 5), (5, 5, 4, 9), (-1, 0, 5, 5), (0, 0, 21, 5), (0, 0, 5, 31)):
        with pytest.raises(ValueError, match="region must be part of the picture of 30 x 20"):
            tiny.decompress(coded.tiles, (20, 30), MIDDLE, 1, Region(*region))
    with pytest.raises(ValueError, match="tiles must be 1, got 0"):
        tiny.decompress([], (20, 30), MIDDLE, 1)
    with pytest.raises(TileError, match="tile 0"):
        tiny.decompress([Tile(b"", 0)], (20, 30), MIDDLE, 2)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        tiny.compress(rgb(20, 30), MIDDLE, 0)
    plain = engine_of("tiny")
    assert tiny.has_transform and not plain.has_transform
    with pytest.raises(ValueError, match="must have patch transforms to code pixels"):
        plain.compress(rgb(20, 30), MIDDLE, 1)
    with pytest.raises(ValueError, match="must have patch transforms to code pixels"):
        plain.decompress(coded.tiles, (20, 30), MIDDLE, 1)


# ---- LatentCoder ---------------------------------------------------------------------------------


def test_the_latent_coder_is_the_engine() -> None:
    """Channels first outside, last inside; torch's number of threads; errors of the package."""
    coder, y = LatentCoder(make_codec(TINY)), latents("tiny", (4, 5), batch=2)
    tensor = torch.from_numpy(y).permute(0, 3, 1, 2)
    qualities = [1.0, 6.5]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        coded = coder.encode(tensor, qualities)
        decoded = coder.decode([item.tiles for item in coded], size_of(y), qualities)
    finally:
        torch.set_num_threads(threads)
    settings = [Settings(int(256 * quality), SKIP_BELOW, 64) for quality in qualities]
    expected, y_hat, _ = engine_of("tiny").encode(y, settings, 1)
    assert [CodedLatent(item.tiles, *item[2:]) for item in coded] == expected
    assert_same_bits(decoded.numpy(), np.ascontiguousarray(y_hat.transpose(0, 3, 1, 2)))
    with pytest.raises(ArithmeticMismatchError, match="tile 0"):
        coder.decode([[Tile(b"", 0)]], size_of(y), [4.0])
    with pytest.raises(ValueError, match="y must be"):
        coder.encode(tensor[0], [4.0])


def test_pictures_larger_than_their_tiles_are_refused_at_once(tiny: Engine) -> None:
    """Before memory is taken or tiles are counted one by one."""
    coded, _, _ = tiny.compress(np.zeros((20, 20, 3), np.uint8), MIDDLE, 1)
    for size in ((2**40, 2**40), (2**20, 2**20)):
        with pytest.raises(ValueError, match=r"2\^2[48]|tiles must be"):
            tiny.decompress(coded.tiles, size, MIDDLE, 1, Region(0, 0, 1, 1))
