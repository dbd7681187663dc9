# SPDX-License-Identifier: MIT
"""What is asked of arrays that native code is about to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["require_array"]


def require_array(
    name: str, value: object, dtypes: Sequence[type[np.generic]], ndim: int | None = None
) -> None:
    """TypeError or ValueError, naming the argument, the rule and the value."""
    allowed = " or ".join(np.dtype(dtype).name for dtype in dtypes)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a numpy array of {allowed}, got {type(value).__name__}")
    if value.dtype not in [np.dtype(dtype) for dtype in dtypes]:
        raise TypeError(f"{name} must be of {allowed}, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {list(value.shape)}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{name} must be C-contiguous, got shape {list(value.shape)} with strides "
            f"{list(value.strides)}"
        )
    if not value.flags.aligned:
        raise ValueError(
            f"{name} must be aligned to {value.dtype.itemsize} bytes, got an array that begins "
            "between them; copy it"
        )
