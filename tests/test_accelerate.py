# SPDX-License-Identifier: MIT
"""groupedmixer.accelerate against compressai itself, and the coder under it against compressai's.

compressai's own coder reads and writes out of bounds where a stream or a number of symbols is not
what it expects, so it is only given what it can take.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compressai import ans
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.entropy_models.entropy_models_vbr import EntropyBottleneckVbr
from compressai.latent_codecs import (
    EntropyBottleneckLatentCodec,
    HyperLatentCodec,
    HyperpriorLatentCodec,
    RasterScanLatentCodec,
)
from compressai.layers import MaskedConv2d
from compressai.models import (
    Cheng2020Anchor,
    CompressionModel,
    FactorizedPrior,
    JointAutoregressiveHierarchicalPriors,
    MeanScaleHyperprior,
    ScaleHyperprior,
    SimpleVAECompressionModel,
)
from compressai.models.base import get_scale_table
from compressai.models.sensetime import Elic2022Official
from compressai.models.vbr import JointAutoregressiveHierarchicalPriorsVbr, ScaleHyperpriorVbr
from torch import Tensor, nn

import groupedmixer
from groupedmixer.compressai_formats import FORMATS
from groupedmixer_ext import compressai_rans
from groupedmixer_ext.rans import RansError

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # cdfs, sizes, offsets


# ---- the coder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaussian() -> GaussianConditional:
    conditional = GaussianConditional(None)
    conditional.update_scale_table(get_scale_table())
    return conditional


def arrays_of(model: Any) -> Arrays:
    buffers = (model._quantized_cdf, model._cdf_length, model._offset)
    cdfs, sizes, offsets = (buffer.int().numpy() for buffer in buffers)
    return cdfs, sizes, offsets


def group(seed: int, count: int, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Symbols of all tables, some far outside."""
    random = np.random.default_rng(seed)
    cdfs, sizes, offsets = arrays
    indexes = random.integers(0, len(cdfs), count).astype(np.int32)
    wide = 0.2 * (sizes[indexes] - 1) * random.standard_cauchy(count)
    symbols = np.rint(wide).clip(-(2.0**26), 2.0**26).astype(np.int32)
    return symbols, indexes


def theirs(symbols: np.ndarray, indexes: np.ndarray, arrays: Arrays) -> bytes:
    lists = (array.tolist() for array in (symbols, indexes, *arrays))
    data: bytes = ans.RansEncoder().encode_with_indexes(*lists)
    return data


def example() -> compressai_rans.Tables:
    return compressai_rans.Tables(
        np.array([[0, 16384, 49152, 57344, 65536]], np.int32),
        np.array([5], np.int32),
        np.array([-1], np.int32),
    )


@pytest.mark.parametrize("count", [2, 3, 100, 20_000])
@pytest.mark.parametrize("index_type", [np.uint8, np.int32])
def test_bytes_are_compressais(count: int, index_type: Any, gaussian: Any) -> None:
    arrays = arrays_of(gaussian)
    tables = compressai_rans.Tables(*arrays)
    symbols, indexes = group(count, count, arrays)
    expected = theirs(symbols, indexes, arrays)
    indexes = indexes.astype(index_type)
    assert compressai_rans.encode(symbols, indexes, tables) == expected
    assert np.array_equal(compressai_rans.decode(expected, indexes, tables), symbols)


def test_every_distance_from_a_table(gaussian: Any) -> None:
    arrays = arrays_of(gaussian)
    tables = compressai_rans.Tables(*arrays)
    powers = [sign * 2**bits + by for bits in range(27) for sign in (-1, 1) for by in (-1, 0, 1)]
    beyond = np.array([2**27, -(2**27), 2**30 - 5000, 5000 - 2**30], np.int32)  # compressai hangs
    for index in (0, 20, 63):
        _, size, offset = (int(array[index]) if array.ndim == 1 else 0 for array in arrays)
        edges = np.array([offset, offset + size - 2])
        symbols = np.concatenate([edge + np.array(powers) for edge in edges]).astype(np.int32)
        indexes = np.full(symbols.size, index, np.int32)
        expected = theirs(symbols, indexes, arrays)
        assert compressai_rans.encode(symbols, indexes, tables) == expected
        assert np.array_equal(compressai_rans.decode(expected, indexes, tables), symbols)
        data = compressai_rans.encode(beyond, indexes[:4].copy(), tables)
        lists = (array.tolist() for array in (indexes[:4], *arrays))
        assert ans.RansDecoder().decode_with_indexes(data, *lists) == beyond.tolist()


