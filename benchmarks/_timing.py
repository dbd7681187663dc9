# SPDX-License-Identifier: MIT
"""What every benchmark says of its machine, and how it samples time and memory."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path

import torch

import groupedmixer_ext
from groupedmixer_ext import ops

__all__ = ["environment", "iqr", "peak_memory_mib", "reset_peak_memory"]


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
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
