# SPDX-License-Identifier: MIT
"""compressai's entropy coding, byte for byte, from arrays instead of lists.

The stream is that of ``compressai.ans``: one 64-bit rANS state, 16-bit probabilities, and values
outside a table in raw 4-bit digits. A *table* is a row of a compressai entropy model's
``quantized_cdf``: slot s stands for the value ``offset + s``, the last slot for all other values.
``indexes`` chooses a table for every symbol.

Unlike compressai's, the decoder never reads beyond the stream, and `Decoder.finish` tells whether
it ended where it should. This module needs numpy, neither torch nor compressai;
`groupedmixer.accelerate` puts it behind a compressai model.

>>> tables = Tables(
...     cdfs=np.array([[0, 16384, 49152, 57344, 65536]], np.int32),  # -1, 0, 1 and all others
...     sizes=np.array([5], np.int32),
...     offsets=np.array([-1], np.int32),
... )
>>> symbols = np.array([0, -1, 5, 1], np.int32)
>>> indexes = np.zeros(4, np.uint8)
>>> data = encode(symbols, indexes, tables)
>>> decode(data, indexes, tables).tolist()
[0, -1, 5, 1]
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupedmixer_ext import _compressai
from groupedmixer_ext._arrays import require_array
from groupedmixer_ext.rans import RansError

__all__ = [
    "PRECISION",
    "Decoder",
    "Encoder",
    "RansError",
    "ScaleIndex",
    "Tables",
    "decode",
    "encode",
]

PRECISION = 16
"""A table's cumulative counts run from 0 to ``1 << PRECISION``."""

Symbols: TypeAlias = NDArray[np.int32]
Indexes: TypeAlias = NDArray[np.uint8] | NDArray[np.int32]


class Tables:
    """An immutable, validated set of tables.

    Parameters
    ----------
    cdfs : int32 array  # [T, L]
        Row t rises from 0 to 65536 within its first ``sizes[t]`` elements, by 65535 at most from
        one to the next; what follows is not looked at. A value at which a row does not rise cannot
        be coded.
    sizes : int32 array  # [T]
        Used elements of each row, its slots and one: 2 .. min(L, 65536).
    offsets : int32 array  # [T]
        The value of each table's first slot, within 2^30 of 0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, the rule and the value.
    """

    __slots__ = ("_native",)

    def __init__(
        self, cdfs: NDArray[np.int32], sizes: NDArray[np.int32], offsets: NDArray[np.int32]
    ) -> None:
        require_array("cdfs", cdfs, (np.int32,), ndim=2)
        require_array("sizes", sizes, (np.int32,), ndim=1)
        require_array("offsets", offsets, (np.int32,), ndim=1)
        if not len(cdfs) == len(sizes) == len(offsets):
            raise ValueError(
                "cdfs, sizes and offsets must have one element a table, "
                f"got {len(cdfs)}, {len(sizes)} and {len(offsets)}"
            )
        self._native = _compressai.Tables(cdfs, sizes, offsets)

    def __len__(self) -> int:
        return len(self._native)

    def __repr__(self) -> str:
        return f"Tables({len(self)} tables)"


class Encoder:
    """Collects groups of symbols and writes them as one stream."""

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: list[tuple[Symbols, Indexes, Tables]] = []

    def push(self, symbols: Symbols, indexes: Indexes, tables: Tables) -> None:
        """Adds a group. The arrays are copied.

        Parameters
        ----------
        symbols : int32 array, C-contiguous  # [...]
            Closer than 2^30 to the values of their tables.
        indexes : uint8 or int32 array, C-contiguous  # [...], as symbols
            The table of each symbol.
        tables : Tables

        Raises
        ------
        TypeError, ValueError
            If types or shapes are wrong. Numbers are looked at by `finish`.
        """
        _check_group(symbols, indexes, tables)
        self._groups.append((symbols.copy(), indexes.copy(), tables))

    def finish(self) -> bytes:
        """Returns the stream of all groups pushed so far; the encoder does not change.

        Raises
        ------
        ValueError
            If an index names no table, or a symbol is too far from its table's values or has no
            share of it.
        """
        native = _compressai.Encoder()
        for symbols, indexes, tables in reversed(self._groups):
            native.prepend(symbols, indexes, tables._native)
        return native.finish()


