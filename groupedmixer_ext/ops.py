# SPDX-License-Identifier: MIT
"""The native operators, one typed function each.

They take tensors on the CPU and, where built, on CUDA, all on one device, and give the same bits on
both, on every instruction set and with any number of threads. `reference` holds the same functions
in plain PyTorch and NumPy.

- `quantize_group`, `scale_indexes`, `dequantize_group`: a group of the latent and its symbols
- `rans_encode`, `rans_decode`: `groupedmixer_ext.rans` for tensors, on the CPU only
- the layers, `pack_weight` to `add_half_tanh`: docs/numerics.md. On the CPU they run on PyTorch's
  threads, ``torch.get_num_threads()`` of them or less where there is little to do; on CUDA on the
  current stream, without waiting for it, so that a graph can capture them. Infinity and NaN are not
  looked for, and what comes of them is not defined.

None of them has a gradient, and tensors that would need one are an error: call them under
``torch.no_grad()``, or with ``tensor.detach()``.

Under ``torch.compile`` all but the coder are part of the graph, ``fullgraph=True`` included. The
coder makes bytes of a size that nobody knows beforehand, so compiled code calls it as
``torch.compiler.disable(ops.rans_encode)(...)``.
"""

from __future__ import annotations

import importlib.util
from typing import cast

import torch
from torch import Tensor

from groupedmixer_ext import rans

__all__ = [
    "ISAS",
    "KVCache",
    "active_isa",
    "add_half_tanh",
    "append_attention",
    "compand",
    "conv3x3",
    "depthwise3x3",
    "dequantize_group",
    "isa_available",
    "layer_norm",
    "leaky_relu",
    "linear",
    "pack_conv3x3",
    "pack_weight",
    "quantize_group",
    "rans_decode",
    "rans_encode",
    "scale_indexes",
    "window_attention",
]


def _load_library() -> None:
    spec = importlib.util.find_spec("groupedmixer_ext._C")
    if spec is None or spec.origin is None:
        raise ImportError(
            "groupedmixer_ext has no compiled kernels: run `pip install .` in the source tree"
        )
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        from groupedmixer_ext import _build_info

        raise ImportError(
            f"the kernels of groupedmixer_ext were built for torch {_build_info.TORCH} with CUDA "
            f"{_build_info.CUDA} and do not load on torch {torch.__version__} with CUDA "
            f"{torch.version.cuda}: {error}"
        ) from error


_load_library()

ISAS: tuple[str, ...] = tuple(torch.ops.groupedmixer.isa_names.default().split())
"""Variants of the CPU kernels in this build, widest last."""


def active_isa() -> str:
    """The variant of the CPU kernels that runs in this process.

    The widest available one, unless the environment variable ``GROUPEDMIXER_ISA`` names another.

    Returns
    -------
    name : str
        One of `ISAS`.

    Raises
    ------
    RuntimeError
        If the variable names no variant, or one that this machine cannot run.
    """
    return ISAS[torch.ops.groupedmixer.active_isa.default()]


def isa_available(name: str) -> bool:
    """Whether this machine can run a variant of the CPU kernels.

    Parameters
    ----------
    name : str
        One of `ISAS`.

    Returns
    -------
    available : bool

    Raises
    ------
    ValueError
        If `name` is another.
    """
    if name not in ISAS:
        raise ValueError(f"name must be one of {', '.join(ISAS)}, got {name!r}")
    return cast(bool, torch.ops.groupedmixer.isa_available.default(ISAS.index(name)))


def _require_usable(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        _require_no_grad(name, tensor)
        if tensor.is_cuda:
            _require_cuda(name)


def _require_on_cpu(**tensors: Tensor) -> None:
    """For operators that have no CUDA variant."""
    for name, tensor in tensors.items():
        if not tensor.is_cpu:
            raise RuntimeError(f"{name} must be on the CPU, got {tensor.device}")
        _require_no_grad(name, tensor)


def _require_no_grad(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} must not require grad, as the operator has no gradient; call it under "
            f"torch.no_grad() or with {name}.detach()"
        )


