# SPDX-License-Identifier: MIT
"""The entropy model as a good PyTorch programmer would run it, with and without a cache.

Peers for `coding_speed.py --peers`. They read the parameters of a `GroupedMixerContext` and spell
the coding steps out again, with what float32 permits and a file format does not: any order of
summation, no rounding to a grid, other numbers with every thread count. rANS is left out: the
encoder keeps its symbols, the decoder is given them. Everything happens where the parameters are.

`EagerCached` has a context cache, allocated once; `tune` picks its attention by timing, tries
``torch.compile`` with frozen weights and keeps the fastest. On a GPU it also picks among precisions
and between plain calls and `CapturedCached`, all steps as one CUDA graph. `EagerUncached` has no
cache: step g computes groups 0..g and keeps the last.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _device import elapsed_ms, on_gpu
from torch import Tensor, nn

from groupedmixer import GroupedMixer
from groupedmixer.blocks import MixerBlock
from groupedmixer.config import HEAD_DIM, WINDOW
from groupedmixer.mixer import GroupedMixerContext, compand, interpolate_levels
from groupedmixer.tiles import latent_tiles

__all__ = [
    "CROSS_KINDS",
    "PRECISIONS",
    "TOLERANCE",
    "WINDOW_KINDS",
    "CapturedCached",
    "EagerCached",
    "EagerUncached",
    "Inputs",
    "Tuned",
    "Variant",
    "attend",
    "check_against_training_form",
    "cross_by_product",
    "make_cached",
    "make_windows",
    "prepare",
    "tune",
]

# Means against those of the training form, relative to 1 + |mean|: float32 adds up a row of 1024
# products to about 1e-6, and up to 8 layers of 3 mixers pass that on.
TOLERANCE = 2e-4

WINDOW_KINDS = ("cells-plain", "cells-sdpa", "padded-plain", "padded-sdpa")
CROSS_KINDS = ("matmul", "sdpa", "sum")

# Of matrix products. "bf16" is autocast of the blocks, whose matrices are stored so; means and
# scales come of the same float32 layer as in training, whose products may be TF32 then, too.
PRECISIONS = ("float32", "tf32", "bf16")

_SIDE = 2 * WINDOW - 1


class Inputs(NamedTuple):
    """What a tile's entropy model starts from. Positions of a group are in raster order."""

    y: Tensor  # [G, T, M/k_c] float32, gains in
    psi: Tensor  # [G, T, d] float32
    level: Tensor  # [d]
    h: int
    w: int


class Coded(NamedTuple):
    """What coding a tile gave."""

    symbols: Tensor  # [G, T, M/k_c] int16
    y_hat: Tensor  # [G, T, M/k_c]
    means: Tensor  # [G, T, M/k_c]


