# SPDX-License-Identifier: MIT
"""Images to .gmx files and back: the model, the coder and the container joined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from groupedmixer_ext.engine import Region, Settings

from . import container, tiled
from .coding import ARITHMETIC_ID, SKIP_BELOW, TILE, CodedLatent, CodedTile, LatentCoder, Progress
from .container import QUALITY_STEPS, ColourSpace, GmxFile, Header, Tile, quality_field
from .errors import UnsupportedVersionError, WrongWeightsError
from .export import Weights
from .images import Picture, as_picture, decode_alpha, encode_alpha, to_pil
from .limits import MAX_PIXELS
from .stages import UNTIMED, Stages
from .tiles import LATENT_STRIDE as STRIDE
from .tiles import TileGrid, tile_grid

__all__ = ["Codec", "check_device"]

Box: TypeAlias = tuple[int, int, int, int]
"""(left, upper, right, lower) pixels, as `PIL.Image.Image.crop` takes them."""


class Codec:
    """Compresses images to .gmx files with one set of weights, and reads them again.

    .. code-block:: none

        image --as_picture--> g_a --> y --LatentCoder--> tiles --container--> bytes
                                                                      |
        image <--to_pil-- g_s <-- y_hat <--LatentCoder-- tiles <------'

    With the ``patch`` transforms all between picture and tiles is one native call, and the pixels
    are the same on every machine. Other transforms run in PyTorch. Usually made by
    `groupedmixer.load`. One codec may be used by several threads at once.

    Parameters
    ----------
    weights
        Of `load_weights`, or of `export_weights` for a model of one's own.
    device
        Where to run, ``"cpu"`` or ``"cuda"``. Files are the same, and pixels too with the ``patch``
        transforms.

    Raises
    ------
    ValueError
        If there is no such device, or the weights do not fit their configuration.
    RuntimeError, MemoryError
        If the GPU cannot be used, or is full.
    """

    def __init__(self, weights: Weights, device: str | torch.device = "cpu") -> None:
        self.device = check_device(device)
        self.name = weights.name
        self.fingerprint = weights.fingerprint
        model = weights.model().requires_grad_(False)
        self.config = model.config
        self._native = self.config.transform == "patch"
        transforms = (model.g_a, model.g_s)
        self._coder = LatentCoder(
            model.latent_codec, transforms if self._native else None, self.device
        )
        self._pad = model.pad
        self._g_a, self._g_s = (module.to(self.device) for module in transforms)

    def __repr__(self) -> str:
        return f"Codec({self.name!r}, {self.fingerprint.hex()}, device={str(self.device)!r})"

    def compress(
        self,
        image: object,
        quality: float = 4.0,
        *,
        metadata: bool = True,
        stages: Stages = UNTIMED,
        progress: Progress | None = None,
    ) -> bytes:
        """Compresses an image to the bytes of a .gmx file.

        Parameters
        ----------
        image
            Pillow image; uint8 array [H, W, 3] (RGB), [H, W, 4] (RGBA) or [H, W] (grey), numpy or
            torch; or float tensor [3, H, W] in 0..1. Alpha is kept without loss. See
            `groupedmixer.images` for other Pillow modes.
        quality
            0 (small) .. 7 (fine), in steps of 1/256.
        metadata
            Whether to store the ICC profile, EXIF data and XMP that come with the image. Without
            its profile, a picture whose colours are not sRGB's will look wrong.
        stages
            Collects where the time goes.
        progress
            Called with the number of tiles that are coded, and of all, on the calling thread:
            (0, n) first, (n, n) last, and in between when there is something new. A tile is 1024
            x 1024 pixels. What it raises ends the call, and comes out of it. Of a GPU only (n, n);
            transforms in PyTorch do not count.

        Warns
        -----
        MetadataWarning
            If metadata are damaged or too large, and were dropped.

        Raises
        ------
        UnsupportedImageError
            If the image is of a kind that cannot be coded; the message says what to do.
        ValueError, TypeError
            If ``quality`` is out of range, or ``image`` is no image.
        MemoryError
            If the picture does not fit.
        """
        field = quality_field(quality)
        picture = as_picture(image)
        if not metadata:
            picture = picture.without_metadata()
        coded = self.encode_latent(
            picture, quality, want_latent=False, stages=stages, progress=progress
        )
        with stages("file"):
            header = Header(
                weights_fingerprint=self.fingerprint,
                weights_name=self.name,
                arithmetic_id=ARITHMETIC_ID,
                quality=field,
                width=picture.width,
                height=picture.height,
                colour_space=ColourSpace.GREY if picture.grey else ColourSpace.SRGB,
                skip_below=SKIP_BELOW,
                tile_latents=TILE,
            )
            tiles = tuple(Tile(tile.stream, tile.checksum) for tile in coded.tiles)
            alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
            file = GmxFile(
                header,
                tiles,
                alpha,
                icc_profile=picture.icc_profile,
                exif=picture.exif,
                xmp=picture.xmp,
            )
            return container.write(file)

    def decompress(
        self,
        data: bytes | bytearray | memoryview,
        max_pixels: int = MAX_PIXELS,
        *,
        region: Box | None = None,
        stages: Stages = UNTIMED,
        progress: Progress | None = None,
    ) -> Image.Image:
        """Reads a .gmx file: a Pillow image of mode RGB, L, RGBA or LA.

        Its ``info`` has the metadata of the file under ``"icc_profile"``, ``"exif"`` and ``"xmp"``,
        as Pillow has them of a JPEG file. They are as trustworthy as the file.

        Parameters
        ----------
        data
            The whole file.
        max_pixels
            Larger pictures are refused before memory is taken for them.
        region
            (left, upper, right, lower) in pixels: decodes only the tiles that these pixels depend
            on, and returns them alone.
        stages
            Collects where the time goes.
        progress
            As of `compress`, with the tiles that are decoded.

        Raises
        ------
        NotGmxError, UnsupportedVersionError, TruncatedError, CorruptError, PixelLimitError
            If the file cannot be read; see `groupedmixer.errors`.
        WrongWeightsError
            If it was made with other weights; names them.
        ArithmeticMismatchError
            If this machine computes other numbers than the one that made the file.
        ValueError
            If ``region`` is empty or not inside the picture.
        MemoryError
            If the picture does not fit.
        """
        with stages("file"):
            file = container.parse(data, max_pixels)
        grid = self._check(file)
        header = file.header
        grey = header.colour_space == ColourSpace.GREY
        box = _check_box(region, header)
        with _out_of_memory_is_one_error():
            if self._native:
                rgb = self._coder.decode_picture(
                    _coded_tiles(file),
                    (header.height, header.width),
                    Settings(header.quality, header.skip_below, header.tile_latents),
                    Region(box[1], box[0], box[3], box[2]),
                    grey,
                    stages,
                    progress,
                )
            else:
                rgb = self._decode_in_torch(file, grid, box, grey, stages, progress)
        with stages("file"):
            alpha = None
            if file.alpha is not None:
                alpha = decode_alpha(file.alpha, header.width, header.height)
                alpha = np.ascontiguousarray(alpha[box[1] : box[3], box[0] : box[2]])
        picture = Picture(
            rgb,
            alpha,
            grey,
            icc_profile=_copied(file.icc_profile),
            exif=_copied(file.exif),
            xmp=_copied(file.xmp),
        )
        return to_pil(picture)

    def encode_latent(
        self,
        picture: Picture,
        quality: float,
        *,
        want_latent: bool = True,
        stages: Stages = UNTIMED,
        progress: Progress | None = None,
    ) -> CodedLatent:
        """The coded latent of a picture: what `compress` puts into a file.

        Its ``y_hat`` is what `decode_latent` returns; None if it is not wanted.
        """
        with _out_of_memory_is_one_error():
            if self._native:
                return self._coder.encode_picture(
                    picture.rgb, quality, want_latent, stages, progress
                )
            with stages("transform"), torch.inference_mode():
                rgb = torch.from_numpy(picture.rgb).to(self.device)
                x = self._pad(rgb.permute(2, 0, 1)[None].float() / 255)
                y = tiled.analyse(self._g_a, x)
                del rgb, x
            return self._coder.encode(y, [quality], SKIP_BELOW, TILE, stages, progress)[0]

    def decode_latent(
        self, file: GmxFile, *, stages: Stages = UNTIMED
    ) -> Tensor:  # [1, M, H, W] float32, gains still in
        """The latent of a parsed file, checksums compared. Raises as `decompress` does."""
        grid = self._check(file)
        with _out_of_memory_is_one_error():
            return self._decode_tiles(file, grid, None, stages, None)

    def report(self) -> dict[str, int]:
        """What the engine of a GPU did last: `groupedmixer_ext.engine.Engine.report`."""
        return self._coder.report()

    def _check(self, file: GmxFile) -> TileGrid:
        """Its tiles, if the file can be decoded here."""
        header = file.header
        if header.weights_fingerprint != self.fingerprint:
            raise WrongWeightsError(
                header.weights_name, header.weights_fingerprint, [(self.name, self.fingerprint)]
            )
        if header.arithmetic_id != ARITHMETIC_ID:
            raise UnsupportedVersionError(
                f"the file needs the arithmetic '{header.arithmetic_id}', this version of "
                f"groupedmixer has '{ARITHMETIC_ID}'"
            )
        grid = tile_grid(header.height, header.width, header.tile_latents, *self.config.patch)
        container.check_tiles(file, grid.count)
        return grid

    def _decode_tiles(
        self,
        file: GmxFile,
        grid: TileGrid,
        wanted: list[bool] | None,
        stages: Stages,
        progress: Progress | None,
    ) -> Tensor:  # [1, M, H, W] float32, gains still in
        header = file.header
        return self._coder.decode(
            [_coded_tiles(file)],
            (grid.height, grid.width),
            [header.quality / QUALITY_STEPS],
            header.skip_below,
            header.tile_latents,
            stages,
            wanted,
            progress,
        )

    def _decode_in_torch(
        self,
        file: GmxFile,
        grid: TileGrid,
        box: Box,
        grey: bool,
        stages: Stages,
        progress: Progress | None,
    ) -> npt.NDArray[np.uint8]:  # [lower - upper, right - left, 3]
        left, upper, right, lower = box
        rows, columns = (
            (upper // STRIDE, -(-lower // STRIDE)),
            (left // STRIDE, -(-right // STRIDE)),
        )
        wanted = [
            down.start < rows[1] + tiled.MARGIN
            and rows[0] - tiled.MARGIN < down.stop
            and across.start < columns[1] + tiled.MARGIN
            and columns[0] - tiled.MARGIN < across.stop
            for down, across in grid.slices()
        ]
        latent = self._decode_tiles(file, grid, wanted, stages, progress)
        with stages("transform"), torch.inference_mode():
            y_hat = self._coder.unscale(latent, [file.header.quality / QUALITY_STEPS])
            del latent
            out = np.empty((lower - upper, right - left, 3), np.uint8)
            for top, first, x_hat in tiled.synthesise(
                self._g_s, y_hat.to(self.device), rows, columns
            ):
                if grey:
                    x_hat = x_hat.mean(0, keepdim=True).expand(3, -1, -1)
                levels = (x_hat.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
                _paste(levels.cpu().numpy(), top - upper, first - left, out)
        return out


def _copied(data: bytes | memoryview | None) -> bytes | None:
    return None if data is None else bytes(data)


def _coded_tiles(file: GmxFile) -> list[CodedTile]:
    return [CodedTile(tile.stream, tile.latent_crc) for tile in file.tiles]


def _check_box(region: Box | None, header: Header) -> Box:
    if region is None:
        return (0, 0, header.width, header.height)
    left, upper, right, lower = region
    if not (0 <= left < right <= header.width and 0 <= upper < lower <= header.height):
        raise ValueError(
            f"region must be (left, upper, right, lower), not empty and inside the picture of "
            f"{header.width} x {header.height} pixels, got {tuple(region)}"
        )
    return (left, upper, right, lower)


def _paste(
    pixels: npt.NDArray[np.uint8],  # [h, w, 3]
    top: int,
    left: int,
    out: npt.NDArray[np.uint8],  # [H, W, 3], updated in place where the two overlap
) -> None:
    rows = slice(max(top, 0), min(top + pixels.shape[0], out.shape[0]))
    columns = slice(max(left, 0), min(left + pixels.shape[1], out.shape[1]))
    out[rows, columns] = pixels[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]


def check_device(device: str | torch.device) -> torch.device:
    """The device, if it can be used. ValueError if it is unknown or absent."""
    name = str(device)
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device must be 'cpu' here, got {name!r}: PyTorch sees no CUDA device")
    return torch.device(device)


@contextmanager
def _out_of_memory_is_one_error() -> Iterator[None]:
    """PyTorch's allocators raise RuntimeErrors; callers expect MemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