def _require_cuda(name: str) -> None:
    from groupedmixer_ext import _build_info

    if _build_info.CUDA is None:
        raise RuntimeError(
            f"{name} must be on the CPU, as the kernels were built without CUDA "
            f"({_build_info.CUDA_REASON}); to build them with it, run "
            "`GROUPEDMIXER_CUDA=1 pip install .` in the source tree"
        )


def quantize_group(
    y: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    raw_scale: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
    skip_below: int,
    dead_zone: Tensor | None = None,  # [T + 1] float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns a group of the latent into symbols and table indexes, for the encoder.

    ``index`` is the number of thresholds strictly below ``raw_scale``; ``symbol`` is ``y - mean``
    rounded half to even and clamped to int16, or 0 where ``index < skip_below`` or
    ``|y - mean| < dead_zone[index]``; ``y_hat`` is ``symbol + mean`` in float32.

    Parameters
    ----------
    y, mean, raw_scale : float32 tensors, contiguous  # [...]
    thresholds : float32 tensor, contiguous  # [T], T <= 255
        Ascending.
    skip_below : int
        0 .. T + 1.
    dead_zone : float32 tensor, contiguous, optional  # [T + 1]
        Which residuals are not worth a symbol at each index; None for 0 everywhere.

    Returns
    -------
    symbols : int16 tensor  # [...]
    indexes : uint8 tensor  # [...]
    y_hat : float32 tensor  # [...]

    Raises
    ------
    RuntimeError
        If an argument breaks these rules, holds infinity or NaN (to find that out, the CUDA variant
        waits for its stream), would need a gradient, or is on CUDA in a build without it.
    """
    given = {} if dead_zone is None else {"dead_zone": dead_zone}
    _require_usable(y=y, mean=mean, raw_scale=raw_scale, thresholds=thresholds, **given)
    return cast(
        tuple[Tensor, Tensor, Tensor],
        torch.ops.groupedmixer.quantize_group.default(
            y, mean, raw_scale, thresholds, skip_below, dead_zone
        ),
    )


def scale_indexes(
    raw_scale: Tensor,  # [...] float32
    mean: Tensor,  # [...] float32
    thresholds: Tensor,  # [T] float32
) -> Tensor:
    """Computes the table indexes of a group, for the decoder; see `quantize_group`.

    Parameters
    ----------
    raw_scale : float32 tensor, contiguous  # [...]
    mean : float32 tensor, contiguous  # [...]
        Does not influence the result, but is checked to be finite as the encoder does.
    thresholds : float32 tensor, contiguous  # [T], T <= 255

    Returns
    -------
    indexes : uint8 tensor  # [...]

    Raises
    ------
    RuntimeError
        As `quantize_group`.
    """
    _require_usable(raw_scale=raw_scale, mean=mean, thresholds=thresholds)
    return cast(Tensor, torch.ops.groupedmixer.scale_indexes.default(raw_scale, mean, thresholds))


def dequantize_group(
    symbols: Tensor,  # [...] int16
    mean: Tensor,  # [...] float32
) -> Tensor:
    """Computes ``symbols + mean`` in float32, the decoder's `y_hat`.

    Parameters
    ----------
    symbols : int16 tensor, contiguous  # [...]
    mean : float32 tensor, contiguous  # [...]

    Returns
    -------
    y_hat : float32 tensor  # [...]

    Raises
    ------
    RuntimeError
        If an argument breaks these rules, would need a gradient, or is on CUDA in a build without
        it.
    """
    _require_usable(symbols=symbols, mean=mean)
    return cast(Tensor, torch.ops.groupedmixer.dequantize_group.default(symbols, mean))


def rans_encode(
    symbols: Tensor,  # [...] int16
    indexes: Tensor,  # [...] uint8 or uint16
    tables: rans.Tables,
    lanes: int = 0,
    skip_below: int = 0,
) -> Tensor:
    """Encodes symbols as one stream of docs/bitstream.md, section 3.

    Several groups in one stream, or groups that depend on each other: `groupedmixer_ext.rans`.

    Parameters
    ----------
    symbols : int16 tensor, contiguous, on the CPU  # [...]
    indexes : uint8 or uint16 tensor, contiguous, on the CPU  # [...], as symbols
        The table of each symbol.
    tables : groupedmixer_ext.rans.Tables
    lanes : {0, 1, 4, 8, 16, 32}
        Number of interleaved coder states; 0: chosen from the size.
    skip_below : int
        Symbols with a lower index must be 0 and take no part in the stream.

    Returns
    -------
    stream : uint8 tensor  # [number of bytes]

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    _require_on_cpu(symbols=symbols, indexes=indexes)
    stream = rans.encode(symbols.numpy(), indexes.numpy(), tables, lanes, skip_below)
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8)


