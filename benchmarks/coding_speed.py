# SPDX-License-Identifier: MIT
"""End-to-end coding speed by stage: pixels to the bytes of a file, and back.

    python benchmarks/coding_speed.py                          # rt, 768x512
    python benchmarks/coding_speed.py --config base --threads 1 --repeats 20
    python benchmarks/coding_speed.py --images folder/ --json out.json
    python benchmarks/coding_speed.py --config base --peers    # beside other systems, minutes
    python benchmarks/coding_speed.py --config base --device cuda --peers --json gpu.json

Before anything is timed, the picture is coded, decoded and compared with the encoder's latent. The
first call of each direction is a warm-up and not counted. Stages are measured inside the very call
whose total is reported.

Peers, each verified before it is timed, and timed in turns with ours (A B A B):

    eager-cached          the same weights in float32 PyTorch with a context cache; its attention
                          chosen by timing, with torch.compile if that is faster
    eager-uncached        the same without a cache, some steps measured and the rest interpolated
    compressai-elic       CompressAI's ELIC, the faster of two variants and memory formats
    compressai-cheng2020  CompressAI's Cheng 2020 anchor, two repeats

The eager peers report the entropy model alone, without rANS; CompressAI's have random weights
calibrated like ours, and "entropy" for all that is not the transform.

On a GPU, the stages of ours that the engine codes are measured by events inside of its CUDA graph
(rANS is part of entropy_model there), the others and all totals by the clock, after waiting for the
GPU. Figures are of warm calls, which replay a graph: that the last one did is checked. Beside them
stand the first call of a size (kernels are launched one by one) and the second (the graph is
recorded), the graph's nodes, the engine's scratch memory, and what the whole process takes of the
GPU's memory after our calls and before the peers'. Eager peers are timed by events, eager-cached
also with TF32, with bfloat16 and as one CUDA graph; CompressAI's networks run on the GPU and its
rANS on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _device import DeviceStages, engine_report, require_gpu, synchronize, used_mib
from _models import Subject, make_subject
from _peers import PEERS, Contender, make_contenders
from _pictures import PHOTO, photo
from _timing import POOLS_SLEEP, environment, iqr, peak_memory_mib, reset_peak_memory

from groupedmixer import CONFIGS, Codec, container, get_config
from groupedmixer.images import Picture, load_picture
from groupedmixer.stages import Stages

STAGES = ("transform", "hyper", "entropy_model", "rans", "file", "total")
DIRECTIONS = ("encode", "decode")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"}


def main() -> int:
    args = _arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.device == "cuda":
        require_gpu()
    pictures = _pictures(args)
    used_before = used_mib() if args.device == "cuda" else None
    subject = make_subject(get_config(args.config), pictures[0][1], args.device, args.random)
    codec = subject.codec

    facts = environment(args.device)
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    weights = "RANDOM weights: sizes and quality mean nothing" if subject.random else codec.name
    print(f"config={args.config} ({weights})  quality={args.quality}  device={args.device}")
    runs: list[dict[str, Any]] = []
    for (height, width), group in _by_size(pictures).items():
        cold = {} if used_before is None else _cold(codec, group[0][1], args.quality)
        checks = [_check(codec, name, picture, args.quality) for name, picture in group]
        rates = _mean(checks)
        if subject.random and not 0.5 <= rates["bits_per_symbol"] <= 2:
            sys.exit(f"the random weights are miscalibrated: {rates['bits_per_symbol']:.2f} bits")
        ours = _ours(codec, [picture for _, picture in group], args, rates)
        if used_before is not None:
            ours = _on_gpu(ours, codec, {"gpu_used_mib": used_mib() - used_before}, cold)
        contenders = [ours]
        if args.peers:
            contenders += _peers(subject, group[0][1], args)
        common = {
            "height": height,
            "width": width,
            "pictures": len(group),
            "device": args.device,
            "threads": torch.get_num_threads(),
        }
        found = [{**common, **run} for run in _time(contenders)]
        _print([run for run in found if run["system"] == "groupedmixer"])
        if args.peers:
            _print_peers(found)
        runs += found
    if args.json:
        Path(args.json).write_text(json.dumps({"environment": facts, "runs": runs}, indent=2))
        print(f"wrote {args.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=CONFIGS, default="rt")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--images", type=Path, metavar="DIR", help="time these pictures instead")
    parser.add_argument("--quality", type=float, default=4.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: PyTorch's, one per core")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--random", action="store_true", help="random weights in any case")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        metavar="PEER",
        help=f"time these beside ours, all without a name: {', '.join(PEERS)}",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="eager-cached without torch.compile"
    )
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.peers is not None:
        args.peers = args.peers or list(PEERS)
        if args.images is not None:
            parser.error("--peers needs one picture: no --images")
    for name in ("height", "width", "repeats", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if not 0 <= args.quality <= 7:
        parser.error(f"--quality must be in 0..7, got {args.quality}")
    if args.images is not None and not args.images.is_dir():
        parser.error(f"--images must be a folder, got {args.images}")
    return args


def _pictures(args: argparse.Namespace) -> list[tuple[str, Picture]]:
    if args.images is not None:
        paths = sorted(p for p in args.images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            sys.exit(
                f"--images must hold pictures ({' '.join(sorted(IMAGE_SUFFIXES))}): none found"
            )
        return [(path.name, load_picture(path)) for path in paths]
    return [(PHOTO.name, photo(args.height, args.width))]


def _by_size(
    pictures: list[tuple[str, Picture]],
) -> dict[tuple[int, int], list[tuple[str, Picture]]]:
    groups = defaultdict(list)
    for name, picture in pictures:
        groups[picture.height, picture.width].append((name, picture))
    return groups


def _check(codec: Codec, name: str, picture: Picture, quality: float) -> dict[str, float]:
    """Codes, decodes, compares; returns sizes and rates. Exits if the round trip fails."""
    data = codec.compress(picture, quality)
    decoded = codec.decompress(data)
    if decoded.size != (picture.width, picture.height):
        sys.exit(f"{name}: round trip failed, {decoded.size} came back")
    error = (np.asarray(decoded.convert("RGB"), np.float64) - picture.rgb) ** 2
    coded = codec.encode_latent(picture, quality)
    # Its own streams: PyTorch's transforms on a GPU need not give the same latent twice.
    tiles = tuple(container.Tile(tile.stream, tile.checksum) for tile in coded.tiles)
    file = dataclasses.replace(container.parse(data), tiles=tiles)
    if not torch.equal(codec.decode_latent(file), coded.y_hat):
        sys.exit(f"{name}: the decoded latent is not the encoder's")
    return {
        "bytes": len(data),
        "bpp": 8 * len(data) / (picture.width * picture.height),
        # 0.01: an exact picture has no PSNR, and JSON has no infinity
        "psnr": float(10 * np.log10(255**2 / max(error.mean(), 0.01))),
        "bits_per_symbol": 8 * sum(len(tile.stream) for tile in coded.tiles) / coded.num_symbols,
        "skip_rate": 1 - coded.num_coded / coded.num_symbols,
        "escape_rate": coded.num_escaped / coded.num_symbols,
    }


def _cold(codec: Codec, picture: Picture, quality: float) -> dict[str, dict[str, float]]:
    """Milliseconds of the first two calls of each direction at a size, with nothing before them."""
    data = b""

    def encode() -> None:
        nonlocal data
        data = codec.compress(picture, quality)

    calls: dict[str, Callable[[], object]] = {
        "encode": encode,
        "decode": lambda: codec.decompress(data),
    }
    found: dict[str, dict[str, float]] = {}
    for direction, call in calls.items():
        found[direction] = {}
        for which in ("first", "second"):
            synchronize(codec.device)
            start = time.perf_counter()
            call()
            found[direction][f"{which}_call_ms"] = 1e3 * (time.perf_counter() - start)
    return found


def _on_gpu(
    ours: Contender, codec: Codec, facts: dict[str, float], cold: dict[str, dict[str, float]]
) -> Contender:
    """Ours with what an engine on a GPU has to tell."""

    def report(direction: str) -> dict[str, Any]:
        told = engine_report(codec)
        if not told["graph_nodes"]:
            sys.exit(f"{direction}: the calls that were timed did not replay a CUDA graph")
        return {
            **facts,
            **cold[direction],
            **told,
            # of all the call's nodes, those of the transforms and of further tiles included
            "graph_nodes_per_group": told["graph_nodes"] / codec.config.num_groups,
        }

    # A size's first call launches kernels, its second records the graph, its third is the first
    # that replays it; memory that grew for another size sends all sizes back to the start.
    return dataclasses.replace(ours, warm_ups=4, report=report)


def _ours(
    codec: Codec, pictures: list[Picture], args: argparse.Namespace, rates: dict[str, float]
) -> Contender:
    make_stages = DeviceStages if args.device == "cuda" else Stages

    def encode(picture: Picture) -> dict[str, float]:
        return _by_stage(
            lambda stages: codec.compress(picture, args.quality, stages=stages), make_stages()
        )

    def decode(data: bytes) -> dict[str, float]:
        return _by_stage(lambda stages: codec.decompress(data, stages=stages), make_stages())

    files = [codec.compress(picture, args.quality) for picture in pictures]
    return Contender(
        "groupedmixer",
        [partial(encode, picture) for picture in pictures],
        [partial(decode, data) for data in files],
        args.repeats,
        {"config": args.config, "weights": codec.name, **rates},
    )


def _by_stage(call: Callable[[Stages], object], stages: Stages) -> dict[str, float]:
    start = time.perf_counter()
    call(stages)
    total = time.perf_counter() - start
    seconds = {**{stage: stages.seconds.get(stage, 0.0) for stage in STAGES}, "total": total}
    return {stage: 1e3 * value for stage, value in seconds.items()}


def _peers(subject: Subject, picture: Picture, args: argparse.Namespace) -> list[Contender]:
    header = container.parse(subject.codec.compress(picture, args.quality)).header
    try:
        return make_contenders(
            args.peers,
            subject,
            picture,
            args.quality,
            header.tile_latents,
            header.skip_below,
            args.repeats,
            not args.no_compile,
            args.device,
        )
    except ValueError as error:
        sys.exit(f"a peer is wrong, nothing was timed: {error}")


def _time(contenders: list[Contender]) -> list[dict[str, Any]]:
    """Median and spread of every stage over all pictures and repeats, both directions."""
    found: list[dict[str, Any]] = []
    for direction in DIRECTIONS:
        calls = {c.system: c.encode if direction == "encode" else c.decode for c in contenders}
        for contender in contenders:
            for _ in range(contender.warm_ups):
                calls[contender.system][0]()
        # The process holds all contenders, so its memory tells of one only if it is alone.
        measures_memory = len(contenders) == 1 and reset_peak_memory()
        samples: dict[str, dict[str, list[float]]] = {
            c.system: defaultdict(list) for c in contenders
        }
        for repeat in range(max(c.repeats for c in contenders)):
            for contender in contenders:
                if repeat >= contender.repeats:
                    continue
                time.sleep(POOLS_SLEEP)
                for call in calls[contender.system]:
                    for stage, value in call().items():
                        samples[contender.system][stage].append(value)
        peak = peak_memory_mib() if measures_memory else None
        reports = {c.system: c.report(direction) for c in contenders}
        found += [
            {
                "system": contender.system,
                "config": contender.system,
                **contender.facts,
                **reports[contender.system],
                "direction": direction,
                "stage": stage,
                "median_ms": statistics.median(values),
                "iqr_ms": iqr(values),
                "repeats": len(values),
                "peak_memory_mib": peak,
            }
            for contender in contenders
            for stage, values in samples[contender.system].items()
        ]
    return found


def _mean(checks: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(check[key] for check in checks) for key in checks[0]}


def _print(runs: list[dict[str, Any]]) -> None:
    first = runs[0]
    print(
        f"\n{first['width']}x{first['height']}, {first['pictures']} picture(s): "
        f"{first['bytes']:.0f} bytes, {first['bpp']:.3f} bpp, {first['psnr']:.2f} dB, "
        f"{first['bits_per_symbol']:.2f} bits a symbol, "
        f"{100 * first['skip_rate']:.1f} % skipped, {100 * first['escape_rate']:.3f} % escaped; "
        f"round trip verified"
    )
    megapixels = first["width"] * first["height"] / 1e6
    print(f"{'':>14} {'encode ms':>11} {'iqr':>7} {'decode ms':>11} {'iqr':>7}")
    rows = {(run["direction"], run["stage"]): run for run in runs}
    for stage in STAGES:
        encode, decode = rows["encode", stage], rows["decode", stage]
        print(
            f"{stage:>14} {encode['median_ms']:>11.2f} {encode['iqr_ms']:>7.2f} "
            f"{decode['median_ms']:>11.2f} {decode['iqr_ms']:>7.2f}"
        )
    for direction in DIRECTIONS:
        total = rows[direction, "total"]
        peak = total["peak_memory_mib"]
        memory = "unknown" if peak is None else f"{peak:.0f} MiB"
        rate = megapixels / (total["median_ms"] / 1e3)
        print(f"{direction}: {rate:.2f} MP/s, peak memory {memory} (whole process)")
        if "graph_nodes" in total:
            print(
                f"    first call {total['first_call_ms']:.1f} ms, second "
                f"{total['second_call_ms']:.1f} ms; CUDA graph of {total['graph_nodes']} nodes, "
                f"{total['graph_nodes_per_group']:.1f} a group; scratch "
                f"{total['scratch_bytes'] / 2**20:.0f} MiB, the process "
                f"{total['gpu_used_mib']:.0f} MiB of the GPU"
            )


def _print_peers(runs: list[dict[str, Any]]) -> None:
    """The peers' stages, and how many times our time they take."""
    rows = {(run["system"], run["stage"], run["direction"]): run for run in runs}
    systems = dict.fromkeys(run["system"] for run in runs if run["system"] != "groupedmixer")
    print(
        f"\n{'peer':>21} {'stage':>14} {'encode ms':>11} {'iqr':>7} {'x ours':>7} "
        f"{'decode ms':>11} {'iqr':>7} {'x ours':>7} {'repeats':>8}"
    )
    for system in systems:
        for stage in dict.fromkeys(stage for name, stage, _ in rows if name == system):
            cells = []
            for direction in DIRECTIONS:
                run = rows[system, stage, direction]
                ours = rows.get(("groupedmixer", stage, direction))
                # "transform" and "entropy" of another codec are not our stages
                ratio = ""
                if ours is not None and stage in ("entropy_model", "total"):
                    run["times_ours"] = run["median_ms"] / ours["median_ms"]
                    ratio = f"{run['times_ours']:.2f}"
                cells.append(f"{run['median_ms']:>11.2f} {run['iqr_ms']:>7.2f} {ratio:>7}")
            print(f"{system:>21} {stage:>14} {' '.join(cells)} {run['repeats']:>8}")
    for system in systems:
        run = next(run for run in runs if run["system"] == system)
        print(f"{system}: {_described(run)}")


def _described(run: dict[str, Any]) -> str:
    parts = [run["variant"]]
    if "error_of_means" in run:
        parts.append(f"means within {run['error_of_means']:.1g} of the training form")
    if "interpolated_from_steps" in run:
        steps = " ".join(map(str, run["interpolated_from_steps"]))
        parts.append(f"INTERPOLATED over {run['steps']} steps from steps {steps}")
    if "bpp" in run:
        parts.append(f"{run['bpp']:.2f} bpp, {run['bits_per_symbol']:.2f} bits a symbol, verified")
    tried = [f"{ms:9.2f} ms  {variant}" for variant, ms in run.get("tried_ms", {}).items()]
    failed = [f"   failed     {name}: {error}" for name, error in run.get("failed", {}).items()]
    return "\n    ".join(["; ".join(parts), *tried, *failed])


if __name__ == "__main__":
    sys.exit(main())
