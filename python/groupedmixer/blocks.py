# SPDX-License-Identifier: MIT
"""Token mixers: inner-group window attention, cross-group causal attention, MLP.

Each mixer has a training form (all G groups at once) and, where it differs, a coding form (one
group, earlier keys and values from the context cache). The parameters are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import HEAD_DIM, WINDOW

__all__ = ["CrossGroupMixer", "InnerGroupMixer", "MixerBlock"]

LAYER_NORM_EPS = 1e-6
MAX_HALF = 65504.0


def attend(
    q: Tensor,  # [N, T, heads, 32]
    k: Tensor,  # [N, T, heads, 32]
    v: Tensor,  # [N, T, heads, 32]
    bias: Tensor,  # [heads, T, T]
) -> Tensor:  # [N, T, heads * 32]
    """softmax(q.k / sqrt(32) + bias) v.

    Spelled out because the bias is learned, which keeps PyTorch's fused attention from its fast
    paths, and its general path is slower than these four operations.
    """
    scores = (q * HEAD_DIM**-0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
    weights = (scores + bias.to(scores.dtype)).softmax(dim=-1).to(v.dtype)
    return (weights @ v.transpose(1, 2)).transpose(1, 2).flatten(2)


def _cells(length: int, offset: int) -> list[tuple[int, int, int]]:
    """Runs of equal lattice cells on an axis, clipped to it: (start, cell size, cell count).

    >>> _cells(22, 4)
    [(0, 4, 1), (4, 8, 2), (20, 2, 1)]
    """
    first = min(WINDOW - offset, length) if offset else 0
    whole, last = divmod(length - first, WINDOW)
    runs = [(0, first, 1), (first, WINDOW, whole), (length - last, last, 1)]
    return [(start, size, count) for start, size, count in runs if size and count]


class InnerGroupMixer(nn.Module):
    """Window attention inside one group: the "inner-group token mixer" of arXiv 2405.01170.

    .. code-block:: none

        x --LN--> qkv --> windows of the lattice --> softmax(q.k/sqrt(32) + bias) v --> proj --(+x)

    Windows are cells of a lattice of pitch 8 whose origin is (0, 0) or, in shifted blocks,
    (-4, -4), clipped to the grid. Unlike Swin there is no roll and no padding: nothing wraps
    around, and a window at a border is simply smaller. Not causal: the group that a step reads is
    decoded.
    """

    _bias_index: Tensor

    def __init__(self, width: int, shifted: bool) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.offset = WINDOW // 2 if shifted else 0
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # [heads, (query row - key row + 7) * 15 + query column - key column + 7]
        side = 2 * WINDOW - 1
        self.relative_bias = nn.Parameter(torch.zeros(self.heads, side * side))
        along = torch.arange(WINDOW)[:, None] - torch.arange(WINDOW)[None, :] + WINDOW - 1
        index = along[:, None, :, None] * side + along[None, :, None, :]
        self.register_buffer("_bias_index", index, persistent=False)  # [8, 8, 8, 8]

    def forward(
        self,
        x: Tensor,  # [N, h, w, d]
    ) -> Tensor:  # [N, h, w, d]
        """x + attention(LN(x)) within the windows of each of the N grids."""
        _, h, w, _ = x.shape
        qkv = self.qkv(self.norm(x))
        columns = _cells(w, self.offset)
        bands = []
        for top, cell_h, rows in _cells(h, self.offset):
            band = qkv[:, top : top + cell_h * rows]
            parts = [
                self._windows(band[:, :, left : left + cell_w * count], cell_h, cell_w)
                for left, cell_w, count in columns
            ]
            bands.append(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0])
        return x + self.proj(torch.cat(bands, dim=1) if len(bands) > 1 else bands[0])

    def _windows(
        self,
        qkv: Tensor,  # [N, a * cell_h, b * cell_w, 3d]
        cell_h: int,
        cell_w: int,
    ) -> Tensor:  # [N, a * cell_h, b * cell_w, d]
        """Attention in each of the a x b windows of one size."""
        n, height, width, _ = qkv.shape
        a, b, tokens = height // cell_h, width // cell_w, cell_h * cell_w
        grid = qkv.reshape(n, a, cell_h, b, cell_w, -1).transpose(2, 3)
        q, k, v = grid.reshape(n * a * b, tokens, 3, self.heads, HEAD_DIM).unbind(2)
        index = self._bias_index[:cell_h, :cell_w, :cell_h, :cell_w].reshape(tokens, tokens)
        out = attend(q, k, v, self.relative_bias[:, index])
        out = out.reshape(n, a, b, cell_h, cell_w, -1).transpose(2, 3)
        return out.reshape(n, height, width, -1)


class CrossGroupMixer(nn.Module):
    """Causal attention over groups at one position: the "cross-group token mixer".

    .. code-block:: none

        step g:  x_g --LN--> q_g, k_g, v_g ;  k_g, v_g --append--> context cache
                 softmax(q_g.k_{0..g}/sqrt(32) + bias[g, 0..g]) v_{0..g} --> proj --(+x_g)

    Differs from arXiv 2405.01170 in the learned bias per (head, step of query, step of key).
    """

    _future: Tensor

    def __init__(self, width: int, num_groups: int) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.step_bias = nn.Parameter(torch.zeros(self.heads, num_groups, num_groups))
        future = torch.ones(num_groups, num_groups, dtype=torch.bool).triu(1)
        self.register_buffer("_future", future, persistent=False)

    def forward(
        self,
        x: Tensor,  # [B, G, h, w, d]
    ) -> Tensor:  # [B, G, h, w, d]
        """Training form: all steps at once under a causal mask over groups."""
        b, groups, h, w, d = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.reshape(b * h * w, groups, 3, self.heads, HEAD_DIM).unbind(2)
        out = attend(q, k, v, self.step_bias.masked_fill(self._future, float("-inf")))
        out = self.proj(out.reshape(b, h, w, groups, d))
        return x + out.permute(0, 3, 1, 2, 4)

    def append_step(
        self,
        step: int,
        x: Tensor,  # [h, w, d]
        keys: Tensor,  # [h*w, heads, G, 32], updated in place at `step`
        values: Tensor,  # [h*w, heads, G, 32], updated in place at `step`
    ) -> Tensor:  # [h, w, d]
        """Coding form: appends this step's keys and values to the cache, attends to 0..step."""
        h, w, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(h * w, 3, self.heads, HEAD_DIM).unbind(1)
        # The cache of the native engine holds float16.
        keys[:, :, step] = k.clamp(-MAX_HALF, MAX_HALF).half()
        values[:, :, step] = v.clamp(-MAX_HALF, MAX_HALF).half()
        scores = (keys[:, :, : step + 1] @ q.unsqueeze(-1)).squeeze(-1) * HEAD_DIM**-0.5
        weights = (scores + self.step_bias[:, step, : step + 1]).softmax(dim=-1)
        out = (weights.unsqueeze(-2) @ values[:, :, : step + 1]).reshape(h, w, d)
        return x + self.proj(out)


