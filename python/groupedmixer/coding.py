# SPDX-License-Identifier: MIT
"""The coding loop: hyper latent, then group after group through the context and the rANS coder."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groupedmixer_ext import ops, rans

from .container import QUALITY_STEPS, quality_field
from .errors import ArithmeticMismatchError
from .half import round_to_half
from .mixer import ContextCache, GroupedMixerContext, Prediction, interpolate_levels
from .stages import UNTIMED, Stages
from .tiles import latent_tiles
from .transforms import HYPER_STRIDE

if TYPE_CHECKING:
    from .latent_codec import GroupedMixerLatentCodec

__all__ = [
    "ARITHMETIC_ID",
    "SKIP_BELOW",
    "TILE",
    "CodedLatent",
    "CodedTile",
    "LatentCoder",
    "run_groups",
    "to_grid",
]

# PyTorch adds up in an order that depends on the machine and the number of threads. So everything
# between z and the symbols is computed in float64, and what a symbol can depend on is rounded to a
# grid: two orders of summation differ by about 1e-14, so a number of theirs falls on different
# sides of a rounding boundary about once in 1e10 times, and since decoded groups lie on the grid
# too, differences do not add up over the steps. That is rare, not impossible: the decoder compares
# a checksum of the decoded latent, and a difference is an error, never noise.
ARITHMETIC_ID = "torch-f64-grid10-v1"
_GRID = 2.0**10  # steps per unit; a mean off by 2^-11 costs no measurable rate

TILE = 64  # latents: 1024 pixels
# Groups whose sigma is below that of this table (0.15) code nothing: P(symbol != 0) < 0.001 there.
SKIP_BELOW = 3


class CodedTile(NamedTuple):
    """A tile's bytes, and what they must decode to."""

    stream: bytes | memoryview  # z is in the first tile's
    checksum: int  # CRC-32 of the tile's y_hat


class CodedLatent(NamedTuple):
    """What `LatentCoder.encode` returns."""

    tiles: list[CodedTile]  # in raster order
    y_hat: Tensor  # [1, M, H, W] as the decoder will see it, gains still in
    num_symbols: int  # of z and y
    num_coded: int  # those that were not skipped
    num_escaped: int  # those beyond their table


def to_grid(x: Tensor) -> Tensor:
    """Rounds to multiples of 2^-10, half to even."""
    return (x * _GRID).round() / _GRID


def run_groups(
    context: GroupedMixerContext,
    psi: Tensor,  # [G, h, w, d]
    level: Tensor,  # [d]
    code: Callable[[int, Prediction], Tensor],  # (step, prediction) -> y_hat [h, w, M/k_c]
) -> Tensor:  # [G, h, w, M/k_c]
    """The loop over groups, the only one there is: encoder, decoder and evaluation differ in
    ``code``, which turns a prediction into the decoded group.

    FloatingPointError if a prediction is not finite.
    """
    groups, h, w, _ = psi.shape
    cache = ContextCache(context.config, h, w, psi.dtype, psi.device)
    decoded: list[Tensor] = []
    for step in range(groups):
        previous = decoded[-1] if decoded else None
        mean, raw_scale, features = context.append_step(step, previous, psi[step], level, cache)
        if not bool(mean.isfinite().all() and raw_scale.isfinite().all()):
            raise FloatingPointError(f"the entropy model gives NaN or infinity at group {step}")
        y_hat = code(step, Prediction(to_grid(mean), to_grid(raw_scale), features)).to(psi.dtype)
        decoded.append(to_grid(context.correct_step(step, y_hat, features)))
    return torch.stack(decoded)


