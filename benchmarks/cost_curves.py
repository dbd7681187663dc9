# SPDX-License-Identifier: MIT
"""Time and peak memory against picture size and against the number of groups: table and plots.

    python benchmarks/cost_curves.py --table docs/cost.md --plot docs/cost.svg --json cost.json
    python benchmarks/cost_curves.py --sizes 256x256 768x512 --configs rt --groups 4 10 --repeats 1

Sizes are width x height. Every measurement has a process of its own, so that its peak resident set
is its own; what the process holds before it codes (Python, PyTorch, the weights) is measured there
and reported beside. G varies over slices and patch at base's latent and widths. Bundled weights
where there are some, calibrated random ones elsewhere: they take the same time. --plot needs
matplotlib.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _models import make_subject
from _pictures import photo
from _timing import environment, peak_memory_mib, reset_peak_memory

from groupedmixer import CONFIGS, Config, get_config

SIZES = ((256, 256), (512, 512), (768, 512), (1024, 1024), (1920, 1080), (3840, 2160))
GROUP_SIZE = (768, 512)
# G = slices * patch, all at M = 320: base is (10, 2x2).
GROUPINGS = {
    4: (4, (1, 1)),
    10: (5, (1, 2)),
    20: (10, (1, 2)),
    40: (10, (2, 2)),
    80: (20, (2, 2)),
}


def main() -> int:
    args = _arguments()
    if args.measure is not None:
        print(json.dumps(measure(**json.loads(args.measure), repeats=args.repeats)))
        return 0
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: run `pip install matplotlib`, or leave --plot out")
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    facts = environment("cpu")
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    cells = [("size", get_config(name), size) for name in args.configs for size in args.sizes]
    cells += [("groups", with_groups(count), args.group_size) for count in args.groups]
    runs = []
    for curve, config, (width, height) in cells:
        run = _in_own_process(config, width, height, threads, args.repeats)
        run = {"curve": curve, "config": config.name, "groups": config.num_groups, **run}
        print(
            f"{curve:>7} {config.name:>8} G={config.num_groups:<3} {f'{width}x{height}':>10} "
            f"encode {run['encode_ms']:.0f} ms, {run['encode_mib']:.0f} MiB; "
            f"decode {run['decode_ms']:.0f} ms, {run['decode_mib']:.0f} MiB; "
            f"before {run['idle_mib']:.0f} MiB",
            flush=True,
        )
        runs.append(run)
    if args.json is not None:
        args.json.write_text(json.dumps({"environment": facts, "runs": runs}, indent=2))
    if args.table is not None:
        args.table.write_text(markdown(runs, facts))
    if args.plot is not None:
        _plot(runs, args.plot)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="*", choices=CONFIGS, default=["rt", "base"])
    parser.add_argument("--sizes", nargs="*", type=_size, default=SIZES, metavar="WxH")
    parser.add_argument("--groups", nargs="*", type=int, choices=GROUPINGS, default=[*GROUPINGS])
    parser.add_argument("--group-size", type=_size, default=GROUP_SIZE, metavar="WxH")
    parser.add_argument("--threads", type=int, help="default: PyTorch's, one per core")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--table", type=Path, metavar="FILE.md")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="or .png")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one cell, in its own process
    args = parser.parse_args()
    for name in ("threads", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return args


def _size(text: str) -> tuple[int, int]:
    """A size of the command line. ValueError, which argparse reports, if it is none."""
    width, height = (int(number) for number in text.split("x"))
    if min(width, height) < 1:
        raise ValueError(f"sides must be at least 1, got {text}")
    return width, height


def with_groups(count: int) -> Config:
    """Base with another grouping; everything else, and so the transforms, as it is."""
    slices, patch = GROUPINGS[count]
    return dataclasses.replace(get_config("base"), name=f"g{count}", slices=slices, patch=patch)


def measure(config: str, width: int, height: int, threads: int, repeats: int) -> dict[str, Any]:
    """One cell: median time and peak memory of both directions, in this process.

    Parameters
    ----------
    config
        As `Config.to_json` writes it.
    """
    torch.set_num_threads(threads)
    picture = photo(height, width)
    codec = make_subject(Config.from_json(config), picture, "cpu").codec
    has_peaks = reset_peak_memory()
    idle = peak_memory_mib() if has_peaks else None
    data = b""

    def encode() -> None:
        nonlocal data
        data = codec.compress(picture)

    calls: dict[str, Callable[[], object]] = {
        "encode": encode,
        "decode": lambda: codec.decompress(data),
    }
    found: dict[str, Any] = {"width": width, "height": height, "threads": threads}
    for direction, call in calls.items():
        reset_peak_memory()
        call()  # not counted in the time, but in the memory: a first call is what users make
        found[f"{direction}_mib"] = peak_memory_mib() if has_peaks else None
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            samples.append(1e3 * (time.perf_counter() - start))
        found[f"{direction}_ms"] = statistics.median(samples)
    return {**found, "idle_mib": idle, "repeats": repeats, "weights": codec.name}


def _in_own_process(
    config: Config, width: int, height: int, threads: int, repeats: int
) -> dict[str, Any]:
    cell = {"config": config.to_json(), "width": width, "height": height, "threads": threads}
    command = [sys.executable, __file__, "--repeats", str(repeats), "--measure", json.dumps(cell)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{config.name} at {width}x{height} failed:\n{result.stderr.strip()}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def markdown(runs: list[dict[str, Any]], facts: dict[str, object]) -> str:
    """The runs as two tables, with the machine under them."""
    lines = []
    titles = {"size": "Against the picture's size", "groups": "Against the number of groups"}
    for curve, title in titles.items():
        rows = [run for run in runs if run["curve"] == curve]
        if not rows:
            continue
        lines += [
            f"### {title}",
            "",
            "| configuration | G | picture | encode ms | decode ms | encode MiB | decode MiB "
            "| before coding MiB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for run in rows:
            memory = (run["encode_mib"], run["decode_mib"], run["idle_mib"])
            shown = " | ".join("unknown" if mib is None else f"{mib:.0f}" for mib in memory)
            lines.append(
                f"| {run['config']} | {run['groups']} | {run['width']}x{run['height']} "
                f"| {run['encode_ms']:.0f} | {run['decode_ms']:.0f} | {shown} |"
            )
        lines.append("")
    repeats = runs[0]["repeats"]
    lines.append(
        f"{facts['cpu']}, {facts['threads']} threads, {facts['isa']}, PyTorch {facts['torch']}; "
        f"median of {repeats}, peak resident set of the whole process."
    )
    return "\n".join(lines) + "\n"


def _plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Time above, memory below; sizes left, groups right. Both directions in one panel."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same runs give the same file.
    plt.rcParams.update({"svg.hashsalt": "groupedmixer", "font.size": 9})
    curves = [curve for curve in ("size", "groups") if any(r["curve"] == curve for r in runs)]
    figure, axes = plt.subplots(
        2, len(curves), figsize=(4.2 * len(curves), 6), squeeze=False, sharex="col"
    )
    for column, curve in enumerate(curves):
        rows = [run for run in runs if run["curve"] == curve]
        names = list(dict.fromkeys(run["config"] for run in rows)) if curve == "size" else ["base"]
        for colour, name in enumerate(names):
            of_name = [run for run in rows if curve == "groups" or run["config"] == name]
            of_name.sort(key=lambda run: _abscissa(run))
            for direction, style in (("encode", "-o"), ("decode", "--s")):
                for row, unit in enumerate(("ms", "mib")):
                    values = [run[f"{direction}_{unit}"] for run in of_name]
                    if None in values:
                        continue
                    axes[row, column].plot(
                        [_abscissa(run) for run in of_name],
                        [value / 1e3 if unit == "ms" else value for value in values],
                        style,
                        color=f"C{colour}",
                        markersize=3.5,
                        linewidth=1.2,
                        label=f"{name} {direction}",
                    )
        axes[0, column].legend(frameon=False)
        axes[1, column].set_xlabel("megapixels" if curve == "size" else "groups G")
        for row in range(2):
            axis = axes[row, column]
            axis.grid(alpha=0.25, which="both")
            if curve == "size":
                axis.set_xscale("log")
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _abscissa(run: dict[str, Any]) -> float:
    if run["curve"] == "groups":
        return float(run["groups"])
    return run["width"] * run["height"] / 1e6


if __name__ == "__main__":
    sys.exit(main())
