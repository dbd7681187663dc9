# SPDX-License-Identifier: MIT
"""The .gmx format for Pillow, from ``import groupedmixer`` on.

>>> import groupedmixer
>>> from PIL import Image
>>> Image.open("photo.png").save("photo.gmx", quality=4.0)         # doctest: +SKIP
>>> with Image.open("photo.gmx") as image: image.thumbnail((99, 99))     # doctest: +SKIP

Options of `PIL.Image.Image.save`:

- ``quality``: 0 (small) .. 7 (fine), fractions allowed; 4 by default
- ``model``: a name of bundled weights, or the path of a .safetensors file; "rt" by default
- ``codec``: a `groupedmixer.Codec` to use in place of ``model``'s
- ``exif``, ``icc_profile``, ``xmp``: in place of what ``image.info`` has, None for none

`PIL.Image.open` reads the header and the metadata; pixels are decoded when they are asked for.
``info`` has what the file holds of ``exif``, ``icc_profile`` and ``xmp``, and ``quality``,
``weights`` (their name), ``fingerprint`` (hexadecimal) and ``arithmetic``. The weights are found as
`groupedmixer.load_for` finds them and stay loaded, as do those that a file has been saved with;
`use_codec` adds others. A picture's size is limited by ``Image.MAX_IMAGE_PIXELS`` alone.

As with every format of Pillow, saving under the name of an existing file empties that file before
it is encoded; the command line replaces files at once.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from . import container
from .chunk_index import ChunkIndex, read_index
from .errors import GmxError
from .metadata import EXIF_PREFIX

if TYPE_CHECKING:
    from .codec import Codec

__all__ = ["GmxImageFile", "register", "use_codec"]

_FORMAT = "GMX"
_SUFFIX = ".gmx"
_MIME_TYPE = "image/x-gmx"
_METADATA = ("exif", "icc_profile", "xmp")

_codecs: dict[bytes, Codec] = {}  # of use_codec and of saved files, by fingerprint


def register() -> None:
    """Makes Pillow read and write .gmx files. Called when both packages have been imported.

    Where a part that coding needs is not installed, Pillow is only told to say so when it meets a
    .gmx file.
    """
    problem = _missing_part()
    if problem is not None:
        Image.register_open(_FORMAT, GmxImageFile, lambda prefix: _accept(prefix) and problem)
        return
    Image.register_open(_FORMAT, GmxImageFile, _accept)
    Image.register_save(_FORMAT, _save)
    Image.register_extension(_FORMAT, _SUFFIX)
    Image.register_mime(_FORMAT, _MIME_TYPE)


def use_codec(codec: Codec) -> None:
    """Lets `PIL.Image.open` decode files of this codec's weights with it.

    For weights of one's own, or to decode on a GPU. Replaces an earlier codec of the same weights.
    """
    _codecs[codec.fingerprint] = codec


class GmxImageFile(ImageFile.ImageFile):
    """A .gmx file that Pillow has opened."""

    format = _FORMAT
    format_description = "GroupedMixer image"

    def _open(self) -> None:
        assert self.fp is not None
        try:
            index = read_index(self.fp)
        except GmxError as error:
            name = self.filename if self.filename else self.fp
            raise UnidentifiedImageError(f"cannot identify image file {name!r}: {error}") from error
        header = index.header
        self._size = (header.width, header.height)
        self._mode = _mode(index)
        self.info.update(
            quality=header.quality / container.QUALITY_STEPS,
            weights=header.weights_name,
            fingerprint=header.weights_fingerprint.hex(),
            arithmetic=header.arithmetic_id,
            **index.metadata,
        )
        if "exif" in self.info:  # the form that it has in a decoded picture's info
            self.info["exif"] = EXIF_PREFIX + self.info["exif"]
        # Says that there is something to load; load() does it without Pillow's decoders.
        self.tile = [ImageFile._Tile("gmx", (0, 0, *self._size), 0, None)]

    def load(self) -> Any:
        """Decodes the pixels, the first time.

        Raises
        ------
        OSError
            If the file is damaged or truncated, or its weights are not at hand.
        """
        if self.tile:
            data = self._whole_file()
            try:
                codec = _codec_for(data)
                # Pillow has compared the size with its own limit when it opened the file.
                decoded = codec.decompress(data, max_pixels=self.width * self.height)
            except GmxError as error:
                raise OSError(f"{error}") from error
            self.im = decoded.im
            self.info.update(decoded.info)
            self.tile = []
            self.readonly = 0
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self.fp = None
        return super().load()

    def verify(self) -> None:
        """Compares all checksums of the file, without decoding. OSError if one is wrong."""
        try:
            container.parse(self._whole_file())
        except GmxError as error:
            raise OSError(f"{error}") from error
        finally:
            super().verify()

    def _whole_file(self) -> bytes:
        if self.fp is None:
            raise ValueError("the image must be open, it has been closed")
        self.fp.seek(0)
        return self.fp.read()


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.SIGNATURE)


def _mode(index: ChunkIndex) -> str:
    grey = index.header.colour_space == container.ColourSpace.GREY
    if index.has_alpha:
        return "LA" if grey else "RGBA"
    return "L" if grey else "RGB"


def _codec_for(data: bytes) -> Codec:
    own = _codecs.get(container.parse_header(data).weights_fingerprint)
    if own is not None:
        return own
    from .zoo import load_for

    return load_for(data)


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    options = getattr(image, "encoderinfo", {})
    codec = options.get("codec")
    if codec is None:
        codec = _codec(options.get("model", "rt"))
    from .images import from_pil

    try:
        picture = from_pil(image, _metadata(options))
        data = codec.compress(picture, options.get("quality", 4.0))
    except GmxError as error:
        raise OSError(f"cannot write as {_FORMAT}: {error}") from error
    fp.write(data)
    if hasattr(fp, "flush"):  # anything that can be written to will do
        fp.flush()


def _metadata(options: dict[str, Any]) -> dict[str, bytes | None]:
    """The metadata among the options, None for none."""
    given = {name: options[name] for name in _METADATA if name in options}
    if isinstance(given.get("exif"), Image.Exif):
        given["exif"] = given["exif"].tobytes()
    return given


def _codec(model: str) -> Codec:
    path = Path(model)
    changed = path.stat().st_mtime_ns if path.suffix == ".safetensors" else 0
    codec = _load_once(str(model), changed)
    _codecs.setdefault(codec.fingerprint, codec)  # what was saved can be opened
    return codec


@lru_cache(maxsize=4)
def _load_once(model: str, changed: int) -> Codec:
    """`changed` tells the versions of a file from each other."""
    from .zoo import load

    return load(model)


def _missing_part() -> str | None:
    """Why nothing can be coded here, found without importing anything heavy."""
    for name in ("torch", "compressai", "groupedmixer_ext._engine"):
        if importlib.util.find_spec(name) is None:
            return f"GMX files cannot be read: {name} is not installed (pip install groupedmixer)"
    return None