def test_every_count_divides_exactly() -> None:
    """Two slots of c and 65536 - c: all reciprocals, states of all sizes."""
    counts = np.arange(1, 65536, 41, dtype=np.int32)
    cdfs = np.stack([0 * counts, counts, 0 * counts + 65536], 1)
    arrays = (cdfs, np.full(len(cdfs), 3, np.int32), np.zeros(len(cdfs), np.int32))
    tables = compressai_rans.Tables(*arrays)
    random = np.random.default_rng(0)
    for seed in range(3):
        indexes = random.integers(0, len(counts), 5000).astype(np.int32)
        symbols = (random.random(5000) < (0.02, 0.5, 0.98)[seed]).astype(np.int32)
        data = theirs(symbols, indexes, arrays)
        assert compressai_rans.encode(symbols, indexes, tables) == data
        assert np.array_equal(compressai_rans.decode(data, indexes, tables), symbols)


def test_groups_may_be_cut_anywhere_and_be_empty(gaussian: Any) -> None:
    arrays = arrays_of(gaussian)
    tables = compressai_rans.Tables(*arrays)
    symbols, indexes = group(0, 1000, arrays)
    encoder = compressai_rans.Encoder()
    for part in (slice(0, 0), slice(0, 7), slice(7, 7), slice(7, 1000)):
        encoder.push(symbols[part], indexes[part], tables)
    data = encoder.finish()
    assert data == encoder.finish() == theirs(symbols, indexes, arrays)
    decoder = compressai_rans.Decoder(bytearray(data))
    parts = [decoder.pop(indexes[a:b], tables) for a, b in ((0, 1), (1, 1), (1, 600), (600, 1000))]
    decoder.finish()
    assert np.array_equal(np.concatenate(parts), symbols)


def test_nothing_at_all_is_a_state() -> None:
    nothing = np.zeros((0, 3), np.int32)
    data = compressai_rans.encode(nothing, nothing, example())
    assert data == bytes.fromhex("00000080 00000000")
    assert compressai_rans.decode(data, nothing, example()).shape == (0, 3)


def test_damaged_streams_are_errors_or_numbers(gaussian: Any) -> None:
    arrays = arrays_of(gaussian)
    tables = compressai_rans.Tables(*arrays)
    symbols, indexes = group(1, 300, arrays)
    data = compressai_rans.encode(symbols, indexes, tables)
    for end in range(len(data)):
        with pytest.raises(RansError):
            compressai_rans.decode(data[:end], indexes, tables)
    with pytest.raises(RansError, match="4 bytes are left over"):
        compressai_rans.decode(data + bytes(4), indexes, tables)
    random = np.random.default_rng(0)
    noticed = 0
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[random.integers(0, len(data))] ^= 1 << random.integers(0, 8)
        try:
            compressai_rans.decode(damaged, indexes, tables)
        except RansError:
            noticed += 1
    assert noticed > 1000  # not in raw digits, which leave the state alone
    for _ in range(500):
        with pytest.raises(RansError):
            compressai_rans.decode(random.bytes(200), indexes, tables)
    decoder = compressai_rans.Decoder(data[:-4])
    for _ in range(2):
        with pytest.raises(RansError, match="ends before|unusable"):
            decoder.pop(indexes, tables)


