# SPDX-License-Identifier: MIT
"""File names for people: one line each, whatever bytes they hold."""

from __future__ import annotations

import os

__all__ = ["printable"]


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path as one line of text: line breaks and control codes as ``\n``, ``\x..``.

    A terminal obeys control codes, and programs read our output line by line.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in os.fspath(path)
    )