class Variant(NamedTuple):
    """How a cached peer computes; every one gives the same numbers but for rounding."""

    windows: str  # of WINDOW_KINDS
    cross: str  # of CROSS_KINDS
    compiled: bool = False
    precision: str = "float32"  # of PRECISIONS
    captured: bool = False  # all steps as one CUDA graph

    def __str__(self) -> str:
        how = "torch.compile" if self.compiled else "no compile"
        how += f", {self.precision}" if self.precision != "float32" else ""
        how += ", CUDA graph" if self.captured else ""
        return f"windows {self.windows}, cross {self.cross}, {how}"


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Lets matrix products of float32 be TF32 unless they are to be float32."""
    if precision == "float32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _mixed(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for "bf16"."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@torch.inference_mode()
def prepare(
    model: GroupedMixer,
    x: Tensor,  # [1, 3, H, W] in 0..1
    quality: float,
    tile: int,
) -> list[Inputs]:
    """Inputs of every tile of a picture, by float32 transforms, on the device of model and x."""
    codec, grouping = model.latent_codec, model.latent_codec.context.grouping
    level = torch.tensor([quality], device=x.device)

    def gains(table: Tensor) -> Tensor:  # [1, C, 1, 1]
        return interpolate_levels(table, level)[:, :, None, None]

    y = model.g_a(model.pad(x)) * gains(codec.gain)
    medians = codec.z_medians[:, None, None]
    z_hat = (codec.h_a(y) * gains(codec.hyper_gain) - medians).round() + medians
    size = (y.shape[2], y.shape[3])
    psi = codec.h_s(z_hat * gains(codec.hyper_inverse_gain), size)
    embedding = codec.context.level_embedding(level)[0]
    inputs = []
    for rows, columns in latent_tiles(*size, tile, *model.config.patch).slices():
        groups = grouping.split(y[:, :, rows, columns])[0]
        features = grouping.at_groups(psi[:, :, rows, columns])[0]
        h, w = groups.shape[1:3]
        inputs.append(
            Inputs(
                groups.flatten(1, 2).contiguous(),
                features.flatten(1, 2).contiguous(),
                embedding,
                h,
                w,
            )
        )
    return inputs


# ---- attention ------------------------------------------------------------------------------


def attend(
    q: Tensor,  # [N, heads, T, 32]
    k: Tensor,  # [N, heads, S, 32]
    v: Tensor,  # [N, heads, S, 32]
    bias: Tensor,  # [1 or N, heads, T, S]
    fused: bool,
) -> Tensor:  # [N, heads, T, 32]
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = q * HEAD_DIM**-0.5 @ k.transpose(-1, -2)
    return (scores + bias).softmax(-1) @ v


def _cells(length: int, offset: int) -> list[tuple[int, int, int]]:
    """Runs of equal lattice cells on an axis: (start, cell size, cell count)."""
    first = min(offset, length)
    whole, last = divmod(length - first, WINDOW)
    runs = [(0, first, 1), (first, WINDOW, whole), (length - last, last, 1)]
    return [(start, size, count) for start, size, count in runs if size and count]


def _bias_index(cell_h: int, cell_w: int) -> Tensor:  # [cell_h * cell_w, cell_h * cell_w]
    """Where the bias of (query, key) stands in a row of ``relative_bias``."""
    rows, columns = torch.arange(cell_h), torch.arange(cell_w)
    down = (rows[:, None] - rows[None] + WINDOW - 1)[:, None, :, None]
    right = (columns[:, None] - columns[None] + WINDOW - 1)[None, :, None, :]
    return (down * _SIDE + right).reshape(cell_h * cell_w, -1)


class _CellWindows(nn.Module):
    """Window attention by runs of equal windows: no wasted work, up to nine small calls."""

    def __init__(
        self,
        relative_bias: Tensor,  # [heads, 225]
        offset: int,
        h: int,
        w: int,
        fused: bool,
    ) -> None:
        super().__init__()
        self.h, self.w, self.fused = h, w, fused
        self.rows, self.columns = _cells(h, offset), _cells(w, offset)
        self.bias = {  # laid out once, not in every step
            (ch, cw): relative_bias[:, _bias_index(ch, cw)].contiguous()
            for _, ch, _ in self.rows
            for _, cw, _ in self.columns
        }

    def forward(
        self,
        qkv: Tensor,  # [T, 3d]
    ) -> Tensor:  # [T, d]
        grid = qkv.view(self.h, self.w, -1)
        bands = []
        for top, cell_h, a in self.rows:
            parts = []
            for left, cell_w, b in self.columns:
                cut = grid[top : top + a * cell_h, left : left + b * cell_w]
                cut = cut.reshape(a, cell_h, b, cell_w, 3, -1, HEAD_DIM)
                cut = cut.permute(4, 0, 2, 5, 1, 3, 6).reshape(
                    3, a * b, -1, cell_h * cell_w, HEAD_DIM
                )
                q, k, v = cut.unbind(0)
                out = attend(q, k, v, self.bias[cell_h, cell_w][None], self.fused)
                out = out.reshape(a, b, -1, cell_h, cell_w, HEAD_DIM).permute(0, 3, 1, 4, 2, 5)
                parts.append(out.reshape(a * cell_h, b * cell_w, -1))
            bands.append(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        return torch.cat(bands).flatten(0, 1)


class _PaddedWindows(nn.Module):
    """Window attention as one call over windows filled up to 64 positions under a mask."""

    index: Tensor
    inverse: Tensor
    bias: Tensor

    def __init__(
        self,
        relative_bias: Tensor,  # [heads, 225]
        offset: int,
        h: int,
        w: int,
        fused: bool,
    ) -> None:
        super().__init__()
        self.fused = fused
        device = relative_bias.device
        rows, columns = -(-(h + offset) // WINDOW), -(-(w + offset) // WINDOW)
        i = torch.arange(rows * WINDOW, device=device) - offset
        j = torch.arange(columns * WINDOW, device=device) - offset
        inside = ((i >= 0) & (i < h))[:, None] & ((j >= 0) & (j < w))[None]
        position = i.clamp(0, h - 1)[:, None] * w + j.clamp(0, w - 1)[None]

        def windows(x: Tensor) -> Tensor:  # [n, 64]
            x = x.reshape(rows, WINDOW, columns, WINDOW).transpose(1, 2)
            return x.reshape(rows * columns, WINDOW * WINDOW)

        inside, position = windows(inside), windows(position)
        self.index = position.flatten()
        self.inverse = torch.empty(h * w, dtype=torch.long, device=device)
        kept = inside.flatten().nonzero()[:, 0]
        self.inverse[self.index[kept]] = kept
        bias = relative_bias[:, _bias_index(WINDOW, WINDOW)]
        self.bias = bias[None].masked_fill(~inside[:, None, None, :], float("-inf")).contiguous()

    def forward(
        self,
        qkv: Tensor,  # [T, 3d]
    ) -> Tensor:  # [T, d]
        windows, heads = self.bias.shape[:2]
        cut = qkv[self.index].view(windows, WINDOW**2, 3, heads, HEAD_DIM)
        q, k, v = cut.permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v, self.bias, self.fused)
        return out.transpose(1, 2).reshape(windows * WINDOW**2, -1)[self.inverse]


def make_windows(
    name: str,
    relative_bias: Tensor,  # [heads, 225]
    offset: int,
    h: int,
    w: int,
) -> nn.Module:
    """Window attention of one of `WINDOW_KINDS` on a grid: qkv [T, 3d] -> [T, d]."""
    layout, kernel = name.split("-")
    kind = {"cells": _CellWindows, "padded": _PaddedWindows}[layout]
    return kind(relative_bias, offset, h, w, kernel == "sdpa")


def cross_by_product(
    q: Tensor,  # [T, d]
    keys: Tensor,  # [S, T, d]
    values: Tensor,  # [S, T, d]
    bias: Tensor,  # [S, 1, heads]
) -> Tensor:  # [T, d]
    """One query a position, steps outermost: products and sums, which a compiler fuses."""
    steps, positions, d = keys.shape
    heads = bias.shape[-1]
    query = (q * HEAD_DIM**-0.5).view(positions, heads, HEAD_DIM)
    scores = (keys.view(steps, positions, heads, HEAD_DIM) * query).sum(-1) + bias
    weights = scores.softmax(0).unsqueeze(-1)
    return (weights * values.view(steps, positions, heads, HEAD_DIM)).sum(0).view(positions, d)


# ---- the steps ------------------------------------------------------------------------------


class _Segment(nn.Module):
    """What lies between two cross-group attentions: the end of a block, the start of the next."""

    def __init__(
        self,
        after: MixerBlock | None,
        before: MixerBlock | None,
        norm: nn.LayerNorm,
        windows: nn.Module | None,
    ) -> None:
        super().__init__()
        self.after, self.before, self.norm, self.windows = after, before, norm, windows

    def own_code(self) -> None:
        """Gives this segment a copy of `forward`'s code.

        What torch.compile makes of a function hangs on its code, where it looks for a match one by
        one and stops compiling after eight: segments must not share theirs.
        """
        shared = _Segment.forward
        own = types.FunctionType(shared.__code__.replace(), shared.__globals__)
        self.forward = types.MethodType(own, self)  # type: ignore[method-assign]

    def forward(
        self,
        x: Tensor,  # [T, d]
        attended: Tensor,  # [T, d], not used by the first segment
    ) -> tuple[Tensor, Tensor]:  # x and the next qkv [T, 3d]; of the last: x and features [T, d]
        if self.after is not None:
            x = x + self.after.cross.proj(attended)
            x = x + self.after.mlp(x)
        if self.before is None or self.windows is None:
            return x, self.norm(x)
        inner, cross = self.before.inner, self.before.cross
        x = x + inner.proj(self.windows(inner.qkv(inner.norm(x))))
        return x, cross.qkv(cross.norm(x))


class _Ending(nn.Module):
    """From the features of a step to its decoded group.

    Rounds without the dead zone of `groupedmixer.entropy.dead_zone`: a lookup and a comparison less
    than the engine's encoder.
    """

    def __init__(self, context: GroupedMixerContext, thresholds: Tensor, skip_below: int) -> None:
        super().__init__()
        self.thresholds, self.skip_below = thresholds, skip_below
        self.has_lrp = context.config.lrp

    def forward(
        self,
        features: Tensor,  # [T, d]
        target: Tensor,  # [T, M/k_c]: y when encoding, symbols (int16) when decoding
        head: Tensor,  # [2M/k_c, d]
        head_bias: Tensor,  # [2M/k_c]
        lrp: Tensor,  # [M/k_c, d + M/k_c]
        lrp_bias: Tensor,  # [M/k_c]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scale index (int32), symbols (int16), mean, y_hat and compand(y_hat) [T, M/k_c]."""
        mean, raw_scale = F.linear(features, head, head_bias).chunk(2, dim=-1)
        index = torch.searchsorted(self.thresholds, raw_scale.contiguous(), out_int32=True)
        if target.dtype == torch.int16:
            symbols = target
            y_hat = symbols + mean
        else:
            rounded = (target - mean).round().clamp(-(2**15), 2**15 - 1)
            rounded = rounded.masked_fill(index < self.skip_below, 0)
            symbols = rounded.to(torch.int16)
            y_hat = rounded + mean
        if self.has_lrp:
            inputs = torch.cat([features, compand(y_hat)], dim=-1)
            y_hat = y_hat + 0.5 * F.linear(inputs, lrp, lrp_bias).tanh()
        return index, symbols, mean, y_hat, compand(y_hat)


