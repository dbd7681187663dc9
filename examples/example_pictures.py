# SPDX-License-Identifier: MIT
"""Pictures for the examples: crops of yours, or made up ones that need no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class Pictures:
    """An endless supply of square crops.

    Parameters
    ----------
    folder
        Pictures are taken from here; None: they are made up.
    size
        Pixels along a side.
    seed
        The same seed gives the same pictures.

    Raises
    ------
    ValueError
        If the folder has no picture with sides of at least ``size``.
    """

    def __init__(self, folder: Path | None, size: int, seed: int = 0) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)
        self._paths: list[Path] = []
        if folder is not None:
            paths = (path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
            self._paths = sorted(path for path in paths if min(Image.open(path).size) >= size)
            if not self._paths:
                raise ValueError(f"{folder} must hold a picture of at least {size}x{size} pixels")

    def batch(self, count: int) -> Tensor:  # [count, 3, size, size] in 0..1
        """The next ``count`` crops."""
        crops = [self._crop() if self._paths else self._invented() for _ in range(count)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255

    def _crop(self) -> np.ndarray:  # uint8 [size, size, 3]
        image = Image.open(self._paths[self._random.integers(len(self._paths))]).convert("RGB")
        left = int(self._random.integers(image.width - self._size + 1))
        top = int(self._random.integers(image.height - self._size + 1))
        return np.asarray(image.crop((left, top, left + self._size, top + self._size)))

    def _invented(self) -> np.ndarray:  # uint8 [size, size, 3]
        """A smooth background, objects with edges before it, and grain on some of them."""
        random, size = self._random, self._size
        coarse = Image.fromarray(random.integers(30, 226, (3, 3, 3), np.uint8))
        picture = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        picture = picture.copy()
        row, column = np.mgrid[:size, :size].astype(np.float32)
        for _ in range(6):
            y, x, height, width = random.uniform((0, 0, 0.05, 0.05), (1, 1, 0.4, 0.4)) * size
            inside = ((row - y) / height) ** 2 + ((column - x) / width) ** 2 < 1
            grain = random.normal(0, random.uniform(0, 12), (size, size, 1))
            slope = random.uniform(-1, 1) * (row - y)[..., None]
            picture[inside] = (random.uniform(0, 255, 3) + slope + grain)[inside]
        return picture.clip(0, 255).astype(np.uint8)
