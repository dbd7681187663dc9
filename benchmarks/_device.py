# SPDX-License-Identifier: MIT
"""What a benchmark does otherwise on a GPU: wait for it, ask it for time and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from groupedmixer import Codec
from groupedmixer.codec import check_device
from groupedmixer.stages import Stages
from groupedmixer_ext import _build_info
from groupedmixer_ext.engine import has_cuda

__all__ = [
    "DeviceStages",
    "elapsed_ms",
    "engine_report",
    "on_gpu",
    "require_gpu",
    "synchronize",
    "used_mib",
]


def require_gpu() -> None:
    """Ends the program with one sentence unless PyTorch sees a GPU and our kernels were built."""
    try:
        check_device("cuda")
    except ValueError as error:
        sys.exit(f"a GPU is needed: {error}")
    if not has_cuda():
        sys.exit(
            "a GPU is needed: this build of groupedmixer_ext has no CUDA kernels "
            f"({_build_info.CUDA_REASON})"
        )


def on_gpu(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"


def synchronize(device: torch.device | str) -> None:
    """Waits for all work of a device; nothing on the CPU."""
    if on_gpu(device):
        torch.cuda.synchronize(device)


def elapsed_ms(work: Callable[[], object], device: torch.device | str) -> float:
    """Milliseconds of a call: wall clock on the CPU, between two events of the stream on a GPU."""
    if not on_gpu(device):
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


class DeviceStages(Stages):
    """Waits for the GPU wherever a stage begins or ends: PyTorch's calls return before their work
    is done, and it would count for whoever waits first."""

    def _switch(self) -> None:
        torch.cuda.synchronize()
        super()._switch()


def engine_report(codec: Codec) -> dict[str, int]:
    """`groupedmixer_ext.engine.Engine.report` of a codec's last call."""
    return codec.report()


def used_mib() -> float:
    """Memory of the current GPU in use, by whomever: the engine allocates outside of PyTorch."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20
