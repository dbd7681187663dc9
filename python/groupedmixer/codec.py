# SPDX-License-Identifier: MIT
"""Images to .gmx files and back: the model, the coder and the container joined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from . import container
from .coding import ARITHMETIC_ID, SKIP_BELOW, TILE, CodedLatent, CodedTile, LatentCoder
from .container import QUALITY_STEPS, ColourSpace, GmxFile, Header, Tile, quality_field
from .errors import UnsupportedVersionError, WrongWeightsError
from .export import Weights
from .images import Picture, as_picture, decode_alpha, encode_alpha, to_pil
from .limits import MAX_PIXELS
from .stages import UNTIMED, Stages
from .tiles import tile_grid

__all__ = ["Codec", "check_device"]


class Codec:
    """Compresses images to .gmx files with one set of weights, and reads them again.

    .. code-block:: none

        image --as_picture--> g_a --> y --LatentCoder--> tiles --container--> bytes
                                                                      |
        image <--to_pil-- g_s <-- y_hat <--LatentCoder-- tiles <------'

    Usually made by `groupedmixer.load`. One codec may be used by several threads at once.

    Parameters
    ----------
    weights
        Of `load_weights`, or of `export_weights` for a model of one's own.
    device
        Where the transforms run, ``"cpu"`` or ``"cuda"``. The entropy model runs on the CPU on
        either, so that files do not depend on it.

    Raises
    ------
    ValueError
        If there is no such device, or the weights do not fit their configuration.
    """

    def __init__(self, weights: Weights, device: str | torch.device = "cpu") -> None:
        self.device = check_device(device)
        self.name = weights.name
        self.fingerprint = weights.fingerprint
        model = weights.model().requires_grad_(False)
        self.config = model.config
        self._coder = LatentCoder(model.latent_codec)
        self._pad = model.pad
        self._g_a = model.g_a.to(self.device)
        self._g_s = model.g_s.to(self.device)

    def __repr__(self) -> str:
        return f"Codec({self.name!r}, {self.fingerprint.hex()}, device={str(self.device)!r})"

    def compress(self, image: object, quality: float = 4.0, *, stages: Stages = UNTIMED) -> bytes:
        """Compresses an image to the bytes of a .gmx file.

        Parameters
        ----------
        image
            Pillow image; uint8 array [H, W, 3] (RGB), [H, W, 4] (RGBA) or [H, W] (grey), numpy or
            torch; or float tensor [3, H, W] in 0..1. Alpha is kept without loss. See
            `groupedmixer.images` for other Pillow modes.
        quality
            0 (small) .. 7 (fine), in steps of 1/256.
        stages
            Collects where the time goes.

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
        coded = self.encode_latent(picture, quality, stages=stages)
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
            return container.write(GmxFile(header, tiles, alpha))

    def decompress(
        self,
        data: bytes | bytearray | memoryview,
        max_pixels: int = MAX_PIXELS,
        *,
        stages: Stages = UNTIMED,
    ) -> Image.Image:
        """Reads a .gmx file: a Pillow image of mode RGB, L, RGBA or LA.

        Parameters
        ----------
        data
            The whole file.
        max_pixels
            Larger pictures are refused before memory is taken for them.
        stages
            Collects where the time goes.

        Raises
        ------
        NotGmxError, UnsupportedVersionError, TruncatedError, CorruptError, PixelLimitError
            If the file cannot be read; see `groupedmixer.errors`.
        WrongWeightsError
            If it was made with other weights; names them.
        ArithmeticMismatchError
            If this machine computes other numbers than the one that made the file.
        MemoryError
            If the picture does not fit.
        """
        with stages("file"):
            file = container.parse(data, max_pixels)
        header = file.header
        grey = header.colour_space == ColourSpace.GREY
        latent = self.decode_latent(file, stages=stages)
        with stages("transform"):
            rgb = self._synthesise(latent, header, grey)
        with stages("file"):
            alpha = None
            if file.alpha is not None:
                alpha = decode_alpha(file.alpha, header.width, header.height)
        return to_pil(Picture(rgb, alpha, grey))

    @torch.inference_mode()
    def encode_latent(
        self, picture: Picture, quality: float, *, stages: Stages = UNTIMED
    ) -> CodedLatent:
        """The coded latent of a picture: what `compress` puts into a file."""
        with _out_of_memory_is_one_error():
            with stages("transform"):
                rgb = torch.from_numpy(picture.rgb).to(self.device)
                x = rgb.permute(2, 0, 1)[None].float() / 255
                y = self._g_a(self._pad(x)).cpu()
            return self._coder.encode(y, quality, SKIP_BELOW, TILE, stages)

    def decode_latent(
        self, file: GmxFile, *, stages: Stages = UNTIMED
    ) -> Tensor:  # [1, M, H, W] float32, gains still in
        """The latent of a parsed file, checksums compared. Raises as `decompress` does."""
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
        with _out_of_memory_is_one_error():
            return self._coder.decode(
                [CodedTile(tile.stream, tile.latent_crc) for tile in file.tiles],
                (grid.height, grid.width),
                header.quality / QUALITY_STEPS,
                header.skip_below,
                header.tile_latents,
                stages,
            )

    @torch.inference_mode()
    def _synthesise(
        self,
        latent: Tensor,  # [1, M, H, W] gains still in
        header: Header,
        grey: bool,
    ) -> npt.NDArray[np.uint8]:  # [height, width, 3], three equal channels where grey
        with _out_of_memory_is_one_error():
            y_hat = self._coder.unscale(latent, header.quality / QUALITY_STEPS)
            x_hat = self._g_s(y_hat.to(self.device))[0, :, : header.height, : header.width]
            if grey:
                x_hat = x_hat.mean(0, keepdim=True).expand(3, -1, -1)
            levels = (x_hat.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
            return np.ascontiguousarray(levels.cpu().numpy())


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
