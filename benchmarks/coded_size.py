# SPDX-License-Identifier: MIT
"""What the coder's integers cost: coded size of y against the float model's cross-entropy.

    python benchmarks/coded_size.py --kodak pictures/kodak
    python benchmarks/coded_size.py --kodak pictures/kodak --qualities 1 4 7 --json out.json

The *float model* is what training minimises: the mixture `SHAPE` at the predicted means and scales,
integrated over the unit interval of every symbol. A stream of the same symbols is longer by

    scales   64 scales instead of a float each
    counts   12 bits a probability, and one count of 4096 kept for the escape
    escapes  what symbols outside their table cost beyond the model's bits
    flush    the lanes' states, the stream's header, and the rest of each lane's last word

The first three are the *table loss*. All are relative to the float model's bits of the coded
symbols. They may be negative: where real symbols stray farther than the model lets them, a table's
least count and the escape are cheaper than what the float model says. *expected* is the table
loss for symbols that are distributed as the model says, the part that better tables could gain.

Symbols whose index is below `SKIP_BELOW` are not in the stream; what the float model would
give them is the column *skipped*, and *with skipped* compares the stream with all of it.

Streams here are of y alone, group by group as the engine codes them. As a check, the same groups
behind the z of the engine's own stream must make a stream of the engine's size, to 0.1 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _symbols import LatentSymbols, add_kodak_option, latent_symbols, model_bits
from _timing import environment
from numpy.typing import NDArray

import groupedmixer
from groupedmixer.coding import SKIP_BELOW
from groupedmixer.entropy import NUM_SCALES, SCALE_MAX, SCALE_MIN, SCALES
from groupedmixer.images import load_picture
from groupedmixer_ext import rans

# A symbol or two in a million differ between PyTorch's and the engine's arithmetic.
_TOLERANCE = 1e-3

PARTS = ("scales", "counts", "escapes", "flush")

# Sigmas a table's width at which the expected loss is computed; symbols take the nearest one.
_SIGMAS_PER_TABLE = 16


def main() -> int:
    args = _arguments()
    codec, model = groupedmixer.load(args.weights), groupedmixer.load_model(args.weights)
    tables = model.latent_codec.y_tables.build()
    z_tables = model.latent_codec.z_tables.build()
    paths = sorted(args.kodak.glob("*.png"))[: args.pictures]
    print("  ".join(f"{key}={value}" for key, value in environment("cpu").items()))
    print(f"{len(paths)} pictures of {args.kodak}, weights {codec.name}; parts in % of the model")
    print(
        f"{'quality':>7} {'picture':>10} {'bytes':>9} {'model':>10} {'lanes':>5} "
        + " ".join(f"{part:>8}" for part in (*PARTS, "tables", "expected", "total"))
        + f" {'skipped':>9} {'with skipped':>12}"
    )
    runs = []
    expected = ExpectedLoss(tables)
    for quality in args.qualities:
        rows = []
        for path in paths:
            picture = load_picture(path)
            found = latent_symbols(model, picture, quality)
            row = measure(found, tables, expected)
            engine = bytes(codec.encode_latent(picture, quality).tiles[0].stream)
            rows_of_z, columns_of_z = -(-picture.height // 64), -(-picture.width // 64)
            z_indexes = np.tile(np.arange(len(z_tables), dtype=np.uint16), rows_of_z * columns_of_z)
            with_z = rans.Encoder()
            with_z.push(rans.Decoder(engine).pop(z_indexes, z_tables), z_indexes, z_tables)
            again = _push(found, tables, with_z).finish()
            if abs(len(again) / len(engine) - 1) > _TOLERANCE:
                raise ValueError(
                    f"{path.name}: the engine's stream has {len(engine)} bytes, the same latent "
                    f"in PyTorch {len(again)}"
                )
            row.update(
                quality=quality, picture=path.stem, engine_bytes=len(engine), with_z=len(again)
            )
            rows.append(row)
            if args.verbose:
                _print(row)
        runs += rows
        total = {key: sum(row[key] for row in rows) for key in _SUMS}
        _print({**total, "quality": quality, "picture": "all", "lanes": ""})
        worst = max(rows, key=_total)
        _print({**worst, "picture": f"< {worst['picture']}"})
    if args.json:
        result = {"environment": environment("cpu"), "weights": codec.name, "runs": runs}
        Path(args.json).write_text(json.dumps(result, indent=2))
        print(f"wrote {args.json}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_kodak_option(parser)
    parser.add_argument("--weights", default="rt", help="a name, or a .safetensors file")
    parser.add_argument("--qualities", type=float, nargs="+", default=(1.0, 4.0, 7.0))
    parser.add_argument("--pictures", type=int, help="only the first ones")
    parser.add_argument("--verbose", action="store_true", help="a line for every picture")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.kodak is None or not any(args.kodak.glob("*.png")):
        parser.error(f"--kodak must be a folder of .png pictures, got {args.kodak}")
    return args


class ExpectedLoss:
    """Bits a symbol that tables cost beyond the entropy of what they stand for."""

    def __init__(self, tables: rans.Tables) -> None:
        step = math.log(SCALE_MAX / SCALE_MIN) / (NUM_SCALES - 1)
        self._per_log = _SIGMAS_PER_TABLE / step
        places = np.arange((NUM_SCALES - 1) * _SIGMAS_PER_TABLE + 1)
        self._bits = np.array(
            [_expected_loss(SCALE_MIN * math.exp(p / self._per_log), tables) for p in places]
        )

    def __call__(
        self,
        sigmas: NDArray[np.float64],  # [N]
    ) -> NDArray[np.float64]:  # [N]
        return self._bits[np.rint(np.log(sigmas / SCALE_MIN) * self._per_log).astype(np.int64)]


def _expected_loss(sigma: float, tables: rans.Tables) -> float:
    values = np.arange(-math.ceil(16 * sigma), math.ceil(16 * sigma) + 1).astype(np.int16)
    bits = model_bits(values, np.full(values.shape, sigma))
    index = np.abs(np.log(np.array(SCALES) / sigma)).argmin()
    count_bits, escaped = _count_bits(values, np.full(values.shape, index), tables)
    return float((np.exp2(-bits) * (count_bits + 8 * escaped - bits)).sum())


def measure(found: LatentSymbols, tables: rans.Tables, expected: ExpectedLoss) -> dict[str, Any]:
    """Bytes of the stream and bits of its parts."""
    coded = found.indexes >= SKIP_BELOW
    float_bits = model_bits(found.symbols, found.sigmas)
    symbols, indexes = found.symbols[coded], found.indexes[coded]
    table_sigmas = np.array(SCALES)[indexes]
    scaled_bits = model_bits(symbols, table_sigmas)
    count_bits, escaped = _count_bits(symbols, indexes, tables)

    encoder = _push(found, tables, rans.Encoder())
    stream = encoder.finish()
    if encoder.num_escaped != escaped.sum() or encoder.num_coded != coded.sum():
        raise ValueError("the coder counts other symbols than the tables say")
    escape_bits = encoder.estimated_bits - count_bits.sum()  # the varints
    model = float_bits[coded].sum()
    return {
        "bytes": len(stream),
        "model_bits": model,
        "skipped_bits": float_bits[~coded].sum(),
        "scales": scaled_bits.sum() - model,
        "counts": (count_bits - scaled_bits)[~escaped].sum(),
        "escapes": (count_bits - scaled_bits)[escaped].sum() + escape_bits,
        "flush": 8 * len(stream) - encoder.estimated_bits,
        "expected": expected(found.sigmas[coded]).sum(),
        "lanes": rans.Decoder(stream).lanes,
        "num_symbols": int(coded.size),
        "num_coded": int(coded.sum()),
        "num_escaped": int(escaped.sum()),
    }


_SUMS = (
    "bytes",
    "engine_bytes",
    "with_z",
    "model_bits",
    "skipped_bits",
    *PARTS,
    "expected",
    "num_escaped",
    "num_coded",
)


def _count_bits(
    symbols: NDArray[np.int16],  # [N]
    indexes: NDArray[Any],  # [N]
    tables: rans.Tables,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:  # [N], [N]
    """Bits by the integer counts, of the escape's slot where a symbol is escaped; which are."""
    first = np.cumsum(tables.sizes) - tables.sizes
    slots = symbols.astype(np.int64) - tables.offsets[indexes]
    values = tables.sizes[indexes] - 1
    escaped = (slots < 0) | (slots >= values)
    counts = tables.counts[first[indexes] + np.where(escaped, values, slots)]
    return rans.PRECISION - np.log2(counts.astype(np.float64)), escaped


def _push(found: LatentSymbols, tables: rans.Tables, encoder: rans.Encoder) -> rans.Encoder:
    for group, index in zip(found.symbols, found.indexes, strict=True):
        encoder.push(group, index, tables, SKIP_BELOW)
    return encoder


def _total(row: dict[str, Any]) -> float:
    return float(8 * row["bytes"] / row["model_bits"] - 1)


def _print(row: dict[str, Any]) -> None:
    model = row["model_bits"]
    parts = [row[part] / model for part in PARTS]
    shares = [*parts, sum(parts[:3]), row["expected"] / model, _total(row)]
    everything = model + row["skipped_bits"]
    print(
        f"{row['quality']:>7g} {row['picture']:>10} {row['bytes']:>9} {model / 8:>10.1f} "
        f"{row['lanes']:>5} "
        + " ".join(f"{100 * share:>8.3f}" for share in shares)
        + f" {100 * row['skipped_bits'] / model:>9.3f}"
        + f" {100 * (8 * row['bytes'] / everything - 1):>12.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
