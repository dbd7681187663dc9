# SPDX-License-Identifier: MIT
"""The entropy model's two forms, its causality, and the compressai contract."""

from __future__ import annotations

import copy
import dataclasses
import math

import compressai
import numpy as np
import pytest
import torch
from compressai.models import SimpleVAECompressionModel
from conftest import random_model
from torch import Tensor, nn

from groupedmixer import (
    Codec,
    Config,
    GroupedMixer,
    GroupedMixerLatentCodec,
    Weights,
    export_weights,
    get_config,
)
from groupedmixer.blocks import InnerGroupMixer, _cells
from groupedmixer.config import CONFIGS
from groupedmixer.entropy import (
    SCALES,
    SHAPE,
    ScaleMixtureLikelihood,
    scale_thresholds,
    symbol_tables,
)
from groupedmixer.errors import ArithmeticMismatchError
from groupedmixer.mixer import Prediction, run_groups

SHAPES = [
    get_config("tiny"),
    dataclasses.replace(get_config("tiny"), patch=(1, 2), slices=4, lrp=False),
    dataclasses.replace(get_config("tiny"), patch=(3, 1), slices=1, layers=3),
    dataclasses.replace(get_config("tiny"), width=64, order=tuple(
        (c, i, j) for i in (1, 0) for j in (0, 1) for c in (1, 0)
    )),
]  # fmt: skip


@pytest.mark.parametrize("config", SHAPES)
def test_training_form_and_coding_form_agree(config: Config) -> None:
    """The coding form rounds keys and values to float16, by 2^-12 of each at most; averaged by
    attention into activations that are about 1, that moves a prediction by less than 2^-11. 1e-5
    of its size is for float32 sums in another order."""
    context = random_model(config).latent_codec.context
    k_h, k_w = config.patch
    y = torch.randn(1, config.latent_channels, 10 * k_h, 13 * k_w) * 5
    groups = context.grouping.split(y)
    psi = context.grouping.at_groups(torch.randn(1, config.width, 10 * k_h, 13 * k_w))
    quality = torch.tensor([3.3])
    seen: list[Prediction] = []

    def code(step: int, prediction: Prediction) -> Tensor:
        seen.append(prediction)
        return groups[0, step]

    with torch.no_grad():
        # lrp would change what the next step sees; it has its own comparison below
        plain = copy.deepcopy(context)
        plain.config = dataclasses.replace(config, lrp=False)
        run_groups(plain, psi[0], context.level_embedding(quality)[0], code)
        at_once = context(groups, psi, quality)
    for form, together in zip(zip(*seen, strict=True), at_once, strict=True):
        stepwise = torch.stack(form)
        error = (stepwise - together[0]).abs().max()
        assert error < 2**-11 + 1e-5 * max(1, together.abs().max())
    if config.lrp:
        corrected = context.correct_groups(groups, at_once.features)
        for step in range(config.num_groups):
            one = context.correct_step(step, groups[0, step], at_once.features[0, step])
            assert (one - corrected[0, step]).abs().max() < 1e-5
            assert not torch.equal(one, groups[0, step])


def test_predictions_depend_on_earlier_groups_only() -> None:
    config = get_config("tiny")
    context = random_model(config).latent_codec.context
    channels = config.latent_channels // config.slices
    groups = torch.randn(1, config.num_groups, 5, 6, channels)
    psi = torch.randn(1, config.num_groups, 5, 6, config.width)
    quality = torch.tensor([2.0])
    with torch.no_grad():
        before = context(groups, psi, quality)
        for changed in range(config.num_groups):
            other = groups.clone()
            other[:, changed] += 1
            after = context(other, psi, quality)
            same = [torch.equal(before.mean[:, g], after.mean[:, g]) for g in range(8)]
            # Bit-equal up to and with the changed group, and the next one does see it.
            assert all(same[: changed + 1])
            assert changed == 7 or not same[changed + 1]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8), (5, 17), (21, 12)])
