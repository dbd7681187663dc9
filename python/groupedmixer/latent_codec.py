# SPDX-License-Identifier: MIT
"""The entropy model as a compressai latent codec: put it between your g_a and g_s."""

from __future__ import annotations

import copy
import math
import struct
import zlib
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.latent_codecs import LatentCodec
from compressai.registry import register_module
from torch import Tensor, nn

from groupedmixer_ext import engine

from .coding import SKIP_BELOW, CodedTile, LatentCoder
from .config import LAMBDAS, NUM_LEVELS, Config
from .container import QUALITY_STEPS, quality_field
from .entropy import (
    CodingTables,
    ScaleMixtureLikelihood,
    bottleneck_tables,
    dead_zone,
    round_hyper_latent,
    scale_thresholds,
    symbol_tables,
)
from .half import round_to_half
from .mixer import GroupedMixerContext, Prediction, interpolate_levels, run_groups
from .transforms import HyperAnalysis, HyperSynthesis

__all__ = ["GroupedMixerLatentCodec"]

# Gains of the lowest and highest level: a quantisation step 4.6 times coarser and finer than the
# middle one. At high rate the step goes like 1 / sqrt(lambda).
_LOG_GAIN = 0.25 * math.log(LAMBDAS[-1] / LAMBDAS[0])

# Width of z's distributions before training. compressai's 10 costs 5.4 bits a value, 0.08 a pixel:
# half of all that the lowest quality spends, and learned away slowly.
_BOTTLENECK_SCALE = 1

# In front of every string: quality as files store it, CRC-32 of the decoded tile.
_STRING = struct.Struct("<HI")


