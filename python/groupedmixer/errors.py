# SPDX-License-Identifier: MIT
"""The errors a caller can act on. All of them derive from GmxError; anything else is a bug."""

from __future__ import annotations

from collections.abc import Sequence


class GmxError(Exception):
    """Any expected failure of this package: show its message and go on with the next file."""


class NotGmxError(GmxError):
    """The data is empty or of another format: check that the right file was given."""


class UnsupportedVersionError(GmxError):
    """The file was made by a newer groupedmixer: upgrade the package to read it."""


class TruncatedError(GmxError):
    """The file ends too early: copy or download it again."""


class CorruptError(GmxError):
    """The file is damaged (a checksum or its structure is wrong): take another copy of it."""


class WrongWeightsError(GmxError):
    """The file needs other weights than those at hand: load or install the ones it names.

    Args:
        name: the name of the weights that the file was coded with.
        fingerprint: their fingerprint, 8 bytes.
        available: name and fingerprint of each of the weights at hand.
    """

    def __init__(
        self, name: str, fingerprint: bytes, available: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        super().__init__(name, fingerprint, available)
        self.name = name
        self.fingerprint = fingerprint
        self.available = tuple(available)

    def __str__(self) -> str:
        at_hand = ", ".join(f"'{name}' ({mark.hex()})" for name, mark in self.available)
        return (
            f"the file needs the weights '{self.name}' ({self.fingerprint.hex()}), "
            f"available: {at_hand or 'none'}"
        )


class ArithmeticMismatchError(GmxError):
    """The stream decodes to another latent than it was made from: report it.

    The latent's checksum differs, or the stream does not end where it should. The bytes themselves
    are intact, so this machine computed other numbers than the one that wrote them.
    """


class PixelLimitError(GmxError):
    """The picture has more pixels than allowed: raise max_pixels if its source is trusted."""


class UnsupportedImageError(GmxError):
    """The input image cannot be coded: convert it as the message says."""


class MetadataWarning(UserWarning):
    """A part of the image's metadata cannot be kept and was dropped; the picture is whole."""
