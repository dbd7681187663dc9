# SPDX-License-Identifier: MIT
"""Every operator of `ops` in a few lines of PyTorch.

The definition the kernels are tested against with `torch.equal`, and a reading aid. Slow, and
without the kernels' checks of shapes and dtypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dequantize_group", "quantize_group", "scale_indexes"]


def quantize_group(
    y: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    raw_scale: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
    skip_below: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.quantize_group`."""
    _require_finite(y=y)
    indexes = scale_indexes(raw_scale, mean, thresholds)
    rounded = (y - mean).clamp(-32768, 32767).round()  # half to even
    symbols = rounded.masked_fill(indexes < skip_below, 0).to(torch.int16)
    return symbols, indexes, dequantize_group(symbols, mean)


def scale_indexes(
    raw_scale: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
) -> Tensor:
    """As `ops.scale_indexes`."""
    _require_finite(mean=mean, raw_scale=raw_scale)
    return (thresholds < raw_scale.unsqueeze(-1)).sum(-1).to(torch.uint8)


def dequantize_group(
    symbols: Tensor,  # [...] int16
    mean: Tensor,  # [...] float32
) -> Tensor:
    """As `ops.dequantize_group`."""
    return symbols.to(torch.float32) + mean


def _require_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise RuntimeError(f"{name} must be finite, got infinity or NaN")
