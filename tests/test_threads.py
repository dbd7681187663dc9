# SPDX-License-Identifier: MIT
"""Codecs used from many threads and processes at once: always the bytes of one after the other."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
from conftest import picture, random_model
from PIL import Image

import groupedmixer

THREADS = 8
SIZES = [(16, 16), (1, 1), (70, 90), (33, 200), (128, 64), (5, 301), (1100, 40)]
QUALITIES = [0, 1.25, 3, 4, 5.5, 7]


@pytest.fixture(scope="module")
def codecs(tiny_codec: groupedmixer.Codec) -> list[groupedmixer.Codec]:
    """Two sets of weights, and one of them twice."""
    other = groupedmixer.export_weights(
        random_model(groupedmixer.get_config("tiny"), seed=1), "tiny-other"
    )
    return [tiny_codec, groupedmixer.Codec(other), groupedmixer.Codec(other)]


def at_once(tasks: list[Callable[[], object]]) -> list[object]:
    """Results of the tasks, THREADS at a time; all threads begin together."""
    start = threading.Barrier(THREADS)

    def work(first: int) -> list[object]:
        start.wait(60)
        return [task() for task in tasks[first::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(work, range(THREADS)))
    return [parts[i % THREADS][i // THREADS] for i in range(len(tasks))]


def pixels(image: Image.Image) -> tuple[str, tuple[int, int], bytes]:
    return image.mode, image.size, image.tobytes()


def jobs(codecs: list[groupedmixer.Codec]) -> list[tuple[groupedmixer.Codec, Image.Image, float]]:
    """Every size with every codec; qualities and modes take turns."""
    modes = ["RGB", "L", "RGBA", "LA"]
    return [
        (
            codec,
            picture(*SIZES[i % len(SIZES)], seed=i).convert(modes[i % len(modes)]),
            QUALITIES[i % len(QUALITIES)],
        )
        for i, codec in enumerate(codecs * len(SIZES))
    ]


def test_many_threads_with_one_codec_and_with_several(codecs: list[groupedmixer.Codec]) -> None:
    # zip with 3 codecs and 7 sizes: all combinations, as 3 and 7 have no common divisor.
    work = jobs(codecs)
    files = [codec.compress(image, quality) for codec, image, quality in work]
    decoded = [
        pixels(codec.decompress(data)) for (codec, *_), data in zip(work, files, strict=True)
    ]

    compress = [lambda job=job: job[0].compress(job[1], job[2]) for job in work]
    decompress = [
        lambda job=job, data=data: pixels(job[0].decompress(data))
        for job, data in zip(work, files, strict=True)
    ]
    # Both directions in turn, so that threads of either meet in the same engines.
    mixed = [task for pair in zip(compress, decompress, strict=True) for task in pair]
    results = at_once(mixed)
    assert results[::2] == files
    assert results[1::2] == decoded


def test_one_file_in_all_threads(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(90, 130), 4)
    expected = pixels(tiny_codec.decompress(data))
    results = at_once([lambda: pixels(tiny_codec.decompress(data))] * (3 * THREADS))
    assert all(result == expected for result in results)


def test_failures_of_one_thread_are_not_those_of_others(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(60, 60), 4)
    expected = pixels(tiny_codec.decompress(data))
    broken = data[:-9] + bytes(9)

    def decode(content: bytes) -> object:
        try:
            return pixels(tiny_codec.decompress(content))
        except groupedmixer.GmxError as error:
            return type(error).__name__

    tasks = [lambda content=content: decode(content) for content in [data, broken] * 12]
    assert at_once(tasks) == [expected, "CorruptError"] * 12


def test_other_threads_run_while_one_codes() -> None:
    """The native call holds no GIL: a thread that only sleeps and counts goes on counting."""
    codec = groupedmixer.load("rt")
    image = picture(1000, 1500)
    codec.compress(image)  # the first call has more to do in Python
    done = threading.Event()
    ticks: list[float] = []

    def count() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    counting = threading.Thread(target=count)
    counting.start()
    begin = time.perf_counter()
    codec.compress(image)
    end = time.perf_counter()
    done.set()
    counting.join()
    seconds = end - begin
    inside = [tick for tick in ticks if begin + 0.25 * seconds < tick < begin + 0.75 * seconds]
    assert len(inside) >= 5, f"{len(inside)} ticks in the middle half of {seconds:.2f} s"


def test_a_codec_outlives_the_call_that_uses_it() -> None:
    """The last name of a codec may go while a thread codes with it; then its memory goes too."""
    weights = groupedmixer.export_weights(
        random_model(groupedmixer.get_config("tiny"), seed=2), "tiny-gone"
    )
    image = picture(500, 700)
    expected = groupedmixer.Codec(weights).compress(image, 4)
    codec: groupedmixer.Codec | None = groupedmixer.Codec(weights)
    gone = weakref.ref(codec)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(codec.compress, image, 4) for _ in range(8)]
        codec = None
        while not all(result.done() for result in results):
            gc.collect()
            time.sleep(0.01)
        assert all(result.result(60) == expected for result in results)
    del results
    gc.collect()
    assert gone() is None


# --- processes ------------------------------------------------------------------------------------


def report_hash(
    codec: groupedmixer.Codec | Path, data: bytes, answers: Queue[tuple[str, str]]
) -> None:
    """Decodes and encodes in a process of its own."""
    if isinstance(codec, Path):
        codec = groupedmixer.load(codec)
    image = codec.decompress(data)
    answers.put((digest(image.tobytes()), digest(codec.compress(image, 3))))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def answers_of(
    context: BaseContext, codec: groupedmixer.Codec | Path, data: bytes, count: int
) -> list[tuple[str, str]]:
    answers: Queue[tuple[str, str]] = context.Queue()
    processes = [
        context.Process(target=report_hash, args=(codec, data, answers), daemon=True)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return found


# Python 3.12 warns of every fork of a process with threads; that this one works is the test.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_after_use_and_during_use(tiny_codec: groupedmixer.Codec) -> None:
    data = tiny_codec.compress(picture(70, 90), 4)
    image = tiny_codec.decompress(data)
    expected = (digest(image.tobytes()), digest(tiny_codec.compress(image, 3)))
    context = multiprocessing.get_context("fork")
    assert answers_of(context, tiny_codec, data, 2) == [expected] * 2

    stop = threading.Event()

    def code() -> None:
        while not stop.is_set():
            tiny_codec.decompress(data)

    coding = [threading.Thread(target=code) for _ in range(3)]
    for thread in coding:
        thread.start()
    try:
        assert answers_of(context, tiny_codec, data, 4) == [expected] * 4
    finally:
        stop.set()
        for thread in coding:
            thread.join()


def test_spawned_processes_load_their_own(
    tiny_model: groupedmixer.GroupedMixer, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.safetensors"
    codec = groupedmixer.Codec(groupedmixer.save_weights(tiny_model, path, "tiny-test"))
    data = codec.compress(picture(70, 90), 4)
    image = codec.decompress(data)
    expected = (digest(image.tobytes()), digest(codec.compress(image, 3)))
    assert answers_of(multiprocessing.get_context("spawn"), path, data, 1) == [expected]
