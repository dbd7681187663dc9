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
    from groupedmixer_ext._engine import _Coded, _Progress, _Settings, _Tile, _Times

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
        self, y: Any, settings: Sequence[_Settings], stream: int, out: Any, progress: _Progress
    ) -> tuple[list[_Coded], Any, _Times]:
        shape = tuple(y.shape)
        y_hat = np.empty(shape, np.float32) if out is None else out
        y = y if is_on_device(y) else np.ascontiguousarray(y, np.float32)
        source = _addresses("y", y, shape)
        target = _addresses("out", y_hat, shape, written=True)
        items, times = [], dict[str, float]()
        for one, item in enumerate(settings):
            coded, spent = self._native.encode(
                source[one], shape[1], shape[2], item, target[one], stream
            )
            items.append(coded)
            _add(times, spent)
        _finish(progress, sum(len(tiles) for tiles, _ in items))
        return items, y_hat, times

    def decode(
        self,
        tiles: Sequence[Sequence[_Tile]],
        height: int,
        width: int,
        settings: Sequence[_Settings],
        stream: int,
        out: Any,
        progress: _Progress,
    ) -> tuple[Any, _Times]:
        shape = (len(tiles), height, width, self._latent_channels)
        y_hat = np.empty(shape, np.float32) if out is None else out
        target = _addresses("out", y_hat, shape, written=True)
        times = dict[str, float]()
        for one, item in enumerate(settings):
            spent = self._native.decode(tiles[one], height, width, item, target[one], stream)
            _add(times, spent)
        _finish(progress, sum(wanted for item in tiles for *_, wanted in item))
        return y_hat, times

    def compress(
        self,
        rgb: NDArray[np.uint8],
        settings: _Settings,
        stream: int,
        want_latent: bool,
        progress: _Progress,
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
        _finish(progress, len(coded[0]))
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
        progress: _Progress,
    ) -> tuple[NDArray[np.uint8], _Times]:
        top, left, bottom, right = region
        rgb = np.empty((max(bottom - top, 0), max(right - left, 0), 3), np.uint8)
        times = self._native.decompress(
            tiles, height, width, settings, region, grey, rgb.ctypes.data, stream
        )
        _finish(progress, len(tiles))
        return rgb, times

    def report(self) -> dict[str, int]:
        report: dict[str, int] = self._native.report()
        return report


def is_on_device(array: Any) -> bool:
    # Of the type: of a tensor, the attribute may raise.
    return hasattr(type(array), "__cuda_array_interface__") and not _is_host_tensor(array)


def _is_host_tensor(array: Any) -> bool:
    return getattr(getattr(array, "device", None), "type", None) == "cpu"


def _addresses(
    name: str, array: Any, shape: tuple[int, ...], *, written: bool = False
) -> list[int]:
    """Where the items of a contiguous batch of float32 begin."""
    if is_on_device(array):
        interface = array.__cuda_array_interface__
        found, kind = tuple(interface["shape"]), np.dtype(interface["typestr"])
        address, read_only = interface["data"]
        packed = _is_packed(interface.get("strides"), found, kind.itemsize)
    elif isinstance(array, np.ndarray):
        found, kind = array.shape, array.dtype
        address, read_only = array.ctypes.data, not array.flags.writeable
        packed = array.flags.c_contiguous
    else:
        raise ValueError(
            f"{name} must be a NumPy array or have a __cuda_array_interface__, "
            f"got {type(array).__name__}"
        )
    if (found, kind) != (shape, np.dtype(np.float32)) or not packed:
        raise ValueError(
            f"{name} must be contiguous float32 {list(shape)}, got {kind} {list(found)}"
            f"{'' if packed else ' with gaps'}"
        )
    if written and read_only:
        raise ValueError(f"{name} must be writable")
    size = 4 * int(np.prod(shape[1:]))
    return [address + one * size for one in range(shape[0])]


def _is_packed(strides: Sequence[int] | None, shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether an array is in C order without gaps; strides in bytes, None if it says so itself."""
    step = itemsize
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _finish(progress: _Progress, tiles: int) -> None:
    if progress is not None:
        progress(tiles, tiles)


def _add(times: dict[str, float], more: dict[str, float]) -> None:
    for stage, seconds in more.items():
        times[stage] = times.get(stage, 0.0) + seconds
