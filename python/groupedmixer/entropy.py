# SPDX-License-Identifier: MIT
"""Scales, likelihoods and integer tables: where the float model meets the entropy coder.

Symbols are residuals rounded around a predicted mean. Their distribution has one shape and 64
widths: a mixture of three Gaussians whose widths stand in fixed proportion, so that one number,
sigma, says all. A single Gaussian costs more: residuals are more peaked and stray farther.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.ops import LowerBound, quantize_ste
from torch import Tensor, nn

from groupedmixer_ext import rans, tables

__all__ = [
    "SCALES",
    "SHAPE",
    "CodingTables",
    "ScaleMixtureLikelihood",
    "bottleneck_tables",
    "dead_zone",
    "round_hyper_latent",
    "scale_thresholds",
    "symbol_tables",
]

# (weight, standard deviation in units of sigma). Fitted to the symbols of a model, trained first
# with single Gaussians, then with such a mixture, over all tables and qualities at once.
SHAPE = ((0.42, 0.6), (0.56, 1.14), (0.02, 2.9))

# sigma of each of the 64 tables: log-spaced 0.11..64
SCALE_MIN, SCALE_MAX, NUM_SCALES = 0.11, 64.0, 64
_LOG_STEP = math.log(SCALE_MAX / SCALE_MIN) / (NUM_SCALES - 1)
SCALES = tuple(SCALE_MIN * math.exp(_LOG_STEP * i) for i in range(NUM_SCALES))

# In units of sigma: where the widest component's tail is far below what tables can hold.
_SYMBOL_REACH = 16

# Hyper latents farther than this from their channel's median are escaped in any case.
_REACH = 1024


def scale_thresholds() -> Tensor:  # [63] float32, ascending
    """Raw scales (log sigma) half way between neighbouring tables, in the logarithm.

    The scale index is the number of thresholds below the raw scale, so that each symbol is
    coded with the table nearest in log sigma. Computed once, when a model is made; stored with the
    weights from then on.
    """
    logs = [math.log(SCALE_MIN) + _LOG_STEP * (i + 0.5) for i in range(NUM_SCALES - 1)]
    return torch.tensor(logs, dtype=torch.float32)


# What squared error in the latent, in units of its step squared, is worth in bits when a symbol of
# 1 may become 0. At high rate, where D = step^2 / 12 and dD/dR = -2 ln 2 D, it would be
# 6 / ln 2 = 8.7; least bits at equal PSNR are near it (docs/training.md).
_BITS_PER_ERROR = 10.0


def _upper_tail(x: float, sigma: float) -> float:
    """Probability of a residual above x."""
    return sum(
        0.5 * weight * math.erfc(x / (sigma * width) * math.sqrt(0.5)) for weight, width in SHAPE
    )


def dead_zone() -> Tensor:  # [64] float32, 0.5..1
    """Residuals up to which a symbol of magnitude 1 is coded as 0, for each table of `SCALES`.

    Rate-distortion optimised quantisation, reduced to the decision that pays: 1 costs
    ``log2(P(0) / P(1))`` bits more than 0 and saves ``2 r - 1`` of squared error for a residual r.
    An encoder's choice, which decoders need not know. Stored with the weights, so that every
    machine's encoder makes the same one.
    """
    limits = []
    for sigma in SCALES:
        p0 = 1 - 2 * _upper_tail(0.5, sigma)
        p1 = _upper_tail(0.5, sigma) - _upper_tail(1.5, sigma)
        bits = math.log2(p0 / p1)
        limits.append(0.5 + bits / (2 * _BITS_PER_ERROR))
    return torch.tensor(limits, dtype=torch.float32)


class ScaleMixtureLikelihood(nn.Module):
    """P(symbol): the mass of `SHAPE` on a unit interval, for training and rate estimates.

    Between the mean-scale Gaussian conditional of arXiv 1809.02736 and the mixtures with parameters
    of their own of arXiv 2001.01568: a model predicts mean and sigma, and coding needs one index.
    """

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_bound = LowerBound(1e-9)
        self.raw_lower = LowerBound(math.log(SCALE_MIN))
        self.negated_upper = LowerBound(-math.log(SCALE_MAX))  # of -raw: an upper bound of raw

    def forward(
        self,
        residual: Tensor,  # [...] y - mean
        raw_scale: Tensor,  # [...] log sigma
    ) -> Tensor:  # [...] float32
        """Probability mass of the unit interval around the residual, at least 1e-9."""
        log_sigma = -self.negated_upper(-self.raw_lower(raw_scale.float()))
        inverse = torch.exp(-log_sigma) * math.sqrt(0.5)
        # Both tails are taken on the side where erfc does not cancel.
        distance = residual.float().abs()
        near, far = (distance - 0.5) * inverse, (distance + 0.5) * inverse
        mass = sum(
            (0.5 * weight) * (torch.erfc(near / width) - torch.erfc(far / width))
            for weight, width in SHAPE
        )
        likelihood: Tensor = self.likelihood_bound(mass)
        return likelihood


class CodingTables(nn.Module):
    """A set of integer tables as buffers, so that they travel with the weights.

    Empty until built or loaded. Buffers: ``counts`` int32 [sum of sizes], ``sizes`` int32 [T],
    ``offsets`` int32 [T]; the rules are those of `groupedmixer_ext.rans.Tables`.
    """

    counts: Tensor
    sizes: Tensor
    offsets: Tensor
    _FIELDS = ("counts", "sizes", "offsets")

    def __init__(self) -> None:
        super().__init__()
        for field in self._FIELDS:
            self.register_buffer(field, torch.empty(0, dtype=torch.int32))

    @property
    def empty(self) -> bool:
        """True until tables are set or loaded."""
        return self.sizes.numel() == 0

    def clear(self) -> None:
        """Forgets the tables."""
        for field in self._FIELDS:
            setattr(self, field, getattr(self, field).new_empty(0))

    def set(self, built: rans.Tables) -> None:
        """Replaces the tables."""
        for field in self._FIELDS:
            values = np.asarray(getattr(built, field)).astype(np.int32)
            setattr(self, field, torch.from_numpy(values).to(self.counts.device))

    def build(self) -> rans.Tables:
        """The tables as the coder takes them. ValueError if a rule is broken."""
        counts, sizes, offsets = (getattr(self, field).cpu().numpy() for field in self._FIELDS)
        if counts.size and not (0 <= counts.min() and counts.max() < 2**16):
            raise ValueError(f"counts must lie in 0..65535, got {counts.min()}..{counts.max()}")
        return rans.Tables(counts.astype(np.uint16), sizes, offsets)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for field in self._FIELDS:
            stored = state_dict.get(prefix + field)
            if stored is not None:  # sizes are part of what is stored
                setattr(self, field, getattr(self, field).new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def symbol_tables() -> rans.Tables:
    """The 64 tables of `SCALES`, each of `SHAPE`."""
    return tables.symmetric_tables(
        SCALES, lambda sigma: lambda x: _upper_tail(x, sigma), _SYMBOL_REACH
    )


def round_hyper_latent(
    bottleneck: EntropyBottleneck,
    z: Tensor,  # [B, N_z, h, w]
) -> tuple[Tensor, Tensor]:  # z_hat and likelihoods, as z
    """z rounded around its medians; both results pass the gradient straight to z."""
    medians = bottleneck._get_medians().detach().reshape(1, -1, 1, 1)
    z_hat = quantize_ste(z - medians) + medians
    values = z_hat.transpose(0, 1)  # [N_z, B, h, w]
    likelihoods, _, _ = bottleneck._likelihood(values.reshape(values.shape[0], 1, -1))
    likelihoods = bottleneck.likelihood_lower_bound(likelihoods)
    return z_hat, likelihoods.reshape(values.shape).transpose(0, 1)


@torch.no_grad()
def bottleneck_tables(bottleneck: EntropyBottleneck) -> rans.Tables:
    """One table per channel of a (trained) entropy bottleneck, around its medians."""
    medians = bottleneck.quantiles[:, :, 1:2]  # [N_z, 1, 1]
    values = torch.arange(-_REACH, _REACH + 1, device=medians.device)
    pmf, _, _ = bottleneck._likelihood(medians + values)  # [N_z, 1, 2 * reach + 1]
    inside = pmf[:, 0].double().cpu().numpy()
    beyond = np.maximum(1 - inside.sum(axis=1, keepdims=True), 0)
    pmfs = np.concatenate([inside, beyond], axis=1)
    return tables.tables_from_pmfs(list(pmfs), [-_REACH] * bottleneck.channels)
