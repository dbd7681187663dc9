# SPDX-License-Identifier: MIT
"""The transformer that predicts each group of the latent from the groups before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .blocks import LAYER_NORM_EPS, MixerBlock
from .config import HEAD_DIM, NUM_LEVELS, Config
from .grouping import Grouping

__all__ = ["ContextCache", "GroupedMixerContext", "Prediction", "compand", "run_groups"]


def compand(x: Tensor) -> Tensor:
    """x / sqrt(1 + |x|): linear near 0, a square root far out.

    Latents at high quality reach hundreds, which would drown everything else in the dot product
    of an embedding. Made of an add, a square root and a division, all correctly rounded
    everywhere, where asinh would need a logarithm.
    """
    return x / (1 + x.abs()).sqrt()


class Prediction(NamedTuple):
    """What the entropy model says of a group."""

    mean: Tensor  # [..., M/k_c]
    raw_scale: Tensor  # [..., M/k_c], log sigma in the training form, compared with thresholds
    features: Tensor  # [..., d], for latent residual prediction


class ContextCache:
    """Keys and values of the decoded groups of one tile: the paper's context cache.

    Allocated once for all G steps, filled by `GroupedMixerContext.append_step`, never recomputed.
    Holds ``keys``, ``values``: [L, h*w, heads, G, 32].
    """

    def __init__(
        self, config: Config, h: int, w: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (
            config.layers,
            h * w,
            config.width // HEAD_DIM,
            config.num_groups,
            HEAD_DIM,
        )
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.steps_done = 0


class GroupedMixerContext(nn.Module):
    """Group-wise autoregressive entropy model, arXiv 2405.01170.

    .. code-block:: none

        y_hat_{g-1} --compand--.
                               [E_slice(g-1); P_slice(g)] + e_g + e_level --> L x MixerBlock
        psi_g = h_s(z_hat) ----'                                                |
                                     mean_g, raw_scale_g <-- Linear_slice(g) <-- LN

    The blocks are shared by all steps, which is why a cache pays; the embeddings E, P and the
    head differ by channel slice, e_g by group and e_level by quality. y_hat_{-1} is a learned
    start group, embedded through E_0. Where we differ from the paper: companded inputs, quality
    levels, the bias per pair of steps, optional latent residual prediction (arXiv 2007.08739).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.grouping = Grouping(config.slices, *config.patch, config.order)
        d, slices, channels = config.width, config.slices, config.latent_channels // config.slices
        self.start = nn.Parameter(torch.zeros(channels))
        self.embed_y = nn.Parameter(torch.empty(slices, d, channels))
        self.embed_y_bias = nn.Parameter(torch.zeros(slices, d))
        self.embed_hyper = nn.Parameter(torch.empty(slices, d, d))
        self.embed_hyper_bias = nn.Parameter(torch.zeros(slices, d))
        self.embed_group = nn.Parameter(torch.empty(config.num_groups, d))
        self.embed_level = nn.Parameter(torch.empty(NUM_LEVELS, d))
        blocks = [
            MixerBlock(d, config.num_groups, shifted=bool(i % 2)) for i in range(config.layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS)
        self.head = nn.Parameter(torch.zeros(slices, 2 * channels, d))
        self.head_bias = nn.Parameter(torch.zeros(slices, 2 * channels))
        if config.lrp:
            self.lrp = nn.Parameter(torch.zeros(slices, channels, d + channels))
            self.lrp_bias = nn.Parameter(torch.zeros(slices, channels))
        for weight in (self.embed_y, self.embed_hyper):
            nn.init.trunc_normal_(weight, std=weight.shape[-1] ** -0.5)
        nn.init.trunc_normal_(self.embed_group, std=0.02)
        # Levels differ along one direction at first, in order: neighbours start as neighbours.
        ramp = torch.linspace(-1, 1, NUM_LEVELS)
        self.embed_level.data.copy_(0.5 * torch.outer(ramp, torch.randn(d)))
        for block in blocks:
            for linear in (m for m in block.modules() if isinstance(m, nn.Linear)):
                nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
                nn.init.zeros_(linear.bias)
            # Residual branches start small, so that depth does not blow up the first steps.
            for last in (block.inner.proj, block.cross.proj, block.mlp[3]):
                assert isinstance(last, nn.Linear)
                last.weight.data.mul_((2 * 3 * config.layers) ** -0.5)

    def level_embedding(
        self,
        quality: Tensor,  # [B] in 0..7
    ) -> Tensor:  # [B, d]
        """Embedding of a continuous quality: linear between the levels."""
        return interpolate_levels(self.embed_level, quality)

    def forward(
        self,
        y_hat: Tensor,  # [B, G, h, w, M/k_c], groups as decoded (or noisy, in training)
        psi: Tensor,  # [B, G, h, w, d], hyper features at the positions of each group
        quality: Tensor,  # [B]
    ) -> Prediction:  # each [B, G, h, w, ...]
        """Training form: predicts all groups at once, each from those before it."""
        b, _, h, w, channels = y_hat.shape
        slice_of = self.grouping.slice_of
        start = self.start.expand(b, 1, h, w, channels).to(y_hat.dtype)
        previous = compand(torch.cat([start, y_hat[:, :-1]], dim=1))
        previous_slice = [0, *slice_of[:-1]]
        x = _per_group(previous, self.embed_y[previous_slice], self.embed_y_bias[previous_slice])
        x = x + _per_group(psi, self.embed_hyper[slice_of], self.embed_hyper_bias[slice_of])
        x = x + self.embed_group[:, None, None, :]
        x = x + self.level_embedding(quality)[:, None, None, None, :]
        for block in self.blocks:
            x = block(x)
        features = self.norm(x)
        # Means must be exact to a fraction of a step even where the latent is large: no autocast.
        with torch.autocast(x.device.type, enabled=False):
            features = features.float()
            out = _per_group(features, self.head[slice_of], self.head_bias[slice_of])
        mean, raw_scale = out.chunk(2, dim=-1)
        return Prediction(mean, raw_scale, features)

    def append_step(
        self,
        step: int,
        previous: Tensor | None,  # [h, w, M/k_c] y_hat of group step-1, None at step 0
        psi: Tensor,  # [h, w, d] hyper features at the positions of this group
        level: Tensor,  # [d] from `level_embedding`
        cache: ContextCache,  # updated in place
    ) -> Prediction:  # each [h, w, ...]
        """Coding form: predicts group ``step`` and appends its keys and values to the cache.

        Steps must be taken in order; ValueError otherwise.
        """
        if step != cache.steps_done:
            raise ValueError(f"step must be the cache's next, {cache.steps_done}, got {step}")
        h, w, _ = psi.shape
        this_slice = self.grouping.slice_of[step]
        if previous is None:
            previous, previous_slice = self.start.expand(h, w, -1), 0
        else:
            previous_slice = self.grouping.slice_of[step - 1]
        x = compand(previous) @ self.embed_y[previous_slice].T + self.embed_y_bias[previous_slice]
        x = x + psi @ self.embed_hyper[this_slice].T + self.embed_hyper_bias[this_slice]
        x = x + self.embed_group[step] + level
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, MixerBlock)
            x = block.append_step(step, x, cache.keys[layer], cache.values[layer])
        cache.steps_done += 1
        features = self.norm(x)
        out = features @ self.head[this_slice].T + self.head_bias[this_slice]
        mean, raw_scale = out.chunk(2, dim=-1)
        return Prediction(mean.contiguous(), raw_scale.contiguous(), features)

    def correct_groups(
        self,
        y_hat: Tensor,  # [B, G, h, w, M/k_c]
        features: Tensor,  # [B, G, h, w, d]
    ) -> Tensor:  # [B, G, h, w, M/k_c]
        """Latent residual prediction for all groups; returns y_hat itself without it."""
        if not self.config.lrp:
            return y_hat
        slice_of = self.grouping.slice_of
        inputs = torch.cat([features, compand(y_hat)], dim=-1)
        correction = _per_group(inputs, self.lrp[slice_of], self.lrp_bias[slice_of])
        return y_hat + 0.5 * correction.tanh()

    def correct_step(
        self,
        step: int,
        y_hat: Tensor,  # [h, w, M/k_c]
        features: Tensor,  # [h, w, d]
    ) -> Tensor:  # [h, w, M/k_c]
        """Latent residual prediction for one group; returns y_hat itself without it."""
        if not self.config.lrp:
            return y_hat
        this_slice = self.grouping.slice_of[step]
        inputs = torch.cat([features, compand(y_hat)], dim=-1)
        return y_hat + 0.5 * (inputs @ self.lrp[this_slice].T + self.lrp_bias[this_slice]).tanh()