class EagerCached:
    """The entropy model with a context cache, for tiles of one size.

    .. code-block:: none

        all psi --one product--> x_g       for each g: x_g + E compand(y_hat_{g-1}) --> segment 0
            segment l --qkv--> cache[l, g] <-- attention over 0..g --> segment l+1 ... --> ending
    """

    def __init__(
        self,
        context: GroupedMixerContext,
        thresholds: Tensor,  # [63]
        skip_below: int,
        h: int,
        w: int,
        variant: Variant,
    ) -> None:
        config = context.config
        self._dtype = torch.bfloat16 if variant.precision == "bf16" else torch.float32
        self._device = context.start.device
        if variant.precision == "bf16":
            context = copy.deepcopy(context)
            for module in context.blocks.modules():
                if isinstance(module, nn.Linear):
                    module.to(self._dtype)
        self.variant, self.context = variant, context
        self.heads, self.layers = config.width // HEAD_DIM, config.layers
        slice_of = context.grouping.slice_of
        blocks = [block for block in context.blocks if isinstance(block, MixerBlock)]
        pairs = zip([None, *blocks], [*blocks, None], strict=True)
        with torch.inference_mode():
            self._segments: list[Callable[..., Any]] = [
                _Segment(
                    after,
                    before,
                    context.norm,
                    None if before is None else self._windows(before, h, w),
                ).eval()
                for after, before in pairs
            ]
            self._ending: Callable[..., Any] = _Ending(context, thresholds, skip_below).eval()
            self._by_product: Callable[..., Tensor] = cross_by_product
            # Steps outermost for "sum", where every step is read in one run; positions outermost
            # for the matrix products, which want the keys of a position side by side.
            groups, positions, d = config.num_groups, h * w, config.width
            kept = {"dtype": self._dtype, "device": self._device}
            if variant.cross == "sum":
                self._cache = torch.empty(self.layers, 2, groups, positions, d, **kept)
                biases = [block.cross.step_bias.permute(1, 2, 0) for block in blocks]
                self._bias = [bias[:, :, None].contiguous() for bias in biases]  # [G, S, 1, heads]
            else:
                shape = (self.layers, 2, positions, self.heads, groups, HEAD_DIM)
                self._cache = torch.empty(shape, **kept)
                biases = [block.cross.step_bias.transpose(0, 1).to(self._dtype) for block in blocks]
                self._bias = [bias[:, None, :, None].contiguous() for bias in biases]
            self._slices = [self._slice_weights(c) for c in range(config.slices)]
            self._embed_hyper = context.embed_hyper[slice_of].transpose(1, 2).contiguous()
            constant = context.embed_hyper_bias[slice_of] + context.embed_group
            self._constant = constant + context.embed_y_bias[[0, *slice_of[:-1]]]
        if variant.compiled:
            self._compile()

    def _windows(self, block: MixerBlock, h: int, w: int) -> nn.Module:
        inner = block.inner
        bias = inner.relative_bias.to(self._dtype)
        return make_windows(self.variant.windows, bias, inner.offset, h, w)

    def _slice_weights(self, c: int) -> tuple[Tensor, ...]:
        context = self.context
        channels = context.embed_y.shape[2]
        lrp = (context.lrp[c], context.lrp_bias[c]) if context.config.lrp else None
        unused = (context.head.new_empty(channels, 0), context.head.new_empty(channels))
        return (context.head[c], context.head_bias[c], *(lrp or unused))

    def _compile(self) -> None:
        # Frozen weights: the compiler may lay them out as the CPU's matrix products like them best.
        options: dict[str, str | int | bool | Callable[..., Any]] = {
            "freezing": self._device.type == "cpu"
        }
        for segment in self._segments:
            assert isinstance(segment, _Segment)
            segment.own_code()
        self._segments = [
            torch.compile(segment, dynamic=False, options=options) for segment in self._segments
        ]
        self._ending = torch.compile(self._ending, dynamic=False)
        self._by_product = torch.compile(cross_by_product)

    def _cross(
        self,
        layer: int,
        step: int,
        qkv: Tensor,  # [T, 3d]
    ) -> Tensor:  # [T, d]
        """Appends this step's keys and values to the cache, attends to 0..step."""
        keys, values = self._cache[layer]
        q, k, v = qkv.chunk(3, dim=1)
        if self.variant.cross == "sum":
            keys[step], values[step] = k, v
            if not step:
                return v
            bias = self._bias[layer][step, : step + 1]
            return self._by_product(q, keys[: step + 1], values[: step + 1], bias).to(q.dtype)
        grid = (-1, self.heads, HEAD_DIM)
        keys[:, :, step], values[:, :, step] = k.view(grid), v.view(grid)
        out = attend(
            q.view(-1, self.heads, 1, HEAD_DIM),
            keys[:, :, : step + 1],
            values[:, :, : step + 1],
            self._bias[layer][step, ..., : step + 1],
            self.variant.cross == "sdpa",
        )
        return out.view(q.shape)

    @torch.inference_mode()
    def code(
        self,
        inputs: Inputs,
        targets: Tensor,  # [G, T, M/k_c]: y to encode, symbols (int16) to decode
    ) -> Coded:
        """All G steps of a tile."""
        with _products(self.variant.precision):
            return self._code(inputs, targets)

    def _code(self, inputs: Inputs, targets: Tensor) -> Coded:
        context, slice_of = self.context, self.context.grouping.slice_of
        constant = (self._constant + inputs.level)[:, None]
        starts = torch.baddbmm(constant, inputs.psi, self._embed_hyper)
        groups, positions, channels = targets.shape
        coded = Coded(
            torch.empty(groups, positions, channels, dtype=torch.int16, device=self._device),
            torch.empty(groups, positions, channels, device=self._device),
            torch.empty(groups, positions, channels, device=self._device),
        )
        previous = compand(context.start).expand(positions, -1)
        for step in range(groups):
            weight = context.embed_y[slice_of[step - 1] if step else 0]
            x = torch.addmm(starts[step], previous, weight.T)
            with _mixed(self.variant.precision, self._device):
                x, qkv = self._segments[0](x, x)
                for layer in range(self.layers):
                    attended = self._cross(layer, step, qkv)
                    x, qkv = self._segments[layer + 1](x, attended)
            _, symbols, mean, y_hat, previous = self._ending(
                qkv, targets[step], *self._slices[slice_of[step]]
            )
            coded.symbols[step], coded.y_hat[step], coded.means[step] = symbols, y_hat, mean
        return coded


