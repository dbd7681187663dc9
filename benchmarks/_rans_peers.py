# SPDX-License-Identifier: MIT
"""The coder and others like it on the same symbols, each in the fastest way that its manual names.

compressai      RansEncoder.encode_with_indexes and RansDecoder.decode_with_indexes with the tables
                of GaussianConditional; symbols, indexes and tables are Python lists already
compressai-buffered     the same through BufferedRansEncoder and decode_stream
compressai-from-tensors the same from tensors and back, as EntropyModel.compress and decompress do
constriction    AnsCoder with QuantizedGaussian and an array of scales, which takes every sigma as
                it is: no tables
constriction-range      RangeEncoder and RangeDecoder with the same
constriction-by-table   AnsCoder with one Categorical a table, symbols sorted by table
torch_ans       rans64, 16 bits, 4 states interleaved, with counts of that precision for the
                supports of our tables. Not through init_params, which gives counts to what lies
                behind the end of a short table too, and without the inverse-CDF lookup, which (in
                version 0.4.0) decodes wrong symbols unless all tables have one size
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from _symbols import gaussian_bits
from numpy.typing import NDArray

from groupedmixer.entropy import SCALES
from groupedmixer_ext import rans, tables

__all__ = ["CODERS", "Contender", "Symbols", "make_contenders", "versions"]


class Symbols(NamedTuple):
    """What is coded: Gaussian symbols around 0."""

    name: str
    symbols: NDArray[np.int16]  # [N]
    indexes: NDArray[np.uint8]  # [N], the table nearest in log sigma
    sigmas: NDArray[np.float64]  # [N]

    def table_bits(self) -> float:
        """Cross-entropy under Gaussians of the tables' scales."""
        return float(gaussian_bits(self.symbols, np.array(SCALES)[self.indexes]).sum())

    def exact_bits(self) -> float:
        """Cross-entropy under Gaussians of the scales as they are."""
        return float(gaussian_bits(self.symbols, self.sigmas).sum())


class Contender(NamedTuple):
    """A coder with its input laid out for it; `decode` reads what `encode` wrote."""

    coder: str
    threads: int
    encode: Callable[[], object]
    decode: Callable[[], object]
    num_bytes: int
    ideal_bits: float  # under the coder's own float model


def _groupedmixer(data: Symbols, threads: int) -> Contender:
    built = tables.gaussian_tables(SCALES)
    if threads == 1:
        coded = rans.encode(data.symbols, data.indexes, built)
        return _checked(
            data,
            "groupedmixer",
            1,
            lambda: rans.encode(data.symbols, data.indexes, built),
            lambda: rans.decode(coded, data.indexes, built),
            len(coded),
            data.table_bits(),
        )
    # A stream a thread.
    indexes = np.array_split(data.indexes, threads)
    groups = list(zip(np.array_split(data.symbols, threads), indexes, strict=True))
    streams = rans.encode_many(groups, built, threads=threads)
    return _checked(
        data,
        "groupedmixer",
        threads,
        lambda: rans.encode_many(groups, built, threads=threads),
        lambda: np.concatenate(rans.decode_many(streams, indexes, built, threads=threads)),
        sum(map(len, streams)),
        data.table_bits(),
    )


def _compressai(data: Symbols, threads: int) -> Contender:
    from compressai.ans import RansDecoder, RansEncoder

    symbols, indexes, table_lists = _as_lists(data)

    def encode() -> Any:
        return RansEncoder().encode_with_indexes(symbols, indexes, *table_lists)

    coded = encode()

    def decode() -> Any:
        return RansDecoder().decode_with_indexes(coded, indexes, *table_lists)

    size = len(coded)
    return _checked(data, "compressai", threads, encode, decode, size, data.table_bits())


def _compressai_buffered(data: Symbols, threads: int) -> Contender:
    from compressai.ans import BufferedRansEncoder, RansDecoder

    symbols, indexes, table_lists = _as_lists(data)

    def encode() -> Any:
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, *table_lists)
        return encoder.flush()

    coded = encode()

    def decode() -> Any:
        decoder = RansDecoder()
        decoder.set_stream(coded)
        return decoder.decode_stream(indexes, *table_lists)

    size = len(coded)
    return _checked(data, "compressai-buffered", threads, encode, decode, size, data.table_bits())


