# SPDX-License-Identifier: MIT
"""The layers of docs/numerics.md.

Kernels against their twins in groupedmixer_ext.reference, bit for bit on every instruction set, and
the twins against exact arithmetic and PyTorch.
"""

import ctypes
import math
import os
import platform
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from test_ops import run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from groupedmixer_ext import _build_info, ops, reference

REGISTERED = torch.ops.groupedmixer


# --- numbers --------------------------------------------------------------------------------------


class Numbers:
    """Random tensors of several kinds, among them those where rounding goes wrong first."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)

    def plain(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def wild(self, *shape: int) -> Tensor:
        """Of all magnitudes, denormals included, whose products stay below 2^126; some zeros."""
        exponents = torch.randint(-149, 60, shape, generator=self.random)
        values = self.plain(*shape).clamp(-4, 4) * torch.exp2(exponents.double())
        zeros = torch.rand(shape, generator=self.random) < 0.05
        return values.to(torch.float32).masked_fill(zeros, 0).mul(self.signs(*shape))

    def small(self, *shape: int) -> Tensor:
        """Whose products are denormals."""
        return self.plain(*shape) * 2.0**-70

    def huge(self, *shape: int) -> Tensor:
        """Whose products are close to overflow and whose sums may be above."""
        return self.plain(*shape) * 2.0**62

    def zeros(self, *shape: int) -> Tensor:
        return self.signs(*shape) * 0

    def signs(self, *shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=self.random) * 2.0 - 1


KINDS = ("plain", "wild", "small", "huge", "zeros")


class Case(NamedTuple):
    """A call of an operator, and what the reference says."""

    name: str
    call: Callable[[], Tensor]
    expected: Tensor


def assert_same(case: Case, actual: Tensor) -> None:
    """Equal to the bit, but for infinity and NaN, which are only found in the same places."""
    expected = case.expected
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, case.name
    assert actual.is_contiguous(), case.name
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite), case.name
    as_integers = torch.int16 if expected.dtype == torch.float16 else torch.int32
    same = actual.view(as_integers) == expected.view(as_integers)
    assert (same | ~finite).all(), case.name


# --- cases ----------------------------------------------------------------------------------------


def linear_cases() -> Iterator[Case]:
    activations = ("none", "gelu", "leaky_relu")
    for i, depth in enumerate((1, 31, 127, 128, 129, 300)):
        for j, width in enumerate((1, 31, 33, 80)):
            seed = 4 * i + j
            numbers = Numbers(seed)
            kind = KINDS[seed % len(KINDS)]
            make = getattr(numbers, kind)
            rows = 1 + seed
            x, weight, bias = make(rows, depth), make(width, depth), make(width)
            yield linear_case(
                f"linear {rows}x{depth}x{width} {kind}",
                x,
                weight,
                bias,
                activation=activations[seed % 3],
                residual=make(rows, width) if seed % 2 else None,
            )
    # Every number of rows: tiles differ, rows do not.
    numbers = Numbers()
    x, weight, bias = numbers.plain(40, 33), numbers.wild(34, 33), numbers.plain(34)
    packed = reference.pack_weight(weight)
    expected = reference.linear(x, packed, bias)
    for rows in range(41):
        yield Case(
            f"linear of {rows} rows",
            lambda x=x[:rows]: ops.linear(x, packed, bias),
            expected[:rows],
        )


def linear_case(
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> Case:
    packed = reference.pack_weight(weight)
    return Case(
        name,
        lambda: ops.linear(
            x, ops.pack_weight(weight), bias, activation=activation, residual=residual, norm=norm
        ),
        reference.linear(x, packed, bias, activation=activation, residual=residual, norm=norm),
    )


def norm_cases() -> Iterator[Case]:
    for seed, (rows, width) in enumerate([(1, 32), (7, 64), (13, 96), (2, 320), (200, 32)]):
        numbers = Numbers(seed)
        for kind in KINDS:
            x = getattr(numbers, kind)(rows, width)
            norm = numbers.plain(width), numbers.plain(width)
            yield Case(
                f"layer norm {rows}x{width} {kind}",
                lambda x=x, norm=norm: ops.layer_norm(x, *norm),
                reference.layer_norm(x, *norm),
            )
        x = numbers.plain(rows, width) + 100
        yield linear_case(
            f"linear after layer norm {rows}x{width}",
            x,
            numbers.plain(5, width),
            numbers.plain(5),
            activation="gelu",
            residual=numbers.plain(rows, 5),
            norm=(numbers.plain(width), numbers.plain(width)),
        )


def convolution_cases() -> Iterator[Case]:
    shapes = [
        (1, 1, 1, 1),
        (2, 3, 5, 33),
        (7, 4, 15, 3),
        (5, 9, 16, 40),
        (8, 1, 31, 8),
        (9, 11, 3, 5),
    ]
    for seed, (height, width, channels, out_channels) in enumerate(shapes):
        numbers = Numbers(seed)
        kind = KINDS[seed % len(KINDS)]
        make = getattr(numbers, kind)
        x, bias = make(height, width, channels), make(out_channels)
        weight = make(out_channels, channels, 3, 3)
        for stride, activation in ((1, "none"), (2, "leaky_relu")):
            settings = {"stride": stride, "activation": activation}
            yield Case(
                f"conv3x3 {height}x{width}x{channels} to {out_channels} by {stride}, {kind}",
                lambda x=x, weight=weight, bias=bias, settings=settings: ops.conv3x3(
                    x, ops.pack_conv3x3(weight), bias, **settings
                ),
                reference.conv3x3(x, reference.pack_conv3x3(weight), bias, **settings),
            )
    shapes = [(1, 1, 1), (2, 3, 15), (7, 4, 16), (5, 9, 17), (4, 1, 50), (1, 5, 64)]
    for seed, (height, width, channels) in enumerate(shapes):
        numbers = Numbers(seed)
        for kind in KINDS:
            make = getattr(numbers, kind)
            x, weight, bias = make(height, width, channels), make(9, channels), make(channels)
            yield Case(
                f"depthwise3x3 {height}x{width}x{channels} {kind}",
                lambda x=x, weight=weight, bias=bias: ops.depthwise3x3(x, weight, bias),
                reference.depthwise3x3(x, weight, bias),
            )


def window_cases() -> Iterator[Case]:
    shapes = [(1, 1, 1), (4, 5, 2), (8, 8, 1), (3, 17, 1), (9, 13, 3)]
    for seed, (height, width, heads) in enumerate(shapes):
        numbers = Numbers(seed)
        kind = ("plain", "wild", "small", "plain", "plain")[seed]
        qkv = getattr(numbers, kind)(height, width, 3 * 32 * heads)
        bias = numbers.plain(heads, 225)
        for shifted in (False, True):
            yield Case(
                f"window attention {height}x{width}, {heads} heads, {shifted=}, {kind}",
                lambda qkv=qkv, bias=bias, shifted=shifted: ops.window_attention(
                    qkv, bias, shifted=shifted
                ),
                reference.window_attention(qkv, bias, shifted=shifted),
            )


def append_cases() -> Iterator[Case]:
    shapes = [(1, 1, 1), (15, 2, 3), (16, 1, 9), (17, 2, 2), (40, 1, 18), (2, 1, 131)]
    for seed, (tokens, heads, capacity) in enumerate(shapes):
        numbers = Numbers(seed)
        kind = ("plain", "wild", "small", "plain", "plain", "plain")[seed]
        qkv = [getattr(numbers, kind)(tokens, 96 * heads) for _ in range(capacity)]
        bias = numbers.plain(heads, capacity, capacity)
        twin = reference.KVCache(tokens, heads, capacity)
        expected = [
            reference.append_attention(step_qkv, twin, bias, step=step)
            for step, step_qkv in enumerate(qkv)
        ]

        def attended(part=(tokens, heads, capacity), qkv=qkv, bias=bias) -> Tensor:
            cache = ops.KVCache(*part)
            return torch.stack(
                [
                    ops.append_attention(step_qkv, cache, bias, step=step)
                    for step, step_qkv in enumerate(qkv)
                ]
            )

        def kept(part=(tokens, heads, capacity), qkv=qkv, bias=bias) -> Tensor:
            cache = ops.KVCache(*part)
            for step, step_qkv in enumerate(qkv):
                ops.append_attention(step_qkv, cache, bias, step=step)
            return tokens_first(cache)

        name = f"append attention {tokens}, {heads} heads, {capacity} steps, {kind}"
        yield Case(name, attended, torch.stack(expected))
        yield Case(f"cache of {name}", kept, torch.from_numpy(twin.data))


def tokens_first(cache: ops.KVCache) -> Tensor:
    """[T, heads, 2, G, 32]"""
    return cache.data.permute(0, 5, 1, 2, 3, 4).flatten(0, 1)[: cache.tokens].contiguous()


def element_cases() -> Iterator[Case]:
    for count in (0, 1, 15, 16, 17, 100):
        numbers = Numbers(count)
        for kind in KINDS:
            x, y_hat = getattr(numbers, kind)(count), numbers.plain(count)
            yield Case(f"compand {count} {kind}", lambda x=x: ops.compand(x), reference.compand(x))
            yield Case(
                f"leaky_relu {count} {kind}",
                lambda x=x: ops.leaky_relu(x),
                reference.leaky_relu(x),
            )
            yield Case(
                f"add_half_tanh {count} {kind}",
                lambda x=x, y_hat=y_hat: ops.add_half_tanh(y_hat, x),
                reference.add_half_tanh(y_hat, x),
            )
    # All of exp's intervals, and beyond.
    x = torch.linspace(-100, 100, 20011)
    zeros, one = torch.zeros_like(x), torch.zeros(1)
    yield Case("tanh", lambda: ops.add_half_tanh(zeros, x), reference.add_half_tanh(zeros, x))
    yield linear_case("gelu", x[:, None], torch.ones(1, 1), one, activation="gelu")


def fma_cases() -> Iterator[Case]:
    """Where a product rounded first, or a sum rounded twice, gives something else."""
    a, b, c = (torch.from_numpy(values) for values in hard_triples())
    # The tap in the middle of a 1x1 image; the other eight leave the sum alone, but for -0.
    weight = torch.zeros(9, len(a))
    weight[4] = b
    yield Case(
        "fma",
        lambda: ops.depthwise3x3(a.view(1, 1, -1), weight, c),
        torch.from_numpy(reference.fma(a.numpy(), b.numpy(), c.numpy()) + np.float32(0))[
            None, None
        ],
    )


def half_cases() -> Iterator[Case]:
    """Rounding to binary16 in the cache: every number, every tie and both sides of every tie."""
    half = np.arange(0x7C00, dtype=np.uint16)  # all that are positive and finite
    numbers = half.view(np.float16).astype(np.float32)
    ties = (numbers[:-1] + numbers[1:]) / 2  # exact
    above = np.nextafter(ties, np.float32(np.inf))
    below = np.nextafter(ties, np.float32(0))
    even = half[:-1] + (half[:-1] & 1)
    beyond = np.array([65505, 65520, 1e6, 3e38], np.float32)
    x = np.concatenate([numbers, ties, above, below, beyond])
    rounded = np.concatenate(
        [half, even, half[1:], half[:-1], np.full_like(beyond, 0x7BFF, np.uint16)]
    )
    x, rounded = np.concatenate([x, -x]), np.concatenate([rounded, rounded | 0x8000])
    assert np.array_equal(reference.to_half(x).view(np.uint16), rounded)

    tokens = -(-len(x) // 32)
    kept = torch.from_numpy(np.resize(rounded.view(np.float16), (tokens, 32)))
    values = torch.from_numpy(np.resize(x, (tokens, 32)))
    qkv = torch.cat([torch.zeros(tokens, 32), values, values.flip(0)], dim=1)

    def call() -> Tensor:
        cache = ops.KVCache(tokens, 1, 1)
        ops.append_attention(qkv, cache, torch.zeros(1, 1, 1), step=0)
        return tokens_first(cache)[:, 0, :, 0]

    yield Case("binary16", call, torch.stack([kept, kept.flip(0)], dim=1))


def shared_cases() -> Iterator[Case]:
    """Large enough to be shared out among four threads, in parts of different sizes."""
    numbers = Numbers()
    plain, wild = numbers.plain, numbers.wild
    # Parts are ranges of rows, of columns, or of both; residual sums are added in place, too.
    for rows, depth, width in ((210, 160, 80), (12, 320, 590), (30, 256, 300)):
        x, weight, bias = plain(rows, depth), plain(width, depth), plain(width)
        residual, norm = plain(rows, width), (plain(depth), plain(depth))
        for settings in ({}, {"residual": residual, "norm": norm, "activation": "gelu"}):
            case = linear_case(f"shared linear {rows}x{depth}x{width}", x, weight, bias, **settings)
            yield case
            yield Case(
                f"{case.name} into a tensor",
                lambda x=x, weight=weight, bias=bias, settings=settings: linear_in_place(
                    x, weight, bias, **settings
                ),
                case.expected,
            )
    x, norm = wild(270, 320), (plain(320), plain(320))
    yield Case(
        "shared layer norm",
        lambda x=x, norm=norm: ops.layer_norm(x, *norm),
        reference.layer_norm(x, *norm),
    )
    x, weight, bias = plain(30, 21, 16), plain(40, 16, 3, 3), plain(40)
    yield Case(
        "shared conv3x3",
        lambda x=x, weight=weight, bias=bias: ops.conv3x3(x, ops.pack_conv3x3(weight), bias),
        reference.conv3x3(x, reference.pack_conv3x3(weight), bias),
    )
    x, weight, bias = wild(50, 31, 50), wild(9, 50), wild(50)
    yield Case(
        "shared depthwise3x3",
        lambda x=x, weight=weight, bias=bias: ops.depthwise3x3(x, weight, bias),
        reference.depthwise3x3(x, weight, bias),
    )
    qkv, bias = plain(9, 13, 3 * 96), plain(3, 225)
    yield Case(
        "shared window attention",
        lambda qkv=qkv, bias=bias: ops.window_attention(qkv, bias, shifted=True),
        reference.window_attention(qkv, bias, shifted=True),
    )
    tokens, heads = 230, 2
    steps, bias = plain(2, tokens, 96 * heads), plain(heads, 2, 2)
    twin = reference.KVCache(tokens, heads, 2)

    def attended() -> Tensor:
        cache = ops.KVCache(tokens, heads, 2)
        return torch.stack(
            [ops.append_attention(qkv, cache, bias, step=i) for i, qkv in enumerate(steps)]
        )

    yield Case(
        "shared append attention",
        attended,
        torch.stack(
            [reference.append_attention(qkv, twin, bias, step=i) for i, qkv in enumerate(steps)]
        ),
    )


def linear_in_place(
    x: Tensor, weight: Tensor, bias: Tensor, *, residual: Tensor | None = None, **settings: object
) -> Tensor:
    """Into the residual, where there is one, and into a tensor that held something else."""
    if residual is None:
        out = torch.full((len(x), len(bias)), 7.0)
    else:
        residual = out = residual.clone()
    y = ops.linear(x, ops.pack_weight(weight), bias, residual=residual, out=out, **settings)
    assert y is out
    return y


CASE_MAKERS = (
    linear_cases,
    norm_cases,
    convolution_cases,
    window_cases,
    append_cases,
    element_cases,
    fma_cases,
    half_cases,
    shared_cases,
)


def cases_of(*makers: Callable[[], Iterator[Case]]) -> list[Case]:
    with np.errstate(over="ignore", invalid="ignore"):
        return [case for make in makers for case in make()]


def check_all() -> None:
    """All cases with some numbers of threads, and in floating-point modes of the caller's.

    PyTorch's threads inherit the mode of the thread that starts them, so every mode comes with a
    thread that is new.
    """
    torch.set_num_threads(1)
    cases = cases_of(*CASE_MAKERS)

    def check(threads: int) -> Callable[[], None]:
        """Calls now, in the mode of the caller, and compares later."""
        torch.set_num_threads(threads)
        results = [case.call() for case in cases]

        def compare() -> None:
            for case, actual in zip(cases, results, strict=True):
                assert_same(case, actual)

        return compare

    check(1)()
    # A machine that can neither flush denormals nor round upwards has nothing to test.
    if torch.set_flush_denormal(True):
        try:
            compare = check(2)
        finally:
            torch.set_flush_denormal(False)
        compare()
    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
    if upward is not None:
        library = ctypes.CDLL("libm.so.6")
        assert library.fesetround(upward) == 0
        try:
            compare = check(3)
        finally:
            library.fesetround(0)
        compare()
    check(4)()


@pytest.mark.parametrize("isa", ops.ISAS)
def test_every_variant_equals_the_reference(isa: str) -> None:
    if not ops.isa_available(isa):
        pytest.skip(f"this machine has no {isa}")
    program = "import test_strict as t; t.check_all(); print(t.ops.active_isa())"
    assert run(program, isa).stdout.split()[-1] == isa


# --- the reference against exact arithmetic -------------------------------------------------------


def hard_triples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and c, all finite, for fma."""
    random = np.random.default_rng(0)

    def floats(count: int, low: int, high: int) -> np.ndarray:
        """Full significands with exponents low .. high - 1."""
        significand = random.integers(1 << 23, 1 << 24, count) * random.choice([-1.0, 1.0], count)
        return (significand * np.exp2(random.integers(low, high, count) - 23)).astype(np.float32)

    def triples(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
        return [values.astype(np.float32) for values in np.broadcast_arrays(a, b, c)]

    n = 300
    a, b = floats(n, -3, 3), floats(n, -3, 3)
    product = a.astype(np.float64) * b
    tie = random.integers(1 << 23, 1 << 24, n) * 2.0 + 1  # of 25 bits, times any power of two
    odd12, odd13 = (random.integers(1 << bits, 2 << bits, n) | 1 for bits in (11, 12))
    scale = np.exp2(random.integers(-102, 60, n))
    tiny = random.choice([2.0**-149, -(2.0**-149), 0.0], n)
    beyond = np.concatenate([floats(n - 3, 90, 105), [2.0**103, 2.0**103 - 2.0**79, 2.0**102]])
    # Half an ulp of numbers in [1, 2) is 2^-24; float64 does not see that this is less.
    under_half = (1 + 2.0**-23) * 2.0**-24, 1 - 2.0**-23
    parts = [
        triples(a, b, floats(n, -30, 30)),
        triples(a, b, -product),  # what is left is the rounding error of the product
        triples(a, b, -product * (1 + 2.0**-23)),
        triples(a, b, tie - product),  # sums next to a tie
        triples(a, b, tie * 2.0**-24 - product),
        # Products that are a tie, but for a c that float64 loses.
        triples(odd12, odd13, floats(n, -149, -60)),
        triples(odd12, odd13, tiny),
        # Products that are half an ulp of c, but for what float64 loses.
        triples(under_half[0] * scale, under_half[1], floats(n, 0, 1) * scale),
        triples(under_half[0], under_half[1] * 2.0**-126, floats(n, 0, 1) * 2.0**-126),
        # Subnormal results: ties of 2^-149 and sums next to them.
        triples(floats(n, -80, -70), floats(n, -80, -70), random.integers(-4, 5, n) * 2.0**-149),
        triples(random.integers(1, 9, n) * 2.0**-75, 2.0**-75, floats(n, -149, -120)),
        triples(floats(n, -65, -60), floats(n, -66, -61), floats(n, -130, -120)),
        # Overflow and its brink.
        triples(floats(n, 60, 64), floats(n, 60, 64), floats(n, 120, 127)),
        triples(np.float32(2.0**64), np.float32(2.0**64) * (1 - 2.0**-24), beyond),
        # Everything.
        triples(floats(n, -126, 60), floats(n, -126, 60), floats(n, -126, 120)),
    ]
    a, b, c = (np.concatenate(values) for values in zip(*parts, strict=True))
    return a, b, c


def rounded(exact: Fraction) -> float:
    """To the nearest float32, ties to even; the sign of a zero is not looked at."""
    if exact == 0:
        return 0.0
    exponent = abs(exact).numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > abs(exact):
        exponent -= 1
    step = Fraction(2) ** (max(exponent, -126) - 23)
    value = round(exact / step) * step
    return float(value) if abs(value) < 2**128 else float("inf") * (1 if value > 0 else -1)


def test_rounded_knows_float32() -> None:
    values = np.concatenate([x[:50] for x in hard_triples()])
    assert all(rounded(Fraction(float(x))) == x for x in values)
    assert rounded(Fraction(2**24 + 1)) == 2**24 and rounded(Fraction(2**24 + 3)) == 2**24 + 4
    assert rounded(Fraction(3, 2**150)) == 2.0**-148 and rounded(Fraction(1, 2**150)) == 0
    assert rounded(Fraction(2**128 - 2**103)) == float("inf")
    assert rounded(Fraction(2**128 - 2**103 - 1)) == float(2**128 - 2**104)


def test_fma_is_exact() -> None:
    a, b, c = hard_triples()
    with np.errstate(over="ignore"):
        actual = reference.fma(a, b, c)
    exact = [
        rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert np.array_equal(actual, np.array(exact, np.float32))
    # The triples are what they are meant to be.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product_first = a * b + c
        sum_twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (product_first != actual).sum() > 900
    assert (sum_twice != actual).sum() > 300


def test_fma_of_what_is_not_finite_or_zero() -> None:
    def fma(a: float, b: float, c: float) -> float:
        with np.errstate(invalid="ignore"):
            return float(reference.fma(np.float32([a]), np.float32(b), np.float32(c))[0])

    infinity = float("inf")
    assert fma(infinity, 2, 1) == infinity and fma(1, 1, -infinity) == -infinity
    assert np.isnan(fma(infinity, 0, 1)) and np.isnan(fma(infinity, 1, -infinity))
    assert np.copysign(1, fma(1, -0.0, -0.0)) == -1 and np.copysign(1, fma(1, 1, -1)) == 1
    assert np.copysign(1, fma(-(2.0**-100), 2.0**-100, 0)) == -1


def test_dot_cuts_segments_at_128() -> None:
    a = np.ones(257, np.float32)
    w = np.zeros(257, np.float32)
    w[[0, 127, 128, 256]] = 2.0**24, 1, 1, 1
    # A 1 is lost next to 2^24: in its segment, and as the sum of a later one.
    assert reference.dot(a, w, np.float32(0)) == 2.0**24
    w[[129, 256]] = 1, 0
    assert reference.dot(a, w, np.float32(0)) == 2.0**24 + 2
    w[0] = 0  # the initial value takes part in the first segment only
    assert reference.dot(a, w, np.float32(2.0**24)) == 2.0**24 + 2


def test_lane_sum_is_a_tree_of_sixteen() -> None:
    for n in (1, 5, 16, 17, 40, 300):
        t = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        lanes = [np.float32(0)] * 16
        for i in range(n):
            lanes[i % 16] = t[i] if i < 16 else lanes[i % 16] + t[i]
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [x + y for x, y in zip(lanes[:half], lanes[half:], strict=True)]
        assert reference.lane_sum(t) == lanes[0]


def in_ulps(actual: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(actual - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def test_functions_are_accurate() -> None:
    x = np.linspace(-86, 86, 100_003).astype(np.float32)
    wide = x.astype(np.float64)
    # The polynomial is good to a quarter of an ulp; reduction and two roundings give the rest.
    assert in_ulps(reference.exp(x), np.exp(wide)).max() < 1
    ends = reference.exp(np.float32([-1e30, -86, 86, 1e30]))
    assert ends[0] == ends[1] and ends[2] == ends[3]

    x = np.linspace(-9, 9, 100_003).astype(np.float32)
    wide = x.astype(np.float64)
    # 1 - 2 / (1 + e) has the absolute error of numbers around 1.
    assert np.abs(reference.tanh(x) - np.tanh(wide)).max() < 3 * 2.0**-24
    # u is good to 1.5 ulp, and e^u to that times |u|; an ulp is up to two of another number's.
    u = np.sqrt(8 / np.pi) * (wide + 0.044715 * wide**3)
    error = in_ulps(reference.gelu(x), wide / (1 + np.exp(-u)))
    assert (error < 3 + 3 * np.abs(np.minimum(u, 0))).all()

    half = np.sqrt(1 + np.abs(wide))
    compand = reference.compand(torch.from_numpy(x)).numpy()
    assert in_ulps(compand, wide / half).max() < 2  # three roundings


def test_reference_refuses_to_flush_denormals() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormals")
    try:
        with pytest.raises(RuntimeError, match="^denormals must not be flushed"):
            reference.compand(torch.ones(1))
    finally:
        torch.set_flush_denormal(False)


# --- against PyTorch ------------------------------------------------------------------------------


def assert_as_good_as_torch(
    actual: Tensor, in_torch: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """At most twice the error of the same layer in float32, and an ulp of the largest result: the
    order of sums is as good as PyTorch's, and exp is as good as its."""
    exact = in_torch(*(x.double() for x in inputs))
    slack = exact.abs().max() * 2.0**-23
    error, allowed = ((y - exact).abs().max() for y in (actual, in_torch(*inputs)))
    assert error <= 2 * allowed + slack


def test_linear_agrees_with_torch() -> None:
    numbers = Numbers()
    x, weight, bias = numbers.plain(50, 320), numbers.plain(90, 320) / 18, numbers.plain(90)
    norm = numbers.plain(320), numbers.plain(320)
    packed = ops.pack_weight(weight)
    assert_as_good_as_torch(ops.linear(x, packed, bias), F.linear, x, weight, bias)
    assert_as_good_as_torch(
        ops.layer_norm(x, *norm), lambda x, w, b: F.layer_norm(x, (320,), w, b, 1e-6), x, *norm
    )
    residual = numbers.plain(50, 90)
    assert_as_good_as_torch(
        ops.linear(x, packed, bias, norm=norm, activation="gelu", residual=residual),
        lambda x, weight, bias, w, b, residual: (
            residual
            + F.gelu(
                F.linear(F.layer_norm(x, (320,), w, b, 1e-6), weight, bias), approximate="tanh"
            )
        ),
        *(x, weight, bias, *norm, residual),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_agree_with_torch(stride: int) -> None:
    numbers = Numbers()
    x, weight, bias = numbers.plain(9, 12, 40), numbers.plain(35, 40, 3, 3) / 19, numbers.plain(35)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(x.permute(2, 0, 1), weight, bias, stride, 1, groups=40 // weight.shape[1])
        return F.leaky_relu(y).permute(1, 2, 0)

    actual = ops.conv3x3(x, ops.pack_conv3x3(weight), bias, stride=stride, activation="leaky_relu")
    assert_as_good_as_torch(actual, convolve, x, weight, bias)
    if stride == 1:
        weight, bias = numbers.plain(40, 1, 3, 3), numbers.plain(40)
        taps_first = weight.reshape(40, 9).t().contiguous()
        actual = ops.leaky_relu(ops.depthwise3x3(x, taps_first, bias))
        assert_as_good_as_torch(actual, convolve, x, weight, bias)


@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_agrees_with_torch(shifted: bool) -> None:
    numbers = Numbers()
    height, width, heads = 13, 18, 2
    qkv, table = numbers.plain(height, width, 192), numbers.plain(heads, 225)
    i, j = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    shift = 4 if shifted else 0
    cell = (i + shift) // 8 * 10 + (j + shift) // 8
    together = cell[:, None] == cell
    index = (i[:, None] - i + 7) * 15 + (j[:, None] - j + 7)

    def attend(qkv: Tensor, table: Tensor) -> Tensor:
        q, k, v = qkv.view(-1, 3, heads, 32).permute(1, 2, 0, 3)
        mask = table[:, index.clamp(0, 224)].masked_fill(~together, float("-inf"))
        out = F.scaled_dot_product_attention(q, k, v, mask)
        return out.transpose(0, 1).reshape(height, width, -1)

    assert_as_good_as_torch(ops.window_attention(qkv, table, shifted=shifted), attend, qkv, table)


def test_append_attention_agrees_with_torch() -> None:
    numbers = Numbers()
    tokens, heads, steps = 37, 3, 7
    bias = numbers.plain(heads, steps, steps)
    # What binary16 holds exactly, as its rounding is no error of this layer.
    qkv = numbers.plain(steps, tokens, 96 * heads).half().float()
    cache = ops.KVCache(tokens, heads, steps)

    def attend(qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = qkv.view(steps, tokens, 3, heads, 32).permute(2, 1, 3, 0, 4)
        later = torch.ones(steps, steps, dtype=torch.bool).triu(1)
        out = F.scaled_dot_product_attention(q, k, v, bias.masked_fill(later, float("-inf")))
        return out.permute(2, 0, 1, 3).flatten(2)

    actual = [ops.append_attention(qkv[step], cache, bias, step=step) for step in range(steps)]
    assert_as_good_as_torch(torch.stack(actual), attend, qkv, bias)


# --- arguments ------------------------------------------------------------------------------------


def good_arguments() -> dict[str, tuple[Tensor | ops.KVCache, ...]]:
    """Positional arguments of every operator of `ops`."""
    zeros = torch.zeros
    return {
        "pack_weight": (zeros(5, 64),),
        "pack_conv3x3": (zeros(5, 4, 3, 3),),
        "linear": (zeros(2, 3, 64), zeros(2, 64, 32), zeros(40)),
        "layer_norm": (zeros(3, 64), zeros(64), zeros(64)),
        "conv3x3": (zeros(5, 6, 4), zeros(2, 36, 32), zeros(40)),
        "depthwise3x3": (zeros(5, 6, 4), zeros(9, 4), zeros(4)),
        "window_attention": (zeros(5, 6, 96), zeros(1, 225)),
        "append_attention": (zeros(20, 96), ops.KVCache(20, 1, 3), zeros(1, 3, 3)),
        "compand": (zeros(3, 4),),
        "leaky_relu": (zeros(3, 4),),
        "add_half_tanh": (zeros(3, 4), zeros(3, 4)),
    }


SETTINGS = {"window_attention": {"shifted": True}, "append_attention": {"step": 0}}
T = torch.zeros

ERRORS = [
    # name, position of the argument, value, message
    ("pack_weight", 0, T(5), r"weight must be \[N, K\] with N, K >= 1, got \[5\]"),
    ("pack_weight", 0, T(5, 0), r"weight must be \[N, K\] with N, K >= 1, got \[5, 0\]"),
    ("pack_conv3x3", 0, T(5, 4, 9), r"weight must be \[N, C, 3, 3\], got \[5, 4, 9\]"),
    ("linear", 0, T(()), r"x must be \[..., K\] with K >= 1, got \[\]"),
    ("linear", 0, T(3, 0), r"x must be \[..., K\] with K >= 1, got \[3, 0\]"),
    ("linear", 1, T(2, 63, 32), r"packed must be .*, \[2, 64, 32\], got \[2, 63, 32\]"),
    ("linear", 1, T(1, 64, 32), r"packed must be .*, \[2, 64, 32\], got \[1, 64, 32\]"),
    ("linear", 2, T(0), r"bias must be \[N\] with N >= 1, got \[0\]"),
    ("linear", 2, T(65), r"packed must be .*, \[3, 64, 32\], got \[2, 64, 32\]"),
    ("linear", "activation", "relu", "activation must be none, gelu or leaky_relu, got 'relu'"),
    ("linear", "residual", T(6, 40), r"residual must be \[..., N\], N = 40, .* got \[6, 40\]"),
    ("linear", "residual", T(2, 4, 40), r"residual must be .* got \[2, 4, 40\]"),
    ("linear", "residual", T(2, 3, 41), r"residual must be .* got \[2, 3, 41\]"),
    ("linear", "out", T(2, 3, 41), r"out must be \[..., N\], N = 40, .* got \[2, 3, 41\]"),
    ("linear", "out", T(6, 40), r"out must be .* got \[6, 40\]"),
    ("linear", "out", T(2, 3, 40).double(), "out must be float32, got float64"),
    ("linear", "out", T(2, 3, 80)[..., ::2], "out must be contiguous, got shape"),
    ("linear", "out", T(2, 3, 40).requires_grad_(), "out must not require grad"),
    ("linear", "norm", (T(63), T(64)), r"norm weight must be \[K\], \[64\], got \[63\]"),
    ("linear", "norm", (T(64), T(64, 1)), r"norm bias must be \[K\], \[64\], got \[64, 1\]"),
    ("layer_norm", 0, T(2, 48), r"x must be \[..., d\] with d a multiple of 32, got \[2, 48\]"),
    ("layer_norm", 1, T(32), r"weight must be \[d\], \[64\], got \[32\]"),
    ("layer_norm", 2, T(32), r"bias must be \[d\], \[64\], got \[32\]"),
    ("conv3x3", 0, T(5, 6), r"x must be \[h, w, C\] with C >= 1, got \[5, 6\]"),
    ("conv3x3", 0, T(5, 6, 5), r"packed must be \[ceil\(N / 32\), 9 C, 32\], \[2, 45, 32\], got"),
    ("conv3x3", "stride", 3, "stride must be 1 or 2, got 3"),
    ("conv3x3", "activation", "", "activation must be none, gelu or leaky_relu, got ''"),
    ("depthwise3x3", 0, T(5, 6, 0), r"x must be \[h, w, C\] with C >= 1, got \[5, 6, 0\]"),
    ("depthwise3x3", 1, T(4, 3, 3), r"weight must be \[9, C\], \[9, 4\], got \[4, 3, 3\]"),
    ("depthwise3x3", 2, T(5), r"bias must be \[C\], \[4\], got \[5\]"),
    ("window_attention", 0, T(5, 6, 192), r"qkv must be \[h, w, 3 \* 32 \* heads\] .* heads = 1"),
    ("window_attention", 1, T(1, 224), r"relative_bias must be \[heads, 225\] .* got \[1, 224\]"),
    ("window_attention", 1, T(0, 225), r"relative_bias must be .* heads >= 1, got \[0, 225\]"),
    ("append_attention", 0, T(19, 96), r"qkv must be .* the cache's T = 20, got \[19, 96\]"),
    ("append_attention", 0, T(20, 192), r"qkv must be .* and heads = 1, got \[20, 192\]"),
    ("append_attention", 2, T(1, 3, 2), r"step_bias must be .*, \[1, 3, 3\], got \[1, 3, 2\]"),
    ("append_attention", "step", 1, "step must be 0, the cache's next, got 1"),
    ("add_half_tanh", 1, T(3), r"x must have the shape of y_hat, \[3, 4\], got \[3\]"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), ERRORS)
def test_argument_errors(name: str, key: int | str, value: object, message: str) -> None:
    arguments: list = list(good_arguments()[name])
    settings = dict(SETTINGS.get(name, {}))
    getattr(ops, name)(*arguments, **settings)
    arguments = list(good_arguments()[name])
    if isinstance(key, int):
        arguments[key] = value
    else:
        settings[key] = value
    with pytest.raises(RuntimeError, match=f"^{message}"):
        getattr(ops, name)(*arguments, **settings)


def test_norm_needs_a_multiple_of_32() -> None:
    x, packed, bias, norm = T(2, 48), T(1, 48, 32), T(3), (T(48), T(48))
    with pytest.raises(RuntimeError, match="^norm must be None unless K .* got K = 48"):
        ops.linear(x, packed, bias, norm=norm)
    with pytest.raises(RuntimeError, match="^norm must be a weight and a bias, got one of them"):
        REGISTERED.linear.default(x, packed, bias, "none", None, norm[0], None)


@pytest.mark.parametrize("name", good_arguments())
def test_unsuitable_tensors_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, settings = getattr(ops, name), SETTINGS.get(name, {})
    for position, value in enumerate(good_arguments()[name]):
        if not isinstance(value, Tensor):
            continue

        def refused(unsuitable: Tensor, message: str, position: int = position) -> None:
            arguments: list = list(good_arguments()[name])
            arguments[position] = unsuitable
            with pytest.raises(RuntimeError, match=message):
                call(*arguments, **settings)

        refused(value.double(), r"^\w+ must be float32, got float64")
        refused(value.clone().requires_grad_(), r"^\w+ must not require grad")
        with FakeTensorMode():  # has CUDA tensors on every machine
            elsewhere = torch.zeros(value.shape, device="cuda")
        monkeypatch.setattr(_build_info, "CUDA", None)
        refused(elsewhere, r"^\w+ must be on the CPU, as the kernels were built without CUDA")
        if name != "pack_conv3x3":
            spread = torch.zeros(*value.shape, 2)[..., 0]
            refused(spread, r"^\w+ must be contiguous, got shape .* with other strides")


def check_threads() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    torch.set_num_threads(3)
    # So small that PyTorch itself fills them on one thread.
    few, many = ((T(n, 128), T(4, 128, 32), T(128)) for n in (8, 200))
    before = threads()
    ops.linear(*few)
    for name, arguments in good_arguments().items():
        getattr(ops, name)(*arguments, **SETTINGS.get(name, {}))
    assert threads() == before
    ops.linear(*many)
    assert threads() == before + 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no list of threads")
def test_little_work_wakes_no_thread() -> None:
    run("import test_strict as t; t.check_threads()", ops.active_isa())


def test_linear_writes_where_it_is_told() -> None:
    numbers = Numbers()
    x, packed, bias = numbers.plain(2, 3, 64), numbers.plain(2, 64, 32), numbers.plain(40)
    around = torch.full((2, 2, 3, 40), 7.0)
    y = ops.linear(x, packed, bias, out=around[1])
    assert torch.equal(y, ops.linear(x, packed, bias))
    assert y.data_ptr() == around[1].data_ptr() and (around[0] == 7).all()
    residual = numbers.plain(2, 3, 40)
    expected = ops.linear(x, packed, bias, residual=residual)
    assert ops.linear(x, packed, bias, residual=residual, out=residual) is residual
    assert torch.equal(residual, expected)


def test_linear_refuses_an_out_that_it_reads() -> None:
    width = 64
    memory = T(10000)

    def at(start: int, *shape: int) -> Tensor:
        return memory[start:][: math.prod(shape)].view(shape)

    arguments = {
        "x": T(3, 64),
        "packed": T(2, 64, 32),
        "bias": T(width),
        "norm weight": T(64),
        "norm bias": T(64),
        "residual": T(3, width),
    }

    def call(arguments: dict[str, Tensor], out: Tensor) -> None:
        x, packed, bias, norm_weight, norm_bias, residual = arguments.values()
        norm = norm_weight, norm_bias
        ops.linear(x, packed, bias, norm=norm, residual=residual, out=out)

    out = at(5000, 3, width)
    call(arguments, out)
    for name, argument in arguments.items():
        message = f"^out must not overlap {name}$"
        if name == "residual":
            message = "^out must be residual or not overlap it, got a part of it$"
        count = argument.numel()
        for start in (5000 - count + 1, 5001, 5000 + out.numel() - 1):
            with pytest.raises(RuntimeError, match=message):
                call({**arguments, name: at(start, *argument.shape)}, out)
        for start in (5000 - count, 5000 + out.numel()):
            call({**arguments, name: at(start, *argument.shape)}, out)
    with pytest.raises(RuntimeError, match="^out must not overlap x$"):
        call(arguments, arguments["x"])


def test_cache_errors() -> None:
    with pytest.raises(RuntimeError, match="^tokens must be at least 0, got -1"):
        ops.KVCache(-1, 1, 1)
    with pytest.raises(RuntimeError, match="^heads must be at least 1, got 0"):
        ops.KVCache(1, 0, 1)
    with pytest.raises(RuntimeError, match="^capacity must be at least 1, got 0"):
        ops.KVCache(1, 1, 0)
    cache, bias = ops.KVCache(1, 1, 2), T(1, 2, 2)
    for step in range(2):
        assert cache.steps_done == step
        ops.append_attention(T(1, 96), cache, bias, step=step)
        with pytest.raises(RuntimeError, match=f"^step must be {step + 1}, the cache's next, got"):
            ops.append_attention(T(1, 96), cache, bias, step=step)
    with pytest.raises(RuntimeError, match=r"^step must be 0 .. 1 \(G - 1\), got 2"):
        ops.append_attention(T(1, 96), cache, bias, step=2)
    assert cache.steps_done == 2
    for shape in ((1, 1, 2, 2, 32, 15), (1, 1, 1, 2, 32, 16), (1, 2, 2, 32, 16)):
        cache.data, cache.steps_done = torch.zeros(shape, dtype=torch.float16), 0
        with pytest.raises(RuntimeError, match=r"^cache must be \[ceil\(T / 16\), heads, 2, G"):
            ops.append_attention(T(1, 96), cache, bias, step=0)
    cache.data = torch.zeros(1, 1, 2, 2, 32, 16)
    with pytest.raises(RuntimeError, match="^cache must be float16, got float32"):
        ops.append_attention(T(1, 96), cache, bias, step=0)


def test_a_failed_append_does_not_count() -> None:
    cache = ops.KVCache(1, 1, 2)
    with pytest.raises(RuntimeError, match="^step_bias must be"):
        ops.append_attention(T(1, 96), cache, T(1, 1, 1), step=0)
    assert cache.steps_done == 0 and not cache.data.any()


def test_nothing_in_gives_nothing() -> None:
    for module in (ops, reference):
        arguments = good_arguments()
        _, packed, bias = arguments["linear"]
        for shape in ((0, 64), (3, 0, 64)):
            y = module.linear(T(shape), packed, bias, residual=T(*shape[:-1], 40))
            assert y.shape == (*shape[:-1], 40)
        assert module.layer_norm(T(0, 64), T(64), T(64)).shape == (0, 64)
        _, packed, bias = arguments["conv3x3"]
        for height, width in ((0, 5), (5, 0), (0, 0)):
            x = T(height, width, 4)
            assert module.conv3x3(x, packed, bias).shape == (height, width, 40)
            halves = -(-height // 2), -(-width // 2)
            assert module.conv3x3(x, packed, bias, stride=2).shape == (*halves, 40)
            assert module.depthwise3x3(x, T(9, 4), T(4)).shape == x.shape
            for shifted in (False, True):
                out = module.window_attention(T(height, width, 96), T(1, 225), shifted=shifted)
                assert out.shape == (height, width, 32)
        cache = module.KVCache(0, 2, 3)
        assert module.append_attention(T(0, 192), cache, T(2, 3, 3), step=0).shape == (0, 64)
        for y in (module.compand(T(0, 3)), module.leaky_relu(T(0, 3))):
            assert y.shape == (0, 3)
        assert module.add_half_tanh(T(0), T(0)).shape == (0,)


def test_inputs_are_left_alone() -> None:
    y_hat = torch.ones(20)
    ops.add_half_tanh(y_hat, torch.ones(20))
    assert (y_hat == 1).all()
