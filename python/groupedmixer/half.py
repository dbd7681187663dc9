# SPDX-License-Identifier: MIT
"""The one rounding between a trained model and the weights that files are coded with."""

from __future__ import annotations

from torch import nn

__all__ = ["round_to_half"]


def round_to_half(module: nn.Module) -> None:
    """Rounds every parameter to the nearest float16, in place, as export does.

    Raises
    ------
    ValueError
        If a weight is not finite or overflows float16 (65504); names the weight and the value.
    """
    for name, parameter in module.named_parameters():
        half = parameter.data.half()
        if not bool(half.isfinite().all()):
            worst = parameter.data[~half.isfinite()].flatten()[0].item()
            raise ValueError(f"{name} must be finite and within float16 (65504), got {worst}")
        parameter.data.copy_(half)
