# SPDX-License-Identifier: MIT
"""Weights on disk: float16 parameters, integer tables, a fingerprint that files refer to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from .model import GroupedMixer

__all__ = ["exported_state", "fingerprint", "load_state", "round_to_half", "save_weights"]

_FORMAT = "groupedmixer-weights-0"


def round_to_half(module: nn.Module) -> None:
    """Rounds every parameter to the nearest float16, in place, as export does.

    Raises
    ------
    ValueError
        If a weight is not finite or overflows float16 (65504); names the weight and the value.
    """
    for name, parameter in module.named_parameters():
        half = parameter.data.half()
        if not bool(half.isfinite().all()):
            worst = parameter.data[~half.isfinite()].flatten()[0].item()
            raise ValueError(f"{name} must be finite and within float16 (65504), got {worst}")
        parameter.data.copy_(half)


def exported_state(model: GroupedMixer) -> dict[str, Tensor]:
    """The state dict as weights files hold it: parameters in float16, buffers as they are.

    Builds the integer tables if the model has none. ValueError as in `round_to_half`.
    """
    model.update()
    parameters = dict(model.named_parameters())
    state = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if name in parameters:
            if not bool(value.half().isfinite().all()):
                raise ValueError(f"{name} must be finite and within float16 (65504)")
            value = value.half()
        state[name] = value.contiguous()
    return state


def fingerprint(state: dict[str, Tensor]) -> bytes:
    """8 bytes of SHA-256 over names, dtypes, shapes and bits of an exported state."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].contiguous()
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()[:8]


def save_weights(model: GroupedMixer, path: Path, name: str) -> bytes:
    """Writes a model's exported state as safetensors and returns its fingerprint.

    Parameters
    ----------
    name
        What files will call these weights: 1..32 characters of ``[a-z0-9._-]``.
    """
    state = exported_state(model)
    save_file(state, path, metadata={"format": _FORMAT, "name": name})
    return fingerprint(state)


def load_state(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Reads a weights file: its name and its exported state.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a weights file of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT or "name" not in metadata:
        raise ValueError(
            f"{path} must hold weights of format {_FORMAT}, got {metadata.get('format')!r}"
        )
    return metadata["name"], state
