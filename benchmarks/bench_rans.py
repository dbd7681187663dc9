# SPDX-License-Identifier: MIT
"""The rANS coder against compressai's, constriction's and torch_ans's, in million symbols a second.

    python benchmarks/bench_rans.py --kodak pictures/kodak
    python benchmarks/bench_rans.py --inputs lognormal --coders groupedmixer compressai

Two inputs, for 64 tables of Gaussians (sigma 0.11 to 64, log-spaced):

lognormal   491,520 symbols, as many as a 768x512 picture has with 320 channels. NumPy's default
            generator, seed 0: ln sigma is normal with mean 0 and deviation 1, cut to 0.11 .. 64;
            the symbol is a Gaussian of that sigma, rounded; the index is of the nearest table.
kodak       y of the first Kodak picture (kodim01), coded with the bundled weights at quality 4:
            the symbols that are in the stream (skipped ones are left out, as only our coder knows
            them), in its order, with its indexes.

_rans_peers.py says how each coder is called. The times of all are for symbols in memory to bytes
and back. Every coder decodes its own bytes before anything is timed; calls are taken in turns.
*ideal* is the cross-entropy of the symbols under these tables' float model: the Gaussians of the
tables, or of each symbol's sigma where the coder takes that. The first line of an input has the
cross-entropy under each symbol's own Gaussian. Ratios are to `compressai` of the same process,
whose lists are prepared beforehand: medians to medians, bests to bests. On a busy machine medians
favour the faster coder, whose short calls are interrupted less often; bests do not.

"All threads" for our coder means as many streams, each of a contiguous part of the symbols, and
the bytes of all. Other instruction sets run in processes of their own (GROUPEDMIXER_ISA is read
once), in turns with compressai there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _rans_peers import CODERS, Contender, Symbols, make_contenders, versions
from _symbols import add_kodak_option, latent_symbols
from _timing import environment, interleaved

import groupedmixer
from groupedmixer.coding import SKIP_BELOW
from groupedmixer.entropy import NUM_SCALES, SCALE_MAX, SCALE_MIN
from groupedmixer.images import load_picture
from groupedmixer_ext import ops

LOGNORMAL_SYMBOLS = 491_520
QUALITY = 4.0
_BASELINE = "compressai"


def main() -> int:
    args = _arguments()
    facts = environment("cpu")
    found = versions(args.coders)
    missing = [name for name, version in found.items() if version is None]
    if missing:
        print(f"left out, as they are not installed: {', '.join(missing)}")
    coders = [name for name in args.coders if name.split("-")[0] not in missing]
    facts["threads"], facts["libraries"] = args.threads, found
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    print(
        f"{'input':>9} {'coder':>24} {'isa':>7} {'thr':>3} "
        f"{'encode Msym/s':^29} {'decode Msym/s':^29} {'bytes':>9} {'ideal':>10} {'over':>7}"
    )
    print(f"{'':>46} " + f"{'median':>7} {'ratio':>6} {'best':>7} {'ratio':>6} " * 2)
    runs = []
    for name in args.inputs:
        data = _lognormal(args.symbols) if name == "lognormal" else _kodak(args.kodak)
        exact = data.exact_bits() / 8
        print(f"{name:>9} {data.symbols.size} symbols, exactly {exact:.1f} bytes", flush=True)
        runs += _measure(make_contenders(coders, data, args.threads), data, args.rounds)
    if not args.this_isa_only:
        for isa in ops.ISAS:
            if ops.isa_available(isa) and isa != ops.active_isa():
                runs += _measure_elsewhere(isa, args)
    if args.json:
        Path(args.json).write_text(json.dumps({"runs": runs, "environment": facts}, indent=2))
        print(f"wrote {args.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_kodak_option(parser)
    parser.add_argument(
        "--inputs",
        nargs="+",
        choices=("lognormal", "kodak"),
        help="default: lognormal, and kodak where --kodak is known",
    )
    parser.add_argument("--coders", nargs="+", choices=CODERS, default=list(CODERS))
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        help="beside one; default: all there are",
    )
    parser.add_argument("--rounds", type=int, default=10, help="turns of each call")
    parser.add_argument(
        "--symbols", type=int, default=LOGNORMAL_SYMBOLS, help="of the lognormal input"
    )
    parser.add_argument("--this-isa-only", action="store_true", help="no other instruction sets")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    args.threads = args.threads or os.cpu_count() or 1
    for name in ("threads", "rounds", "symbols"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.inputs is None:
        args.inputs = ["lognormal"] if args.kodak is None else ["lognormal", "kodak"]
    if "kodak" in args.inputs and (args.kodak is None or not any(args.kodak.glob("*.png"))):
        parser.error(f"--kodak must be a folder of .png pictures, got {args.kodak}")
    return args


def _lognormal(count: int) -> Symbols:
    random = np.random.default_rng(0)
    logs = np.clip(random.normal(0, 1, count), math.log(SCALE_MIN), math.log(SCALE_MAX))
    sigmas = np.exp(logs)
    symbols = np.rint(random.normal(0, sigmas)).astype(np.int16)
    step = math.log(SCALE_MAX / SCALE_MIN) / (NUM_SCALES - 1)
    indexes = np.rint((logs - math.log(SCALE_MIN)) / step).astype(np.uint8)
    return Symbols("lognormal", symbols, indexes, sigmas)


def _kodak(folder: Path) -> Symbols:
    picture = load_picture(min(folder.glob("*.png")))
    found = latent_symbols(groupedmixer.load_model("rt"), picture, QUALITY)
    coded = found.indexes >= SKIP_BELOW
    return Symbols("kodak", found.symbols[coded], found.indexes[coded], found.sigmas[coded])


def _measure(contenders: list[Contender], data: Symbols, rounds: int) -> list[dict[str, Any]]:
    """A row for each contender, which is also printed."""
    calls = {}
    for place, contender in enumerate(contenders):
        calls[f"{place} encode"] = contender.encode
        calls[f"{place} decode"] = contender.decode
    samples = interleaved(calls, rounds)
    rows = []
    for place, contender in enumerate(contenders):
        ours = contender.coder == "groupedmixer"
        row: dict[str, Any] = {
            "coder": contender.coder,
            "isa": ops.active_isa() if ours else None,  # of others it is not known
            "threads": contender.threads,
            "input": data.name,
            "symbols": data.symbols.size,
            "bytes": contender.num_bytes,
            "ideal_bytes": contender.ideal_bits / 8,
            "exact_ideal_bytes": data.exact_bits() / 8,
            "repeats": len(samples[f"{place} encode"]),
        }
        for direction in ("encode", "decode"):
            times = samples[f"{place} {direction}"]  # ms
            row[f"{direction}_msym_s"] = 1e-3 * data.symbols.size / statistics.median(times)
            row[f"{direction}_best_msym_s"] = 1e-3 * data.symbols.size / min(times)
        rows.append(row)
    baseline = next((row for row in rows if row["coder"] == _BASELINE), None)
    for row in rows:
        for speed in ("encode", "decode", "encode_best", "decode_best"):
            key = f"{speed}_msym_s"
            row[f"{speed}_per_{_BASELINE}"] = baseline and row[key] / baseline[key]
        _print(row)
    return rows


def _measure_elsewhere(isa: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Our rows under another instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.json"
        command = [sys.executable, __file__, "--this-isa-only", "--json", str(path)]
        command += ["--coders", "groupedmixer", *({_BASELINE} & set(args.coders))]
        command += ["--inputs", *args.inputs]
        command += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
        command += ["--symbols", str(args.symbols)]
        if args.kodak is not None:
            command += ["--kodak", str(args.kodak)]
        environment = {**os.environ, "GROUPEDMIXER_ISA": isa}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        rows = json.loads(path.read_text())["runs"]
    ours = [row for row in rows if row["coder"] == "groupedmixer"]
    for row in ours:
        _print(row)
    return ours


def _print(row: dict[str, Any]) -> None:
    cells = ""
    for direction in ("encode", "decode"):
        for speed in (direction, f"{direction}_best"):
            ratio = row[f"{speed}_per_{_BASELINE}"]
            cells += f"{row[f'{speed}_msym_s']:>7.1f} {'' if ratio is None else f'{ratio:.2f}':>6} "
    print(
        f"{row['input']:>9} {row['coder']:>24} {row['isa'] or '':>7} {row['threads']:>3} {cells}"
        f"{row['bytes']:>9} {row['ideal_bytes']:>10.1f} "
        f"{100 * (row['bytes'] / row['ideal_bytes'] - 1):>6.2f}%",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
