# SPDX-License-Identifier: MIT
"""The strict linear layer against the matrix products of PyTorch and NumPy, and the FMA peak.

    python benchmarks/bench_gemm.py
    python benchmarks/bench_gemm.py --threads 1 --shapes 384x256x1024 12x256x256 --json out.json

A shape is tokens x inputs x outputs. Each library computes x W^T + b in float32 in the layout it
is fastest with, weights laid out beforehand, into an array that is there already (but for torch
linear, which has no such form). Before anything is timed, every result is compared with a product
in float64.

Calls are taken in turns, and so is the peak: what neighbours on the same machine take away, they
take from all alike. Medians are held against the peak's median and our median, bests against bests.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _timing import environment, interleaved, iqr
from torch import Tensor

from groupedmixer_ext import ops

# rt, base and large; 12 and 64 tokens are small pictures
SHAPES = (
    (384, 256, 256),
    (384, 256, 768),
    (384, 256, 1024),
    (384, 1024, 256),
    (384, 128, 384),
    (384, 128, 512),
    (384, 384, 1536),
    (1536, 1728, 768),
    (64, 256, 1024),
    (12, 256, 256),
)

# NumPy's BLAS reads its number of threads when it is loaded, so it must be in the environment.
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")

# The multiply-adds of machine_peak.cpp for a few milliseconds, as one of the calls that take turns.
_PEAK_SOURCE = """
#define main machine_peak_main
#include "machine_peak.cpp"
extern "C" double fma_gflops_now(int threads) {
  constexpr long kSteps = 1000000;
  std::atomic<int> ready{0};
  std::vector<double> rates(threads);
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      Vector state[kSums + 2];
      for (Vector& v : state) v = Vector{} + 1.0f;
      state[kSums] = state[kSums + 1] = Vector{} + 0.5f;
      keep(state);
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      const auto start = Clock::now();
      multiply_add(kSteps, state);
      rates[t] = 2e-9 * kSums * kLanes * kSteps / seconds_since(start);
      keep(state);
    });
  }
  double sum = 0;
  for (int t = 0; t < threads; ++t) {
    running[t].join();
    sum += rates[t];
  }
  return sum;
}
"""

Peak = Callable[[], float]  # GFLOP/s of multiply-adds over all threads, now


def main() -> int:
    args = _arguments()
    threads = args.threads or torch.get_num_threads()
    if any(os.environ.get(name) != str(threads) for name in _BLAS_THREADS):
        os.environ.update(dict.fromkeys(_BLAS_THREADS, str(threads)))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if not hasattr(ops, "linear"):
        sys.exit("groupedmixer_ext.ops has no linear: run `pip install .` in the source tree")
    torch.set_num_threads(threads)
    try:
        peak = None if args.no_peak else compile_peak(threads)
    except RuntimeError as error:
        sys.exit(f"{error}\n--no-peak leaves the machine's peak out")

    facts = environment("cpu")
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    print(f"{'':>39} {'us':^26} {'of FMA peak':^13} {'x ours':^13}")
    print(
        f"{'tokens x K x N':>16} {'op':>22} {'median':>8} {'p10':>8} {'best':>8} "
        f"{'median':>6} {'best':>6} {'median':>6} {'best':>6} {'GFLOP/s':>8}"
    )
    runs = []
    for shape in args.shapes:
        runs += _measure(shape, args.rounds, threads, peak)
    if args.json:
        Path(args.json).write_text(json.dumps({"environment": facts, "runs": runs}, indent=2))
        print(f"wrote {args.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=_shape, nargs="+", default=SHAPES, metavar="TOKENSxKxN")
    parser.add_argument("--threads", type=int, help="default: PyTorch's, one per core")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each call")
    parser.add_argument("--no-peak", action="store_true", help="do not measure the machine")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    for name in ("threads", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return args


def _shape(text: str) -> tuple[int, int, int]:
    """A shape of the command line. ValueError, which argparse reports, if it is none."""
    tokens, inputs, outputs = (int(number) for number in text.split("x"))
    if min(tokens, inputs, outputs) < 1:
        raise ValueError(f"sizes must be at least 1, got {text}")
    return tokens, inputs, outputs


def compile_peak(threads: int) -> Peak:
    """RuntimeError if there is no C++ compiler (``$CXX``, ``c++``), or it fails."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError(
            "measuring the machine's peak needs a C++ compiler: install g++ or clang, or name one "
            "in CXX"
        )
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        flags = ("-O3", "-march=native", "-std=gnu++17", "-pthread", "-shared", "-fPIC", "-w")
        source = ("-x", "c++", f"-I{Path(__file__).parent}", "-")
        result = subprocess.run(
            [*compiler.split(), *flags, *source, "-o", str(library)],
            input=_PEAK_SOURCE,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{compiler} failed:\n{result.stderr.strip()}")
        measure = ctypes.CDLL(str(library)).fma_gflops_now
    measure.restype = ctypes.c_double
    return lambda: float(measure(threads))


def calls(
    x: Tensor,  # [T, K] float32
    weight: Tensor,  # [N, K] float32
    bias: Tensor,  # [N] float32
) -> dict[str, Callable[[], Any]]:
    """Every way to compute x W^T + b; each call gives an array [T, N]."""
    packed = ops.pack_weight(weight)
    turned = weight.T.contiguous()
    out = torch.empty(len(x), len(weight))
    x_np, weight_np, turned_np, bias_np = x.numpy(), weight.numpy(), turned.numpy(), bias.numpy()
    out_np = np.empty((len(x), len(weight)), np.float32)

    def numpy_product(columns: Any) -> Any:
        np.matmul(x_np, columns, out=out_np)
        np.add(out_np, bias_np, out=out_np)
        return out_np

    return {
        "groupedmixer": lambda: ops.linear(x, packed, bias, out=out),
        "torch linear": lambda: F.linear(x, weight, bias),
        "torch addmm [K, N]": lambda: torch.addmm(bias, x, turned, out=out),
        "torch mm, no bias": lambda: torch.mm(x, turned, out=out),
        "numpy [N, K]": lambda: numpy_product(weight_np.T),
        "numpy [K, N]": lambda: numpy_product(turned_np),
    }


def check(
    name: str,
    found: Any,  # [T, N]
    x: Tensor,  # [T, K]
    weight: Tensor,  # [N, K]
    bias: Tensor,  # [N]
) -> None:
    """Compares a result with float64. ValueError beyond what any order of summation may give.

    That is (K + 1) 2^-24 times the sum of absolute products: each of K + 1 additions (or
    multiply-adds) errs by 2^-24 of its result at most.
    """
    found = torch.as_tensor(found).double()
    wide, columns, offset = x.double(), weight.double().T, bias.double()
    if "no bias" in name:
        offset = torch.zeros_like(offset)
    bound = (len(columns) + 2) * 2.0**-24 * (wide.abs() @ columns.abs() + offset.abs())
    excess = ((found - wide @ columns - offset).abs() - bound).max()
    if not excess <= 0:
        raise ValueError(f"{name} is wrong: {float(excess):.2g} beyond the error bound")


@torch.inference_mode()
def _measure(
    shape: tuple[int, int, int], rounds: int, threads: int, peak: Peak | None
) -> list[dict[str, Any]]:
    tokens, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    bias = torch.randn(outputs, generator=generator)
    ways = calls(x, weight, bias)
    for name, call in ways.items():
        check(name, call(), x, weight, bias)
    operations = 2e-6 * tokens * inputs * outputs  # rates are per millisecond: GFLOP/s
    peaks: list[float] = []
    if peak is None:
        samples = interleaved(ways, rounds)
    else:
        samples = interleaved({**ways, "peak": lambda: peaks.append(peak())}, rounds)
        del samples["peak"]
    ours = samples["groupedmixer"]
    runs = []
    for name, values in samples.items():
        median, best = statistics.median(values), min(values)
        run = {
            "op": name,
            "tokens": tokens,
            "inputs": inputs,
            "outputs": outputs,
            "threads": threads,
            "median_ms": median,
            "p10_ms": statistics.quantiles(values, n=10, method="inclusive")[0],
            "best_ms": best,
            "iqr_ms": iqr(values),
            "repeats": len(values),
            "gflops": operations / median,
            "peak_gflops": statistics.median(peaks) if peaks else None,
            "best_peak_gflops": max(peaks, default=None),
            "share_of_peak": operations / median / statistics.median(peaks) if peaks else None,
            "best_share_of_peak": operations / best / max(peaks) if peaks else None,
            "times_ours": median / statistics.median(ours),
            "best_times_ours": best / min(ours),
        }
        runs.append(run)
        shares = (run["share_of_peak"], run["best_share_of_peak"])
        cells = " ".join(f"{'' if share is None else f'{share:.0%}':>6}" for share in shares)
        print(
            f"{f'{tokens}x{inputs}x{outputs}':>16} {name:>22} {1e3 * median:>8.1f} "
            f"{1e3 * run['p10_ms']:>8.1f} {1e3 * best:>8.1f} {cells} "
            f"{run['times_ours']:>6.2f} {run['best_times_ours']:>6.2f} {run['gflops']:>8.1f}"
        )
    if peaks:
        print(
            f"{f'{tokens}x{inputs}x{outputs}':>16} {'FMA peak':>22} GFLOP/s: "
            f"median {statistics.median(peaks):.1f}, best {max(peaks):.1f}"
        )
    return runs


if __name__ == "__main__":
    sys.exit(main())
