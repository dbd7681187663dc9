# SPDX-License-Identifier: MIT
"""Builds and runs the plain C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.

Sources and variants are those of setup.py; the core and the CUDA sources are compiled once for all
programs.
"""

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_build import ROOT, setup

from groupedmixer_ext import ops

# Without -g: it takes half of the time again, and a stack of function names tells enough.
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-fno-fast-math", "-ffp-contract=off"]
FLAGS += ["-D_GLIBCXX_ASSERTIONS"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# CUDA sources compiled as C++, on the stand-in for CUDA that runs kernels on the host.
STAND_IN = "tests/cpp/cuda_host"
CUDA_FLAGS = [f"-I{ROOT / STAND_IN}"]
CUDA_FLAGS += ["-fno-strict-aliasing"]  # kernels read float4 and uint4 out of other arrays
CUDA_FLAGS += ["-Wno-unknown-pragmas"]  # they unroll loops
CUDA_PROGRAMS = sorted(path.stem for path in (ROOT / "tests/cpp").glob("test_cuda_*.cpp"))
CUDA_PROGRAMS.remove("test_cuda_host")
AVAILABLE = [isa for isa in ops.ISAS if ops.isa_available(isa)]


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler (set CXX)")
    return found


@pytest.fixture(scope="session")
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the compiler has no sanitizers."""
    folder = tmp_path_factory.mktemp("probe")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    command = [compiler(), *SANITIZERS, str(probe), "-o", str(folder / "probe")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        problem = f"the sanitizer libraries of {compiler()} are missing"
        if os.environ.get("GROUPEDMIXER_WERROR") == "1":
            pytest.fail(problem)  # a strict build has to test all it can
        pytest.skip(problem)


def compile_all(tasks: Sequence[setup.Compilation]) -> list[str]:
    """The objects."""
    jobs = setup.job_count(os.environ, setup.total_memory(), len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_object, tasks))


def compile_object(task: setup.Compilation) -> str:
    command = list(task.command)
    if "-mavx512f" in command and SANITIZERS[0] in command:
        # GCC 12 needs minutes for both with AVX-512. Indexes are those of the other variants.
        command[command.index(SANITIZERS[0])] = "-fsanitize=address"
    task.target.parent.mkdir(parents=True, exist_ok=True)
    execute(command)
    return str(task.target)


def execute(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def core(sanitizers: None, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Objects of all that knows neither torch nor Python nor CUDA, variants included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler())
        patch.delenv("CXXFLAGS", raising=False)
        folder = tmp_path_factory.mktemp("core")
        return compile_all(setup.core_objects(folder, [*FLAGS, "-Werror", *SANITIZERS]))


def cuda_tasks(folder: Path, names: Sequence[str], *flags: str) -> list[setup.Compilation]:
    """Sources on the stand-in, the stand-in's own and C++ among them."""
    command = [compiler(), *FLAGS, "-Werror", *SANITIZERS, *CUDA_FLAGS, *flags, "-x", "c++"]
    return [setup.compilation(folder, name, command) for name in names]


def stand_in_sources() -> list[str]:
    return [f"{STAND_IN}/{path.name}" for path in sorted((ROOT / STAND_IN).glob("*.cpp"))]


@pytest.fixture(scope="session")
def kernels(sanitizers: None, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Objects of all CUDA sources and of the stand-in."""
    folder = tmp_path_factory.mktemp("kernels")
    return compile_all(cuda_tasks(folder, [*setup.sources("*.cu"), *stand_in_sources()]))


Program = Callable[[str], Path]


@pytest.fixture(scope="session")
def program(core: list[str], tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Builds tests/cpp/NAME.cpp, once."""
    folder = tmp_path_factory.mktemp("programs")

    def build(name: str) -> Path:
        target = folder / name
        if not target.exists():
            command = [compiler(), *FLAGS, *SANITIZERS, "-Werror", f"-I{ROOT / 'csrc'}"]
            command += [str(ROOT / "tests/cpp" / f"{name}.cpp"), *core, "-pthread"]
            execute([*command, "-o", str(target)])
        return target

    return build


def run(program: Path, *arguments: str, isa: str) -> str:
    result = subprocess.run(
        [program, *arguments],
        env={**os.environ, "GROUPEDMIXER_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("passed\n")
    return result.stdout


@pytest.mark.parametrize("isa", AVAILABLE)
def test_rans(program: Program, isa: str) -> None:
    run(program("test_rans"), isa=isa)


def test_compressai_rans(program: Program) -> None:
    run(program("test_compressai_rans"), isa=AVAILABLE[0])  # it has no variants


def test_fuzz_rans(program: Program) -> None:
    """What the coder answers, to everything, is the same under every instruction set."""
    executions = os.environ.get("GROUPEDMIXER_FUZZ_EXECUTIONS", "120000")
    answers = set()
    for isa in AVAILABLE:
        output = run(program("fuzz_rans"), "--executions", executions, isa=isa)
        name, answer = output.split(": ", 1)
        assert name == isa
        answers.add(answer)
    assert len(answers) == 1, answers


@pytest.mark.parametrize("isa", AVAILABLE)
def test_transforms(program: Program, isa: str) -> None:
    run(program("test_transform"), isa=isa)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_engine(program: Program, isa: str) -> None:
    run(program("test_engine"), isa=isa)


@pytest.mark.parametrize("flags", [(), ("-DCUDA_HOST_UCONTEXT",)], ids=["switch", "ucontext"])
def test_cuda_host(sanitizers: None, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The stand-in itself, with its own switch between fibers and with the portable one."""
    names = ["tests/cpp/test_cuda_host.cpp", "tests/cpp/cuda_host_kernels.cu", *stand_in_sources()]
    objects = compile_all(cuda_tasks(tmp_path, names, *flags))
    execute([compiler(), *SANITIZERS, *objects, "-pthread", "-o", str(tmp_path / "test")])
    run(tmp_path / "test", isa=AVAILABLE[0])


@pytest.mark.timeout(1200)  # the first one waits for the compiler
@pytest.mark.parametrize("name", CUDA_PROGRAMS)
def test_cuda(core: list[str], kernels: list[str], tmp_path: Path, name: str) -> None:
    """Kernels that run on the host give the bits of their CPU functions."""
    objects = compile_all(cuda_tasks(tmp_path, [f"tests/cpp/{name}.cpp"]))
    objects += [*core, *kernels]
    execute([compiler(), *SANITIZERS, *objects, "-pthread", "-o", str(tmp_path / name)])
    run(tmp_path / name, isa=AVAILABLE[-1])


CODER = {"rans.cpp", "rans_isa.cpp", "tables.cpp", "tables.h", "varint.h"}
CODER |= {f"states_{isa}.h" for isa in AVAILABLE if isa != "scalar"}


def find_gcov() -> str:
    """The gcov of the compiler: it reads no other's files."""
    found = shutil.which("gcov")
    if found is None:
        pytest.skip("no gcov")
    version, about = (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        for command in ([compiler(), "-dumpfullversion"], [found, "--version"])
    )
    if len(version) != 1 or version[0] not in about:
        pytest.skip(f"gcov does not belong to {compiler()}")
    return found


def executed_lines(gcov: str, objects: list[str]) -> dict[str, dict[int, int]]:
    """How often the lines of every file were executed, in all objects and template instances."""
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for name in objects:
        command = [gcov, "--json-format", "--stdout", name]
        output = subprocess.run(command, capture_output=True, check=True).stdout
        for file in json.loads(output)["files"]:
            for line in file["lines"]:
                lines[Path(file["file"]).name][line["line_number"]] += line["count"]
    return lines


def test_the_coder_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 95 % of the lines of each of its files are executed."""
    gcov = find_gcov()
    monkeypatch.setenv("CXX", compiler())
    monkeypatch.delenv("CXXFLAGS", raising=False)
    flags = [*(flag for flag in FLAGS if flag != "-O1"), "-O0", "--coverage"]
    sources = {"rans.cpp", "rans_isa.cpp", "tables.cpp", "isa.cpp"}
    tasks = [one for one in setup.core_objects(tmp_path, flags) if one.source.name in sources]
    objects = compile_all(tasks)
    for name in ("test_rans", "fuzz_rans"):
        target = tmp_path / name
        # The objects come first: of an inline function in several, the first one is linked.
        command = [compiler(), *FLAGS, f"-I{ROOT / 'csrc'}", *objects]
        command += [str(ROOT / "tests/cpp" / f"{name}.cpp"), "--coverage", "-o", str(target)]
        subprocess.run(command, check=True)
    for isa in AVAILABLE:
        run(tmp_path / "test_rans", isa=isa)
        run(tmp_path / "fuzz_rans", "--executions", "5000", isa=isa)

    lines = executed_lines(gcov, objects)
    for name in sorted(CODER):
        missed = sorted(number for number, count in lines[name].items() if count == 0)
        print(f"{name}: {len(missed)} of {len(lines[name])} lines not executed: {missed}")
        assert len(missed) <= 0.05 * len(lines[name]), (name, missed)
