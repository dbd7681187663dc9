# SPDX-License-Identifier: MIT
"""The examples run by the text of their README, and the guide's code blocks in their order."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import picture

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
COMMANDS = [
    shlex.split(line)[1:]
    for line in (EXAMPLES / "README.md").read_text().splitlines()
    if line.startswith("    python ")
]
SCRIPTS = [command[0] for command in COMMANDS]
TRUE_LINES = {  # how often a script says of something that must hold that it does
    "your_own_codec.py": 3,
    "convert_weights.py": 2,
    "only_the_kernels.py": 1,
    "only_the_coder.py": 2,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, the examples within reach, and one thread."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.set_num_threads(1)  # tensors are small
    yield tmp_path
    torch.set_num_threads(threads)


def run_here(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in this process: each of its own would import PyTorch again."""
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(EXAMPLES / command[0]), run_name="__main__")


def check_output(script: str, text: str) -> None:
    assert ": False" not in text
    assert len(re.findall(": True$", text, re.MULTILINE)) == TRUE_LINES[script], text


def test_readme_has_a_command_for_every_example() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"example_pictures.py"}
    assert sorted(SCRIPTS) == sorted(scripts) == sorted(TRUE_LINES)


def test_commands_in_short(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's commands one after another, with two steps of training in place of minutes."""
    for command in COMMANDS:
        trains = any(option in command for option in ("--minutes", "--steps"))
        run_here([*command, "--steps", "2"] if trains else command, monkeypatch)
        check_output(command[0], capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_to_the_letter(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    for command in COMMANDS:
        result = subprocess.run(
            [sys.executable, str(EXAMPLES / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        check_output(command[0], result.stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(
    script: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit:
        run_here([script, "--help"], monkeypatch)
    assert exit.value.code == 0
    assert f"usage: {script}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [["your_own_codec.py", "--steps", "1"], ["only_the_kernels.py", "--steps", "1"]]
    + [["only_the_coder.py"]],
)
def test_given_pictures(
    command: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = folder / "data"
    data.mkdir()
    picture(150, 140).save(data / "large.png")
    picture(20, 140).save(data / "too-small.png")
    run_here([*command, "--data", str(data)], monkeypatch)
    check_output(command[0], capsys.readouterr().out)
    (data / "large.png").unlink()
    with pytest.raises(ValueError, match="must hold a picture of at least"):
        run_here([*command, "--data", str(data)], monkeypatch)


def test_converted_weights_load_without_pytorch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_engine`, taken out of its script into a process without PyTorch and our model."""
    run_here(["your_own_codec.py", "--steps", "1"], monkeypatch)
    run_here(["convert_weights.py", "my-codec.pth.tar", "out.safetensors"], monkeypatch)
    source = (EXAMPLES / "convert_weights.py").read_text()
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "load_engine"
    )
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'compressai', 'groupedmixer')))\n"
        "import json\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from safetensors import safe_open\n"
        "from groupedmixer_ext.engine import Engine, Settings, TableArrays\n"
        f"{ast.unparse(function)}\n"
        "engine = load_engine(Path('out.safetensors'))\n"
        "settings = [Settings(1024, 3, 64)]\n"
        "y = np.full((1, 4, 6, 48), 2.5, np.float32)\n"
        "(coded,), y_hat, _ = engine.encode(y, settings, threads=1)\n"
        "decoded, _ = engine.decode([coded.tiles], (4, 6), settings, threads=1)\n"
        "print(np.array_equal(decoded, y_hat))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.split() == ["True"], result.stderr


def test_code_of_the_guide(folder: Path) -> None:
    """Every code block of docs/your-own-codec.md, in one namespace."""
    path = ROOT / "docs" / "your-own-codec.md"
    text = path.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python") >= 8
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "guide"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block[1], str(path), "exec")  # errors name the page's line
        exec(code, namespace)
