# SPDX-License-Identifier: MIT
"""Builds, tests and measures on a machine with a GPU, in under eight minutes, and writes one JSON.

    benchmarks/gpu_check.sh --out gpu_check.json
    benchmarks/gpu_check.sh --wheels wheels/          # where there is no network
    benchmarks/gpu_check.sh --skip-build --only tests

Stages run one after the other, each in a process of its own with a time limit of its own. Its
outcome, log and figures are in the JSON, which is written anew after every stage, so that it tells
the truth even if this program is killed. A stage whose needs failed is skipped. The exit code is 0
only if all stages passed.

    facts    the machine: GPU, driver, compilers, versions of what is installed
    install  what is missing, from --wheels, without the network and without dependencies
    build    python setup.py build_ext --inplace, for this GPU
    tests    pytest -m gpu
    rt, base, kernels, rt-peers, base-compiled, sizes   the benchmarks

Needs nothing but Python's own library, so that it can report that torch is missing. With --wheels,
packages are put into a folder of their own (build/gpu_check/site), not into the environment.
"missing" among the facts names those of REQUIREMENTS that the machine does not have; for Python
3.12 on x86-64, say compressai and pytorch-msssim, they are downloaded elsewhere by

    pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels \\
        --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 compressai pytorch-msssim
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu_check"
TOTAL_SECONDS = 470.0  # under eight minutes, with a margin for the end
LOG_CHARACTERS = 12_000  # kept of a log, from its end

# Module -> distribution of all that building, `import groupedmixer`, its tests and its peers import
# beyond torch. compressai is installed without dependencies: of what it asks for, its models import
# einops, pandas, pytorch-msssim, scipy, torch-geometric and torchvision; of what those ask for,
# torch-geometric imports at once fsspec, jinja2, psutil, requests, tqdm and xxhash (its aiohttp and
# pyparsing only to download), pandas dateutil. matplotlib, tomli and wheel are not imported, and
# numpy, which compressai wants below 2, may be newer.
REQUIREMENTS = {
    "setuptools": "setuptools",
    "pybind11": "pybind11",
    "ninja": "ninja",
    "numpy": "numpy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "compressai": "compressai",
    "einops": "einops",
    "pandas": "pandas",
    "dateutil": "python-dateutil",
    "pytorch_msssim": "pytorch-msssim",
    "scipy": "scipy",
    "torchvision": "torchvision",
    "torch_geometric": "torch-geometric",
    "fsspec": "fsspec",
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    "psutil": "psutil",
    "requests": "requests",
    "urllib3": "urllib3",
    "idna": "idna",
    "certifi": "certifi",
    "charset_normalizer": "charset-normalizer",
    "xxhash": "xxhash",
    "pytest": "pytest",
    "iniconfig": "iniconfig",
    "pluggy": "pluggy",
    "packaging": "packaging",
    "pygments": "pygments",
    "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis",
    "sortedcontainers": "sortedcontainers",
}

# Run by the interpreter that will build and test. Prints one line of JSON.
_ASK = """
import importlib.metadata, importlib.util, json, sys
found = {"python": sys.version.split()[0], "versions": {}, "missing": []}
for module, distribution in json.loads(sys.argv[1]).items():
    if importlib.util.find_spec(module) is None:
        found["missing"].append(distribution)
        continue
    try:
        found["versions"][distribution] = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        found["versions"][distribution] = None
try:
    import torch
except ImportError as error:
    found["torch_error"] = str(error)
else:
    found["torch"], found["torch_cuda"] = torch.__version__, torch.version.cuda
    found["gpus"] = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found["gpus"].append({
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_mib": properties.total_memory / 2**20,
        })
    if found["gpus"]:
        torch.ones(8, device="cuda").sum().item()  # one that is listed may still not work
