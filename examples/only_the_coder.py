# SPDX-License-Identifier: MIT
"""The coder alone, with tables of one's own: a small lossless codec for grey pictures.

Each pixel is predicted by the one above it; what is left is coded with one of a few tables, chosen
by how much the picture changed just above. The tables are counted on other pictures. The decoder
knows a line's tables only once it has the lines above, so it takes the stream line by line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from example_pictures import Pictures
from torch import Tensor

from groupedmixer_ext import ops, rans, tables

SIZE = 128
EDGES = torch.tensor([2, 4, 8, 16, 32])  # of the change above a pixel: 6 tables


def choose_tables(above: Tensor, before: Tensor) -> Tensor:  # [..., W] int16 -> uint8
    """The table of each pixel, from the two lines above it."""
    change = (above - before).abs()
    nearby = torch.maximum(change, torch.maximum(change.roll(1, -1), change.roll(-1, -1)))
    return torch.bucketize(nearby, EDGES).to(torch.uint8)


def symbols_of(picture: Tensor) -> tuple[Tensor, Tensor]:  # [..., H, W] int16
    """Differences from the line above (int16), and their tables (uint8)."""
    black = torch.zeros_like(picture[..., :2, :])
    lines = torch.cat([black, picture], -2)  # two black lines ahead of the first
    above, before = lines[..., 1:-1, :], lines[..., :-2, :]
    return picture - above, choose_tables(above, before)


def count_tables(pictures: Tensor) -> rans.Tables:  # [N, H, W] int16
    """Tables of the differences -255 .. 255, one for each class of change."""
    symbols, indexes = symbols_of(pictures)
    counts = torch.ones(len(EDGES) + 1, 511)  # each value once at least: none is impossible
    counts.index_put_((indexes.long(), symbols.long() + 255), torch.tensor(1.0), accumulate=True)
    nothing_beyond = torch.zeros(len(counts), 1)
    pmfs = torch.cat([counts, nothing_beyond], 1).numpy()
    return tables.tables_from_pmfs(list(pmfs), [-255] * len(pmfs))


def decode(stream: bytes, height: int, width: int, chosen: rans.Tables) -> Tensor:
    """The picture [H, W], int16. RansError if the stream is damaged."""
    decoder = rans.Decoder(stream)
    lines = [torch.zeros(width, dtype=torch.int16)] * 2
    for _ in range(height):
        indexes = choose_tables(lines[-1], lines[-2])
        lines.append(lines[-1] + torch.from_numpy(decoder.pop(indexes.numpy(), chosen)))
    decoder.finish()  # checks that nothing is left over
    return torch.stack(lines[2:])


def main() -> None:
    """Counts tables, codes a picture, and compares the size with the entropy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of pictures (default: made up ones)")
    arguments = parser.parse_args()

    green = (255 * Pictures(arguments.data, SIZE).batch(33)[:, 1]).round().short()  # [33, H, W]
    chosen = count_tables(green[1:])
    picture = green[0].contiguous()

    symbols, indexes = symbols_of(picture)
    encoder = rans.Encoder()
    for line, its_tables in zip(symbols, indexes, strict=True):
        encoder.push(line.numpy(), its_tables.numpy(), chosen)
    stream = encoder.finish()
    # The encoder knows everything beforehand: one call on tensors writes the same bytes.
    at_once = ops.rans_encode(symbols, indexes, chosen)
    print("in one call:", at_once.numpy().tobytes() == stream)

    decoded = decode(stream, *picture.shape, chosen)
    print("lossless:", torch.equal(decoded, picture))

    entropy = encoder.estimated_bits / 8
    print(f"pixels: {picture.numel()} bytes, entropy: {entropy:.0f}, stream: {len(stream)}")

    damaged = stream[:-1]
    try:
        decode(damaged, *picture.shape, chosen)
    except rans.RansError as error:
        print(f"damaged stream: {error}")


if __name__ == "__main__":
    main()
