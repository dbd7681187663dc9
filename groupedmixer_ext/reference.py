# SPDX-License-Identifier: MIT
"""Every operator of `ops` in a few lines of PyTorch or NumPy.

The definition the kernels are tested against with `torch.equal`, and a reading aid. Slow, and
without the kernels' checks of shapes and dtypes.

The second half is docs/numerics.md to the letter: first the functions of that page, on float32
arrays and under its names, then the operators made of them. NumPy's ``+ - * /`` and ``sqrt`` are
rounded as IEEE-754 says whatever the width of its vectors; its ``exp``, ``tanh``, ``sum``, ``@``
and ``einsum`` are not, or add up in an order of their own, and are not used. Constants are float32
scalars, because NumPy before 2 computes a float32 scalar with a Python number in float64.

NumPy computes in the processor's floating-point mode as it finds it: after
``torch.set_flush_denormal(True)`` the operators of this module raise, unlike those of `ops`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "KVCache",
    "add_half_tanh",
    "append_attention",
    "attention",
    "compand",
    "conv3x3",
    "depthwise3x3",
    "dequantize_group",
    "dot",
    "exp",
    "fma",
    "gelu",
    "lane_sum",
    "layer_norm",
    "leaky",
    "leaky_relu",
    "linear",
    "pack_conv3x3",
    "pack_weight",
    "quantize_group",
    "scale_indexes",
    "tanh",
    "to_half",
    "window_attention",
]

Array = NDArray[np.float32]


def quantize_group(
    y: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    raw_scale: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
    skip_below: int,
    dead_zone: Tensor | None = None,  # [T + 1] float32
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.quantize_group`."""
    _require_finite(y=y)
    indexes = scale_indexes(raw_scale, mean, thresholds)
    residual = y - mean
    zero = indexes < skip_below
    if dead_zone is not None:
        zero |= residual.abs() < dead_zone[indexes.long()]
    rounded = residual.clamp(-32768, 32767).round()  # half to even
    symbols = rounded.masked_fill(zero, 0).to(torch.int16)
    return symbols, indexes, dequantize_group(symbols, mean)


def scale_indexes(
    raw_scale: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
) -> Tensor:
    """As `ops.scale_indexes`."""
    _require_finite(mean=mean, raw_scale=raw_scale)
    return (thresholds < raw_scale.unsqueeze(-1)).sum(-1).to(torch.uint8)


def dequantize_group(
    symbols: Tensor,  # [...] int16
    mean: Tensor,  # [...] float32
) -> Tensor:
    """As `ops.dequantize_group`."""
    return symbols.to(torch.float32) + mean


def _require_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise RuntimeError(f"{name} must be finite, got infinity or NaN")


# --- docs/numerics.md, sections 1 to 3 ------------------------------------------------------------


def _f32(literal: str) -> np.float32:
    return np.float32(float.fromhex(literal))


ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
LANES = 16
SEGMENT = 128
HEAD_DIM = 32
WINDOW = 8


def fma(a: Array, b: Array | np.float32, c: Array | np.float32) -> Array:
    """``a * b + c``, rounded once; arguments are broadcast.

    The product has at most 48 bits and is exact in float64. Rounding the sum to odd there (it is
    cut off, and its last bit says whether anything was lost) keeps what the rounding to float32
    has to know.
    """
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, dtype=np.float64)
    total = np.asarray(product + addend)
    # Knuth's two-sum: total + error is the exact sum.
    part = total - product
    error = (product - (total - part)) + (addend - part)
    inexact = np.abs(error) > 0  # not where the sum is infinite, and the error NaN
    bits = total.view(np.int64)
    bits -= inexact & ((error < 0) == (total > 0))
    bits |= inexact
    return total.astype(np.float32)


def dot(
    a: Array,  # [..., K]
    w: Array,  # [..., K]
    init: Array | np.float32,  # [...]
) -> Array:
    """Dot products along the last axis; arguments are broadcast.  # [...]"""
    total: Array | None = None
    for begin in range(0, a.shape[-1], SEGMENT):
        segment = np.asarray(init) if total is None else np.zeros_like(total)
        for k in range(begin, min(begin + SEGMENT, a.shape[-1])):
            segment = fma(a[..., k], w[..., k], segment)
        total = segment if total is None else total + segment
    assert total is not None
    return total


def lane_sum(t: Array) -> Array:  # [..., n]
    """Sums along the last axis.  # [...]"""
    lanes = np.zeros((*t.shape[:-1], LANES), np.float32)
    for i in range(t.shape[-1]):
        lanes[..., i % LANES] = t[..., i] if i < LANES else lanes[..., i % LANES] + t[..., i]
    return _add_lanes(lanes)


