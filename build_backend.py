# SPDX-License-Identifier: MIT
"""PEP 517 and 660 backend: setuptools, and torch as a build requirement only where it is missing.

With a static requirement pip would download a second torch, gigabytes of it, into the isolated
build environment beside the one that is installed. So this backend looks first: if the environment
that the package is built for holds a recent enough torch, setup.py borrows that one.

setuptools' own ``get_requires_for_*`` hooks are not called: they run setup.py, which needs torch.
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_OLDEST_TORCH = (2, 11)


def _installed_torch(site: Path) -> tuple[int, int] | None:
    """The version of the torch in a site-packages folder, read without importing it."""
    version_file = site / "torch" / "version.py"
    if not version_file.is_file():
        return None
    match = re.search(r"__version__\s*=\s*['\"](\d+)\.(\d+)", version_file.read_text())
    return (int(match.group(1)), int(match.group(2))) if match else None


def _torch_requirement(sites: list[Path]) -> list[str]:
    for site in sites:
        version = _installed_torch(site)
        if version and version >= _OLDEST_TORCH:
            return []
    return [f"torch>={_OLDEST_TORCH[0]}.{_OLDEST_TORCH[1]}"]


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    # pip isolates a build through sys.path alone: sysconfig still names the target environment.
    # Frontends that build elsewhere (uv, python -m build) show no torch here, and fetch one.
    return _torch_requirement([Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")])


def get_requires_for_build_editable(config_settings: dict[str, object] | None = None) -> list[str]:
    return get_requires_for_build_wheel(config_settings)


def get_requires_for_build_sdist(config_settings: dict[str, object] | None = None) -> list[str]:
    return []
