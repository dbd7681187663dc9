# SPDX-License-Identifier: MIT
"""How far a run is, by steps or by time, and the learning rate there."""

from __future__ import annotations

import math

from .settings import Settings

__all__ = ["done_fraction", "learning_rate_scale"]

# Of the peak rate: late steps still move something.
_LOWEST = 0.01


def done_fraction(settings: Settings, step: int, elapsed: float) -> float:
    """Part of the run that lies behind, 0..1.

    Parameters
    ----------
    step
        Steps taken, those before a resumption included.
    elapsed
        Seconds trained, likewise.
    """
    if settings.steps is not None:
        return min(step / settings.steps, 1.0)
    assert settings.minutes is not None
    return min(elapsed / (60 * settings.minutes), 1.0)


def learning_rate_scale(done: float, warmup: float) -> float:
    """Factor on the learning rate: linear rise over ``warmup``, half a cosine down over all."""
    rise = min(1.0, done / warmup) if warmup else 1.0
    return max(rise * 0.5 * (1 + math.cos(math.pi * done)), _LOWEST)