def rans_decode(
    stream: Tensor,  # [number of bytes] uint8
    indexes: Tensor,  # [...] uint8 or uint16
    tables: rans.Tables,
    skip_below: int = 0,
) -> Tensor:
    """Decodes a stream of `rans_encode`.

    Parameters
    ----------
    stream : uint8 tensor, contiguous, on the CPU  # [number of bytes]
    indexes : uint8 or uint16 tensor, contiguous, on the CPU  # [...]
        The same as were given to the encoder, and so are the next two.
    tables : groupedmixer_ext.rans.Tables
    skip_below : int
        Symbols with a lower index are 0 and take no part in the stream.

    Returns
    -------
    symbols : int16 tensor  # [...], as indexes

    Raises
    ------
    groupedmixer_ext.rans.RansError
        If the stream is damaged.
    TypeError, ValueError
        If an argument is wrong.
    """
    _require_on_cpu(stream=stream, indexes=indexes)
    if stream.dtype != torch.uint8 or stream.dim() != 1 or not stream.is_contiguous():
        raise TypeError(
            f"stream must be a contiguous uint8 tensor of one dimension, got {stream.dtype} of "
            f"shape {list(stream.shape)}"
        )
    data = stream.numpy().tobytes()
    return torch.from_numpy(rans.decode(data, indexes.numpy(), tables, skip_below))


def pack_weight(weight: Tensor) -> Tensor:  # [N, K] float32
    """Puts a weight in the order in which `linear` reads it.

    Parameters
    ----------
    weight : float32 tensor, contiguous  # [N, K], N, K >= 1

    Returns
    -------
    packed : float32 tensor  # [ceil(N / 32), K, 32]
        ``packed[i, k, j]`` is ``weight[32 * i + j, k]``, or 0 behind the last row.

    Raises
    ------
    RuntimeError
        If an argument breaks these rules, would need a gradient, is on another device than the
        first one, or is on CUDA in a build without it. So does every function below.
    """
    _require_usable(weight=weight)
    return cast(Tensor, torch.ops.groupedmixer.pack_weight.default(weight))


