# SPDX-License-Identifier: MIT
"""Between PyTorch and the native engine: exported weights in, latents and pictures to streams."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from groupedmixer_ext import engine
from groupedmixer_ext.engine import ARITHMETIC_ID, Progress, Region, Settings, TileError
from groupedmixer_ext.engine import Tile as CodedTile

from .container import quality_field
from .entropy import CodingTables
from .errors import ArithmeticMismatchError
from .half import round_to_half
from .stages import UNTIMED, Stages

if TYPE_CHECKING:
    from .latent_codec import GroupedMixerLatentCodec

__all__ = [
    "ARITHMETIC_ID",
    "SKIP_BELOW",
    "TILE",
    "CodedLatent",
    "CodedTile",
    "LatentCoder",
    "Progress",
    "Region",
]

T = TypeVar("T")

TILE = 64  # latents: 1024 pixels
# Groups whose sigma is below that of this table (0.15) code nothing: P(symbol != 0) < 0.007 there.
SKIP_BELOW = 3


class CodedLatent(NamedTuple):
    """What `LatentCoder` makes of a latent or a picture."""

    tiles: list[CodedTile]  # in raster order
    y_hat: Tensor | None  # [1, M, H, W] as the decoder will see it, gains still in; if wanted
    num_symbols: int  # of z and y
    num_coded: int  # those that were not skipped
    num_escaped: int  # those beyond their table


class LatentCoder:
    """Codes with the exported weights of a `GroupedMixerLatentCodec`, natively and exactly.

    .. code-block:: none

        y --gain--> h_a --> z --round--> rANS(z) --> h_s --> psi
                                                              |   for each tile, for each group g:
        y_g - mean_g --round--> symbols --> rANS(y) <-- mean_g, scale index <-- transformer(g)

    All of it, and the ``patch`` transforms if they are given, is one call into
    `groupedmixer_ext.engine.Engine`: on the CPU with as many threads as PyTorch uses, or on a GPU
    behind the work of PyTorch's current stream. One coder serves many threads; on a GPU, their
    calls take turns.

    Parameters
    ----------
    latent_codec
        Tables that it has not stored are built.
    transforms
        (g_a, g_s) of configuration ``patch``, to code pixels; None for other transforms.
    device
        Where to code; latents come out there.

    Raises
    ------
    ValueError
        If a weight overflows float16, or there is no such device.
    RuntimeError, MemoryError
        If the GPU cannot be used or is full, see `groupedmixer_ext.engine.Engine`.
    """

    def __init__(
        self,
        latent_codec: GroupedMixerLatentCodec,
        transforms: tuple[nn.Module, nn.Module] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be of type 'cpu' or 'cuda', got {str(device)!r}")
        if self._on_gpu and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._channels = latent_codec.config.latent_channels
        self._engine = engine.Engine(
            **engine_arguments(latent_codec, transforms),
            device=self.device.index if self._on_gpu else None,
        )

    @torch.no_grad()
    def encode(
        self,
        y: Tensor,  # [B, M, H, W] float32, H and W multiples of k_h and k_w
        qualities: Sequence[float],  # [B]
        skip_below: int = SKIP_BELOW,
        tile: int = TILE,
        stages: Stages = UNTIMED,
        progress: Progress | None = None,
    ) -> list[CodedLatent]:
        """Codes a batch of latents.

        ``progress`` is told how far the call is, and may stop it by raising; see
        `groupedmixer_ext.engine.Progress`.

        Raises
        ------
        ValueError
            If ``y`` has another shape, or another argument is out of range.
        FloatingPointError
            If ``y``, or what the weights make of it, is not finite.
        """
        if y.ndim != 4:
            raise ValueError(f"y must be [B, M, H, W], got {list(y.shape)}")
        settings = [Settings(quality_field(quality), skip_below, tile) for quality in qualities]
        channels_last = y.detach().to(self.device).float().permute(0, 2, 3, 1).contiguous()
        coded, y_hat, times = self._with_room(
            lambda: self._engine.encode(
                channels_last if self._on_gpu else channels_last.numpy(),
                settings,
                torch.get_num_threads(),
                stream=self._stream(),
                out=self._on_device(channels_last.shape),
                progress=progress,
            )
        )
        stages.add(times)
        latents = _as_tensor(y_hat).permute(0, 3, 1, 2).contiguous()
        return [CodedLatent(one.tiles, latents[i : i + 1], *one[1:]) for i, one in enumerate(coded)]

    @torch.no_grad()
    def decode(
        self,
        coded: Sequence[Sequence[CodedTile]],  # [B][tiles]
        size: tuple[int, int],
        qualities: Sequence[float],  # [B]
        skip_below: int = SKIP_BELOW,
        tile: int = TILE,
        stages: Stages = UNTIMED,
        wanted: Sequence[bool] | None = None,  # [tiles]; the others' latents are 0
        progress: Progress | None = None,
    ) -> Tensor:  # [B, M, H, W] float32, gains still in
        """Decodes latents of one ``size`` (H, W). ``progress`` is that of `encode`.

        Raises
        ------
        ValueError
            If ``size`` does not fit the grouping or the number of tiles, or another argument is
            out of range.
        ArithmeticMismatchError
            If a tile does not decode to the latent it was made from.
        """
        settings = [Settings(quality_field(quality), skip_below, tile) for quality in qualities]
        if min(size) < 1:
            raise ValueError(f"size must be positive, got {size}")
        try:
            y_hat, times = self._with_room(
                lambda: self._engine.decode(
                    coded,
                    size,
                    settings,
                    torch.get_num_threads(),
                    wanted,
                    stream=self._stream(),
                    out=self._on_device((len(coded), *size, self._channels)),
                    progress=progress,
                )
            )
        except TileError as error:
            raise ArithmeticMismatchError(str(error)) from error
        stages.add(times)
        return _as_tensor(y_hat).permute(0, 3, 1, 2).contiguous()

    def encode_picture(
        self,
        rgb: npt.NDArray[np.uint8],  # [H, W, 3]
        quality: float,
        want_latent: bool = False,
        stages: Stages = UNTIMED,
        progress: Progress | None = None,
    ) -> CodedLatent:
        """Pixels to streams, with the ``patch`` transforms. Raises as `encode` does."""
        settings = Settings(quality_field(quality), SKIP_BELOW, TILE)
        coded, latent, times = self._with_room(
            lambda: self._engine.compress(
                rgb,
                settings,
                torch.get_num_threads(),
                want_latent,
                stream=self._stream(),
                progress=progress,
            )
        )
        stages.add(times)
        y_hat = None
        if latent is not None:
            y_hat = torch.from_numpy(latent).permute(2, 0, 1)[None].contiguous().to(self.device)
        return CodedLatent(coded.tiles, y_hat, *coded[1:])

    def decode_picture(
        self,
        coded: Sequence[CodedTile],
        size: tuple[int, int],
        settings: Settings,
        region: Region | None = None,
        grey: bool = False,
        stages: Stages = UNTIMED,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.uint8]:  # [region height, region width, 3]
        """Streams to pixels of a picture of ``size`` (H, W). Raises as `decode` does."""
        try:
            rgb, times = self._with_room(
                lambda: self._engine.decompress(
                    coded,
                    size,
                    settings,
                    torch.get_num_threads(),
                    region,
                    grey,
                    stream=self._stream(),
                    progress=progress,
                )
            )
        except TileError as error:
            raise ArithmeticMismatchError(str(error)) from error
        stages.add(times)
        return rgb

    @torch.no_grad()
    def unscale(
        self,
        y_hat: Tensor,  # [B, M, H, W], gains in
        qualities: Sequence[float],  # [B]
    ) -> Tensor:  # [B, M, H, W] float32
        """Takes the gains out, for g_s."""
        rows = [self._engine.inverse_gains(quality_field(quality)) for quality in qualities]
        gains = torch.from_numpy(np.stack(rows)).to(y_hat.device)
        return y_hat * gains[:, :, None, None]

    def report(self) -> dict[str, int]:
        """Of a GPU: `groupedmixer_ext.engine.Engine.report`. Empty on the CPU."""
        return self._engine.report()

    def _with_room(self, call: Callable[[], T]) -> T:
        """The result of a call, for which PyTorch gives back what it keeps of the GPU's memory."""
        try:
            return call()
        except MemoryError:
            if not self._on_gpu:
                raise
        torch.cuda.empty_cache()
        return call()

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self._on_gpu else 0

    def _on_device(self, shape: Sequence[int]) -> Tensor | None:
        """A latent for the engine to write to, where it would make one on the wrong side."""
        if not self._on_gpu:
            return None
        return torch.empty(tuple(shape), dtype=torch.float32, device=self.device)