def _compressai_from_tensors(data: Symbols, threads: int) -> Contender:
    from compressai.ans import RansDecoder, RansEncoder

    model = _gaussian_conditional()
    symbols = torch.from_numpy(data.symbols.astype(np.int32))
    indexes = torch.from_numpy(data.indexes.astype(np.int32))

    def table_lists() -> tuple[Any, ...]:
        return (
            model.quantized_cdf.tolist(),
            model.cdf_length.reshape(-1).int().tolist(),
            model.offset.reshape(-1).int().tolist(),
        )

    def encode() -> Any:
        return RansEncoder().encode_with_indexes(
            symbols.reshape(-1).int().tolist(), indexes.reshape(-1).int().tolist(), *table_lists()
        )

    coded = encode()

    def decode() -> Any:
        values = RansDecoder().decode_with_indexes(
            coded, indexes.reshape(-1).int().tolist(), *table_lists()
        )
        return torch.tensor(values, dtype=torch.int32)

    bits = data.table_bits()
    return _checked(data, "compressai-from-tensors", threads, encode, decode, len(coded), bits)


def _gaussian_conditional() -> Any:
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional(list(SCALES))
    model.update()
    return model


def _as_lists(data: Symbols) -> tuple[list[int], list[int], tuple[Any, ...]]:
    model = _gaussian_conditional()
    table_lists = (model.quantized_cdf.tolist(), model.cdf_length.tolist(), model.offset.tolist())
    return data.symbols.tolist(), data.indexes.tolist(), table_lists


def _constriction(data: Symbols, threads: int) -> Contender:
    import constriction

    AnsCoder = constriction.stream.stack.AnsCoder
    symbols, family, parameters = _quantized_gaussian(data)

    def encode() -> Any:
        coder = AnsCoder()
        coder.encode_reverse(symbols, family, *parameters)
        return coder.get_compressed()

    coded = encode()

    def decode() -> Any:
        return AnsCoder(coded).decode(family, *parameters)

    size = coded.nbytes
    return _checked(data, "constriction", threads, encode, decode, size, data.exact_bits())


def _constriction_range(data: Symbols, threads: int) -> Contender:
    import constriction

    queue = constriction.stream.queue
    symbols, family, parameters = _quantized_gaussian(data)

    def encode() -> Any:
        encoder = queue.RangeEncoder()
        encoder.encode(symbols, family, *parameters)
        return encoder.get_compressed()

    coded = encode()

    def decode() -> Any:
        return queue.RangeDecoder(coded).decode(family, *parameters)

    size = coded.nbytes
    return _checked(data, "constriction-range", threads, encode, decode, size, data.exact_bits())


def _quantized_gaussian(data: Symbols) -> tuple[Any, Any, tuple[Any, Any]]:
    import constriction

    reach = _reach(data)
    return (
        data.symbols.astype(np.int32),
        constriction.stream.model.QuantizedGaussian(-reach, reach),
        (np.zeros(len(data.sigmas)), data.sigmas),
    )


def _reach(data: Symbols) -> int:
    """The largest symbol there is: constriction has no escape."""
    return int(np.abs(data.symbols.astype(np.int32)).max())


def _constriction_by_table(data: Symbols, threads: int) -> Contender:
    import constriction

    AnsCoder = constriction.stream.stack.AnsCoder
    Categorical = constriction.stream.model.Categorical
    reach = _reach(data)
    support = np.arange(-reach, reach + 1).astype(np.int16)
    models = [
        Categorical(np.exp2(-gaussian_bits(support, np.full(support.shape, s))), perfect=False)
        for s in SCALES
    ]

    def runs() -> tuple[Any, list[tuple[int, int, Any]]]:
        """The order of the symbols by table, and each table's part of it."""
        order = np.argsort(data.indexes, kind="stable")
        ends = np.cumsum(np.bincount(data.indexes, minlength=len(SCALES))).tolist()
        parts = zip([0, *ends[:-1]], ends, models, strict=True)
        return order, [part for part in parts if part[0] < part[1]]

    def encode() -> Any:
        order, parts = runs()
        slots = data.symbols[order].astype(np.int32) + reach
        coder = AnsCoder()
        for begin, end, model in reversed(parts):
            coder.encode_reverse(slots[begin:end], model)
        return coder.get_compressed()

    coded = encode()

    def decode() -> Any:
        order, parts = runs()
        coder = AnsCoder(coded)
        values = np.empty(len(order), np.int32)
        for begin, end, model in parts:
            values[order[begin:end]] = coder.decode(model, end - begin)
        values -= reach
        return values

    name, size = "constriction-by-table", coded.nbytes
    return _checked(data, name, threads, encode, decode, size, data.table_bits())


