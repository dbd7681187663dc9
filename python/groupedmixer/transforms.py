# SPDX-License-Identifier: MIT
"""Analysis and synthesis transforms: image <-> latent, latent <-> hyper latent."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from compressai.layers import AttentionBlock, conv3x3, subpel_conv3x3
from compressai.models.sensetime import ResidualBottleneckBlock
from compressai.models.utils import conv, deconv
from torch import Tensor, nn

from .config import Config
from .mixer import compand
from .tiles import LATENT_STRIDE as STRIDE

__all__ = ["HyperAnalysis", "HyperSynthesis", "make_analysis", "make_synthesis"]

HYPER_STRIDE = 4  # latent positions a hyper latent position spans

# A quantisation step of 1 in the latent is this many grey levels in an orthonormal transform:
# at high rate D = 3 / (2 ln 2 lambda) for three colour planes, and lambda is about 0.018 half way
# up the quality scale, so D = 120 and the step is sqrt(12 D) = 38.
MIDDLE_STEP = 38.0


def make_analysis(config: Config) -> nn.Module:
    """g_a: image [B, 3, 16H, 16W] in 0..1 -> y [B, M, H, W]."""
    return PatchAnalysis(config) if config.transform == "patch" else _elic_analysis(config)


def make_synthesis(config: Config) -> nn.Module:
    """g_s: y_hat [B, M, H, W] -> image [B, 3, 16H, 16W], nominally in 0..1."""
    return PatchSynthesis(config) if config.transform == "patch" else _elic_synthesis(config)


def block_transform_basis(rows: int) -> Tensor:  # [rows, 3, 16, 16]
    """The ``rows`` lowest frequencies of an orthonormal 16x16 DCT over opponent colours.

    Five eighths of the rows go to luma, the rest to the two chroma planes in equal parts. The
    colour axes are the orthonormal (1,1,1), (1,0,-1), (1,-2,1), so that squared error in RGB is
    squared error in the coefficients.
    """
    k = torch.arange(STRIDE, dtype=torch.float64)
    dct = torch.cos(math.pi / STRIDE * (k[None, :] + 0.5) * k[:, None]) * math.sqrt(2 / STRIDE)
    dct[0] /= math.sqrt(2)
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    frequencies = sorted(
        ((i, j) for i in range(STRIDE) for j in range(STRIDE)), key=lambda f: (f[0] + f[1], f)
    )
    # A plane has 256 frequencies: beyond that, what luma cannot take goes to chroma.
    chroma = max(rows * 3 // 16, -(-(rows - STRIDE * STRIDE) // 2))
    counts = (rows - 2 * chroma, chroma, chroma)
    # Interleaved over the planes by relative frequency: the first channel slice holds the lowest of
    # all three, later slices refine it.
    chosen = sorted(
        (rank / count, plane, frequency)
        for plane, count in enumerate(counts)
        for rank, frequency in enumerate(frequencies[:count])
    )
    basis = [
        colours[plane][:, None, None] * dct[i][:, None] * dct[j][None, :]
        for _, plane, (i, j) in chosen
    ]
    return torch.stack(basis).float()


class DepthConvBlock(nn.Module):
    """1x1, depth-wise 3x3, 1x1, then a two-layer 1x1 network; residual, strict operations only.

    .. code-block:: none

        x --> x + 1x1(dw3x3(act(1x1(x)))) --> x + 1x1(act(1x1(x)))
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, channels, 1),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        x = x + self.spatial(x)
        return x + self.pointwise(x)


