# SPDX-License-Identifier: MIT
"""Native entropy coding for the models of compressai.

`accelerate` gives every entropy model inside a model a class of its own, made from the one it has:

    EntropyBottleneck' -> EntropyBottleneck -> NativeCoding -> EntropyModel -> nn.Module

so that compressai's ``EntropyBottleneck.compress`` runs as ever until it calls ``super()``, where
`NativeCoding` takes tensors straight into native code. Modules whose methods name the coders of
``compressai.ans`` get a class in which those methods see ours instead. Nothing in compressai
itself changes, nor does any other model.
"""

from __future__ import annotations

import functools
import inspect
import types
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from compressai.entropy_models import EntropyModel, GaussianConditional
from compressai.entropy_models.entropy_models_vbr import EntropyModelVbr
from compressai.ops import LowerBound
from torch import Tensor, nn

from groupedmixer_ext import compressai_rans

from .compressai_formats import FORMATS, Int32, stand_ins

__all__ = ["accelerate"]

_Model = TypeVar("_Model", bound=nn.Module)

_BASE = "_groupedmixer_base"  # of a class made here: the class that it was made from
_CACHE = "_groupedmixer_cache"  # of an entropy model: what is derived from its buffers


def accelerate(model: _Model, format: str | None = "compressai") -> _Model:
    """Replaces the entropy coding of a compressai model by a native one, in place.

    Works for every model whose strings come from compressai's entropy models (`EntropyBottleneck`,
    `GaussianConditional`, their variable-rate kin) or from methods that call the coders of
    ``compressai.ans``, as autoregressive models do. ``GaussianMixtureConditional`` keeps its own
    coding. Everything else about the model stays: training, ``update``, ``state_dict``, ``to``,
    copies and pickles, which are accelerated as well. Tables follow the model's CDFs.

    Parameters
    ----------
    model : nn.Module
        A model, or any module that holds entropy models. Need not be ``update``d yet.
    format : {"compressai", "groupedmixer", None}
        ``"compressai"``: the bytes are those that compressai writes, and its files are read.
        ``"groupedmixer"``: the streams of `groupedmixer_ext.rans`, which compressai cannot read,
        nor this format compressai's; symbols must lie in int16. ``None``: as it was before.

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is no module.
    ValueError
        If `format` is another one, `model` holds nothing to accelerate, or an entropy model uses
        another coder than rANS or another precision than 16 bits. The model is then unchanged.

    Notes
    -----
    Where compressai returns noise for a damaged string or reads beyond its end, ``decompress`` then
    raises `groupedmixer_ext.rans.RansError`, a ValueError. A string that is decoded in one go
    must also end with its last symbol, which most damage prevents, but none in the raw digits of a
    value outside its table; where pixel after pixel is decoded, the end is not known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if format is not None and format not in FORMATS:
        names = ", ".join(map(repr, FORMATS))
        raise ValueError(f"format must be {names} or None, got {format!r}")
    plan = [(module, _original_class(module)) for module in model.modules()]
    if format is None:
        for module, base in plan:
            _set_class(module, base)
        return model
    for name, module in model.named_modules():
        _check_coder(name, module)
    classes = [(module, _accelerated_class(base, format)) for module, base in plan]
    if not any(_BASE in vars(cls) for _, cls in classes):
        raise ValueError(
            "model must hold an entropy model of compressai or call its coders, got "
            f"{type(model).__name__} without"
        )
    for module, cls in classes:
        _set_class(module, cls)
    return model


def _check_coder(name: str, module: nn.Module) -> None:
    if not isinstance(module, (EntropyModel, EntropyModelVbr)):
        return
    where = f"of {name or 'model'}"
    if module.entropy_coder.name != "ans":
        raise ValueError(f"entropy_coder {where} must be 'ans', got {module.entropy_coder.name!r}")
    if module.entropy_coder_precision != compressai_rans.PRECISION:
        raise ValueError(
            f"entropy_coder_precision {where} must be {compressai_rans.PRECISION}, "
            f"got {module.entropy_coder_precision}"
        )


# ---- classes ------------------------------------------------------------------------------------


def _original_class(module: nn.Module) -> type:
    cls: type = vars(type(module)).get(_BASE, type(module))
    return cls


def _set_class(module: nn.Module, cls: type) -> None:
    if type(module) is not cls:
        module.__class__ = cls
        vars(module).pop(_CACHE, None)


@functools.cache
def _accelerated_class(base: type, format: str) -> type:
    """A subclass of `base` that codes natively; `base` itself where it codes nothing."""
    members: dict[str, Any] = dict(_rebound_methods(base, format))
    bases: tuple[type, ...] = (base,)
    for family, coding in ((EntropyModel, NativeCoding), (EntropyModelVbr, NativeCodingVbr)):
        if issubclass(base, family):
            # Behind `base`, in front of its family: where super() of its methods looks first.
            bases = (coding,) if base is family else (base, coding)
            members["_format"] = FORMATS[format]
    if getattr(base, "build_indexes", None) is GaussianConditional.build_indexes:
        members["build_indexes"] = _build_indexes
    if not members:
        return base
    members |= {
        _BASE: base,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        # The class has no name by which a pickle could find it.
        "__reduce_ex__": functools.partialmethod(_reduce, base=base, format=format),
    }
    metaclass: Any = type(base)
    cls: type = metaclass(base.__name__, bases, members)
    return cls


def _reduce(module: nn.Module, protocol: int, *, base: type, format: str) -> tuple[Any, ...]:
    # From protocol 2 on: how to make it, with which class, and its state, which stays.
    reduced: Any = super(type(module), module).__reduce_ex__(max(protocol, 2))
    _, _, *state = reduced
    return (_new_accelerated, (base, format), *state)


def _new_accelerated(base: type, format: str) -> nn.Module:
    cls: Any = _accelerated_class(base, format)
    module: nn.Module = cls.__new__(cls)
    return module


def _rebound_methods(cls: type, format: str) -> Iterator[tuple[str, Any]]:
    """The methods of a class that name coders of ``compressai.ans``, with ours in their place."""
    replacements = stand_ins(FORMATS[format])
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        if not isinstance(function, types.FunctionType):
            continue
        named = {n: function.__globals__.get(n) for n in _names(function.__code__)}
        ours = {n: our for n, value in named.items() for old, our in replacements if value is old}
        if ours:
            bound = _with_globals(function, ours)
            yield name, bound if member is function else type(member)(bound)


def _names(code: types.CodeType) -> set[str]:
    """Of globals and attributes, in nested functions too."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _with_globals(function: types.FunctionType, ours: dict[str, object]) -> types.FunctionType:
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **ours},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(copy, function)
    return copy


