# SPDX-License-Identifier: MIT
"""Training pictures from folders and tar files, kept decoded in memory."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import GmxError
from ..images import read_picture

__all__ = ["CropSampler", "load_pictures"]

_Picture = npt.NDArray[np.uint8]  # [H, W, 3]
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp"}


def _encoded(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every picture file in a folder (recursively) or a tar file."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                yield path.name, path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and Path(member.name).suffix.lower() in _SUFFIXES:
                yield Path(member.name).name, file.read()


def load_pictures(
    sources: list[Path], crop: int, exclude: frozenset[str] = frozenset()
) -> tuple[list[_Picture], list[str]]:
    """Decodes all pictures of at least ``crop`` x ``crop`` pixels.

    Parameters
    ----------
    sources
        Folders and tar files.
    exclude
        File names to leave out.

    Returns
    -------
    pictures
        uint8 [H, W, 3] each.
    problems
        One line for every file that was skipped because it is unreadable or too small.

    Raises
    ------
    ValueError
        If nothing is left.
    """
    pictures, problems = [], []
    for source in sources:
        for name, data in _encoded(source):
            if name in exclude:
                continue
            try:
                picture = read_picture(io.BytesIO(data)).rgb
            except GmxError as error:
                problems.append(f"{source}/{name}: {error}")
                continue
            if min(picture.shape[:2]) < crop:
                problems.append(f"{source}/{name}: {picture.shape[:2]} is smaller than {crop}")
                continue
            pictures.append(picture)
    if not pictures:
        raise ValueError(f"sources must hold at least one picture, found none in {sources}")
    return pictures, problems


class CropSampler:
    """Endless random crops with flips and right-angle turns; every picture once an epoch.

    Parameters
    ----------
    pictures
        uint8 [H, W, 3] each, at least ``crop`` pixels on both sides.
    seed
        The same seed gives the same batches.
    """

    def __init__(self, pictures: list[_Picture], batch: int, crop: int, seed: int) -> None:
        self._pictures, self._batch, self._crop = pictures, batch, crop
        self._random = np.random.default_rng(seed)
        self._queue: list[int] = []

    def next_batch(self) -> Tensor:  # [batch, 3, crop, crop] float32 in 0..1
        """The next crops."""
        crops = np.stack([self._next_crop() for _ in range(self._batch)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)

    def state(self) -> str:
        """Where the sampler stands, for `restore`."""
        return json.dumps([self._random.bit_generator.state, self._queue])

    def restore(self, state: str) -> None:
        """Goes on where the sampler stood that gave this state. The pictures must be the same."""
        self._random.bit_generator.state, self._queue = json.loads(state)

    def _next_crop(self) -> _Picture:
        if not self._queue:
            self._queue = self._random.permutation(len(self._pictures)).tolist()
        picture = self._pictures[self._queue.pop()]
        top = self._random.integers(picture.shape[0] - self._crop + 1)
        left = self._random.integers(picture.shape[1] - self._crop + 1)
        crop = picture[top : top + self._crop, left : left + self._crop]
        crop = np.rot90(crop, self._random.integers(4))
        return crop[:, ::-1] if self._random.integers(2) else crop