class MixerBlock(nn.Module):
    """Inner-group mixer, cross-group mixer and MLP, pre-norm and residual.

    .. code-block:: none

        x --> InnerGroupMixer --> CrossGroupMixer --> x + Linear(GELU(Linear(LN(x))))
    """

    def __init__(self, width: int, num_groups: int, shifted: bool) -> None:
        super().__init__()
        self.inner = InnerGroupMixer(width, shifted)
        self.cross = CrossGroupMixer(width, num_groups)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=LAYER_NORM_EPS),
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )

    def forward(
        self,
        x: Tensor,  # [B, G, h, w, d]
    ) -> Tensor:  # [B, G, h, w, d]
        """Training form."""
        x = self.inner(x.flatten(0, 1)).reshape(x.shape)
        x = self.cross(x)
        return x + self.mlp(x)

    def append_step(
        self,
        step: int,
        x: Tensor,  # [h, w, d]
        keys: Tensor,  # [h*w, heads, G, 32], updated in place
        values: Tensor,  # [h*w, heads, G, 32], updated in place
    ) -> Tensor:  # [h, w, d]
        """Coding form of one step."""
        x = self.inner(x.unsqueeze(0)).squeeze(0)
        x = self.cross.append_step(step, x, keys, values)
        return x + self.mlp(x)
