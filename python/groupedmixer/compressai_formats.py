# SPDX-License-Identifier: MIT
"""The stream formats that `accelerate` puts behind a compressai model, and coders of both.

A format codes one string's symbols with tables made from a compressai entropy model's integer
CDFs. On top of that there are stand-ins for the coders of ``compressai.ans``, whose methods take
lists, for models that call these themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from compressai import ans
from numpy.typing import NDArray

from groupedmixer_ext import compressai_rans, rans

__all__ = ["FORMATS", "Format", "Int32", "stand_ins"]

Int32 = NDArray[np.int32]
_Tables = TypeVar("_Tables")
_TablesIn = TypeVar("_TablesIn", contravariant=True)

# Values at the ends of a table that are rarer than this, in 2^-16, are left to the escape:
# groupedmixer_ext.tables.TAIL in integers.
_TAIL = 3


class _Encoder(Protocol[_TablesIn]):
    def push(self, symbols: Int32, indexes: Int32, tables: _TablesIn) -> None: ...
    def finish(self) -> bytes: ...


class _Decoder(Protocol[_TablesIn]):
    def pop(self, indexes: Int32, tables: _TablesIn) -> Int32: ...


class Format(Protocol[_Tables]):
    """How the symbols of one string become bytes."""

    name: str

    def tables(self, cdfs: Int32, sizes: Int32, offsets: Int32) -> _Tables:
        """From arrays [T, L], [T] and [T]; ValueError if they are no tables. Kept by content."""

    def encode(self, symbols: Int32, indexes: Int32, tables: _Tables) -> bytes:
        """From arrays of equal shape; ValueError naming what cannot be coded."""

    def decode(self, data: bytes, indexes: Int32, tables: _Tables) -> Int32:
        """The symbols, in the shape of `indexes`; RansError if the stream does not fit."""

    def encoder(self) -> _Encoder[_Tables]:
        """For symbols that are decoded in other groups than they are encoded."""

    def decoder(self, data: bytes) -> _Decoder[_Tables]:
        """Of what `encoder` wrote; RansError if the stream cannot be one."""


class _CompressaiFormat:
    """The bytes of compressai's own coder."""

    name = "compressai"

    def tables(self, cdfs: Int32, sizes: Int32, offsets: Int32) -> compressai_rans.Tables:
        return _compressai_tables(*_hashable(cdfs, sizes, offsets))

    def encode(self, symbols: Int32, indexes: Int32, tables: compressai_rans.Tables) -> bytes:
        return compressai_rans.encode(symbols, indexes, tables)

    def decode(self, data: bytes, indexes: Int32, tables: compressai_rans.Tables) -> Int32:
        return compressai_rans.decode(data, indexes, tables)

    def encoder(self) -> compressai_rans.Encoder:
        return compressai_rans.Encoder()

    def decoder(self, data: bytes) -> compressai_rans.Decoder:
        return compressai_rans.Decoder(data)


class _GroupedMixerFormat:
    """Streams of `groupedmixer_ext.rans`: 12-bit tables, up to 32 lanes."""

    name = "groupedmixer"

    def tables(self, cdfs: Int32, sizes: Int32, offsets: Int32) -> rans.Tables:
        return _narrow_tables(*_hashable(cdfs, sizes, offsets))

    def encode(self, symbols: Int32, indexes: Int32, tables: rans.Tables) -> bytes:
        return rans.encode(_as_int16(symbols), _as_unsigned(indexes, tables), tables)

    def decode(self, data: bytes, indexes: Int32, tables: rans.Tables) -> Int32:
        return rans.decode(data, _as_unsigned(indexes, tables), tables).astype(np.int32)

    def encoder(self) -> _NarrowEncoder:
        return _NarrowEncoder()

    def decoder(self, data: bytes) -> _NarrowDecoder:
        return _NarrowDecoder(data)


class _NarrowEncoder:
    """One lane, so that a decoder may cut the symbols into other groups."""

    def __init__(self) -> None:
        self._encoder = rans.Encoder()

    def push(self, symbols: Int32, indexes: Int32, tables: rans.Tables) -> None:
        self._encoder.push(_as_int16(symbols), _as_unsigned(indexes, tables), tables)

    def finish(self) -> bytes:
        return self._encoder.finish(lanes=1)


