# SPDX-License-Identifier: MIT
"""The operators on CUDA tensors: the bits of the CPU, the stream and the device of the caller.

What needs no GPU to be run at all runs on the CPU too, so that these tests are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import test_strict
import torch
from test_ops import group
from test_strict import REGISTERED, Numbers
from torch import Tensor

from groupedmixer_ext import ops

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class OnDevice:
    """`ops`, whose tensors go to a device and back."""

    def __init__(self, device: str) -> None:
        self.device = device

    def KVCache(self, *sizes: int) -> ops.KVCache:
        return ops.KVCache(*sizes, device=self.device)

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        def call(*arguments: object, out: Tensor | None = None, **settings: object) -> Tensor:
            moved: dict[int, Tensor] = {}  # out may be residual, and is then

            def there(value: object) -> object:
                if isinstance(value, tuple):
                    return tuple(map(there, value))
                if isinstance(value, Tensor):
                    return moved.setdefault(id(value), value.to(self.device))
                return value

            if out is not None:
                settings["out"] = out
            keywords = {key: there(value) for key, value in settings.items()}
            result: Tensor = getattr(ops, name)(*map(there, arguments), **keywords)
            return result.cpu() if out is None else out.copy_(result)

        return call


@pytest.mark.parametrize("make", test_strict.CASE_MAKERS)
def test_layers_equal_the_reference(
    make: Callable[[], Iterator[test_strict.Case]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_strict, "ops", OnDevice(device))
    for case in test_strict.cases_of(make):
        test_strict.assert_same(case, case.call().cpu())


# Large enough for every shape of a kernel's tiles and for many blocks; (name, arguments without
# device, keywords).
def large_calls() -> Iterator[tuple[str, tuple[object, ...], dict[str, object]]]:
    plain = Numbers(7).plain
    for rows, depth, width in ((5000, 320, 100), (333, 1280, 320), (64, 320, 1280), (9, 96, 7)):
        x, weight, bias = plain(rows, depth), plain(width, depth), plain(width)
        norm = (plain(depth), plain(depth))
        yield "pack_weight", (weight,), {}
        packed = ops.pack_weight(weight)
        yield "linear", (x, packed, bias), {"activation": "gelu"}
        yield "linear", (x, packed, bias), {"norm": norm, "residual": plain(rows, width)}
        yield "layer_norm", (x, *norm), {}
    x, weight, bias = plain(90, 71, 48), plain(96, 48, 3, 3), plain(96)
    for stride in (1, 2):
        packed = ops.pack_conv3x3(weight)
        yield "conv3x3", (x, packed, bias), {"stride": stride, "activation": "leaky_relu"}
    yield "depthwise3x3", (plain(67, 90, 100), plain(9, 100), plain(100)), {}
    for shifted in (False, True):
        yield "window_attention", (plain(45, 51, 480), plain(5, 225)), {"shifted": shifted}
    x, y_hat = plain(300, 999), plain(300, 999)
    yield "compand", (x,), {}
    yield "leaky_relu", (x,), {}
    yield "add_half_tanh", (y_hat, x), {}
    y, mean, raw_scale, thresholds = group(1000, 321)
    yield "scale_indexes", (raw_scale, mean, thresholds), {}


def test_large_calls_equal_the_cpu(device: str) -> None:
    moved = OnDevice(device)
    for name, arguments, settings in large_calls():
        expected = getattr(ops, name)(*arguments, **settings)
        actual = getattr(moved, name)(*arguments, **settings)
        assert torch.equal(actual, expected), (name, settings)


def test_large_attention_equals_the_cpu(device: str) -> None:
    plain = Numbers(8).plain
    tokens, heads, steps = 1001, 5, 10
    bias = plain(heads, steps, steps)
    caches = ops.KVCache(tokens, heads, steps), ops.KVCache(tokens, heads, steps, device)
    for step in range(steps):
        qkv = plain(tokens, 96 * heads)
        expected, actual = (
            ops.append_attention(
                qkv.to(cache.data.device), cache, bias.to(cache.data.device), step=step
            )
            for cache in caches
        )
        assert torch.equal(actual.cpu(), expected)
    first, second = (test_strict.tokens_first(cache).cpu() for cache in caches)
    assert torch.equal(first.view(torch.int16), second.view(torch.int16))


def test_linear_in_place(device: str) -> None:
    plain = Numbers(9).plain
    x, packed, bias, residual = plain(50, 64), plain(2, 64, 32), plain(40), plain(50, 40)
    expected = ops.linear(x, packed, bias, residual=residual)
    x, packed, bias, residual = (tensor.to(device) for tensor in (x, packed, bias, residual))
    assert ops.linear(x, packed, bias, residual=residual, out=residual) is residual
    assert torch.equal(residual.cpu(), expected)


def test_nothing_in_gives_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_strict, "ops", OnDevice(device))
    test_strict.test_nothing_in_gives_nothing()


# --- what only a GPU can show ---------------------------------------------------------------------


def layer_calls(device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """A call of each operator that depends on x, [1024, 96]."""
    numbers = Numbers(10)

    def plain(*shape: int) -> Tensor:
        return numbers.plain(*shape).to(device)

    packed, bias, norm = plain(2, 96, 32), plain(40), (plain(96), plain(96))
    cache, step_bias = ops.KVCache(1024, 1, 3, device).data, plain(1, 3, 3)
    taps, table, kernel = plain(9, 96), plain(1, 225), plain(1, 9 * 96, 32)
    attention = REGISTERED.append_attention.default
    return {
        "pack_weight": ops.pack_weight,
        "linear": lambda x: ops.linear(x, packed, bias, activation="gelu", norm=norm),
        "layer_norm": lambda x: ops.layer_norm(x, *norm),
        "conv3x3": lambda x: ops.conv3x3(x.view(32, 32, 96), kernel, bias[:30].clone()),
        "depthwise3x3": lambda x: ops.depthwise3x3(x.view(32, 32, 96), taps, norm[0]),
        "window_attention": lambda x: ops.window_attention(x.view(32, 32, 96), table, shifted=True),
        "append_attention": lambda x: attention(x, cache, step_bias, 0),
        "compand": ops.compand,
        "leaky_relu": ops.leaky_relu,
        "add_half_tanh": lambda x: ops.add_half_tanh(x, x.clone()),
        "dequantize_group": lambda x: ops.dequantize_group(
            torch.ones_like(x, dtype=torch.int16), x
        ),
    }


NAMES = list(layer_calls("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_a_tensor_equal_the_cpu(name: str, device: str) -> None:
    x = Numbers(11).plain(1024, 96)
    actual = layer_calls(device)[name](x.to(device))
    assert torch.equal(actual.cpu(), layer_calls("cpu")[name](x))


class TestGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("name", NAMES)
    def test_operators_run_on_the_current_stream(self, name: str) -> None:
        call, x = layer_calls("cuda")[name], Numbers(12).plain(1024, 96)
        expected = call(x.cuda())
        late = torch.zeros_like(x, device="cuda")
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)  # on the null stream the operator would overtake this
            late.copy_(x.cuda())
            actual = call(late)
        torch.cuda.synchronize()
        assert torch.equal(actual, expected)

    @pytest.mark.parametrize("name", NAMES)
    def test_operators_are_captured_in_a_graph(self, name: str) -> None:
        call, numbers = layer_calls("cuda")[name], Numbers(13)
        x = numbers.plain(1024, 96).cuda()
        call(x)  # kernels are loaded by their first call, which a capture may not do
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call(x)
        for _ in range(2):
            x.copy_(numbers.plain(1024, 96))
            graph.replay()
            assert torch.equal(y, call(x))

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="only one CUDA device")
    @pytest.mark.parametrize("name", NAMES)
    def test_operators_run_on_the_device_of_their_tensors(self, name: str) -> None:
        x = Numbers(14).plain(1024, 96)
        expected = layer_calls("cpu")[name](x)
        assert torch.cuda.current_device() == 0
        actual = layer_calls("cuda:1")[name](x.to("cuda:1"))
        assert actual.device.index == 1 and torch.equal(actual.cpu(), expected)
        assert torch.cuda.current_device() == 0

    @pytest.mark.parametrize("name", test_strict.good_arguments())
    def test_tensors_of_two_devices_are_refused(self, name: str) -> None:
        good = test_strict.good_arguments()[name]
        settings = test_strict.SETTINGS.get(name, {})
        tensors = [i for i, value in enumerate(good) if isinstance(value, Tensor)]
        for elsewhere in tensors:
            if len(good) == 1:
                return
            arguments = list(good)
            arguments[elsewhere] = good[elsewhere].cuda()
            with pytest.raises(RuntimeError, match=r"^\w+ must be on the device of \w+, c"):
                getattr(ops, name)(*arguments, **settings)

    def test_misaligned_weights_are_refused(self) -> None:
        x, bias = torch.zeros(3, 64, device="cuda"), torch.zeros(32, device="cuda")
        packed = torch.zeros(1 + 64 * 32, device="cuda")[1:].view(1, 64, 32)
        with pytest.raises(RuntimeError, match="^packed must begin at a multiple of 16 bytes"):
            ops.linear(x, packed, bias)
        assert ops.linear(x, packed.clone(), bias).shape == (3, 32)
