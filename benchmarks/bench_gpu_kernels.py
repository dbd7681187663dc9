# SPDX-License-Identifier: MIT
"""Kernels of the engine on a GPU: the strict linear layer, and where the time of a decode goes.

    python benchmarks/bench_gpu_kernels.py
    python benchmarks/bench_gpu_kernels.py --shapes 384x256x1024 --configs rt --json kernels.json

linear   x W^T + b of tokens x inputs x outputs, ours and PyTorch's in float32 and in TF32. Each is
         compared with a product in float64 first. Twenty calls are one CUDA graph, which events
         time; figures are for one call.
kernels  One graph replay of a decode, by PyTorch's profiler: time by kernel, and for the coder's
         kernel million symbols of y a second, which is how fast a picture's groups are decoded one
         after the other (its dequantisation and the skipped symbols included).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _device import elapsed_ms, engine_report, require_gpu, synchronize
from _models import make_subject
from _pictures import photo
from _timing import environment, iqr
from torch import Tensor

from groupedmixer import CONFIGS, get_config
from groupedmixer.tiles import latent_size
from groupedmixer_ext import ops

SHAPES = ((384, 256, 768), (384, 256, 1024), (384, 1024, 256), (384, 128, 512))
CALLS = 20  # in a graph
CODER = "rans_group_decode_kernel"


def main() -> int:
    args = _arguments()
    require_gpu()
    facts = environment("cuda")
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    linear = [run for shape in args.shapes for run in measure_linear(shape, args.rounds)]
    decodes = [profile_decode(name, args.height, args.width) for name in args.configs]
    if args.json is not None:
        found = {"environment": facts, "linear": linear, "decodes": decodes}
        args.json.write_text(json.dumps(found, indent=2))
        print(f"wrote {args.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=_shape, nargs="*", default=SHAPES, metavar="TOKENSxKxN")
    parser.add_argument("--configs", nargs="*", choices=CONFIGS, default=["rt", "base"])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each call")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    for name in ("height", "width", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def _shape(text: str) -> tuple[int, int, int]:
    """A shape of the command line. ValueError, which argparse reports, if it is none."""
    tokens, inputs, outputs = (int(number) for number in text.split("x"))
    if min(tokens, inputs, outputs) < 1:
        raise ValueError(f"sizes must be at least 1, got {text}")
    return tokens, inputs, outputs


def linear_calls(
    x: Tensor,  # [T, K] float32
    weight: Tensor,  # [N, K] float32
    bias: Tensor,  # [N] float32
) -> dict[str, Callable[[], Tensor]]:
    """Every way to compute x W^T + b; each call gives [T, N]."""
    packed = ops.pack_weight(weight)
    out = x.new_empty(len(x), len(weight))

    def in_tf32() -> Tensor:
        torch.set_float32_matmul_precision("high")
        try:
            return F.linear(x, weight, bias)
        finally:
            torch.set_float32_matmul_precision("highest")

    return {
        "groupedmixer": lambda: ops.linear(x, packed, bias, out=out),
        "torch float32": lambda: F.linear(x, weight, bias),
        "torch tf32": in_tf32,
    }


def check(
    name: str,
    found: Tensor,  # [T, N]
    x: Tensor,  # [T, K]
    weight: Tensor,  # [N, K]
    bias: Tensor,  # [N]
) -> None:
    """Compares with float64. ValueError beyond what any order of summation may give.

    Each of K + 1 additions errs by 2^-24 of its result at most. TF32 keeps 10 bits of its factors'
    fractions: each errs by 2^-10 at most, even if cut towards zero, and their product by 2^-9.
    """
    wide, columns = x.double(), weight.double().T
    sums = wide.abs() @ columns.abs() + bias.double().abs()
    unit = (len(columns) + 2) * 2.0**-24 + (2.0**-9 if "tf32" in name else 0)
    excess = ((found.double() - wide @ columns - bias.double()).abs() - unit * sums).max()
    if not excess <= 0:
        raise ValueError(f"{name} is wrong: {float(excess):.2g} beyond the error bound")


@torch.inference_mode()
def measure_linear(shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Rows for each way, which are also printed."""
    tokens, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, inputs, generator=generator).cuda()
    weight = (torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).cuda()
    bias = torch.randn(outputs, generator=generator).cuda()
    ways = linear_calls(x, weight, bias)
    graphs = {}
    for name, call in ways.items():
        check(name, call(), x, weight, bias)
        graphs[name] = _captured(call)
    samples: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for name, graph in graphs.items():
            milliseconds = elapsed_ms(graph.replay, "cuda") / CALLS
            if turn:  # the first is a warm-up
                samples[name].append(milliseconds)
    runs = []
    for name, values in samples.items():
        median = statistics.median(values)
        run = {
            "op": name,
            "tokens": tokens,
            "inputs": inputs,
            "outputs": outputs,
            "median_ms": median,
            "iqr_ms": iqr(values),
            "repeats": len(values),
            "gflops": 2e-6 * tokens * inputs * outputs / median,
            "times_ours": median / statistics.median(samples["groupedmixer"]),
        }
        runs.append(run)
        print(
            f"{f'{tokens}x{inputs}x{outputs}':>16} {name:>14} {1e3 * median:>8.2f} us "
            f"{run['gflops']:>9.0f} GFLOP/s {run['times_ours']:>6.2f} x ours"
        )
    return runs


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`CALLS` of a call that has run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph


def profile_decode(name: str, height: int, width: int) -> dict[str, Any]:
    """Time by kernel of a warm decode, and the coder's rate."""
    config, picture = get_config(name), photo(height, width)
    codec = make_subject(config, picture, "cuda").codec
    data = codec.compress(picture)
    for _ in range(4):
        codec.decompress(data)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        codec.decompress(data)
        synchronize("cuda")
    if not engine_report(codec)["graph_nodes"]:
        sys.exit(f"{name}: the call that was profiled did not replay a CUDA graph")
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[short_name(event.name)].append(event.time_range.elapsed_us())
    kernels = [
        {"kernel": kernel, "calls": len(spent), "us": sum(spent)}
        for kernel, spent in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    rows, columns = latent_size(height, width, *config.patch)
    num_symbols = rows * columns * config.latent_channels
    coder_us = sum(found.get(CODER, []))
    rate = num_symbols / coder_us if coder_us else None
    print(f"{name} decode, {width}x{height}, {num_symbols} symbols of y: kernels by time")
    for row in kernels[:20]:
        print(f"    {row['us']:>10.1f} us {row['calls']:>6} calls  {row['kernel']}")
    print(f"    coder: {'not seen' if rate is None else f'{rate:.1f} Msym/s'}")
    return {
        "config": name,
        "height": height,
        "width": width,
        "num_symbols": num_symbols,
        "kernels": kernels,
        "rans_decode_msym_s": rate,
    }


def short_name(kernel: str) -> str:
    """A kernel's name without its type, namespaces and arguments; template arguments stay.

    >>> short_name("void groupedmixer::(anonymous namespace)::f<4, Row>(Params)")
    'f<4, Row>'
    """
    name = kernel.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\((?:int|bool|long|unsigned int)\)", "", name)  # of template arguments
    name = re.sub(r"(?:\w+::)+", "", name)
    return name.split("(")[0].strip() or kernel


if __name__ == "__main__":
    sys.exit(main())
