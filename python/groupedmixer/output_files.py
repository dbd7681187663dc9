# SPDX-License-Identifier: MIT
"""Where a command's outputs go, and writing them so that no half-written file is ever seen."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .input_files import Input
from .printable import printable


class PlanError(Exception):
    """The inputs and outputs given do not fit together: a usage error, found before any work."""


@dataclass(frozen=True)
class Job:
    """One file to make out of another."""

    source: Path
    target: Path
    make_folder: bool = False  # the target's folder is created when there is something to write


def plan_outputs(
    inputs: Sequence[Input],
    output: str | None,
    suffix: str,
    *,
    keep_suffix: bool = False,
    output_is_file: bool = False,
) -> tuple[Job, ...]:
    """Pairs every input with its output.

    Args:
        inputs: of `find_inputs`. What was found in a folder keeps its place below the output.
        output: a folder, or a file where there is exactly one input, not out of a folder, and
            `output` is no existing folder and does not end in a separator. None: beside each input.
        suffix: the suffix of the outputs whose name is not given, with the dot.
        keep_suffix: append the suffix to the input's own, so that a.jpg and a.png do not collide.
        output_is_file: `output` was given as a file and is never taken for a folder.

    Raises:
        PlanError: two outputs would be one file, an output is also an input, an input has no file
            name, or `output` must be a folder and is a file.
    """
    is_file = output is not None and (output_is_file or _names_a_file(inputs, output))
    folder = None if output is None or is_file else Path(output)  # without a separator at its end
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise PlanError(f"the output {printable(folder)} must be a folder, it is a file")

    jobs = []
    for one in inputs:
        if not one.path.name:
            raise PlanError(f"the input {printable(one.path)} is not a file name")
        own = one.path.suffix if keep_suffix else ""
        name = one.path.with_suffix(own + suffix).name
        if folder is not None:
            jobs.append(Job(one.path, folder / one.place / name, make_folder=True))
        elif output is not None:
            jobs.append(Job(one.path, Path(output)))
        else:
            jobs.append(Job(one.path, one.path.with_name(name)))
    _check_distinct(jobs, hint=not keep_suffix)
    return tuple(jobs)


def check_target(target: Path, *, force: bool, make_folder: bool = False) -> None:
    """Refuses, before the work is done, what write_atomically() could or should not replace.

    Raises:
        FileExistsError: the file exists and `force` is not set, or it is no regular file.
        FileNotFoundError: its folder does not exist and is not to be made.
    """
    if target.exists() and not target.is_file():
        raise FileExistsError(f"the output {printable(target)} exists and is not a regular file")
    if os.path.lexists(target) and not force:
        raise FileExistsError(f"the output {printable(target)} exists (use --force to replace it)")
    if not make_folder and not target.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {printable(target.parent)} does not exist")


def write_atomically(target: Path, data: bytes, *, force: bool, make_folder: bool = False) -> None:
    """Writes a temporary file beside the target and renames it; on any failure it is removed.

    Raises:
        OSError: it cannot be written, or as check_target() says.
    """
    check_target(target, force=force, make_folder=make_folder)
    if make_folder:
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".groupedmixer-{secrets.token_hex(8)}.tmp"
    try:
        # Not tempfile: its files are private to the user, ours take the usual permissions.
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            # Some disks say only now that they are full, and after a power cut the new name must
            # not stand for data that was never stored.
            os.fsync(stream.fileno())
        check_target(target, force=force)
        os.replace(temporary, target)
    finally:  # after the rename there is nothing left to remove
        temporary.unlink(missing_ok=True)


def _names_a_file(inputs: Sequence[Input], output: str) -> bool:
    separators = tuple(mark for mark in (os.sep, os.altsep) if mark)
    only_one = len(inputs) == 1 and not inputs[0].found
    return only_one and not output.endswith(separators) and not os.path.isdir(output)


def _check_distinct(jobs: Iterable[Job], *, hint: bool) -> None:
    jobs = list(jobs)
    inputs = {_identity(job.source) for job in jobs}
    makers: dict[str, Path] = {}
    clashes: list[str] = []
    for job in jobs:
        target = _identity(job.target)
        if target in inputs:
            raise PlanError(f"the output {printable(job.target)} is also an input")
        if target in makers:
            clashes.append(
                f"{printable(makers[target])} and {printable(job.source)} would both be written to "
                f"{printable(job.target)}"
            )
        makers.setdefault(target, job.source)
    if clashes:
        more = f" (and {len(clashes) - 1} more such pairs)" if len(clashes) > 1 else ""
        advice = "; --keep-suffix gives every output a name of its own" if hint else ""
        raise PlanError(clashes[0] + more + advice)


def _identity(path: Path) -> str:
    """One string for all spellings of a path; links that lead in circles stand for themselves."""
    return os.path.normcase(os.path.realpath(path))
