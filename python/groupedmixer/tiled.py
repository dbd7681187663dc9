# SPDX-License-Identifier: MIT
"""PyTorch transforms on pictures of any size, in bounded memory.

A tile is computed with a margin of the transform's receptive field, clipped at the picture, where
the convolutions' own padding takes over as it does on the whole picture. PyTorch's sums may differ
in their last bits with the size of what they run on, so tiles agree with the whole to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .tiles import LATENT_STRIDE as STRIDE

__all__ = ["MARGIN", "TILE", "analyse", "synthesise"]

# Latents. Larger tiles repeat less of their margins, and take more memory: 1.1 GiB for base's g_s.
TILE = 48
# Latents; the ELIC transforms see 132 pixels (g_a) and 147 (g_s) beyond a position.
MARGIN = 10


class _Cut(NamedTuple):
    """A tile of an axis, and the stretch that it is computed from."""

    begin: int
    end: int
    outer_begin: int
    outer_end: int

    @property
    def inner(self) -> slice:  # of what comes out for the outer stretch
        return slice(self.begin - self.outer_begin, self.end - self.outer_begin)

    @property
    def outer(self) -> slice:
        return slice(self.outer_begin, self.outer_end)


def analyse(
    g_a: nn.Module,
    x: Tensor,  # [1, 3, 16H, 16W]
    tile: int = TILE,
) -> Tensor:  # [1, M, H, W]
    """g_a, tile by tile."""
    height, width = x.shape[-2] // STRIDE, x.shape[-1] // STRIDE
    rows = []
    for row in _cuts(0, height, height, tile):
        parts = []
        for column in _cuts(0, width, width, tile):
            y = g_a(x[:, :, _pixels(row.outer), _pixels(column.outer)])
            parts.append(y[:, :, row.inner, column.inner])
        rows.append(torch.cat(parts, dim=3))
    return torch.cat(rows, dim=2)


def synthesise(
    g_s: nn.Module,
    y_hat: Tensor,  # [1, M, H, W]
    rows: tuple[int, int],  # begin and end of the latent rows whose pixels are wanted
    columns: tuple[int, int],
    tile: int = TILE,
) -> Iterator[tuple[int, int, Tensor]]:
    """g_s, tile by tile: yields (first pixel row, first pixel column, pixels [3, h, w])."""
    height, width = y_hat.shape[-2:]
    for row in _cuts(*rows, height, tile):
        for column in _cuts(*columns, width, tile):
            pixels = g_s(y_hat[:, :, row.outer, column.outer])[0]
            yield (
                row.begin * STRIDE,
                column.begin * STRIDE,
                pixels[:, _pixels(row.inner), _pixels(column.inner)],
            )


def _cuts(begin: int, end: int, length: int, tile: int) -> Iterator[_Cut]:
    for at in range(begin, end, tile):
        stop = min(at + tile, end)
        yield _Cut(at, stop, max(at - MARGIN, 0), min(stop + MARGIN, length))


def _pixels(latents: slice) -> slice:
    return slice(latents.start * STRIDE, latents.stop * STRIDE)
