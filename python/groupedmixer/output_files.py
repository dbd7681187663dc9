# SPDX-License-Identifier: MIT
"""Where a command's outputs go, and writing them so that no half-written file is ever seen."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class PlanError(Exception):
    """The inputs and outputs given do not fit together: a usage error, found before any work."""


@dataclass(frozen=True)
class Job:
    """One file to make out of another."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Plan:
    """What a command will do."""

    jobs: tuple[Job, ...]
    folder: Path | None  # the folder that all outputs go to, to be created; None: no such folder


def plan_outputs(
    sources: Sequence[str], output: str | None, suffix: str, *, output_is_file: bool = False
) -> Plan:
    """Pairs every input with its output.

    Args:
        sources: the inputs, at least one.
        output: a folder, or a file where there is exactly one input and `output` is no existing
            folder and does not end in a separator. None: beside each input.
        suffix: the suffix of the outputs whose name is not given, with the dot.
        output_is_file: `output` was given as a file and is never taken for a folder.

    Raises:
        PlanError: two outputs would be one file, an output is also an input, an input has no file
            name, or `output` must be a folder and is a file.
    """
    folder = None
    if output is not None and not (output_is_file or _names_a_file(sources, output)):
        folder = Path(output)
        if folder.exists() and not folder.is_dir():
            raise PlanError(f"the output {output} must be a folder, it is a file")

    jobs = []
    for source in map(Path, sources):
        if not source.name:
            raise PlanError(f"the input {source} is not a file name")
        if folder is not None:
            target = folder / source.with_suffix(suffix).name
        elif output is not None:
            target = Path(output)
        else:
            target = source.with_suffix(suffix)
        jobs.append(Job(source, target))
    _check_distinct(jobs)
    return Plan(tuple(jobs), folder)


def check_target(target: Path, *, force: bool) -> None:
    """Refuses, before the work is done, what write_atomically() could or should not replace.

    Raises:
        FileExistsError: the file exists and `force` is not set, or it is no regular file.
        FileNotFoundError: its folder does not exist.
    """
    if target.exists() and not target.is_file():
        raise FileExistsError(f"the output {target} exists and is not a regular file")
    if os.path.lexists(target) and not force:
        raise FileExistsError(f"the output {target} exists (use --force to replace it)")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {target.parent} does not exist")


def write_atomically(target: Path, data: bytes, *, force: bool) -> None:
    """Writes a temporary file beside the target and renames it; on any failure it is removed.

    Raises:
        OSError: it cannot be written, or as check_target() says.
    """
    check_target(target, force=force)
    temporary = target.parent / f".groupedmixer-{secrets.token_hex(8)}.tmp"
    try:
        # Not tempfile: its files are private to the user, ours take the usual permissions.
        with open(temporary, "xb") as stream:
            stream.write(data)
        check_target(target, force=force)
        os.replace(temporary, target)
    finally:  # after the rename there is nothing left to remove
        temporary.unlink(missing_ok=True)


def _names_a_file(sources: Sequence[str], output: str) -> bool:
    separators = tuple(mark for mark in (os.sep, os.altsep) if mark)
    return len(sources) == 1 and not output.endswith(separators) and not Path(output).is_dir()


def _check_distinct(jobs: Sequence[Job]) -> None:
    inputs = {_identity(job.source) for job in jobs}
    makers: dict[str, Path] = {}
    for job in jobs:
        target = _identity(job.target)
        if target in inputs:
            raise PlanError(f"the output {job.target} is also an input")
        if target in makers:
            raise PlanError(
                f"{makers[target]} and {job.source} would both be written to {job.target}"
            )
        makers[target] = job.source


def _identity(path: Path) -> str:
    """One string for all spellings of a path."""
    return os.path.normcase(path.resolve())
