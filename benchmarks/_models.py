# SPDX-License-Identifier: MIT
"""Models to time: bundled weights where there are some, calibrated random ones elsewhere."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

import groupedmixer
from groupedmixer import Codec, Config, GroupedMixer
from groupedmixer.images import Picture

__all__ = ["Subject", "make_subject", "to_tensor"]

# sigma of the calibrated symbols: about 1.6 bits each with the head's spread, inside 0.5..2
_SIGMA = 0.45


class Subject(NamedTuple):
    """What is timed, as a codec and as the model it was made from."""

    codec: Codec
    model: GroupedMixer
    random: bool  # sizes and quality mean nothing then


def to_tensor(picture: Picture) -> Tensor:  # [1, 3, H, W] in 0..1
    """The samples as the models take them."""
    return torch.from_numpy(picture.rgb).permute(2, 0, 1)[None].float() / 255


def make_subject(config: Config, picture: Picture, device: str, random: bool = False) -> Subject:
    """The newest bundled weights of a configuration; random ones if there are none, or if asked."""
    bundled = any(name.startswith(f"{config.name}-") for name in groupedmixer.available())
    if bundled and not random:
        model = groupedmixer.load_model(config.name)
        return Subject(groupedmixer.load(config.name, device), model, False)
    weights = groupedmixer.export_weights(_calibrated(config, picture), f"{config.name}-random")
    return Subject(Codec(weights, device), weights.model(), True)


@torch.no_grad()
def _calibrated(config: Config, picture: Picture) -> GroupedMixer:
    """Random weights whose symbols cost what trained ones do, so that the coder's work is real.

    Every channel of the latent is scaled to sigma 0.45 on the given picture, and the head predicts
    its mean and scales spread around that (a factor of 2 either way), so that some symbols are
    skipped and few escape.
    """
    torch.manual_seed(0)
    model = GroupedMixer(config).eval()
    codec = model.latent_codec
    x = model.pad(to_tensor(picture))[..., :512, :512]
    values = model.g_a(x).transpose(0, 1).flatten(1)  # [M, positions]
    scale = _SIGMA / values.std(1).clamp(min=1e-4)
    codec.gain.copy_(scale.expand_as(codec.gain))
    head, bias = codec.context.head, codec.context.head_bias
    channels = head.shape[1] // 2
    head[:, channels:].normal_(0, math.log(2) / head.shape[2] ** 0.5)
    head[:, :channels].normal_(0, 0.1 / head.shape[2] ** 0.5)
    bias[:, :channels] = (values.mean(1) * scale).reshape(-1, channels)
    bias[:, channels:] = math.log(_SIGMA)
    return model
