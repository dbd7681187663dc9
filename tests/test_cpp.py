# SPDX-License-Identifier: MIT
"""Builds and runs the plain C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-ffp-contract=off"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler (set CXX)")
    return found


def build(folder: Path, *sources: str) -> Path:
    program = folder / "program"
    command = [compiler(), *FLAGS, *SANITIZERS, f"-I{ROOT / 'csrc'}"]
    command += [str(ROOT / source) for source in sources]
    result = subprocess.run(
        [*command, "-o", str(program)], capture_output=True, text=True, check=False
    )
    if "cannot find -lasan" in result.stderr or "libclang_rt.asan" in result.stderr:
        problem = f"the sanitizer libraries of {compiler()} are missing"
        if os.environ.get("GROUPEDMIXER_WERROR") == "1":
            pytest.fail(problem)  # a strict build has to test all it can
        pytest.skip(problem)
    assert result.returncode == 0, result.stderr
    assert "warning:" not in result.stderr, result.stderr
    return program


def test_rans(tmp_path: Path) -> None:
    program = build(
        tmp_path, "tests/cpp/test_rans.cpp", "csrc/entropy/rans.cpp", "csrc/entropy/tables.cpp"
    )
    fuzz_seconds = os.environ.get("GROUPEDMIXER_FUZZ_SECONDS", "3")
    result = subprocess.run([program, fuzz_seconds], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("passed\n")
