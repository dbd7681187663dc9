# SPDX-License-Identifier: MIT
"""Images to .gmx files and back: the model, the coder and the container joined."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from groupedmixer_ext.rans import RansError

from . import container
from .coding import (
    ARITHMETIC_ID,
    SKIP_BELOW,
    TILE,
    CodedLatent,
    DecodedLatent,
)
from .container import QUALITY_STEPS, ColourSpace, GmxFile, Header, Tile, quality_field
from .errors import (
    ArithmeticMismatchError,
    CorruptError,
    UnsupportedVersionError,
    WrongWeightsError,
)
from .export import exported_state, fingerprint
from .images import Picture, as_picture, decode_alpha, encode_alpha, to_pil
from .limits import MAX_PIXELS
from .model import GroupedMixer
from .stages import UNTIMED, Stages
from .tiles import tile_grid

__all__ = ["Codec"]


class Codec:
    """Compresses images to .gmx files with one set of weights, and reads them again.

    .. code-block:: none

        image --as_picture--> g_a --> y --LatentCoder--> streams --container--> bytes
                                                                        |
        image <--to_pil-- g_s <-- y_hat <--LatentCoder-- streams <------'

    Usually made by `groupedmixer.load`. One codec may be used by several threads at once.

    Parameters
    ----------
    model
        Weights; exported to float16 and back first, as files demand it.
    name
        What files will call the weights: 1..32 characters of ``[a-z0-9._-]``.
    device
        Where the transforms run, ``"cpu"`` or ``"cuda"``. The entropy model runs on the CPU on
        either, so that files do not depend on it.
    """

    def __init__(self, model: GroupedMixer, name: str, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("device must be 'cpu' on this machine: PyTorch sees no CUDA device")
        state = exported_state(model)
        self.name = name
        self.fingerprint = fingerprint(state)
        self.config = model.config
        self._model = GroupedMixer.from_state_dict(state).eval().requires_grad_(False)
        self._coder = self._model.latent_codec.coder()
        self._model.g_a.to(self.device)
        self._model.g_s.to(self.device)

    def __repr__(self) -> str:
        return f"Codec({self.name!r}, {self.fingerprint.hex()}, device={str(self.device)!r})"

    @torch.inference_mode()
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
            tiles = tuple(map(Tile, coded.streams, coded.checksums))
            alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
            return container.write(GmxFile(header, tiles, alpha))

    @torch.inference_mode()
    def encode_latent(
        self, picture: Picture, quality: float, *, stages: Stages = UNTIMED
    ) -> CodedLatent:
        """The coded latent of a picture: what `compress` puts into a file."""
        with stages("transform"):
            rgb = torch.from_numpy(picture.rgb).to(self.device)
            x = rgb.permute(2, 0, 1)[None].float() / 255
            y = self._model.g_a(self._model.pad(x)).float().cpu()
        return self._coder.encode(y, quality, SKIP_BELOW, TILE, stages)

    @torch.inference_mode()
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
            If this machine computes other bits than the one that made the file.
        """
        with stages("file"):
            file = container.parse(data, max_pixels)
            alpha = None
            if file.alpha is not None:
                alpha = decode_alpha(file.alpha, file.header.width, file.header.height)
        header = file.header
        decoded = self.decode_latent(file, stages=stages)
        with stages("transform"):
            y_hat = self._coder.unscale(decoded.y_hat, header.quality / QUALITY_STEPS)
            x_hat = self._model.g_s(y_hat.to(self.device))[0, :, : header.height, : header.width]
            if header.colour_space == ColourSpace.GREY:
                x_hat = x_hat.mean(0, keepdim=True).expand(3, -1, -1)
            levels = (x_hat.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
            rgb = np.ascontiguousarray(levels.cpu().numpy())
        return to_pil(Picture(rgb, alpha, header.colour_space == ColourSpace.GREY))

    @torch.inference_mode()
    def decode_latent(self, file: GmxFile, *, stages: Stages = UNTIMED) -> DecodedLatent:
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
        grid = tile_grid(header.width, header.height, header.tile_latents, *self.config.patch)
        container.check_tiles(file, grid.count)
        try:
            decoded = self._coder.decode(
                [bytes(tile.stream) for tile in file.tiles],
                (grid.height, grid.width),
                header.quality / QUALITY_STEPS,
                header.skip_below,
                header.tile_latents,
                stages,
            )
        except RansError as error:
            # The chunk's checksum was right, so the bytes are those that were written.
            raise ArithmeticMismatchError(
                f"the stream does not decode to the latent it was made from: {error}"
            ) from error
        except RuntimeError as error:
            raise CorruptError(f"the stream decodes to numbers out of range: {error}") from error
        for index, (tile, found) in enumerate(zip(file.tiles, decoded.checksums, strict=True)):
            if tile.latent_crc != found:
                raise ArithmeticMismatchError(
                    f"tile {index} decodes to a latent with checksum {found:08x}, the file says "
                    f"{tile.latent_crc:08x}: this machine or PyTorch computes other bits"
                )
        return decoded
