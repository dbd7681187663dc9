# SPDX-License-Identifier: MIT
"""The files a command is to work on: those it was given, and those in the folders it was given."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PICTURE_SUFFIXES", "Found", "Input", "find_inputs"]

# By name, not by content: what is picked can be seen in a listing, and a damaged or empty picture
# is reported instead of being passed over. Content still decides how a picked file is read.
PICTURE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".jpx", ".jxl", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi"),
    *(".sgi", ".tga", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True)
class Input:
    """A file to read."""

    path: Path
    place: Path = Path()  # its folder, seen from the folder it was found in
    found: bool = False  # in a folder, not given by name


@dataclass
class Found:
    """What `find_inputs` came across."""

    inputs: list[Input] = field(default_factory=list)
    passed_over: list[tuple[Path, str]] = field(default_factory=list)  # and why
    unreadable: list[tuple[Path, OSError]] = field(default_factory=list)  # folders


def find_inputs(
    paths: Sequence[str],
    *,
    recursive: bool,
    suffixes: Collection[str],
    without: str | None = None,
) -> Found:
    """Files as they were given, and the files with one of the suffixes in all folders below.

    In the order given, and within a folder by name, files before folders. Links to files are
    files; links to folders are passed over, so that no circle of them is walked and nothing is
    found twice that way.

    Args:
        paths: files, and folders where `recursive`.
        recursive: else a folder is taken for a file, and fails like one.
        suffixes: lower case, with the dot; any case is found.
        without: a folder that is not entered, whichever way its path is written: the output's.
    """
    found = Found()
    barred = None if without is None or not os.path.isdir(without) else os.stat(without)
    for path in map(Path, paths):
        # A folder that was given is entered even if it is a link, or the output's.
        if recursive and os.path.isdir(path):
            _walk(path, suffixes, barred, found)
        else:
            found.inputs.append(Input(path))
    return found


def _walk(
    top: Path, suffixes: Collection[str], barred: os.stat_result | None, found: Found
) -> None:
    folders = [(top, Path())]
    while folders:
        folder, place = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            found.unreadable.append((folder, error))
            continue
        below = []
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                if not _is_same(entry, barred):
                    below.append((path, place / entry.name))
                continue
            reason = _reason_to_pass_over(entry, suffixes)
            if reason is None:
                found.inputs.append(Input(path, place, found=True))
            else:
                found.passed_over.append((path, reason))
        folders += reversed(below)


def _is_same(folder: os.DirEntry[str], barred: os.stat_result | None) -> bool:
    try:
        return barred is not None and os.path.samestat(os.stat(folder), barred)
    except OSError:  # it cannot be read, which is told when it is entered
        return False


def _reason_to_pass_over(entry: os.DirEntry[str], suffixes: Collection[str]) -> str | None:
    if os.path.isdir(entry):
        return "a link to a folder"
    if os.path.splitext(entry.name)[1].lower() not in suffixes:
        return "another suffix"
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link to nothing or in a circle: reported when it cannot be read
        return None
    if not stat.S_ISREG(mode):  # to open a pipe would wait for its other end
        return "not a regular file"
    return None