def test_windows_are_cells_of_the_lattice(size: tuple[int, int], shifted: bool) -> None:
    """A position is influenced by those of its own cell and by no others."""
    torch.manual_seed(0)
    mixer = InnerGroupMixer(32, shifted)
    nn.init.normal_(mixer.relative_bias)
    x = torch.randn(1, *size, 32)
    offset = 4 if shifted else 0
    i, j = size[0] // 2, size[1] // 2
    other = x.clone()
    other[0, i, j] += torch.randn(32)
    with torch.no_grad():
        moved = (mixer(x) != mixer(other)).any(-1)[0]
    rows = (torch.arange(size[0]) + offset) // 8 == (i + offset) // 8
    columns = (torch.arange(size[1]) + offset) // 8 == (j + offset) // 8
    assert torch.equal(moved, rows[:, None] & columns[None, :])


@pytest.mark.parametrize("offset", [0, 4])
def test_cells_cover_an_axis(offset: int) -> None:
    for length in range(1, 40):
        covered = [
            position
            for start, size, count in _cells(length, offset)
            for position in range(start, start + size * count)
        ]
        assert covered == list(range(length))


def test_relative_bias_is_by_distance() -> None:
    """Two windows of different sizes give the same pair of distances the same bias."""
    mixer = InnerGroupMixer(32, shifted=False)
    index = mixer._bias_index
    assert index[3, 4, 1, 1] == index[5, 6, 3, 3] != index[1, 1, 3, 4]
    assert len(index.unique()) == 15 * 15


def test_thresholds_choose_the_nearest_scale() -> None:
    thresholds = scale_thresholds().double()
    logs = torch.tensor(SCALES, dtype=torch.float64).log()
    for raw in torch.linspace(-3, 5, 999, dtype=torch.float64):
        index = int((thresholds < raw).sum())
        assert index == int((logs - raw).abs().argmin())


