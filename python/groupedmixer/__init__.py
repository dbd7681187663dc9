# SPDX-License-Identifier: MIT
"""GroupedMixer: a fast learned image codec.

>>> import groupedmixer
>>> codec = groupedmixer.load("rt")                      # doctest: +SKIP
>>> data = codec.compress(image, quality=4.0)            # doctest: +SKIP
>>> image = codec.decompress(data)                       # doctest: +SKIP

Names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from groupedmixer_ext import __version__

from .import_hooks import after_import

if TYPE_CHECKING:
    from .acceleration import accelerate
    from .codec import Codec
    from .config import CONFIGS, Config, get_config
    from .errors import GmxError
    from .export import Weights, export_weights, load_weights, save_weights
    from .images import Picture
    from .latent_codec import GroupedMixerLatentCodec
    from .model import GroupedMixer
    from .zoo import available, load, load_for, load_model

_HOME = {
    "CONFIGS": "config",
    "Codec": "codec",
    "Config": "config",
    "GmxError": "errors",
    "GroupedMixer": "model",
    "GroupedMixerLatentCodec": "latent_codec",
    "Picture": "images",
    "Weights": "export",
    "accelerate": "acceleration",
    "export_weights": "export",
    "load_weights": "export",
    "save_weights": "export",
    "available": "zoo",
    "get_config": "config",
    "load": "zoo",
    "load_for": "zoo",
    "load_model": "zoo",
}

__all__ = [
    "CONFIGS",
    "Codec",
    "Config",
    "GmxError",
    "GroupedMixer",
    "GroupedMixerLatentCodec",
    "Picture",
    "Weights",
    "__version__",
    "accelerate",
    "available",
    "export_weights",
    "get_config",
    "load",
    "load_for",
    "load_model",
    "load_weights",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _register_with_pillow() -> None:
    from . import pillow_plugin

    pillow_plugin.register()


after_import("PIL.Image", _register_with_pillow)


def _register_with_compressai() -> None:
    from . import compressai

    compressai.register()


after_import("compressai.zoo", _register_with_compressai)
