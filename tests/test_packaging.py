# SPDX-License-Identifier: MIT
"""What is shipped: wheel, source distribution, type stubs of the native modules.

The wheel of the fast tests holds the native modules that are installed, so that nothing is
compiled. A slow test compiles one from the unpacked source distribution.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from conftest import picture
from test_build import ROOT

import groupedmixer_ext
from groupedmixer_ext import _build_info

PACKAGE = Path(groupedmixer_ext.__file__).parent
VERSION = groupedmixer_ext.__version__

# Every file of a wheel matches one pattern, every pattern a file.
WHEEL = [
    r"groupedmixer/(\w+/)*\w+\.py",
    r"groupedmixer/py\.typed",
    r"groupedmixer/weights/README\.md",
    r"groupedmixer/weights/[\w.-]+\.safetensors",
    r"groupedmixer_ext/\w+\.py",
    r"groupedmixer_ext/_\w+\.pyi",
    r"groupedmixer_ext/py\.typed",
    r"groupedmixer_ext/_(C|rans|compressai|engine)\.[\w.-]+\.so",
    r"groupedmixer-[\w.]+\.dist-info/(METADATA|RECORD|WHEEL|top_level\.txt|entry_points\.txt)",
    r"groupedmixer-[\w.]+\.dist-info/licenses/LICENSE",
]
if _build_info.CUDA is not None:
    WHEEL.append(r"groupedmixer_ext/_engine_cuda\.[\w.-]+\.so")

# Of the repository, but of no source distribution.
NOT_SHIPPED = re.compile(r"\.gitignore")
# Of a source distribution, but of no repository.
GENERATED = re.compile(r"PKG-INFO|setup\.cfg|(python/)?groupedmixer\.egg-info/.*")


def run(command: Sequence[str | Path], folder: Path, **environ: str) -> str:
    """What a command prints. In `environ`, settings of its own."""
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def files() -> list[str]:
    """What is in the repository, or would be with the next ``git add``."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a clone: the files are those that git lists")
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def tree(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("tree")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", f"import build_backend as b; b.build_sdist({str(out)!r})"], tree)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by setup.py as always, but of native modules that have been compiled before."""
    out = tmp_path_factory.mktemp("wheel")
    (tree / "setup.cfg").write_text("[build]\nbuild_lib = built\n")
    try:
        run([sys.executable, "setup.py", "build_py", "--build-lib", "built"], tree)
        for path in [*PACKAGE.glob("_*.so"), PACKAGE / "_build_info.py"]:
            shutil.copy2(path, tree / "built" / "groupedmixer_ext")
        run([sys.executable, "setup.py", "bdist_wheel", "--skip-build", "--dist-dir", out], tree)
    finally:
        (tree / "setup.cfg").unlink()
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment elsewhere that has what we depend on, and us not. Gives its Python."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(
        run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)[:-1]
    )
    # Files .pth of a folder that a .pth file adds are not read: no editable installation of ours.
    here = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(here)))
    return python


def smoke(python: Path, wheel: Path, folder: Path) -> None:
    """Installs a wheel and uses it as its users do, far from the sources."""
    # The target of pip is the environment; its own Python has no pip.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run([*pip, "--no-deps", "--force-reinstall", wheel], folder)
    program = python.parent / "groupedmixer"
    assert run([program, "--version"], folder) == f"groupedmixer {VERSION}\n"
    found = run([python, "-c", "import groupedmixer as g; print(g.__file__)"], folder)
    assert Path(found.strip()).is_relative_to(python.parent.parent), found

    picture(60, 80).save(folder / "photo.png")
    run([program, "compress", "photo.png", "photo.gmx", "-q", "3"], folder)
    run([program, "decompress", "photo.gmx", "back.png"], folder)
    assert "80 x 60" in run([program, "info", "photo.gmx"], folder)
    program_text = """
import groupedmixer
from groupedmixer_ext import info
from PIL import Image
with Image.open("photo.gmx") as image, Image.open("back.png") as back:
    assert image.tobytes() == back.tobytes()
print(image.format, image.size)
info.main()
"""
    format_and_size, facts = run([python, "-c", program_text], folder).split("\n", 1)
    assert format_and_size == "GMX (80, 60)"
    assert "not usable" not in facts
    assert str(python.parent.parent) in facts  # where the coder was found


