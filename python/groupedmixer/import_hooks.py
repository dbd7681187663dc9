# SPDX-License-Identifier: MIT
"""Runs a function when a module is imported, now or later, without importing it.

So `import groupedmixer` can tell Pillow of its file format and stays as light as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

__all__ = ["after_import"]


def after_import(name: str, then: Callable[[], None]) -> None:
    """Calls a function once a module is there: at once, or when somebody imports it.

    Parameters
    ----------
    name
        Of the module, with its packages: ``"PIL.Image"``.
    then
        Is called with the module in ``sys.modules``, again if it is reloaded. What it raises,
        the import raises.
    """
    # A finder that stays: taking it out of the list could make an import of another thread, which
    # walks the list at this moment, step over the next finder.
    sys.meta_path.insert(0, _Finder(name, then))
    if name in sys.modules:
        then()


class _Finder:
    """Finds one module as the other finders do, and has its loader watched."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        others = list(sys.meta_path)
        if fullname != self._name or self not in others:  # somebody took us out of the list
            return None
        for finder in others[others.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._then)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Loads a module by its own loader, then calls the function."""

    def __init__(self, loader: Loader, then: Callable[[], None]) -> None:
        self._loader = loader
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # source, data files, ...: for those who only look

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on there is nothing to watch.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then()
