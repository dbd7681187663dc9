# SPDX-License-Identifier: MIT
"""The optimizer, the moving average of the weights, and where the entropy model starts."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..config import NUM_LEVELS
from ..mixer import interpolate_levels
from ..model import GroupedMixer
from .settings import Settings

__all__ = ["initialise_entropy_model", "make_average", "make_optimizer"]


# Of a channel without content, as colour is in grey pictures: the logarithm of 0 is no start. Times
# the largest gain it is below the narrowest table.
_LEAST_DEVIATION = 0.02

# What a random network's channels are taken for: little more than where symbols are skipped, since
# a skipped symbol gives the network no gradient of the distortion.
_UNTRAINED_DEVIATION = 0.15


@torch.no_grad()
def initialise_entropy_model(
    model: GroupedMixer,
    x: Tensor,  # [B, 3, H, W] in 0..1, B at least 2
) -> None:
    """Starts the head at each channel's mean and log deviation; the latter moves with the quality.

    A head that starts at one scale for all needs hundreds of steps to find the spectrum of a
    block transform, which spans three orders of magnitude, and hundreds more to learn at every
    quality what the gains do to it. Only the direction in which the embeddings of the levels differ
    is read at first: a fit to all features breaks when the layers below move.

    Networks without a block transform have no spectrum yet: one deviation for all qualities.
    """
    codec, context = model.latent_codec, model.latent_codec.context
    slices = context.config.slices
    y = model.g_a(model.pad(x))
    channels = y.transpose(0, 1).flatten(1)  # [M, positions], gains 1
    mean = channels.mean(1).reshape(slices, -1)
    if context.config.transform != "patch":
        log_sigma = torch.full_like(mean, math.log(_UNTRAINED_DEVIATION))
        context.head_bias.copy_(torch.cat([mean, log_sigma], dim=1))
        return
    log_sigma = channels.std(1).clamp(min=_LEAST_DEVIATION).log().reshape(slices, -1)

    # features . direction -> log of the gain, a line through one point for every picture
    quality = torch.linspace(0, NUM_LEVELS - 1, len(x), device=x.device)
    log_gain = interpolate_levels(codec.gain, quality).log().mean(1)
    direction = F.normalize(context.embed_level[-1] - context.embed_level[0], dim=0)
    read = _features(model, y, quality).flatten(1, -2).mean(1) @ direction
    slope = torch.cov(torch.stack([read, log_gain]))[0, 1] / read.var()
    context.head[:, mean.shape[1] :] = slope * direction
    log_sigma += log_gain.mean() - slope * read.mean()
    context.head_bias.copy_(torch.cat([mean, log_sigma], dim=1))


def _features(
    model: GroupedMixer,
    y: Tensor,  # [B, M, H, W], before gains
    quality: Tensor,  # [B]
) -> Tensor:  # [B, G, h, w, d]
    """What the head of an untrained entropy model sees."""
    codec = model.latent_codec
    groups, psi, _ = codec.context_inputs(y, quality)
    return codec.context(torch.round(groups), psi, quality).features


def make_optimizer(model: GroupedMixer, settings: Settings) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices only, the linear block transforms learn slowly.

    Adam moves every weight by about the learning rate, whatever its size. The linear transforms
    carry most of the signal and differ in scale by (255 / MIDDLE_STEP)**2, so theirs is relative to
    the root mean square of each one's weights: at high quality an error of a few parts in a hundred
    is more than the quantisation's.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        linear = name.startswith(("g_a.linear.", "g_s.linear."))
        rate = settings.learning_rate
        if linear:
            weight = model.get_parameter(name.rpartition(".")[0] + ".weight")
            rate *= settings.linear_rate * weight.detach().square().mean().sqrt().item()
        matrix = parameter.ndim >= 2 and "bottleneck" not in name and "gain" not in name
        decay = settings.weight_decay if matrix and not linear else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(described, betas=(0.9, 0.98))


def make_average(model: GroupedMixer, decay: float) -> AveragedModel:
    """A moving average of the model, which short runs do not drown in their first weights.

    The decay grows with the steps n, as min(decay, (1 + n) / (10 + n)).
    """

    @torch.no_grad()
    def average(kept: Any, current: Any, count: Any) -> None:
        steps = int(count)
        torch._foreach_lerp_(kept, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return AveragedModel(model, multi_avg_fn=average)
