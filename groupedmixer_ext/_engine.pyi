# SPDX-License-Identifier: MIT
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Tables: TypeAlias = tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.int32]]
_Settings: TypeAlias = tuple[int, int, int]  # quality, skip_below, tile
_Tile: TypeAlias = tuple[bytes | memoryview, int, bool]  # stream, checksum, wanted
_Times: TypeAlias = dict[str, float]
_Progress: TypeAlias = Callable[[int, int], object] | None  # tiles done, tiles in all
# [(stream, checksum)], (num_symbols, num_coded, num_escaped)
_Coded: TypeAlias = tuple[list[tuple[bytes, int]], tuple[int, int, int]]

class TileError(ValueError): ...
class NonFiniteError(FloatingPointError): ...

class Coders:
    def __init__(
        self,
        *,
        weights: Mapping[str, NDArray[np.float32]],
        latent_channels: int,
        hyper_width: int,
        hyper_channels: int,
        slices: int,
        patch: tuple[int, int],
        width: int,
        layers: int,
        lrp: bool,
        order: Sequence[tuple[int, int, int]],
        patch_transform: tuple[int, int, int, int] | None,
        y_tables: _Tables,
        z_tables: _Tables,
    ) -> None: ...
    @property
    def has_transform(self) -> bool: ...
    def inverse_gains(self, quality: int) -> NDArray[np.float32]: ...

class Engine:
    def __init__(self, coders: Coders) -> None: ...
    def encode(
        self,
        y: NDArray[np.float32],
        settings: Sequence[_Settings],
        threads: int,
        progress: _Progress,
    ) -> tuple[list[_Coded], NDArray[np.float32], _Times]: ...
    def decode(
        self,
        tiles: Sequence[Sequence[_Tile]],
        height: int,
        width: int,
        settings: Sequence[_Settings],
        threads: int,
        progress: _Progress,
    ) -> tuple[NDArray[np.float32], _Times]: ...
    def compress(
        self,
        rgb: NDArray[np.uint8],
        settings: _Settings,
        threads: int,
        want_latent: bool,
        progress: _Progress,
    ) -> tuple[_Coded, NDArray[np.float32] | None, _Times]: ...
    def decompress(
        self,
        tiles: Sequence[_Tile],
        height: int,
        width: int,
        settings: _Settings,
        region: tuple[int, int, int, int],
        grey: bool,
        threads: int,
        progress: _Progress,
    ) -> tuple[NDArray[np.uint8], _Times]: ...
