# SPDX-License-Identifier: MIT
"""Compiles the CUDA sources with nvcc, as setup.py does. Needs a toolkit, but no GPU."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_build import ROOT, setup

TOOLKIT = setup.find_toolkit(os.environ)
# The kernels of the tests are compiled too: what test_cpp.py runs on the host is to be CUDA.
SOURCES = [*setup.sources("*.cu"), "tests/cpp/cuda_host_kernels.cu"]


ARCHS = ("8.0", "9.0")


@pytest.mark.skipif(TOOLKIT is None, reason="no CUDA toolkit found (set CUDA_HOME)")
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_and_keep_to_registers(source: str, tmp_path: Path) -> None:
    command = [str(TOOLKIT.root / "bin" / "nvcc"), *setup.NVCC_FLAGS, setup.CXX_STANDARD]
    command += ["-Werror=all-warnings", "-Xcompiler=-Werror", "-Xptxas=-v"]
    task = setup.compilation(tmp_path, source, [*command, *setup.gencode_flags(ARCHS)])
    task.target.parent.mkdir(parents=True)
    result = subprocess.run(
        task.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, result.stdout

    kernels = resources(result.stdout)
    for kernel in kernels:  # shown by pytest -rP
        print(f"sm_{kernel.arch}  {kernel.registers:3} registers  {kernel.shared:6} B  {kernel}")
    if re.search(r"__global__|launch_linear_kernel", (ROOT / source).read_text()):
        assert {kernel.arch for kernel in kernels} == {"80", "90"}, result.stdout
    assert len(kernels) == result.stdout.count("Compiling entry function")
    assert not [kernel for kernel in kernels if kernel.spilled], result.stdout


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of a kernel: its resources for a thread, shared memory for a block."""

    name: str
    arch: str
    registers: int
    shared: int  # bytes, static
    spilled: int  # bytes

    def __str__(self) -> str:
        return self.name


def resources(log: str) -> list[Kernel]:
    """The kernels that a verbose ptxas lists."""
    kernels = []
    for part in log.split("Compiling entry function ")[1:]:
        named = re.match(r"'(\S+)' for 'sm_(\d+)'", part)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert named and spills and registers, part
        shared = re.search(r"(\d+) bytes smem", part)
        kernels.append(
            Kernel(
                demangled(named[1]),
                named[2],
                int(registers[1]),
                int(shared[1]) if shared else 0,
                int(spills[1]) + int(spills[2]),
            )
        )
    return kernels


def demangled(name: str) -> str:
    """Without namespaces and arguments, where there is a tool for it."""
    if shutil.which("c++filt") is None:
        return name
    full = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    return re.sub(r"\(anonymous namespace\)::|groupedmixer::|strict::|^void ", "", full.strip())
