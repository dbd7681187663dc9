# SPDX-License-Identifier: MIT
"""Builds and runs the plain C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.

Sources and variants are those of setup.py; the core is compiled once for all programs.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_build import ROOT, setup

from groupedmixer_ext import ops

# Without -g: it takes half of the time again, and a stack of function names tells enough.
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-fno-fast-math", "-ffp-contract=off"]
FLAGS += ["-D_GLIBCXX_ASSERTIONS"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
AVAILABLE = [isa for isa in ops.ISAS if ops.isa_available(isa)]


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler (set CXX)")
    return found


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Objects of all that knows neither torch nor Python, variants included."""
    folder = tmp_path_factory.mktemp("core")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    command = [compiler(), *SANITIZERS, str(probe), "-o", str(folder / "probe")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        problem = f"the sanitizer libraries of {compiler()} are missing"
        if os.environ.get("GROUPEDMIXER_WERROR") == "1":
            pytest.fail(problem)  # a strict build has to test all it can
        pytest.skip(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler())
        patch.delenv("CXXFLAGS", raising=False)
        objects = setup.core_objects(folder, [*FLAGS, "-Werror", *SANITIZERS])
    jobs = setup.job_count(os.environ, setup.total_memory(), len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_object, objects))


def compile_object(task: setup.CoreObject) -> str:
    command = list(task.command)
    if "-mavx512f" in command:
        # GCC 12 needs minutes for both with AVX-512. Indexes are those of the other variants.
        command[command.index(SANITIZERS[0])] = "-fsanitize=address"
    task.target.parent.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return str(task.target)


Program = Callable[[str], Path]


@pytest.fixture(scope="session")
def program(core: list[str], tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Builds tests/cpp/NAME.cpp, once."""
    folder = tmp_path_factory.mktemp("programs")

    def build(name: str) -> Path:
        target = folder / name
        if target.exists():
            return target
        command = [compiler(), *FLAGS, *SANITIZERS, "-Werror", f"-I{ROOT / 'csrc'}"]
        command += [str(ROOT / "tests/cpp" / f"{name}.cpp"), *core, "-pthread", "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return target

    return build


def run(program: Path, *arguments: str, isa: str | None = None) -> None:
    environment = {**os.environ, **({} if isa is None else {"GROUPEDMIXER_ISA": isa})}
    result = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("passed\n")


def test_rans(program: Program) -> None:
    run(program("test_rans"), os.environ.get("GROUPEDMIXER_FUZZ_SECONDS", "3"))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_transforms(program: Program, isa: str) -> None:
    run(program("test_transform"), isa=isa)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_engine(program: Program, isa: str) -> None:
    run(program("test_engine"), isa=isa)