class _NarrowDecoder:
    def __init__(self, data: bytes) -> None:
        self._decoder = rans.Decoder(data)

    def pop(self, indexes: Int32, tables: rans.Tables) -> Int32:
        return self._decoder.pop(_as_unsigned(indexes, tables), tables).astype(np.int32)


FORMATS: dict[str, Format[Any]] = {
    format.name: format for format in (_CompressaiFormat(), _GroupedMixerFormat())
}


# ---- tables -------------------------------------------------------------------------------------

# Content in, tables out: the slices of a model usually share the Gaussians' tables, and models that
# hand over lists make them anew for every picture.
_KEPT_TABLES = 16


def _hashable(cdfs: Int32, sizes: Int32, offsets: Int32) -> tuple[int, bytes, bytes, bytes]:
    if cdfs.ndim != 2 or not len(cdfs) == sizes.size == offsets.size:
        raise ValueError(
            "cdfs must be [T, L] with one size and one offset a table, got "
            f"{list(cdfs.shape)}, {list(sizes.shape)} and {list(offsets.shape)}"
        )
    return cdfs.shape[1], cdfs.tobytes(), sizes.tobytes(), offsets.tobytes()


def _arrays(row: int, cdfs: bytes, sizes: bytes, offsets: bytes) -> tuple[Int32, Int32, Int32]:
    first, *rest = (np.frombuffer(data, np.int32) for data in (cdfs, sizes, offsets))
    return first.reshape(-1, row), rest[0], rest[1]


@functools.lru_cache(_KEPT_TABLES)
def _compressai_tables(*content: Any) -> compressai_rans.Tables:
    return compressai_rans.Tables(*_arrays(*content))


@functools.lru_cache(_KEPT_TABLES)
def _narrow_tables(*content: Any) -> rans.Tables:
    """The same distributions in counts of 4096.

    Encoder and decoder may each make these, on different machines: nothing here depends on one.
    """
    cdfs, sizes, offsets = _arrays(*content)
    compressai_rans.Tables(cdfs, sizes, offsets)  # checks them
    counts, firsts = [], []
    for cdf, size, offset in zip(cdfs, sizes, offsets, strict=True):
        trimmed, skipped = _trim(np.diff(cdf[:size]).astype(np.int64))
        counts.append(_narrow(trimmed))
        firsts.append(int(offset) + skipped)
    return rans.Tables(
        np.concatenate(counts),
        np.array([count.size for count in counts], np.int32),
        np.array(firsts, np.int32),
    )


