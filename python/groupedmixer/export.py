# SPDX-License-Identifier: MIT
"""Weights as files hold them: float16 parameters, integer tables, a fingerprint that .gmx files
refer to.

A weights file is immutable: the fingerprint is taken of the tensors as they are stored, by names of
our own, so that neither a new field of `Config` nor a buffer of another library can change it.
"""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .container import check_name
from .half import round_to_half
from .model import GroupedMixer
from .output_files import write_atomically

__all__ = ["Weights", "export_weights", "load_weights", "save_weights"]

_FORMAT = "groupedmixer-weights-0"
_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}


@dataclass(frozen=True)
class Weights:
    """Exported weights: what a file is coded with.

    ``state`` maps names to tensors: parameters in float16, thresholds, dead zone and medians in
    float32, integer tables in int32, ``_extra_state`` the configuration as JSON in uint8.
    """

    name: str
    state: dict[str, Tensor]

    @cached_property
    def fingerprint(self) -> bytes:
        """8 bytes of SHA-256 over the tensors; docs/bitstream.md says how."""
        digest = hashlib.sha256()
        for name in sorted(self.state):
            value = self.state[name].contiguous()
            shape = ",".join(map(str, value.shape))
            digest.update(f"{name}\0{_DTYPES[value.dtype]}\0{shape}\0".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()[:8]

    def model(self) -> GroupedMixer:
        """A model with these weights, in eval mode; float16 is expanded exactly."""
        return GroupedMixer.from_state_dict(self.state).eval()


def export_weights(model: GroupedMixer, name: str) -> Weights:
    """The weights of a model as files hold them; the model itself is not changed.

    Builds the integer tables if the model has none.

    Parameters
    ----------
    name
        What files will call these weights: 1..32 characters of ``[a-z0-9._-]``.

    Raises
    ------
    ValueError
        If the name breaks its rule, a gain is not positive, or as in `round_to_half`.
    """
    check_name("name", name)
    rounded = copy.deepcopy(model).cpu()
    rounded.update()
    round_to_half(rounded)
    smallest = float(rounded.latent_codec.gain.detach().min())
    if not smallest > 0:  # decoders divide by it
        raise ValueError(f"gain must be positive once rounded to float16, got {smallest}")
    parameters = dict(rounded.named_parameters())
    stored = set(parameters) | rounded.stored_buffers()
    state = {
        key: (value.detach().half() if key in parameters else value).contiguous()
        for key, value in rounded.state_dict().items()
        if key in stored
    }
    return Weights(name, state)


def save_weights(model: GroupedMixer, path: str | os.PathLike[str], name: str) -> Weights:
    """Writes a model's weights as safetensors, all of them or nothing.

    Raises as `export_weights` does, or OSError.
    """
    weights = export_weights(model, name)
    data = save(weights.state, metadata={"format": _FORMAT, "name": name})
    write_atomically(Path(path), data, force=True)
    return weights


def load_weights(path: str | os.PathLike[str]) -> Weights:
    """Reads a weights file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a weights file of ours.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT or "name" not in metadata:
        raise ValueError(
            f"{path} must hold weights of format {_FORMAT}, got {metadata.get('format')!r}"
        )
    strange = [key for key, value in state.items() if value.dtype not in _DTYPES]
    if strange:
        raise ValueError(f"{path}: {strange[0]} must be of {', '.join(_DTYPES.values())}")
    check_name(f"the name in {path}", metadata["name"])
    return Weights(metadata["name"], state)
