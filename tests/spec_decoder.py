# SPDX-License-Identifier: MIT
"""A second .gmx decoder, written from docs/bitstream.md and docs/numerics.md alone.

It shares no code with the package, and its author had not read the package. It exists to show that
the specification is complete, so it is plain rather than fast: numpy, one function per sentence of
the text, sections in the order of bitstream.md, with the arithmetic of numerics.md before the
networks. Latents and pixels are those of the package to the bit. Only the "patch" transform is
here.

Arrays are float32 unless a docstring says otherwise. numpy has no fused multiply-add; `fma` makes
it of float64 operations.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

Array = np.ndarray


class SpecError(ValueError):
    """The data or the weights break a rule of the specification."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


# --- 1. The container ---------------------------------------------------------------------------

SIGNATURE = b"\x8bGMX"
ARITHMETIC = "f32-seg128-kv16-v1"
NAME_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
METADATA_CHUNKS = (b"ICCP", b"EXIF", b"XMPP")
KNOWN_CHUNKS = (*METADATA_CHUNKS, b"TILE", b"STRM", b"ALPH")
MAX_METADATA = 2**22
MAX_PIXELS = 2**27


class Reader:
    """Takes fields from the front of some bytes and refuses to run past their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, size: int) -> bytes:
        require(size <= self.left, "the data ends inside a field")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, size: int, low: int = 0, high: int = 2**64) -> int:
        value = int.from_bytes(self.take(size), "little")
        require(low <= value <= high, f"a field is {value}, not within {low}..{high}")
        return value

    def name(self) -> str:
        text = self.take(self.number(1, 1, 32))
        require(NAME_CHARACTERS.issuperset(text), "a name has a character that is not allowed")
        return text.decode("ascii")

    def check_crc(self, start: int, what: str) -> None:
        """Compare the CRC that stands here with the bytes from start up to here."""
        expected = zlib.crc32(self.data[start : self.position])
        require(self.number(4) == expected, f"the CRC of {what} is wrong")


@dataclass(frozen=True)
class Header:
    fingerprint: bytes
    weights_name: str
    arithmetic: str
    quality: int
    width: int
    height: int
    grey: bool
    skip_below: int
    tile_size: int
    chunk_count: int


def read_header(reader: Reader) -> Header:
    require(len(reader.data) > 0, "no bytes at all")
    beginning = reader.data[: len(SIGNATURE)]
    require(SIGNATURE.startswith(beginning), "the signature is wrong")
    reader.take(len(SIGNATURE))
    reader.number(1, 0, 0)  # format version
    body = reader.take(reader.number(2, 29, 91))
    reader.check_crc(0, "the header")
    header = read_header_body(Reader(body))
    require(header.width * header.height <= MAX_PIXELS, "more pixels than this reader allows")
    return header


def read_header_body(body: Reader) -> Header:
    fingerprint = body.take(8)
    weights_name, arithmetic = body.name(), body.name()
    quality = body.number(2, 0, 1792)
    width, height = body.number(4, 1, 2**20), body.number(4, 1, 2**20)
    grey = body.number(1, 0, 1) == 1
    body.number(1, 8, 8)  # bit depth
    skip_below = body.number(1, 0, 64)
    tile_size = body.number(2)
    require(tile_size in (16, 32, 64), "the tile size is not 16, 32 or 64")
    chunk_count = body.number(2, 2)
    require(body.left == 0, "the fields do not fill the header body")
    return Header(
        fingerprint,
        weights_name,
        arithmetic,
        quality,
        width,
        height,
        grey,
        skip_below,
        tile_size,
        chunk_count,
    )


def read_chunks(reader: Reader, count: int) -> dict[bytes, bytes]:
    """The payloads of the known chunks, by type."""
    known: dict[bytes, bytes] = {}
    for _ in range(count):
        kind, must_understand, payload = read_chunk(reader)
        if kind not in KNOWN_CHUNKS:
            require(not must_understand, f"chunk {kind!r} must be understood, but is unknown")
            continue
        later = KNOWN_CHUNKS[KNOWN_CHUNKS.index(kind) :]
        require(known.keys().isdisjoint(later), f"chunk {kind!r} is there twice or out of order")
        metadata = kind in METADATA_CHUNKS
        require(must_understand != metadata, f"chunk {kind!r} has the wrong must-understand flag")
        if metadata:
            require(1 <= len(payload) <= MAX_METADATA, f"chunk {kind!r} is empty or too long")
        known[kind] = payload
    require(reader.left == 0, "there are bytes behind the last chunk")
    require(b"TILE" in known and b"STRM" in known, "a required chunk is missing")
    return known


def read_chunk(reader: Reader) -> tuple[bytes, bool, bytes]:
    start = reader.position
    kind = reader.take(4)
    flags = reader.number(1)
    payload = reader.take(reader.number(8))
    reader.check_crc(start, f"chunk {kind!r}")
    require(kind.isalpha(), "a chunk type is not four letters")
    require(flags <= 1, f"chunk {kind!r} has an unknown flag")
    return kind, flags == 1, payload


@dataclass(frozen=True)
class TileEntry:
    stream: bytes
    latent_crc: int


def read_tile_table(chunks: dict[bytes, bytes], header: Header) -> list[TileEntry]:
    table, streams = Reader(chunks[b"TILE"]), Reader(chunks[b"STRM"])
    rows = len(tile_starts(latent_size(header.height, 1), header.tile_size, 1))
    columns = len(tile_starts(latent_size(header.width, 1), header.tile_size, 1))
    count = table.number(4, 0, (2 * rows + 1) * (2 * columns + 1))
    require(table.left == 8 * count, "the tile table has another length than its count says")
    entries = [TileEntry(streams.take(table.number(4)), table.number(4)) for _ in range(count)]
    require(streams.left == 0, "the stream lengths do not add up to the length of STRM")
    return entries


def latent_size(pixels: int, patch: int) -> int:
    return -(-math.ceil(pixels / 16) // patch) * patch


def tile_starts(size: int, tile_size: int, patch: int) -> range:
    return range(0, size, tile_size - tile_size % patch)


def read_alpha(payload: bytes, header: Header) -> Array:
    """The checks come before any pixel is decoded. Pillow's mode does not tell 4 bits from 8."""
    png_header = struct.Struct(">8sI4sIIBB")
    require(len(payload) >= png_header.size, "the alpha plane is too short for a PNG")
    *beginning, width, height, depth, colour = png_header.unpack_from(payload)
    require(beginning == [b"\x89PNG\r\n\x1a\n", 13, b"IHDR"], "the alpha plane is no PNG")
    require((depth, colour) == (8, 0), "the alpha plane is no grey 8-bit PNG")
    constant = (width, height) == (1, 1)
    require(constant or (width, height) == size_of(header), "the alpha plane has another size")
    try:
        with Image.open(io.BytesIO(payload), formats=["PNG"]) as image:
            plain = getattr(image, "n_frames", 1) == 1 and "transparency" not in image.info
            require(plain and image.mode == "L", "the alpha plane has frames or transparency")
            require(image.size == (width, height), "the alpha plane has another size")
            shape = (header.height, header.width)
            return np.broadcast_to(np.asarray(image, np.uint8), shape)
    except (OSError, SyntaxError, struct.error, zlib.error) as error:
        raise SpecError(f"the alpha plane is a broken PNG: {error}") from error


