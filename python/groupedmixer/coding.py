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
from .export import round_to_half
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
    "DecodedLatent",
    "LatentCoder",
    "run_groups",
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


class CodedLatent(NamedTuple):
    """What `LatentCoder.encode` returns."""

    streams: list[bytes]  # one a tile, in raster order; z is in the first
    checksums: list[int]  # CRC-32 of each tile's y_hat
    y_hat: Tensor  # [1, M, H, W] as the decoder will see it, gains still in
    num_symbols: int  # of z and y
    num_coded: int  # those that were not skipped
    num_escaped: int  # those beyond their table


class DecodedLatent(NamedTuple):
    """What `LatentCoder.decode` returns."""

    y_hat: Tensor  # [1, M, H, W], gains still in
    checksums: list[int]  # CRC-32 of each tile's y_hat


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
    ``code``, which turns a prediction into the decoded group."""
    groups, h, w, _ = psi.shape
    cache = ContextCache(context.config, h, w, psi.dtype, psi.device)
    decoded: list[Tensor] = []
    for step in range(groups):
        previous = decoded[-1] if decoded else None
        mean, raw_scale, features = context.append_step(step, previous, psi[step], level, cache)
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
        codec = copy.deepcopy(latent_codec).cpu().eval().requires_grad_(False)
        round_to_half(codec)
        self._thresholds = codec.thresholds.clone()
        self._codec = codec.double()
        self._medians = codec.entropy_bottleneck.quantiles[:, 0, 1]  # [N_z]
        self._y_tables = codec.y_tables.build()
        self._z_tables = codec.z_tables.build()

    @torch.inference_mode()
    def encode(
        self,
        y: Tensor,  # [1, M, H, W] float32, H and W multiples of k_h and k_w
        quality: float,
        skip_below: int = SKIP_BELOW,
        tile: int = TILE,
        stages: Stages = UNTIMED,
    ) -> CodedLatent:
        """Codes one latent. ValueError if it is not finite or has another shape."""
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
            z_symbols = (z - self._medians).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
            psi_map = self._hyper_features(z_symbols, level, (y.shape[2], y.shape[3]))
        embedding = codec.context.level_embedding(level)[0]

        streams: list[bytes] = []
        checksums: list[int] = []
        num_coded = num_escaped = 0
        y_hat = torch.empty_like(y, dtype=torch.float32)
        for rows, columns in tiles.slices():
            encoder = rans.Encoder()
            if not streams:
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
                streams.append(encoder.finish())
            checksums.append(_checksum(tile_hat))
            num_coded += encoder.num_coded
            num_escaped += encoder.num_escaped
            y_hat[:, :, rows, columns] = grouping.merge(tile_hat[None])
        num_symbols = z_symbols.numel() + y.numel()
        return CodedLatent(streams, checksums, y_hat, num_symbols, num_coded, num_escaped)

    @torch.inference_mode()
    def decode(
        self,
        streams: list[bytes],
        size: tuple[int, int],
        quality: float,
        skip_below: int = SKIP_BELOW,
        tile: int = TILE,
        stages: Stages = UNTIMED,
    ) -> DecodedLatent:
        """Decodes one latent of ``size`` (H, W).

        Raises
        ------
        ValueError
            If ``size`` does not fit the grouping or the number of streams.
        groupedmixer_ext.rans.RansError
            If a stream is not what an encoder wrote, or was decoded with other numbers.
        """
        codec, grouping = self._codec, self._codec.context.grouping
        height, width = size
        tiles = latent_tiles(height, width, tile, *codec.config.patch)
        if len(streams) != tiles.count:
            raise ValueError(f"streams must be one a tile, {tiles.count}, got {len(streams)}")
        level = _snap(quality)
        embedding = codec.context.level_embedding(level)[0]

        with stages("rans"):
            first = rans.Decoder(streams[0])
            z_shape = (-(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE), len(self._z_tables))
            z_symbols = torch.from_numpy(first.pop(self._hyper_indexes(z_shape), self._z_tables))
        with stages("hyper"):
            psi_map = self._hyper_features(z_symbols, level, size)

        checksums: list[int] = []
        y_hat = torch.empty(1, codec.config.latent_channels, height, width)
        for stream, (rows, columns) in zip(streams, tiles.slices(), strict=True):
            decoder = rans.Decoder(stream) if checksums else first

            def code(step: int, prediction: Prediction, decoder: rans.Decoder = decoder) -> Tensor:
                mean = prediction.mean.float()
                indexes = ops.scale_indexes(prediction.raw_scale.float(), mean, self._thresholds)
                with stages("rans"):
                    symbols = decoder.pop(indexes.numpy(), self._y_tables, skip_below)
                return ops.dequantize_group(torch.from_numpy(symbols), mean)

            psi = grouping.at_groups(psi_map[:, :, rows, columns])[0]
            with stages("entropy_model"):
                tile_hat = run_groups(codec.context, psi, embedding, code).float()
            decoder.finish()
            checksums.append(_checksum(tile_hat))
            y_hat[:, :, rows, columns] = grouping.merge(tile_hat[None])
        return DecodedLatent(y_hat, checksums)

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
        z_hat = (z_symbols.double() + self._medians) * gains
        psi: Tensor = self._codec.h_s(z_hat.permute(2, 0, 1)[None].contiguous(), size)
        return psi


def _snap(quality: float) -> Tensor:  # [1]
    return torch.tensor([quality_field(quality) / QUALITY_STEPS])


def _checksum(y_hat: Tensor) -> int:
    """CRC-32 of the decoded groups' bits, [G, h, w, M/k_c] float32 little-endian, -0 as +0."""
    return zlib.crc32((y_hat + 0.0).contiguous().numpy().astype("<f4", copy=False).data)
