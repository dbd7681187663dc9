# SPDX-License-Identifier: MIT
"""Builds the native modules; everything else about the package is in pyproject.toml.

- ``groupedmixer_ext._C``: the torch operators, on torch's stable ABI, with or without CUDA
- ``groupedmixer_ext._rans``: the entropy coder, without torch
- ``groupedmixer_ext._compressai``: compressai's entropy coding, without torch
- ``groupedmixer_ext._engine``: whole latents and pictures, without torch
- ``groupedmixer_ext._engine_cuda``: the same on a GPU, only where CUDA is built

A source's name says how it is compiled:

- ``*_op.cpp``, ``library.cpp``   into ``_C``
- ``NAME_module.cpp``           into ``_NAME``
- ``*_cuda_op.cpp`` and ``*_cuda_module.cpp`` likewise, only where CUDA is built
- ``*.cu``                      once, by nvcc, into ``_C`` and ``_*_cuda``, only where CUDA is built
- ``*_isa.cpp``                 once per instruction set of `isa_variants`, into all
- other ``*.cpp``               once, into all; like ``*_isa.cpp`` and ``*.cu`` without torch and
                              Python

Environment:

- ``GROUPEDMIXER_CUDA``     auto (default): where torch and a toolkit fit; 0: never; 1: or fail
- ``GROUPEDMIXER_WERROR``   1 makes warnings errors
- ``TORCH_CUDA_ARCH_LIST``  compute capabilities, such as ``8.0;9.0+PTX``
- ``CUDA_HOME``, ``CUDA_PATH``, ``MAX_JOBS``, ``CXX``, ``CXXFLAGS``, ``NVCC_CCBIN``: as usual
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# Contraction would let a compiler merge a*b+c or not as it likes, which changes bits; no other
# floating-point licence is taken either, whatever CXXFLAGS says.
# Symbols are hidden, as Python loads both modules and torch into one process.
CXX_FLAGS = [
    "-O3",
    "-Wall",
    "-Wextra",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fvisibility=hidden",
]
NVCC_FLAGS = [
    "-O3",
    "--fmad=false",
    "--expt-relaxed-constexpr",  # the constexpr functions that both sides share
    "-Xcompiler=-Wall,-Wextra,-ffp-contract=off,-fvisibility=hidden,-fPIC",
]
# Of what knows no torch; torch chooses the standard of the rest.
CXX_STANDARD = "-std=c++17"

OLDEST_TORCH = (2, 11)  # as in build_backend.py
WANTED_TORCH = (
    f"building groupedmixer needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} (install it first, "
    "or let pip fetch it by building without --no-build-isolation)"
)

# Code for A100 and H100, and PTX of compute_90 for what comes after. Not compute_90a, whose PTX
# runs on nothing else.
DEFAULT_ARCHS = ("8.0", "9.0+PTX")

MEMORY_PER_JOB = 4 << 30  # what one nvcc may take

COMMANDS_THAT_COMPILE = {
    "bdist_wheel",
    "build",
    "build_ext",
    "develop",
    "editable_wheel",
    "install",
}


class BuildError(Exception):
    """A problem the user can solve; the message says how."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its root folder and the version of its nvcc, such as ``13.0``."""

    root: Path
    version: str


@dataclass(frozen=True)
class IsaVariant:
    """A namespace of the variants' code and the compiler flags behind it."""

    name: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Compilation:
    """An object file that is linked into several modules, its source and the compiler's command."""

    target: Path
    source: Path
    command: tuple[str, ...]


# --- decisions ------------------------------------------------------------------------------------


def isa_variants(machine: str) -> list[IsaVariant]:
    """The variants of `*_isa.cpp` for a machine; csrc/common/isa.h lists the same."""
    scalar = IsaVariant("scalar", ())
    if machine.lower() not in ("x86_64", "amd64"):
        return [scalar]
    avx2 = ("-mavx2", "-mfma", "-mf16c")
    # GCC 12 takes the undefined operands of its own AVX-512 intrinsics for mistakes of the caller.
    no_false_alarm = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")
    avx512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *no_false_alarm)
    return [scalar, IsaVariant("avx2", avx2), IsaVariant("avx512", avx2 + avx512)]


