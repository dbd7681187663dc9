# SPDX-License-Identifier: MIT
"""Cutting a latent into groups along channels and space, and joining it again."""

from __future__ import annotations

import torch
from torch import Tensor

from .group_order import Order, slices_outer

__all__ = ["Grouping"]


class Grouping:
    """The spatial-channel grouping of arXiv 2405.01170: G = k_c * k_h * k_w groups.

    .. code-block:: none

        y [B, M, H, W] --split--> [B, G, H/k_h, W/k_w, M/k_c] --merge--> y
                         group g = slice order[g][0], positions (i::k_h, j::k_w)

    Groups are channels-last ("token-major, then channel"), the order in which they are coded.

    Parameters
    ----------
    slices, k_h, k_w
        Number of channel slices and of row and column phases.
    order
        A permutation of all (slice, row phase, column phase) triples, or None for
        `slices_outer`.

    Raises
    ------
    ValueError
        If ``order`` is not such a permutation.
    """

    def __init__(
        self,
        slices: int,
        k_h: int,
        k_w: int,
        order: Order | None = None,
    ) -> None:
        natural = [(c, i, j) for c in range(slices) for i in range(k_h) for j in range(k_w)]
        order = slices_outer(slices, k_h, k_w) if order is None else order
        if sorted(order) != natural:
            raise ValueError(
                f"order must be a permutation of the {len(natural)} (slice, row phase, column "
                f"phase) triples of {slices} x {k_h} x {k_w} groups, got {order}"
            )
        self.slices, self.k_h, self.k_w, self.order = slices, k_h, k_w, order
        self.num_groups = len(order)
        self.slice_of = [c for c, _, _ in order]
        # Group g sits at _to_natural[g] of the natural (slice, row, column) order, and back.
        self._to_natural = [natural.index(group) for group in order]
        self._from_natural = [order.index(group) for group in natural]

    def split(
        self,
        y: Tensor,  # [B, M, H, W]
    ) -> Tensor:  # [B, G, H/k_h, W/k_w, M/k_c]
        """All groups of a latent in coding order. ValueError if the sizes do not divide."""
        b, m, height, width = y.shape
        if m % self.slices or height % self.k_h or width % self.k_w:
            raise ValueError(
                f"y must be [B, M, H, W] with M, H, W multiples of {self.slices}, {self.k_h}, "
                f"{self.k_w}, got {list(y.shape)}"
            )
        h, w = height // self.k_h, width // self.k_w
        y = y.reshape(b, self.slices, m // self.slices, h, self.k_h, w, self.k_w)
        y = y.permute(0, 1, 4, 6, 3, 5, 2).reshape(b, self.num_groups, h, w, m // self.slices)
        return y[:, self._to_natural]

    def merge(
        self,
        groups: Tensor,  # [B, G, h, w, M/k_c]
    ) -> Tensor:  # [B, M, h*k_h, w*k_w]
        """Inverse of `split`."""
        b, _, h, w, channels = groups.shape
        y = groups[:, self._from_natural]
        y = y.reshape(b, self.slices, self.k_h, self.k_w, h, w, channels)
        y = y.permute(0, 1, 6, 4, 2, 5, 3)
        return y.reshape(b, self.slices * channels, h * self.k_h, w * self.k_w)

    def at_groups(
        self,
        features: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, G, H/k_h, W/k_w, C]
        """Features at the positions of every group; all channels go to each slice."""
        b, c, height, width = features.shape
        h, w = height // self.k_h, width // self.k_w
        phases = features.reshape(b, c, h, self.k_h, w, self.k_w).permute(0, 3, 5, 2, 4, 1)
        phases = phases.reshape(b, self.k_h * self.k_w, h, w, c)
        return torch.stack([phases[:, i * self.k_w + j] for _, i, j in self.order], dim=1)