class PatchAnalysis(nn.Module):
    """rt's g_a: a linear block transform beside a convolutional network on patches.

    .. code-block:: none

              .-- unshuffle 16 --> 1x1 (starts as a DCT) ----------------------------.
        x ----|                                                                      + --> y
              '-- unshuffle 8 --> 1x1, blocks --> unshuffle 2, blocks --> 1x1 (0) ---'

    At step 0 this is a block-transform codec; training adds what the network finds (its
    last layer starts at 0).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        wide, narrow = config.transform_width
        early, late = config.transform_depth
        self.linear = nn.Conv2d(3 * STRIDE**2, config.latent_channels, 1)
        self.network = nn.Sequential(
            nn.PixelUnshuffle(STRIDE // 2),
            nn.Conv2d(3 * (STRIDE // 2) ** 2, wide, 1),
            *(DepthConvBlock(wide) for _ in range(early)),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * wide, narrow, 1),
            *(DepthConvBlock(narrow) for _ in range(late)),
            nn.Conv2d(narrow, config.latent_channels, 1),
        )
        basis = block_transform_basis(config.latent_channels).flatten(1) * (255 / MIDDLE_STEP)
        self.linear.weight.data.copy_(basis[:, :, None, None])
        _fill_bias(self.linear, 0.0)
        _zero(self.network[-1])

    def forward(
        self,
        x: Tensor,  # [B, 3, 16H, 16W] in 0..1
    ) -> Tensor:  # [B, M, H, W]
        """Image to latent."""
        x = x - 0.5
        with torch.autocast(x.device.type, enabled=False):  # carries most of the signal
            linear = self.linear(F.pixel_unshuffle(x.float(), STRIDE))
        return linear + self.network(x)


class PatchSynthesis(nn.Module):
    """rt's g_s: the mirror image of `PatchAnalysis`.

    .. code-block:: none

              .-- 1x1 (starts as an inverse DCT) --> shuffle 16 ------------------------.
        y ----|                                                                         + --> x
              '-- compand --> 1x1, blocks --> shuffle 2, blocks --> 1x1 (0), shuffle 8 -'
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        wide, narrow = config.transform_width
        early, late = config.transform_depth
        self.linear = nn.Conv2d(config.latent_channels, 3 * STRIDE**2, 1)
        self.network = nn.Sequential(
            nn.Conv2d(config.latent_channels, narrow, 1),
            *(DepthConvBlock(narrow) for _ in range(late)),
            nn.Conv2d(narrow, 4 * wide, 1),
            nn.PixelShuffle(2),
            *(DepthConvBlock(wide) for _ in range(early)),
            nn.Conv2d(wide, 3 * (STRIDE // 2) ** 2, 1),
            nn.PixelShuffle(STRIDE // 2),
        )
        basis = block_transform_basis(config.latent_channels).flatten(1) * (MIDDLE_STEP / 255)
        self.linear.weight.data.copy_(basis.T[:, :, None, None])
        _fill_bias(self.linear, 0.5)
        _zero(self.network[-2])

    def forward(
        self,
        y_hat: Tensor,  # [B, M, H, W]
    ) -> Tensor:  # [B, 3, 16H, 16W]
        """Latent to image."""
        with torch.autocast(y_hat.device.type, enabled=False):
            linear = F.pixel_shuffle(self.linear(y_hat.float()), STRIDE)
        return linear + self.network(compand(y_hat))


class HyperAnalysis(nn.Module):
    """h_a: y [B, M, H, W] -> z [B, N_z, ceil(H/4), ceil(W/4)].

    .. code-block:: none

        y --compand--> pad to a multiple of 4 --> 3x3 --> 3x3 / 2 --> 3x3 / 2 --> z

    Convolutions and leaky ReLU only (no GDN): the same operations as `HyperSynthesis`, which must
    be exact.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hyper_width
        self.layers = nn.Sequential(
            conv3x3(config.latent_channels, width),
            nn.LeakyReLU(inplace=True),
            conv3x3(width, width, stride=2),
            nn.LeakyReLU(inplace=True),
            conv3x3(width, config.hyper_channels, stride=2),
        )

    def forward(self, y: Tensor) -> Tensor:
        """Latent (scaled by its gains) to hyper latent."""
        h, w = y.shape[-2:]
        y = F.pad(compand(y), (0, -w % HYPER_STRIDE, 0, -h % HYPER_STRIDE), mode="replicate")
        return self.layers(y)


class HyperSynthesis(nn.Module):
    """h_s: z_hat [B, N_z, ceil(H/4), ceil(W/4)] -> psi [B, d, H, W].

    .. code-block:: none

        z_hat --> 3x3, shuffle 2 --> 3x3, shuffle 2 --> 1x1 --> crop to the latent grid --> psi
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hyper_width
        self.layers = nn.Sequential(
            subpel_conv3x3(config.hyper_channels, width, 2),
            nn.LeakyReLU(inplace=True),
            subpel_conv3x3(width, width, 2),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(width, config.width, 1),
        )

    def forward(self, z_hat: Tensor, size: tuple[int, int]) -> Tensor:
        """Hyper latent to features on a latent grid of ``size`` (H, W)."""
        return self.layers(z_hat)[..., : size[0], : size[1]]


def _zero(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d)
    nn.init.zeros_(layer.weight)
    _fill_bias(layer, 0.0)


def _fill_bias(layer: nn.Conv2d, value: float) -> None:
    assert layer.bias is not None
    nn.init.constant_(layer.bias, value)


def _elic_analysis(config: Config) -> nn.Sequential:
    """ELIC's g_a (arXiv 2203.10886, figure 3), from compressai's layers."""
    n, m = config.transform_width[0], config.latent_channels
    return nn.Sequential(
        conv(3, n),
        *_elic_residual(n),
        conv(n, n),
        *_elic_residual(n),
        AttentionBlock(n),
        conv(n, n),
        *_elic_residual(n),
        conv(n, m),
        AttentionBlock(m),
    )


def _elic_synthesis(config: Config) -> nn.Sequential:
    """ELIC's g_s (arXiv 2203.10886, figure 3), from compressai's layers."""
    n, m = config.transform_width[0], config.latent_channels
    return nn.Sequential(
        AttentionBlock(m),
        deconv(m, n),
        *_elic_residual(n),
        deconv(n, n),
        AttentionBlock(n),
        *_elic_residual(n),
        deconv(n, n),
        *_elic_residual(n),
        deconv(n, 3),
    )


def _elic_residual(channels: int) -> list[nn.Module]:
    return [ResidualBottleneckBlock(channels, channels) for _ in range(3)]
