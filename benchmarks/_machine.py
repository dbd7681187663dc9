# SPDX-License-Identifier: MIT
"""The most that this machine can do, measured by machine_peak.cpp: what figures are held against.

python benchmarks/_machine.py [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["MachinePeak", "measure_peak"]

_SOURCE = Path(__file__).with_name("machine_peak.cpp")


@dataclass(frozen=True)
class MachinePeak:
    """Rates over all ``threads``, and over one (``_1``)."""

    vector_bits: int
    threads: int
    buffer_mib: int
    fma_gflops_1: float  # float32, a multiply-add counts 2
    fma_gflops: float
    read_gbs_1: float  # 1e9 bytes a second, from a buffer beyond the caches
    read_gbs: float


def measure_peak(threads: int, buffer_mib: int | None = None) -> MachinePeak:
    """Compiles and runs the measurement, some seconds.

    Parameters
    ----------
    buffer_mib
        Buffer that is read; None for four times the last cache, 1 GiB at least.

    Raises
    ------
    RuntimeError
        If there is no C++ compiler (``$CXX``, ``c++``), or it fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError(
            "measuring the machine's peak needs a C++ compiler: install g++ or clang, or name one "
            "in CXX"
        )
    if buffer_mib is None:
        buffer_mib = max(1024, 4 * _last_cache_mib())
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "machine_peak"
        flags = ("-O3", "-march=native", "-std=gnu++17", "-pthread")
        _run(*compiler.split(), *flags, str(_SOURCE), "-o", str(program))
        return MachinePeak(**json.loads(_run(str(program), str(threads), str(buffer_mib))))


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr.strip()}")
    return result.stdout


def _last_cache_mib() -> int:
    """Size of the largest cache that Linux reports, 0 where it reports none."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1, "M": 1024, "G": 1024**2}.get(text[-1:], 0)
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit // 1024)
    return max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--buffer-mib", type=int, help="default: beyond the caches")
    args = parser.parse_args()
    try:
        print(json.dumps(asdict(measure_peak(args.threads, args.buffer_mib)), indent=2))
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