def folder_with(root: Path, name: str, *patterns: str) -> Path | None:
    """The first of the folders of `root` that holds a file."""
    folders = (folder for pattern in patterns for folder in sorted(root.glob(pattern)))
    return next((folder for folder in folders if (folder / name).is_file()), None)


def runtime_folder(root: Path) -> Path | None:
    """Where a toolkit keeps the CUDA runtime that the kernels are linked with."""
    return folder_with(root, "libcudart_static.a", "lib64", "lib", "targets/*/lib")


def is_toolkit(root: Path) -> bool:
    """Whether `root` holds a compiler, headers and runtime, rather than just a wrapper script."""
    headers = folder_with(root, "cuda_runtime.h", "include", "targets/*/include")
    return (root / "bin" / "nvcc").is_file() and None not in (headers, runtime_folder(root))


def run(*command: str | Path) -> str:
    """The combined output of a command, whatever its exit status."""
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.stdout


def find_toolkit(
    environ: Mapping[str, str], default_root: Path = Path("/usr/local/cuda")
) -> Toolkit | None:
    """The first usable toolkit of CUDA_HOME, CUDA_PATH, nvcc on the PATH and `default_root`."""
    candidates = [Path(environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    nvcc = shutil.which("nvcc", path=environ.get("PATH", ""))
    if nvcc:
        # nvcc on the PATH may be a script; what it starts tells its own root.
        top = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
        if top:
            candidates.append(Path(top.group(1).strip()))
        candidates.append(Path(nvcc).resolve().parent.parent)
    candidates.append(default_root)
    for root in candidates:
        if is_toolkit(root):
            release = re.search(r"release (\d+\.\d+)", run(root / "bin" / "nvcc", "--version"))
            if release:
                return Toolkit(root.resolve(), release.group(1))
    return None


def decide_cuda(
    setting: str, torch_cuda: str | None, toolkit: Toolkit | None, is_rocm: bool = False
) -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and the reason in words.

    Never asks for a GPU: machines that build packages rarely have one. `torch_cuda` is
    ``torch.version.cuda``. A torch without CUDA does not forbid a build with it, as the same
    library serves both, but it is no reason to make one.
    """
    if setting not in ("auto", "0", "1"):
        raise BuildError(f"GROUPEDMIXER_CUDA must be auto, 0 or 1, got {setting!r}")
    if setting == "0":
        return False, "GROUPEDMIXER_CUDA=0"
    problem = None
    if is_rocm:
        problem = "torch is built for ROCm"
    elif toolkit is None:
        problem = (
            "no CUDA toolkit found (a folder with bin/nvcc, cuda_runtime.h and libcudart_static.a) "
            "through CUDA_HOME, CUDA_PATH, nvcc on the PATH or /usr/local/cuda"
        )
    elif torch_cuda and torch_cuda.split(".")[0] != toolkit.version.split(".")[0]:
        wanted, found = torch_cuda.split(".")[0], toolkit.version.split(".")[0]
        problem = (
            f"nvcc in {toolkit.root} is CUDA {toolkit.version} but torch is built for CUDA "
            f"{torch_cuda}; point CUDA_HOME at a CUDA {wanted} toolkit or install a torch for CUDA "
            f"{found} (see https://pytorch.org/get-started)"
        )
    if problem and setting == "1":
        raise BuildError(f"GROUPEDMIXER_CUDA=1, but {problem}")
    if problem:
        return False, problem
    if setting == "auto" and not torch_cuda:
        return False, "torch is built without CUDA"
    assert toolkit is not None
    return True, f"toolkit in {toolkit.root}"


def cuda_archs(environ: Mapping[str, str]) -> tuple[str, ...]:
    """TORCH_CUDA_ARCH_LIST, or DEFAULT_ARCHS."""
    listed = re.split(r"[;\s]+", environ.get("TORCH_CUDA_ARCH_LIST", ""))
    return tuple(filter(None, listed)) or DEFAULT_ARCHS


def gencode_flags(archs: Sequence[str]) -> list[str]:
    """What makes nvcc compile for all of them."""
    flags = []
    for arch in archs:
        parts = re.fullmatch(r"(\d+)\.(\d[a-z]?)(\+PTX)?", arch)
        if parts is None:
            raise BuildError(
                "TORCH_CUDA_ARCH_LIST must be a list of compute capabilities such as 9.0 or "
                f"9.0+PTX, got {arch!r}"
            )
        number = parts[1] + parts[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if parts[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def job_count(environ: Mapping[str, str], memory: int, cpus: int) -> int:
    """MAX_JOBS, or as many as processors and memory allow."""
    setting = environ.get("MAX_JOBS")
    if setting:
        if not setting.isdecimal() or int(setting) == 0:
            raise BuildError(f"MAX_JOBS must be a whole number above 0, got {setting!r}")
        return int(setting)
    return max(1, min(cpus, memory // MEMORY_PER_JOB))


def total_memory(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """What the machine has, or its container may take, in bytes."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroup v2 and v1
        try:
            text = (cgroups / name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # v2 says "max" where there is no limit
            limits.append(int(text))
    return min(limits)


# --- sources --------------------------------------------------------------------------------------


def sources(*patterns: str) -> list[str]:
    """Paths relative to the root, sorted, as setuptools wants them."""
    return sorted(
        str(path.relative_to(ROOT)) for pattern in patterns for path in CSRC.rglob(pattern)
    )


def op_sources(with_cuda: bool) -> list[str]:
    """Of ``_C``."""
    cuda = () if with_cuda else sources("*_cuda_op.cpp")
    return [source for source in sources("*_op.cpp", "library.cpp") if source not in cuda]


def module_sources(with_cuda: bool) -> list[str]:
    """Of the modules without torch, one each."""
    cuda = () if with_cuda else sources("*_cuda_module.cpp")
    return [source for source in sources("*_module.cpp") if source not in cuda]


def core_sources() -> list[str]:
    """Compiled once and linked into all modules."""
    elsewhere = {*op_sources(True), *module_sources(True), *sources("*_isa.cpp")}
    return [source for source in sources("*.cpp") if source not in elsewhere]


# --- the build ------------------------------------------------------------------------------------


def borrow_torch() -> Any:
    """Imports torch, if need be from the environment that an isolated build installs into."""
    try:
        import torch
    except ImportError:
        # Appended, so that the build environment's own setuptools and pybind11 come first.
        sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        try:
            import torch
        except ImportError as error:
            raise BuildError(f"{WANTED_TORCH}, and there is none") from error
    check_torch(torch.__version__)
    return torch


def check_torch(version: str) -> None:
    release = re.match(r"(\d+)\.(\d+)", version)
    if release is None or (int(release[1]), int(release[2])) < OLDEST_TORCH:
        raise BuildError(f"{WANTED_TORCH}, got {version}")


def build_info(torch: Any, plan: tuple[bool, str], toolkit: Toolkit | None) -> dict[str, object]:
    """What groupedmixer_ext._build_info records."""
    with_cuda, reason = plan
    return {
        "TORCH": str(torch.__version__),
        "TORCH_CUDA": torch.version.cuda,
        "CUDA": toolkit.version if with_cuda and toolkit else None,
        "CUDA_REASON": reason,
        "CUDA_ARCHS": cuda_archs(os.environ) if with_cuda else (),
        "ISAS": tuple(variant.name for variant in isa_variants(platform.machine())),
        "PYTHON": platform.python_version(),
    }


def announce(info: Mapping[str, object], jobs: int) -> None:
    archs, isas = info["CUDA_ARCHS"], info["ISAS"]
    assert isinstance(archs, tuple) and isinstance(isas, tuple)
    cuda = f"CUDA {info['CUDA']} for {' '.join(archs)}" if info["CUDA"] else "CPU only"
    print(
        f"groupedmixer: {cuda} ({info['CUDA_REASON']}); ISA {' '.join(isas)}; "
        f"torch {info['TORCH']}; {jobs} jobs",
        flush=True,
    )


def native_build() -> dict[str, Any]:
    """The arguments of `setup` that compile."""
    if not sys.platform.startswith("linux"):
        raise BuildError(f"only Linux is supported so far, not {sys.platform}")
    torch = borrow_torch()
    from pybind11.setup_helpers import Pybind11Extension
    from torch.utils import cpp_extension

    toolkit = find_toolkit(os.environ)
    plan = decide_cuda(
        os.environ.get("GROUPEDMIXER_CUDA", "auto"),
        torch.version.cuda,
        toolkit,
        is_rocm=torch.version.hip is not None,
    )
    with_cuda = plan[0]
    jobs = job_count(os.environ, total_memory(), len(os.sched_getaffinity(0)))
    os.environ["MAX_JOBS"] = str(jobs)  # torch hands it to ninja
    info = build_info(torch, plan, toolkit)
    announce(info, jobs)

    werror = os.environ.get("GROUPEDMIXER_WERROR") == "1"
    cxx_flags = CXX_FLAGS + (["-Werror"] if werror else [])
    nvcc_flags = NVCC_FLAGS + (["-Werror=all-warnings", "-Xcompiler=-Werror"] if werror else [])
    if with_cuda:
        nvcc_flags += gencode_flags(cuda_archs(os.environ))

    def cuda_libraries() -> dict[str, Any]:
        """Arguments of an extension, lists of its own: torch appends to them."""
        assert toolkit is not None
        # The static runtime needs no libcudart at import and so runs under a torch without CUDA.
        return {
            "libraries": ["cudart_static", "rt", "dl", "pthread"],
            "library_dirs": [str(runtime_folder(toolkit.root))],
        }

    ops = cpp_extension.CppExtension(
        "groupedmixer_ext._C",
        op_sources(with_cuda),
        include_dirs=[str(CSRC)],
        # Oldest torch whose stable ABI is used.
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
        extra_compile_args=cxx_flags,
        # Nothing of libtorch itself is used, but where torch has CUDA, it leads to libtorch_cuda.
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
        **(cuda_libraries() if with_cuda else {}),
    )
    modules = [
        Pybind11Extension(
            module_name(source),
            [source],
            include_dirs=[str(CSRC)],
            extra_compile_args=[*cxx_flags, CXX_STANDARD],
            **(cuda_libraries() if source.endswith("_cuda_module.cpp") else {}),
        )
        for source in module_sources(with_cuda)
    ]

    class BuildNative(cpp_extension.BuildExtension):  # type: ignore[misc, name-defined]
        """Compiles what modules share ahead of them and records what was decided."""

        def finalize_options(self) -> None:
            self.set_undefined_options("build", ("force", "force"))
            self.recompile = bool(self.force)  # asked for; torch sets it whenever it uses ninja
            super().finalize_options()

        def run(self) -> None:
            # Always link: a library in build/ may stem from another decision, with newer files.
            self.force = True
            super().run()
            record = Path(self.get_ext_fullpath("groupedmixer_ext._C")).parent / "_build_info.py"
            record.write_text(render_build_info(info))

        def build_extensions(self) -> None:
            folder = Path(self.build_temp)
            core = core_objects(folder / "core", [*cxx_flags, CXX_STANDARD])
            kernels = []
            if with_cuda:
                kernels = kernel_objects(folder / "cuda", toolkit, [*nvcc_flags, CXX_STANDARD])
            compile_objects([*kernels, *core], jobs, self.recompile)  # nvcc takes longest
            for extension in self.extensions:
                shared = [*core, *(kernels if "cudart_static" in extension.libraries else [])]
                extension.extra_objects = [
                    *extension.extra_objects,
                    *(str(task.target) for task in shared),
                ]
            super().build_extensions()

    return {"ext_modules": [ops, *modules], "cmdclass": {"build_ext": BuildNative}}


def module_name(source: str) -> str:
    return "groupedmixer_ext._" + Path(source).stem.removesuffix("_module")


def core_objects(folder: Path, flags: Sequence[str]) -> list[Compilation]:
    """What to compile of the core sources, and of `*_isa.cpp` once per variant."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    compiler += shlex.split(os.environ.get("CXXFLAGS", ""))
    command = [*compiler, *flags, "-fPIC"]
    return [compilation(folder / "common", name, command) for name in core_sources()] + [
        compilation(
            folder / variant.name,
            name,
            [*command, f"-DGROUPEDMIXER_VARIANT={variant.name}", *variant.flags],
        )
        for variant in isa_variants(platform.machine())
        for name in sources("*_isa.cpp")
    ]


def kernel_objects(folder: Path, toolkit: Toolkit, flags: Sequence[str]) -> list[Compilation]:
    """What to compile of the CUDA sources."""
    command = [str(toolkit.root / "bin" / "nvcc"), *flags]
    return [compilation(folder, name, command) for name in sources("*.cu")]


def compilation(folder: Path, name: str, command: Sequence[str]) -> Compilation:
    """Of a source, relative to the root; the object's path in the folder is the same."""
    source = ROOT / name
    target = folder / Path(name).with_suffix(".o")
    # The compiler lists the headers beside the object.
    files = ["-MMD", "-MF", str(headers_list(target)), "-c", str(source), "-o", str(target)]
    return Compilation(target, source, (*command, f"-I{CSRC}", *files))


def headers_list(target: Path) -> Path:
    return target.with_suffix(".d")


def is_current(task: Compilation) -> bool:
    """Whether the object was made by this command from the files as they are."""
    stamp = stamp_of(task.target)
    try:
        if not task.target.is_file() or stamp.read_text() != shlex.join(task.command):
            return False
        rule = headers_list(task.target).read_text().replace("\\\n", " ")
        files = shlex.split(rule.partition(": ")[2])
        made = stamp.stat().st_mtime
        return all(Path(file).stat().st_mtime < made for file in files)
    except FileNotFoundError:
        return False


def stamp_of(target: Path) -> Path:
    """A file with the command, written last: there only if all went well."""
    return target.with_suffix(".command")


def compile_object(task: Compilation) -> None:
    stamp = stamp_of(task.target)
    task.target.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    begin = time.time()  # what changes from now on may come too late
    print(shlex.join(task.command), flush=True)
    subprocess.run(task.command, check=True)
    stamp.write_text(shlex.join(task.command))
    os.utime(stamp, (begin, begin))


def compile_objects(tasks: Sequence[Compilation], jobs: int, force: bool) -> None:
    """Compiles what is not current."""
    stale = [task for task in tasks if force or not is_current(task)]
    try:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(compile_object, stale))
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the compiler failed (set CXX to choose another): {error}") from error


def render_build_info(info: Mapping[str, object]) -> str:
    lines = [f"{name} = {value!r}" for name, value in info.items()]
    return "\n".join(['"""Written by setup.py."""', "", *lines, ""])


def main() -> None:
    # Metadata and source distributions can be made without torch.
    compiles = COMMANDS_THAT_COMPILE & {*sys.argv[1:]}
    try:
        native = native_build() if compiles else {}
        setup(packages=[*find_packages("python"), "groupedmixer_ext"], **native)
    except BuildError as error:
        sys.exit(f"groupedmixer: {error}")


if __name__ == "__main__":
    main()