def test_hostile_escapes_end() -> None:
    """A state of ones: the escape, then digits without end."""
    indexes = np.zeros(10, np.int32)
    ones = b"\xff" * 7 + b"\x7f" + b"\xff" * 400
    with pytest.raises(RansError, match="at most 8 digits"):
        compressai_rans.decode(ones, indexes, example())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cdfs": np.zeros((0, 5), np.int32), "sizes": [], "offsets": []}, "at least 1 table"),
        ({"sizes": [6]}, r"sizes must be 2 \.\. 5, got 6"),
        ({"sizes": [1]}, r"sizes must be 2 \.\. 5, got 1"),
        ({"sizes": [4]}, "must run from 0 to 65536, got 0 to 57344"),
        ({"sizes": [5, 5]}, "one element a table"),
        ({"offsets": [2**30 + 1]}, "offsets must be within 2\\^30 of 0"),
        ({"cdfs": np.array([[0, 9, 8, 9, 65536]], np.int32)}, "got -1 at element 2"),
        ({"cdfs": np.array([[0, 0, 65536, 65536, 65536]], np.int32)}, "got 65536 at element 2"),
        ({"cdfs": np.array([0, 65536], np.int32)}, "2 dimension"),
        ({"cdfs": np.array([[0.0, 65536]])}, "cdfs must be of int32, got float64"),
    ],
)
def test_wrong_tables_are_errors(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {
        "cdfs": np.array([[0, 16384, 49152, 57344, 65536]], np.int32),
        "sizes": [5],
        "offsets": [-1],
    }
    arguments |= change
    arguments |= {name: np.array(arguments[name], np.int32) for name in ("sizes", "offsets")}
    with pytest.raises((TypeError, ValueError), match=match):
        compressai_rans.Tables(**arguments)


def test_wrong_symbols_are_errors() -> None:
    tables = example()

    def encode(symbols: Any, indexes: Any) -> bytes:
        return compressai_rans.encode(symbols, indexes, tables)

    zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
    for index in (1, -1, 2**31 - 1):
        with pytest.raises(ValueError, match=rf"indexes must be 0 \.\. 0, got {index} at"):
            encode(zero, index * one)
        with pytest.raises(ValueError, match=rf"indexes must be 0 \.\. 0, got {index} at"):
            compressai_rans.decode(encode(zero, zero), index * one, tables)
    for symbol in (2**30 + 2, -(2**30) - 2, 2**31 - 1, -(2**31)):
        with pytest.raises(ValueError, match=f"closer than 2\\^30 .* got {symbol} at position 0"):
            encode(np.array([symbol], np.int32), zero)
    for symbol in (2**30 + 1, -(2**30) - 1):
        value = np.array([symbol], np.int32)
        assert compressai_rans.decode(encode(value, zero), zero, tables) == value
    with pytest.raises(ValueError, match="shape of symbols"):
        encode(zero, np.zeros(2, np.int32))
    with pytest.raises(TypeError, match="symbols must be of int32, got int64"):
        encode(zero.astype(np.int64), zero)
    with pytest.raises(TypeError, match="indexes must be of uint8 or int32"):
        encode(zero, zero.astype(np.uint16))
    with pytest.raises(ValueError, match="C-contiguous"):
        encode(np.zeros((2, 3), np.int32).T, np.zeros((3, 2), np.int32))
    with pytest.raises(TypeError, match="tables must be"):
        compressai_rans.encode(zero, zero, None)  # type: ignore[arg-type]
    flat = compressai_rans.Tables(np.array([[0, 9, 9, 65536]], np.int32), 4 * one, zero)
    with pytest.raises(ValueError, match=r"table 0 does not rise at 1 \(position 2\)"):
        compressai_rans.encode(np.array([0, 5, 1], np.int32), np.zeros(3, np.int32), flat)
    data = compressai_rans.encode(zero, zero, flat)
    assert compressai_rans.decode(data, zero, flat) == 0


def test_the_numpy_face_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['compressai'] = None\n"
        "import doctest; from groupedmixer_ext import compressai_rans\n"
        "assert doctest.testmod(compressai_rans).failed == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_decoder_in_use_is_an_error(gaussian: Any) -> None:
    arrays = arrays_of(gaussian)
    tables = compressai_rans.Tables(*arrays)
    symbols, indexes = group(2, 200_000, arrays)
    data = compressai_rans.encode(symbols, indexes, tables)
    found: list[Any] = []

    def decode() -> None:
        found.append(compressai_rans.decode(data, indexes, tables))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(item, symbols) for item in found)