class Decoder:
    """Reads a stream group by group.

    After an error a decoder can no longer be used. Not for several threads at a time: a decoder
    that another thread is using raises RuntimeError and is not affected.

    Parameters
    ----------
    data : bytes-like
        The whole stream.

    Raises
    ------
    RansError
        If this cannot be a stream.
    """

    __slots__ = ("_native",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._native = _compressai.Decoder(
            data if isinstance(data, bytes) else bytes(memoryview(data))
        )

    def pop(self, indexes: Indexes, tables: Tables) -> Symbols:
        """Decodes the next group.

        Parameters
        ----------
        indexes : uint8 or int32 array, C-contiguous  # [...]
            The same as were given to the encoder, and so `tables`. Groups may be cut differently.

        Returns
        -------
        int32 array  # [...], as indexes

        Raises
        ------
        RansError
            If the stream ends early, or holds a value that no encoder writes.
        TypeError, ValueError
            If an argument is wrong.
        """
        require_array("indexes", indexes, (np.uint8, np.int32))
        return self._native.pop(indexes, _native_tables(tables))

    def finish(self) -> None:
        """Checks that nothing is left of the stream; raises `RansError` otherwise."""
        self._native.finish()


class ScaleIndex:
    """compressai's ``GaussianConditional.build_indexes`` in one pass, with the same result.

    Parameters
    ----------
    thresholds : float32 array  # [T - 1]
        All of the scale table but its last scale; positive, finite, ascending.
    bound : float
        Scales below count as this.

    Raises
    ------
    TypeError, ValueError
        If the thresholds break a rule.
    """

    __slots__ = ("_native",)

    def __init__(self, thresholds: NDArray[np.float32], bound: float) -> None:
        require_array("thresholds", thresholds, (np.float32,), ndim=1)
        self._native = _compressai.ScaleIndex(thresholds, bound)

    def __call__(self, scales: NDArray[np.float32]) -> NDArray[np.int32]:
        """The table of each scale.

        Parameters
        ----------
        scales : float32 array, C-contiguous  # [...]

        Returns
        -------
        int32 array  # [...], as scales
            The number of thresholds below each scale, T - 1 for NaN.
        """
        require_array("scales", scales, (np.float32,))
        return self._native(scales)


def encode(symbols: Symbols, indexes: Indexes, tables: Tables) -> bytes:
    """Encodes a single group; see `Encoder.push` and `Encoder.finish`."""
    _check_group(symbols, indexes, tables)
    native = _compressai.Encoder()
    native.prepend(symbols, indexes, tables._native)
    return native.finish()


def decode(data: bytes | bytearray | memoryview, indexes: Indexes, tables: Tables) -> Symbols:
    """Decodes a stream of a single group; see `Decoder`."""
    decoder = Decoder(data)
    symbols = decoder.pop(indexes, tables)
    decoder.finish()
    return symbols


def _check_group(symbols: Symbols, indexes: Indexes, tables: Tables) -> None:
    require_array("symbols", symbols, (np.int32,))
    require_array("indexes", indexes, (np.uint8, np.int32))
    if symbols.shape != indexes.shape:
        raise ValueError(
            f"indexes must have the shape of symbols, {list(symbols.shape)}, "
            f"got {list(indexes.shape)}"
        )
    _native_tables(tables)


def _native_tables(tables: Tables) -> _compressai.Tables:
    if not isinstance(tables, Tables):
        raise TypeError(f"tables must be a compressai_rans.Tables, got {type(tables).__name__}")
    return tables._native