# ---- entropy models -----------------------------------------------------------------------------


class NativeCoding(EntropyModel):
    """compressai's `EntropyModel` with another coder; see `accelerate`, which mixes it in."""

    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> list[bytes]:
        _check_compress(self, inputs, indexes)
        return _encode(self, self.quantize(inputs, "symbols", means), indexes)

    def decompress(
        self,
        strings: list[bytes],
        indexes: Tensor,
        dtype: torch.dtype = torch.float,
        means: Tensor | None = None,
    ) -> Tensor:
        _check_decompress(self, strings, indexes, means)
        return self.dequantize(_decode(self, strings, indexes), means, dtype)

    def __getstate__(self) -> dict[str, Any]:
        return _without_cache(super().__getstate__())


class NativeCodingVbr(EntropyModelVbr):
    """As `NativeCoding`, for compressai's variable-rate `EntropyModelVbr`."""

    def compress(
        self,
        inputs: Tensor,
        indexes: Tensor,
        means: Tensor | None = None,
        qs: Tensor | None = None,  # []
    ) -> list[bytes]:
        _check_compress(self, inputs, indexes)
        if qs is None:
            symbols = self.quantize(inputs, "symbols", means)
        else:
            symbols = self.quantize_variable(inputs, "symbols", means=means, qs=qs)
        return _encode(self, symbols, indexes)

    def decompress(
        self,
        strings: list[bytes],
        indexes: Tensor,
        dtype: torch.dtype = torch.float,
        means: Tensor | None = None,
        qs: Tensor | None = None,  # []
    ) -> Tensor:
        _check_decompress(self, strings, indexes, means)
        symbols = _decode(self, strings, indexes)
        if qs is None:
            return self.dequantize(symbols, means, dtype)
        return self.dequantize_variable(symbols, means=means, dtype=dtype, qs=qs)

    def __getstate__(self) -> dict[str, Any]:
        return _without_cache(super().__getstate__())


def _without_cache(state: dict[str, Any]) -> dict[str, Any]:
    state.pop(_CACHE, None)
    return state


def _check_updated(model: Any) -> None:
    model._check_cdf_size()
    model._check_cdf_length()
    model._check_offsets_size()


def _check_compress(model: Any, inputs: Tensor, indexes: Tensor) -> None:
    if inputs.ndim < 2:
        raise ValueError(f"inputs must have at least 2 dimensions, got shape {list(inputs.shape)}")
    if inputs.shape != indexes.shape:
        raise ValueError(
            f"indexes must have the shape of inputs, {list(inputs.shape)}, "
            f"got {list(indexes.shape)}"
        )
    _check_updated(model)