def run_groups(
    context: GroupedMixerContext,
    psi: Tensor,  # [G, h, w, d]
    level: Tensor,  # [d]
    code: Callable[[int, Prediction], Tensor],  # (step, prediction) -> y_hat [h, w, M/k_c]
) -> Tensor:  # [G, h, w, M/k_c]
    """The coding form in PyTorch: group after group, each turned into its decoded self by ``code``.

    For evaluation inside of training, and to compare with: files are coded by the native engine,
    whose arithmetic does not depend on the machine as PyTorch's does.
    """
    groups, h, w, _ = psi.shape
    cache = ContextCache(context.config, h, w, psi.dtype, psi.device)
    decoded: list[Tensor] = []
    for step in range(groups):
        previous = decoded[-1] if decoded else None
        prediction = context.append_step(step, previous, psi[step], level, cache)
        y_hat = code(step, prediction)
        decoded.append(context.correct_step(step, y_hat, prediction.features))
    return torch.stack(decoded)


def interpolate_levels(
    table: Tensor,  # [levels, C]
    quality: Tensor,  # [B] in 0..levels-1
) -> Tensor:  # [B, C]
    """Row `quality` of a table stored at whole levels: fma(t, e1 - e0, e0) between two of them."""
    lower = quality.floor().clamp(0, table.shape[0] - 2)
    t = (quality - lower).unsqueeze(-1).to(table.dtype)
    index = lower.long()
    e0, e1 = table[index], table[index + 1]
    return torch.addcmul(e0, t, e1 - e0)


def _per_group(
    x: Tensor,  # [B, G, h, w, C]
    weight: Tensor,  # [G, D, C]
    bias: Tensor,  # [G, D]
) -> Tensor:  # [B, G, h, w, D]
    """A linear layer of its own for every group, as one batched product."""
    b, groups, h, w, channels = x.shape
    rows = x.transpose(0, 1).reshape(groups, b * h * w, channels)
    out = torch.baddbmm(bias.unsqueeze(1).to(x.dtype), rows, weight.to(x.dtype).transpose(1, 2))
    return out.reshape(groups, b, h, w, -1).transpose(0, 1)