def _add_lanes(lanes: Array) -> Array:  # [..., 16]
    for w in (8, 4, 2, 1):
        lanes = lanes[..., :w] + lanes[..., w : 2 * w]
    return lanes[..., 0]


def _max(a: Array, b: np.float32) -> Array:
    return np.where(a > b, a, b)


def _min(a: Array, b: np.float32) -> Array:
    return np.where(a < b, a, b)


def _round(x: Array) -> Array:
    rounder = _f32("0x1.8p23")
    return (x + rounder) - rounder


def exp(x: Array) -> Array:
    """The exponential function, between e^-86 and e^86."""
    x = _min(_max(x, np.float32(-86)), np.float32(86))
    n = _round(x * _f32("0x1.715476p+0"))
    r = fma(n, _f32("0x1.05c61p-29"), fma(n, _f32("-0x1.62e43p-1"), x))
    p = np.full_like(r, _f32("0x1.6a50bep-10"))
    for term in ("0x1.123976p-7", "0x1.5558acp-5", "0x1.555492p-3", "0x1.fffffcp-2"):
        p = fma(p, r, _f32(term))
    return np.ldexp(ONE + fma(p, r * r, r), n.astype(np.int32))


def gelu(x: Array) -> Array:
    """The Gaussian error linear unit in its tanh form."""
    u = x * fma(x * x, _f32("-0x1.2444f2p-4"), _f32("-0x1.988454p+0"))
    return x / (ONE + exp(u))


def tanh(x: Array) -> Array:
    return ONE - TWO / (ONE + exp(TWO * x))


def leaky(x: Array) -> Array:
    """The leaky rectifier of slope 0.01."""
    return np.where(x > ZERO, x, x * _f32("0x1.47ae14p-7"))


def to_half(x: Array) -> NDArray[np.float16]:
    """What the context cache keeps of keys and values."""
    return _min(_max(x, np.float32(-65504)), np.float32(65504)).astype(np.float16)


def attention(
    q: Array,  # [..., 32]
    k: Array,  # [..., n, 32]
    v: Array,  # [..., n, 32]
    b: Array,  # [..., n]
) -> Array:
    """Attention of queries, each over keys and values of its own; leading axes are broadcast."""
    s = fma(dot(q[..., None, :], k, ZERO), _f32("0x1.6a09e6p-3"), b)
    e = exp(s - s.max(axis=-1, keepdims=True))
    o = dot(e[..., None, :], np.swapaxes(v, -1, -2), ZERO)
    return o / lane_sum(e)[..., None]


# --- docs/numerics.md, sections 3 to 5: the operators ---------------------------------------------


