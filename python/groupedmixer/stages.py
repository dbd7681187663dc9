# SPDX-License-Identifier: MIT
"""Where the time of a coding call goes, measured inside the call."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["UNTIMED", "Stages"]


class Stages:
    """Seconds by stage. Stages nest, and each second counts for the innermost one only.

    >>> stages = Stages()
    >>> with stages("entropy_model"), stages("rans"):
    ...     pass
    >>> sorted(stages.seconds)
    ['entropy_model', 'rans']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Counts time that was measured elsewhere; outside of all ``with`` blocks."""
        for name, value in seconds.items():
            self.seconds[name] += value

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the time of a ``with`` block for stage ``name``."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()


class _Untimed(Stages):
    def add(self, seconds: Mapping[str, float]) -> None:
        pass

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        yield


UNTIMED: Stages = _Untimed()
"""Measures nothing; safe to share between threads."""
