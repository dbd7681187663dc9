# SPDX-License-Identifier: MIT
"""The operators against their twins in groupedmixer_ext.reference, on every instruction set."""

import ctypes
import importlib.util
import inspect
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import groupedmixer_ext
from groupedmixer_ext import _build_info, info, ops, rans, reference, tables

ROOT = Path(__file__).resolve().parent.parent


def group(*shape: int, seed: int = 0, device: str = "cpu") -> tuple[Tensor, ...]:
    """y, mean, raw_scale and thresholds, with the values where rounding goes wrong first."""
    random = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=random) * 3
    y = mean + torch.randn(shape, generator=random) * 20
    thresholds = torch.sort(torch.rand(63, generator=random) * 8).values
    raw_scale = torch.rand(shape, generator=random) * 9 - 0.5
    flat_y, flat_mean, flat_raw = y.flatten(), mean.flatten(), raw_scale.flatten()
    edges = [0.5, -0.5, 1.5, 2.5, -2.5, 32767.4, 32767.5, 1e30, -32768.5, -3e38, 0.49999997, 1e-40]
    count = min(len(edges), flat_y.numel())
    flat_y[:count] = torch.tensor(edges[:count])
    flat_mean[:count] = torch.tensor([0.0, -0.0] * 6)[:count]
    flat_raw[-1:] = thresholds[5]  # "strictly below" does not count an equal one
    if count == len(edges):
        flat_mean[count - 1] = -1e-41  # denormal
    tensors = (flat_y.view(shape), flat_mean.view(shape), flat_raw.view(shape), thresholds)
    return tuple(tensor.to(device) for tensor in tensors)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.is_contiguous()
        assert torch.equal(a, b)
        if a.dtype == torch.float32:  # torch.equal takes -0 for 0
            assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def check_all(device: str) -> None:
    for seed, shape in enumerate([(), (0,), (1,), (15,), (64,), (65,), (3, 5, 77), (4096,)]):
        y, mean, raw_scale, thresholds = group(*shape, seed=seed, device=device)
        dead_zone = torch.rand(64, generator=torch.Generator().manual_seed(seed)).to(device)
        for skip_below, zone in ((0, dead_zone), (7, dead_zone), (0, None), (7, None), (64, None)):
            arguments = (y, mean, raw_scale, thresholds, skip_below, zone)
            actual = ops.quantize_group(*arguments)
            assert_same(actual, reference.quantize_group(*arguments))
        symbols, indexes, y_hat = actual
        assert_same((ops.scale_indexes(raw_scale, mean, thresholds),), (indexes,))
        assert_same((ops.dequantize_group(symbols, mean),), (y_hat,))


def check_overflow(device: str) -> None:
    """Finite numbers whose difference is not."""
    y = torch.tensor([3e38, -3e38], device=device).repeat(50)
    arguments = (y, -y, torch.ones_like(y), torch.zeros(1, device=device), 0)
    actual = ops.quantize_group(*arguments)
    assert_same(actual, reference.quantize_group(*arguments))
    assert actual[0][:2].tolist() == [32767, -32768]


def check_not_finite(device: str) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        for position in (0, 31, 32, 99):
            for name in ("y", "mean", "raw_scale"):
                y, mean, raw_scale, thresholds = group(100, device=device)
                {"y": y, "mean": mean, "raw_scale": raw_scale}[name][position] = bad
                message = f"^{name} must be finite, got infinity or NaN"
                for module in (ops, reference):
                    with pytest.raises(RuntimeError, match=message):
                        module.quantize_group(y, mean, raw_scale, thresholds, 0)
                    if name != "y":
                        with pytest.raises(RuntimeError, match=message):
                            module.scale_indexes(raw_scale, mean, thresholds)


def check_float_modes() -> None:
    """The caller's floating-point mode neither changes results nor is changed."""
    y, mean, raw_scale, thresholds = group(100)
    symbols, _, y_hat = expected = ops.quantize_group(y, mean, raw_scale, thresholds, 0)

    def results() -> tuple[Tensor, ...]:
        return (
            *ops.quantize_group(y, mean, raw_scale, thresholds, 0),
            ops.dequantize_group(symbols, mean),
        )

    # A machine that can neither flush denormals nor round upwards has nothing to test.
    if torch.set_flush_denormal(True):
        try:
            flushed = results()
            tiny = torch.tensor([1e-40]) * 1
        finally:
            torch.set_flush_denormal(False)
        assert_same(flushed, (*expected, y_hat))
        assert tiny.item() == 0

    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
    if upward is not None:
        library = ctypes.CDLL("libm.so.6")
        assert library.fesetround(upward) == 0
        try:
            rounded = results()
            one, little = 1.0, math.ldexp(1.0, -60)
            above_one = one + little
        finally:
            library.fesetround(0)
        assert_same(rounded, (*expected, y_hat))
        assert above_one > 1 and one + little == 1


