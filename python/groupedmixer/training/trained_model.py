# SPDX-License-Identifier: MIT
"""The module that a step runs: a model behind integer inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..container import QUALITY_STEPS
from ..model import GroupedMixer

__all__ = ["TrainedModel"]


class TrainedModel(nn.Module):
    """A model behind integer inputs: mixed precision would round pixels and qualities that are
    floating point before the model could keep what it needs.

    .. code-block:: none

        uint8 pixels --/255--.
                             |--> GroupedMixer.forward --> x_hat, likelihoods
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
        return self.model(x, quality, as_coded)
