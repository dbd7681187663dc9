# SPDX-License-Identifier: MIT
"""The bundled photo at any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from groupedmixer.images import Picture, as_picture

__all__ = ["PHOTO", "photo"]

PHOTO = Path(__file__).parent / "data" / "flowers.png"


def photo(height: int, width: int) -> Picture:
    """The photo, mirrored and repeated to the size asked for: real statistics at any size."""
    image = np.asarray(Image.open(PHOTO).convert("RGB"))
    both = np.concatenate([image, image[:, ::-1]], axis=1)
    tile = np.concatenate([both, both[::-1]], axis=0)
    rows, columns = -(-height // tile.shape[0]), -(-width // tile.shape[1])
    repeated = np.tile(tile, (rows, columns, 1))[:height, :width]
    return as_picture(np.ascontiguousarray(repeated))
