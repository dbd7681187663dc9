# SPDX-License-Identifier: MIT

import copy
import hashlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupedmixer_ext import ops, rans, tables

EXAMPLE = rans.Tables(
    counts=np.array([1024, 2048, 512, 512], np.uint16),
    sizes=np.array([4], np.int32),
    offsets=np.array([-1], np.int32),
)
EXAMPLE_SYMBOLS = np.array([0, -1, 5, 1, -3, 1, 1], np.int16)
EXAMPLE_BYTES = bytes.fromhex("00 02 db040400 00ee 06 03")
LANES = [0, 1, 4, 8, 16, 32]
GAUSSIAN = tables.gaussian_tables(np.geomspace(0.11, 200, 32))


# Two slots, as uneven as can be, and as many as can be, at either end of int16; a table whose
# likely value is the last of more than a decode entry can name.
EXTREME = rans.Tables(
    np.concatenate(
        [[4095, 1], [1, 4095], np.ones(4096), np.ones(4096), np.ones(999), [3096, 1]]
    ).astype(np.uint16),
    np.array([2, 2, 4096, 4096, 1001]),
    np.array([-32768, 32767, -32768, 32767 - 4094, -500]),
)


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.uint8)


def random_group(
    seed: int, shape: tuple[int, ...], skip_below: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    indexes = random.integers(0, len(GAUSSIAN), shape).astype(np.uint8)
    symbols = np.rint(random.standard_cauchy(shape) * 3 * (indexes + 1)).clip(-32768, 32767)
    return np.where(indexes < skip_below, 0, symbols).astype(np.int16), indexes


def plain_decode(data: bytes, groups: list[list[int]], built: rans.Tables, skip: int) -> list[int]:
    """A decoder written from the specification, without looking at the C++."""
    slots = np.split(built.counts.astype(int), np.cumsum(built.sizes)[:-1])
    position = 1

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    lanes = [1, 4, 8, 16, 32][data[0]]
    escape_bytes = varint()
    states = [
        int.from_bytes(data[position + 4 * i : position + 4 * i + 4], "little")
        for i in range(lanes)
    ]
    word = position + 4 * lanes
    position = len(data) - escape_bytes
    symbols = []
    for indexes in groups:
        i = 0
        for index in indexes:
            if index < skip:
                symbols.append(0)
                continue
            counts, offset = slots[index], int(built.offsets[index])
            x, lane = states[i % lanes], i % lanes
            point = x % 4096
            slot = start = 0
            while point >= start + counts[slot]:
                start += counts[slot]
                slot += 1
            x = int(counts[slot]) * (x // 4096) + point - int(start)
            if x < 65536:
                x = x * 65536 + int.from_bytes(data[word : word + 2], "little")
                word += 2
            states[lane] = x
            i += 1
            if slot < len(counts) - 1:
                symbols.append(offset + slot)
            else:
                v = varint()
                symbols.append(offset - 1 - v // 2 if v % 2 else offset + len(counts) - 1 + v // 2)
    assert word == len(data) - escape_bytes and position == len(data)
    assert set(states) == {65536}
    return symbols


def test_worked_example() -> None:
    assert rans.encode(EXAMPLE_SYMBOLS, zeros(7), EXAMPLE) == EXAMPLE_BYTES
    assert np.array_equal(rans.decode(EXAMPLE_BYTES, zeros(7), EXAMPLE), EXAMPLE_SYMBOLS)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("skip_below", [0, 5, 32])
def test_groups_round_trip_and_follow_the_specification(lanes: int, skip_below: int) -> None:
    groups = [random_group(i, (3, n), skip_below) for i, n in enumerate([0, 1, 7, 11, 100, 33])]
    encoder = rans.Encoder()
    for symbols, indexes in groups:
        encoder.push(symbols, indexes, GAUSSIAN, skip_below)
    data = encoder.finish(lanes)
    assert encoder.finish(lanes) == data
    decoder = rans.Decoder(data)
    assert lanes in (0, decoder.lanes)
    for symbols, indexes in groups:
        decoded = decoder.pop(indexes, GAUSSIAN, skip_below)
        assert decoded.dtype == np.int16 and np.array_equal(decoded, symbols)
    decoder.finish()

    flat = [indexes.ravel().tolist() for _, indexes in groups]
    expected = [value for symbols, _ in groups for value in symbols.ravel().tolist()]
    assert plain_decode(data, flat, GAUSSIAN, skip_below) == expected


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 31, 32, 33, 3000])
def test_extreme_tables_and_escapes(lanes: int, count: int) -> None:
    """Values of the tables, values anywhere (most of them escapes), and escapes alone."""
    random = np.random.default_rng(count)
    indexes = random.integers(0, len(EXTREME), count).astype(np.uint16)
    slots = random.integers(0, EXTREME.sizes[indexes] - 1)
    inside = EXTREME.offsets[indexes] + slots
    anywhere = random.integers(-32768, 32768, count)
    outside = np.where(EXTREME.offsets[indexes] < 0, 32767 - slots, -32768 + slots)
    for symbols in (inside, anywhere, outside):
        symbols = symbols.astype(np.int16)
        data = rans.encode(symbols, indexes, EXTREME, lanes=lanes)
        for kind in (np.uint8, np.uint16):
            assert rans.encode(symbols, indexes.astype(kind), EXTREME, lanes=lanes) == data
            assert np.array_equal(rans.decode(data, indexes.astype(kind), EXTREME), symbols)
        if count < 100:  # slow where tables are large
            assert plain_decode(data, [indexes.tolist()], EXTREME, 0) == symbols.tolist()


def hash_of_many_streams() -> str:
    """Of large groups under both sets of tables, indexes of both widths and all lanes."""
    streams = hashlib.sha256()
    random = np.random.default_rng(7)
    symbols, indexes = random_group(7, (100_000,), skip_below=5)
    extreme = random.integers(0, len(EXTREME), symbols.size).astype(np.uint16)
    for lanes in LANES:
        encoder = rans.Encoder()
        encoder.push(symbols, indexes, GAUSSIAN, 5)
        encoder.push(symbols, extreme, EXTREME)
        data = encoder.finish(lanes)
        decoder = rans.Decoder(data)
        assert np.array_equal(decoder.pop(indexes, GAUSSIAN, 5), symbols)
        assert np.array_equal(decoder.pop(extreme, EXTREME), symbols)
        decoder.finish()
        streams.update(data + str(encoder.estimated_bits).encode())
    return streams.hexdigest()


@pytest.mark.parametrize("isa", [isa for isa in ops.ISAS if ops.isa_available(isa)])
def test_every_instruction_set_writes_the_same_bytes(isa: str) -> None:
    program = "import test_rans; print(test_rans.hash_of_many_streams())"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parent,
        env={**os.environ, "GROUPEDMIXER_ISA": isa},
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == hash_of_many_streams()


def test_wide_indexes_and_tables_of_all_sizes() -> None:
    counts = [np.ones(4096, np.uint16)] + [
        np.array([c, 4096 - c], np.uint16) for c in range(1, 400)
    ]
    built = rans.Tables(
        np.concatenate(counts), np.array([c.size for c in counts]), np.arange(400) - 2000
    )
    random = np.random.default_rng(0)
    indexes = random.integers(0, 400, 20_000).astype(np.uint16)
    symbols = random.integers(-2100, 2100, indexes.size).astype(np.int16)
    symbols[indexes == 0] = random.integers(-2000, 2095, int((indexes == 0).sum()))
    data = rans.encode(symbols, indexes, built)
    assert np.array_equal(rans.decode(data, indexes, built), symbols)


def test_size_is_near_the_estimate_and_the_estimate_near_the_entropy() -> None:
    random = np.random.default_rng(0)
    symbols = random.choice([-1, 0, 1], 100_000, p=[0.25, 0.625, 0.125]).astype(np.int16)
    encoder = rans.Encoder()
    encoder.push(symbols, zeros(symbols.size), EXAMPLE)
    exact = sum((symbols == v).sum() * bits for v, bits in ((-1, 2), (0, 1), (1, 3)))
    assert encoder.estimated_bits == exact
    assert (encoder.num_coded, encoder.num_escaped) == (100_000, 0)
    assert 0 <= len(encoder.finish(1)) * 8 - exact < 80


@pytest.mark.parametrize(
    ("bits", "lanes"),
    [(0, 1), (17066, 1), (17067, 4), (34133, 4), (34134, 8), (68267, 16), (136534, 32)],
)
def test_lanes_are_chosen_from_the_size(bits: int, lanes: int) -> None:
    half = rans.Tables(np.array([2048, 2048], np.uint16), np.array([2]), np.array([0]))
    data = rans.encode(np.zeros(bits, np.int16), zeros(bits), half)  # a bit a symbol
    assert rans.Decoder(data).lanes == lanes


def test_every_truncation_and_extension_is_an_error() -> None:
    symbols, indexes = random_group(0, (60,))
    data = rans.encode(symbols, indexes, GAUSSIAN, lanes=4)
    for size in range(len(data)):
        with pytest.raises(rans.RansError):
            rans.decode(data[:size], indexes, GAUSSIAN)
    for extra in (b"\0", b"\0\0"):
        with pytest.raises(rans.RansError):
            rans.decode(data + extra, indexes, GAUSSIAN)


def accepts(data: bytes, indexes: np.ndarray, built: rans.Tables) -> bool:
    """Whether `data` is decoded; what is has one spelling, so that encoding brings it back."""
    try:
        decoded = rans.decode(data, indexes, built)
    except rans.RansError:
        return False
    assert rans.encode(decoded, indexes, built, lanes=rans.Decoder(data).lanes) == data
    return True


@given(st.binary(max_size=60), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_decoded_or_rejected(data: bytes, count: int) -> None:
    accepts(data, zeros(count), EXAMPLE)


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_changed_stream_has_one_spelling_or_is_rejected(lanes: int) -> None:
    random = np.random.default_rng(lanes)
    verdicts = []
    for _ in range(300):
        symbols = random.integers(-300, 300, 30).astype(np.int16)  # most of them escapes
        data = bytearray(rans.encode(symbols, zeros(30), EXAMPLE, lanes=lanes))
        for _ in range(random.integers(1, 4)):
            # The escapes are the last part, and take more than half of these streams.
            first = random.choice([0, len(data) // 2])
            data[random.integers(first, len(data))] ^= 1 << random.integers(0, 8)
        verdicts.append(accepts(bytes(data), zeros(30), EXAMPLE))
    assert 0 < sum(verdicts) < len(verdicts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "empty"),
        ("05 00 00000100", "lane code must be 0 .. 4, got 5"),
        ("00 8000 00000100", "shortest form"),
        ("00 808080808001", "at most 5 bytes"),
        ("00 8080808010 00000100", r"must be below 2\^32, got 4294967296"),
        ("00 00 000001", "must hold 4 bytes of states and 0 of escapes, got 3"),
        ("00 02 00000100 06", "and 2 of escapes"),
        ("00 00 00000100 00", "odd number of bytes"),
        ("00 00 ffff0000", "states must be at least 65536, got 65535 in lane 0"),
        ("00 00 00000100 0000", "2 bytes of words are left over"),
        ("00 01 00000100 00", "1 bytes of escapes are left over"),
        ("00 00 01000100", "every state must end at 65536, got 65537 in lane 0"),
    ],
)
def test_broken_streams(data: str, message: str) -> None:
    with pytest.raises(rans.RansError, match=message):
        rans.decode(bytes.fromhex(data), zeros(0), EXAMPLE)


def test_a_decoder_that_raised_or_finished_is_unusable() -> None:
    decoder = rans.Decoder(EXAMPLE_BYTES)
    with pytest.raises(TypeError, match="indexes must be of uint8 or uint16"):
        decoder.pop(np.ones(1, np.int16), EXAMPLE)
    assert decoder.pop(zeros(2), EXAMPLE).tolist() == [0, -1]  # nothing had been read
    with pytest.raises(ValueError, match="indexes must be below 1"):
        decoder.pop(np.ones(1, np.uint8), EXAMPLE)
    with pytest.raises(rans.RansError, match="unusable after an earlier error"):
        decoder.pop(zeros(1), EXAMPLE)
    with pytest.raises(rans.RansError, match="unusable"):
        decoder.finish()
    finished = rans.Decoder(rans.Encoder().finish())
    finished.finish()
    with pytest.raises(rans.RansError, match="finished"):
        finished.pop(zeros(0), EXAMPLE)


@pytest.mark.parametrize(
    ("counts", "sizes", "offsets", "error", "message"),
    [
        ([4095, 1], [2], [0], TypeError, "counts must be of uint16, got int64"),
        (np.array([4095, 1], np.uint16), [2], [0], None, ""),
        (
            np.array([4095, 1], np.uint16),
            [2.0],
            [0],
            TypeError,
            "sizes must be a numpy array of int",
        ),
        (np.array([4095, 1], np.uint16), [[2]], [0], ValueError, "sizes must have 1 dimension"),
        (np.array([4095, 1], np.uint16), [2], [0, 1], ValueError, "equal sizes, got 1 and 2"),
        (np.array([4095, 1], np.uint16), [2], [2**40], ValueError, "offsets must fit in int32"),
        (np.array([4095, 1], np.uint16), [2], [40000], ValueError, "int16, got 40000 .. 40000"),
        (np.array([4095, 1], np.uint16), [3], [0], ValueError, "= 3 elements, got 2"),
        (np.array([4096], np.uint16), [1], [0], ValueError, "sizes must be 2 .. 4096, got 1"),
        (np.array([4096, 0], np.uint16), [2], [0], ValueError, "at least 1, got 0 at slot 1"),
        (np.array([4095, 2], np.uint16), [2], [0], ValueError, "sum to 4096, got 4097"),
    ],
)
def test_table_rules(counts, sizes, offsets, error, message) -> None:
    arguments = np.asarray(counts), np.asarray(sizes), np.asarray(offsets)
    if error is None:
        assert len(rans.Tables(*arguments)) == 1
    else:
        with pytest.raises(error, match=message):
            rans.Tables(*arguments)


def test_tables_are_at_most_4096() -> None:
    def build(count: int) -> rans.Tables:
        counts = np.tile(np.array([4095, 1], np.uint16), count)
        return rans.Tables(counts, np.full(count, 2), np.zeros(count, np.int32))

    assert len(build(4096)) == 4096
    with pytest.raises(ValueError, match=r"sizes must name 1 \.\. 4096 tables, got 4097"):
        build(4097)


def test_tables_are_read_only_and_copy() -> None:
    with pytest.raises(ValueError, match="read-only"):
        EXAMPLE.counts[0] = 1
    for twin in (copy.deepcopy(EXAMPLE), pickle.loads(pickle.dumps(EXAMPLE))):
        assert rans.encode(EXAMPLE_SYMBOLS, zeros(7), twin) == EXAMPLE_BYTES
        assert np.array_equal(twin.sizes, [4]) and np.array_equal(twin.offsets, [-1])


@pytest.mark.parametrize(
    ("symbols", "indexes", "options", "error", "message"),
    [
        ([0], zeros(1), {}, TypeError, "symbols must be a numpy array of int16, got list"),
        (zeros(1), zeros(1), {}, TypeError, "symbols must be of int16, got uint8"),
        (np.zeros(1, np.int16), np.zeros(1, int), {}, TypeError, "indexes must be of uint8 or"),
        (np.zeros(4, np.int16)[::2], zeros(2), {}, ValueError, "symbols must be C-contiguous"),
        (np.zeros((1, 2), np.int16), zeros(2), {}, ValueError, r"\[1, 2\], got \[2\]"),
        (np.zeros(1, np.int16), np.ones(1, np.uint8), {}, ValueError, "below 1 .*, got 1 at"),
        (np.ones(1, np.int16), zeros(1), {"skip_below": 1}, ValueError, "0 where indexes <"),
        (np.zeros(1, np.int16), zeros(1), {"skip_below": 2}, ValueError, "skip_below must be 0"),
        (np.zeros(1, np.int16), zeros(1), {"skip_below": -1}, ValueError, "skip_below must be 0"),
        (np.zeros(1, np.int16), zeros(1), {"skip_below": 2**70}, ValueError, "skip_below must fit"),
        (np.zeros(1, np.int16), zeros(1), {"skip_below": 0.5}, TypeError, "skip_below must be an"),
        (np.zeros(1, np.int16), zeros(1), {"lanes": 2}, ValueError, "lanes must be 0"),
        (np.zeros(1, np.int16), zeros(1), {"lanes": 2**40}, ValueError, "lanes must fit in int32"),
        (np.zeros(1, np.int16), zeros(1), {"lanes": "4"}, TypeError, "lanes must be an integer"),
    ],
)
def test_wrong_arguments(symbols, indexes, options, error, message) -> None:
    with pytest.raises(error, match=message):
        rans.encode(symbols, indexes, EXAMPLE, **options)


def test_arrays_that_are_not_aligned() -> None:
    def shifted(count: int, dtype: type) -> np.ndarray:
        return np.frombuffer(bytes(2 * count + 1), dtype, offset=1)

    with pytest.raises(ValueError, match="symbols must be aligned to 2 bytes"):
        rans.encode(shifted(3, np.int16), zeros(3), EXAMPLE)
    with pytest.raises(ValueError, match="indexes must be aligned to 2 bytes"):
        rans.encode(np.zeros(3, np.int16), shifted(3, np.uint16), EXAMPLE)
    with pytest.raises(ValueError, match="indexes must be aligned to 2 bytes"):
        rans.decode(EXAMPLE_BYTES, shifted(7, np.uint16), EXAMPLE)


def test_a_failed_push_changes_nothing() -> None:
    encoder = rans.Encoder()
    encoder.push(EXAMPLE_SYMBOLS, zeros(7), EXAMPLE)
    bad_indexes = np.array([0, 0, 0, 0, 0, 0, 1], np.uint8)
    with pytest.raises(ValueError, match="got 1 at position 6"):
        encoder.push(EXAMPLE_SYMBOLS, bad_indexes, EXAMPLE)
    assert encoder.finish() == EXAMPLE_BYTES


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.array])
def test_bytes_like_streams(kind) -> None:
    data = np.frombuffer(EXAMPLE_BYTES, np.uint8) if kind is np.array else kind(EXAMPLE_BYTES)
    assert np.array_equal(rans.decode(data, zeros(7), EXAMPLE), EXAMPLE_SYMBOLS)


