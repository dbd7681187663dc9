# SPDX-License-Identifier: MIT
"""Committed files decode to committed hashes, and are made again to the byte, on every machine.

Round trips would not notice a change that encoder and decoder share; files that people have would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import golden_cases
import numpy as np
import pytest
import spec_decoder
import torch
from golden import make

from groupedmixer_ext import ops

GOLDENS = json.loads(golden_cases.GOLDENS.read_text())
AVAILABLE = [isa for isa in ops.ISAS if ops.isa_available(isa)]


@cache
def measured_under(isa: str) -> Mapping[str, object]:
    """All measurements in a process that runs the variant."""
    command = [sys.executable, "-W", "ignore", golden_cases.__file__]
    environment = {**os.environ, "GROUPEDMIXER_ISA": isa}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set_is_really_tested(isa: str) -> None:
    assert measured_under(isa)["isa"] == isa


@pytest.mark.parametrize("number", range(len(golden_cases.PASSES)))
@pytest.mark.parametrize("isa", AVAILABLE)
def test_bytes_latents_and_pixels_are_the_golden_ones(isa: str, number: int) -> None:
    """With 1 thread; with 2 and subnormal numbers flushed; with 3 and rounding upwards."""
    passes = measured_under(isa)["passes"]
    assert isinstance(passes, list) and len(passes) == len(golden_cases.PASSES)
    latents_left_out = passes[number].keys() < GOLDENS["values"].keys()
    assert not latents_left_out or (isa == "scalar" and number > 0)
    assert passes[number] == {name: GOLDENS["values"][name] for name in passes[number]}


@pytest.mark.parametrize("name", [case.name for case in golden_cases.PICTURES])
def test_an_independent_decoder_agrees(name: str) -> None:
    """Written from docs/ alone: the goldens are what is specified, not just what was once coded."""
    data = (golden_cases.GOLDEN / f"{name}.gmx").read_bytes()
    decoded = spec_decoder.decode(data, golden_cases.WEIGHTS)
    y_hat = torch.from_numpy(np.ascontiguousarray(decoded.latent.transpose(2, 0, 1)[None]))
    assert golden_cases.latent_hash(y_hat) == GOLDENS["values"][name]["latent"]
    pixels = decoded.pixels
    if decoded.alpha is not None:
        pixels = np.dstack([pixels, decoded.alpha])
    assert golden_cases.sha256(pixels.tobytes()) == GOLDENS["values"][name]["pixels"]


@pytest.mark.parametrize("name", [case.name for case in golden_cases.PICTURES])
def test_what_is_encoded_is_the_file_and_regions_make_the_whole(name: str) -> None:
    """The goldens themselves are consistent."""
    values = GOLDENS["values"][name]
    assert values["encoded"] == values["file"]
    assert values["joined regions"] == values["pixels"]


@pytest.mark.parametrize("name", [case.config for case in golden_cases.LATENTS])
def test_the_decoded_latent_is_the_encoders(name: str) -> None:
    values = GOLDENS["values"][name]
    assert values["decoded"] == values["y_hat"]


def test_goldens_are_of_this_arithmetic_and_format() -> None:
    """Whoever changes either has to make goldens of their own, and keeps the old ones readable."""
    assert GOLDENS["identity"] == golden_cases.identity()


def test_goldens_are_not_overwritten_under_the_same_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Changed bytes need a changed arithmetic id or container version."""
    path = tmp_path / "goldens.json"
    monkeypatch.setattr(golden_cases, "GOLDEN", tmp_path)
    monkeypatch.setattr(golden_cases, "GOLDENS", path)
    monkeypatch.setattr(golden_cases, "measure", lambda _: [{"measured": "anew"}])
    path.write_text(json.dumps({"identity": golden_cases.identity(), "values": "old"}))
    with pytest.raises(SystemExit, match="need another arithmetic id or container version"):
        make.main([])
    assert json.loads(path.read_text())["values"] == "old"
    assert list(tmp_path.iterdir()) == [path]

    for key, other in (("arithmetic", "f32-older"), ("container version", -1)):
        older = {**golden_cases.identity(), key: other}
        path.write_text(json.dumps({"identity": older, "values": "old"}))
        make.main([])
        assert json.loads(path.read_text())["values"] == {"measured": "anew"}
        assert json.loads(path.read_text())["identity"] == golden_cases.identity()


def test_goldens_are_small() -> None:
    files = [path for path in golden_cases.GOLDEN.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 500_000