def _array(tensor: Tensor) -> Array:
    tiny = np.full(1, 1e-40, np.float32)
    if (tiny + tiny).view(np.int32)[0] == 0:
        raise RuntimeError("denormals must not be flushed: call torch.set_flush_denormal(False)")
    return tensor.detach().cpu().numpy()


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def pack_weight(weight: Tensor) -> Tensor:  # [N, K] float32
    """As `ops.pack_weight`."""
    width, depth = weight.shape
    packed = weight.new_zeros(-(-width // 32), 32, depth)
    packed.flatten(0, 1)[:width] = weight
    return packed.transpose(1, 2).contiguous()


def pack_conv3x3(weight: Tensor) -> Tensor:  # [N, C, 3, 3] float32
    """As `ops.pack_conv3x3`."""
    return pack_weight(weight.permute(0, 2, 3, 1).flatten(1))


def _unpacked(packed: Tensor, width: int) -> Array:  # [ceil(N / 32), K, 32]
    return _array(packed.transpose(1, 2).flatten(0, 1)[:width])


_ACTIVATIONS = {"none": lambda y: y, "gelu": gelu, "leaky_relu": leaky}


def linear(
    x: Tensor,  # [..., K] float32
    packed: Tensor,  # [ceil(N / 32), K, 32] float32
    bias: Tensor,  # [N] float32
    *,
    activation: str = "none",
    residual: Tensor | None = None,  # [..., N] float32
    norm: tuple[Tensor, Tensor] | None = None,  # [K] and [K] float32
) -> Tensor:
    """As `ops.linear`."""
    a = _array(x if norm is None else layer_norm(x, *norm))
    y = dot(a[..., None, :], _unpacked(packed, bias.shape[0]), _array(bias))
    y = _ACTIVATIONS[activation](y)
    return _tensor(y if residual is None else _array(residual) + y)


def layer_norm(
    x: Tensor,  # [..., d] float32
    weight: Tensor,  # [d] float32
    bias: Tensor,  # [d] float32
) -> Tensor:
    """As `ops.layer_norm`."""
    values = _array(x)
    d = np.float32(x.shape[-1])
    c = values - (lane_sum(values) / d)[..., None]
    lanes = c[..., :LANES] * c[..., :LANES]
    for i in range(LANES, x.shape[-1], LANES):
        part = c[..., i : i + LANES]
        lanes = fma(part, part, lanes)
    v = _add_lanes(lanes) / d
    s = ONE / np.sqrt(v + _f32("0x1.0c6f7ap-20"))
    return _tensor(fma(c * s[..., None], _array(weight), _array(bias)))


def _taps(x: Array, stride: int) -> Array:  # [h, w, C]
    """Of 3x3 windows, in the order (row, column).  # [ceil(h / stride), ceil(w / stride), 9, C]"""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return np.stack(
        [
            padded[i : i + height : stride, j : j + width : stride]
            for i in range(3)
            for j in range(3)
        ],
        axis=2,
    )


def conv3x3(
    x: Tensor,  # [h, w, C] float32
    packed: Tensor,  # [ceil(N / 32), 9 C, 32] float32
    bias: Tensor,  # [N] float32
    *,
    stride: int = 1,
    activation: str = "none",
) -> Tensor:
    """As `ops.conv3x3`."""
    taps = _tensor(_taps(_array(x), stride)).flatten(2)
    return linear(taps, packed, bias, activation=activation)


def depthwise3x3(
    x: Tensor,  # [h, w, C] float32
    weight: Tensor,  # [9, C] float32
    bias: Tensor,  # [C] float32
) -> Tensor:
    """As `ops.depthwise3x3`."""
    taps = np.swapaxes(_taps(_array(x), stride=1), -1, -2)
    return _tensor(dot(taps, _array(weight).T, _array(bias)))


def compand(x: Tensor) -> Tensor:  # [...] float32
    """As `ops.compand`."""
    values = _array(x)
    return _tensor(values / np.sqrt(ONE + np.abs(values)))


def leaky_relu(x: Tensor) -> Tensor:  # [...] float32
    """As `ops.leaky_relu`."""
    return _tensor(leaky(_array(x)))


def add_half_tanh(
    y_hat: Tensor,  # [...] float32
    x: Tensor,  # [...] float32
) -> Tensor:
    """As `ops.add_half_tanh`."""
    return _tensor(fma(tanh(_array(x)), np.float32(0.5), _array(y_hat)))


def _heads(qkv: Array) -> Array:  # [tokens, 3 d]
    """Queries, keys and values of each head.  # [3, heads, tokens, 32]"""
    heads = qkv.shape[1] // (3 * HEAD_DIM)
    return qkv.reshape(len(qkv), 3, heads, HEAD_DIM).transpose(1, 2, 0, 3)


def window_attention(
    qkv: Tensor,  # [h, w, 3 d] float32
    relative_bias: Tensor,  # [d / 32, 225] float32
    *,
    shifted: bool,
) -> Tensor:
    """As `ops.window_attention`."""
    values, table = _array(qkv), _array(relative_bias)
    height, width, channels = values.shape
    out = np.empty((height, width, channels // 3), np.float32)
    first = WINDOW // 2 - WINDOW if shifted else 0
    for top in range(first, height, WINDOW):
        for left in range(first, width, WINDOW):
            rows = slice(max(top, 0), min(top + WINDOW, height))
            columns = slice(max(left, 0), min(left + WINDOW, width))
            cell = values[rows, columns]
            if cell.size == 0:
                continue
            q, k, v = _heads(cell.reshape(-1, channels))
            i, j = (axis.ravel() for axis in np.indices(cell.shape[:2]))
            between = (i[:, None] - i + 7) * 15 + (j[:, None] - j + 7)
            attended = attention(q, k[:, None], v[:, None], table[:, between])
            out[rows, columns] = attended.swapaxes(0, 1).reshape(*cell.shape[:2], -1)
    return _tensor(out)


class KVCache:
    """As `ops.KVCache`, laid out as one would write it down."""

    def __init__(self, tokens: int, heads: int, capacity: int) -> None:
        self.data = np.zeros((tokens, heads, 2, capacity, HEAD_DIM), np.float16)
        self.steps_done = 0


def append_attention(
    qkv: Tensor,  # [T, 3 d] float32
    cache: KVCache,
    step_bias: Tensor,  # [heads, G, G] float32
    *,
    step: int,
) -> Tensor:
    """Updates ``cache`` in place, as `ops.append_attention`."""
    q, k, v = _heads(_array(qkv)).swapaxes(1, 2)
    cache.data[:, :, 0, step] = to_half(k)
    cache.data[:, :, 1, step] = to_half(v)
    cache.steps_done = step + 1
    keys, values = cache.data[:, :, :, : step + 1].astype(np.float32).swapaxes(0, 2).swapaxes(1, 2)
    out = attention(q, keys, values, _array(step_bias)[:, step, : step + 1])
    return _tensor(out.reshape(len(out), qkv.shape[1] // 3))