def _trim(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Moves rare values to the escape, the last one; returns the rest and how many went in front.

    What stays fits a table; of a longer one it is the stretch with the most counts.
    """
    values, escape = counts[:-1], counts[-1]
    if values.size == 0:  # a table of nothing but the escape
        return np.array([0, escape]), 0
    kept = np.flatnonzero(values >= min(_TAIL, values.max()))
    first, end = int(kept[0]), int(kept[-1]) + 1
    longest = (1 << rans.PRECISION) - 1
    if end - first > longest:
        before = np.concatenate([[0], np.cumsum(values)])
        first += int(
            np.argmax(before[first + longest : end + 1] - before[first : end + 1 - longest])
        )
        end = first + longest
    rest = values[:first].sum() + values[end:].sum()
    return np.append(values[first:end], escape + rest), first


def _narrow(
    counts: NDArray[np.int64],  # [n], sum 65536
) -> NDArray[np.uint16]:  # [n], sum 4096, none 0
    """Shares as Webster's method assigns seats.

    count / (share + 1/2) is what one more is worth, to third order in 1 / share. Divisions of small
    integers are rounded alike everywhere, which logarithms are not.
    """
    total = 1 << rans.PRECISION
    shares = np.maximum(counts >> (compressai_rans.PRECISION - rans.PRECISION), 1)
    missing = total - int(shares.sum())
    for _ in range(missing):
        shares[np.argmax(counts / (2 * shares + 1))] += 1
    for _ in range(-missing):
        shares[np.argmin(np.where(shares > 1, counts / (2 * shares - 1), np.inf))] -= 1
    return shares.astype(np.uint16)


def _as_int16(symbols: Int32) -> NDArray[np.int16]:
    limits = np.iinfo(np.int16)
    if symbols.size and not limits.min <= symbols.min() <= symbols.max() <= limits.max:
        raise ValueError(
            "symbols must lie in int16 with format='groupedmixer' (not with 'compressai'), got "
            f"{symbols.min()} .. {symbols.max()}"
        )
    return symbols.astype(np.int16)


def _as_unsigned(
    indexes: Int32, tables: rans.Tables
) -> NDArray[np.uint8] | NDArray[np.uint16]:  # [...], as indexes
    last = len(tables) - 1
    if indexes.size and not 0 <= indexes.min() <= indexes.max() <= last:
        raise ValueError(f"indexes must be 0 .. {last}, got {indexes.min()} .. {indexes.max()}")
    return indexes.astype(np.uint8) if last < 256 else indexes.astype(np.uint16)


# ---- stand-ins for compressai.ans ---------------------------------------------------------------


class _ListTables(Generic[_Tables]):
    """Tables from lists, made anew only when other lists come."""

    def __init__(self, format: Format[_Tables]) -> None:
        self._format = format
        self._source: tuple[Any, ...] = ()
        self._tables: _Tables | None = None

    def __call__(self, *source: Any) -> _Tables:
        if self._tables is None or any(
            a is not b for a, b in zip(source, self._source, strict=True)
        ):
            cdfs, sizes, offsets = source
            row = max(map(len, cdfs), default=0)
            padded = np.zeros((len(cdfs), row), np.int32)
            for line, cdf in zip(padded, cdfs, strict=True):
                line[: len(cdf)] = cdf
            arrays = padded, np.array(sizes, np.int32), np.array(offsets, np.int32)
            self._tables = self._format.tables(*arrays)
            self._source = source
        return self._tables


class _BufferedRansEncoder:
    """Stands in for ``compressai.ans.BufferedRansEncoder``."""

    def __init__(self, format: Format[Any]) -> None:
        self._format = format
        self._tables = _ListTables(format)
        self._encoder = format.encoder()

    def encode_with_indexes(
        self,
        symbols: Sequence[int],
        indexes: Sequence[int],
        cdfs: Sequence[Sequence[int]],
        cdfs_sizes: Sequence[int],
        offsets: Sequence[int],
    ) -> None:
        self._encoder.push(
            np.array(symbols, np.int32),
            np.array(indexes, np.int32),
            self._tables(cdfs, cdfs_sizes, offsets),
        )

    def flush(self) -> bytes:
        data = self._encoder.finish()
        self._encoder = self._format.encoder()
        return data


class _RansEncoder:
    """Stands in for ``compressai.ans.RansEncoder``."""

    def __init__(self, format: Format[Any]) -> None:
        self._buffered = _BufferedRansEncoder(format)

    def encode_with_indexes(self, *arguments: Any) -> bytes:
        self._buffered.encode_with_indexes(*arguments)
        return self._buffered.flush()


class _RansDecoder:
    """Stands in for ``compressai.ans.RansDecoder``."""

    def __init__(self, format: Format[Any]) -> None:
        self._format = format
        self._tables = _ListTables(format)
        self._decoder: _Decoder[Any] | None = None

    def set_stream(self, encoded: bytes) -> None:
        self._decoder = self._format.decoder(encoded)

    def decode_stream(
        self,
        indexes: Sequence[int],
        cdfs: Sequence[Sequence[int]],
        cdfs_sizes: Sequence[int],
        offsets: Sequence[int],
    ) -> list[int]:
        if self._decoder is None:
            raise ValueError("set_stream must be called before decode_stream")
        tables = self._tables(cdfs, cdfs_sizes, offsets)
        symbols: list[int] = self._decoder.pop(np.array(indexes, np.int32), tables).tolist()
        return symbols

    def decode_with_indexes(self, encoded: bytes, *arguments: Any) -> list[int]:
        self.set_stream(encoded)
        return self.decode_stream(*arguments)


def stand_ins(format: Format[Any]) -> list[tuple[object, object]]:
    """What of ``compressai.ans`` (itself included) is to be replaced, and by what."""
    coders = {
        "BufferedRansEncoder": _BufferedRansEncoder,
        "RansEncoder": _RansEncoder,
        "RansDecoder": _RansDecoder,
    }
    made = {name: functools.partial(coder, format) for name, coder in coders.items()}
    module: ModuleType = ans
    return [
        *((getattr(module, name), coder) for name, coder in made.items()),
        (module, SimpleNamespace(**{**vars(module), **made})),
    ]
