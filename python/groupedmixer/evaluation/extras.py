# SPDX-License-Identifier: MIT
"""Packages that only the evaluation needs."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str) -> Any:
    """Imports a module of the extra ``eval``.

    Raises
    ------
    ImportError
        If it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name != package:
            raise
        raise ImportError(
            f"evaluating needs the package {package}: pip install 'groupedmixer[eval]'"
        ) from error