def _as_tensor(array: Tensor | npt.NDArray[np.float32]) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def engine_arguments(
    latent_codec: GroupedMixerLatentCodec, transforms: tuple[nn.Module, nn.Module] | None = None
) -> dict[str, Any]:
    """What `groupedmixer_ext.engine.Engine` is made of, but for the device.

    Parameters are those of `LatentCoder`, and so are the errors.
    """
    codec = copy.deepcopy(latent_codec).cpu()
    codec.update()  # on the copy
    config = codec.config
    modules = nn.ModuleDict({"latent_codec": codec})
    if transforms is not None:
        modules["g_a"], modules["g_s"] = (copy.deepcopy(module).cpu() for module in transforms)
    round_to_half(modules)
    weights = {name: _array(value) for name, value in modules.named_parameters()}
    weights["latent_codec.thresholds"] = _array(codec.thresholds)
    weights["latent_codec.dead_zone"] = _array(codec.dead_zone)
    weights["latent_codec.z_medians"] = _array(codec.z_medians)
    return {
        "weights": weights,
        "latent_channels": config.latent_channels,
        "hyper_width": config.hyper_width,
        "hyper_channels": config.hyper_channels,
        "slices": config.slices,
        "patch": config.patch,
        "width": config.width,
        "layers": config.layers,
        "lrp": config.lrp,
        "order": codec.context.grouping.order,
        "patch_transform": (
            None if transforms is None else (*config.transform_width, *config.transform_depth)
        ),
        "y_tables": _table_arrays(codec.y_tables),
        "z_tables": _table_arrays(codec.z_tables),
    }


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().float().contiguous().numpy()


def _table_arrays(tables: CodingTables) -> engine.TableArrays:
    built = tables.build()
    return engine.TableArrays(built.counts, built.sizes, built.offsets)
