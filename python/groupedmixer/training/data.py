# SPDX-License-Identifier: MIT
"""Training pictures from folders and tar files, and the endless sequence of crops of them.

READ ME FIRST
- Crop number i is a function of the seed and i alone. Processes and workers share the sequence out
  by number, and a resumed run goes on at the next number: there is no state to keep.
- A tar file is read at random positions, so that large sets need no unpacking. It must not be
  compressed as a whole.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import GmxError
from ..images import read_picture

__all__ = ["CropSequence", "PictureFile", "crop_loader", "find_pictures", "is_small"]

_Picture = npt.NDArray[np.uint8]  # [H, W, 3]
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp"}

# Encoded bytes of a set that is kept in memory; decoded it is five to ten times as large.
_SMALL = 2**30

# Bad files in a row, in the order of the crops, after which a streamed set is given up.
_PATIENCE = 100


@dataclass(frozen=True)
class PictureFile:
    """Where a picture's encoded bytes are."""

    source: Path  # the file itself, or the tar file that holds it
    member: str  # name inside the tar file; empty for a file of its own
    offset: int
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.source}/{self.member}" if self.member else str(self.source)

    def decode(self, smallest: int) -> _Picture:
        """The picture.

        Raises
        ------
        GmxError, OSError
            If it cannot be read.
        ValueError
            If a side is smaller than ``smallest``.
        """
        with open(self.source, "rb") as stream:
            stream.seek(self.offset)
            picture = read_picture(io.BytesIO(stream.read(self.size))).rgb
        height, width = picture.shape[:2]
        if min(height, width) < smallest:
            raise ValueError(f"both sides must be at least {smallest}, got {width} x {height}")
        return picture


def find_pictures(
    sources: Sequence[Path], exclude: Collection[str] = frozenset()
) -> list[PictureFile]:
    """All picture files of folders (searched recursively) and tar files, by their suffix.

    Parameters
    ----------
    exclude
        File names to leave out.

    Raises
    ------
    OSError
        If a source cannot be read.
    ValueError
        If a source is neither a folder nor an uncompressed tar file, or there is no picture.
    """
    found = [file for source in sources for file in _pictures_in(source)]
    kept = [file for file in found if Path(file.member or file.source).name not in exclude]
    if not kept:
        raise ValueError(
            f"data must hold at least one picture, got {len(found)} in "
            f"{', '.join(map(str, sources))}, {len(found) - len(kept)} of them excluded"
        )
    return kept


def _pictures_in(source: Path) -> Iterator[PictureFile]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                yield PictureFile(path, "", 0, path.stat().st_size)
        return
    try:
        archive = tarfile.open(source, "r:")
    except tarfile.ReadError as error:
        raise ValueError(
            f"data must be folders and uncompressed tar files, got {source}: {error}"
        ) from error
    with archive:
        for member in archive:
            plain = member.isreg() and not member.issparse()
            if plain and Path(member.name).suffix.lower() in _SUFFIXES:
                yield PictureFile(source, member.name, member.offset_data, member.size)


def is_small(files: Sequence[PictureFile]) -> bool:
    """Whether the decoded pictures fit into the memory of an ordinary machine."""
    return sum(file.size for file in files) <= _SMALL


class CropSequence(Dataset[Tensor]):
    """Endless random crops with flips and right-angle turns; every picture once an epoch.

    Parameters
    ----------
    files
        Of `find_pictures`.
    crop
        Side of a crop in pixels.
    seed
        The same seed gives the same crops.
    stream
        Decode pictures when they are needed, else now, to keep them.

    Attributes
    ----------
    problems
        One line for every file found bad so far. A streamed one is also reported on stderr when
        it is met, and the next good picture stands in for it.

    Raises
    ------
    ValueError
        If no picture is left.
    """

    def __init__(
        self, files: Sequence[PictureFile], crop: int, seed: int, stream: bool = False
    ) -> None:
        self._crop, self._seed = crop, seed
        self._files = list(files)
        self.problems: list[str] = []
        self._kept: list[_Picture] | None = None
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None
        if not stream:
            decoded = (self._decode(file) for file in self._files)
            self._kept = [picture for picture in decoded if picture is not None]
            if not self._kept:
                raise ValueError(
                    f"data must hold a picture that can be used, all {len(self._files)} are bad; "
                    f"the first: {self.problems[0]}"
                )

    @property
    def pictures(self) -> int:
        """How many pictures take part, as far as is known."""
        return len(self._files if self._kept is None else self._kept)

    def __getitem__(self, number: int) -> Tensor:  # [3, crop, crop] uint8
        epoch, place = divmod(number, self.pictures)
        picture = self._picture(self._permutation(epoch), place)
        random = np.random.default_rng([self._seed, 1, number])
        top = random.integers(picture.shape[0] - self._crop + 1)
        left = random.integers(picture.shape[1] - self._crop + 1)
        crop = picture[top : top + self._crop, left : left + self._crop]
        crop = np.rot90(crop, random.integers(4))
        crop = crop[:, ::-1] if random.integers(2) else crop
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            random = np.random.default_rng([self._seed, 0, epoch])
            self._order = (epoch, random.permutation(self.pictures))
        return self._order[1]

    def _picture(self, order: npt.NDArray[np.int64], place: int) -> _Picture:
        if self._kept is not None:
            return self._kept[order[place]]
        for further in range(_PATIENCE):
            file = self._files[order[(place + further) % len(order)]]
            known = len(self.problems)
            picture = self._decode(file)
            if picture is not None:
                return picture
            for problem in self.problems[known:]:
                print(f"skipped {problem}", file=sys.stderr, flush=True)
        raise ValueError(
            f"data must hold pictures that can be used, {_PATIENCE} in a row are bad; the first: "
            f"{self.problems[0]}"
        )

    def _decode(self, file: PictureFile) -> _Picture | None:
        try:
            return file.decode(self._crop)
        except (GmxError, OSError, ValueError) as error:
            problem = f"{file}: {error}"
            if problem not in self.problems:
                self.problems.append(problem)
            return None


class _Numbers(Sampler[int]):
    """first, first + step, ... without end."""

    def __init__(self, first: int, step: int) -> None:
        self._first, self._step = first, step

    def __iter__(self) -> Iterator[int]:
        number = self._first
        while True:
            yield number
            number += self._step


def crop_loader(
    crops: CropSequence,
    batch: int,
    workers: int | None,
    start: int,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Tensor]:
    """Batches [batch, 3, crop, crop] uint8 of one process's share of the crops, without end.

    Parameters
    ----------
    workers
        Processes that decode; None: none where pictures are in memory, else one a core, 8 at most.
    start
        Number of the first crop of all processes together.
    """
    if workers is None:
        workers = 0 if crops._kept is not None else min(8, os.cpu_count() or 1)
    return DataLoader(
        crops,
        batch_size=batch,
        sampler=_Numbers(start + rank, world_size),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
