# SPDX-License-Identifier: MIT
"""The two attentions of a coding step against PyTorch's, and cache traffic against the machine.

    python benchmarks/bench_attention.py                       # base: 384 positions, d = 256
    python benchmarks/bench_attention.py --grids 32x32 --width 384 --threads 1 --json out.json

Window attention is one call on the grid of a group. Append attention is a whole tile: G steps,
each appending to the cache and attending to all steps so far, layer after layer with a cache of its
own, so that a layer finds its cache as cold as it is in the codec. Before anything is timed, every
result is compared with float64. Calls are taken in turns; ratios are of medians, and of bests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _eager import CROSS_KINDS, WINDOW_KINDS, attend, cross_by_product, make_windows
from _machine import MachinePeak, measure_peak
from _timing import environment, interleaved, iqr
from torch import Tensor

from groupedmixer.config import HEAD_DIM, WINDOW
from groupedmixer_ext import ops

# A weighted mean of values: float32 scores of size 10 are off by 1e-6, and exp passes that on.
TOLERANCE = 2e-5

Append = Callable[[int, int, Tensor], Tensor]  # (layer, step, qkv [T, 3d]) -> [T, d]


def main() -> int:
    args = _arguments()
    if not hasattr(ops, "append_attention"):
        sys.exit(
            "groupedmixer_ext.ops has no append_attention: run `pip install .` in the source tree"
        )
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        peak = None if args.no_peak else measure_peak(torch.get_num_threads())
    except RuntimeError as error:
        sys.exit(f"{error}\n--no-peak leaves the machine's peak out")
    facts = environment("cpu")
    if peak is not None:
        facts |= {"read_gbs": peak.read_gbs, "read_gbs_1": peak.read_gbs_1}
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    runs: list[dict[str, Any]] = []
    for h, w in args.grids:
        for shifted in (False, True):
            runs += _measure_windows(h, w, args.width, shifted, args.rounds)
        runs += _measure_append(h * w, args, peak)
    if args.json:
        Path(args.json).write_text(json.dumps({"environment": facts, "runs": runs}, indent=2))
        print(f"wrote {args.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--grids", type=_grid, nargs="+", default=[(16, 24), (32, 32)], metavar="HxW"
    )
    parser.add_argument("--width", type=int, default=256, help="d")
    parser.add_argument("--steps", type=int, default=40, help="G")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, help="default: PyTorch's, one per core")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each call")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-peak", action="store_true", help="do not measure the machine")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    for name in ("width", "steps", "layers", "threads", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if args.width % HEAD_DIM:
        parser.error(f"--width must be a multiple of {HEAD_DIM}, got {args.width}")
    return args


def _grid(text: str) -> tuple[int, int]:
    """A grid of the command line. ValueError, which argparse reports, if it is none."""
    h, w = (int(number) for number in text.split("x"))
    if min(h, w) < 1:
        raise ValueError(f"sides must be at least 1, got {text}")
    return h, w


def check(
    name: str,
    found: Tensor,  # [..., d]
    expected: Tensor,  # [..., d] float64
) -> None:
    """ValueError if a result is not the expected one within `TOLERANCE`."""
    error = (found.reshape(expected.shape).double() - expected).abs().max()
    if not error <= TOLERANCE:
        raise ValueError(f"{name} is wrong: off by {float(error):.2g}, allowed {TOLERANCE:g}")


# ---- window attention -----------------------------------------------------------------------


@torch.inference_mode()
def _measure_windows(
    h: int, w: int, width: int, shifted: bool, rounds: int
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    side, offset = 2 * WINDOW - 1, WINDOW // 2 if shifted else 0
    qkv = torch.randn(h * w, 3 * width, generator=generator)
    bias = torch.randn(width // HEAD_DIM, side * side, generator=generator)
    grid = qkv.view(h, w, -1)
    kinds = {kind: make_windows(kind, bias, offset, h, w) for kind in WINDOW_KINDS}
    ways: dict[str, Callable[[], Tensor]] = {
        "groupedmixer": lambda: ops.window_attention(grid, bias, shifted=shifted)
    }
    for kind, windows in kinds.items():
        ways[f"torch {kind}"] = partial(windows, qkv)
    expected = make_windows("cells-plain", bias.double(), offset, h, w)(qkv.double())
    for name, call in ways.items():
        check(name, call(), expected)
    samples = interleaved(ways, rounds)

    print(f"\nwindow attention, {h}x{w}, d={width}, {'shifted' if shifted else 'not shifted'}")
    print(f"{'op':>32} {'median us':>10} {'best us':>9} {'iqr':>7} {'x ours':>7} {'best':>7}")
    ours = samples["groupedmixer"]
    runs = []
    for name, values in samples.items():
        median, best = statistics.median(values), min(values)
        times_ours, best_times_ours = median / statistics.median(ours), best / min(ours)
        print(
            f"{name:>32} {1e3 * median:>10.1f} {1e3 * best:>9.1f} "
            f"{1e3 * iqr(values):>7.1f} {times_ours:>7.2f} {best_times_ours:>7.2f}"
        )
        runs.append(
            {
                "op": name,
                "kind": "window_attention",
                "h": h,
                "w": w,
                "width": width,
                "shifted": shifted,
                "threads": torch.get_num_threads(),
                "median_ms": median,
                "best_ms": best,
                "iqr_ms": iqr(values),
                "repeats": len(values),
                "times_ours": times_ours,
                "best_times_ours": best_times_ours,
            }
        )
    return runs


# ---- append attention -----------------------------------------------------------------------


def _ours(
    tokens: int,
    layers: int,
    bias: Tensor,  # [heads, G, G]
) -> Append:
    heads, capacity, _ = bias.shape
    caches = [ops.KVCache(tokens, heads, capacity) for _ in range(layers)]

    def append(layer: int, step: int, qkv: Tensor) -> Tensor:
        if not step:
            caches[layer].steps_done = 0  # every pass fills the same memory again
        return ops.append_attention(qkv, caches[layer], bias, step=step)

    return append


def torch_append(
    kind: str,
    tokens: int,
    layers: int,
    bias: Tensor,  # [heads, G, G]
    compiled: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Append:
    """PyTorch's append attention of one of `CROSS_KINDS`, over a cache allocated here.

    ``dtype`` is the cache's, for "sum"; the others need float32.

    "sum" keeps the steps outermost, where all positions of a step lie in one run; the others keep
    the keys of a position side by side, as matrix products want them.
    """
    heads, capacity, _ = bias.shape
    if kind == "sum":
        rows = bias.permute(1, 2, 0)[:, :, None].contiguous()  # [G, S, 1, heads]
        caches = torch.empty(layers, 2, capacity, tokens, heads * HEAD_DIM, dtype=dtype)
        by_product = torch.compile(cross_by_product) if compiled else cross_by_product

        def append_by_product(layer: int, step: int, qkv: Tensor) -> Tensor:
            (keys, values), (q, k, v) = caches[layer], qkv.chunk(3, dim=1)
            keys[step], values[step] = k, v
            end = step + 1
            # One step is its own answer; it would cost the compiler a variant of its own.
            if not step:
                return v.to(dtype).float()
            return by_product(q, keys[:end], values[:end], rows[step, :end])

        return append_by_product

    rows = bias.transpose(0, 1)[:, None, :, None].contiguous()  # [G, 1, heads, 1, S]
    caches = torch.empty(layers, 2, tokens, heads, capacity, HEAD_DIM)

    def append(layer: int, step: int, qkv: Tensor) -> Tensor:
        keys, values = caches[layer]
        q, k, v = qkv.view(tokens, 3, heads, HEAD_DIM).unbind(1)
        keys[:, :, step], values[:, :, step] = k, v
        end = step + 1
        out = attend(
            q.unsqueeze(2),
            keys[:, :, :end],
            values[:, :, :end],
            rows[step, ..., :end],
            kind == "sdpa",
        )
        return out.reshape(tokens, -1)

    return append


def expected_append(
    inputs: Tensor,  # [G, T, 3d]
    bias: Tensor,  # [heads, G, G]
    half: bool,
) -> Tensor:  # [G, T, d] float64
    """All steps at once under the causal mask; ``half`` rounds keys and values to binary16."""
    steps, tokens, _ = inputs.shape
    cut = inputs.double().view(steps, tokens, 3, -1, HEAD_DIM).permute(2, 1, 3, 0, 4)
    if half:
        cut = torch.stack([cut[0], *cut[1:].half().double()])
    future = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    masked = bias.double().masked_fill(future, float("-inf"))
    q, k, v = cut.unbind(0)
    out = attend(q, k, v, masked[None], False)  # [T, heads, G, 32]
    return out.permute(2, 0, 1, 3).flatten(2)


@torch.inference_mode()
def _measure_append(
    tokens: int, args: argparse.Namespace, peak: MachinePeak | None
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    steps, layers, width = args.steps, args.layers, args.width
    inputs = torch.randn(steps, tokens, 3 * width, generator=generator)
    bias = torch.randn(width // HEAD_DIM, steps, steps, generator=generator)
    ways = {"groupedmixer": _ours(tokens, layers, bias)}
    for kind in CROSS_KINDS:
        ways[f"torch {kind}"] = torch_append(kind, tokens, layers, bias)
    if not args.no_compile:
        ways["torch sum, compiled"] = torch_append("sum", tokens, layers, bias, True)
        # Ours keeps binary16: half the traffic for PyTorch too, where a compiler fuses the cast.
        ways["torch sum, compiled, half"] = torch_append(
            "sum", tokens, layers, bias, True, torch.float16
        )
    halves = {"groupedmixer", "torch sum, compiled, half"}
    expected = {half: expected_append(inputs, bias, half) for half in (False, True)}
    for name, call in ways.items():
        for layer in range(layers):
            found = torch.stack([call(layer, step, inputs[step]).clone() for step in range(steps)])
            check(name, found, expected[name in halves])

    samples: dict[str, list[list[float]]] = {name: [] for name in ways}  # [round][step] ms
    for _ in range(args.rounds):
        for name, call in ways.items():
            call(0, 0, inputs[0])
            samples[name].append([_step_ms(call, s, inputs[s], layers) for s in range(steps)])

    shown = sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
    print(f"\nappend attention, {tokens} positions, d={width}, {steps} steps; us a layer")
    columns = " ".join(f"{f'step {step}':>9}" for step in shown)
    print(
        f"{'op':>32} {columns} {'all steps':>10} {'iqr':>7} {'GB/s':>7} {'of peak':>8} "
        f"{'x ours':>6} {'best':>6}"
    )
    # Keys and values of all steps so far are read, those of this step written.
    elements = sum((step + 2) * tokens * 2 * width for step in range(steps))
    ours = [sum(values) for values in samples["groupedmixer"]]
    runs = []
    for name, rounds in samples.items():
        per_step = [statistics.median(values) for values in zip(*rounds, strict=True)]
        totals = [sum(values) for values in rounds]
        median = statistics.median(totals)
        times_ours, best_times_ours = median / statistics.median(ours), min(totals) / min(ours)
        traffic = elements * (2 if name in halves else 4)
        rate = 1e-6 * traffic / median
        share = None if peak is None else rate / peak.read_gbs
        cells = " ".join(f"{1e3 * per_step[step]:>9.1f}" for step in shown)
        print(
            f"{name:>32} {cells} {1e3 * median:>10.0f} {1e3 * iqr(totals):>7.0f} {rate:>7.2f} "
            f"{'' if share is None else f'{100 * share:.0f} %':>8} "
            f"{times_ours:>6.2f} {best_times_ours:>6.2f}"
        )
        runs.append(
            {
                "op": name,
                "kind": "append_attention",
                "tokens": tokens,
                "width": width,
                "steps": steps,
                "layers": layers,
                "threads": torch.get_num_threads(),
                "median_ms": median,  # of all steps, one layer
                "best_ms": min(totals),
                "iqr_ms": iqr(totals),
                "repeats": len(totals),
                "step_ms": per_step,
                "cache_bytes": traffic,
                "cache_gbs": rate,
                "share_of_peak": share,
                "times_ours": times_ours,
                "best_times_ours": best_times_ours,
            }
        )
    if peak is not None:
        print(
            f"read bandwidth measured from memory: {peak.read_gbs:.1f} GB/s; caches can give more"
        )
    return runs


def _step_ms(
    call: Append,
    step: int,
    qkv: Tensor,  # [T, 3d]
    layers: int,
) -> float:
    """Milliseconds of one step of one layer, the mean over the layers."""
    start = time.perf_counter()
    for layer in range(layers):
        call(layer, step, qkv)
    return 1e3 * (time.perf_counter() - start) / layers


if __name__ == "__main__":
    sys.exit(main())
