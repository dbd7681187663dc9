# SPDX-License-Identifier: MIT
"""Between `groupedmixer_ext.engine.Engine` and the native engine on a GPU: arrays to addresses.

Latents may be NumPy arrays or arrays on the engine's GPU with the `CUDA array interface`_, as
PyTorch's tensors and CuPy's arrays have it. No torch is needed.

.. _CUDA array interface: https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from groupedmixer_ext import _build_info

if TYPE_CHECKING:
    from groupedmixer_ext._engine import _Coded, _Settings, _Tile, _Times

__all__ = ["DeviceEngine", "device_module", "has_cuda"]


def has_cuda() -> bool:
    """Whether CUDA kernels were built. Says nothing of GPUs."""
    return _build_info.CUDA is not None


def device_module() -> ModuleType:
    """``groupedmixer_ext._engine_cuda``. RuntimeError if CUDA kernels were not built."""
    if not has_cuda():
        raise RuntimeError(
            f"this build of groupedmixer_ext has no CUDA kernels ({_build_info.CUDA_REASON})"
        )
    return importlib.import_module("groupedmixer_ext._engine_cuda")


class DeviceEngine:
    """The methods of `Engine` on a GPU. Its arguments have been checked but for arrays."""

    def __init__(self, coders: Any, device: int, latent_channels: int) -> None:
        self._native = device_module().DeviceEngine(coders, device)
        self._latent_channels = latent_channels

    def encode(
        self, y: Any, settings: Sequence[_Settings], stream: int, out: Any
    ) -> tuple[list[_Coded], Any, _Times]:
        shape = tuple(y.shape)
        y_hat = np.empty(shape, np.float32) if out is None else out
        y = y if is_on_device(y) else np.ascontiguousarray(y, np.float32)
        source = _addresses("y", y, shape, np.float32)
        target = _addresses("out", y_hat, shape, np.float32)
        items, times = [], dict[str, float]()
        for one, item in enumerate(settings):
            coded, spent = self._native.encode(
                source[one], shape[1], shape[2], item, target[one], stream
            )
            items.append(coded)
            _add(times, spent)
        return items, y_hat, times

    def decode(
        self,
        tiles: Sequence[Sequence[_Tile]],
        height: int,
        width: int,
        settings: Sequence[_Settings],
        stream: int,
        out: Any,
    ) -> tuple[Any, _Times]:
        shape = (len(tiles), height, width, self._latent_channels)
        y_hat = np.empty(shape, np.float32) if out is None else out
        target = _addresses("out", y_hat, shape, np.float32)
        times = dict[str, float]()
        for one, item in enumerate(settings):
            spent = self._native.decode(tiles[one], height, width, item, target[one], stream)
            _add(times, spent)
        return y_hat, times

    def compress(
        self, rgb: NDArray[np.uint8], settings: _Settings, stream: int, want_latent: bool
    ) -> tuple[_Coded, NDArray[np.float32] | None, _Times]:
        height, width, _ = rgb.shape
        y_hat = None
        if want_latent:
            grid = self._native.latent_size(height, width)
            y_hat = np.empty((*grid, self._latent_channels), np.float32)
        coded, times = self._native.compress(
            rgb.ctypes.data,
            height,
            width,
            settings,
            0 if y_hat is None else y_hat.ctypes.data,
            stream,
        )
        return coded, y_hat, times

    def decompress(
        self,
        tiles: Sequence[_Tile],
        height: int,
        width: int,
        settings: _Settings,
        region: tuple[int, int, int, int],
        grey: bool,
        stream: int,
    ) -> tuple[NDArray[np.uint8], _Times]:
        top, left, bottom, right = region
        rgb = np.empty((max(bottom - top, 0), max(right - left, 0), 3), np.uint8)
        times = self._native.decompress(
            tiles, height, width, settings, region, grey, rgb.ctypes.data, stream
        )
        return rgb, times

    def report(self) -> dict[str, int]:
        report: dict[str, int] = self._native.report()
        return report


def is_on_device(array: Any) -> bool:
    return hasattr(array, "__cuda_array_interface__")


def _addresses(name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> list[int]:
    """Where the items of a contiguous batch begin."""
    wanted = np.dtype(dtype)
    if is_on_device(array):
        interface = array.__cuda_array_interface__
        found = (tuple(interface["shape"]), np.dtype(interface["typestr"]))
        contiguous = interface.get("strides") is None or array.is_contiguous()
        address = interface["data"][0]
    elif isinstance(array, np.ndarray):
        found = (array.shape, array.dtype)
        contiguous = array.flags.c_contiguous
        address = array.ctypes.data
    else:
        raise ValueError(
            f"{name} must be a NumPy array or have a __cuda_array_interface__, "
            f"got {type(array).__name__}"
        )
    if found != (shape, wanted) or not contiguous:
        raise ValueError(
            f"{name} must be contiguous {wanted} {list(shape)}, got {found[1]} {list(found[0])}"
            f"{'' if contiguous else ' with gaps'}"
        )
    size = int(np.prod(shape[1:])) * wanted.itemsize
    return [address + one * size for one in range(shape[0])]


def _add(times: dict[str, float], more: dict[str, float]) -> None:
    for stage, seconds in more.items():
        times[stage] = times.get(stage, 0.0) + seconds
