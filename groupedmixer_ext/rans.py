# SPDX-License-Identifier: MIT
"""The rANS coder: integer symbols in, bytes out, and back.

A *table* gives each value of a range ``offset .. offset + n - 2`` a share of 4096; its last slot is
the escape, through which every other int16 value is coded at a higher price. ``indexes`` chooses a
table for every symbol. Symbols come in groups (one ``push`` or ``pop`` each), because a decoder
usually learns the tables of a group from the groups before it.

``docs/bitstream.md`` specifies the bytes; neither the instruction set nor the number of threads
changes them. Fastest are streams of 16 or 32 lanes, which are coded with vectors (AVX2, AVX-512).
This module needs numpy but not torch; `groupedmixer_ext.tables` makes tables.

>>> tables = Tables(
...     counts=np.array([1024, 2048, 512, 512], np.uint16),  # of -1, 0, 1 and the escape
...     sizes=np.array([4], np.int32),
...     offsets=np.array([-1], np.int32),
... )
>>> symbols = np.array([0, -1, 5, 1], np.int16)
>>> indexes = np.zeros(4, np.uint8)
>>> data = encode(symbols, indexes, tables)
>>> decode(data, indexes, tables).tolist()
[0, -1, 5, 1]
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from groupedmixer_ext import _rans
from groupedmixer_ext._arrays import require_array
from groupedmixer_ext._rans import RansError

__all__ = [
    "PRECISION",
    "Decoder",
    "Encoder",
    "RansError",
    "Tables",
    "decode",
    "decode_many",
    "encode",
    "encode_many",
]

PRECISION = 12
"""Counts of a table sum to ``1 << PRECISION``."""

Symbols: TypeAlias = NDArray[np.int16]
Indexes: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]


class Tables:
    """An immutable, validated set of tables.

    Parameters
    ----------
    counts : uint16 array  # [sum(sizes)]
        The tables' counts one after another. Each is at least 1, each table sums to 4096.
    sizes : integer array  # [T], T <= 4096
        Number of slots of each table, the escape included: 2 .. 4096.
    offsets : integer array  # [T]
        The value of each table's first slot. All values of a table lie in int16.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, the rule and the value.
    """

    __slots__ = ("_counts", "_native", "_offsets", "_sizes")

    def __init__(
        self, counts: NDArray[np.uint16], sizes: NDArray[Any], offsets: NDArray[Any]
    ) -> None:
        require_array("counts", counts, (np.uint16,), ndim=1)
        self._counts = _frozen(counts)
        self._sizes = _frozen(_as_int32("sizes", sizes))
        self._offsets = _frozen(_as_int32("offsets", offsets))
        self._native = _rans.Tables(self._counts, self._sizes, self._offsets)

    def __len__(self) -> int:
        return len(self._native)

    def __repr__(self) -> str:
        return f"Tables({len(self)} tables, {self._counts.size} slots)"

    def __reduce__(self) -> tuple[type[Tables], tuple[NDArray[Any], ...]]:
        return Tables, (self._counts, self._sizes, self._offsets)

    @property
    def counts(self) -> NDArray[np.uint16]:
        """The tables' counts one after another, read-only.  # [sum(sizes)]"""
        return self._counts

    @property
    def sizes(self) -> NDArray[np.int32]:
        """The number of slots of each table, read-only.  # [T]"""
        return self._sizes

    @property
    def offsets(self) -> NDArray[np.int32]:
        """The value of each table's first slot, read-only.  # [T]"""
        return self._offsets


class Encoder:
    """Collects groups of symbols and writes them as one stream.

    Not for several threads at a time: an encoder that another thread is using raises RuntimeError
    and is not affected.
    """

    __slots__ = ("_native",)

    def __init__(self) -> None:
        self._native = _rans.Encoder()

    def push(
        self,
        symbols: Symbols,
        indexes: Indexes,
        tables: Tables,
        skip_below: int = 0,
    ) -> None:
        """Adds a group.

        Parameters
        ----------
        symbols : int16 array, C-contiguous and aligned  # [...]
        indexes : uint8 or uint16 array, C-contiguous and aligned  # [...], as symbols
            The table of each symbol.
        tables : Tables
        skip_below : int
            Symbols with a lower index must be 0 and take no part in the stream.

        Raises
        ------
        TypeError, ValueError
            The encoder is then as it was before the call.
        """
        require_array("symbols", symbols, (np.int16,))
        require_array("indexes", indexes, (np.uint8, np.uint16))
        if symbols.shape != indexes.shape:
            raise ValueError(
                f"indexes must have the shape of symbols, {list(symbols.shape)}, "
                f"got {list(indexes.shape)}"
            )
        self._native.push(
            symbols, indexes, _native_tables(tables), _as_int("skip_below", skip_below)
        )

    def finish(self, lanes: int = 0) -> bytes:
        """Returns the stream of all groups pushed so far; the encoder does not change.

        Parameters
        ----------
        lanes : {0, 1, 4, 8, 16, 32}
            Number of interleaved coder states, 4 bytes each. More of them decode faster. 0 chooses
            the largest number that adds at most 0.75 % to the stream.

        Raises
        ------
        TypeError, ValueError
            If `lanes` is another number, or none.
        """
        return self._native.finish(_as_int("lanes", lanes))

    @property
    def estimated_bits(self) -> float:
        """The size of the symbols pushed so far, without header and coder states."""
        return self._native.estimated_bits

    @property
    def num_coded(self) -> int:
        """How many of the symbols pushed so far were not skipped."""
        return self._native.num_coded

    @property
    def num_escaped(self) -> int:
        """How many of the symbols pushed so far went through the escape."""
        return self._native.num_escaped


