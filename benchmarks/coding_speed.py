# SPDX-License-Identifier: MIT
"""End-to-end coding speed by stage: pixels to the bytes of a file, and back.

    python benchmarks/coding_speed.py                          # rt, 768x512
    python benchmarks/coding_speed.py --config base --threads 1 --repeats 20
    python benchmarks/coding_speed.py --images folder/ --json out.json

Before anything is timed, the picture is coded, decoded and compared with the encoder's latent. The
first call of each direction is a warm-up and not counted. Stages are measured inside the very call
whose total is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _models import calibrated_random_codec, released_codec
from _timing import environment, iqr, peak_memory_mib, reset_peak_memory
from PIL import Image

from groupedmixer import CONFIGS, Codec, container
from groupedmixer.images import Picture, as_picture, load_picture
from groupedmixer.stages import Stages

STAGES = ("transform", "hyper", "entropy_model", "rans", "file", "total")
PHOTO = Path(__file__).parent / "data" / "flowers.png"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"}


def main() -> int:
    args = _arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pictures = _pictures(args)
    codec = None if args.random else released_codec(args.config, args.device)
    random_weights = codec is None
    codec = codec or calibrated_random_codec(args.config, pictures[0][1], args.device)

    facts = environment(args.device)
    print("  ".join(f"{key}={value}" for key, value in facts.items()))
    weights = "RANDOM weights: sizes and quality mean nothing" if random_weights else codec.name
    print(f"config={args.config} ({weights})  quality={args.quality}  device={args.device}")
    runs: list[dict[str, Any]] = []
    for (height, width), group in _by_size(pictures).items():
        checks = [_check(codec, name, picture, args.quality) for name, picture in group]
        found = _time(codec, [picture for _, picture in group], args.quality, args.repeats)
        common = {
            "system": "groupedmixer",
            "config": args.config,
            "weights": codec.name,
            "height": height,
            "width": width,
            "pictures": len(group),
            "device": args.device,
            "threads": torch.get_num_threads(),
            **_mean(checks),
        }
        if random_weights and not 0.5 <= common["bits_per_symbol"] <= 2:
            sys.exit(f"the random weights are miscalibrated: {common['bits_per_symbol']:.2f} bits")
        _print(common, found)
        runs += [{**common, **measured} for measured in found]
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
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
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
    # The bundled photo, mirrored and repeated to the size asked for: real statistics at any size.
    photo = np.asarray(Image.open(PHOTO).convert("RGB"))
    both = np.concatenate([photo, photo[:, ::-1]], axis=1)
    tile = np.concatenate([both, both[::-1]], axis=0)
    rows, columns = -(-args.height // tile.shape[0]), -(-args.width // tile.shape[1])
    image = np.tile(tile, (rows, columns, 1))[: args.height, : args.width]
    return [(PHOTO.name, as_picture(np.ascontiguousarray(image)))]


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
    file = container.parse(data)
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


def _time(
    codec: Codec, pictures: list[Picture], quality: float, repeats: int
) -> list[dict[str, Any]]:
    """Median and spread of every stage over all pictures and repeats, both directions."""
    files = [codec.compress(picture, quality) for picture in pictures]
    work: dict[str, list[Any]] = {
        "encode": [lambda s, p=p: codec.compress(p, quality, stages=s) for p in pictures],
        "decode": [lambda s, f=f: codec.decompress(f, stages=s) for f in files],
    }
    found: list[dict[str, Any]] = []
    for direction, calls in work.items():
        calls[0](Stages())
        measures_memory = reset_peak_memory()
        samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for _ in range(repeats):
            for call in calls:
                stages = Stages()
                start = time.perf_counter()
                call(stages)
                total = time.perf_counter() - start
                for stage in STAGES:
                    samples[stage].append(1e3 * stages.seconds.get(stage, 0.0))
                samples["total"][-1] = 1e3 * total
        peak = peak_memory_mib() if measures_memory else None
        found += [
            {
                "direction": direction,
                "stage": stage,
                "median_ms": statistics.median(values),
                "iqr_ms": iqr(values),
                "repeats": len(values),
                "peak_memory_mib": peak,
            }
            for stage, values in samples.items()
        ]
    return found


def _mean(checks: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(check[key] for check in checks) for key in checks[0]}


def _print(common: dict[str, Any], found: list[dict[str, Any]]) -> None:
    print(
        f"\n{common['width']}x{common['height']}, {common['pictures']} picture(s): "
        f"{common['bytes']:.0f} bytes, {common['bpp']:.3f} bpp, {common['psnr']:.2f} dB, "
        f"{common['bits_per_symbol']:.2f} bits a symbol, "
        f"{100 * common['skip_rate']:.1f} % skipped, {100 * common['escape_rate']:.3f} % escaped; "
        f"round trip verified"
    )
    megapixels = common["width"] * common["height"] / 1e6
    print(f"{'':>14} {'encode ms':>11} {'iqr':>7} {'decode ms':>11} {'iqr':>7}")
    rows = {(run["direction"], run["stage"]): run for run in found}
    for stage in STAGES:
        encode, decode = rows["encode", stage], rows["decode", stage]
        print(
            f"{stage:>14} {encode['median_ms']:>11.2f} {encode['iqr_ms']:>7.2f} "
            f"{decode['median_ms']:>11.2f} {decode['iqr_ms']:>7.2f}"
        )
    for direction in ("encode", "decode"):
        total = rows[direction, "total"]
        peak = total["peak_memory_mib"]
        memory = "unknown" if peak is None else f"{peak:.0f} MiB"
        rate = megapixels / (total["median_ms"] / 1e3)
        print(f"{direction}: {rate:.2f} MP/s, peak memory {memory} (whole process)")


if __name__ == "__main__":
    sys.exit(main())
