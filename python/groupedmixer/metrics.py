# SPDX-License-Identifier: MIT
"""How far a decoded picture is from its original: PSNR and MS-SSIM over RGB."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_MS_SSIM_SIDE", "PSNR_OF_EQUALS", "ms_ssim", "psnr"]

PSNR_OF_EQUALS = 100.0
"""dB of two equal pictures: one flat picture must not make the mean of a folder infinite."""

# MS-SSIM halves the picture four times, and its window of 11 pixels must fit into the smallest.
MIN_MS_SSIM_SIDE = (11 - 1) * 2**4 + 1

_ROWS = 64

_UInt8Array = npt.NDArray[np.uint8]


def psnr(
    original: _UInt8Array,  # [H, W, 3]
    decoded: _UInt8Array,  # [H, W, 3]
) -> float:
    """Peak signal-to-noise ratio in dB, of the mean squared error over all samples.

    `PSNR_OF_EQUALS` if the pictures are equal.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _check(original, decoded)
    # Integers, and some rows at a time: exact, and little memory for the largest pictures.
    error = 0
    for top in range(0, len(original), _ROWS):
        rows = slice(top, top + _ROWS)
        error += int(((original[rows].astype(np.int64) - decoded[rows]) ** 2).sum())
    return 10 * math.log10(255**2 * original.size / error) if error else PSNR_OF_EQUALS


def ms_ssim(
    original: _UInt8Array,  # [H, W, 3]
    decoded: _UInt8Array,  # [H, W, 3]
) -> float | None:
    """Multi-scale structural similarity in 0..1, the mean over R, G and B.

    None where a side is shorter than `MIN_MS_SSIM_SIDE` (161) pixels: it is not defined there.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _check(original, decoded)
    if min(original.shape[:2]) < MIN_MS_SSIM_SIDE:
        return None
    import torch
    from pytorch_msssim import ms_ssim as of_batches

    x, y = (
        torch.from_numpy(np.array(one)).permute(2, 0, 1)[None].float()
        for one in (original, decoded)
    )
    return min(float(of_batches(x, y, data_range=255)), 1.0)  # float32 may end a little above


def _check(original: _UInt8Array, decoded: _UInt8Array) -> None:
    if original.shape != decoded.shape:
        raise ValueError(
            f"decoded must be {list(original.shape)} as original, got {list(decoded.shape)}"
        )
