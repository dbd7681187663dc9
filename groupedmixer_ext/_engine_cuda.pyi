# SPDX-License-Identifier: MIT
# Arrays are addresses, of the host or of the device.
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from groupedmixer_ext._engine import _Coded, _Settings, _Tables, _Tile, _Times

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

class DeviceEngine:
    def __init__(self, coders: Coders, device: int) -> None: ...
    def encode(
        self, y: int, height: int, width: int, settings: _Settings, y_hat: int, stream: int
    ) -> tuple[_Coded, _Times]: ...
    def decode(
        self,
        tiles: Sequence[_Tile],
        height: int,
        width: int,
        settings: _Settings,
        y_hat: int,
        stream: int,
    ) -> _Times: ...
    def compress(
        self, rgb: int, height: int, width: int, settings: _Settings, y_hat: int, stream: int
    ) -> tuple[_Coded, _Times]: ...
    def decompress(
        self,
        tiles: Sequence[_Tile],
        height: int,
        width: int,
        settings: _Settings,
        region: tuple[int, int, int, int],
        grey: bool,
        rgb: int,
        stream: int,
    ) -> _Times: ...
    def latent_size(self, height: int, width: int) -> tuple[int, int]: ...
    def report(self) -> dict[str, int]: ...
