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

from .config import Config
from .latent_codec import GroupedMixerLatentCodec
from .tiles import LATENT_STRIDE as STRIDE
from .tiles import latent_size
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
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.g_a = make_analysis(config)
        self.g_s = make_synthesis(config)
        self.latent_codec = GroupedMixerLatentCodec(config)

    @property
    def quality(self) -> float:
        """Quality 0..7 that `forward` (in eval mode) and `compress` use when none is given."""
        return self.latent_codec.quality

    @quality.setter
    def quality(self, value: float) -> None:
        self.latent_codec.quality = value

    def forward(
        self,
        x: Tensor,  # [B, 3, H, W] in 0..1
        quality: Tensor | float | None = None,  # 0..7, or [B]
        as_coded: bool = False,
    ) -> dict[str, Any]:
        """Training form. Without a quality: drawn per picture in training, else ``self.quality``.

        ``as_coded``: in training mode, with exactly the latent that a file would hold; see
        `GroupedMixerLatentCodec.forward`.

        Returns
        -------
        dict
            ``x_hat``: [B, 3, H, W], not clamped; ``likelihoods``: {``y``, ``z``}; ``quality``: [B].
        """
        y_out = self.latent_codec(self.g_a(self.pad(x)), quality, as_coded)
        x_hat = self.g_s(y_out["y_hat"])[..., : x.shape[-2], : x.shape[-1]]
        return {**y_out, "x_hat": x_hat}

    def pad(
        self,
        x: Tensor,  # [B, 3, H, W]
    ) -> Tensor:  # [B, 3, 16 * rows, 16 * columns]
        """Pads to the latent grid by repeating the last row and column."""
        rows, columns = latent_size(x.shape[-2], x.shape[-1], *self.config.patch)
        bottom, right = STRIDE * rows - x.shape[-2], STRIDE * columns - x.shape[-1]
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

    @torch.no_grad()
    def compress(self, x: Tensor, quality: Tensor | float | None = None) -> dict[str, Any]:
        """Codes a batch of images with the weights as they would be exported.

        Parameters
        ----------
        x
            [B, 3, H, W] in 0..1.
        quality
            0 (small) .. 7 (fine), or [B]; None for ``self.quality``.

        Returns
        -------
        dict
            ``strings``: [tiles][B] bytes; ``shape``: (H, W) of the latent, for `decompress`.

        Raises
        ------
        ValueError
            If an argument breaks a rule, or a weight overflows float16.
        """
        out = self.latent_codec.compress(self.g_a(self.pad(x)), quality)
        return {"strings": out["strings"], "shape": out["shape"]}

    @torch.no_grad()
    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict[str, Any]:
        """Inverse of `compress`: {``x_hat``: [B, 3, 16H, 16W] in 0..1}, padding included.

        Raises as `GroupedMixerLatentCodec.decompress` does.
        """
        y_hat = self.latent_codec.decompress(strings, shape)["y_hat"]
        return {"x_hat": self.g_s(y_hat).clamp(0, 1)}

    def update(
        self, scale_table: Any = None, force: bool = False, update_quantiles: bool = False
    ) -> bool:
        """Builds the integer tables if there are none; True if it built them.

        The arguments are compressai's and change nothing: stored tables stay what they are, also
        under ``force``, because files depend on them. `rebuild_tables` makes new ones, and
        training discards them.
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

    def stored_buffers(self) -> set[str]:
        """Names of the buffers that weights files hold beside the parameters.

        An explicit list: compressai's modules have buffers of their own, which coding does not use
        and which may change from one version of it to another.
        """
        tables = {
            f"latent_codec.{which}_tables.{field}"
            for which in ("y", "z")
            for field in ("counts", "sizes", "offsets")
        }
        return {
            "_extra_state",
            "latent_codec.thresholds",
            "latent_codec.dead_zone",
            "latent_codec.z_medians",
            *tables,
        }

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> GroupedMixer:
        """A model of the state dict's own configuration (float16 is expanded exactly).

        Takes whole state dicts and those of weights files, which lack compressai's buffers.

        Raises
        ------
        ValueError
            If an entry is missing, unknown or of another shape.
        """
        if "_extra_state" not in state_dict:
            raise ValueError("state_dict must have the entry '_extra_state', the configuration")
        model = cls(_config_of(state_dict["_extra_state"]))
        fresh = model.state_dict()
        needed = {name for name, _ in model.named_parameters()} | model.stored_buffers()
        for name in sorted(needed - set(state_dict)):
            raise ValueError(f"state_dict must have the entry {name!r}")
        for name in sorted(set(state_dict) - set(fresh)):
            raise ValueError(f"state_dict must not have the entry {name!r}: the model has none")
        try:
            model.load_state_dict({**fresh, **state_dict})
        except RuntimeError as error:
            raise ValueError(f"state_dict must fit its configuration: {error}") from error
        return model


def _config_of(state: Tensor) -> Config:
    return Config.from_json(bytes(state.cpu().numpy()).decode("ascii", errors="replace"))
