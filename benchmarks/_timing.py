# SPDX-License-Identifier: MIT
"""What every benchmark says of its machine, and how it samples time and memory."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import groupedmixer_ext
from groupedmixer_ext import _build_info, ops

__all__ = [
    "POOLS_SLEEP",
    "environment",
    "interleaved",
    "iqr",
    "peak_memory_mib",
    "reset_peak_memory",
]

# Thread pools spin for some milliseconds after their work; the next library must not pay for that.
POOLS_SLEEP = 0.005


def environment(device: str) -> dict[str, object]:
    """The facts without which a figure means nothing."""
    facts: dict[str, object] = {
        "groupedmixer": groupedmixer_ext.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": ops.active_isa(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        facts |= _gpu_facts()
    return facts


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, burst: int = 4
) -> dict[str, list[float]]:
    """Milliseconds of every call, taken in turns so that noise of the machine hits all alike.

    A turn is a pause, a call that is not counted (its threads wake up in it), and ``burst`` calls
    that are. Every round begins with another call, so that none is always behind the same one.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    turns = list(calls.items())
    for first in range(rounds):
        start_at = first % len(turns)
        for name, call in turns[start_at:] + turns[:start_at]:
            time.sleep(POOLS_SLEEP)
            call()
            for _ in range(burst):
                start = time.perf_counter()
                call()
                samples[name].append(1e3 * (time.perf_counter() - start))
    return samples


def iqr(samples: list[float]) -> float:
    """Distance between the quartiles, 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return third - first


def reset_peak_memory() -> bool:
    """Starts a new measurement of peak memory; False where the system cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mib() -> float:
    """Largest resident set since a `reset_peak_memory` that succeeded, whole process, MiB."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) / 1024


def _gpu_facts() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_memory_mib": properties.total_memory / 2**20,
        "torch_cuda": torch.version.cuda,
        "built_cuda": _build_info.CUDA,
        "built_archs": " ".join(_build_info.CUDA_ARCHS),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
