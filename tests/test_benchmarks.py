# SPDX-License-Identifier: MIT
"""The benchmarks' promises: keys that tools read, results verified before timing, refusals."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import groupedmixer
from groupedmixer.images import as_picture
from groupedmixer_ext import ops

FOLDER = Path(__file__).parents[1] / "benchmarks"
RUN_KEYS = {
    "system",
    "config",
    "height",
    "width",
    "device",
    "threads",
    "direction",
    "stage",
    "median_ms",
    "iqr_ms",
    "repeats",
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A module of the benchmarks, which are scripts and no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


SMALL = ("--config", "tiny", "--height", "64", "--width", "96", "--threads", "1")


def test_coding_speed_writes_what_tools_read(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = run("coding_speed.py", *SMALL, "--repeats", "2", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert "RANDOM weights" in result.stdout
    found = json.loads(path.read_text())
    assert {"cpu", "threads", "torch", "isa"} <= set(found["environment"])
    stages = {"transform", "hyper", "entropy_model", "rans", "file", "total"}
    for direction in ("encode", "decode"):
        runs = {run["stage"]: run for run in found["runs"] if run["direction"] == direction}
        assert set(runs) == stages
        for measured in runs.values():
            assert set(measured) >= RUN_KEYS
            assert measured["system"] == "groupedmixer"
            assert measured["config"] == "tiny"
            assert (measured["height"], measured["width"]) == (64, 96)
            assert (measured["device"], measured["threads"]) == ("cpu", 1)
            assert measured["repeats"] == 2
            assert measured["median_ms"] > 0
            assert measured["iqr_ms"] >= 0
            assert 0.5 <= measured["bits_per_symbol"] <= 2
        parts = sum(runs[stage]["median_ms"] for stage in stages - {"total"})
        total = runs["total"]["median_ms"]
        assert parts < 1.5 * total
        assert total - parts < 0.5 * total + 2  # a call's own cost, which a tiny picture shows


def test_bad_arguments_are_usage_errors(tmp_path: Path) -> None:
    for arguments in (
        ("--quality", "9"),
        ("--threads", "-1"),
        ("--images", str(tmp_path / "x")),
        ("--peers", "nobody"),
    ):
        result = run("coding_speed.py", *arguments)
        assert result.returncode == 2
        assert arguments[0] in result.stderr.splitlines()[-1]


def test_eager_peers_are_reported_beside_ours(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    peers = ("--peers", "eager-cached", "eager-uncached", "--no-compile")
    result = run("coding_speed.py", *SMALL, "--repeats", "1", *peers, "--json", str(path))
    assert result.returncode == 0, result.stderr
    runs = json.loads(path.read_text())["runs"]
    assert all(set(run) >= RUN_KEYS for run in runs)
    of_peers = [run for run in runs if run["system"] != "groupedmixer"]
    assert {(run["system"], run["direction"], run["stage"]) for run in of_peers} == {
        (system, direction, "entropy_model")  # and no total that was not measured
        for system in ("eager-cached", "eager-uncached")
        for direction in ("encode", "decode")
    }
    for measured in of_peers:
        assert measured["median_ms"] > 0
        assert measured["times_ours"] > 0
        assert measured["error_of_means"] <= 2e-4
    assert "x ours" in result.stdout


@pytest.mark.slow
def test_compressai_peers_are_reported_beside_ours(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    peers = ("--peers", "compressai-elic", "compressai-cheng2020")
    result = run("coding_speed.py", *SMALL, "--repeats", "1", *peers, "--json", str(path))
    assert result.returncode == 0, result.stderr
    runs = json.loads(path.read_text())["runs"]
    for system in peers[1:]:
        found = [run for run in runs if run["system"] == system]
        assert {run["stage"] for run in found} == {"transform", "entropy", "total"}
        assert all(set(run) >= RUN_KEYS for run in found)
        assert all(0.5 <= run["bits_per_symbol"] <= 3 for run in found)


# ---- on a GPU -----------------------------------------------------------------------------------

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@no_gpu
@pytest.mark.parametrize(
    "command", [("coding_speed.py", *SMALL, "--device", "cuda"), ("bench_gpu_kernels.py",)]
)
def test_a_missing_gpu_is_one_sentence(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = run(*command, "--json", str(path))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("a GPU is needed: ")
    assert "Traceback" not in result.stderr
    assert not path.exists()


class NoGraph:
    """`_eager.CapturedCached` without a GPU."""

    def __init__(self, coder: Any) -> None:
        self.variant, self.code = coder.variant, coder.code


class NoStream:
    """A CUDA graph and its streams without a GPU: replays change nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: contextlib.nullcontext()


