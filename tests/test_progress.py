# SPDX-License-Identifier: MIT
"""Long calls: how far they are, that they can be ended, and how little memory they take."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, random_model
from test_codec import SMALL_ELIC
from test_engine import MIDDLE, engine_arguments, engine_of, latents, rgb, size_of

import groupedmixer
from groupedmixer_ext.engine import Engine, Region

SIZE = (700, 650)
SETTINGS = MIDDLE._replace(tile=8)  # 128 pixels
TILES = 6 * 6


class Told(list[tuple[int, int]]):
    """What a progress callback was called with; all calls have to come from the thread that made
    this."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.thread = threading.get_ident()

    def __call__(self, done: int, total: int) -> None:
        assert threading.get_ident() == self.thread
        self.append((done, total))
        if self.stop_at is not None and done >= self.stop_at:
            raise EnoughError(f"at {done}")

    def assert_whole(self, total: int) -> None:
        done = [one for one, _ in self]
        assert done[0] == 0 and done[-1] == total and done == sorted(set(done))
        assert {one for _, one in self} == {total}


class EnoughError(Exception):
    pass


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(**engine_arguments("tiny", with_transform=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_are_counted(engine: Engine, threads: int) -> None:
    told = Told()
    coded, _, _ = engine.compress(rgb(*SIZE), SETTINGS, threads, progress=told)
    assert len(coded.tiles) == TILES
    told.assert_whole(TILES)
    assert len(told) > 3  # told in between, too
    told = Told()
    pixels, _ = engine.decompress(coded.tiles, SIZE, SETTINGS, threads, progress=told)
    told.assert_whole(TILES)
    told = Told()
    region = Region(300, 300, 301, 302)  # in the middle of a tile, which its neighbours reach into
    part, _ = engine.decompress(coded.tiles, SIZE, SETTINGS, threads, region, progress=told)
    told.assert_whole(1)
    assert np.array_equal(part, pixels[300:301, 300:302])


def test_tiles_of_a_batch_are_counted() -> None:
    engine, y = engine_of("tiny"), latents("tiny", (5, 17), batch=2)
    settings = [MIDDLE._replace(tile=16), MIDDLE]
    told = Told()
    coded, y_hat, _ = engine.encode(y, settings, 2, progress=told)
    told.assert_whole(3 + 1)
    tiles = [item.tiles for item in coded]
    told = Told()
    decoded, _ = engine.decode(tiles, size_of(y), settings, 2, progress=told)
    told.assert_whole(3 + 1)
    assert np.array_equal(decoded, y_hat)
    told = Told()
    one = engine.decode(tiles[:1], size_of(y), settings[:1], 2, [False, True, False], progress=told)
    told.assert_whole(1)
    assert np.array_equal(one[0][0, :, 16:32], y_hat[0, :, 16:32])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stop_at", [0, 1, TILES // 2, TILES])
def test_what_it_raises_ends_the_call(engine: Engine, threads: int, stop_at: int) -> None:
    picture = rgb(*SIZE)
    coded, _, _ = engine.compress(picture, SETTINGS, threads)
    calls: list[Callable[[Told], object]] = [
        lambda told: engine.compress(picture, SETTINGS, threads, progress=told),
        lambda told: engine.decompress(coded.tiles, SIZE, SETTINGS, threads, progress=told),
    ]
    for call in calls:
        told = Told(stop_at)
        with pytest.raises(EnoughError, match="^at "):
            call(told)
        assert [done for done, _ in told if done >= stop_at] == [told[-1][0]]  # not asked again
    again, _, _ = engine.compress(picture, SETTINGS, threads)
    assert again == coded


@pytest.mark.parametrize("config", ["tiny", "elic"])
def test_the_codec_has_it(config: str, tiny_codec: groupedmixer.Codec) -> None:
    codec = tiny_codec
    if config == "elic":
        codec = groupedmixer.Codec(
            groupedmixer.export_weights(random_model(SMALL_ELIC), "elic-test")
        )
    image = picture(20, 1040)
    told = Told()
    data = codec.compress(image, progress=told)
    assert data == codec.compress(image)
    told.assert_whole(2)
    told = Told()
    codec.decompress(data, progress=told)
    told.assert_whole(2)
    told = Told()
    codec.decompress(data, region=(0, 0, 8, 8), progress=told)
    told.assert_whole(1)
    with pytest.raises(EnoughError):
        codec.compress(image, progress=Told(1))
    with pytest.raises(EnoughError):
        codec.decompress(data, progress=Told(1))


WORKER = """
import pickle, sys
import numpy as np
from groupedmixer_ext.engine import Engine
arguments, settings = pickle.load(open(sys.argv[1], "rb"))
engine = Engine(**arguments)
"""

INTERRUPTED = (
    WORKER
    + """
picture = np.zeros((6144, 6144, 3), np.uint8)
tiles = engine.compress(picture[:64, :64], settings, 2)[0].tiles
print("coding", flush=True)
try:
    engine.compress(picture, settings, int(sys.argv[2]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    assert engine.compress(picture[:64, :64], settings, 2)[0].tiles == tiles
"""
)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_call_can_be_interrupted(tmp_path: Path, threads: int) -> None:
    """A real signal, and no callback. The call would go on for half a minute or more."""
    case = tmp_path / "case"
    case.write_bytes(pickle.dumps((engine_arguments("tiny", with_transform=True), MIDDLE)))
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(case), str(threads)],
        env={**os.environ, "GROUPEDMIXER_ISA": "scalar"},  # slow
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "coding\n"
            time.sleep(0.5)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            assert time.monotonic() - start < 10
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


MEMORY = (
    WORKER
    + """
import re

def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

def more(call):
    open("/proc/self/clear_refs", "w").write("5")  # the peak is that from now on
    before = kibibytes("VmRSS")
    result = call()
    print(kibibytes("VmHWM") - before)
    return result

noise = np.random.default_rng(0).integers(0, 256, (512, 256, 3), np.uint8)
for height in map(int, sys.argv[2:]):
    picture = np.tile(noise, (height // 512, 1, 1))
    tiles = more(lambda: engine.compress(picture, settings, 1))[0].tiles
    print(sum(len(tile.stream) for tile in tiles) // 1024)
    more(lambda: engine.decompress(tiles, picture.shape[:2], settings, 1))
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of memory")
def test_memory_does_not_grow_with_the_latent(tmp_path: Path) -> None:
    """A picture three times as high takes more for streams and samples, and for little else."""
    heights = (16384, 49152)
    arguments = engine_arguments("wide slices", with_transform=True)
    (tmp_path / "case").write_bytes(pickle.dumps((arguments, MIDDLE._replace(quality=0, tile=16))))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "case"), *map(str, heights)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = np.array(printed.split(), int)  # KiB
    encoding, streams, decoding = numbers[3:] - numbers[:3]
    pixels = (heights[1] - heights[0]) * 256
    latent = pixels / 256 * arguments["latent_channels"] * 4 / 1024
    assert encoding < latent / 3 + 2 * streams
    assert decoding < latent / 3 + 3 * pixels / 1024