print(json.dumps(found))
"""


class StageError(Exception):
    """Why a stage failed, in a sentence."""


@dataclass
class Run:
    """What stages share."""

    args: argparse.Namespace
    environment: dict[str, str]
    deadline: float  # of time.monotonic
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Output:
    """The log of a stage's commands and what it found."""

    log: str = ""
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Raises `StageError` or `subprocess.TimeoutExpired` where it fails."""

    name: str
    limit: float  # seconds, for all of its commands
    run: Callable[[Run, Output, float], None]  # up to a point of time.monotonic
    needs: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    args = _arguments(arguments)
    stages = [stage for stage in STAGES if _wanted(stage, args)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "MAX_JOBS": str(os.cpu_count() or 1)}
    site = WORK / "site"
    paths = [str(ROOT / "python"), str(ROOT), *([str(site)] if args.wheels else [])]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    run = Run(args, environment, time.monotonic() + args.seconds)
    WORK.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "passed": False,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "seconds": 0.0,
        "facts": run.facts,
        "stages": {stage.name: {"outcome": "not reached"} for stage in stages},
    }
    begin = time.monotonic()
    for stage in stages:
        _write(args.out, report)
        result = _perform(stage, run, report["stages"])
        report["stages"][stage.name] = result
        reason = f": {result['reason']}" if "reason" in result else ""
        seconds = result.get("seconds", 0.0)
        print(f"{stage.name:>14}  {result['outcome']:<9} {seconds:6.1f} s{reason}", flush=True)
        report["seconds"] = time.monotonic() - begin
    report["passed"] = all(one["outcome"] == "passed" for one in report["stages"].values())
    _write(args.out, report)
    print(f"{'passed' if report['passed'] else 'FAILED'}; wrote {args.out}")
    return 0 if report["passed"] else 1


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), metavar="FILE")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="of packages to install")
    parser.add_argument("--skip-build", action="store_true", help="use what was built before")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[stage.name for stage in STAGES],
        metavar="STAGE",
        help="besides facts",
    )
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for everything")
    args = parser.parse_args(arguments)
    if args.wheels is not None and not args.wheels.is_dir():
        parser.error(f"--wheels must be a folder, got {args.wheels}")
    return args


def _wanted(stage: Stage, args: argparse.Namespace) -> bool:
    if stage.name == "facts":
        return True
    if stage.name == "install" and args.wheels is None:
        return False
    if stage.name == "build" and args.skip_build:
        return False
    return args.only is None or stage.name in args.only


def _perform(stage: Stage, run: Run, before: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The stage's entry of the JSON."""
    failed = [
        name for name in stage.needs if before.get(name, {}).get("outcome", "passed") != "passed"
    ]
    if failed:
        return {"outcome": "skipped", "reason": f"{' and '.join(failed)} did not pass"}
    begin = time.monotonic()
    limit = min(stage.limit, run.deadline - begin)
    if limit < 1:
        return {"outcome": "skipped", "reason": "no time is left"}
    output = Output()
    result: dict[str, Any] = {"outcome": "passed"}
    try:
        stage.run(run, output, begin + limit)
    except StageError as error:
        result = {"outcome": "failed", "reason": str(error)}
    except subprocess.TimeoutExpired:
        result = {"outcome": "timed out", "reason": f"its limit was {limit:.0f} s"}
    except Exception as error:  # the next stages and the JSON do not depend on it
        result = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
    result["seconds"] = time.monotonic() - begin
    result["log"] = output.log[-LOG_CHARACTERS:]
    return {**result, **output.found}


def _write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=2))
    part.replace(path)