@pytest.mark.parametrize(
    "table",
    [
        get_scale_table().tolist(),
        [0.5],
        [0.5, 0.6],
        [0.11, 0.1100001, 0.1100002, 7.0, 1e30],
        np.linspace(1, 1.05, 200).tolist(),
    ],
)
def test_scale_indexes_are_compressais(table: list[float]) -> None:
    torch.manual_seed(0)
    conditional = GaussianConditional(table)
    scales = torch.exp(4 * torch.randn(2, 3, 50, 40))
    around = torch.tensor(table)
    near = [around, around.nextafter(around * 0), around.nextafter(around * 2), -around]
    odd = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 0.11, -1.0])
    for values in (scales, scales.transpose(1, 3), torch.cat([*near, odd])[None], scales[:0]):
        expected = conditional.build_indexes(values)
        found = groupedmixer.accelerate(copy.deepcopy(conditional)).build_indexes(values)
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_scales_that_compressai_has_to_compare_itself() -> None:
    plain = GaussianConditional([0.5, 1.0, 2.0])
    plain.scale_table = torch.tensor([2.0, 0.5, 1.0])  # not ascending
    fast = groupedmixer.accelerate(copy.deepcopy(plain))
    for scales in (torch.rand(1, 5) * 3, (torch.rand(1, 5) * 3).double(), torch.rand(1, 5).half()):
        assert torch.equal(fast.build_indexes(scales), plain.build_indexes(scales))
    plain.scale_table = fast.scale_table = torch.tensor([0.1, 0.2, 0.3])
    scales = torch.rand(1, 50, requires_grad=True)
    assert torch.equal(fast.build_indexes(scales), plain.build_indexes(scales))


# ---- models -------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, stride: int = 2) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 5, stride=stride, padding=2)


def deconv(inputs: int, outputs: int, stride: int = 2) -> nn.Module:
    padding = stride - 1
    return nn.ConvTranspose2d(inputs, outputs, 5, stride, 2, output_padding=padding)


class RasterScan(SimpleVAECompressionModel):
    """A raster scan under a hyperprior."""

    def __init__(self) -> None:
        super().__init__()
        self.g_a = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8))
        self.g_s = nn.Sequential(deconv(8, 8), deconv(8, 8), deconv(8, 3))
        y = RasterScanLatentCodec(
            GaussianConditional(None), nn.Conv2d(32, 16, 1), MaskedConv2d(8, 16, 5, padding=2)
        )
        hyper = HyperLatentCodec(EntropyBottleneck(6), h_a=conv(8, 6), h_s=deconv(6, 16))
        self.latent_codec = HyperpriorLatentCodec(latent_codec={"y": y, "hyper": hyper})


class OwnCoders(CompressionModel):
    """Calls the coders through their module, as methods of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conditional = GaussianConditional(None)

    def _lists(self) -> list[Any]:
        model = self.conditional
        return [b.tolist() for b in (model.quantized_cdf, model.cdf_length, model.offset)]

    @staticmethod
    def _encoder() -> Any:
        return ans.BufferedRansEncoder()

    @classmethod
    def _once(cls, *arguments: Any) -> Any:
        return (lambda: ans.RansEncoder().encode_with_indexes(*arguments))()

    def compress(self, y: Tensor) -> Any:
        symbols = y.int().flatten(1).tolist()
        indexes = [[i % 64 for i in range(len(item))] for item in symbols]
        lists = self._lists()
        encoder = self._encoder()
        for item, of_item in zip(symbols, indexes, strict=True):
            encoder.encode_with_indexes(item, of_item, *lists)
        once = [self._once(a, b, *lists) for a, b in zip(symbols, indexes, strict=True)]
        return {"strings": [[encoder.flush()], once], "shape": y.shape}

    def decompress(self, strings: Any, shape: Any) -> Any:
        decoder = ans.RansDecoder()
        decoder.set_stream(strings[0][0])
        indexes = [i % 64 for i in range(shape[1:].numel())]
        lists = self._lists()
        together = [decoder.decode_stream(indexes, *lists) for _ in range(shape[0])]
        single = [decoder.decode_with_indexes(s, indexes, *lists) for s in strings[1]]
        assert together == single
        return {"x_hat": torch.tensor(together).reshape(shape)}


def factorised_codec() -> SimpleVAECompressionModel:
    model = SimpleVAECompressionModel()
    model.g_a, model.g_s = conv(3, 6), deconv(6, 3)
    model.latent_codec = EntropyBottleneckLatentCodec(channels=6)
    return model


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "factorized": lambda: FactorizedPrior(8, 12),
    "factorised codec": factorised_codec,
    "scale": lambda: ScaleHyperprior(8, 12),
    "mean-scale": lambda: MeanScaleHyperprior(8, 12),
    "autoregressive": lambda: JointAutoregressiveHierarchicalPriors(8, 12),
    "cheng2020": lambda: Cheng2020Anchor(8),
    "raster scan": RasterScan,
    "elic": lambda: Elic2022Official(8, 12, groups=[4, 8]),
    "variable rate": lambda: ScaleHyperpriorVbr(8, 12),
    "variable rate, autoregressive": lambda: JointAutoregressiveHierarchicalPriorsVbr(8, 12),
}


def make(architecture: str) -> Any:
    """With latents large enough that some symbols leave their tables."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]().eval()
    for name, part in model.named_modules():
        if name.split(".")[-1] in ("g_a", "h_a"):
            last = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)][-1]
            last.weight.data.mul_(30)
    model.update(force=True)
    return model