def size_of(header: Header) -> tuple[int, int]:
    return header.width, header.height


# --- 2. The latent ------------------------------------------------------------------------------


def at_quality(table: Array, quality: int) -> Array:
    """A table stored per whole level, [8, n], read at the quality of the header, [n]."""
    level = min(quality // 256, 6)
    part = np.float32((quality - 256 * level) / 256)
    return fma(part, table[level + 1] - table[level], table[level])


def coding_order(config: Config) -> list[tuple[int, int, int]]:
    """(slice, phase row, phase column) of every step."""
    if config.order is not None:
        return config.order
    k_h, k_w = config.patch
    phases = [(i, j) for i in range(k_h) for j in range(k_w)]
    phases.sort(key=lambda phase: ((phase[1] - phase[0]) % max(k_h, k_w), *phase))
    return [(c, i, j) for c in range(config.slices) for i, j in phases]


def decode_hyper_latent(stream: Stream, weights: Weights, header: Header) -> Array:
    """psi on the latent grid, [rows, columns, d]."""
    k_h, k_w = weights.config.patch
    rows, columns = latent_size(header.height, k_h), latent_size(header.width, k_w)
    shape = (-(-rows // 4), -(-columns // 4), weights.config.hyper_channels)
    indexes = list(range(shape[2])) * (shape[0] * shape[1])
    symbols = stream.decode_group(indexes, weights.z_tables, 0)
    symbols = np.array(symbols, np.float32).reshape(shape)
    inverse_gain = at_quality(weights["latent_codec.hyper_inverse_gain"], header.quality)
    z_hat = (symbols + weights["latent_codec.z_medians"]) * inverse_gain
    return hyper_synthesis(weights, z_hat)[:rows, :columns]


def decode_tile(
    stream: Stream, psi: Array, weights: Weights, header: Header, latent_crc: int
) -> Array:
    """y_hat of one tile, [rows, columns, M]."""
    config = weights.config
    k_h, k_w = config.patch
    order = coding_order(config)
    model = EntropyModel(weights, header.quality, [c for c, _, _ in order])
    size = config.latent_channels // config.slices
    latent = np.zeros((*psi.shape[:2], config.latent_channels), np.float32)
    groups: list[Array] = []
    for g, (c, i, j) in enumerate(order):
        mean, raw, features = model.step(g, groups[-1] if groups else None, psi[i::k_h, j::k_w])
        require(bool(np.isfinite([mean, raw]).all()), "a mean or raw scale is NaN or infinite")
        indexes = np.searchsorted(weights["latent_codec.thresholds"], raw, side="left")
        symbols = stream.decode_group(indexes.ravel().tolist(), weights.y_tables, header.skip_below)
        y_hat = np.array(symbols, np.float32).reshape(mean.shape) + mean
        if config.lrp:
            y_hat = model.residual_prediction(g, y_hat, features)
        groups.append(y_hat)
        latent[i::k_h, j::k_w, c * size : (c + 1) * size] = y_hat
    stream.finish()
    require(checksum(groups) == latent_crc, "the decoded latent of a tile has another checksum")
    return latent


def checksum(groups: list[Array]) -> int:
    positive_zero = np.float32(0)  # -0 + 0 is +0, and nothing else changes
    return zlib.crc32((np.stack(groups) + positive_zero).astype("<f4").tobytes())


def decode_latent(entries: list[TileEntry], weights: Weights, header: Header) -> Array:
    """y_hat of the whole picture, [rows, columns, M]."""
    k_h, k_w = weights.config.patch
    rows, columns = latent_size(header.height, k_h), latent_size(header.width, k_w)
    row_starts = tile_starts(rows, header.tile_size, k_h)
    column_starts = tile_starts(columns, header.tile_size, k_w)
    origins = [(row, column) for row in row_starts for column in column_starts]
    require(len(entries) == len(origins), "the tile count is not rows x columns")
    streams = [Stream(entry.stream) for entry in entries]
    psi = decode_hyper_latent(streams[0], weights, header)
    latent = np.zeros((rows, columns, weights.config.latent_channels), np.float32)
    for stream, entry, (row, column) in zip(streams, entries, origins, strict=True):
        area = np.s_[row : row + row_starts.step, column : column + column_starts.step]
        latent[area] = decode_tile(stream, psi[area], weights, header, entry.latent_crc)
    return latent


def to_pixels(latent: Array, weights: Weights, header: Header) -> Array:
    """uint8 [height, width, 3] or grey [height, width]."""
    shrinkage = at_quality(weights["latent_codec.shrinkage"], header.quality)
    inverse_gain = shrinkage / at_quality(weights["latent_codec.gain"], header.quality)
    x = synthesis(weights, latent * inverse_gain)[: header.height, : header.width]
    if header.grey:
        x = ((x[..., 0] + x[..., 1]) + x[..., 2]) / np.float32(3)
    x = minimum(maximum(x, np.float32(0)), np.float32(1))
    return nearest(x * np.float32(255)).astype(np.uint8)


# --- 3. The coder -------------------------------------------------------------------------------

LANES = (1, 4, 8, 16, 32)


@dataclass(frozen=True)
class Table:
    offset: int
    counts: list[int]
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.counts)
        require(2 <= n <= 4096, "a table has too few or too many slots")
        require(min(self.counts) >= 1 and sum(self.counts) == 4096, "a table has wrong counts")
        last = self.offset + n - 2
        require(-32768 <= self.offset and last <= 32767, "a table has values beyond 16 bits")
        object.__setattr__(self, "starts", [sum(self.counts[:s]) for s in range(n)])


def read_varint(reader: Reader, max_size: int) -> int:
    value = 0
    for k in range(max_size):
        byte = reader.number(1)
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            require(byte != 0 or k == 0, "a varint is not in its shortest form")
            return value
    raise SpecError("a varint is too long")


class Stream:
    """The rANS stream of one tile."""

    def __init__(self, data: bytes) -> None:
        reader = Reader(data)
        self.lanes = LANES[reader.number(1, 0, len(LANES) - 1)]
        escape_length = read_varint(reader, 5)
        require(escape_length < 2**32, "the escape length is 2^32 or more")
        self.states = [reader.number(4, 65536) for _ in range(self.lanes)]
        word_length = reader.left - escape_length
        require(word_length >= 0 and word_length % 2 == 0, "the parts do not fit into the stream")
        self.words = Reader(reader.take(word_length))
        self.escapes = Reader(reader.take(escape_length))

    def decode_group(self, indexes: list[int], tables: list[Table], skip_below: int) -> list[int]:
        symbols = []
        lane = 0
        for index in indexes:
            if index < skip_below:
                symbols.append(0)
                continue
            symbols.append(self._decode(lane, tables[index]))
            lane = (lane + 1) % self.lanes
        return symbols

    def _decode(self, lane: int, table: Table) -> int:
        x = self.states[lane]
        point = x % 4096
        s = bisect_right(table.starts, point) - 1
        x = table.counts[s] * (x // 4096) + point - table.starts[s]
        if x < 65536:
            x = x * 65536 + self.words.number(2)
        self.states[lane] = x
        return table.offset + s if s < len(table.counts) - 1 else self._read_escape(table)

    def _read_escape(self, table: Table) -> int:
        d, below = divmod(read_varint(self.escapes, 3), 2)
        value = table.offset - 1 - d if below else table.offset + len(table.counts) - 1 + d
        require(-32768 <= value <= 32767, "an escaped value has more than 16 bits")
        return value

    def finish(self) -> None:
        require(self.words.left == 0, "a stream has words left")
        require(self.escapes.left == 0, "a stream has escapes left")
        require(all(x == 65536 for x in self.states), "a final state is not 65536")


# --- Numerics (docs/numerics.md) ----------------------------------------------------------------


def constant(text: str) -> np.float32:
    """A binary32 number as the text writes it."""
    return np.float32(float.fromhex(text))


ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)
EXP_LIMIT = np.float32(86)
LOG2_E = constant("0x1.715476p+0")
MINUS_LN_2, LN_2_REST = constant("-0x1.62e43p-1"), constant("0x1.05c61p-29")
EXP_COEFFICIENTS = [
    constant(text)
    for text in (
        "0x1.6a50bep-10",
        "0x1.123976p-7",
        "0x1.5558acp-5",
        "0x1.555492p-3",
        "0x1.fffffcp-2",
    )
]
GELU_CUBIC, GELU_LINEAR = constant("-0x1.2444f2p-4"), constant("-0x1.988454p+0")
LEAKY_SLOPE = constant("0x1.47ae14p-7")
NORM_EPSILON = constant("0x1.0c6f7ap-20")
LOGIT_SCALE = constant("0x1.6a09e6p-3")
ROUNDER = constant("0x1.8p23")
LARGEST_BINARY16 = np.float32(65504)
SEGMENT = 128
LANE_COUNT = 16


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with one rounding; a, b and c are broadcast.

    The product is exact in float64. Where the float64 sum is not exact, one of the two float64
    numbers around the exact sum has an odd last bit; that one never lies half-way between two
    float32 numbers, so rounding it gives what rounding the exact sum would.
    """
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    rest = total - product  # the exact sum is total + error
    error = (product - (total - rest)) + (addend - rest)
    even = (total.view(np.int64) & 1) == 0
    inexact = (error < 0) | (error > 0)  # and not NaN, of infinite numbers
    away = (error > 0) == (total > 0)
    step = np.where(inexact & even, np.where(away, 1, -1), 0)
    return (total.view(np.int64) + step).view(np.float64).astype(np.float32)


def maximum(a: Array, b: Array) -> Array:
    return np.where(a > b, a, b)


def minimum(a: Array, b: Array) -> Array:
    return np.where(a < b, a, b)


def nearest(x: Array) -> Array:
    """The text's round(x)."""
    return (x + ROUNDER) - ROUNDER


def dot(a: Array, w: Array, init: Array) -> Array:
    """[..., K] and [..., K] to [...]; all but K are broadcast, with each other and with init."""
    length = a.shape[-1]
    require(w.shape[-1] == length, "two vectors of a dot product have different lengths")
    a, w = (np.ascontiguousarray(np.moveaxis(x, -1, 0), np.float64) for x in (a, w))
    total = None
    for start in range(0, length, SEGMENT):
        s = init if start == 0 else np.float32(0)
        for k in range(start, min(start + SEGMENT, length)):
            s = fma(a[k], w[k], s)
        total = s if total is None else total + s
    return total


def add_lanes(lanes: Array) -> Array:
    """The tree of the lane sum: [..., 16] to [...]."""
    for w in (8, 4, 2, 1):
        lanes = lanes[..., :w] + lanes[..., w : 2 * w]
    return lanes[..., 0]


def first_lanes(terms: Array) -> Array:
    """[..., n] to [..., 16], with +0 in lanes without an element."""
    lanes = np.zeros((*terms.shape[:-1], LANE_COUNT), np.float32)
    count = min(LANE_COUNT, terms.shape[-1])
    lanes[..., :count] = terms[..., :count]
    return lanes


def lane_sum(terms: Array) -> Array:
    """[..., n] to [...]."""
    lanes = first_lanes(terms)
    for start in range(LANE_COUNT, terms.shape[-1], LANE_COUNT):
        row = terms[..., start : start + LANE_COUNT]
        lanes[..., : row.shape[-1]] += row
    return add_lanes(lanes)


def lane_sum_of_squares(terms: Array) -> Array:
    """[..., d] to [...], d a multiple of 16."""
    first = first_lanes(terms)
    lanes = first * first
    for start in range(LANE_COUNT, terms.shape[-1], LANE_COUNT):
        row = terms[..., start : start + LANE_COUNT]
        lanes = fma(row, row, lanes)
    return add_lanes(lanes)


def exp(x: Array) -> Array:
    x = minimum(maximum(x, -EXP_LIMIT), EXP_LIMIT)
    n = nearest(x * LOG2_E)
    r = fma(n, LN_2_REST, fma(n, MINUS_LN_2, x))
    p = EXP_COEFFICIENTS[0]
    for coefficient in EXP_COEFFICIENTS[1:]:
        p = fma(p, r, coefficient)
    return np.ldexp(ONE + fma(p, r * r, r), n.astype(np.int32))


def gelu(x: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # exp clamps infinity
        power = x * fma(x * x, GELU_CUBIC, GELU_LINEAR)
    return x / (ONE + exp(power))


def tanh(x: Array) -> Array:
    return ONE - TWO / (ONE + exp(TWO * x))


def compand(x: Array) -> Array:
    return x / np.sqrt(ONE + np.abs(x))


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, x * LEAKY_SLOPE)


def layer_norm(weights: Weights, name: str, x: Array) -> Array:
    """[..., d] to [..., d]."""
    d = np.float32(x.shape[-1])
    centred = x - (lane_sum(x) / d)[..., None]
    variance = lane_sum_of_squares(centred) / d
    scale = ONE / np.sqrt(variance + NORM_EPSILON)
    gain, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return fma(centred * scale[..., None], gain, bias)


def attention(q: Array, k: Array, v: Array, bias: Array) -> Array:
    """q [..., queries, 32], k and v [..., keys, 32], bias [..., queries, keys]; as q."""
    logits = fma(dot(q[..., :, None, :], k[..., None, :, :], np.float32(0)), LOGIT_SCALE, bias)
    e = exp(logits - logits.max(axis=-1, keepdims=True))
    by_channel = np.swapaxes(v, -1, -2)[..., None, :, :]  # [..., 1, 32, keys]
    result = dot(e[..., :, None, :], by_channel, np.float32(0))
    return result / lane_sum(e)[..., None]


def cached(x: Array) -> Array:
    """What the context cache gives back for a key or value."""
    clamped = minimum(maximum(x, -LARGEST_BINARY16), LARGEST_BINARY16)
    return clamped.astype(np.float16).astype(np.float32)


# --- 4. The networks (arrays are [rows, columns, channels]) -------------------------------------


def shuffle(x: Array, r: int) -> Array:
    rows, columns, channels = x.shape
    parts = x.reshape(rows, columns, channels // r**2, r, r)
    return parts.transpose(0, 3, 1, 4, 2).reshape(rows * r, columns * r, -1)


def linear(weights: Weights, name: str, x: Array) -> Array:
    """A linear, or a 1x1 convolution, whose weight only has two more sizes of 1."""
    weight = weights[f"{name}.weight"]
    return dot(x[..., None, :], weight.reshape(weight.shape[:2]), weights[f"{name}.bias"])


def windows3x3(x: Array) -> Array:
    """[rows, columns, channels] to [rows, columns, 9, channels], the taps by row and column."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[:2]
    taps = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.stack(taps, axis=2)


def conv3x3(weights: Weights, name: str, x: Array) -> Array:
    weight = weights[f"{name}.weight"].transpose(0, 2, 3, 1)  # [out, row, column, in]
    taps = windows3x3(x).reshape(*x.shape[:2], 1, -1)
    return dot(taps, weight.reshape(len(weight), -1), weights[f"{name}.bias"])


def depthwise3x3(weights: Weights, name: str, x: Array) -> Array:
    weight = weights[f"{name}.weight"]
    taps = np.swapaxes(windows3x3(x), -1, -2)
    return dot(taps, weight.reshape(len(weight), 9), weights[f"{name}.bias"])


def hyper_synthesis(weights: Weights, z_hat: Array) -> Array:
    x = leaky(shuffle(conv3x3(weights, "latent_codec.h_s.layers.0.0", z_hat), 2))
    x = leaky(shuffle(conv3x3(weights, "latent_codec.h_s.layers.2.0", x), 2))
    return linear(weights, "latent_codec.h_s.layers.4", x)


def split_heads(x: Array) -> Array:
    """[..., d] to [..., head, 32]."""
    return x.reshape(*x.shape[:-1], -1, 32)


def windows(rows: int, columns: int, origin: int) -> list[tuple[slice, slice]]:
    """The cells of the lattice; origin is 0 or negative."""

    def cells(size: int) -> list[slice]:
        return [slice(max(start, 0), min(start + 8, size)) for start in range(origin, size, 8)]

    return [(row, column) for row in cells(rows) for column in cells(columns)]


def window_bias(table: Array, rows: int, columns: int) -> Array:
    """[head, query, key] for the positions of a window in raster order."""
    row, column = (positions.ravel() for positions in np.indices((rows, columns)))
    row_part = (row[:, None] - row[None, :] + 7) * 15
    return table[:, row_part + column[:, None] - column[None, :] + 7]


class EntropyModel:
    """The context of one tile. slices[g] is the slice of step g."""

    def __init__(self, weights: Weights, quality: int, slices: list[int]) -> None:
        self.weights = weights
        self.slices = slices
        self.level = at_quality(self.tensor("embed_level"), quality)
        self.keys: list[list[Array]] = [[] for _ in range(weights.config.layers)]
        self.values: list[list[Array]] = [[] for _ in range(weights.config.layers)]

    def tensor(self, name: str) -> Array:
        return self.weights[f"latent_codec.context.{name}"]

    def per_slice(self, name: str, c: int, x: Array) -> Array:
        return dot(x[..., None, :], self.tensor(name)[c], self.tensor(f"{name}_bias")[c])

    def step(self, g: int, previous: Array | None, psi: Array) -> tuple[Array, Array, Array]:
        """mean and raw of group g and the features f, from y_hat of the group before."""
        x = self._embed(g, previous, psi)
        for i in range(self.weights.config.layers):
            block = f"latent_codec.context.blocks.{i}"
            x = x + self._attend_within_windows(i, f"{block}.inner", x)
            x = x + self._attend_over_steps(g, i, f"{block}.cross", x)
            hidden = linear(self.weights, f"{block}.mlp.1", self._norm(f"{block}.mlp.0", x))
            x = x + linear(self.weights, f"{block}.mlp.3", gelu(hidden))
        features = self._norm("latent_codec.context.norm", x)
        mean, raw = np.split(self.per_slice("head", self.slices[g], features), 2, axis=-1)
        return mean, raw, features

    def residual_prediction(self, g: int, y: Array, features: Array) -> Array:
        inputs = np.concatenate([features, compand(y)], axis=-1)
        return fma(tanh(self.per_slice("lrp", self.slices[g], inputs)), HALF, y)

    def _norm(self, name: str, x: Array) -> Array:
        return layer_norm(self.weights, name, x)

    def _embed(self, g: int, previous: Array | None, psi: Array) -> Array:
        before, now = self.slices[g - 1] if g else 0, self.slices[g]
        bias = self.tensor("embed_y_bias")[before] + self.tensor("embed_hyper_bias")[now]
        bias = (bias + self.tensor("embed_group")[g]) + self.level
        y = self.tensor("start") if previous is None else previous
        y = np.broadcast_to(compand(y), (*psi.shape[:2], y.shape[-1]))
        inputs = np.concatenate([y, psi], axis=-1)
        weight = [self.tensor("embed_y")[before], self.tensor("embed_hyper")[now]]
        return dot(inputs[..., None, :], np.concatenate(weight, axis=-1), bias)

    def _qkv(self, name: str, x: Array) -> list[Array]:
        qkv = linear(self.weights, f"{name}.qkv", self._norm(f"{name}.norm", x))
        return [split_heads(part) for part in np.split(qkv, 3, axis=-1)]

    def _attend_within_windows(self, block: int, name: str, x: Array) -> Array:
        q, k, v = self._qkv(name, x)
        table = self.weights[f"{name}.relative_bias"]
        result = np.empty_like(q)
        for area in windows(*x.shape[:2], origin=-4 if block % 2 else 0):
            shape = q[area].shape
            flat = (shape[0] * shape[1], *shape[2:])
            parts = (np.swapaxes(part[area].reshape(flat), 0, 1) for part in (q, k, v))
            heads = attention(*parts, window_bias(table, *shape[:2]))  # [head, query, 32]
            result[area] = np.swapaxes(heads, 0, 1).reshape(shape)
        return linear(self.weights, f"{name}.proj", result.reshape(x.shape))

    def _attend_over_steps(self, g: int, block: int, name: str, x: Array) -> Array:
        q, k, v = self._qkv(name, x)
        self.keys[block].append(cached(k))
        self.values[block].append(cached(v))
        keys = np.stack(self.keys[block], axis=-2)  # [rows, columns, head, step, 32]
        values = np.stack(self.values[block], axis=-2)
        bias = self.weights[f"{name}.step_bias"][:, g, : g + 1]
        result = attention(q[..., None, :], keys, values, bias[:, None, :])
        return linear(self.weights, f"{name}.proj", result.reshape(x.shape))


def synthesis(weights: Weights, y: Array) -> Array:
    """g_s: [16 x rows, 16 x columns, 3]."""
    early, late = weights.config.transform_depth
    names = (f"g_s.network.{i}" for i in range(early + late + 5))
    x = linear(weights, next(names), compand(y))
    for _ in range(late):
        x = synthesis_block(weights, next(names), x)
    x = shuffle(linear(weights, next(names), x), 2)
    next(names)  # the shuffle has a number too
    for _ in range(early):
        x = synthesis_block(weights, next(names), x)
    x = shuffle(linear(weights, next(names), x), 8)
    return x + shuffle(linear(weights, "g_s.linear", y), 16)


def synthesis_block(weights: Weights, name: str, x: Array) -> Array:
    inner = leaky(linear(weights, f"{name}.spatial.0", x))
    inner = depthwise3x3(weights, f"{name}.spatial.2", inner)
    x = x + linear(weights, f"{name}.spatial.3", inner)
    inner = leaky(linear(weights, f"{name}.pointwise.0", x))
    return x + linear(weights, f"{name}.pointwise.2", inner)


# --- 5. The weights file ------------------------------------------------------------------------

DTYPES = {"U8": "u1", "F16": "<f2", "F32": "<f4", "I32": "<i4"}


@dataclass(frozen=True)
class Config:
    latent_channels: int  # M
    hyper_channels: int  # N_z
    layers: int  # blocks of the entropy model
    slices: int  # k_c
    patch: tuple[int, int]  # k_h, k_w
    order: list[tuple[int, int, int]] | None  # (slice, i, j) of every step
    lrp: bool
    transform_depth: tuple[int, int]  # early, late


def read_config(text: bytes) -> Config:
    fields = json.loads(text)
    require(fields["transform"] == "patch", 'only the transform "patch" is in this decoder')
    order = fields.get("order")
    k_h, k_w = fields["patch"]
    require(1 <= k_h <= 16 and 1 <= k_w <= 16, "a patch has a side out of 1..16")
    early, late = fields["transform_depth"]
    require(fields["latent_channels"] % fields["slices"] == 0, "the slices are not of one size")
    return Config(
        fields["latent_channels"],
        fields["hyper_channels"],
        fields["layers"],
        fields["slices"],
        (k_h, k_w),
        None if order is None else [(c, i, j) for c, i, j in order],
        fields.get("lrp", False),
        (early, late),
    )


class Weights:
    """Tensors by name, floats expanded to float32."""

    def __init__(self, path: str | Path) -> None:
        raw = read_safetensors(Path(path).read_bytes())
        self.fingerprint = fingerprint(raw)
        self.config = read_config(raw["_extra_state"][2])
        self._tensors = {name: to_array(*parts) for name, parts in raw.items()}
        self.y_tables = self._tables("latent_codec.y_tables")
        self.z_tables = self._tables("latent_codec.z_tables")
        indexes = 1 + len(self["latent_codec.thresholds"])
        require(len(self.y_tables) == indexes, "the y tables are not one more than the thresholds")
        require(len(self.z_tables) == self.config.hyper_channels, "a channel of z has no table")

    def __getitem__(self, name: str) -> Array:
        require(name in self._tensors, f"the weights have no tensor {name}")
        return self._tensors[name]

    def _tables(self, name: str) -> list[Table]:
        counts = self[f"{name}.counts"].tolist()
        tables = []
        for size, offset in zip(self[f"{name}.sizes"], self[f"{name}.offsets"], strict=True):
            tables.append(Table(int(offset), counts[:size]))
            counts = counts[size:]
        require(not counts, f"{name} has counts left over")
        return tables


def read_safetensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """(dtype, shape, elements) by name."""
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    metadata = entries.pop("__metadata__", {})
    require(metadata.get("format") == "groupedmixer-weights-0", "this is no weights file")
    tensors = {}
    for name, entry in entries.items():
        first, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = (entry["dtype"], entry["shape"], data[first:end])
    return tensors


def to_array(dtype: str, shape: list[int], elements: bytes) -> Array:
    require(dtype in DTYPES, f"a tensor has the unknown type {dtype}")
    array = np.frombuffer(elements, DTYPES[dtype]).reshape(shape)
    return array.astype(np.float32) if dtype.startswith("F") else array


def fingerprint(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):  # Python sorts text by code point
        dtype, shape, elements = tensors[name]
        sizes = ",".join(map(str, shape))
        digest.update(f"{name}\0{dtype}\0{sizes}\0".encode() + elements)
    return digest.digest()[:8]


# --- All together -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    latent: Array  # y_hat, float32 [latent rows, latent columns, M]
    pixels: Array  # uint8 [height, width, 3], or grey [height, width]
    alpha: Array | None  # uint8 [height, width]
    metadata: dict[bytes, bytes]  # payloads by chunk type


def decode(gmx_bytes: bytes, weights_path: str | Path) -> Decoded:
    reader = Reader(gmx_bytes)
    header = read_header(reader)
    chunks = read_chunks(reader, header.chunk_count)
    entries = read_tile_table(chunks, header)
    weights = Weights(weights_path)
    require(header.fingerprint == weights.fingerprint, "the file was coded with other weights")
    require(header.arithmetic == ARITHMETIC, "this decoder has another arithmetic")
    latent = decode_latent(entries, weights, header)
    alpha = read_alpha(chunks[b"ALPH"], header) if b"ALPH" in chunks else None
    metadata = {kind: chunks[kind] for kind in METADATA_CHUNKS if kind in chunks}
    return Decoded(latent, to_pixels(latent, weights, header), alpha, metadata)