class LatentCoder:
    """Codes latents with the exported weights of a `GroupedMixerLatentCodec`.

    .. code-block:: none

        y --gain--> h_a --> z --round--> rANS(z) --> h_s --> psi
                                                              |   for each tile, for each group g:
        y_g - mean_g --round--> symbols --> rANS(y) <-- mean_g, scale index <-- append_step(g)

    Runs on the CPU. Holds no state between calls, so one coder serves many threads.
    """

    def __init__(self, latent_codec: GroupedMixerLatentCodec) -> None:
        with torch.inference_mode():
            codec = copy.deepcopy(latent_codec).cpu().eval()
            codec.update()  # on the copy: tables are built here if none are stored
            round_to_half(codec)
            self._thresholds = codec.thresholds.float()
            self._y_tables = codec.y_tables.build()
            self._z_tables = codec.z_tables.build()
            self._codec = codec.double()

    @torch.inference_mode()
    def encode(
        self,
        y: Tensor,  # [1, M, H, W] float32, H and W multiples of k_h and k_w
        quality: float,
        skip_below: int = SKIP_BELOW,
        tile: int = TILE,
        stages: Stages = UNTIMED,
    ) -> CodedLatent:
        """Codes one latent.

        Raises
        ------
        ValueError
            If ``y`` is not finite or has another shape, or another argument is out of range.
        FloatingPointError
            If the weights make NaN or infinity of it.
        """
        codec, grouping = self._codec, self._codec.context.grouping
        m = codec.config.latent_channels
        if y.ndim != 4 or y.shape[0] != 1 or y.shape[1] != m or 0 in y.shape:
            raise ValueError(f"y must be [1, {m}, H, W] with H, W >= 1, got {list(y.shape)}")
        tiles = latent_tiles(y.shape[2], y.shape[3], tile, *codec.config.patch)
        if not bool(y.isfinite().all()):
            raise ValueError("y must be finite, got NaN or infinity")
        level = _snap(quality)
        y = y.cpu().double() * interpolate_levels(codec.gain, level)[:, :, None, None]
        with stages("hyper"):
            z = codec.h_a(y)[0].permute(1, 2, 0) * interpolate_levels(codec.hyper_gain, level)
            z_symbols = (z - codec.z_medians).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
            psi_map = self._hyper_features(z_symbols, level, (y.shape[2], y.shape[3]))
        embedding = codec.context.level_embedding(level)[0]

        coded: list[CodedTile] = []
        num_coded = num_escaped = 0
        y_hat = torch.empty_like(y, dtype=torch.float32)
        for rows, columns in tiles.slices():
            encoder = rans.Encoder()
            if not coded:
                with stages("rans"):
                    encoder.push(
                        z_symbols.contiguous().numpy(),
                        self._hyper_indexes(z_symbols.shape),
                        self._z_tables,
                    )
            groups = grouping.split(y[:, :, rows, columns].float())[0]

            def code(
                step: int,
                prediction: Prediction,
                groups: Tensor = groups,
                encoder: rans.Encoder = encoder,
            ) -> Tensor:
                symbols, indexes, decoded = ops.quantize_group(
                    groups[step].contiguous(),
                    prediction.mean.float(),
                    prediction.raw_scale.float(),
                    self._thresholds,
                    skip_below,
                )
                with stages("rans"):
                    encoder.push(symbols.numpy(), indexes.numpy(), self._y_tables, skip_below)
                return decoded

            psi = grouping.at_groups(psi_map[:, :, rows, columns])[0]
            with stages("entropy_model"):
                tile_hat = run_groups(codec.context, psi, embedding, code).float()
            with stages("rans"):
                coded.append(CodedTile(encoder.finish(), _checksum(tile_hat)))
            num_coded += encoder.num_coded
            num_escaped += encoder.num_escaped
            y_hat[:, :, rows, columns] = grouping.merge(tile_hat[None])
        num_symbols = z_symbols.numel() + y.numel()
        return CodedLatent(coded, y_hat, num_symbols, num_coded, num_escaped)

    @torch.inference_mode()
    def decode(
        self,
        coded: Sequence[CodedTile],
        size: tuple[int, int],
        quality: float,
        skip_below: int = SKIP_BELOW,
        tile: int = TILE,
        stages: Stages = UNTIMED,
    ) -> Tensor:  # [1, M, H, W] float32, gains still in
        """Decodes one latent of ``size`` (H, W).

        Raises
        ------
        ValueError
            If ``size`` does not fit the grouping or the number of tiles, or another argument is
            out of range.
        ArithmeticMismatchError
            If a tile does not decode to the latent it was made from.
        """
        codec = self._codec
        height, width = size
        tiles = latent_tiles(height, width, tile, *codec.config.patch)
        if len(coded) != tiles.count:
            raise ValueError(f"coded must have {tiles.count} tiles, got {len(coded)}")
        level = _snap(quality)
        embedding = codec.context.level_embedding(level)[0]
        y_hat = torch.empty(1, codec.config.latent_channels, height, width)
        index = 0
        try:
            with stages("rans"):
                decoder = rans.Decoder(coded[0].stream)
                z_shape = (-(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE))
                z_indexes = self._hyper_indexes((*z_shape, len(self._z_tables)))
                z_symbols = torch.from_numpy(decoder.pop(z_indexes, self._z_tables))
            with stages("hyper"):
                psi_map = self._hyper_features(z_symbols, level, size)
            for index, (rows, columns) in enumerate(tiles.slices()):
                if index:
                    decoder = rans.Decoder(coded[index].stream)
                psi = codec.context.grouping.at_groups(psi_map[:, :, rows, columns])[0]
                tile_hat = self._decode_tile(decoder, psi, embedding, skip_below, stages)
                found = _checksum(tile_hat)
                if found != coded[index].checksum:
                    raise ArithmeticMismatchError(
                        f"tile {index} decodes to a latent with checksum {found:08x}, it was made "
                        f"from one with {coded[index].checksum:08x}"
                    )
                y_hat[:, :, rows, columns] = codec.context.grouping.merge(tile_hat[None])
        except (rans.RansError, FloatingPointError) as error:
            raise ArithmeticMismatchError(
                f"tile {index} does not decode to the latent it was made from: {error}"
            ) from error
        return y_hat

    def _decode_tile(
        self,
        decoder: rans.Decoder,
        psi: Tensor,  # [G, h, w, d]
        embedding: Tensor,  # [d]
        skip_below: int,
        stages: Stages,
    ) -> Tensor:  # [G, h, w, M/k_c] float32
        def code(step: int, prediction: Prediction) -> Tensor:
            mean = prediction.mean.float()
            indexes = ops.scale_indexes(prediction.raw_scale.float(), mean, self._thresholds)
            with stages("rans"):
                symbols = decoder.pop(indexes.numpy(), self._y_tables, skip_below)
            return ops.dequantize_group(torch.from_numpy(symbols), mean)

        with stages("entropy_model"):
            tile_hat = run_groups(self._codec.context, psi, embedding, code).float()
        decoder.finish()
        return tile_hat

    @torch.inference_mode()
    def unscale(
        self,
        y_hat: Tensor,  # [1, M, H, W], gains in
        quality: float,
    ) -> Tensor:  # [1, M, H, W] float32
        """Takes the gains out, for g_s."""
        gains = interpolate_levels(self._codec.inverse_gain, _snap(quality))
        return (y_hat * gains[:, :, None, None]).float()

    def _hyper_indexes(self, shape: Sequence[int]) -> npt.NDArray[np.uint16]:  # [..., N_z]
        """z has one table a channel."""
        channels = np.arange(len(self._z_tables), dtype=np.uint16)
        return np.ascontiguousarray(np.broadcast_to(channels, shape))

    def _hyper_features(
        self,
        z_symbols: Tensor,  # [H/4, W/4, N_z] int16
        level: Tensor,  # [1]
        size: tuple[int, int],
    ) -> Tensor:  # [1, d, H, W] float64
        gains = interpolate_levels(self._codec.hyper_inverse_gain, level)
        z_hat = (z_symbols.double() + self._codec.z_medians) * gains
        psi: Tensor = self._codec.h_s(z_hat.permute(2, 0, 1)[None].contiguous(), size)
        return psi


def _snap(quality: float) -> Tensor:  # [1]
    return torch.tensor([quality_field(quality) / QUALITY_STEPS])


def _checksum(y_hat: Tensor) -> int:
    """CRC-32 of the decoded groups' bits, [G, h, w, M/k_c] float32 little-endian, -0 as +0."""
    return zlib.crc32((y_hat + 0.0).contiguous().numpy().astype("<f4", copy=False).data)