def inputs(model: Any) -> Tensor:
    torch.manual_seed(1)
    batch = 1 if isinstance(model, RasterScan) else 2  # compressai's mixes up the strings of more
    return 5 * torch.rand(batch, 3, 64, 64)


def options(model: Any) -> dict[str, Any]:
    vbr = (ScaleHyperpriorVbr, JointAutoregressiveHierarchicalPriorsVbr)
    return {"stage": 2, "s": 1} if isinstance(model, vbr) else {}


def coded(model: Any) -> Any:
    with torch.no_grad():
        return model.compress(inputs(model), **options(model))


def decoded(model: Any, out: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.decompress(out["strings"], out["shape"], **options(model))["x_hat"]
    return result


def strings(out: Any) -> list[bytes]:
    return [string for batch in out["strings"] for string in batch]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_strings_are_compressais_both_ways(architecture: str) -> None:
    plain = make(architecture)
    fast = copy.deepcopy(plain)
    assert groupedmixer.accelerate(fast) is fast
    out = coded(plain)
    assert sum(map(len, strings(out))) > 100
    found = coded(fast)
    assert strings(found) == strings(out) and found.keys() == out.keys()
    x_hat = decoded(plain, out)
    assert torch.equal(decoded(fast, out), x_hat)

    groupedmixer.accelerate(fast, "groupedmixer")
    narrow = coded(fast)
    assert strings(narrow) != strings(out)
    assert sum(map(len, strings(narrow))) < 1.5 * sum(map(len, strings(out)))
    assert torch.equal(decoded(fast, narrow), x_hat)

    assert groupedmixer.accelerate(fast, None) is fast
    assert [type(m) for m in fast.modules()] == [type(m) for m in plain.modules()]
    assert all(
        vars(m).keys() == vars(p).keys()
        for m, p in zip(fast.modules(), plain.modules(), strict=True)
    )
    assert strings(coded(fast)) == strings(out)


@pytest.mark.parametrize("format", FORMATS)
def test_models_that_call_the_coders_in_other_ways(format: str) -> None:
    plain = OwnCoders()
    plain.update()
    y = torch.round(torch.randn(3, 4, 5, 6) * 8)
    out = plain.compress(y)
    fast = groupedmixer.accelerate(copy.deepcopy(plain), format)
    found = fast.compress(y)
    assert (found == out) == (format == "compressai")
    assert torch.equal(fast.decompress(**found)["x_hat"], y.int())


@pytest.mark.parametrize("qs", [None, torch.tensor(0.7)])
def test_variable_rate_bottleneck(qs: Tensor | None) -> None:
    torch.manual_seed(0)
    plain = EntropyBottleneckVbr(5)
    plain.update_variable(force=True, qs=1.0 if qs is None else qs)
    x = 20 * torch.randn(2, 5, 6, 7)
    fast = groupedmixer.accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        out = plain.compress(x, qs)
        assert fast.compress(x, qs) == out
        assert torch.equal(fast.decompress(out, (6, 7), qs), plain.decompress(out, (6, 7), qs))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("architecture", ["mean-scale", "autoregressive", "raster scan"])
def test_copies_pickles_and_states(architecture: str, format: str) -> None:
    model = groupedmixer.accelerate(make(architecture), format)
    out = coded(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        pickle.loads(pickle.dumps(model, protocol=0)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        assert strings(coded(other)) == strings(out)
        assert other.state_dict().keys() == make(architecture).state_dict().keys()
    groupedmixer.accelerate(copies[0], None)
    assert type(copies[0]) is type(make(architecture))
    assert type(copies[1]) is type(model)  # which a copy's restoration does not touch
    assert repr(model) == repr(copies[0])


@pytest.mark.parametrize("format", FORMATS)
def test_tables_follow_the_cdfs(format: str) -> None:
    model = groupedmixer.accelerate(make("mean-scale"), format)
    first = coded(model)
    other = make("mean-scale")
    for quantiles in (other.entropy_bottleneck.quantiles, model.entropy_bottleneck.quantiles):
        quantiles.data[:, :, ::2] *= 0.3
    model.update(force=True)
    other.update(force=True)
    expected = strings(coded(groupedmixer.accelerate(copy.deepcopy(other), format)))
    assert strings(coded(model)) == expected != strings(first)

    state = make("mean-scale").state_dict()
    model = groupedmixer.accelerate(MeanScaleHyperprior(8, 12).eval(), format)
    model.load_state_dict(state)
    assert strings(coded(model)) == strings(first)
    moved = state["entropy_bottleneck._offset"] - 1
    model.load_state_dict({**state, "entropy_bottleneck._offset": moved})
    assert strings(coded(model)) != strings(first)
    model.load_state_dict(state)

    model.gaussian_conditional.update_scale_table([0.3, 1.0, 3.0], force=True)
    other = make("mean-scale")
    other.gaussian_conditional.update_scale_table([0.3, 1.0, 3.0], force=True)
    assert strings(coded(model)) == strings(coded(groupedmixer.accelerate(other, format)))

    with torch.inference_mode():  # whose tensors do not count their changes
        model.update(force=True)
        again = strings(coded(model))
        assert again == strings(first)
        model.entropy_bottleneck._offset.sub_(1)
        assert strings(coded(model)) != again


def test_the_rest_of_a_model_stays() -> None:
    plain, fast = make("mean-scale"), groupedmixer.accelerate(make("mean-scale"))
    x = inputs(plain)
    for model in (plain, fast):
        model.train()
    out = []
    for model in (plain, fast):
        torch.manual_seed(5)
        result = model(x)
        (result["x_hat"].mean() + result["likelihoods"]["y"].log().mean()).backward()
        out.append((result["x_hat"], model.g_a[0].weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))
    assert isinstance(fast, MeanScaleHyperprior)
    assert isinstance(fast.entropy_bottleneck, EntropyBottleneck)
    assert torch.equal(fast.aux_loss(), plain.aux_loss())
    fast.eval().double().float()
    assert strings(coded(fast)) == strings(coded(plain.eval()))


def test_changing_formats_and_models_that_are_not_updated() -> None:
    model = MeanScaleHyperprior(8, 12).eval()
    groupedmixer.accelerate(groupedmixer.accelerate(model), "groupedmixer")
    with pytest.raises(ValueError, match=r"Run update\(\) first"):
        coded(model)
    model.update()
    x_hat = decoded(model, coded(model))
    groupedmixer.accelerate(model, "compressai")
    assert torch.equal(decoded(model, coded(model)), x_hat)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="model must be an nn.Module, got str"):
        groupedmixer.accelerate("mbt2018-mean")  # type: ignore[type-var]
    model = make("mean-scale")
    with pytest.raises(ValueError, match="format must be 'compressai', 'groupedmixer' or None"):
        groupedmixer.accelerate(model, "zip")
    with pytest.raises(ValueError, match="model must hold .* got Linear without"):
        groupedmixer.accelerate(nn.Linear(1, 1))
    model.gaussian_conditional.entropy_coder_precision = 12
    with pytest.raises(ValueError, match="precision of gaussian_conditional must be 16, got 12"):
        groupedmixer.accelerate(model)
    model.gaussian_conditional.entropy_coder.name = "rangecoder"
    with pytest.raises(ValueError, match="of gaussian_conditional must be 'ans', got 'rangecoder'"):
        groupedmixer.accelerate(model)
    assert type(model.entropy_bottleneck) is EntropyBottleneck


@pytest.mark.parametrize("format", FORMATS)
def test_wrong_calls_of_an_entropy_model(format: str) -> None:
    model = groupedmixer.accelerate(make("mean-scale"), format).gaussian_conditional
    values, indexes = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5, dtype=torch.int32)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        model.compress(values[0, 0, 0], indexes[0, 0, 0])
    with pytest.raises(ValueError, match="indexes must have the shape of inputs"):
        model.compress(values, indexes[:, :1])
    with pytest.raises(ValueError, match=r"indexes must be 0 \.\. 63, got .*64"):
        model.compress(values, indexes + 64)
    with pytest.raises(ValueError, match=r"indexes must be 0 \.\. 63, got -1"):
        model.compress(values, indexes - 1)
    with pytest.raises(ValueError, match="symbols must"):
        model.compress(values + 3e9, indexes)
    data = model.compress(values, indexes)
    with pytest.raises(ValueError, match="strings must be a list or tuple, got bytes"):
        model.decompress(data[0], indexes)
    with pytest.raises(ValueError, match="strings must have one element"):
        model.decompress(data[:1], indexes)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        model.decompress(data, indexes[:, 0, 0, 0])
    with pytest.raises(ValueError, match="means must"):
        model.decompress(data, indexes, means=torch.zeros(2, 3, 4, 1))
    with pytest.raises(ValueError, match="means must"):
        model.decompress(data, indexes, means=torch.zeros(2, 1, 1, 1))
    for damaged in (b"", data[0][:3], data[0][:-1], data[0] + b"1234", bytes(40)):
        with pytest.raises(RansError):
            model.decompress([data[0], damaged], indexes)
    means = torch.rand(2, 3, 1, 1)
    assert torch.equal(
        model.decompress(model.compress(values, indexes), indexes, means=means), values + means
    )
    assert model.decompress(data, indexes, torch.double).dtype == torch.double


@pytest.mark.parametrize("format", FORMATS)
def test_large_values_and_empty_tensors(format: str) -> None:
    plain = make("mean-scale").gaussian_conditional
    fast = groupedmixer.accelerate(copy.deepcopy(plain), format)
    large = 2.0**20 if format == "compressai" else 32767.0
    values = torch.tensor([[-large, large, 0.0, 1.0, -70.0, large // 2]])
    indexes = torch.tensor([[0, 63, 5, 0, 30, 40]], dtype=torch.int64)
    data = fast.compress(values, indexes)
    assert torch.equal(fast.decompress(data, indexes), values)
    if format == "compressai":
        assert plain.compress(values, indexes) == data
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2)):
        nothing = torch.zeros(shape)
        data = fast.compress(nothing, nothing.int())
        assert len(data) == shape[0]
        assert fast.decompress(data, nothing.int()).shape == shape


def test_narrow_tables_fit_every_table() -> None:
    """Tables of only an escape, of more values than fit, flat and lopsided ones."""
    flat = np.diff(np.linspace(0, 65536, 9002).astype(np.int32))
    rows = [[65535, 1], [1, 65535], [1] * 100 + [65436], [32768, 32767, 1], flat]
    cdfs = np.zeros((len(rows), 9002), np.int32)
    for row, cdf in zip(rows, cdfs, strict=True):
        cdf[1 : len(row) + 1] = np.cumsum(row)
    sizes = np.array([len(row) + 1 for row in rows], np.int32)
    offsets = np.array([0, 5, -50, 0, -4500], np.int32)
    format = FORMATS["groupedmixer"]
    tables = format.tables(cdfs, sizes, offsets)
    symbols, indexes = group(3, 5000, (cdfs, sizes, offsets))
    symbols = symbols.clip(-32768, 32767)
    data = format.encode(symbols, indexes, tables)
    assert np.array_equal(format.decode(data, indexes, tables), symbols)


def test_streams_of_a_stand_in_come_before_symbols() -> None:
    decoder_class = groupedmixer.accelerate(make("autoregressive"))
    globals_ = type(decoder_class)._decompress_ar.__globals__
    with pytest.raises(ValueError, match="set_stream must be called"):
        globals_["RansDecoder"]().decode_stream([0], [[0, 9, 65536]], [3], [0])