def _check_decompress(model: Any, strings: Any, indexes: Tensor, means: Tensor | None) -> None:
    if not isinstance(strings, (tuple, list)):
        raise ValueError(f"strings must be a list or tuple, got {type(strings).__name__}")
    if indexes.ndim < 2:
        raise ValueError(
            f"indexes must have at least 2 dimensions, got shape {list(indexes.shape)}"
        )
    if len(strings) != indexes.shape[0]:
        raise ValueError(
            f"strings must have one element an item of indexes, {indexes.shape[0]}, "
            f"got {len(strings)}"
        )
    _check_updated(model)
    if means is None or means.shape == indexes.shape:
        return
    if means.shape[:2] != indexes.shape[:2] or any(size != 1 for size in means.shape[2:]):
        raise ValueError(
            "means must have the shape of indexes, or 1 from the third dimension on, "
            f"{list(indexes.shape)}, got {list(means.shape)}"
        )


def _encode(model: Any, symbols: Tensor, indexes: Tensor) -> list[bytes]:
    tables = _tables(model)
    items = zip(_as_array(symbols), _as_array(indexes), strict=True)
    return [model._format.encode(item, of_item, tables) for item, of_item in items]


def _decode(model: Any, strings: list[bytes], indexes: Tensor) -> Tensor:
    """The symbols, int32, on the device of the model."""
    tables = _tables(model)
    array = _as_array(indexes)
    symbols = np.empty_like(array)
    for data, of_item, item in zip(strings, array, symbols, strict=True):
        item[...] = model._format.decode(data, of_item, tables)
    return torch.from_numpy(symbols).to(model._quantized_cdf.device)


def _as_array(tensor: Tensor) -> Int32:
    array: Int32 = tensor.detach().int().cpu().contiguous().numpy()
    return array


def _build_indexes(self: GaussianConditional, scales: Tensor) -> Tensor:
    """compressai's, in one pass where that gives the same."""
    if scales.device.type == "cpu" and scales.dtype == torch.float32:
        index = _scale_index(self)
        if index is not None:
            return torch.from_numpy(index(scales.detach().contiguous().numpy()))
    return GaussianConditional.build_indexes(self, scales)


# ---- what is derived from an entropy model's buffers --------------------------------------------


class _Derived(NamedTuple):
    sources: tuple[Tensor, ...]  # kept alive, so that no other tensor takes their place unnoticed
    content: tuple[object, ...]
    value: Any


def _tables(model: Any) -> Any:
    def make() -> Any:
        cdfs, sizes, offsets = map(_as_array, sources)
        return model._format.tables(cdfs, sizes, offsets)

    sources = (model._quantized_cdf, model._cdf_length, model._offset)
    return _derived(model, "tables", sources, make)


def _scale_index(model: GaussianConditional) -> compressai_rans.ScaleIndex | None:
    """None where compressai's own function has to do it."""
    table, lower_bound = model.scale_table, model.lower_bound_scale
    if not isinstance(lower_bound, LowerBound) or lower_bound.bound.numel() != 1:
        return None

    def make() -> compressai_rans.ScaleIndex | None:
        arrays = [source.detach().cpu().contiguous().numpy() for source in sources]
        if any(array.dtype != np.float32 for array in arrays) or arrays[0].size == 0:
            return None
        try:
            return compressai_rans.ScaleIndex(arrays[0][:-1], float(arrays[1].item()))
        except ValueError:  # thresholds that are not positive and ascending
            return None

    sources = (table, lower_bound.bound)
    index: compressai_rans.ScaleIndex | None = _derived(model, "scale_index", sources, make)
    return index


def _derived(
    model: nn.Module, name: str, sources: tuple[Tensor, ...], make: Callable[[], Any]
) -> Any:
    """What `make` made of `sources` before, unless these have changed since."""
    content = tuple(map(_content, sources))
    cache: dict[str, _Derived] = vars(model).setdefault(_CACHE, {})
    found = cache.get(name)
    if (
        found is None
        or found.content != content
        or any(a is not b for a, b in zip(found.sources, sources, strict=True))
    ):
        found = cache[name] = _Derived(sources, content, make())
    return found.value


def _content(tensor: Tensor) -> object:
    """Changes when the tensor does: counted by PyTorch but in inference tensors."""
    if tensor.is_inference():
        return zlib.crc32(tensor.cpu().contiguous().numpy().tobytes())
    return tensor._version, tensor.data_ptr()
