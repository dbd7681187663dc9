# SPDX-License-Identifier: MIT
"""GroupedMixer as a compressai model: transforms around the latent codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from compressai.models import CompressionModel
from compressai.registry import register_model
from torch import Tensor

from .config import NUM_LEVELS, Config
from .latent_codec import GroupedMixerLatentCodec
from .tiles import LATENT_STRIDE as STRIDE
from .transforms import make_analysis, make_synthesis

__all__ = ["GroupedMixer"]


@register_model("groupedmixer")
class GroupedMixer(CompressionModel):
    """Learned image codec of arXiv 2405.01170: g_a, grouped entropy model, g_s.

    .. code-block:: none

               .-----.  y  .--------------.  y_hat  .-----.
        x --->-| g_a |-->--| latent_codec |--->-----| g_s |--> x_hat
               '-----'     '--------------'         '-----'

    Images may have any size: they are padded by replication to the latent grid and cropped back.

    Parameters
    ----------
    config
        See `groupedmixer.config.CONFIGS` for the named ones.

    Attributes
    ----------
    quality
        Quality 0..7 that `forward` (in eval mode) and `compress` use when none is given.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.g_a = make_analysis(config)
        self.g_s = make_synthesis(config)
        self.latent_codec = GroupedMixerLatentCodec(config)
        self.quality = 4.0

    def forward(
        self,
        x: Tensor,  # [B, 3, H, W] in 0..1
        quality: Tensor | float | None = None,  # 0..7, or [B]
    ) -> dict[str, Any]:
        """Training form. Without a quality: drawn per picture in training, else ``self.quality``.

        Returns
        -------
        dict
            ``x_hat``: [B, 3, H, W], not clamped; ``likelihoods``: {``y``, ``z``}.
        """
        if quality is None:
            top = float(NUM_LEVELS - 1)
            quality = (
                torch.rand(x.shape[0], device=x.device) * top if self.training else self.quality
            )
        y_out = self.latent_codec(self.g_a(self.pad(x)), quality)
        x_hat = self.g_s(y_out["y_hat"])[..., : x.shape[-2], : x.shape[-1]]
        return {"x_hat": x_hat, "likelihoods": y_out["likelihoods"]}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Size of y for an image: ceil(size / 16), rounded up to multiples of (k_h, k_w)."""
        k_h, k_w = self.config.patch
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        return -(-rows // k_h) * k_h, -(-columns // k_w) * k_w

    def pad(
        self,
        x: Tensor,  # [B, 3, H, W]
    ) -> Tensor:  # [B, 3, 16 * rows, 16 * columns]
        """Pads to the latent grid by repeating the last row and column."""
        rows, columns = self.grid(x.shape[-2], x.shape[-1])
        bottom, right = STRIDE * rows - x.shape[-2], STRIDE * columns - x.shape[-1]
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

    @torch.inference_mode()
    def compress(self, x: Tensor, quality: float | None = None) -> dict[str, Any]:
        """Codes a batch of images with the weights as they would be exported.

        Parameters
        ----------
        x
            [B, 3, H, W] in 0..1.
        quality
            0..7; None for ``self.quality``. `decompress` must be given the same.

        Returns
        -------
        dict
            ``strings``: [tiles][B] bytes; ``shape``: (H, W) of the latent, for `decompress`.
        """
        quality = self.quality if quality is None else quality
        out = self.latent_codec.compress(self.g_a(self.pad(x)), quality)
        return {"strings": out["strings"], "shape": out["shape"]}

    @torch.inference_mode()
    def decompress(
        self, strings: list[list[bytes]], shape: tuple[int, int], quality: float | None = None
    ) -> dict[str, Any]:
        """Inverse of `compress`: {``x_hat``: [B, 3, 16H, 16W] in 0..1}, padding included."""
        quality = self.quality if quality is None else quality
        y_hat = self.latent_codec.decompress(strings, shape, quality)["y_hat"]
        device = next(self.g_s.parameters()).device
        return {"x_hat": self.g_s(y_hat.to(device)).clamp(0, 1)}

    def update(
        self, scale_table: Any = None, force: bool = False, update_quantiles: bool = False
    ) -> bool:
        """Builds the integer tables if there are none; True if it built them.

        The arguments are compressai's and change nothing: shipped tables stay what they are, also
        under ``force``, because files depend on them. `rebuild_tables` makes new ones.
        """
        del scale_table, force, update_quantiles
        return self.latent_codec.update()

    def rebuild_tables(self) -> None:
        """Makes the integer tables anew; files written before can then not be read."""
        self.latent_codec.rebuild_tables()

    def get_extra_state(self) -> Tensor:  # uint8, JSON of the configuration
        """The configuration travels in the state dict, as a tensor so that any format takes it."""
        return torch.frombuffer(bytearray(self.config.to_json(), "ascii"), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """ValueError if the state dict belongs to another configuration."""
        stored = _config_of(state)
        if stored != self.config:
            raise ValueError(f"state_dict must be of {self.config}, got one of {stored}")

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> GroupedMixer:
        """A model of the state dict's own configuration (float16 is expanded exactly)."""
        if "_extra_state" not in state_dict:
            raise ValueError("state_dict must have the entry '_extra_state', the configuration")
        model = cls(_config_of(state_dict["_extra_state"]))
        model.load_state_dict(dict(state_dict))
        return model


def _config_of(state: Tensor) -> Config:
    return Config.from_json(bytes(state.cpu().numpy()).decode("ascii", errors="replace"))
