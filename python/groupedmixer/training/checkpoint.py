# SPDX-License-Identifier: MIT
"""The state of a run as a safetensors file: written whole or not at all, read without pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ..model import GroupedMixer
from ..output_files import write_atomically

__all__ = ["Position", "load_checkpoint", "save_checkpoint"]

_FORMAT = "groupedmixer-checkpoint-1"


@dataclass
class Position:
    """Where a run stands, beside its tensors."""

    step: int = 0
    elapsed: float = 0.0  # seconds
    crops: int = 0  # that all processes together have used
    mean_norm: float = 0.0  # running mean of the gradient norm
    as_coded: bool = False  # the last phase has begun


def save_checkpoint(
    path: Path,
    model: GroupedMixer,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    position: Position,
    scaler: dict[str, Any],
) -> None:
    """Writes the state of a run, replacing the file in one step.

    Parameters
    ----------
    scaler
        State of the gradient scaler: scalars; empty without one.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{field}": value for field, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {
        "format": _FORMAT,
        "config": model.config.to_json(),
        "position": json.dumps(asdict(position)),
        "scaler": json.dumps(scaler),
    }
    write_atomically(path, save(tensors, metadata), force=True)


def load_checkpoint(
    path: Path,
    model: GroupedMixer,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
) -> tuple[Position, dict[str, Any]]:
    """Puts a run back where it stood; the position and the gradient scaler's state.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no checkpoint, or one of another configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} must be a checkpoint of format {_FORMAT}, got {metadata.get('format')!r}"
        )
    if metadata["config"] != model.config.to_json():
        raise ValueError(
            f"{path} must be a checkpoint of the configuration {model.config.to_json()}, "
            f"got one of {metadata['config']}"
        )
    model.load_state_dict(_with_prefix(tensors, "model."))
    average.load_state_dict(_with_prefix(tensors, "average."))
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in _with_prefix(tensors, "optimizer.").items():
        index, field = name.split(".")
        states.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict(
        {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return Position(**json.loads(metadata["position"])), json.loads(metadata["scaler"])


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
