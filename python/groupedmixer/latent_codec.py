# SPDX-License-Identifier: MIT
"""The entropy model as a compressai latent codec: put it between your g_a and g_s."""

from __future__ import annotations

import copy
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.latent_codecs import LatentCodec
from compressai.ops import quantize_ste
from compressai.registry import register_module
from torch import Tensor, nn

from .coding import LatentCoder, run_groups
from .config import NUM_LEVELS, Config
from .entropy import (
    CodingTables,
    GaussianLikelihood,
    bottleneck_tables,
    gaussian_tables,
    scale_thresholds,
)
from .export import round_to_half
from .mixer import GroupedMixerContext, Prediction, interpolate_levels
from .transforms import HyperAnalysis, HyperSynthesis

__all__ = ["GroupedMixerLatentCodec"]

# Gains of the lowest and highest level: a quantisation step 3.2 times coarser and finer than the
# middle one, which is what lambda = 0.0018 and 0.18 ask for at high rate.
_LOG_GAIN = 1.15


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

    Notes
    -----
    There are two forms. The *training form* (`forward`) is plain PyTorch and predicts all groups
    at once. The *coding form* (`coder`, used by `compress` and `decompress`) goes step by step with
    a context cache over weights exported to float16 and back. The two agree to float tolerance;
    nothing that is coded depends on that.
    """

    thresholds: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        m, n_z = config.latent_channels, config.hyper_channels
        steps = torch.linspace(-_LOG_GAIN, _LOG_GAIN, NUM_LEVELS).exp()
        self.gain = nn.Parameter(steps[:, None].repeat(1, m))
        self.inverse_gain = nn.Parameter(1 / steps[:, None].repeat(1, m))
        self.hyper_gain = nn.Parameter(torch.ones(NUM_LEVELS, n_z))
        self.hyper_inverse_gain = nn.Parameter(torch.ones(NUM_LEVELS, n_z))
        self.h_a = HyperAnalysis(config)
        self.h_s = HyperSynthesis(config)
        self.entropy_bottleneck = EntropyBottleneck(n_z)
        self.context = GroupedMixerContext(config)
        self.likelihood = GaussianLikelihood()
        self.register_buffer("thresholds", scale_thresholds())
        self.y_tables = CodingTables()
        self.z_tables = CodingTables()
        self._coder: tuple[tuple[int, ...], LatentCoder] | None = None

    def forward(
        self,
        y: Tensor,  # [B, M, H, W], H and W multiples of k_h and k_w
        quality: Tensor | float = 4.0,  # 0..7, or [B]
    ) -> dict[str, Any]:
        """Training form: likelihoods and the decoded latent.

        In training mode the rate sees uniform noise and ``y_hat`` rounds with a straight-through
        gradient (arXiv 2007.08739). In eval mode the groups are quantised step by step as in
        coding, and the likelihoods are those of the quantised values.

        Returns
        -------
        dict
            ``likelihoods``: {``y``: [B, M, H, W], ``z``: [B, N_z, ceil(H/4), ceil(W/4)]},
            ``y_hat``: [B, M, H, W], with the gains taken out again, for g_s.
        """
        level = self._levels(quality, y)
        y = y * _spatial(interpolate_levels(self.gain, level))
        z = self.h_a(y).float() * _spatial(interpolate_levels(self.hyper_gain, level))
        with torch.autocast(y.device.type, enabled=False):
            z_hat, z_likelihoods = self.entropy_bottleneck(z)
        z_hat = z_hat * _spatial(interpolate_levels(self.hyper_inverse_gain, level))
        psi_map = self.h_s(z_hat, (y.shape[-2], y.shape[-1]))

        grouping = self.context.grouping
        psi = grouping.at_groups(psi_map)
        groups = grouping.split(y)
        if self.training:
            noisy = groups + torch.empty_like(groups).uniform_(-0.5, 0.5)
            prediction = self.context(noisy, psi, level)
            residual = noisy - prediction.mean
            y_hat = quantize_ste(groups - prediction.mean) + prediction.mean
            y_hat = self.context.correct_groups(y_hat, prediction.features)
        else:
            residual, y_hat = self._quantise_stepwise(groups, psi, level)
            prediction = self.context(y_hat, psi, level)
        likelihoods = grouping.merge(self.likelihood(residual, prediction.raw_scale))
        inverse = _spatial(interpolate_levels(self.inverse_gain, level))
        return {
            "likelihoods": {"y": likelihoods, "z": z_likelihoods},
            "y_hat": grouping.merge(y_hat) * inverse,
        }

    def _quantise_stepwise(
        self,
        groups: Tensor,  # [B, G, h, w, M/k_c]
        psi: Tensor,  # [B, G, h, w, d]
        level: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # symbols as floats, y_hat; both [B, G, h, w, M/k_c]
        """Each group rounded around the mean that its decoded predecessors predict."""
        symbols = torch.zeros_like(groups)
        embedding = self.context.level_embedding(level)
        latents = []
        for item, target in enumerate(groups):

            def quantise(
                step: int, prediction: Prediction, item: int = item, target: Tensor = target
            ) -> Tensor:
                symbols[item, step] = torch.round(target[step] - prediction.mean)
                return symbols[item, step] + prediction.mean

            latents.append(run_groups(self.context, psi[item], embedding[item], quantise))
        return symbols, torch.stack(latents)

    def _levels(self, quality: Tensor | float, y: Tensor) -> Tensor:  # [B]
        level = torch.as_tensor(quality, dtype=torch.float32, device=y.device).expand(y.shape[0])
        if not bool(((level >= 0) & (level <= NUM_LEVELS - 1)).all()):
            raise ValueError(f"quality must be in 0..{NUM_LEVELS - 1}, got {quality}")
        return level

    # ---- coding -----------------------------------------------------------------------------

    def compress(self, y: Tensor, quality: float = 4.0) -> dict[str, Any]:
        """Codes a batch of latents, one stream (or one per tile) each.

        Parameters
        ----------
        y
            [B, M, H, W] float32, finite.
        quality
            0 (small) .. 7 (fine), stored nowhere: give the same to `decompress`.

        Returns
        -------
        dict
            ``strings``: [tiles][B] bytes, ``shape``: (H, W), ``y_hat``: [B, M, H, W].
        """
        coder = self.coder()
        coded = [coder.encode(item[None], quality) for item in y]
        streams = zip(*(c.streams for c in coded), strict=True)
        return {
            "strings": [list(tile) for tile in streams],
            "shape": (y.shape[-2], y.shape[-1]),
            "y_hat": torch.cat([coder.unscale(c.y_hat, quality) for c in coded]),
        }

    def decompress(
        self,
        strings: list[list[bytes]],  # [tiles][B]
        shape: tuple[int, int],
        quality: float = 4.0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inverse of `compress`: {``y_hat``: [B, M, H, W]}.

        Takes all of `compress`'s result (``decompress(**out)``) and uses strings and shape.

        Raises
        ------
        groupedmixer_ext.rans.RansError
            If a stream is not what an encoder wrote.
        """
        coder = self.coder()
        latents = []
        for streams in zip(*strings, strict=True):
            decoded = coder.decode(list(streams), (shape[0], shape[1]), quality)
            latents.append(coder.unscale(decoded.y_hat, quality))
        return {"y_hat": torch.cat(latents)}

    def update(self) -> bool:
        """Builds the integer tables if there are none. True if it built them.

        Tables that were shipped with weights are never changed here; see `rebuild_tables`.
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
        with torch.inference_mode(False):  # tensors made in inference mode have no version
            self.entropy_bottleneck._update_quantiles()
            rounded = copy.deepcopy(self.entropy_bottleneck)
            round_to_half(rounded)
            self.y_tables.set(gaussian_tables())
            self.z_tables.set(bottleneck_tables(rounded))

    def coder(self) -> LatentCoder:
        """The coding form of the weights as they are now: exported to float16 and back.

        Made once and kept until a parameter changes. Builds tables if there are none.
        """
        self.update()
        tensors = [*self.parameters(), *self.buffers()]
        state = tuple(v for t in tensors for v in (t.data_ptr(), t._version))
        if self._coder is None or self._coder[0] != state:
            self._coder = (state, LatentCoder(self))
        return self._coder[1]

    def __getstate__(self) -> dict[str, Any]:
        # The coder is derived: copies and pickles make their own when they need one.
        return {**self.__dict__, "_coder": None}


def _spatial(gains: Tensor) -> Tensor:  # [B, C] -> [B, C, 1, 1]
    return gains[:, :, None, None]