def test_two_threads_on_one_object_raise_or_work_but_never_crash() -> None:
    symbols, indexes = random_group(0, (20_000,))
    encoder = rans.Encoder()
    decoder = rans.Decoder(rans.encode(symbols, indexes, GAUSSIAN))
    pushed: list[None] = []
    popped: list[np.ndarray] = []
    unexpected: list[Exception] = []

    def work() -> None:
        for _ in range(40):
            for action in (
                lambda: pushed.append(encoder.push(symbols, indexes, GAUSSIAN)),
                lambda: popped.append(decoder.pop(indexes, GAUSSIAN)),
                lambda: encoder.finish(),
            ):
                try:
                    action()
                except rans.RansError:
                    pass  # the decoder ran out of symbols
                except Exception as error:
                    if "in use by another thread" not in str(error):
                        unexpected.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    assert len(popped) == 1 and np.array_equal(popped[0], symbols)
    # Every push took effect entirely or raised.
    alone = rans.Encoder()
    for _ in pushed:
        alone.push(symbols, indexes, GAUSSIAN)
    assert encoder.num_coded == alone.num_coded
    assert encoder.finish() == alone.finish()


def test_imports_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from groupedmixer_ext import rans, tables\n"
        "assert len(tables.gaussian_tables([1.0])) == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_many_streams_are_those_of_encode_whatever_the_threads() -> None:
    generator = np.random.default_rng(5)
    built = tables.gaussian_tables(np.array([0.3, 2.0, 20.0]))
    groups = []
    for size in (0, 1, 700, 40000):
        indexes = generator.integers(0, 3, size).astype(np.uint8)
        groups.append((np.round(generator.normal(0, 3, size)).astype(np.int16), indexes))
    expected = [rans.encode(symbols, indexes, built) for symbols, indexes in groups]
    for threads in (0, 1, 2, 9):
        assert rans.encode_many(groups, built, threads=threads) == expected
        decoded = rans.decode_many(expected, [group[1] for group in groups], built, threads=threads)
        for symbols, group in zip(decoded, groups, strict=True):
            assert np.array_equal(symbols, group[0])
    assert rans.encode_many([], built) == []


def test_many_streams_argument_errors() -> None:
    built = tables.gaussian_tables(np.array([1.0]))
    group = (zeros(3).astype(np.int16), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="threads must be at least 0, got -1"):
        rans.encode_many([group], built, threads=-1)
    with pytest.raises(ValueError, match="indexes must be as many as streams, 1, got 0"):
        rans.decode_many([b"x"], [], built)
    with pytest.raises(rans.RansError, match="lane code"):
        rans.decode_many([b"x", b"y"], [group[1], group[1]], built)
    with pytest.raises(ValueError, match="indexes must be below 1"):
        rans.encode_many([group, (group[0], group[1] + 1)], built, threads=2)