def test_ops_equal_the_reference(device: str) -> None:
    check_all(device)
    check_overflow(device)


@pytest.mark.parametrize("isa", ops.ISAS)
def test_every_variant_equals_the_reference(isa: str) -> None:
    if not ops.isa_available(isa):
        pytest.skip(f"this machine has no {isa}")
    program = (
        "import test_ops as t; t.check_all('cpu'); t.check_overflow('cpu'); "
        "t.check_not_finite('cpu'); t.check_float_modes(); print(t.ops.active_isa())"
    )
    assert run(program, isa).stdout.split()[-1] == isa


@pytest.mark.parametrize(
    ("isa", "message"),
    [
        ("sse9", "must be one of scalar, avx2, avx512, got 'sse9'"),
        ("", "must be one of scalar, avx2, avx512"),
    ],
)
def test_unknown_variant_is_an_error(isa: str, message: str) -> None:
    result = run("import groupedmixer_ext.ops as o; o.active_isa()", isa, check=False)
    assert result.returncode != 0 and message in result.stderr


def run(program: str, isa: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "GROUPEDMIXER_ISA": isa},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=check,
    )


def test_one_list_of_variants() -> None:
    assert ops.ISAS == _build_info.ISAS
    if ROOT.joinpath("setup.py").is_file():
        listed = "print(*(v.name for v in setup.isa_variants(platform.machine())))"
        result = subprocess.run(
            [sys.executable, "-c", f"import platform, setup; {listed}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert tuple(result.stdout.split()) == ops.ISAS


def test_numbers_that_are_not_finite(device: str) -> None:
    check_not_finite(device)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_coding_tensors_is_coding_arrays(dtype: torch.dtype) -> None:
    built = tables.gaussian_tables([0.5, 3.0])
    symbols = torch.arange(-30, 30, dtype=torch.int16).view(3, 20)
    indexes = (torch.arange(60) % 2).view(3, 20).to(dtype)
    stream = ops.rans_encode(symbols, indexes, built, lanes=16)
    assert stream.dtype == torch.uint8
    expected = rans.encode(symbols.numpy(), indexes.numpy(), built, lanes=16)
    assert bytes(stream.numpy()) == expected
    decoded = ops.rans_decode(stream, indexes, built)
    assert decoded.dtype == torch.int16 and torch.equal(decoded, symbols)


def test_coding_tensors_argument_errors() -> None:
    built = tables.gaussian_tables([1.0])
    symbols, indexes = torch.zeros(4, dtype=torch.int16), torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(TypeError, match="symbols must be of int16, got int32"):
        ops.rans_encode(symbols.int(), indexes, built)
    with pytest.raises(ValueError, match="symbols must be C-contiguous"):
        ops.rans_encode(symbols.repeat(2)[::2], indexes, built)
    with pytest.raises(RuntimeError, match="indexes must be on the CPU, got meta"):
        ops.rans_encode(symbols, indexes.to("meta"), built)
    with pytest.raises(TypeError, match="stream must be a contiguous uint8 tensor"):
        ops.rans_decode(symbols, indexes, built)
    with pytest.raises(rans.RansError, match="empty"):
        ops.rans_decode(indexes[:0], indexes, built)


def test_tensors_that_require_grad_are_refused() -> None:
    names = ("y", "mean", "raw_scale", "thresholds")
    for name in names:
        arguments = dict(zip(names, group(5), strict=True))
        arguments[name].requires_grad_()
        with pytest.raises(RuntimeError, match=f"^{name} must not require grad"):
            ops.quantize_group(**arguments, skip_below=0)
        with torch.no_grad():
            ops.quantize_group(**arguments, skip_below=0)
        del arguments["y"]
        if name != "y":
            with pytest.raises(RuntimeError, match=f"^{name} must not require grad"):
                ops.scale_indexes(**arguments)
    with pytest.raises(RuntimeError, match="^mean must not require grad"):
        ops.dequantize_group(torch.zeros(3, dtype=torch.int16), torch.zeros(3, requires_grad=True))


def test_cuda_tensors_in_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build_info, "CUDA", None)
    monkeypatch.setattr(_build_info, "CUDA_REASON", "no toolkit")
    message = r"^symbols must be on the CPU, .* without CUDA \(no toolkit\); .* pip install"
    with FakeTensorMode():  # has CUDA tensors on every machine
        symbols = torch.zeros(3, dtype=torch.int16, device="cuda")
        with pytest.raises(RuntimeError, match=message):
            ops.dequantize_group(symbols, torch.zeros(3, device="cuda"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"y": a["y"].double()}, "y must be float32, got float64"),
        (lambda a: {"y": a["y"].t()}, r"y must be contiguous, got shape \[5, 4\]"),
        (lambda a: {"mean": a["mean"][0]}, r"mean must have the shape of y, \[4, 5\], got \[5\]"),
        (lambda a: {"raw_scale": a["raw_scale"].half()}, "raw_scale must be float32, got float16"),
        (lambda a: {"thresholds": torch.zeros(256)}, r"T <= 255, got \[256\]"),
        (lambda a: {"thresholds": torch.zeros(1, 1)}, r"must be \[T\] .* got \[1, 1\]"),
        (lambda a: {"skip_below": 65}, "skip_below must be 0 .. 64 .* got 65"),
        (lambda a: {"skip_below": -1}, "skip_below must be 0 .. 64 .* got -1"),
        (lambda a: {"dead_zone": torch.zeros(63)}, r"dead_zone must be \[64\] .* got \[63\]"),
        (lambda a: {"dead_zone": torch.zeros(64).half()}, "dead_zone must be float32"),
    ],
)
def test_quantize_group_argument_errors(change: Callable, message: str) -> None:
    names = ("y", "mean", "raw_scale", "thresholds")
    arguments = {**dict(zip(names, group(4, 5), strict=True)), "skip_below": 0}
    with pytest.raises(RuntimeError, match=message):
        ops.quantize_group(**{**arguments, **change(arguments)})


