# SPDX-License-Identifier: MIT
"""Trains a model and writes its weights.

    python -m groupedmixer.training --data crops0.tar crops1.tar pictures/ \\
        --config rt --minutes 60 --checkpoint run/rt.ckpt --output run/rt-mine.safetensors

A run that was cut off goes on from its checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ..config import CONFIGS, get_config
from ..container import check_name
from ..export import save_weights
from ..model import GroupedMixer
from .data import CropSampler, load_pictures
from .loop import Settings, initialise_entropy_model, train


def main() -> None:
    """Entry point of ``python -m groupedmixer.training``."""
    parser = argparse.ArgumentParser(
        prog="python -m groupedmixer.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders, tar files")
    parser.add_argument("--exclude", type=Path, help="file names to leave out, one a line")
    parser.add_argument("--config", choices=CONFIGS, default="rt")
    parser.add_argument("--output", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    try:
        check_name("the name of --output", args.output.stem)
    except ValueError as error:
        parser.error(str(error))
    args.output.parent.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # likelihood tails are denormal, and those are slow on CPUs
    exclude = frozenset(args.exclude.read_text().splitlines()) if args.exclude else frozenset()
    start = time.monotonic()
    pictures, problems = load_pictures(args.data, args.crop, exclude)
    for problem in problems:
        print(f"skipped {problem}")
    print(f"{len(pictures)} pictures in {time.monotonic() - start:.0f} s", flush=True)
    data = CropSampler(pictures, args.batch, args.crop, args.seed)
    model = GroupedMixer(get_config(args.config))
    initialise_entropy_model(model, data.next_batch())
    settings = Settings(
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        bfloat16=args.bfloat16,
        checkpoint=args.checkpoint,
    )
    trained = train(model, data, settings)
    weights = save_weights(trained, args.output, args.output.stem)
    print(f"wrote {args.output}, fingerprint {weights.fingerprint.hex()}")


if __name__ == "__main__":
    main()
