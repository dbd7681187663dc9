# SPDX-License-Identifier: MIT
"""The weights that come with the package, found by name or by the fingerprint in a file."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from pathlib import Path

import torch

from . import container
from .codec import Codec
from .config import CONFIGS
from .errors import WrongWeightsError
from .export import load_weights
from .model import GroupedMixer

__all__ = ["available", "load", "load_for", "load_model"]

_FOLDER = Path(__file__).parent / "weights"

# A configuration's name stands for the newest weights of it.
_NEWEST = {"rt": "rt-dev-5"}


def available() -> list[str]:
    """Names of the bundled weights."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def _path(name: str | os.PathLike[str]) -> Path:
    name = os.fspath(name)
    if name.endswith(".safetensors"):
        return Path(name)
    resolved = _NEWEST.get(name, name)
    if resolved in available():
        return _FOLDER / f"{resolved}.safetensors"
    if name in CONFIGS:
        raise ValueError(
            f"name must be of weights that exist: there are none for '{name}' yet, bundled are "
            f"{', '.join(available())}; GroupedMixer(get_config('{name}')) makes an untrained model"
        )
    raise ValueError(
        f"name must be one of {', '.join([*_NEWEST, *available()])} or a path that ends in "
        f".safetensors, got {name!r}"
    )


def load_model(name: str | os.PathLike[str] = "rt") -> GroupedMixer:
    """The model itself, in eval mode, float32: to fine-tune, or to take its parts.

    Parameters
    ----------
    name
        A name of `available`, a configuration's name for the newest weights of it, or the path of
        a .safetensors file.

    Raises
    ------
    ValueError
        If there are no such weights, or the file holds something else.
    OSError
        If the file cannot be read.
    """
    return load_weights(_path(name)).model()


def load(name: str | os.PathLike[str] = "rt", device: str | torch.device = "cpu") -> Codec:
    """A codec with bundled weights (or those of a file): `Codec.compress`, `Codec.decompress`.

    Parameters
    ----------
    name
        As in `load_model`.
    device
        Where to code: ``"cpu"`` or ``"cuda"``. The files are the same.

    Raises
    ------
    ValueError
        As `load_model`, or if there is no such device.
    OSError
        If the weights cannot be read.
    """
    return Codec(load_weights(_path(name)), device)


def load_for(data: bytes | bytearray | memoryview, device: str | torch.device = "cpu") -> Codec:
    """The codec that reads this .gmx file, found by the fingerprint of its weights.

    Raises
    ------
    GmxError
        If ``data`` is not a .gmx file, or its weights are not bundled (`WrongWeightsError`).
    """
    header = container.parse_header(data)
    bundled = _fingerprints()
    for name, mark in bundled:
        if mark == header.weights_fingerprint:
            return _load_once(name, str(device))
    raise WrongWeightsError(header.weights_name, header.weights_fingerprint, bundled)


@lru_cache(maxsize=4)
def _load_once(name: str, device: str) -> Codec:
    return load(name, device)


@cache
def _fingerprints() -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (name, load_weights(_FOLDER / f"{name}.safetensors").fingerprint) for name in available()
    )
