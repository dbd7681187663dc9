# SPDX-License-Identifier: MIT
"""How good a model in training is: loss, bpp and PSNR of its eval form on whole pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..model import GroupedMixer
from .loss import rate_distortion_loss

__all__ = ["ValidationPoint", "validate"]


@dataclass(frozen=True)
class ValidationPoint:
    """Means over pictures at one quality."""

    quality: float
    loss: float
    bpp: float
    psnr: float  # dB, over 8-bit RGB


@torch.no_grad()
def validate(
    model: GroupedMixer,
    pictures: Sequence[npt.NDArray[np.uint8]],  # [H, W, 3] each, at least one
    qualities: Sequence[float],
    metric: str = "mse",
) -> list[ValidationPoint]:
    """Measures the eval form: groups quantised step by step as in coding, rate by likelihoods.

    The model is not changed. Medians of z are computed anew, as they are when weights are written.

    Parameters
    ----------
    metric
        That of `rate_distortion_loss`.
    """
    device = model.latent_codec.thresholds.device
    model = copy.deepcopy(model).eval()
    model.latent_codec.refresh_medians()
    points = []
    for quality in qualities:
        sums = torch.zeros(3, dtype=torch.float64)
        for picture in pictures:
            x = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 255
            out = model(x, quality)
            out["x_hat"] = (out["x_hat"].clamp(0, 1) * 255).round() / 255
            loss, bpp, mse = rate_distortion_loss(x, out, out["quality"], metric)
            psnr = 10 * (255**2 / mse.clamp(min=1e-10)).log10()
            sums += torch.stack([loss, bpp[0], psnr[0]]).double().cpu()
        points.append(ValidationPoint(quality, *(sums / len(pictures)).tolist()))
    return points