def test_contents_of_the_wheel(wheel: Path, files: list[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    unexpected = [name for name in names if not any(re.fullmatch(p, name) for p in WHEEL)]
    missing = [p for p in WHEEL if not any(re.fullmatch(p, name) for name in names)]
    assert (unexpected, missing) == ([], [])
    # Nothing is left behind: all of the packages' files but those that compiling makes.
    shipped = {
        name.removeprefix("python/")
        for name in files
        if name.startswith(("python/groupedmixer/", "groupedmixer_ext/"))
    }
    assert shipped <= set(names)
    made = {name for name in names if name.startswith("groupedmixer") and "dist-info" not in name}
    assert {Path(name).suffix for name in made - shipped} == {".so", ".py"}
    assert "groupedmixer_ext/_build_info.py" in made - shipped


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert re.fullmatch(rf"groupedmixer-{VERSION}-{tag}-{tag}-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        info = f"groupedmixer-{VERSION}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert f"\nVersion: {VERSION}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "groupedmixer = groupedmixer.cli:main" in entry_points


def test_the_wheel_works_elsewhere(wheel: Path, environment: Path, tmp_path: Path) -> None:
    smoke(environment, wheel, tmp_path)


def test_contents_of_the_source_distribution(sdist: Path, files: list[str]) -> None:
    top = f"groupedmixer-{VERSION}"
    with tarfile.open(sdist) as archive:
        names = {
            member.name.removeprefix(f"{top}/")
            for member in archive.getmembers()
            if member.isfile()
        }
    wanted = {name for name in files if not NOT_SHIPPED.fullmatch(name)}
    assert sorted(wanted - names) == []
    assert [name for name in sorted(names - wanted) if not GENERATED.fullmatch(name)] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_source_distribution_builds_and_works(
    sdist: Path, environment: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    # CUDA's kernels take most of the time, and test_cuda_build.py compiles them.
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    run([*pip, "--wheel-dir", "wheels", source], tmp_path, GROUPEDMIXER_CUDA="0")
    (built,) = (tmp_path / "wheels").iterdir()
    smoke(environment, built, tmp_path)


# --- stubs ----------------------------------------------------------------------------------------

STUBS = sorted(path.stem for path in PACKAGE.glob("_*.pyi"))


def native_modules() -> list[str]:
    """Those that can be imported; _C holds operators for torch and is loaded by it."""
    return sorted({path.name.split(".")[0] for path in PACKAGE.glob("_*.so")} - {"_C"})


def test_every_native_module_has_a_stub() -> None:
    assert {*native_modules(), "_build_info"} <= {*STUBS}
    assert {*STUBS} <= {*native_modules(), "_build_info", "_engine_cuda"}
    spec = importlib.util.find_spec("groupedmixer_ext._C")
    assert spec is not None and spec.origin is not None
    assert b"PyInit__C" not in Path(spec.origin).read_bytes()  # else it would need one


@pytest.mark.parametrize("name", STUBS)
def test_stubs_say_what_the_modules_have(name: str) -> None:
    if name == "_engine_cuda" and _build_info.CUDA is None:
        pytest.skip(f"built without CUDA: {_build_info.CUDA_REASON}")
    module = importlib.import_module(f"groupedmixer_ext.{name}")
    assert stub_facts(PACKAGE / f"{name}.pyi") == module_facts(module)


def stub_facts(path: Path) -> dict[str, object]:
    """The public names of a stub, with the methods of classes and their parameters."""
    facts: dict[str, object] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            facts[node.target.id] = "value"
        elif isinstance(node, ast.ClassDef):
            facts[node.name] = {
                item.name: "property" if item.decorator_list else [parameters(item.args)]
                for item in node.body
                if isinstance(item, ast.FunctionDef)
            }
    return {name: fact for name, fact in facts.items() if re.match(r"[A-Za-z]", name)}


def module_facts(module: ModuleType) -> dict[str, object]:
    """The same of a module as it is. pybind11 writes signatures into docstrings."""
    facts: dict[str, object] = {}
    for name, value in vars(module).items():
        if not re.match(r"[A-Za-z]", name):
            continue
        facts[name] = class_facts(value) if inspect.isclass(value) else "value"
    return facts


def class_facts(kind: type) -> dict[str, object]:
    if issubclass(kind, Exception):
        return {}
    facts: dict[str, object] = {}
    for name, value in vars(kind).items():
        if isinstance(value, property):
            facts[name] = "property"
        elif callable(value) and value.__doc__ and re.search(rf"\b{name}\(self: ", value.__doc__):
            signatures = re.findall(
                rf"^(?:\d+\. )?({name}\(self: .*)$", value.__doc__, re.MULTILINE
            )
            facts[name] = unique([parameters(arguments_of(text)) for text in signatures])
    return facts


def arguments_of(signature: str) -> ast.arguments:
    (function,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return function.args


def parameters(arguments: ast.arguments) -> tuple[list[str], list[str]]:
    """Names of the parameters behind self, and of those that are keywords only."""
    names = [one.arg for one in [*arguments.posonlyargs, *arguments.args]]
    return names[1:], [one.arg for one in arguments.kwonlyargs]


def unique(items: list[tuple[list[str], list[str]]]) -> list[tuple[list[str], list[str]]]:
    """Overloads that differ in types alone are one function in a stub."""
    return [item for i, item in enumerate(items) if item not in items[:i]]