def test_likelihoods_of_symbols_sum_to_one_and_are_exact() -> None:
    likelihood = ScaleMixtureLikelihood()
    assert sum(weight for weight, _ in SHAPE) == 1

    def of_zero(sigma: float) -> float:
        return sum(w * math.erf(0.5 / (sigma * width) / math.sqrt(2)) for w, width in SHAPE)

    k = torch.arange(-1500, 1501).float()
    for sigma in (0.11, 0.5, 3.0, 64.0):
        p = likelihood(k, torch.full_like(k, math.log(sigma))).double()
        assert abs(float(p[p > 2e-9].sum()) - 1) < 1e-5
        assert abs(float(p[1500]) - of_zero(sigma)) < 1e-6
    outside = likelihood(torch.zeros(2), torch.tensor([-9.0, 9.0])).double()
    ends = [of_zero(SCALES[0]), of_zero(SCALES[-1])]
    assert torch.allclose(outside, torch.tensor(ends, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(("index", "bound"), [(0, 0.001), (9, 0.001), (30, 0.002), (63, 0.015)])
def test_tables_hold_the_likelihoods(index: int, bound: float) -> None:
    built = symbol_tables()
    ends = built.sizes.cumsum()
    counts = built.counts[ends[index] - built.sizes[index] : ends[index]].astype(np.float64)
    symbols = torch.arange(len(counts) - 1) + int(built.offsets[index])
    raw_scale = torch.full_like(symbols.float(), math.log(SCALES[index]))
    likelihoods = ScaleMixtureLikelihood()(symbols.float(), raw_scale).double().numpy()
    masses = np.append(likelihoods, max(1 - likelihoods.sum(), 1e-9))  # the last count: escape
    # In bits per symbol, what 12-bit counts cost beside the likelihoods. Those of a single Gaussian
    # would cost 0.0015 to 0.03.
    loss = (masses * np.log2(masses / counts * 4096)).sum()
    assert -1e-6 < loss < bound


def test_forward_gives_gradients_to_every_parameter() -> None:
    model = random_model(get_config("tiny")).train()
    x = torch.rand(2, 3, 70, 50)
    out = model(x)
    rate = sum(-p.log2().sum() for p in out["likelihoods"].values())
    (rate + ((out["x_hat"] - x) ** 2).mean() * 1000).backward()
    silent = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    # compressai trains quantiles by aux_loss; here bisection sets them with the tables.
    assert silent == ["latent_codec.entropy_bottleneck.quantiles"]
    assert out["x_hat"].shape == x.shape


def test_compressai_contract(tiny_model: GroupedMixer) -> None:
    assert compressai.registry.MODELS["groupedmixer"] is GroupedMixer
    x = torch.rand(2, 3, 50, 70)
    out = tiny_model.compress(x, quality=5.0)
    assert [len(tile) for tile in out["strings"]] == [2]
    assert all(isinstance(s, bytes) for tile in out["strings"] for s in tile)
    back = tiny_model.decompress(out["strings"], out["shape"])
    assert back["x_hat"].shape == (2, 3, 64, 96)

    clone = GroupedMixer.from_state_dict(tiny_model.state_dict())
    assert clone.config == tiny_model.config
    assert clone.compress(x, quality=5.0)["strings"] == out["strings"]
    assert torch.equal(clone.decompress(**out)["x_hat"], back["x_hat"])
    # one picture alone gives the same bytes as in a batch
    assert clone.compress(x[1:], quality=5.0)["strings"][0][0] == out["strings"][0][1]


def test_update_never_changes_stored_tables(tiny_model: GroupedMixer) -> None:
    model = copy.deepcopy(tiny_model)
    assert model.update()
    stored = {k: v.clone() for k, v in model.state_dict().items() if k in model.stored_buffers()}
    with torch.no_grad():
        for parameter in model.latent_codec.entropy_bottleneck.parameters():
            parameter += 0.3
    assert not model.update(force=True, update_quantiles=True)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in stored.items())
    model.rebuild_tables()
    rebuilt = model.state_dict()["latent_codec.z_tables.counts"]
    before = stored["latent_codec.z_tables.counts"]
    assert rebuilt.shape != before.shape or not torch.equal(rebuilt, before)


def test_compressais_own_update_does_not_reach_the_coder(tiny_model: GroupedMixer) -> None:
    model = copy.deepcopy(tiny_model)
    model.update()
    x = torch.rand(1, 3, 64, 64)
    out = model.compress(x)
    before = export_weights(model, "w")
    with torch.no_grad():
        expected = model.decompress(**out)["x_hat"]
    model.latent_codec.entropy_bottleneck.update(force=True)
    assert export_weights(model, "w").fingerprint == before.fingerprint
    model.latent_codec.entropy_bottleneck.update(force=True, update_quantiles=True)
    assert torch.equal(model.decompress(**out)["x_hat"], expected)


def test_training_discards_tables_and_export_builds_new_ones(tiny_model: GroupedMixer) -> None:
    model = copy.deepcopy(tiny_model)
    model.update()
    old = model.latent_codec.z_tables.counts.clone()
    model.train()(torch.rand(1, 3, 64, 64))
    assert model.latent_codec.z_tables.empty
    with torch.no_grad():
        for parameter in model.latent_codec.entropy_bottleneck.parameters():
            parameter += 0.3
    new = export_weights(model, "w").state["latent_codec.z_tables.counts"]
    assert new.shape != old.shape or not torch.equal(new, old)
    assert model.latent_codec.z_tables.empty  # export does not change the model


def test_fingerprints_are_of_what_is_stored(tiny_model: GroupedMixer) -> None:
    """A file written before a field of Config or a buffer of compressai existed keeps its own."""
    weights = export_weights(tiny_model, "old")
    assert not any("_quantized_cdf" in name or "bound" in name for name in weights.state)
    old_config = tiny_model.config.to_json().replace('"order":null,', "").encode()
    old_entry = torch.tensor(list(old_config), dtype=torch.uint8)
    stored = Weights("old", {**weights.state, "_extra_state": old_entry})
    codec = Codec(stored)
    assert codec.fingerprint == stored.fingerprint != weights.fingerprint


@pytest.mark.parametrize("wrong", ["missing", "unknown", "shape", "config"])
def test_state_dicts_that_do_not_fit(tiny_model: GroupedMixer, wrong: str) -> None:
    state = dict(export_weights(tiny_model, "w").state)
    if wrong == "missing":
        del state["latent_codec.gain"]
    elif wrong == "unknown":
        state["latent_codec.pain"] = torch.zeros(1)
    elif wrong == "shape":
        state["latent_codec.gain"] = torch.zeros(3, 3)
    else:
        state["_extra_state"] = torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="must"):
        GroupedMixer.from_state_dict(state)