def _commit() -> str | None:
    try:
        return _capture("git", "-C", str(ROOT), "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _capture(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return result.stdout.strip()


def _execute(run: Run, output: Output, until: float, *command: str, **more: str) -> str:
    """What a command printed, which goes to the log too. Kills all its processes at the limit."""
    environment = {**run.environment, **more}
    shown = ["..." if "\n" in argument else argument for argument in command]
    output.log += f"$ {shlex.join(shown)}\n"
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session, made above
            printed, _ = process.communicate()
            output.log += printed
            raise
    output.log += printed
    if process.returncode:
        raise StageError(f"{shlex.join(shown[1:3])} ended with {process.returncode}")
    return printed


# --- the stages -----------------------------------------------------------------------------------


def _facts(run: Run, output: Output, until: float) -> None:
    facts = run.facts
    facts["machine"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts["cores"] = os.cpu_count()
    for name, command in (
        ("nvcc", (_nvcc(), "--version")),
        ("c++", (os.environ.get("CXX", "c++"), "--version")),
        (
            "nvidia_smi",
            (
                "nvidia-smi",
                "--query-gpu=name,driver_version,clocks.max.sm,power.limit",
                "--format=csv,noheader",
            ),
        ),
    ):
        try:
            facts[name] = _capture(*command)
        except (OSError, subprocess.SubprocessError) as error:
            facts[name] = f"not usable: {type(error).__name__}"
    facts |= _ask(run, output, until)
    run.facts = facts
    if "torch_error" in facts:
        raise StageError(f"torch cannot be imported: {facts['torch_error']}")
    if not facts["gpus"]:
        raise StageError(
            f"there is no GPU: torch {facts['torch']} (CUDA {facts['torch_cuda'] or 'none'}) sees "
            "no CUDA device"
        )
    if facts["missing"] and run.args.wheels is None:
        raise StageError(f"missing, name a folder by --wheels: {' '.join(facts['missing'])}")


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or str(Path(home) / "bin" / "nvcc")


def _ask(run: Run, output: Output, until: float) -> dict[str, Any]:
    """What Python sees of packages and GPUs."""
    printed = _execute(run, output, until, sys.executable, "-c", _ASK, json.dumps(REQUIREMENTS))
    lines = [line for line in printed.splitlines() if line.startswith("{")]  # warnings apart
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _install(run: Run, output: Output, until: float) -> None:
    missing = run.facts["missing"]
    if not missing:
        return
    site = WORK / "site"
    shutil.rmtree(site, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile")
    wheels = ("--find-links", str(run.args.wheels.resolve()), "--target", str(site))
    _execute(run, output, until, *pip, *wheels, *missing)
    run.facts |= _ask(run, output, until)
    if run.facts["missing"]:
        raise StageError(f"still missing: {' '.join(run.facts['missing'])}")


def _build(run: Run, output: Output, until: float) -> None:
    capability = run.facts["gpus"][0]["capability"]
    _execute(
        run,
        output,
        until,
        sys.executable,
        "setup.py",
        "build_ext",
        "--inplace",
        GROUPEDMIXER_CUDA="1",
        TORCH_CUDA_ARCH_LIST=capability,
    )
    _execute(run, output, until, sys.executable, "-m", "groupedmixer_ext.info")


def _tests(run: Run, output: Output, until: float) -> None:
    """Equality with the CPU, graphs, streams, sizes in turn, files of either device."""
    limit = str(int(max(until - time.monotonic() - 5, 1)))
    options = ("-m", "gpu", "-q", "--timeout", limit, "-p", "no:cacheprovider")
    junit = WORK / "tests.xml"
    junit.unlink(missing_ok=True)
    try:
        _execute(
            run, output, until, sys.executable, "-m", "pytest", *options, f"--junitxml={junit}"
        )
    finally:
        output.found["counts"] = _counts(junit)
    if not output.found["counts"].get("passed"):
        raise StageError("no test ran")


def _counts(junit: Path) -> dict[str, int]:
    """Tests by outcome, of pytest's report; empty if there is none."""
    try:
        suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return {}
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    counts["passed"] = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return counts


def _benchmark(program: str, *options: str) -> Callable[[Run, Output, float], None]:
    """A stage that runs a program of this folder and keeps its JSON."""

    def stage(run: Run, output: Output, until: float) -> None:
        path = WORK / "figures.json"
        path.unlink(missing_ok=True)
        script = str(Path(__file__).with_name(program))
        _execute(run, output, until, sys.executable, script, *options, "--json", str(path))
        output.found["figures"] = json.loads(path.read_text())

    return stage


def _sizes(run: Run, output: Output, until: float) -> None:
    """Ours from 768x512 to 3840x2160."""
    output.found["figures"] = {}
    for config in ("rt", "base"):
        for width, height in ((768, 512), (1920, 1080), (3840, 2160)):
            options = ("--config", config, "--width", str(width), "--height", str(height))
            one = Output()
            try:
                _coding_speed(*options, "--repeats", "5")(run, one, until)
            finally:
                output.log += one.log
            output.found["figures"][f"{config} {width}x{height}"] = one.found["figures"]


def _coding_speed(*options: str) -> Callable[[Run, Output, float], None]:
    return _benchmark("coding_speed.py", "--device", "cuda", *options)


_READY = ("facts", "install", "build")
STAGES = (
    Stage("facts", 60, _facts),
    Stage("install", 60, _install, ("facts",)),
    Stage("build", 240, _build, ("facts", "install")),
    Stage("tests", 150, _tests, _READY),
    Stage("rt", 60, _coding_speed("--config", "rt"), _READY),
    Stage(
        "base",
        90,
        _coding_speed(
            "--config", "base", "--peers", "eager-cached", "eager-uncached", "--no-compile"
        ),
        _READY,
    ),
    Stage("kernels", 60, _benchmark("bench_gpu_kernels.py"), _READY),
    Stage(
        "rt-peers",
        60,
        _coding_speed("--repeats", "3", "--peers", "compressai-elic", "compressai-cheng2020"),
        _READY,
    ),
    Stage(
        "base-compiled", 150, _coding_speed("--config", "base", "--peers", "eager-cached"), _READY
    ),
    Stage("sizes", 120, _sizes, _READY),
)


if __name__ == "__main__":
    sys.exit(main())