class Decoder:
    """Reads a stream group by group.

    After a `RansError`, or a ValueError about the numbers in ``indexes`` or ``skip_below``, a
    decoder can no longer be used. Not for several threads at a time: a decoder that another thread
    is using raises RuntimeError and is not affected.

    Parameters
    ----------
    data : bytes-like
        The whole stream. It is copied.

    Raises
    ------
    RansError
        If the stream's header is damaged.
    """

    __slots__ = ("_native",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._native = _rans.Decoder(data if isinstance(data, bytes) else bytes(memoryview(data)))

    @property
    def lanes(self) -> int:
        """Number of interleaved coder states."""
        return self._native.lanes

    def pop(self, indexes: Indexes, tables: Tables, skip_below: int = 0) -> Symbols:
        """Decodes the next group.

        Parameters
        ----------
        indexes : uint8 or uint16 array, C-contiguous and aligned  # [...]
            The same as were given to the encoder, and so `tables` and `skip_below`.

        Returns
        -------
        int16 array  # [...], as indexes

        Raises
        ------
        RansError
            If the stream is damaged.
        TypeError, ValueError
            If an argument is wrong.
        """
        require_array("indexes", indexes, (np.uint8, np.uint16))
        return self._native.pop(indexes, _native_tables(tables), _as_int("skip_below", skip_below))

    def finish(self) -> None:
        """Checks that nothing is left of the stream; raises `RansError` otherwise."""
        self._native.finish()


def encode(
    symbols: Symbols,
    indexes: Indexes,
    tables: Tables,
    lanes: int = 0,
    skip_below: int = 0,
) -> bytes:
    """Encodes a single group; see `Encoder.push` and `Encoder.finish`."""
    encoder = Encoder()
    encoder.push(symbols, indexes, tables, skip_below)
    return encoder.finish(lanes)


def decode(
    data: bytes | bytearray | memoryview, indexes: Indexes, tables: Tables, skip_below: int = 0
) -> Symbols:
    """Decodes a stream of a single group; see `Decoder`."""
    decoder = Decoder(data)
    symbols = decoder.pop(indexes, tables, skip_below)
    decoder.finish()
    return symbols


def encode_many(
    groups: Sequence[tuple[Symbols, Indexes]],
    tables: Tables,
    lanes: int = 0,
    skip_below: int = 0,
    threads: int = 0,
) -> list[bytes]:
    """Encodes every group as a stream of its own, several at a time.

    Parameters
    ----------
    groups : sequence of (symbols, indexes)
        As `Encoder.push` takes them; parts of one large latent, say.
    tables, lanes, skip_below
        As for `encode`.
    threads : int
        How many groups are encoded at a time; 0: as many as there are cores for this process. The
        bytes do not depend on it.

    Returns
    -------
    list of bytes
        What `encode` gives for each of the groups.

    Raises
    ------
    TypeError, ValueError
        As `encode`, of the first group that is wrong.
    """
    return _map(
        lambda group: encode(group[0], group[1], tables, lanes, skip_below), groups, threads
    )


def decode_many(
    streams: Sequence[bytes | bytearray | memoryview],
    indexes: Sequence[Indexes],
    tables: Tables,
    skip_below: int = 0,
    threads: int = 0,
) -> list[Symbols]:
    """Decodes the streams of `encode_many`, several at a time.

    Parameters
    ----------
    streams : sequence of bytes-like
    indexes : sequence of uint8 or uint16 arrays  # [...] each
        One for each stream.
    tables, skip_below
        As they were given to `encode_many`.
    threads : int
        How many streams are decoded at a time; 0: as many as there are cores for this process.

    Returns
    -------
    list of int16 arrays  # [...] each, as indexes

    Raises
    ------
    RansError, TypeError, ValueError
        As `decode`, of the first stream that is wrong.
    """
    if len(streams) != len(indexes):
        raise ValueError(
            f"indexes must be as many as streams, {len(streams)}, got {len(indexes)} of them"
        )
    pairs = list(zip(streams, indexes, strict=True))
    return _map(lambda pair: decode(pair[0], pair[1], tables, skip_below), pairs, threads)


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def _map(
    function: Callable[[_Item], _Result], items: Sequence[_Item], threads: int
) -> list[_Result]:
    threads = _as_int("threads", threads)
    if threads < 0:
        raise ValueError(f"threads must be at least 0, got {threads}")
    if threads == 0:
        available = getattr(os, "sched_getaffinity", None)  # Linux only
        threads = len(available(0)) if available else os.cpu_count() or 1
    threads = min(threads, len(items))
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _as_int(name: str, value: SupportsIndex) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{name} must fit in int32, got {number}")
    return number


def _as_int32(name: str, value: object) -> NDArray[np.int32]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be a numpy array of integers, got {got}")
    if value.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension(s), got shape {list(value.shape)}")
    limits = np.iinfo(np.int32)
    if value.size and (value.min() < limits.min or value.max() > limits.max):
        raise ValueError(f"{name} must fit in int32, got {value.min()} .. {value.max()}")
    return value.astype(np.int32)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _native_tables(tables: Tables) -> _rans.Tables:
    if not isinstance(tables, Tables):
        raise TypeError(f"tables must be a rans.Tables, got {type(tables).__name__}")
    return tables._native
