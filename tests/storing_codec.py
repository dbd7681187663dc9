# SPDX-License-Identifier: MIT
"""A codec that stores samples, for tests of the command line: fast, exact, and no weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import groupedmixer
from groupedmixer import cli
from groupedmixer.coding import ARITHMETIC_ID
from groupedmixer.container import GmxFile, Header, Tile, parse, parse_header, quality_field, write
from groupedmixer.images import Picture, decode_alpha, encode_alpha, to_pil
from groupedmixer.limits import MAX_PIXELS
from groupedmixer.tiles import tile_grid
from groupedmixer_ext.engine import Progress


class StoringCodec:
    """Keeps the samples as they are in the first tile's stream."""

    fingerprint = bytes(8)

    def compress(
        self, image: Picture, quality: float = 4.0, progress: Progress | None = None
    ) -> bytes:
        if progress is not None:
            progress(0, 2)
        header = Header(bytes(8), "rt-1", ARITHMETIC_ID, quality_field(quality), *size(image))
        streams = [image.rgb.tobytes()]
        streams += [b""] * (
            tile_grid(image.height, image.width, header.tile_latents, 2, 2).count - 1
        )
        alpha = None if image.alpha is None else encode_alpha(image.alpha)
        return write(GmxFile(header, tuple(Tile(stream, 0) for stream in streams), alpha))

    def decompress(
        self,
        data: bytes,
        max_pixels: int = MAX_PIXELS,
        *,
        region: tuple[int, int, int, int] | None = None,
        progress: Progress | None = None,
    ) -> Image.Image:
        if progress is not None:
            progress(1, 2)
        file = parse(data, max_pixels)
        width, height = file.header.width, file.header.height
        rgb = np.frombuffer(file.tiles[0].stream, np.uint8).reshape(height, width, 3)
        alpha = None if file.alpha is None else decode_alpha(file.alpha, width, height)
        image = to_pil(Picture(rgb, alpha))
        return image if region is None else image.crop(region)


def size(image: Picture) -> tuple[int, int]:
    return image.width, image.height


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, str]]:
    """Makes it the codec of every name, and the folder the current one. Collects what is loaded."""
    seen: list[tuple[str, str]] = []

    def load(name: str, device: str = "cpu") -> StoringCodec:
        seen.append((name, device))
        return StoringCodec()

    def load_for(data: bytes, device: str = "cpu") -> StoringCodec:
        return load(parse_header(data).weights_name, device)

    monkeypatch.setattr(groupedmixer, "load", load, raising=False)
    monkeypatch.setattr(groupedmixer, "load_for", load_for, raising=False)
    monkeypatch.chdir(folder)
    return seen


def picture(name: str, mode: str = "RGB", shape: tuple[int, int] = (20, 12)) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, shape, tuple(range(40, 40 + len(mode)))).save(path)
    return path


def coded(name: str, mode: str = "RGB") -> Path:
    path = Path(name)
    source = picture("coded.png", mode)
    assert cli.main(["compress", str(source), "coded.gmx", "--quiet", "--force"]) == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace("coded.gmx", path)
    source.unlink()
    return path


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def run(*arguments: str) -> int:
    return cli.main(list(arguments))