def test_strings_say_their_quality_and_checksum(tiny_model: GroupedMixer) -> None:
    x = torch.rand(2, 3, 64, 64)
    out = tiny_model.compress(x, quality=torch.tensor([1.0, 6.5]))
    for index, quality in enumerate((1.0, 6.5)):
        alone = tiny_model.compress(x[index : index + 1], quality)
        assert alone["strings"][0][0] == out["strings"][0][index]
    damaged = bytearray(out["strings"][0][0])
    damaged[3] ^= 1
    with pytest.raises(ArithmeticMismatchError):
        tiny_model.decompress([[bytes(damaged)]], out["shape"])
    with pytest.raises(ValueError, match="at least 6 bytes"):
        tiny_model.decompress([[b"12345"]], out["shape"])


def test_the_latent_comes_back_within_half_a_step() -> None:
    """On unexported gains of a power of two everything between y and y_hat is a rounding."""
    config = dataclasses.replace(get_config("tiny"), lrp=False)
    codec = random_model(config).latent_codec
    with torch.no_grad():
        codec.gain.fill_(2.0)
        codec.shrinkage.fill_(1.0)
        codec.context.head_bias[:, config.latent_channels // config.slices :] = 3.0  # none skipped
    y = torch.randn(1, config.latent_channels, 6, 10) * 4
    out = codec.eval().compress(y)
    back = codec.decompress(**out)["y_hat"]
    assert torch.equal(back, out["y_hat"])
    assert (back - y).abs().max() <= 0.25 + 2**-10


def test_a_fresh_model_is_a_block_transform_codec() -> None:
    """Before training the picture comes back through the DCT alone, colours in their places."""
    torch.manual_seed(0)
    model = GroupedMixer(dataclasses.replace(get_config("tiny"), latent_channels=256)).eval()
    model.latent_codec.context.head_bias.data[:, 128:] = 3.0
    ramp = torch.linspace(0.1, 0.9, 64)
    flat = torch.full((64, 64), 0.3)
    x = torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64), flat])
    back = model.decompress(**model.compress(x[None], 7.0))["x_hat"][0]
    assert 10 * torch.log10(1 / ((back - x) ** 2).mean()) > 36


def test_compress_follows_training() -> None:
    """A training model's compress() exports first: no stale weights."""
    model = random_model(get_config("tiny"))
    x = torch.rand(1, 3, 64, 64)
    before = model.compress(x)["strings"]
    assert model.compress(x)["strings"] == before
    with torch.no_grad():
        model.latent_codec.context.head += 0.05
    second = model.compress(x)["strings"]
    assert second != before
    model.latent_codec.context.head.data.sub_(0.05)  # which PyTorch's version counter misses
    assert model.compress(x)["strings"] != second


def test_weights_that_overflow_half_are_an_error() -> None:
    model = random_model(get_config("tiny"))
    with torch.no_grad():
        model.latent_codec.context.head[0, 0, 0] = 7e4
    with pytest.raises(ValueError, match=r"context\.head must be finite and within float16.*70000"):
        model.compress(torch.rand(1, 3, 32, 32))