def pack_conv3x3(weight: Tensor) -> Tensor:  # [N, C, 3, 3] float32
    """Puts the weight of a 3x3 convolution in the order in which `conv3x3` reads it.

    Parameters
    ----------
    weight : float32 tensor  # [N, C, 3, 3], N, C >= 1

    Returns
    -------
    packed : float32 tensor  # [ceil(N / 32), 9 C, 32]
        As of `pack_weight`, with ``k`` counting (row, column, channel).
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise RuntimeError(f"weight must be [N, C, 3, 3], got {list(weight.shape)}")
    return pack_weight(weight.permute(0, 2, 3, 1).flatten(1).contiguous())


def linear(
    x: Tensor,  # [..., K] float32
    packed: Tensor,  # [ceil(N / 32), K, 32] float32
    bias: Tensor,  # [N] float32
    *,
    activation: str = "none",
    residual: Tensor | None = None,  # [..., N] float32
    norm: tuple[Tensor, Tensor] | None = None,  # [K] and [K] float32
    out: Tensor | None = None,  # [..., N] float32
) -> Tensor:
    """A linear layer: ``activation(dot(norm(x), weight, bias)) + residual``.

    Parameters
    ----------
    x : float32 tensor, contiguous  # [..., K], K >= 1
    packed : float32 tensor, contiguous  # [ceil(N / 32), K, 32]
        The weight, from `pack_weight`. On CUDA, it begins at a multiple of 16 bytes.
    bias : float32 tensor, contiguous  # [N], N >= 1
    activation : str
        ``none``, ``gelu`` (its tanh form) or ``leaky_relu`` (of slope 0.01).
    residual : float32 tensor, contiguous  # [..., N]
        Default: nothing is added.
    norm : pair of float32 tensors, contiguous  # [K] and [K]
        Weight and bias of a `layer_norm` ahead of the layer; K is a multiple of 32 then. Default:
        none.
    out : float32 tensor, contiguous  # [..., N]
        Updated in place: receives y. It may be ``residual`` itself, and must not overlap any other
        argument. Autograd does not see the update. Default: a new tensor.

    Returns
    -------
    y : float32 tensor  # [..., N]
        ``out`` if there is one.
    """
    norm_weight, norm_bias = norm or (None, None)
    _require_usable(
        x=x,
        packed=packed,
        bias=bias,
        residual=residual,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        out=out,
    )
    arguments = (x, packed, bias, activation, residual, norm_weight, norm_bias)
    if out is not None:
        torch.ops.groupedmixer.linear_into.default(*arguments, out)
        return out
    return cast(Tensor, torch.ops.groupedmixer.linear.default(*arguments))


def layer_norm(
    x: Tensor,  # [..., d] float32
    weight: Tensor,  # [d] float32
    bias: Tensor,  # [d] float32
) -> Tensor:
    """Layer norm of the last axis, with an epsilon of 1e-6.

    Parameters
    ----------
    x : float32 tensor, contiguous  # [..., d], d a multiple of 32
    weight, bias : float32 tensors, contiguous  # [d]

    Returns
    -------
    y : float32 tensor  # [..., d]
    """
    _require_usable(x=x, weight=weight, bias=bias)
    return cast(Tensor, torch.ops.groupedmixer.layer_norm.default(x, weight, bias))


def conv3x3(
    x: Tensor,  # [h, w, C] float32
    packed: Tensor,  # [ceil(N / 32), 9 C, 32] float32
    bias: Tensor,  # [N] float32
    *,
    stride: int = 1,
    activation: str = "none",
) -> Tensor:
    """A 3x3 convolution of an image whose channels come last, padded by one zero on all sides.

    Parameters
    ----------
    x : float32 tensor, contiguous  # [h, w, C], C >= 1
    packed : float32 tensor, contiguous  # [ceil(N / 32), 9 C, 32]
        The weight, from `pack_conv3x3`. On CUDA, it begins at a multiple of 16 bytes.
    bias : float32 tensor, contiguous  # [N], N >= 1
    stride : int
        1 or 2.
    activation : str
        As in `linear`.

    Returns
    -------
    y : float32 tensor  # [ceil(h / stride), ceil(w / stride), N]
    """
    _require_usable(x=x, packed=packed, bias=bias)
    return cast(
        Tensor,
        torch.ops.groupedmixer.conv3x3.default(x, packed, bias, stride, activation),
    )


def depthwise3x3(
    x: Tensor,  # [h, w, C] float32
    weight: Tensor,  # [9, C] float32
    bias: Tensor,  # [C] float32
) -> Tensor:
    """A 3x3 convolution of each channel on its own, padded by one zero on all sides.

    Parameters
    ----------
    x : float32 tensor, contiguous  # [h, w, C], C >= 1
    weight : float32 tensor, contiguous  # [9, C]
        ``w.reshape(C, 9).t().contiguous()`` of a ``torch.nn.Conv2d`` of C groups.
    bias : float32 tensor, contiguous  # [C]

    Returns
    -------
    y : float32 tensor  # [h, w, C]
    """
    _require_usable(x=x, weight=weight, bias=bias)
    return cast(Tensor, torch.ops.groupedmixer.depthwise3x3.default(x, weight, bias))


def window_attention(
    qkv: Tensor,  # [h, w, 3 d] float32
    relative_bias: Tensor,  # [d / 32, 225] float32
    *,
    shifted: bool,
) -> Tensor:
    """Inner-group attention: of each position of a grid over those of its cell of 8x8.

    Parameters
    ----------
    qkv : float32 tensor, contiguous  # [h, w, 3 d], d = 32 * heads
        Queries of all heads, then keys, then values.
    relative_bias : float32 tensor, contiguous  # [heads, 225], heads >= 1
        ``relative_bias[head, (i - i' + 7) * 15 + (j - j' + 7)]`` is for a query at (i, j) and a key
        at (i', j').
    shifted : bool
        Whether the lattice of cells goes through (4, 4) rather than (0, 0).

    Returns
    -------
    out : float32 tensor  # [h, w, d]
    """
    _require_usable(qkv=qkv, relative_bias=relative_bias)
    return cast(
        Tensor,
        torch.ops.groupedmixer.window_attention.default(qkv, relative_bias, shifted),
    )


class KVCache:
    """The keys and values that `append_attention` has seen, rounded to binary16.

    Parameters
    ----------
    tokens : int
        T >= 0.
    heads : int
        At least 1.
    capacity : int
        G, steps there is room for; at least 1.
    device : torch.device or str
        Where it lies. Default: on the CPU.

    Attributes
    ----------
    tokens : int
        T.
    data : float16 tensor  # [ceil(T / 16), heads, 2, G, 32, 16]
        Of token ``16 * i + j`` in ``data[i, ..., j]``: keys, then values, of each step.
    steps_done : int
        Steps that were appended.
    """

    def __init__(
        self, tokens: int, heads: int, capacity: int, device: torch.device | str = "cpu"
    ) -> None:
        for name, value, least in (
            ("tokens", tokens, 0),
            ("heads", heads, 1),
            ("capacity", capacity, 1),
        ):
            if value < least:
                raise RuntimeError(f"{name} must be at least {least}, got {value}")
        self.tokens = tokens
        shape = (-(-tokens // 16), heads, 2, capacity, 32, 16)
        self.data = torch.zeros(shape, dtype=torch.float16, device=device)
        self.steps_done = 0


def append_attention(
    qkv: Tensor,  # [T, 3 d] float32
    cache: KVCache,
    step_bias: Tensor,  # [heads, G, G] float32
    *,
    step: int,
) -> Tensor:
    """Updates ``cache`` in place. Cross-group attention: of each token over its own past.

    The keys and values of the step are rounded and appended to the cache; then the queries attend
    to those of this and all earlier steps.

    Parameters
    ----------
    qkv : float32 tensor, contiguous  # [T, 3 d], d = 32 * heads
        Queries of all heads, then keys, then values.
    cache : KVCache
        Of T tokens, these heads and G steps, on the device of qkv.
    step_bias : float32 tensor, contiguous  # [heads, G, G]
        ``step_bias[head, step, i]`` is for keys of step i.
    step : int
        ``cache.steps_done``, below G.

    Returns
    -------
    out : float32 tensor  # [T, d]
    """
    _require_usable(qkv=qkv, cache=cache.data, step_bias=step_bias)
    if step != cache.steps_done:
        raise RuntimeError(f"step must be {cache.steps_done}, the cache's next, got {step}")
    if qkv.dim() != 2 or qkv.shape[0] != cache.tokens:
        raise RuntimeError(
            f"qkv must be [T, 3 d] with the cache's T = {cache.tokens}, got {list(qkv.shape)}"
        )
    out = torch.ops.groupedmixer.append_attention.default(qkv, cache.data, step_bias, step)
    cache.steps_done = step + 1
    return cast(Tensor, out)


def compand(x: Tensor) -> Tensor:  # [...] float32
    """Computes ``x / sqrt(1 + |x|)``.

    Parameters
    ----------
    x : float32 tensor, contiguous  # [...]

    Returns
    -------
    y : float32 tensor  # [...]
    """
    _require_usable(x=x)
    return cast(Tensor, torch.ops.groupedmixer.compand.default(x))


def leaky_relu(x: Tensor) -> Tensor:  # [...] float32
    """Computes ``x``, or ``0.01 * x`` where it is not positive.

    Parameters
    ----------
    x : float32 tensor, contiguous  # [...]

    Returns
    -------
    y : float32 tensor  # [...]
    """
    _require_usable(x=x)
    return cast(Tensor, torch.ops.groupedmixer.leaky_relu.default(x))


def add_half_tanh(
    y_hat: Tensor,  # [...] float32
    x: Tensor,  # [...] float32
) -> Tensor:
    """Computes ``fma(tanh(x), 0.5, y_hat)``, the latent residual prediction.

    Parameters
    ----------
    y_hat, x : float32 tensors, contiguous  # [...]

    Returns
    -------
    corrected : float32 tensor  # [...]
    """
    _require_usable(y_hat=y_hat, x=x)
    return cast(Tensor, torch.ops.groupedmixer.add_half_tanh.default(y_hat, x))


def _quantize_group_fake(
    y: Tensor,
    mean: Tensor,
    raw_scale: Tensor,
    thresholds: Tensor,
    skip_below: int,
    dead_zone: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        y.new_empty(y.shape, dtype=torch.int16),
        y.new_empty(y.shape, dtype=torch.uint8),
        y.new_empty(y.shape),
    )


def _scale_indexes_fake(raw_scale: Tensor, mean: Tensor, thresholds: Tensor) -> Tensor:
    return raw_scale.new_empty(raw_scale.shape, dtype=torch.uint8)


def _dequantize_group_fake(symbols: Tensor, mean: Tensor) -> Tensor:
    return mean.new_empty(mean.shape)


def _pack_weight_fake(weight: Tensor) -> Tensor:
    return weight.new_empty((weight.shape[0] + 31) // 32, weight.shape[1], 32)


def _linear_fake(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    activation: str,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], bias.shape[0])


def _linear_into_fake(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    activation: str,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    out: Tensor,
) -> None:
    pass


def _layer_norm_fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _conv3x3_fake(x: Tensor, packed: Tensor, bias: Tensor, stride: int, activation: str) -> Tensor:
    height, width = ((side + stride - 1) // stride for side in x.shape[:2])
    return x.new_empty(height, width, bias.shape[0])


def _depthwise3x3_fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _window_attention_fake(qkv: Tensor, relative_bias: Tensor, shifted: bool) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], 32 * relative_bias.shape[0])


def _append_attention_fake(qkv: Tensor, cache: Tensor, step_bias: Tensor, step: int) -> Tensor:
    return qkv.new_empty(qkv.shape[0], 32 * step_bias.shape[0])


def _map_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _add_half_tanh_fake(y_hat: Tensor, x: Tensor) -> Tensor:
    return y_hat.new_empty(y_hat.shape)


torch.library.register_fake("groupedmixer::quantize_group", _quantize_group_fake)
torch.library.register_fake("groupedmixer::scale_indexes", _scale_indexes_fake)
torch.library.register_fake("groupedmixer::dequantize_group", _dequantize_group_fake)
torch.library.register_fake("groupedmixer::pack_weight", _pack_weight_fake)
torch.library.register_fake("groupedmixer::linear", _linear_fake)
torch.library.register_fake("groupedmixer::linear_into", _linear_into_fake)
torch.library.register_fake("groupedmixer::layer_norm", _layer_norm_fake)
torch.library.register_fake("groupedmixer::conv3x3", _conv3x3_fake)
torch.library.register_fake("groupedmixer::depthwise3x3", _depthwise3x3_fake)
torch.library.register_fake("groupedmixer::window_attention", _window_attention_fake)
torch.library.register_fake("groupedmixer::append_attention", _append_attention_fake)
torch.library.register_fake("groupedmixer::compand", _map_fake)
torch.library.register_fake("groupedmixer::leaky_relu", _map_fake)
torch.library.register_fake("groupedmixer::add_half_tanh", _add_half_tanh_fake)