_TORCH_ANS_PRECISION = 16


def _torch_ans(data: Symbols, threads: int) -> Contender:
    from torch_ans.utils import TorchANSInterface

    coder = TorchANSInterface(
        impl="rans64",
        freq_precision=_TORCH_ANS_PRECISION,
        num_interleaves=4,
        num_parallel_states=threads,  # a stream each, on PyTorch's threads
        device="cpu",
    )
    coder.cdfs, coder.cdfs_sizes, coder.offsets = _torch_ans_tables()
    symbols = torch.from_numpy(data.symbols.astype(np.int32))
    indexes = torch.from_numpy(data.indexes.astype(np.int32))

    def encode() -> Any:
        torch.set_num_threads(threads)
        return coder.encode_with_indexes(symbols, indexes)

    coded = encode()

    def decode() -> Any:
        torch.set_num_threads(threads)
        return coder.decode_with_indexes(coded, indexes).reshape(-1)[: len(symbols)]

    size = len(coded)
    return _checked(data, "torch_ans", threads, encode, decode, size, data.table_bits())


def _torch_ans_tables() -> tuple[Any, Any, Any]:  # int32 [T, longest], [T], [T]
    """Cumulative counts of the supports of our tables, the escape last, which is its bypass."""
    ours = tables.gaussian_tables(SCALES)
    sizes = ours.sizes.tolist()
    cdfs = torch.full((len(SCALES), max(sizes) + 1), 1 << _TORCH_ANS_PRECISION, dtype=torch.int32)
    for row, size, sigma in zip(cdfs, sizes, SCALES, strict=True):
        values = np.arange(size - 1).astype(np.int16) - np.int16(size // 2 - 1)
        masses = np.exp2(-gaussian_bits(values, np.full(values.shape, sigma)))
        pmf = np.append(masses, max(0.0, 1 - masses.sum()))
        counts = tables.quantize_pmf(pmf, _TORCH_ANS_PRECISION).astype(np.int64)
        row[: size + 1] = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
    return cdfs, torch.from_numpy(ours.sizes + 1), torch.from_numpy(ours.offsets.copy())


def _checked(
    data: Symbols,
    coder: str,
    threads: int,
    encode: Callable[[], object],
    decode: Callable[[], Any],
    num_bytes: int,
    ideal_bits: float,
) -> Contender:
    """ValueError if the symbols do not come back."""
    if not np.array_equal(np.asarray(decode()), data.symbols):
        raise ValueError(f"{coder} does not decode what it coded ({data.name}, {threads} threads)")
    return Contender(coder, threads, encode, decode, num_bytes, ideal_bits)


CODERS: dict[str, tuple[Callable[[Symbols, int], Contender], bool]] = {
    "groupedmixer": (_groupedmixer, True),
    "compressai": (_compressai, False),
    "compressai-buffered": (_compressai_buffered, False),
    "compressai-from-tensors": (_compressai_from_tensors, False),
    "constriction": (_constriction, False),
    "constriction-range": (_constriction_range, False),
    "constriction-by-table": (_constriction_by_table, False),
    "torch_ans": (_torch_ans, True),
}
"""How to make each, and whether it has a way to use several threads."""


def make_contenders(names: list[str], data: Symbols, threads: int) -> list[Contender]:
    """Those on one thread, then those that can on all. ImportError if a library is missing."""
    made = [CODERS[name][0](data, 1) for name in names]
    if threads > 1:
        made += [CODERS[name][0](data, threads) for name in names if CODERS[name][1]]
    return made


def versions(names: list[str]) -> dict[str, str | None]:
    """Of the libraries behind the coders; None for one that cannot be imported."""
    libraries = dict.fromkeys(name.split("-")[0] for name in names)
    return {name: _version(name) for name in libraries}


def _version(library: str) -> str | None:
    try:
        importlib.import_module(library)
    except ImportError:
        return None
    return importlib.metadata.version(library)
