# SPDX-License-Identifier: MIT
"""Every size of a GroupedMixer codec in one frozen dataclass, and the named configurations.

The sizes are this project's own choice: the paper (arXiv 2405.01170) names the idea and the group
counts, and its method section does not state every width.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any, Literal, cast

from .group_order import Order, phases_outer
from .tiles import MAX_PATCH

__all__ = ["CONFIGS", "LAMBDAS", "NUM_LEVELS", "Config", "get_config"]

# Level k of the quality scale means this Lagrange multiplier on the MSE over 0..255 (compressai's
# convention): a factor of 2.4 from level to level, 0.0008 .. 0.37, 4.6 times what compressai's
# eight qualities span. Streams store the quality, so from format version 1 on the meaning of a
# level never changes.
NUM_LEVELS = 8
LAMBDAS = tuple(0.0265 * 2.4 ** (level - 4) for level in range(NUM_LEVELS))

HEAD_DIM = 32
MAX_PATCH_CHANNELS = 3 * 16 * 16
WINDOW = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches of one codec. Immutable, hashable, stored with the weights as JSON.

    Parameters
    ----------
    name
        What people call it; it does not change the arithmetic.
    transform
        ``"patch"``: g_a, g_s of strict operations only (a linear 16x16 block transform beside a
        small convolutional network). ``"elic"``: ELIC's convolutions and attention (arXiv
        2203.10886), from compressai's layers.
    latent_channels
        M, channels of y. A multiple of ``slices``.
    transform_width
        ``"patch"``: channels of the networks at 1/8 and at 1/16. ``"elic"``: (N, N).
    transform_depth
        ``"patch"``: blocks at 1/8 and at 1/16. Not used by ``"elic"`` (pass (0, 0)).
    hyper_width, hyper_channels
        Inner width of h_a and h_s; channels of z.
    slices, patch
        k_c channel slices and k_h x k_w phases of positions: G = k_c * k_h * k_w groups.
    order
        Coding order of the groups as (slice, row phase, column phase) triples, or None for
        `slices_outer`.
    width, layers
        d and L of the entropy model. d is a multiple of 32, the dimensions of a head.
    lrp
        Latent residual prediction: decoded groups are corrected by up to half a step.

    Raises
    ------
    ValueError
        If a rule above is broken; the message names the field and its value.
    """

    name: str
    transform: Literal["patch", "elic"]
    latent_channels: int
    transform_width: tuple[int, int]
    transform_depth: tuple[int, int]
    hyper_width: int
    hyper_channels: int
    slices: int
    patch: tuple[int, int]
    width: int
    layers: int
    order: Order | None = None
    lrp: bool = False

    def __post_init__(self) -> None:
        if self.transform not in ("patch", "elic"):
            raise ValueError(f"transform must be 'patch' or 'elic', got {self.transform!r}")
        pairs = ("transform_width", "transform_depth", "patch")
        for field in pairs:
            if len(getattr(self, field)) != 2:
                raise ValueError(f"{field} must be a pair, got {getattr(self, field)}")
        if min(self.transform_depth) < 0:
            raise ValueError(f"transform_depth must not be negative, got {self.transform_depth}")
        positive = {
            "latent_channels": self.latent_channels,
            "hyper_width": self.hyper_width,
            "hyper_channels": self.hyper_channels,
            "slices": self.slices,
            "patch[0]": self.patch[0],
            "patch[1]": self.patch[1],
            "transform_width[0]": self.transform_width[0],
            "transform_width[1]": self.transform_width[1],
            "width": self.width,
            "layers": self.layers,
        }
        for field, value in positive.items():
            if value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")
        if max(self.patch) > MAX_PATCH:
            raise ValueError(f"patch must be at most {MAX_PATCH} x {MAX_PATCH}, got {self.patch}")
        if self.latent_channels % self.slices:
            raise ValueError(
                f"latent_channels must be a multiple of slices = {self.slices}, "
                f"got {self.latent_channels}"
            )
        if self.transform == "patch" and self.latent_channels > MAX_PATCH_CHANNELS:
            raise ValueError(
                f"latent_channels must be at most {MAX_PATCH_CHANNELS}, the samples of a 16x16 "
                f"patch, got {self.latent_channels}"
            )
        if self.transform == "elic" and (
            self.transform_width[0] != self.transform_width[1] or any(self.transform_depth)
        ):
            raise ValueError(
                "transform_width and transform_depth must be (N, N) and (0, 0) for 'elic', got "
                f"{self.transform_width} and {self.transform_depth}"
            )
        groups = list(itertools.product(*map(range, (self.slices, *self.patch))))
        if self.order is not None and sorted(self.order) != groups:
            raise ValueError(
                f"order must be a permutation of the {len(groups)} (slice, row phase, column "
                f"phase) triples, got {self.order}"
            )
        if self.width % HEAD_DIM:
            raise ValueError(f"width must be a multiple of {HEAD_DIM}, got {self.width}")

    @property
    def num_groups(self) -> int:
        """G = k_c * k_h * k_w."""
        return self.slices * self.patch[0] * self.patch[1]

    def to_json(self) -> str:
        """The configuration as canonical JSON: sorted keys, no spaces."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Inverse of `to_json`. Raises ValueError for anything that is not a configuration."""
        try:
            fields: dict[str, Any] = json.loads(text)
            for key in ("transform_width", "transform_depth", "patch"):
                fields[key] = tuple(fields[key])
            if fields.get("order") is not None:
                order = (tuple(group) for group in fields["order"])
                fields["order"] = cast("Order", tuple(order))
            return cls(**fields)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"text must be a GroupedMixer configuration: {error!r}") from error


# Learned faster than slices_outer in the runs of docs/training.md.
_RT_ORDER = phases_outer(4, 2, 2)

CONFIGS = {
    config.name: config
    for config in (
        Config("tiny", "patch", 8, (8, 16), (1, 1), 8, 4, 2, (2, 2), 32, 2, lrp=True),
        Config("rt", "patch", 384, (96, 192), (2, 4), 128, 64, 4, (2, 2), 128, 3, _RT_ORDER),
        Config("fast", "elic", 320, (192, 192), (0, 0), 192, 192, 5, (1, 2), 256, 4),
        Config("base", "elic", 320, (192, 192), (0, 0), 192, 192, 10, (2, 2), 256, 6),
        Config("large", "elic", 320, (256, 256), (0, 0), 256, 256, 10, (2, 2), 384, 8),
    )
}


def get_config(name: str) -> Config:
    """The configuration called ``name``; ValueError lists the names there are."""
    try:
        return CONFIGS[name]
    except KeyError:
        raise ValueError(f"name must be one of {', '.join(CONFIGS)}, got {name!r}") from None
