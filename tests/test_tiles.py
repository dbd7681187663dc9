# SPDX-License-Identifier: MIT
"""Tile grids: what files and the coding loop both go by."""

from __future__ import annotations

import pytest

from groupedmixer.tiles import latent_tiles, tile_grid


@pytest.mark.parametrize(
    ("size", "tile", "patch", "latent", "tiles"),
    [
        ((1, 1), 64, (1, 1), (1, 1), 1),
        ((65, 129), 64, (2, 2), (6, 10), 1),
        ((1024, 1024), 64, (2, 2), (64, 64), 1),
        ((1024, 1025), 64, (2, 2), (64, 66), 2),
        ((256, 256), 16, (3, 1), (18, 16), 2),
        ((720, 720), 16, (9, 9), (45, 45), 25),  # the pitch is 9
        ((1, 1 << 20), 64, (2, 16), (2, 65536), 1024),
    ],
)
def test_tile_grid(
    size: tuple[int, int],
    tile: int,
    patch: tuple[int, int],
    latent: tuple[int, int],
    tiles: int,
) -> None:
    grid = tile_grid(*size, tile, *patch)
    assert (grid.height, grid.width) == latent
    assert grid.count == len(list(grid.slices())) == tiles


def test_tiles_cover_the_grid_once_in_whole_patches() -> None:
    covered = [[0] * 50 for _ in range(42)]
    for rows, columns in latent_tiles(42, 50, 16, 3, 2).slices():
        assert (rows.stop - rows.start) % 3 == 0
        assert (columns.stop - columns.start) % 2 == 0
        for i in range(rows.start, rows.stop):
            for j in range(columns.start, columns.stop):
                covered[i][j] += 1
    assert all(count == 1 for row in covered for count in row)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 1, 64, 1, 1), "height"),
        ((1, (1 << 20) + 1, 64, 1, 1), "width"),
        ((1, 1, 63, 1, 1), "tile"),
        ((1, 1, 128, 1, 1), "tile"),
        ((1, 1, 64, 0, 1), "k_h"),
        ((1, 1, 64, 1, 17), "k_w"),
    ],
)
def test_what_is_out_of_range_is_named(
    arguments: tuple[int, int, int, int, int], name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        tile_grid(*arguments)


def test_a_latent_must_hold_whole_patches() -> None:
    with pytest.raises(ValueError, match="width must be a positive multiple of 2, got 5"):
        latent_tiles(4, 5, 64, 2, 2)
