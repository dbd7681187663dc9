# SPDX-License-Identifier: MIT
"""``groupedmixer train``: its options, each a field of `Settings`. Imports no torch."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..config import CONFIGS
from .settings import METRICS, PRECISIONS, Settings

__all__ = ["add_train_options", "settings_of"]

_DEFAULTS = {field.name: field.default for field in fields(Settings) if field.default != MISSING}
_MINUTES = 60.0


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options; what they leave out has the default of `Settings`."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER_OR_TAR")
    data.add_argument("--exclude", type=Path, metavar="FILE", help="names to leave out, one a line")
    _add(data, "stream", action=argparse.BooleanOptionalAction, help=_help_stream())
    _add(data, "workers", type=int, metavar="N", help="processes that decode; default: as needed")
    _add(data, "batch", type=int, metavar="N", help="crops per step and process")
    _add(data, "crop", type=int, metavar="N", help="side of a crop in pixels")

    model = parser.add_argument_group("model and result")
    _add(model, "config", choices=tuple(CONFIGS), help="default rt, or that of --warm-start")
    model.add_argument("--output", type=Path, required=True, metavar="NAME.safetensors")
    _add(model, "force", flag="-f", action="store_true", help="replace an existing output")
    _add(model, "warm_start", metavar="NAME_OR_FILE", help="weights to start from")

    run = parser.add_argument_group("run")
    length = run.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, metavar="T", help=f"default {_MINUTES:g}")
    length.add_argument("--steps", type=int, metavar="N")
    _add(run, "metric", choices=METRICS, help="the distortion")
    _add(run, "learning_rate", type=float, metavar="RATE", help="at its peak")
    _add(run, "warmup", type=float, metavar="PART", help="part of the run until the peak")
    _add(run, "final", type=float, metavar="PART", help="last part, quantised as in coding")
    _add(run, "clip", type=float, metavar="X", help="gradient norm, in running means of it")
    _add(run, "ema", type=float, metavar="X", help="decay of the moving average of the weights")
    _add(run, "seed", type=int, metavar="N", help="of weights, crops, qualities and noise")

    state = parser.add_argument_group("checkpoint")
    _add(state, "checkpoint", type=Path, metavar="FILE", help="default: beside the output")
    _add(state, "checkpoint_every", type=float, metavar="T", help="minutes")
    _add(state, "resume", metavar="auto|FILE", help="go on from the checkpoint if there is one")

    machine = parser.add_argument_group("machine")
    _add(machine, "precision", choices=PRECISIONS, help="default: what suits the device")
    _add(machine, "accelerator", choices=("auto", "cpu", "cuda"), help="what to train on")
    _add(machine, "devices", metavar="N", help="processes on this machine, one a GPU")
    _add(machine, "nodes", type=int, metavar="N", help="machines, under torchrun")
    _add(machine, "threads", type=int, metavar="N", help="CPU threads of each process")

    report = parser.add_argument_group("report")
    _add(report, "validation", type=Path, metavar="FOLDER", help="pictures to measure on")
    _add(report, "validation_qualities", type=float, nargs="+", metavar="Q", help="to measure at")
    _add(report, "validate_every", type=float, metavar="T", help="minutes")
    _add(report, "log", type=Path, metavar="DIR", help="for TensorBoard")
    _add(report, "log_every", type=int, metavar="N", help="steps between two lines")
    _add(report, "progress", action=argparse.BooleanOptionalAction, help="a bar, not lines")


def settings_of(args: argparse.Namespace) -> Settings:
    """The options as `Settings`.

    Raises
    ------
    ValueError
        As `Settings` says.
    OSError, UnicodeDecodeError
        If the file of --exclude cannot be read.
    """
    names = {field.name for field in fields(Settings)}
    chosen = {name: value for name, value in vars(args).items() if name in names}
    chosen["data"] = tuple(args.data)
    chosen["validation_qualities"] = tuple(args.validation_qualities)
    chosen["exclude"] = frozenset(args.exclude.read_text().splitlines() if args.exclude else ())
    if args.minutes is None and args.steps is None:
        chosen["minutes"] = _MINUTES
    return Settings(**chosen)


def _add(group: Any, name: str, *, flag: str | None = None, help: str, **options: Any) -> None:
    """An option with the name and the default of a field; a default that says much is shown."""
    default = _DEFAULTS[name]
    if isinstance(default, (int, float, str)) and not isinstance(default, bool):
        help += f"; default {default}"
    flags = ([flag] if flag else []) + [f"--{name.replace('_', '-')}"]
    group.add_argument(*flags, dest=name, default=default, help=help, **options)


def _help_stream() -> str:
    return "decode pictures when needed, not once; default: for more than 1 GiB of files"
