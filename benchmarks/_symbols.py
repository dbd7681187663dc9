# SPDX-License-Identifier: MIT
"""The symbols of a picture's latent with the scales that predict them, and what they should cost.

Computed by the coding form in PyTorch. Its means and scales differ from the native engine's in
their last bits, so a few symbols in a million differ from those of a file; `coded_size.py` compares
the streams.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _eager import prepare
from _models import to_tensor
from numpy.typing import NDArray
from torch import Tensor

from groupedmixer import GroupedMixer
from groupedmixer.coding import TILE
from groupedmixer.entropy import SCALE_MAX, SCALE_MIN, SHAPE
from groupedmixer.images import Picture
from groupedmixer.mixer import Prediction, run_groups

__all__ = ["LatentSymbols", "add_kodak_option", "gaussian_bits", "latent_symbols", "model_bits"]

# ScaleMixtureLikelihood's: what training takes for the cost of a symbol that should not happen.
_MIN_LIKELIHOOD = 1e-9


class LatentSymbols(NamedTuple):
    """y of one tile, group by group in coding order: row g is what one `push` codes."""

    symbols: NDArray[np.int16]  # [G, N]
    indexes: NDArray[np.uint8]  # [G, N], of the 64 tables; below SKIP_BELOW nothing is coded
    sigmas: NDArray[np.float64]  # [G, N] as predicted, within the tables' range as in training


@torch.inference_mode()
def latent_symbols(model: GroupedMixer, picture: Picture, quality: float) -> LatentSymbols:
    """Of a picture of one tile. ValueError for larger ones."""
    codec = model.latent_codec
    tiles = prepare(model, to_tensor(picture), quality, TILE)
    if len(tiles) != 1:
        raise ValueError(f"picture must fit one tile, got {picture.width}x{picture.height}")
    (inputs,) = tiles
    groups, _, channels = inputs.y.shape
    y = inputs.y.view(groups, inputs.h, inputs.w, channels)
    psi = inputs.psi.view(groups, inputs.h, inputs.w, -1)
    symbols = torch.empty(y.shape, dtype=torch.int16)
    indexes = torch.empty(y.shape, dtype=torch.uint8)
    raw_scales = torch.empty(y.shape)

    def quantise(step: int, prediction: Prediction) -> Tensor:
        index = torch.searchsorted(codec.thresholds, prediction.raw_scale)
        rounded, skipped = codec.quantise(y[step], prediction)
        rounded = rounded.masked_fill(skipped, 0)
        symbols[step], indexes[step] = rounded.to(torch.int16), index.to(torch.uint8)
        raw_scales[step] = prediction.raw_scale
        return rounded + prediction.mean

    run_groups(codec.context, psi, inputs.level, quantise)
    logs = raw_scales.double().clamp(math.log(SCALE_MIN), math.log(SCALE_MAX))
    rows = (groups, -1)
    return LatentSymbols(
        symbols.view(rows).numpy(), indexes.view(rows).numpy(), logs.exp().view(rows).numpy()
    )


def gaussian_bits(
    symbols: NDArray[np.int16],  # [...]
    sigmas: NDArray[np.float64],  # [...]
) -> NDArray[np.float64]:  # [...]
    """Bits of each symbol by a Gaussian's mass over its unit interval."""
    return _mixture_bits(symbols, sigmas, ((1.0, 1.0),))


def model_bits(
    symbols: NDArray[np.int16],  # [...]
    sigmas: NDArray[np.float64],  # [...]
) -> NDArray[np.float64]:  # [...]
    """Bits of each symbol by the entropy model, as the likelihoods of training but in float64."""
    return _mixture_bits(symbols, sigmas, SHAPE)


def _mixture_bits(
    symbols: NDArray[np.int16],  # [...]
    sigmas: NDArray[np.float64],  # [...]
    shape: tuple[tuple[float, float], ...],  # weights and relative standard deviations
) -> NDArray[np.float64]:  # [...]
    distance = torch.from_numpy(np.abs(symbols.astype(np.float64)))
    inverse = torch.from_numpy(math.sqrt(0.5) / sigmas)
    # Both tails on the side where erfc does not cancel.
    mass = torch.zeros_like(distance)
    for weight, width in shape:
        near = torch.special.erfc((distance - 0.5) * inverse / width)
        mass += 0.5 * weight * (near - torch.special.erfc((distance + 0.5) * inverse / width))
    bits: NDArray[np.float64] = -mass.clamp(min=_MIN_LIKELIHOOD).log2().numpy()
    return bits


def add_kodak_option(parser: argparse.ArgumentParser) -> None:
    """``--kodak``, the folder of the pictures; by default that of ``$GROUPEDMIXER_KODAK``."""
    folder = os.environ.get("GROUPEDMIXER_KODAK")
    parser.add_argument(
        "--kodak",
        type=Path,
        default=Path(folder) if folder else None,
        metavar="FOLDER",
        help="with kodim01.png and so on; default: $GROUPEDMIXER_KODAK",
    )
