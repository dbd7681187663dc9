# SPDX-License-Identifier: MIT
"""The loss: rate plus lambda times distortion, every quality of the range counting alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor

from ..config import LAMBDAS

__all__ = ["Measured", "rate_distortion_loss"]

# compressai's multipliers on 1 - MS-SSIM are 1220 to 1340 times those on the MSE of the same
# quality: 1269 at its fifth, where both scales meet ours.
MS_SSIM_FACTOR = 1269.0


class Measured(NamedTuple):
    """What one batch cost."""

    loss: Tensor  # [] mean over pictures
    bpp: Tensor  # [B] bits per pixel
    mse: Tensor  # [B] over samples of 0..255


def rate_distortion_loss(
    x: Tensor,  # [B, 3, H, W] in 0..1
    out: dict[str, Any],
    quality: Tensor,  # [B] in 0..7
    metric: str = "mse",
) -> Measured:
    """Mean over pictures of (bpp + lambda * D) / sqrt(lambda).

    Along a curve of constant slope both terms grow like sqrt(lambda), so the division makes every
    level count alike.

    Parameters
    ----------
    out
        Of `GroupedMixer.forward`: ``x_hat`` [B, 3, H, W] and ``likelihoods``, each [B, ...].
    metric
        ``mse``: D is the MSE over 0..255. ``ms-ssim``: D is `MS_SSIM_FACTOR` times 1 - MS-SSIM;
        sides must be at least 161 pixels.
    """
    x_hat = out["x_hat"].float()
    pixels = x.shape[-2] * x.shape[-1]
    bits = [-torch.log2(p.float()).flatten(1).sum(1) for p in out["likelihoods"].values()]
    bpp = torch.stack(bits).sum(0) / pixels
    mse = ((x - x_hat) ** 2).flatten(1).mean(1) * 255**2
    if metric == "mse":
        distortion = mse
    else:
        similarity = ms_ssim(x, x_hat, data_range=1.0, size_average=False)
        distortion = MS_SSIM_FACTOR * (1 - similarity)
    lagrange = _interpolate(LAMBDAS, quality)
    loss = ((bpp + lagrange * distortion) / lagrange.sqrt()).mean()
    return Measured(loss, bpp, mse)


def _interpolate(
    lambdas: tuple[float, ...],  # one a level
    quality: Tensor,  # [B]
) -> Tensor:  # [B]
    """Lambda at a continuous quality: linear between levels in the logarithm."""
    logs = torch.tensor(lambdas, device=quality.device).log()
    lower = quality.floor().clamp(max=len(lambdas) - 2).long()
    return torch.lerp(logs[lower], logs[lower + 1], quality - lower).exp()