class _Recorded(NamedTuple):
    """A CUDA graph of `EagerCached.code` and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    targets: Tensor
    coded: Coded


class CapturedCached:
    """An `EagerCached` on a GPU, whose steps are one CUDA graph for each direction."""

    def __init__(self, coder: EagerCached) -> None:
        self.variant = coder.variant
        self._coder = coder
        self._recorded: dict[torch.dtype, _Recorded] = {}

    @torch.inference_mode()
    def code(
        self,
        inputs: Inputs,
        targets: Tensor,  # as of `EagerCached.code`
    ) -> Coded:
        """All G steps of a tile."""
        if targets.dtype not in self._recorded:
            self._recorded[targets.dtype] = self._record(inputs, targets)
        recorded = self._recorded[targets.dtype]
        recorded.inputs.psi.copy_(inputs.psi)
        recorded.inputs.level.copy_(inputs.level)
        recorded.targets.copy_(targets)
        recorded.graph.replay()
        return Coded(*(tensor.clone() for tensor in recorded.coded))

    def _record(self, inputs: Inputs, targets: Tensor) -> _Recorded:
        own = inputs._replace(psi=inputs.psi.clone(), level=inputs.level.clone())
        own_targets = targets.clone()
        # Before anything is captured, libraries make their handles and compilers compile.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._coder.code(own, own_targets)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            coded = self._coder.code(own, own_targets)
        return _Recorded(graph, own, own_targets, coded)


Cached = EagerCached | CapturedCached


def make_cached(
    context: GroupedMixerContext,
    thresholds: Tensor,  # [63]
    skip_below: int,
    h: int,
    w: int,
    variant: Variant,
) -> Cached:
    """The cached peer of a variant, for tiles of one size."""
    coder = EagerCached(context, thresholds, skip_below, h, w, variant)
    return CapturedCached(coder) if variant.captured else coder


class EagerUncached:
    """The entropy model without a cache: step g computes all groups 0..g.

    Made of the training form's own mixers, with the causal mask cut to the groups that there are;
    only the last group goes through the head.
    """

    def __init__(
        self,
        context: GroupedMixerContext,
        thresholds: Tensor,  # [63]
        skip_below: int,
        h: int,
        w: int,
        precision: str = "float32",  # or "tf32"
    ) -> None:
        self.context, self.h, self.w, self.precision = context, h, w, precision
        self._ending = _Ending(context, thresholds, skip_below)

    @torch.inference_mode()
    def step(
        self,
        step: int,
        inputs: Inputs,
        y_hat: Tensor,  # [G, T, M/k_c], of which groups before `step` are read
        target: Tensor,  # [T, M/k_c]: y to encode, symbols (int16) to decode
    ) -> tuple[Tensor, Tensor]:  # symbols and mean of this group
        """One step from the decoded groups before it."""
        with _products(self.precision):
            return self._step(step, inputs, y_hat, target)

    def _step(
        self, step: int, inputs: Inputs, y_hat: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        context, count = self.context, step + 1
        slice_of = context.grouping.slice_of[:count]
        previous_slice = [0, *slice_of[:-1]]
        start = context.start.expand(1, *y_hat.shape[1:])
        previous = compand(torch.cat([start, y_hat[:step]]))
        constant = context.embed_y_bias[previous_slice] + context.embed_hyper_bias[slice_of]
        constant = (constant + context.embed_group[:count] + inputs.level)[:, None]
        x = torch.baddbmm(constant, previous, context.embed_y[previous_slice].transpose(1, 2))
        x = x.baddbmm_(inputs.psi[:count], context.embed_hyper[slice_of].transpose(1, 2))
        for block in context.blocks:
            assert isinstance(block, MixerBlock)
            x = block.inner(x.view(count, self.h, self.w, -1)).flatten(1, 2)
            x = self._cross(block, x)
            x = x + block.mlp(x)
        features = context.norm(x[-1])
        weights = (context.head[slice_of[-1]], context.head_bias[slice_of[-1]])
        lrp = weights
        if context.config.lrp:
            lrp = (context.lrp[slice_of[-1]], context.lrp_bias[slice_of[-1]])
        _, symbols, mean, _, _ = self._ending(features, target, *weights, *lrp)
        return symbols, mean

    @staticmethod
    def _cross(
        block: MixerBlock,
        x: Tensor,  # [S, T, d]
    ) -> Tensor:  # [S, T, d]
        cross = block.cross
        steps, positions, d = x.shape
        qkv = cross.qkv(cross.norm(x)).view(steps, positions, 3, cross.heads, HEAD_DIM)
        q, k, v = qkv.permute(2, 1, 3, 0, 4).unbind(0)  # [T, heads, S, 32]
        future = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)
        bias = cross.step_bias[:, :steps, :steps].masked_fill(future, float("-inf"))
        out = attend(q, k, v, bias[None], fused=True)
        return x + cross.proj(out.permute(2, 0, 1, 3).reshape(steps, positions, d))


# ---- choice and verification ----------------------------------------------------------------


class Tuned(NamedTuple):
    """What `tune` found."""

    coder: Cached
    tried: dict[str, float]  # milliseconds of every variant
    failed: dict[str, str]  # what a GPU said of those that it refused


def tune(
    context: GroupedMixerContext,
    thresholds: Tensor,  # [63]
    skip_below: int,
    inputs: Inputs,
    with_compile: bool = True,
) -> Tuned:
    """The fastest variant for tiles of this size.

    Window and cross attention are chosen one after the other without a compiler. With one, the
    products and sums of "sum" become one loop, ahead of both library calls wherever that was
    tried, so it is compiled with the windows chosen and with the layout of one call.

    A GPU tries all that as CUDA graphs with TF32 and with bfloat16; the compiler with the faster
    of the two; and the winner also in plain calls and in full float32.

    Raises
    ------
    RuntimeError
        If no variant runs; on the CPU, if one does not.
    """
    device = context.start.device
    is_gpu = on_gpu(device)
    found: dict[Variant, float] = {}
    failed: dict[str, str] = {}
    fastest: list[Cached] = []  # of all so far; the others' caches are freed

    def measure(variant: Variant) -> None:
        coder = make_cached(context, thresholds, skip_below, inputs.h, inputs.w, variant)
        milliseconds = _best_of(partial(coder.code, inputs, inputs.y), device)
        if milliseconds < min(found.values(), default=float("inf")):
            fastest[:] = [coder]
        found[variant] = milliseconds

    def best(variants: list[Variant]) -> Variant:
        for variant in variants:
            if variant in found or str(variant) in failed:
                continue
            try:
                measure(variant)
            except RuntimeError as error:
                if not is_gpu:
                    raise
                failed[str(variant)] = str(error).strip().split("\n")[0]
        return min(variants, key=lambda variant: found.get(variant, float("inf")))

    def winner() -> Variant:
        if not found:
            raise RuntimeError(f"no variant of eager-cached runs: {failed}")
        return min(found, key=lambda variant: found[variant])

    for precision in PRECISIONS[1:] if is_gpu else PRECISIONS[:1]:
        how = {"precision": precision, "captured": is_gpu}
        windows = best([Variant(name, "matmul", **how) for name in WINDOW_KINDS]).windows
        best([Variant(windows, cross, **how) for cross in CROSS_KINDS])
    if with_compile:
        chosen = winner()
        names = dict.fromkeys((chosen.windows, "padded-sdpa"))
        best([chosen._replace(windows=name, cross="sum", compiled=True) for name in names])
    if is_gpu:
        chosen = winner()
        best([chosen._replace(captured=False), chosen._replace(precision="float32")])
    winner()
    return Tuned(fastest[0], {str(variant): ms for variant, ms in found.items()}, failed)


def _best_of(call: Callable[[], object], device: torch.device, repeats: int = 2) -> float:
    """Milliseconds of the best of a few calls after a warm-up."""
    call()
    return min(elapsed_ms(call, device) for _ in range(repeats))


@torch.inference_mode()
def check_against_training_form(
    context: GroupedMixerContext,
    inputs: Inputs,
    y_hat: Tensor,  # [G, T, M/k_c] as the peer decoded it
    means: Tensor,  # [G, T, M/k_c] as the peer predicted them
    quality: float,
    precision: str = "float32",  # of the peer, of PRECISIONS
) -> float:
    """Largest error of the means relative to 1 + |mean|.

    ValueError beyond `TOLERANCE`. In less than float32, the training form has errors of its own:
    twice the largest of them is allowed on top.
    """
    grid = (1, y_hat.shape[0], inputs.h, inputs.w, -1)

    def predict(precision: str) -> Tensor:
        level = torch.tensor([quality], device=y_hat.device)
        with _products(precision), _mixed(precision, y_hat.device):
            mean: Tensor = context(y_hat.view(grid), inputs.psi.view(grid), level).mean
            return mean.view_as(means)

    expected = predict("float32")

    def error_of(found: Tensor) -> float:
        return float(((found - expected).abs() / (1 + expected.abs())).max())

    tolerance = TOLERANCE
    if precision != "float32":
        tolerance += 2 * error_of(predict(precision))
    error = error_of(means)
    if not error <= tolerance:
        raise ValueError(
            f"the means must agree with the training form to {tolerance:.2g} of 1 + |mean|, "
            f"got {error:.2g}"
        )
    return error