def test_dequantize_group_argument_errors() -> None:
    with pytest.raises(RuntimeError, match="symbols must be int16, got int32"):
        ops.dequantize_group(torch.zeros(3, dtype=torch.int32), torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"mean must have the shape of symbols, \[3\], got \[\]"):
        ops.dequantize_group(torch.zeros(3, dtype=torch.int16), torch.zeros(()))


def test_a_dead_zone_keeps_what_lies_on_its_border() -> None:
    y = torch.tensor([0.75, -0.75, 0.7499999, -0.7499999, 1.2, -0.6])
    thresholds, raw_scale = torch.tensor([0.0]), torch.tensor([1.0, 1, 1, 1, 1, -1])
    symbols, _, _ = ops.quantize_group(
        y, torch.zeros(6), raw_scale, thresholds, 0, torch.tensor([0.5, 0.75])
    )
    assert symbols.tolist() == [1, -1, 0, 0, 1, -1]


def test_without_thresholds_there_is_one_table() -> None:
    y, mean, raw_scale, _ = group(20)
    _, indexes, _ = ops.quantize_group(y, mean, raw_scale, torch.zeros(0), 0)
    assert not indexes.any()


def operator_cases(device: str) -> dict[str, list[tuple[object, ...]]]:
    """Arguments of every registered operator: the shapes it is made for, and odd ones."""
    random = torch.Generator().manual_seed(0)

    def plain(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    def linear(rows: tuple[int, ...], k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        return plain(*rows, k), plain((n + 31) // 32, k, 32), plain(n)

    def cache(tokens: int, heads: int, capacity: int) -> Tensor:
        return ops.KVCache(tokens, heads, capacity, device).data

    groups = [group(*shape, device=device) for shape in ((6, 7), (), (0, 3), (1, 4, 5, 16))]
    no_norm = (None, None)
    norm = (plain(64), plain(64))
    return {
        "isa_names": [()],
        "active_isa": [()],
        "isa_available": [(index,) for index in range(len(ops.ISAS))],
        "quantize_group": [
            *((*tensors, 3, None) for tensors in groups),
            *((*tensors, 0, plain(64).abs()) for tensors in groups),
        ],
        "scale_indexes": [(raw, mean, edges) for _, mean, raw, edges in groups],
        "dequantize_group": [(y.clamp(-9, 9).short(), mean) for y, mean, _, _ in groups],
        "pack_weight": [(plain(128, 96),), (plain(5, 7),), (plain(1, 1),), (plain(33, 64),)],
        "linear": [
            (*linear((3,), 64, 40), "none", None, *no_norm),
            (*linear((2, 3, 5), 64, 32), "gelu", plain(2, 3, 5, 32), *norm),
            (*linear((), 7, 1), "leaky_relu", None, *no_norm),
            (*linear((0,), 64, 33), "none", plain(0, 33), *norm),
        ],
        "linear_into": [
            (*linear((3,), 64, 40), "none", None, *no_norm, plain(3, 40)),
            (*linear((2, 5), 64, 32), "gelu", plain(2, 5, 32), *norm, plain(2, 5, 32)),
            (*linear((0,), 1, 1), "leaky_relu", None, *no_norm, plain(0, 1)),
        ],
        "layer_norm": [(plain(*rows, 64), *norm) for rows in ((3,), (2, 5), (), (0,))],
        "conv3x3": [
            (plain(5, 6, 4), plain(2, 36, 32), plain(40), 2, "leaky_relu"),
            (plain(8, 8, 32), plain(1, 288, 32), plain(32), 1, "gelu"),
            (plain(1, 1, 1), plain(1, 9, 32), plain(1), 2, "none"),
            (plain(0, 3, 4), plain(1, 36, 32), plain(3), 2, "none"),
        ],
        "depthwise3x3": [
            (plain(*shape), plain(9, shape[2]), plain(shape[2]))
            for shape in ((5, 6, 4), (1, 1, 1), (0, 4, 33), (8, 8, 96))
        ],
        "window_attention": [
            (plain(height, width, 96 * heads), plain(heads, 225), shifted)
            for height, width, heads in ((5, 6, 1), (16, 8, 4), (1, 1, 1), (9, 17, 2), (0, 3, 1))
            for shifted in (False, True)
        ],
        "append_attention": [
            (plain(tokens, 96 * heads), cache(tokens, heads, steps), plain(heads, steps, steps), at)
            for tokens, heads, steps, at in (
                (20, 1, 3, 0),
                (16, 4, 16, 15),
                (1, 2, 1, 0),
                (33, 3, 5, 2),
                (0, 1, 2, 1),
            )
        ],
        "compand": [(plain(*shape),) for shape in ((3, 64), (), (0,), (7,))],
        "leaky_relu": [(plain(*shape),) for shape in ((3, 64), (), (0,), (7,))],
        "add_half_tanh": [(plain(*shape), plain(*shape)) for shape in ((3, 64), (), (0,), (7,))],
    }


REGISTERED = sorted(
    name.removeprefix("groupedmixer::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("groupedmixer::")
)


def test_every_operator_has_cases() -> None:
    """A new operator is checked by the tests below, or this one fails."""
    assert sorted(operator_cases("cpu")) == REGISTERED


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name: str, device: str) -> None:
    """Schema, autograd registration, the fake (shape, dtype, strides) and AOT dispatch."""
    cases = operator_cases(device)[name]
    if not any(isinstance(argument, Tensor) for argument in cases[0]) and device != "cpu":
        pytest.skip("takes no tensors: the same on every device")
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if name != "isa_names":  # opcheck compares what AOT dispatch returns, and cannot compare str
        tests.append("test_aot_dispatch_dynamic")
    for arguments in cases:
        operator = getattr(torch.ops.groupedmixer, name).default
        torch.library.opcheck(operator, arguments, test_utils=tests)


WITHOUT_TENSORS = {"isa_names", "active_isa", "isa_available"}


@pytest.mark.parametrize("name", sorted({*REGISTERED} - WITHOUT_TENSORS))
def test_every_operator_has_a_fake(name: str) -> None:
    entry = f"groupedmixer::{name}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(entry, "Meta")


@pytest.mark.parametrize("name", sorted({*ops.__all__} - {"ISAS"}))
def test_docstrings_are_numpydoc_with_shapes(name: str) -> None:
    documented = getattr(ops, name)
    text = inspect.getdoc(documented) or ""
    parameters = [
        parameter
        for parameter in inspect.signature(documented).parameters.values()
        if parameter.name != "self"
    ]
    summary, *_ = text.splitlines()
    assert summary.endswith(".")
    sections = re.split(r"^(\w+)\n-+$", text, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    if not inspect.isclass(documented):
        assert "Returns" in found
    listed = found.get("Parameters", "")
    for parameter in parameters:
        entry = re.search(rf"^(?:\w+, )*{parameter.name}(?:, \w+)* : .*$", listed, re.MULTILINE)
        assert entry, f"{name}: {parameter.name} is not documented"
        if "Tensor" in str(parameter.annotation):
            shape = r"(?:tensors?|pair).*# \[.*\]"
            assert re.search(shape, entry[0]), f"{name}: {parameter.name} lacks type or shape"
    if "Tensor" in str(inspect.signature(documented).return_annotation):
        results = re.findall(r"^\w+ : .*$", found["Returns"], re.MULTILINE)
        assert results
        for result in results:
            assert re.search(r" : \w+ tensor  # \[.*\]", result), result


def all_operators(
    x: Tensor,  # [8, 9, 32]
    weight: Tensor,  # [96, 32]
    kernel: Tensor,  # [32, 32, 3, 3]
    biases: Tensor,  # [96]
    window_bias: Tensor,  # [1, 225]
    step_bias: Tensor,  # [1, 2, 2]
    cache: ops.KVCache,
) -> tuple[Tensor, ...]:
    """A program with every operator that takes tensors, with plain PyTorch between them."""
    packed, bias = ops.pack_weight(weight), biases[:32].contiguous()
    norm = (bias + 1, bias)
    x = ops.conv3x3(x, ops.pack_conv3x3(kernel), bias, activation="leaky_relu") * 2
    x = ops.depthwise3x3(x, kernel[0, 0].reshape(9, 1).repeat(1, 32), bias)
    x = ops.compand(ops.layer_norm(x, *norm)) + x
    qkv = ops.linear(x, packed, biases, activation="gelu", norm=norm)
    x = x + ops.window_attention(qkv, window_bias, shifted=True)
    for step in range(2):
        qkv = ops.linear(x.flatten(0, 1), packed, biases, out=torch.empty(72, 96, device=x.device))
        x = x + ops.append_attention(qkv, cache, step_bias, step=step).view(x.shape)
    x = ops.add_half_tanh(x, ops.leaky_relu(x))
    edges = torch.linspace(-1, 1, 9, device=x.device)
    symbols, indexes, y_hat = ops.quantize_group(x * 5, x, x.sin(), edges, 2)
    again = ops.scale_indexes(x.sin(), x, edges)
    return symbols, indexes, y_hat, again, ops.dequantize_group(symbols, x)


def check_compiled(device: str, **options: object) -> None:
    """That one graph holds the program, and gives what it gives without compilation."""
    random = torch.Generator().manual_seed(1)
    shapes = ((8, 9, 32), (96, 32), (32, 32, 3, 3), (96,), (1, 225), (1, 2, 2))
    tensors = [torch.randn(shape, generator=random).to(device) * 0.2 for shape in shapes]
    caches = [ops.KVCache(72, 1, 2, device) for _ in range(2)]
    torch._dynamo.reset()
    with torch.no_grad():
        expected = all_operators(*tensors, caches[0])
        actual = torch.compile(all_operators, fullgraph=True, **options)(*tensors, caches[1])
    assert caches[1].steps_done == 2 and caches[1].data.any()
    torch.testing.assert_close(caches[1].data, caches[0].data)
    if options["backend"] == "aot_eager":
        assert_same(actual, expected)
    # inductor computes what lies between the operators in its own way
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-3, atol=1e-3)
    assert_same(actual[4:], actual[2:3])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_every_operator(device: str, dynamic: bool) -> None:
    check_compiled(device, backend="aot_eager", dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_compile_with_inductor(device: str) -> None:
    check_compiled(device, backend="inductor")


def test_compiled_code_calls_the_coder_outside_the_graph() -> None:
    built = tables.gaussian_tables([2.0])
    encode, decode = map(torch.compiler.disable, (ops.rans_encode, ops.rans_decode))

    def coded(x: Tensor) -> tuple[Tensor, Tensor]:
        symbols = (x * 3).round().short()
        indexes = torch.zeros_like(symbols, dtype=torch.uint8)
        stream = encode(symbols, indexes, built)
        return stream, decode(stream, indexes, built) + 1

    x = torch.linspace(-2, 2, 50)
    torch._dynamo.reset()
    assert_same(torch.compile(coded, backend="aot_eager")(x), coded(x))


def test_info_names_what_runs() -> None:
    output = subprocess.run(
        [sys.executable, "-m", "groupedmixer_ext.info"], capture_output=True, text=True, check=True
    ).stdout
    assert f"variant chosen      {ops.active_isa()}" in output
    assert torch.__version__ in output
    built = importlib.util.find_spec("groupedmixer_ext._engine_cuda") is not None
    assert ("engine for GPUs     not built" in output) != built


def test_info_reports_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "device_count", fail)
    monkeypatch.setattr(ops, "active_isa", fail)
    monkeypatch.delattr(groupedmixer_ext, "_rans", raising=False)
    monkeypatch.setitem(sys.modules, "groupedmixer_ext._rans", None)
    facts = info.collect()
    assert facts["CUDA devices"].startswith("not usable: OSError: libcudart")
    assert facts["kernels"].startswith("not usable: OSError: libcudart")
    assert facts["coder"].startswith("not usable: ")
    assert facts["torch"].startswith(torch.__version__)
