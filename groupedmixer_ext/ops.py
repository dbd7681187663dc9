# SPDX-License-Identifier: MIT
"""The native operators, one typed function each.

All of them run on the CPU and, where built, on CUDA, and give the same bits on both and on every
instruction set. `reference` holds the same functions in plain PyTorch.

None of them has a gradient, and tensors that would need one are an error: call them under
``torch.no_grad()``, or with ``tensor.detach()``.
"""

from __future__ import annotations

import importlib.util
from typing import cast

import torch
from torch import Tensor

__all__ = [
    "ISAS",
    "active_isa",
    "dequantize_group",
    "isa_available",
    "quantize_group",
    "scale_indexes",
]


def _load_library() -> None:
    spec = importlib.util.find_spec("groupedmixer_ext._C")
    if spec is None or spec.origin is None:
        raise ImportError(
            "groupedmixer_ext has no compiled kernels: run `pip install .` in the source tree"
        )
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        from groupedmixer_ext import _build_info

        raise ImportError(
            f"the kernels of groupedmixer_ext were built for torch {_build_info.TORCH} with CUDA "
            f"{_build_info.CUDA} and do not load on torch {torch.__version__} with CUDA "
            f"{torch.version.cuda}: {error}"
        ) from error


_load_library()

ISAS: tuple[str, ...] = tuple(torch.ops.groupedmixer.isa_names.default().split())
"""Variants of the CPU kernels in this build, widest last."""


def active_isa() -> str:
    """The variant of the CPU kernels that runs in this process.

    The widest available one, unless the environment variable ``GROUPEDMIXER_ISA`` names another.

    Raises
    ------
    RuntimeError
        If the variable names no variant, or one that this machine cannot run.
    """
    return ISAS[torch.ops.groupedmixer.active_isa.default()]


def isa_available(name: str) -> bool:
    """Whether this machine can run a variant of `ISAS`."""
    if name not in ISAS:
        raise ValueError(f"name must be one of {', '.join(ISAS)}, got {name!r}")
    return cast(bool, torch.ops.groupedmixer.isa_available.default(ISAS.index(name)))


def _require_usable(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} must not require grad, as the operator has no gradient; call it under "
                f"torch.no_grad() or with {name}.detach()"
            )
        if tensor.is_cuda:
            _require_cuda(name)


def _require_cuda(name: str) -> None:
    from groupedmixer_ext import _build_info

    if _build_info.CUDA is None:
        raise RuntimeError(
            f"{name} must be on the CPU, as the kernels were built without CUDA "
            f"({_build_info.CUDA_REASON}); to build them with it, run "
            "`GROUPEDMIXER_CUDA=1 pip install .` in the source tree"
        )


def quantize_group(
    y: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    raw_scale: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
    skip_below: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns a group of the latent into symbols and table indexes, for the encoder.

    ``index`` is the number of thresholds strictly below ``raw_scale``; ``symbol`` is ``y - mean``
    rounded half to even and clamped to int16, or 0 where ``index < skip_below``; ``y_hat`` is
    ``symbol + mean`` in float32.

    Parameters
    ----------
    y, mean, raw_scale : float32 tensors, contiguous  # [...]
    thresholds : float32 tensor, contiguous  # [T], T <= 255
        Ascending.
    skip_below : int
        0 .. T + 1.

    Returns
    -------
    symbols : int16 tensor  # [...]
    indexes : uint8 tensor  # [...]
    y_hat : float32 tensor  # [...]

    Raises
    ------
    RuntimeError
        If an argument breaks these rules, holds infinity or NaN (to find that out, the CUDA variant
        waits for its stream), would need a gradient, or is on CUDA in a build without it.
    """
    _require_usable(y=y, mean=mean, raw_scale=raw_scale, thresholds=thresholds)
    return cast(
        tuple[Tensor, Tensor, Tensor],
        torch.ops.groupedmixer.quantize_group.default(y, mean, raw_scale, thresholds, skip_below),
    )


def scale_indexes(
    raw_scale: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
) -> Tensor:
    """Computes the table indexes of a group, for the decoder; see `quantize_group`.

    Parameters
    ----------
    raw_scale : float32 tensor, contiguous  # [...]
    mean : float32 tensor, contiguous  # [...]
        Does not influence the result, but is checked to be finite as the encoder does.
    thresholds : float32 tensor, contiguous  # [T], T <= 255

    Returns
    -------
    indexes : uint8 tensor  # [...]

    Raises
    ------
    RuntimeError
        As `quantize_group`.
    """
    _require_usable(raw_scale=raw_scale, mean=mean, thresholds=thresholds)
    return cast(Tensor, torch.ops.groupedmixer.scale_indexes.default(raw_scale, mean, thresholds))


def dequantize_group(
    symbols: Tensor,  # [...] int16
    mean: Tensor,  # [...] float32
) -> Tensor:
    """Computes ``symbols + mean`` in float32, the decoder's `y_hat`.

    Parameters
    ----------
    symbols : int16 tensor, contiguous  # [...]
    mean : float32 tensor, contiguous  # [...]

    Returns
    -------
    y_hat : float32 tensor  # [...]

    Raises
    ------
    RuntimeError
        If an argument breaks these rules, would need a gradient, or is on CUDA in a build without
        it.
    """
    _require_usable(symbols=symbols, mean=mean)
    return cast(Tensor, torch.ops.groupedmixer.dequantize_group.default(symbols, mean))


def _quantize_group_fake(
    y: Tensor, mean: Tensor, raw_scale: Tensor, thresholds: Tensor, skip_below: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        y.new_empty(y.shape, dtype=torch.int16),
        y.new_empty(y.shape, dtype=torch.uint8),
        y.new_empty(y.shape),
    )


def _scale_indexes_fake(raw_scale: Tensor, mean: Tensor, thresholds: Tensor) -> Tensor:
    return raw_scale.new_empty(raw_scale.shape, dtype=torch.uint8)


def _dequantize_group_fake(symbols: Tensor, mean: Tensor) -> Tensor:
    return mean.new_empty(mean.shape)


torch.library.register_fake("groupedmixer::quantize_group", _quantize_group_fake)
torch.library.register_fake("groupedmixer::scale_indexes", _scale_indexes_fake)
torch.library.register_fake("groupedmixer::dequantize_group", _dequantize_group_fake)
