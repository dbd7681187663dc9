# SPDX-License-Identifier: MIT
"""The decisions of setup.py and build_backend.py, without compiling anything."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"groupedmixer_{name}", ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


if not (ROOT / "setup.py").is_file():
    pytest.skip("not in a source tree", allow_module_level=True)

setup = load("setup")
backend = load("build_backend")


def make_script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def make_toolkit(root: Path, version: str) -> Path:
    make_script(
        root / "bin" / "nvcc",
        'case "$1" in',
        f"--version) echo 'Cuda compilation tools, release {version}, V{version}.1';;",
        f"--dryrun) echo '#$ _SPACE_= '; echo '#$ TOP={root}/bin/..' >&2;;",
        "esac",
    )
    for name in ("include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (root / name).parent.mkdir()
        (root / name).touch()
    return root


def find(environ: dict[str, str], tmp_path: Path) -> object:
    path = environ.pop("PATH", "")
    environ["PATH"] = f"{path}{os.pathsep}/usr/bin{os.pathsep}/bin" if path else str(tmp_path)
    return setup.find_toolkit(environ, default_root=tmp_path / "default")


def test_toolkit_behind_a_wrapper_script(tmp_path: Path) -> None:
    real = make_toolkit(tmp_path / "opt" / "cuda-13.1", "13.1")
    wrapper = make_script(tmp_path / "bin" / "nvcc", f'exec {real}/bin/nvcc "$@"')
    found = find({"PATH": str(wrapper.parent)}, tmp_path)
    assert found == setup.Toolkit(real.resolve(), "13.1")


def test_toolkit_behind_a_link(tmp_path: Path) -> None:
    real = make_toolkit(tmp_path / "opt" / "cuda", "12.9")
    make_script(  # a compiler that does not say where it lives
        real / "bin" / "nvcc", '[ "$1" = --version ] && echo "release 12.9, V12.9.1"'
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(real / "bin" / "nvcc")
    found = find({"PATH": str(tmp_path / "bin")}, tmp_path)
    assert found == setup.Toolkit(real.resolve(), "12.9")


def test_environment_variables_come_first_but_have_to_be_right(tmp_path: Path) -> None:
    named = make_toolkit(tmp_path / "named", "12.8")
    other = make_toolkit(tmp_path / "other", "12.9")
    default = make_toolkit(tmp_path / "default", "13.0")
    environ = {"CUDA_HOME": str(named), "CUDA_PATH": str(other)}
    assert find(dict(environ), tmp_path) == setup.Toolkit(named.resolve(), "12.8")
    environ["CUDA_HOME"] = str(tmp_path)  # a folder, but no toolkit
    assert find(dict(environ), tmp_path) == setup.Toolkit(other.resolve(), "12.9")
    assert find({}, tmp_path) == setup.Toolkit(default.resolve(), "13.0")


@pytest.mark.parametrize("missing", ["include/cuda_runtime.h", "lib64/libcudart_static.a"])
def test_compiler_alone_is_no_toolkit(tmp_path: Path, missing: str) -> None:
    (make_toolkit(tmp_path / "named", "12.8") / missing).unlink()
    assert find({"CUDA_HOME": str(tmp_path / "named")}, tmp_path) is None


def test_toolkit_with_a_folder_for_each_target(tmp_path: Path) -> None:
    root = make_toolkit(tmp_path / "named", "12.8")
    target = root / "targets" / "x86_64-linux"
    target.mkdir(parents=True)
    (root / "include").rename(target / "include")
    (root / "lib64").rename(target / "lib")
    assert find({"CUDA_HOME": str(root)}, tmp_path) == setup.Toolkit(root.resolve(), "12.8")
    assert setup.runtime_folder(root) == target / "lib"


TOOLKIT = setup.Toolkit(Path("/cuda"), "13.0")


@pytest.mark.parametrize(
    ("setting", "torch_cuda", "toolkit", "built", "reason"),
    [
        ("auto", "13.2", TOOLKIT, True, "toolkit in /cuda"),
        ("auto", "12.8", TOOLKIT, False, "CUDA 13.0 but torch is built for CUDA 12.8"),
        ("auto", "13.2", None, False, "no CUDA toolkit found"),
        ("auto", None, TOOLKIT, False, "torch is built without CUDA"),
        ("0", "13.2", TOOLKIT, False, "GROUPEDMIXER_CUDA=0"),
        ("1", "13.2", TOOLKIT, True, "toolkit in /cuda"),
        ("1", None, TOOLKIT, True, "toolkit in /cuda"),
    ],
)
def test_cuda_decisions(setting, torch_cuda, toolkit, built, reason) -> None:
    decided, why = setup.decide_cuda(setting, torch_cuda, toolkit)
    assert decided is built and reason in why


@pytest.mark.parametrize(
    ("setting", "torch_cuda", "toolkit", "message"),
    [
        ("yes", None, None, "must be auto, 0 or 1, got 'yes'"),
        ("", None, None, "must be auto, 0 or 1, got ''"),
        ("1", "13.2", None, "GROUPEDMIXER_CUDA=1, but no CUDA toolkit found"),
        ("1", "12.8", TOOLKIT, "CUDA 13.0 but torch is built for CUDA 12.8; .* CUDA 12 toolkit"),
    ],
)
def test_cuda_refusals(setting, torch_cuda, toolkit, message) -> None:
    with pytest.raises(setup.BuildError, match=message):
        setup.decide_cuda(setting, torch_cuda, toolkit)


def test_rocm_is_not_cuda() -> None:
    assert setup.decide_cuda("auto", None, TOOLKIT, is_rocm=True)[0] is False


def test_architectures_are_those_asked_for() -> None:
    assert setup.cuda_archs({}) == setup.cuda_archs({"TORCH_CUDA_ARCH_LIST": " "})
    assert setup.cuda_archs({"TORCH_CUDA_ARCH_LIST": "8.6; 9.0a 12.0+PTX"}) == (
        "8.6",
        "9.0a",
        "12.0+PTX",
    )
    assert setup.gencode_flags(["8.6", "9.0a", "12.0+PTX"]) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    for arch in ("Hopper", "90", "9.0+", "sm_90", "native"):
        with pytest.raises(setup.BuildError, match="must be a list of compute capabilities .* got"):
            setup.gencode_flags(["8.0", arch])


def test_variants_follow_the_machine() -> None:
    assert [v.name for v in setup.isa_variants("x86_64")] == ["scalar", "avx2", "avx512"]
    assert [v.name for v in setup.isa_variants("aarch64")] == ["scalar"]


def test_jobs_leave_room_in_memory() -> None:
    assert setup.job_count({"MAX_JOBS": "7"}, memory=1 << 30, cpus=2) == 7
    assert setup.job_count({}, memory=64 << 30, cpus=4) == 4
    assert setup.job_count({}, memory=9 << 30, cpus=64) == 2
    assert setup.job_count({}, memory=1 << 30, cpus=64) == 1


@pytest.mark.parametrize("setting", ["many", "0", "-1", "1.5"])
def test_jobs_are_a_number(setting: str) -> None:
    with pytest.raises(setup.BuildError, match="MAX_JOBS must be a whole number above 0, got '"):
        setup.job_count({"MAX_JOBS": setting}, memory=1 << 30, cpus=2)


def test_memory_is_what_the_container_may_take(tmp_path: Path) -> None:
    machine = setup.total_memory(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert setup.total_memory(tmp_path) == machine
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert setup.total_memory(tmp_path) == machine
    (tmp_path / "memory.max").write_text("4096\n")
    assert setup.total_memory(tmp_path) == 4096


def test_old_torch_is_refused() -> None:
    assert setup.OLDEST_TORCH == backend._OLDEST_TORCH
    for version in ("2.11.0", "2.15.0+cu132", "3.0.0.dev20270101"):
        setup.check_torch(version)
    for version in ("2.10.1+cpu", "1.13.0", "unknown"):
        with pytest.raises(setup.BuildError, match=r"needs torch >= 2\.11 .*, got "):
            setup.check_torch(version)


def test_every_source_is_compiled_in_one_way() -> None:
    modules = setup.op_sources(True) + setup.module_sources(True)
    chosen = modules + setup.core_sources() + setup.sources("*_isa.cpp")
    assert sorted(chosen) == setup.sources("*.cpp")
    assert set(setup.op_sources(False)) < set(setup.op_sources(True))
    assert "csrc/codec/engine_module.cpp" in setup.module_sources(False)
    for source in setup.op_sources(False) + setup.module_sources(False):
        assert "_cuda_" not in source


def test_sources_of_a_gpu_are_of_no_build_without_it(tmp_path: Path, monkeypatch) -> None:
    for name in ("engine_module.cpp", "engine_cuda_module.cpp", "a_op.cpp", "a_cuda_op.cpp"):
        (tmp_path / name).touch()
    monkeypatch.setattr(setup, "CSRC", tmp_path)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    assert setup.module_sources(False) == ["engine_module.cpp"]
    assert setup.module_sources(True) == ["engine_cuda_module.cpp", "engine_module.cpp"]
    assert setup.op_sources(False) == ["a_op.cpp"]
    assert setup.op_sources(True) == ["a_cuda_op.cpp", "a_op.cpp"]
    assert setup.core_sources() == []
    assert setup.module_name("x/engine_cuda_module.cpp") == "groupedmixer_ext._engine_cuda"


def test_core_knows_no_torch_and_no_python() -> None:
    for source in setup.core_sources() + setup.sources("*_isa.cpp", "*.cu"):
        text = (ROOT / source).read_text()
        assert "torch" not in text and "pybind11" not in text, source


# Touches the object that it is asked for and lists the header beside the source.
FAKE_COMPILER = [
    "while [ $# -gt 0 ]; do",
    'case "$1" in -o) target=$2;; -c) source=$2;; -MF) list=$2;; esac',
    "shift",
    "done",
    r"""printf '%s: %s \\\n %s\n' "$target" "$source" "${source%.*}.h" > "$list" """,
    'touch "$target"',
]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch):
    """Compiles two sources and tells which of them were stale."""
    compiler = make_script(tmp_path / "c++", *FAKE_COMPILER)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    for name in ("a.cpp", "a.h", "b.cpp", "b.h"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))

    def compile_them(*flags: str, force: bool = False, compiler: Path = compiler) -> list[str]:
        folder = tmp_path / "objects"
        tasks = [
            setup.compilation(folder, name, [str(compiler), *flags]) for name in ("a.cpp", "b.cpp")
        ]
        stale = [task.source.name for task in tasks if not setup.is_current(task)]
        setup.compile_objects(tasks, 1, force)
        assert [task.target for task in tasks] == [folder / "a.o", folder / "b.o"]
        assert all(setup.is_current(task) for task in tasks)
        return stale

    return compile_them


def test_what_is_current_is_not_compiled_again(compiled, tmp_path: Path) -> None:
    assert compiled("-O1") == ["a.cpp", "b.cpp"]
    assert compiled("-O1") == []
    assert compiled("-O2") == ["a.cpp", "b.cpp"]
    (tmp_path / "b.h").touch()
    os.utime(tmp_path / "b.h", (9e9, 9e9))  # while or after b.cpp was compiled
    with pytest.raises(AssertionError):
        compiled("-O2")
    os.utime(tmp_path / "b.h")
    assert compiled("-O2") == ["b.cpp"]
    (tmp_path / "objects" / "a.o").unlink()
    assert compiled("-O2") == ["a.cpp"]
    (tmp_path / "objects" / "a.d").unlink()
    assert compiled("-O2") == ["a.cpp"]
    before = (tmp_path / "objects" / "a.o").stat().st_mtime_ns
    assert compiled("-O2", force=True) == []
    assert (tmp_path / "objects" / "a.o").stat().st_mtime_ns > before
    with pytest.raises(setup.BuildError, match="the compiler failed"):
        compiled("-O2", compiler=make_script(tmp_path / "broken", "exit 1"))
    with pytest.raises(setup.BuildError, match="the compiler failed"):
        compiled("-O2", compiler=tmp_path / "missing")


def test_objects_of_the_core(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "env c++")
    monkeypatch.setenv("CXXFLAGS", "-g -DX")
    tasks = setup.core_objects(tmp_path, ["-O1"])
    variants = len(setup.isa_variants(platform.machine()))
    count = len(setup.core_sources()) + variants * len(setup.sources("*_isa.cpp"))
    assert len(tasks) == len({task.target for task in tasks}) == count
    for task in tasks:
        assert task.command[:5] == ("env", "c++", "-g", "-DX", "-O1")
    kernels = setup.kernel_objects(tmp_path, TOOLKIT, setup.NVCC_FLAGS)
    assert [str(task.source.relative_to(ROOT)) for task in kernels] == setup.sources("*.cu")
    assert {task.command[0] for task in kernels} == {"/cuda/bin/nvcc"}


def test_variants_share_no_symbol(tmp_path: Path) -> None:
    """The linker keeps one copy of what variants share, maybe the one no older machine can run."""
    if shutil.which("nm") is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no nm or no C++ compiler (set CXX)")
    for variant in setup.isa_variants(platform.machine()):
        for task in setup.core_objects(tmp_path, [*setup.CXX_FLAGS, setup.CXX_STANDARD]):
            target = task.target
            if target.relative_to(tmp_path).parts[0] != variant.name:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(task.command, check=True)
            listing = subprocess.run(
                ["nm", "--demangle", "--defined-only", "--extern-only", "--format=posix", target],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            names = [re.sub(r" \S \S+ \S*$", "", line) for line in listing.splitlines()]
            assert names and all(f"::{variant.name}::" in name for name in names), listing


def test_backend_asks_for_torch_only_where_it_is_missing(tmp_path: Path) -> None:
    version = tmp_path / "torch" / "version.py"
    version.parent.mkdir()
    assert backend._torch_requirement([tmp_path]) == ["torch>=2.11"]
    for text, expected in [
        ("__version__ = '2.10.1+cpu'", ["torch>=2.11"]),
        ("__version__ = '2.11.0'", []),
        ("__version__ = '3.0.0.dev20270101'", []),
        ("no version here", ["torch>=2.11"]),
    ]:
        version.write_text(text)
        assert backend._torch_requirement([tmp_path / "nothing", tmp_path]) == expected


def test_metadata_needs_no_torch() -> None:
    program = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    from groupedmixer_ext import __version__

    assert output.split()[-1] == __version__
