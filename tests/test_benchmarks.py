# SPDX-License-Identifier: MIT
"""The benchmark's promises: keys that tools read, a verified round trip, sensible refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "coding_speed.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_coding_speed_writes_what_tools_read(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ("--config", "tiny", "--height", "64", "--width", "96", "--repeats", "2")
    result = run(*options, "--threads", "1", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert "RANDOM weights" in result.stdout
    found = json.loads(path.read_text())
    assert {"cpu", "threads", "torch", "isa"} <= set(found["environment"])
    stages = {"transform", "hyper", "entropy_model", "rans", "file", "total"}
    for direction in ("encode", "decode"):
        runs = {run["stage"]: run for run in found["runs"] if run["direction"] == direction}
        assert set(runs) == stages
        for measured in runs.values():
            assert measured["system"] == "groupedmixer"
            assert measured["config"] == "tiny"
            assert (measured["height"], measured["width"]) == (64, 96)
            assert (measured["device"], measured["threads"]) == ("cpu", 1)
            assert measured["repeats"] == 2
            assert measured["median_ms"] > 0
            assert measured["iqr_ms"] >= 0
            assert 0.5 <= measured["bits_per_symbol"] <= 2
        parts = sum(runs[stage]["median_ms"] for stage in stages - {"total"})
        assert 0.5 * runs["total"]["median_ms"] < parts < 1.5 * runs["total"]["median_ms"]


def test_bad_arguments_are_usage_errors(tmp_path: Path) -> None:
    for arguments in (("--quality", "9"), ("--threads", "-1"), ("--images", str(tmp_path / "x"))):
        result = run(*arguments)
        assert result.returncode == 2
        assert arguments[0] in result.stderr.splitlines()[-1]