def test_latent_codec_in_another_codec() -> None:
    config = get_config("tiny")

    class Mine(SimpleVAECompressionModel):
        def __init__(self) -> None:
            super().__init__()
            self.g_a = nn.Conv2d(3, config.latent_channels, 16, stride=16)
            self.g_s = nn.ConvTranspose2d(config.latent_channels, 3, 16, stride=16)
            self.latent_codec = GroupedMixerLatentCodec(config)

    torch.manual_seed(0)
    model = Mine()
    x = torch.rand(2, 3, 64, 96)
    out = model(x)
    assert out["x_hat"].shape == x.shape
    assert out["likelihoods"]["y"].shape == (2, config.latent_channels, 4, 6)
    model.eval()
    model.latent_codec.quality = 6.0
    coded = model.compress(x)
    assert torch.equal(model.decompress(**coded)["x_hat"], model.g_s(coded["y_hat"]).clamp(0, 1))


@pytest.mark.parametrize("quality", [-0.1, 7.5, math.nan])
def test_quality_out_of_range(tiny_model: GroupedMixer, quality: float) -> None:
    with pytest.raises(ValueError, match="quality must be in 0..7"):
        tiny_model(torch.rand(1, 3, 32, 32), quality)
    with pytest.raises(ValueError, match="quality must be in 0..7"):
        tiny_model.compress(torch.rand(1, 3, 32, 32), quality)


@pytest.mark.parametrize("raw_scale", [2.5, -1.9], ids=["nothing skipped", "half skipped"])
def test_eval_form_is_what_is_coded(tiny_model: GroupedMixer, raw_scale: float) -> None:
    """Same symbols (but for a rounding that falls the other way in float32), same bytes."""
    model = copy.deepcopy(tiny_model)
    scales = slice(model.config.latent_channels // model.config.slices, None)
    with torch.no_grad():
        # sigma about 12, where hardly anything escapes, or around the skip threshold
        model.latent_codec.context.head_bias[:, scales] = raw_scale
        model.latent_codec.context.head[:, scales] *= 0.2
    model = export_weights(model, "w").model()
    torch.manual_seed(1)
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 24), (384, 384), mode="bicubic")
    y = model.g_a(x.clamp(0, 1)).detach()
    with torch.no_grad():
        out = model.latent_codec(y, 2.0)
    coded = model.latent_codec.compress(y, 2.0)
    same = (coded["y_hat"] - out["y_hat"]).abs() < 0.02
    assert same.float().mean() > 0.999
    skipped = float((out["likelihoods"]["y"] == 1).float().mean())
    if raw_scale < 0:
        assert 0.2 < skipped < 0.8
    else:
        ideal = sum(-p.log2().sum().item() for p in out["likelihoods"].values()) / 8
        assert skipped == 0
        assert ideal > 3000
        assert abs(len(coded["strings"][0][0]) / ideal - 1) < 0.01


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_build_and_survive_json(name: str) -> None:
    config = get_config(name)
    assert Config.from_json(config.to_json()) == config
    with torch.device("meta"):
        model = GroupedMixer(config)
    assert model.latent_codec.context.grouping.num_groups == config.num_groups


def test_base_has_the_papers_forty_groups() -> None:
    assert get_config("base").num_groups == 40
    assert get_config("fast").num_groups == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 33}, "latent_channels must be a multiple of slices = 2, got 33"),
        ({"width": 40}, "width must be a multiple of 32, got 40"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"patch": (2, 17)}, "patch must be at most 16 x 16"),
        ({"transform": "wavelet"}, "transform must be 'patch' or 'elic', got 'wavelet'"),
        ({"transform": "elic"}, r"transform_width and transform_depth must be \(N, N\) and"),
        ({"latent_channels": 1024}, "latent_channels must be at most 768, .* got 1024"),
        ({"transform_width": (0, 32)}, r"transform_width\[0\] must be at least 1, got 0"),
        ({"patch": (2,)}, "patch must be a pair"),
        ({"order": ((0, 0, 0),)}, "order must be a permutation of the 8"),
    ],
)
def test_bad_configurations_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get_config("tiny"), **change)  # type: ignore[arg-type]


def test_unknown_configuration() -> None:
    with pytest.raises(ValueError, match="name must be one of tiny, rt, .*'huge'"):
        get_config("huge")
    with pytest.raises(ValueError, match="must be a GroupedMixer configuration"):
        Config.from_json('{"name": "x"}')
