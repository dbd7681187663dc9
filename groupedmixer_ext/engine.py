# SPDX-License-Identifier: MIT
"""The native coding loop: a whole latent, or a whole picture, in one call.

Everything between the latent and the bytes of its streams runs in C++ without torch and without the
GIL: hyper transforms, the transformer step by step over its context cache, quantisation, rANS.
docs/numerics.md specifies the arithmetic, docs/bitstream.md the streams. The result depends neither
on the number of threads nor on the processor, and is the same on a GPU.

`groupedmixer` wraps this for its models. Use it directly to code with weights of your own, without
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupedmixer_ext import _engine
from groupedmixer_ext._device_engine import DeviceEngine, device_module, has_cuda
from groupedmixer_ext._engine import NonFiniteError, TileError

__all__ = [
    "ARITHMETIC_ID",
    "CodedLatent",
    "Engine",
    "NonFiniteError",
    "Progress",
    "Region",
    "Settings",
    "TableArrays",
    "Tile",
    "TileError",
    "has_cuda",
]

ARITHMETIC_ID = "f32-seg128-kv16-v1"
"""Of docs/numerics.md."""

QUALITY_STEPS = 256
MAX_QUALITY = 7 * QUALITY_STEPS
_MAX_THREADS = 1024

Times: TypeAlias = dict[str, float]
"""Seconds by stage: ``transform``, ``hyper``, ``entropy_model``, ``rans``."""

Progress: TypeAlias = Callable[[int, int], object]
"""Called with tiles done and tiles in all, on the thread that made the call: first with none done,
in the end with all, and in between when there is something new. What it raises stops the call at
once, in the middle of its tiles, and comes out of it. On a GPU, whose work is one graph, it is only
called in the end."""


class TableArrays(NamedTuple):
    """Integer tables as `groupedmixer_ext.rans.Tables` takes them."""

    counts: NDArray[np.uint16]  # [sum(sizes)]
    sizes: NDArray[np.int32]  # [T]
    offsets: NDArray[np.int32]  # [T]


class Settings(NamedTuple):
    """What the bytes of a stream depend on besides latent and weights."""

    quality: int  # 256 * quality, 0 .. 1792
    skip_below: int  # tables below this one code nothing
    tile: int  # latents along a tile's side, rounded down to whole patches


class Tile(NamedTuple):
    """The stream of a tile, and the CRC-32 of the latent that it decodes to."""

    stream: bytes | memoryview  # z is in the first tile's
    checksum: int


class CodedLatent(NamedTuple):
    """The tiles of a latent in raster order, and how many symbols they hold."""

    tiles: list[Tile]
    num_symbols: int  # of z and y
    num_coded: int  # those that were not skipped
    num_escaped: int  # those beyond their table


class Region(NamedTuple):
    """Pixels ``top .. bottom - 1`` and ``left .. right - 1`` of a picture."""

    top: int
    left: int
    bottom: int
    right: int


class Engine:
    """Immutable, packed weights and the loop over them. May be used by several threads at once.

    Memory for a call is leased from a pool of the engine's and reused by later calls; no thread
    outlives a call, so a process may fork between calls.

    Parameters
    ----------
    weights
        float32 arrays by the names of weights files (docs/bitstream.md): ``latent_codec.*`` and,
        with a patch transform, ``g_a.*`` and ``g_s.*``. Copied.
    latent_channels, hyper_width, hyper_channels, slices, patch, width, layers, lrp
        Sizes, as in `groupedmixer.Config`.
    order
        The (slice, row phase, column phase) of each group.
    patch_transform
        Channels at 1/8 and 1/16, blocks at 1/8 and 1/16 of the ``patch`` transforms; None: latents
        only.
    y_tables, z_tables
        Integer tables; z has one a channel.
    device
        None: the CPU. Else the number of a GPU: weights, context cache and coder live there, all
        of a call's work is one CUDA graph once its sizes have occurred before, and calls take
        turns. The bytes and numbers are those of the CPU.

    Raises
    ------
    ValueError
        If a weight is missing or of another shape, a table breaks its rules, or there is no such
        GPU.
    RuntimeError
        If no GPU can be used: there is none, or this build has no code for it.
    MemoryError
        If the GPU has too little memory left; so may the methods.
    """

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        *,
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
        y_tables: TableArrays,
        z_tables: TableArrays,
        device: int | None = None,
    ) -> None:
        module = _engine if device is None else device_module()
        self._coders = module.Coders(
            weights={
                name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()
            },
            latent_channels=latent_channels,
            hyper_width=hyper_width,
            hyper_channels=hyper_channels,
            slices=slices,
            patch=patch,
            width=width,
            layers=layers,
            lrp=lrp,
            order=list(order),
            patch_transform=patch_transform,
            y_tables=y_tables,
            z_tables=z_tables,
        )
        self._native: _CpuEngine | DeviceEngine
        if device is None:
            self._native = _CpuEngine(self._coders)
        else:
            self._native = DeviceEngine(self._coders, device, latent_channels)
        self._latent_channels = latent_channels
        self.device = device

    @property
    def has_transform(self) -> bool:
        """Whether `compress` and `decompress` work: the engine has the ``patch`` transforms."""
        return bool(self._coders.has_transform)

    def inverse_gains(self, quality: int) -> NDArray[np.float32]:  # [M]
        """What a latent is multiplied with after decoding, at ``quality`` / 256.

        ValueError if the quality is not in 0 .. 1792.
        """
        if not 0 <= quality <= MAX_QUALITY:
            raise ValueError(f"quality must be in 0..{MAX_QUALITY}, got {quality}")
        gains: NDArray[np.float32] = self._coders.inverse_gains(quality)
        return gains

    def encode(
        self,
        y: Any,  # [B, H, W, M]
        settings: Sequence[Settings],  # [B]
        threads: int,
        *,
        stream: int = 0,
        out: Any = None,  # [B, H, W, M]
        progress: Progress | None = None,
    ) -> tuple[list[CodedLatent], Any, Times]:
        """Codes a batch of latents.

        Parameters
        ----------
        y
            float32; on a GPU, also an array of that GPU with ``__cuda_array_interface__``.
        threads
            Of the CPU's engine.
        stream
            The ``cudaStream_t`` of a GPU's engine, whose earlier work is waited for, as a number:
            ``torch.cuda.current_stream().cuda_stream``.
        out
            Receives y_hat, contiguous float32; of the same kinds as ``y``. None: a new array.
        progress
            Is told how far the call is, and may stop it; see `Progress`. Without it, signals are
            handled during the call all the same, so that it can be interrupted.

        Returns
        -------
        (coded, y_hat, times)
            A `CodedLatent` each; the latents as `decode` returns them, [B, H, W, M] float32, gains
            still in (``out`` if it is given); seconds by stage.

        Raises
        ------
        ValueError
            If a shape, a setting or ``threads`` is out of range; H and W must be multiples of the
            patch.
        NonFiniteError
            If ``y``, or what the weights make of it, is not finite (a FloatingPointError).
        """
        if y.ndim != 4 or y.shape[3] != self._latent_channels or 0 in y.shape:
            raise ValueError(
                f"y must be [B, H, W, {self._latent_channels}] and not empty, got {list(y.shape)}"
            )
        _check_batch(settings, len(y))
        items, y_hat, times = self._native.encode(
            y, list(settings), self._workers(threads, stream), out, progress
        )
        return [_coded(item) for item in items], y_hat, times

    def decode(
        self,
        tiles: Sequence[Sequence[Tile]],  # [B][tiles]
        size: tuple[int, int],
        settings: Sequence[Settings],  # [B]
        threads: int,
        wanted: Sequence[bool] | None = None,  # [tiles]
        *,
        stream: int = 0,
        out: Any = None,  # [B, H, W, M]
        progress: Progress | None = None,
    ) -> tuple[Any, Times]:
        """Decodes a batch of latents of one size (H, W).

        ``threads``, ``stream``, ``out`` and ``progress`` are those of `encode`. Tiles that are not
        ``wanted`` are 0 in the result, and of their bytes only z is looked at.

        Returns
        -------
        (y_hat, times)
            [B, H, W, M] float32, gains still in (``out`` if it is given); seconds by stage. On a
            GPU, the time of the coder is part of the ``entropy_model``'s.

        Raises
        ------
        TileError
            If a tile does not decode to the latent it was made from (a ValueError).
        ValueError
            If an argument is out of range or they do not fit each other.
        """
        height, width = size
        _check_batch(settings, len(tiles))
        batch = [_native_tiles(item, wanted) for item in tiles]
        return self._native.decode(
            batch, height, width, list(settings), self._workers(threads, stream), out, progress
        )

    def compress(
        self,
        rgb: NDArray[np.uint8],  # [H, W, 3]
        settings: Settings,
        threads: int,
        want_latent: bool = False,
        *,
        stream: int = 0,
        progress: Progress | None = None,
    ) -> tuple[CodedLatent, NDArray[np.float32] | None, Times]:
        """Pixels to streams. Raises as `encode` does, whose ``progress`` it has.

        On the CPU, only some rows of tiles of the latent are in memory at a time, unless it is
        wanted.

        Returns
        -------
        (coded, y_hat, times)
            ``y_hat`` [latent H, latent W, M] as in `encode` if it is wanted, else None.
        """
        self._require_transform()
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ValueError(f"rgb must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
        item, y_hat, times = self._native.compress(
            np.ascontiguousarray(rgb),
            settings,
            self._workers(threads, stream),
            want_latent,
            progress,
        )
        return _coded(item), y_hat, times

    def decompress(
        self,
        tiles: Sequence[Tile],
        size: tuple[int, int],
        settings: Settings,
        threads: int,
        region: Region | None = None,
        grey: bool = False,
        *,
        stream: int = 0,
        progress: Progress | None = None,
    ) -> tuple[NDArray[np.uint8], Times]:
        """Streams to the pixels of a picture of ``size`` (H, W), or of a region of it.

        Only tiles that the region depends on are decoded, and counted by ``progress``, which is
        that of `encode`. ``grey``: all three samples of a pixel are the mean of its colours.

        Returns
        -------
        (rgb, times)
            uint8 [region height, region width, 3]; seconds by stage.

        Raises
        ------
        TileError, ValueError
            As `decode` does.
        """
        self._require_transform()
        height, width = size
        rgb, times = self._native.decompress(
            _native_tiles(tiles, None),
            height,
            width,
            settings,
            region or (0, 0, height, width),
            grey,
            self._workers(threads, stream),
            progress,
        )
        return rgb, times

    def report(self) -> dict[str, int]:
        """Of a GPU's engine: what became of its last call and what it holds.

        ``graph_nodes``: nodes of the CUDA graph that was the call, 0 where its sizes were new;
        ``scratch_bytes``: memory of the GPU for context cache and scratch. Empty on the CPU.
        """
        return self._native.report()

    def _workers(self, threads: int, stream: int) -> int:
        """What a native call works with: threads of the CPU, or a stream of the GPU."""
        if self.device is not None:
            return stream
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        return min(threads, _MAX_THREADS)

    def _require_transform(self) -> None:
        if not self.has_transform:
            raise ValueError("the engine must have patch transforms to code pixels")


class _CpuEngine:
    """The methods of `DeviceEngine` on the CPU."""

    def __init__(self, coders: _engine.Coders) -> None:
        self._native = _engine.Engine(coders)
        self.compress = self._native.compress
        self.decompress = self._native.decompress

    def encode(
        self,
        y: NDArray[np.float32],
        settings: Sequence[_engine._Settings],
        threads: int,
        out: NDArray[np.float32] | None,
        progress: Progress | None,
    ) -> tuple[list[_engine._Coded], NDArray[np.float32], Times]:
        scratch = np.array(y, np.float32, order="C", copy=True)
        items, y_hat, times = self._native.encode(scratch, settings, threads, progress)
        return items, _moved(y_hat, out), times

    def decode(
        self,
        tiles: Sequence[Sequence[_engine._Tile]],
        height: int,
        width: int,
        settings: Sequence[_engine._Settings],
        threads: int,
        out: NDArray[np.float32] | None,
        progress: Progress | None,
    ) -> tuple[NDArray[np.float32], Times]:
        y_hat, times = self._native.decode(tiles, height, width, settings, threads, progress)
        return _moved(y_hat, out), times

    def report(self) -> dict[str, int]:
        return {}


def _moved(array: NDArray[np.float32], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if out is None:
        return array
    np.copyto(out, array)
    return out


def _check_batch(settings: Sequence[Settings], batch: int) -> None:
    if len(settings) != batch or batch < 1:
        raise ValueError(f"settings must be one for each of {batch} latents, got {len(settings)}")


def _native_tiles(
    tiles: Sequence[Tile], wanted: Sequence[bool] | None
) -> list[tuple[bytes | memoryview, int, bool]]:
    chosen = [True] * len(tiles) if wanted is None else list(wanted)
    if len(chosen) != len(tiles):
        raise ValueError(f"wanted must be one for each of {len(tiles)} tiles, got {len(chosen)}")
    return [(tile.stream, tile.checksum, want) for tile, want in zip(tiles, chosen, strict=True)]


def _coded(item: tuple[list[tuple[bytes, int]], tuple[int, int, int]]) -> CodedLatent:
    tiles, counts = item
    return CodedLatent([Tile(*tile) for tile in tiles], *counts)
