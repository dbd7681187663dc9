# SPDX-License-Identifier: MIT
"""The module that a step runs: a model in its training form or, at the end, its coding form."""

from __future__ import annotations

from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.ops import quantize_ste
from torch import Tensor, nn

from ..container import QUALITY_STEPS
from ..mixer import interpolate_levels
from ..model import GroupedMixer

__all__ = ["TrainedModel", "coding_form", "refresh_medians"]


class TrainedModel(nn.Module):
    """A model behind integer inputs: mixed precision would round pixels and qualities that are
    floating point before the model could keep what it needs.

    .. code-block:: none

        uint8 pixels --/255--.
                             |--> GroupedMixer.forward or coding_form --> x_hat, likelihoods
        quality * 256 --/256-'
    """

    def __init__(self, model: GroupedMixer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixels: Tensor,  # [B, 3, H, W] uint8
        quality_field: Tensor,  # [B] int64, quality * 256 as files store it
        as_coded: bool = False,
    ) -> dict[str, Any]:
        """``x_hat`` [B, 3, H, W] and ``likelihoods``, see `GroupedMixer.forward`."""
        x = pixels.float() / 255
        quality = quality_field.float() / QUALITY_STEPS
        return coding_form(self.model, x, quality) if as_coded else self.model(x, quality)


def coding_form(
    model: GroupedMixer,
    x: Tensor,  # [B, 3, H, W] in 0..1
    quality: Tensor,  # [B] in 0..7
) -> dict[str, Any]:
    """As `GroupedMixer.forward` in training mode, with exactly the latent that a file would hold.

    .. code-block:: none

        pass 1, no gradient   groups one after another, each around the mean that the decoded ones
                              before it predict, skipped symbols included --> y_hat
        pass 2, gradient      all groups at once from that y_hat --> mean, scale
                              symbols = round(y - mean), straight through, for rate and y_hat alike

    `GroupedMixer.forward` makes do with a first pass over all groups at once, which is faster, and
    with noise in z, which is rounded here.

    The medians of z are those that were last computed (`refresh_medians`).
    """
    codec = model.latent_codec
    grouping = codec.context.grouping
    y = model.g_a(model.pad(x))
    # The two passes must agree on every mean to a fraction of a step: no autocast between them.
    with torch.autocast(x.device.type, enabled=False):
        scaled = y.float() * _gains(codec.gain, quality)
        groups = grouping.split(scaled)
        z = codec.h_a(scaled) * _gains(codec.hyper_gain, quality)
        z_hat, z_likelihoods = _round_hyper_latent(codec.entropy_bottleneck, z)
        z_hat = z_hat * _gains(codec.hyper_inverse_gain, quality)
        psi = grouping.at_groups(codec.h_s(z_hat, (y.shape[-2], y.shape[-1])))
        with torch.no_grad():
            _, _, decoded = codec._quantise_stepwise(groups, psi, quality)
        likelihoods, y_hat = codec._straight_through(groups, decoded, psi, quality)
        y_hat = grouping.merge(y_hat) * codec._inverse_gain(quality)[:, :, None, None]
    return {
        "x_hat": model.g_s(y_hat)[..., : x.shape[-2], : x.shape[-1]],
        "likelihoods": {"y": grouping.merge(likelihoods), "z": z_likelihoods},
    }


def refresh_medians(model: GroupedMixer) -> None:
    """Computes the medians around which the coding form rounds z; training leaves them behind."""
    model.latent_codec.entropy_bottleneck._update_quantiles()


def _round_hyper_latent(
    bottleneck: EntropyBottleneck,
    z: Tensor,  # [B, N_z, h, w]
) -> tuple[Tensor, Tensor]:  # z_hat and likelihoods, as z
    """z rounded around its medians; both results pass the gradient straight to z."""
    medians = bottleneck._get_medians().detach().reshape(1, -1, 1, 1)
    z_hat = quantize_ste(z - medians) + medians
    values = z_hat.transpose(0, 1)  # [N_z, B, h, w]
    likelihoods, _, _ = bottleneck._likelihood(values.reshape(values.shape[0], 1, -1))
    likelihoods = bottleneck.likelihood_lower_bound(likelihoods)
    return z_hat, likelihoods.reshape(values.shape).transpose(0, 1)


def _gains(
    table: Tensor,  # [levels, C]
    quality: Tensor,  # [B]
) -> Tensor:  # [B, C, 1, 1]
    return interpolate_levels(table, quality)[:, :, None, None]