def test_a_captured_peer_reads_and_writes_tensors_of_its_own(
    monkeypatch: pytest.MonkeyPatch, model: groupedmixer.GroupedMixer
) -> None:
    eager = load(monkeypatch, "_eager")
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, NoStream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, NoStream().anything)
    context, thresholds = model.latent_codec.context, model.latent_codec.thresholds
    (inputs,) = eager.prepare(model, torch.rand(1, 3, 64, 96), 3.3, 64)
    arguments = (context, thresholds, 3, inputs.h, inputs.w)
    plain = eager.make_cached(*arguments, eager.Variant("cells-plain", "sum"))
    captured = eager.make_cached(*arguments, eager.Variant("cells-plain", "sum", captured=True))
    expected = plain.code(inputs, inputs.y)
    for targets in (inputs.y, expected.symbols):  # a graph of its own for each
        found = captured.code(inputs, targets)
        assert all(map(torch.equal, found, expected))
    other = inputs._replace(y=inputs.y + 1, psi=inputs.psi + 1, level=inputs.level + 1)
    captured.code(other, other.y)
    recorded = captured._recorded[torch.float32]
    assert torch.equal(recorded.inputs.psi, other.psi)
    assert torch.equal(recorded.inputs.level, other.level)
    assert torch.equal(recorded.targets, other.y)
    found = captured.code(inputs, inputs.y)
    with torch.inference_mode():
        recorded.coded.y_hat.zero_()  # as a later replay may
    assert found.y_hat.any()


