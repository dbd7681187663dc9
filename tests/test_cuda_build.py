# SPDX-License-Identifier: MIT
"""Compiles the CUDA sources with nvcc, as setup.py does. Needs a toolkit, but no GPU."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from test_build import ROOT, setup

TOOLKIT = setup.find_toolkit(os.environ)
# The kernels of the tests are compiled too: what test_cpp.py runs on the host is to be CUDA.
SOURCES = [*setup.sources("*.cu"), "tests/cpp/cuda_host_kernels.cu"]


@pytest.mark.skipif(TOOLKIT is None, reason="no CUDA toolkit found (set CUDA_HOME)")
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_and_keep_to_registers(source: str, tmp_path: Path) -> None:
    command = [str(TOOLKIT.root / "bin" / "nvcc"), *setup.NVCC_FLAGS, *setup.DEFAULT_GENCODE]
    command += ["-Werror=all-warnings", "-Xcompiler=-Werror", "-Xptxas=-v", setup.CXX_STANDARD]
    command += [f"-I{setup.CSRC}", "-c", str(ROOT / source), "-o", str(tmp_path / "object.o")]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, result.stdout

    compiled = re.findall(r"Compiling entry function '(\S+)' for 'sm_(\d+)'", result.stdout)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stdout)
    if "__global__" in (ROOT / source).read_text():
        assert {arch for _, arch in compiled} == {"80", "90"}, result.stdout
    assert len(spills) >= len(compiled) and set(spills) <= {("0", "0")}, result.stdout
