# SPDX-License-Identifier: MIT
"""How a picture's latent is cut into tiles that are coded on their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .limits import MAX_SIDE

__all__ = [
    "LATENT_STRIDE",
    "MAX_PATCH",
    "MAX_TILE",
    "MIN_TILE",
    "TileGrid",
    "is_tile_size",
    "latent_size",
    "latent_tiles",
    "tile_grid",
]

LATENT_STRIDE = 16  # pixels per latent position, along each side
# Latents; a tile size is a power of two. The context cache of a tile is what a decoder must hold at
# once, and a header of a few bytes must not be able to ask for more of it than an encoder does.
MIN_TILE, MAX_TILE = 16, 64
MAX_PATCH = MIN_TILE  # k_h, k_w: so a tile holds at least one patch


@dataclass(frozen=True)
class TileGrid:
    """A latent grid and the pitch of its tiles, in latent positions."""

    height: int
    width: int
    pitch_h: int
    pitch_w: int

    @property
    def count(self) -> int:
        """The number of tiles."""
        return -(-self.height // self.pitch_h) * -(-self.width // self.pitch_w)

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile in raster order; the last ones may be smaller."""
        for top in range(0, self.height, self.pitch_h):
            for left in range(0, self.width, self.pitch_w):
                yield (
                    slice(top, min(top + self.pitch_h, self.height)),
                    slice(left, min(left + self.pitch_w, self.width)),
                )


def is_tile_size(tile: int) -> bool:
    """Whether files may have tiles of this many latents: 16, 32 or 64."""
    return MIN_TILE <= tile <= MAX_TILE and tile & (tile - 1) == 0


def latent_size(height: int, width: int, k_h: int, k_w: int) -> tuple[int, int]:
    """The latent grid of an image: ceil(size / 16), rounded up to multiples of (k_h, k_w)."""
    rows, columns = -(-height // LATENT_STRIDE), -(-width // LATENT_STRIDE)
    return -(-rows // k_h) * k_h, -(-columns // k_w) * k_w


def latent_tiles(height: int, width: int, tile: int, k_h: int, k_w: int) -> TileGrid:
    """The tiles of a latent grid: their pitch is the tile size, rounded down to whole patches.

    Raises
    ------
    ValueError
        If a side is not a positive multiple of its patch, or the tile size or patch is not
        allowed.
    """
    if not is_tile_size(tile):
        raise ValueError(f"tile must be a power of two in {MIN_TILE}..{MAX_TILE}, got {tile}")
    for name, value in (("k_h", k_h), ("k_w", k_w)):
        if not 1 <= value <= MAX_PATCH:
            raise ValueError(f"{name} must be in 1..{MAX_PATCH}, got {value}")
    for name, side, multiple in (("height", height, k_h), ("width", width, k_w)):
        if side < 1 or side % multiple:
            raise ValueError(f"{name} must be a positive multiple of {multiple}, got {side}")
    return TileGrid(height, width, tile - tile % k_h, tile - tile % k_w)


def tile_grid(height: int, width: int, tile: int, k_h: int, k_w: int) -> TileGrid:
    """The tiles of a picture of height x width pixels. ValueError as in `latent_tiles`."""
    for name, value, most in (
        ("height", height, MAX_SIDE),
        ("width", width, MAX_SIDE),
        ("k_h", k_h, MAX_PATCH),
        ("k_w", k_w, MAX_PATCH),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be in 1..{most}, got {value}")
    return latent_tiles(*latent_size(height, width, k_h, k_w), tile, k_h, k_w)
