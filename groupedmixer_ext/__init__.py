# SPDX-License-Identifier: MIT
"""Kernels and entropy coder of GroupedMixer.

Submodules are imported on first use, so that those that need no torch work without it:

- `ops`: the operators, one function each; needs torch
- `reference`: the same operators, slow and plain, in NumPy and PyTorch
- `engine`: the native coding loop, whole latents and pictures
- `rans`: the rANS coder
- `tables`: integer probability tables from densities
- `info`: what was built and what runs (``python -m groupedmixer_ext.info``)
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0.dev0"

_SUBMODULES = ("engine", "info", "ops", "rans", "reference", "tables")
__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
