# SPDX-License-Identifier: MIT
"""A photo to a .gmx file and back with the bundled weights, and what a JPEG would have taken.

python benchmarks/demo.py OUTPUT_FOLDER [--image FILE] [--quality Q]
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

import groupedmixer
from groupedmixer.images import load_picture, to_pil

PHOTO = Path(__file__).parent / "data" / "flowers.png"


def psnr(a: Image.Image, b: Image.Image) -> float:
    """PSNR over all RGB samples, dB."""
    error = np.asarray(a.convert("RGB"), np.float64) - np.asarray(b.convert("RGB"), np.float64)
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def jpeg_bytes_at(image: Image.Image, target: float) -> float | None:
    """Bytes of Pillow's best JPEG of this PSNR: optimize, with or without chroma subsampling.

    Log-linear between the two qualities around the target; None if no quality reaches it.
    """
    curves = [_jpeg_bytes_at(image.convert("RGB"), target, subsampling) for subsampling in (0, 2)]
    return min((size for size in curves if size is not None), default=None)


def _jpeg_bytes_at(image: Image.Image, target: float, subsampling: int) -> float | None:
    below: tuple[float, int] | None = None
    for quality in range(1, 101):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=subsampling)
        here = psnr(Image.open(buffer), image), buffer.tell()
        if here[0] >= target:
            if below is None:
                return here[1]
            share = (target - below[0]) / (here[0] - below[0])
            return float(np.exp(np.interp(share, [0, 1], np.log([below[1], here[1]]))))
        below = here
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--image", type=Path, default=PHOTO)
    parser.add_argument("--quality", type=float, default=4.0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    codec = groupedmixer.load("rt")
    picture = load_picture(args.image)
    original = to_pil(picture)
    start = time.perf_counter()
    data = codec.compress(picture, args.quality)
    encoded = time.perf_counter()
    decoded = codec.decompress(data)
    done = time.perf_counter()

    compressed = args.folder / f"{args.image.stem}.gmx"
    restored = args.folder / f"{args.image.stem}.decoded.png"
    compressed.write_bytes(data)
    decoded.save(restored)
    quality = psnr(decoded, original)
    jpeg = jpeg_bytes_at(original, quality)
    pixels = picture.width * picture.height
    print(f"weights    {codec.name} ({codec.fingerprint.hex()}), quality {args.quality}")
    print(f"photo      {args.image}, {picture.width}x{picture.height}")
    print(f"compressed {compressed}: {len(data)} bytes, {8 * len(data) / pixels:.3f} bpp")
    print(f"decoded    {restored}: PSNR {quality:.2f} dB")
    print(f"time       {encoded - start:.2f} s to compress, {done - encoded:.2f} s to decompress")
    if jpeg is None:
        print("JPEG       reaches this PSNR at no quality")
    else:
        difference = 100 * (len(data) / jpeg - 1)
        print(f"JPEG       of the same PSNR: {jpeg:.0f} bytes; .gmx takes {difference:+.1f} %")


if __name__ == "__main__":
    main()