class FakeGpu:
    """What coding_speed.py asks of a GPU, on the CPU. The graph appears with the third call."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.speed = load(patch, "coding_speed")
        eager, peers = load(patch, "_eager"), load(patch, "_peers")
        models, timing = load(patch, "_models"), load(patch, "_timing")
        self.nodes = 99
        on_cpu = {
            "require_gpu": lambda: None,
            "used_mib": lambda: 7.0,
            "engine_report": lambda codec: {"graph_nodes": self.nodes, "scratch_bytes": 5 << 20},
            "environment": lambda device: timing.environment("cpu"),
            "make_subject": lambda config, picture, device, random: models.make_subject(
                config, picture, "cpu", random
            ),
            "make_contenders": lambda *arguments: peers.make_contenders(*arguments[:-1], "cpu"),
            "DeviceStages": self.speed.Stages,
        }
        for name, value in on_cpu.items():
            patch.setattr(self.speed, name, value)
        for module in (eager, peers):
            patch.setattr(module, "on_gpu", lambda device: True)
        patch.setattr(eager, "CapturedCached", NoGraph)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def test_coding_speed_on_a_gpu_writes_what_tools_read(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    options = ("--device", "cuda", "--repeats", "1", "--json", str(path), "--no-compile")
    peers = ("--peers", "eager-cached", "eager-uncached")
    monkeypatch.setattr(sys, "argv", ["coding_speed.py", *SMALL, *options, *peers])
    assert fake_gpu.speed.main() == 0
    runs = json.loads(path.read_text())["runs"]
    assert all(set(run) >= RUN_KEYS and run["device"] == "cuda" for run in runs)
    ours = [run for run in runs if run["system"] == "groupedmixer"]
    assert {run["stage"] for run in ours} == set(fake_gpu.speed.STAGES)
    for measured in ours:
        assert measured["first_call_ms"] > 0
        assert measured["second_call_ms"] > 0
        assert measured["graph_nodes"] == 99
        assert measured["graph_nodes_per_group"] == 99 / 8
        assert measured["scratch_bytes"] == 5 << 20
        assert measured["gpu_used_mib"] == 0
    (cached,) = {run["variant"]: run for run in runs if run["system"] == "eager-cached"}.values()
    tried = cached["tried_ms"]
    assert cached["variant"] in tried
    # both precisions, windows then cross attention; the winner in plain calls and in float32
    assert sum(", tf32, CUDA graph" in variant for variant in tried) == 6
    assert sum(", bf16, CUDA graph" in variant for variant in tried) == 6
    assert sum("CUDA graph" not in variant for variant in tried) == 1
    assert sum("tf32" not in variant and "bf16" not in variant for variant in tried) == 1
    (uncached,) = {run["variant"] for run in runs if run["system"] == "eager-uncached"}
    assert uncached == "no cache, tf32"


def test_calls_without_a_graph_are_no_figures(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu.nodes = 0
    options = ["--device", "cuda", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["coding_speed.py", *SMALL, *options])
    with pytest.raises(SystemExit, match="did not replay a CUDA graph"):
        fake_gpu.speed.main()


def test_a_variant_that_a_gpu_refuses_is_reported(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, model: groupedmixer.GroupedMixer
) -> None:
    eager = load(monkeypatch, "_eager")
    right = eager.attend

    def refuse(q: Any, k: Any, v: Any, bias: Any, fused: bool) -> Any:
        if fused:
            raise RuntimeError("no kernel\nat all")
        return right(q, k, v, bias, fused)

    monkeypatch.setattr(eager, "attend", refuse)
    context, thresholds = model.latent_codec.context, model.latent_codec.thresholds
    (inputs,) = eager.prepare(model, torch.rand(1, 3, 64, 96), 3.3, 64)
    tuned = eager.tune(context, thresholds, 3, inputs, False)
    assert set(tuned.failed.values()) == {"no kernel"}
    assert all("sdpa" in variant for variant in tuned.failed)
    assert len(tuned.tried) + len(tuned.failed) == 14
    monkeypatch.setattr(eager, "on_gpu", lambda device: False)
    with pytest.raises(RuntimeError, match="no kernel"):
        eager.tune(context, thresholds, 3, inputs, False)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_less_than_float32_is_held_against_training_in_the_same(
    monkeypatch: pytest.MonkeyPatch, model: groupedmixer.GroupedMixer, precision: str
) -> None:
    eager = load(monkeypatch, "_eager")
    context, thresholds = model.latent_codec.context, model.latent_codec.thresholds
    (inputs,) = eager.prepare(model, torch.rand(1, 3, 64, 96), 3.3, 64)
    for windows, cross in zip(eager.WINDOW_KINDS, (*eager.CROSS_KINDS, "sum"), strict=True):
        variant = eager.Variant(windows, cross, precision=precision)
        coder = eager.EagerCached(context, thresholds, 3, inputs.h, inputs.w, variant)
        coded = coder.code(inputs, inputs.y)
        arguments = (context, inputs, coded.y_hat, coded.means, 3.3)
        error = eager.check_against_training_form(*arguments, precision)
        assert torch.equal(coder.code(inputs, coded.symbols).y_hat, coded.y_hat)
        with pytest.raises(ValueError, match="training form"):
            wrong = coded.means + 0.2
            eager.check_against_training_form(*arguments[:3], wrong, 3.3, precision)
        if precision == "bf16":
            assert error > eager.TOLERANCE  # so that it is bfloat16
            with pytest.raises(ValueError, match="training form"):
                eager.check_against_training_form(*arguments)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_wrong_product_of_a_gpu_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load(monkeypatch, "bench_gpu_kernels")
    x, weight, bias = torch.randn(5, 64), torch.randn(7, 64), torch.randn(7)
    for name, call in bench.linear_calls(x, weight, bias).items():
        bench.check(name, call(), x, weight, bias)
    right = torch.nn.functional.linear(x, weight, bias)
    bench.check("torch tf32", right + 1e-3, x, weight, bias)
    for name, error in (("groupedmixer", 1e-3), ("torch tf32", 0.5)):
        with pytest.raises(ValueError, match="wrong"):
            bench.check(name, right + error, x, weight, bias)


def test_names_of_kernels_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    short_name = load(monkeypatch, "bench_gpu_kernels").short_name
    names = {
        "void groupedmixer::strict::(anonymous namespace)::linear<(int)4, a::Row>(a::P, long)": (
            "linear<4, Row>"
        ),
        "groupedmixer::entropy::rans_group_decode_kernel(groupedmixer::entropy::Params)": (
            "rans_group_decode_kernel"
        ),
        "Memset (Device)": "Memset",
    }
    assert {name: short_name(name) for name in names} == names
    coder = load(monkeypatch, "bench_gpu_kernels").CODER
    source = FOLDER.parent / "csrc" / "entropy" / "rans_cuda.cu"
    assert f" {coder}(" in source.read_text()


@no_gpu
def test_gpu_check_without_a_gpu_says_so(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    command = ["bash", str(FOLDER / "gpu_check.sh"), "--skip-build", "--out", str(path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert result.returncode == 1
    report = json.loads(path.read_text())
    assert report["passed"] is False
    stages = report["stages"]
    assert stages["facts"]["outcome"] == "failed"
    assert "there is no GPU" in stages["facts"]["reason"]
    assert {"tests", "rt", "base", "kernels"} < set(stages)
    assert "build" not in stages
    assert {stages[name]["outcome"] for name in stages if name != "facts"} == {"skipped"}
    assert report["facts"]["torch"] == torch.__version__


def test_gpu_check_reports_every_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = load(monkeypatch, "gpu_check")
    monkeypatch.setattr(check, "WORK", tmp_path / "work")

    def python(code: str) -> Any:
        def stage(run: Any, output: Any, until: float) -> None:
            check._execute(run, output, until, sys.executable, "-S", "-c", code)
            output.found["figures"] = 3

        return stage

    sleeps = "import subprocess, sys; print('on', flush=True); subprocess.run(['sleep', '60'])"
    stages = {
        "facts": check.Stage("facts", 30, python("print('fine')")),
        "late": check.Stage("late", 1.5, python(sleeps), ("facts",)),
        "wrong": check.Stage("wrong", 30, python("import sys; sys.exit(5)"), ("facts",)),
        "after": check.Stage("after", 30, python("pass"), ("facts", "wrong")),
        "last": check.Stage("last", 30, python("pass"), ("facts",)),
    }
    path = tmp_path / "check.json"

    def perform(*names: str, options: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(check, "STAGES", tuple(stages[name] for name in names))
        code = check.main(["--out", str(path), *options])
        return code, json.loads(path.read_text())

    code, report = perform(*stages)
    assert code == 1
    found = report["stages"]
    assert {name: found[name]["outcome"] for name in stages} == {
        "facts": "passed",
        "late": "timed out",
        "wrong": "failed",
        "after": "skipped",
        "last": "passed",
    }
    assert "on" in found["late"]["log"] and found["late"]["seconds"] < 10
    assert "ended with 5" in found["wrong"]["reason"]
    assert found["last"]["figures"] == 3
    assert "fine" in found["facts"]["log"]
    code, report = perform("facts", "last")
    assert (code, report["passed"]) == (0, True)
    code, report = perform("facts", "last", options=("--seconds", "0"))
    assert (code, report["stages"]["last"]["outcome"]) == (1, "skipped")


def test_gpu_check_counts_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = load(monkeypatch, "gpu_check")
    path = tmp_path / "tests.xml"
    assert check._counts(path) == {}
    path.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>'
    )
    assert check._counts(path)["passed"] == 3


@pytest.fixture
def model() -> groupedmixer.GroupedMixer:
    """With every parameter of the entropy model in use, latent residual prediction included."""
    torch.manual_seed(0)
    model = groupedmixer.GroupedMixer(groupedmixer.get_config("tiny")).eval()
    with torch.no_grad():
        for parameter in model.latent_codec.context.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("size", [(64, 96), (208, 304), (32, 32)])
def test_every_eager_variant_computes_the_training_form(
    monkeypatch: pytest.MonkeyPatch, model: groupedmixer.GroupedMixer, size: tuple[int, int]
) -> None:
    eager = load(monkeypatch, "_eager")
    context, thresholds = model.latent_codec.context, model.latent_codec.thresholds
    (inputs,) = eager.prepare(model, torch.rand(1, 3, *size), 3.3, 64)
    for windows in eager.WINDOW_KINDS:
        for cross in eager.CROSS_KINDS:
            variant = eager.Variant(windows, cross)
            coder = eager.EagerCached(context, thresholds, 3, inputs.h, inputs.w, variant)
            coded = coder.code(inputs, inputs.y)
            eager.check_against_training_form(context, inputs, coded.y_hat, coded.means, 3.3)
            assert torch.equal(coder.code(inputs, coded.symbols).y_hat, coded.y_hat)
    uncached = eager.EagerUncached(context, thresholds, 3, inputs.h, inputs.w)
    for step in range(context.config.num_groups):
        symbols, mean = uncached.step(step, inputs, coded.y_hat, inputs.y[step])
        torch.testing.assert_close(mean, coded.means[step], atol=1e-4, rtol=1e-4)
        assert (symbols != coded.symbols[step]).float().mean() < 0.01


def test_a_wrong_eager_peer_is_caught(
    monkeypatch: pytest.MonkeyPatch, model: groupedmixer.GroupedMixer
) -> None:
    peers, models = load(monkeypatch, "_peers"), load(monkeypatch, "_models")
    eager = load(monkeypatch, "_eager")
    picture = as_picture(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    subject = models.Subject(codec=None, model=model, random=True)
    right = eager.attend

    def wrong(q: Any, k: Any, v: Any, bias: Any, fused: bool) -> Any:
        return right(q, k, v.flip(-1), bias, fused)

    def wrong_too(q: Any, keys: Any, values: Any, bias: Any) -> Any:
        return values[-1]

    monkeypatch.setattr(eager, "attend", wrong)
    monkeypatch.setattr(eager, "cross_by_product", wrong_too)
    for name in ("eager-cached", "eager-uncached"):
        with pytest.raises(ValueError, match="training form"):
            peers.make_contenders([name], subject, picture, 4.0, 64, 3, 1, False)


def test_a_wrong_compressai_peer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    compressai_peers = load(monkeypatch, "_compressai_peers")
    peer = compressai_peers.cheng2020_peer(torch.rand(1, 3, 64, 64))
    rates = peer.verify()
    assert 0.5 <= rates["bits_per_symbol"] <= 3
    encode = peer._encode

    def damaged() -> None:
        encode()
        (string,) = peer._coded["strings"][0]
        peer._coded["strings"][0] = [bytes(byte ^ 0x55 for byte in string[:8]) + string[8:]]

    monkeypatch.setattr(peer, "_encode", damaged)
    with pytest.raises(ValueError, match="does not decode what it coded"):
        peer.verify()


def test_interpolation_says_what_a_full_run_would(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = load(monkeypatch, "_peers")
    assert peers.interpolated_sum([0, 2, 3], [1.0, 3.0, 5.0]) == 1 + 2 + 3 + 5
    line = [2.0 + 0.5 * step for step in range(40)]
    steps = [0, 6, 11, 20, 39]
    assert math.isclose(peers.interpolated_sum(steps, [line[step] for step in steps]), sum(line))


needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler"
)


@needs_compiler
def test_machine_peak_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = load(monkeypatch, "_machine").measure_peak(threads=1, buffer_mib=64)
    assert peak.threads == 1
    assert 1 < peak.fma_gflops < 1e4
    assert 0.1 < peak.read_gbs < 1e4


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = load(monkeypatch, "_machine")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler"):
        machine.measure_peak(1)


@pytest.mark.skipif(not hasattr(ops, "linear"), reason="no ops.linear in this build")
def test_bench_gemm_writes_what_tools_read(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ("--shapes", "12x64x48", "--rounds", "1", "--threads", "1", "--no-peak")
    result = run("bench_gemm.py", *options, "--json", str(path))
    assert result.returncode == 0, result.stderr
    runs = json.loads(path.read_text())["runs"]
    assert runs[0]["op"] == "groupedmixer"
    assert {"median_ms", "best_ms", "iqr_ms", "repeats", "gflops", "times_ours"} <= set(runs[0])


def test_a_wrong_product_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    gemm = load(monkeypatch, "bench_gemm")
    x, weight, bias = torch.randn(5, 64), torch.randn(7, 64), torch.randn(7)
    right = torch.nn.functional.linear(x, weight, bias)
    gemm.check("right", right, x, weight, bias)
    with pytest.raises(ValueError, match="wrong"):
        gemm.check("wrong", right + 1e-3, x, weight, bias)


@pytest.mark.skipif(not hasattr(ops, "append_attention"), reason="no attention in this build")
def test_bench_attention_writes_what_tools_read(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ("--grids", "5x6", "--width", "64", "--steps", "3", "--layers", "2")
    rest = ("--rounds", "1", "--threads", "1", "--no-peak", "--no-compile", "--json", str(path))
    result = run("bench_attention.py", *options, *rest)
    assert result.returncode == 0, result.stderr
    runs = json.loads(path.read_text())["runs"]
    assert {run["kind"] for run in runs} == {"window_attention", "append_attention"}
    assert all(run["times_ours"] > 0 for run in runs)


def test_bench_accelerate_writes_what_tools_read(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ("--models", "mbt2018-mean", "--height", "64", "--width", "64", "--threads", "1")
    rest = ("--rounds", "1", "--total-rounds", "1", "--json", str(path))
    result = run("bench_accelerate.py", *options, *rest)
    assert result.returncode == 0, result.stderr
    runs = json.loads(path.read_text())["runs"]
    assert {run["format"] for run in runs} == {"None", "compressai", "groupedmixer"}
    assert {(run["direction"], run["part"]) for run in runs} == {
        (direction, part) for direction in ("encode", "decode") for part in ("entropy", "total")
    }
    assert all(run["times_faster"] > 0 and run["bytes"] > 0 for run in runs)


def test_wrong_strings_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load(monkeypatch, "bench_accelerate")
    x = torch.rand(1, 3, 64, 64)
    model = bench.mean_scale_model(x)
    with torch.no_grad():
        subjects = {str(format): bench.Subject(model, format, x) for format in bench.FORMATS}
    bench.check(subjects)
    with pytest.raises(ValueError, match="format compressai is wrong"):
        bench.check({**subjects, "compressai": subjects["groupedmixer"]})


@pytest.mark.parametrize("kind", ["matmul", "sdpa", "sum"])
def test_torch_attention_of_the_benchmark_is_right(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    attention = load(monkeypatch, "bench_attention")
    inputs, bias = torch.randn(4, 6, 3 * 64), torch.randn(2, 4, 4)
    append = attention.torch_append(kind, 6, 1, bias)
    found = torch.stack([append(0, step, inputs[step]).clone() for step in range(4)])
    expected = attention.expected_append(inputs, bias, half=False)
    attention.check(kind, found, expected)
    with pytest.raises(ValueError, match="wrong"):
        attention.check(kind, found.roll(1, 0), expected)


@pytest.mark.parametrize("isas", ["this", pytest.param("all", marks=pytest.mark.slow)])
def test_bench_rans_writes_what_tools_read(tmp_path: Path, isas: str) -> None:
    path = tmp_path / "out.json"
    options = ("--inputs", "lognormal", "--symbols", "5000", "--threads", "2", "--rounds", "1")
    coders = ("--coders", "groupedmixer", "compressai", "compressai-from-tensors")
    only = ("--this-isa-only",) if isas == "this" else ()
    result = run("bench_rans.py", *options, *only, *coders, "--json", str(path))
    assert result.returncode == 0, result.stderr
    found = json.loads(path.read_text())
    assert {"cpu", "threads", "libraries"} <= set(found["environment"])
    runs = found["runs"]
    expected = {ops.active_isa()} if only else set(filter(ops.isa_available, ops.ISAS))
    assert {(run["coder"], run["isa"], run["threads"]) for run in runs} == {
        *(("groupedmixer", isa, threads) for isa in expected for threads in (1, 2)),
        ("compressai", None, 1),
        ("compressai-from-tensors", None, 1),
    }
    for measured in runs:
        assert measured["input"] == "lognormal"
        assert measured["encode_msym_s"] > 0 and measured["decode_msym_s"] > 0
        assert measured["encode_best_msym_s"] >= measured["encode_msym_s"]
        assert 0.99 < measured["bytes"] / measured["ideal_bytes"] < 1.05
    sizes = {(run["threads"], run["bytes"]) for run in runs if run["coder"] == "groupedmixer"}
    assert len(sizes) == 2  # the bytes do not depend on the instruction set


@pytest.mark.parametrize("coder", ["constriction", "constriction-range", "constriction-by-table"])
def test_peers_of_the_coder_near_their_ideal(monkeypatch: pytest.MonkeyPatch, coder: str) -> None:
    pytest.importorskip("constriction")
    peers, bench = load(monkeypatch, "_rans_peers"), load(monkeypatch, "bench_rans")
    (contender,) = peers.make_contenders([coder], bench._lognormal(20_000), 1)
    assert 1 <= 8 * contender.num_bytes / contender.ideal_bits < 1.01


def test_a_wrong_coder_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    peers, bench = load(monkeypatch, "_rans_peers"), load(monkeypatch, "bench_rans")
    data = bench._lognormal(1000)
    monkeypatch.setattr(peers.rans, "decode", lambda *_: np.zeros(1000, np.int16))
    for threads in (1, 2):
        with pytest.raises(ValueError, match="groupedmixer does not decode what it coded"):
            peers._groupedmixer(data, threads)


def test_coded_size_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    coded_size, symbols = load(monkeypatch, "coded_size"), load(monkeypatch, "_symbols")
    model = groupedmixer.load_model("rt")
    picture = load(monkeypatch, "_pictures").photo(128, 192)
    tables = model.latent_codec.y_tables.build()
    found = symbols.latent_symbols(model, picture, 4.0)
    row = coded_size.measure(found, tables, coded_size.ExpectedLoss(tables))
    parts = sum(row[part] for part in coded_size.PARTS)
    assert math.isclose(8 * row["bytes"], row["model_bits"] + parts)
    # states and header, and what is left of each lane's last word
    assert 32 * row["lanes"] + 16 - 17 * row["lanes"] <= row["flush"] <= 49 * row["lanes"] + 64
    assert 0 < row["expected"] < 0.003 * row["model_bits"]
    with torch.no_grad():
        x = torch.from_numpy(picture.rgb).permute(2, 0, 1)[None].float() / 255
        likelihoods = model(x, 4.0)["likelihoods"]["y"].double()
    assert math.isclose(-likelihoods.log2().sum(), row["model_bits"], rel_tol=1e-4)


def test_cost_curves_write_a_table(tmp_path: Path) -> None:
    table, path = tmp_path / "cost.md", tmp_path / "cost.json"
    options = ("--configs", "tiny", "--sizes", "48x32", "--groups", "--repeats", "1")
    result = run(
        "cost_curves.py", *options, "--threads", "1", "--table", str(table), "--json", str(path)
    )
    assert result.returncode == 0, result.stderr
    assert "| tiny | 8 | 48x32 |" in table.read_text()
    (measured,) = json.loads(path.read_text())["runs"]
    assert (measured["width"], measured["height"], measured["groups"]) == (48, 32, 8)
    assert measured["encode_ms"] > 0
    assert measured["decode_ms"] > 0


def test_groups_vary_at_the_same_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = load(monkeypatch, "cost_curves")
    for count in curves.GROUPINGS:
        config = curves.with_groups(count)
        assert config.num_groups == count
        assert config.latent_channels == groupedmixer.get_config("base").latent_channels