@register_module("GroupedMixerLatentCodec")
class GroupedMixerLatentCodec(LatentCodec):
    """Hyperprior plus group-wise transformer context (arXiv 2405.01170), one model for all rates.

    .. code-block:: none

                       gain                                              1 / gain
        y --------------(x)--.-------------------- Q --.-------------------(x)-- y_hat
                             |                     ^   |
                             |         mean, scale |   | groups decoded so far
              h_a <----------'                     |   v
               |   gain_z                      GroupedMixerContext
               '---(x)--- Q --- EB --- h_s --- psi ^

    Follows compressai's `LatentCodec` contract, so it takes the place of, say, ELIC's latent codec
    in ``SimpleVAECompressionModel``. Differs from the paper in the gains (continuous quality from
    one checkpoint, arXiv 2003.02012) and the hyper transforms (no GDN).

    Parameters
    ----------
    config
        Sizes; the transforms named in it are not used here.

    Attributes
    ----------
    quality
        Quality 0..7 that `forward` (in eval mode) and `compress` use when none is given.

    Notes
    -----
    There are two forms. The *training form* (`forward`) is plain PyTorch and predicts all groups
    at once. The *coding form* (`coder`, used by `compress` and `decompress`) is the native engine:
    step by step with a context cache, over weights exported to float16 and back. The two agree to
    float tolerance; nothing that is coded depends on that.
    """

    thresholds: Tensor
    dead_zone: Tensor
    z_medians: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.quality = 4.0
        m, n_z = config.latent_channels, config.hyper_channels
        steps = torch.linspace(-_LOG_GAIN, _LOG_GAIN, NUM_LEVELS).exp()
        self.gain = nn.Parameter(steps[:, None].repeat(1, m))
        self.shrinkage = nn.Parameter(torch.ones(NUM_LEVELS, m))
        self.hyper_gain = nn.Parameter(torch.ones(NUM_LEVELS, n_z))
        self.hyper_inverse_gain = nn.Parameter(torch.ones(NUM_LEVELS, n_z))
        self.h_a = HyperAnalysis(config)
        self.h_s = HyperSynthesis(config)
        self.entropy_bottleneck = EntropyBottleneck(n_z, init_scale=_BOTTLENECK_SCALE)
        self.context = GroupedMixerContext(config)
        self.likelihood = ScaleMixtureLikelihood()
        self.register_buffer("thresholds", scale_thresholds())
        self.register_buffer("dead_zone", dead_zone())
        self.register_buffer("z_medians", torch.zeros(n_z))  # belong to z_tables
        self.y_tables = CodingTables()
        self.z_tables = CodingTables()
        self._coder: tuple[tuple[object, ...], LatentCoder] | None = None

    def forward(
        self,
        y: Tensor,  # [B, M, H, W], H and W multiples of k_h and k_w
        quality: Tensor | float | None = None,  # 0..7, or [B]
        as_coded: bool = False,
    ) -> dict[str, Any]:
        """Training form: likelihoods and the decoded latent.

        .. code-block:: none

            pass 1, no gradient   the latent that predictions see: y_hat, nearly or exactly
            pass 2, gradient      all groups at once from that y_hat --> mean, scale
                                  symbols = round(y - mean), straight through, for rate and y_hat

        In training mode pass 1 takes all groups at once, see `_quantise_at_once`, and z sees
        uniform noise; ``as_coded`` changes both to what files hold. Stored tables are discarded,
        since they belong to the weights as they were. In eval mode groups are quantised step by
        step as in coding, skipped symbols included, and the likelihoods are those of the quantised
        values.

        Parameters
        ----------
        quality
            None: drawn per picture in training mode, ``self.quality`` in eval mode.
        as_coded
            In training mode: pass 1 takes one group after another, and z is rounded around the
            medians that `refresh_medians` last computed, so that ``y_hat`` is exactly what a file
            would hold. Slower, and in float32 also under autocast.

        Returns
        -------
        dict
            ``likelihoods``: {``y``: [B, M, H, W], ``z``: [B, N_z, ceil(H/4), ceil(W/4)]},
            ``y_hat``: [B, M, H, W], with the gains taken out again, for g_s; ``quality``: [B], as
            it was used.

        Raises
        ------
        ValueError
            If ``y`` has another shape or ``quality`` is out of range.
        """
        if as_coded and torch.is_autocast_enabled(y.device.type):
            # The two passes must agree on every mean to a fraction of a step.
            with torch.autocast(y.device.type, enabled=False):
                return self.forward(y.float(), quality, as_coded)
        if quality is None and self.training:
            quality = torch.rand(y.shape[0], device=y.device) * (NUM_LEVELS - 1)
        level = self._levels(quality, y)
        grouping = self.context.grouping
        groups, psi, z_likelihoods = self.context_inputs(y, level, round_z=as_coded)
        if self.training:
            self.y_tables.clear()
            self.z_tables.clear()
            with torch.no_grad():
                if as_coded:
                    _, _, decoded = self._quantise_stepwise(groups, psi, level)
                else:
                    decoded = self._quantise_at_once(groups, psi, level)
            likelihoods, y_hat = self._straight_through(groups, decoded, psi, level)
        else:
            symbols, skipped, y_hat = self._quantise_stepwise(groups, psi, level)
            prediction = self.context(y_hat, psi, level)
            likelihoods = self.likelihood(symbols, prediction.raw_scale)
            likelihoods = likelihoods.masked_fill(skipped, 1.0)
        return {
            "likelihoods": {"y": grouping.merge(likelihoods), "z": z_likelihoods},
            "y_hat": grouping.merge(y_hat) * _spatial(self._inverse_gain(level)),
            "quality": level,
        }

    def context_inputs(
        self,
        y: Tensor,  # [B, M, H, W]
        level: Tensor,  # [B] in 0..7
        round_z: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the context model sees beside decoded groups, and what it is to code.

        In training mode z gets uniform noise, or with ``round_z`` is rounded around its medians
        with a straight-through gradient; in eval mode it is rounded.

        Returns
        -------
        groups
            [B, G, h, w, M/k_c], y with the gains, ordered by the grouping.
        psi
            [B, G, h, w, d], the hyper prior's share of each group's features.
        z_likelihoods
            [B, N_z, ceil(H/4), ceil(W/4)].
        """
        scaled = y * _spatial(interpolate_levels(self.gain, level))
        z = self.h_a(scaled).float() * _spatial(interpolate_levels(self.hyper_gain, level))
        with torch.autocast(y.device.type, enabled=False):
            if round_z:
                z_hat, z_likelihoods = round_hyper_latent(self.entropy_bottleneck, z)
            else:
                z_hat, z_likelihoods = self.entropy_bottleneck(z)
        z_hat = z_hat * _spatial(interpolate_levels(self.hyper_inverse_gain, level))
        grouping = self.context.grouping
        psi = grouping.at_groups(self.h_s(z_hat, (y.shape[-2], y.shape[-1])))
        return grouping.split(scaled), psi, z_likelihoods

    def _quantise_at_once(
        self,
        groups: Tensor,  # [B, G, h, w, M/k_c]
        psi: Tensor,  # [B, G, h, w, d]
        level: Tensor,  # [B]
    ) -> Tensor:  # y_hat, as groups
        """What `_quantise_stepwise` makes, nearly, in one pass: means are predicted from groups
        rounded without a mean, not from those decoded before.

        Uniform noise in its place (arXiv 1611.01704) would hide the latent from the predictions,
        and cost bits, where scales are small against a step: at the lowest qualities it doubles
        the rate that training sees.
        """
        prediction = self.context(torch.round(groups), psi, level)
        symbols, skipped = self.quantise(groups, prediction)
        y_hat = symbols.masked_fill(skipped, 0) + prediction.mean
        return self.context.correct_groups(y_hat, prediction.features)

    def _straight_through(
        self,
        groups: Tensor,  # [B, G, h, w, M/k_c]
        decoded: Tensor,  # as groups: y_hat, which the predictions see
        psi: Tensor,  # [B, G, h, w, d]
        level: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # likelihoods and y_hat, as groups
        """Symbols rounded around the predicted means; gradients pass straight through.

        A skipped symbol is 0 and costs what its distribution says, where a file has it for nothing.
        Were it free, nothing would ever raise its scale again, and ever more would be skipped.
        """
        prediction = self.context(groups + (decoded - groups).detach(), psi, level)
        residual = groups - prediction.mean
        rounded, skipped = self.quantise(groups, prediction)
        symbols = residual + (rounded - residual).detach()
        likelihoods = self.likelihood(symbols, prediction.raw_scale)
        y_hat = symbols.masked_fill(skipped, 0) + prediction.mean
        return likelihoods, self.context.correct_groups(y_hat, prediction.features)

    @torch.no_grad()
    def quantise(
        self,
        groups: Tensor,  # [..., M/k_c]
        prediction: Prediction,
    ) -> tuple[Tensor, Tensor]:  # symbols as floats; bool: which of them a file leaves out, as 0
        """Residuals rounded, to 0 where 1 would not pay (`groupedmixer.entropy.dead_zone`)."""
        index = torch.searchsorted(self.thresholds, prediction.raw_scale.contiguous())
        residual = groups - prediction.mean
        zero = residual.abs() < self.dead_zone[index]
        symbols = torch.round(residual).clamp(-(2**15), 2**15 - 1).masked_fill(zero, 0)
        return symbols, index < SKIP_BELOW

    def _quantise_stepwise(
        self,
        groups: Tensor,  # [B, G, h, w, M/k_c]
        psi: Tensor,  # [B, G, h, w, d]
        level: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor, Tensor]:  # symbols as floats, which are skipped, y_hat
        """Each group rounded around the mean that its decoded predecessors predict."""
        symbols = torch.zeros_like(groups)
        skipped = torch.zeros_like(groups, dtype=torch.bool)
        embedding = self.context.level_embedding(level)
        latents = []
        for item, target in enumerate(groups):

            def quantise(
                step: int, prediction: Prediction, item: int = item, target: Tensor = target
            ) -> Tensor:
                rounded, skip = self.quantise(target[step], prediction)
                skipped[item, step] = skip
                symbols[item, step] = rounded.masked_fill(skip, 0)
                return symbols[item, step] + prediction.mean

            latents.append(run_groups(self.context, psi[item], embedding[item], quantise))
        return symbols, skipped, torch.stack(latents)

    def _inverse_gain(
        self,
        quality: Tensor,  # [B]
    ) -> Tensor:  # [B, M]
        """What takes the gain out again: shrinkage / gain, both linear between levels.

        Were the inverse itself linear, gain times inverse would be off by 2.5 % half way between
        two levels, where both curve the same way: more than quantisation is at high quality.
        """
        gain = interpolate_levels(self.gain, quality)
        return interpolate_levels(self.shrinkage, quality) / gain

    def _levels(self, quality: Tensor | float | None, y: Tensor) -> Tensor:  # [B]
        """The quality of every picture. ValueError if it is out of range or of another shape."""
        level = self.quality if quality is None else quality
        level = torch.as_tensor(level, dtype=torch.float32, device=y.device)
        if level.ndim > 1 or level.numel() not in (1, y.shape[0]):
            raise ValueError(f"quality must be a number or [{y.shape[0]}], got {level.shape}")
        if not bool(((level >= 0) & (level <= NUM_LEVELS - 1)).all()):
            raise ValueError(f"quality must be in 0..{NUM_LEVELS - 1}, got {quality}")
        return level.expand(y.shape[0])

    # ---- coding -----------------------------------------------------------------------------

    def compress(self, y: Tensor, quality: Tensor | float | None = None) -> dict[str, Any]:
        """Codes a batch of latents with the weights as they would be exported.

        Parameters
        ----------
        y
            [B, M, H, W], finite; H and W multiples of k_h and k_w.
        quality
            0 (small) .. 7 (fine), or [B]; None for ``self.quality``.

        Returns
        -------
        dict
            ``strings``: [tiles][B] bytes, each with its quality and a checksum in front;
            ``shape``: (H, W); ``y_hat``: [B, M, H, W] as `decompress` will return it.

        Raises
        ------
        ValueError
            If ``y`` or ``quality`` breaks a rule, or a weight overflows float16.
        """
        coder = self.coder()
        levels = self._levels(quality, y).tolist()
        coded = coder.encode(y, levels)
        strings = [
            [
                _STRING.pack(quality_field(level), tile.checksum) + bytes(tile.stream)
                for tile in latent.tiles
            ]
            for latent, level in zip(coded, levels, strict=True)
        ]
        y_hat = torch.cat([latent.y_hat for latent in coded if latent.y_hat is not None])
        return {
            "strings": [list(tile) for tile in zip(*strings, strict=True)],
            "shape": (y.shape[-2], y.shape[-1]),
            "y_hat": coder.unscale(y_hat, levels).to(y.device),
        }

    def decompress(
        self,
        strings: list[list[bytes]],  # [tiles][B]
        shape: tuple[int, int],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inverse of `compress`: {``y_hat``: [B, M, H, W]}, on the device of the parameters.

        Takes all of `compress`'s result (``decompress(**out)``) and uses strings and shape.

        Raises
        ------
        ArithmeticMismatchError
            If a string does not decode to the latent it was made from.
        ValueError
            If ``strings`` and ``shape`` do not fit each other, or a string is not one of ours.
        """
        del kwargs
        coder = self.coder()
        batch, qualities = [], []
        for tiles in zip(*strings, strict=True):
            if min(map(len, tiles)) < _STRING.size:
                raise ValueError(f"strings must hold at least {_STRING.size} bytes each")
            heads = [_STRING.unpack_from(tile) for tile in tiles]
            qualities.append(heads[0][0] / QUALITY_STEPS)
            batch.append(
                [
                    CodedTile(memoryview(tile)[_STRING.size :], checksum)
                    for tile, (_, checksum) in zip(tiles, heads, strict=True)
                ]
            )
        y_hat = coder.unscale(coder.decode(batch, shape, qualities), qualities)
        return {"y_hat": y_hat.to(self.thresholds.device)}

    def refresh_medians(self) -> None:
        """Computes the medians around which z is rounded, which training leaves behind.

        Call it before `forward` in eval mode or with ``as_coded``; `rebuild_tables` does it itself.
        """
        self.entropy_bottleneck._update_quantiles()

    def update(self) -> bool:
        """Builds the integer tables and stores them if there are none. True if it built them.

        Tables that are stored, as those shipped with weights are, are never changed here; see
        `rebuild_tables`. Training discards them (`forward`).
        """
        if not self.z_tables.empty:
            return False
        self.rebuild_tables()
        return True

    def rebuild_tables(self) -> None:
        """Makes the integer tables anew from the weights as they will be exported.

        Files written with the old tables can then no longer be read with these weights (the
        fingerprint changes, so they are refused by name).
        """
        self.refresh_medians()
        rounded = copy.deepcopy(self.entropy_bottleneck).float()
        round_to_half(rounded)
        self.z_medians = rounded.quantiles[:, 0, 1].detach().clone()
        self.z_tables.set(bottleneck_tables(rounded))
        self.y_tables.set(symbol_tables())

    def coder(self) -> LatentCoder:
        """The coding form of the weights as they are now: exported to float16 and back.

        Kept until a weight changes. Tables that are not stored are built for it. It codes on the
        GPU if the parameters lie there and CUDA kernels were built.
        """
        device = self.thresholds.device if engine.has_cuda() else torch.device("cpu")
        content = (device, *(_content(t) for t in (*self.parameters(), *self.buffers())))
        if self._coder is None or self._coder[0] != content:
            self._coder = (content, LatentCoder(self, device=device))
        return self._coder[1]

    def __getstate__(self) -> dict[str, Any]:
        # The coder is derived: copies and pickles make their own when they need one.
        return {**self.__dict__, "_coder": None}


def _content(tensor: Tensor) -> int:
    """A checksum of the bits: PyTorch's version counter misses writes through ``.data``."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data)


def _spatial(gains: Tensor) -> Tensor:  # [B, C] -> [B, C, 1, 1]
    return gains[:, :, None, None]
