# SPDX-License-Identifier: MIT
"""Codecs of CompressAI as peers of `coding_speed.py --peers`, pixels to strings and back.

Random weights, calibrated as ours are (`_models.py`): every latent channel has sigma 0.45 on the
picture, and the predicted scales spread around that, so that the entropy coder has real work. Sizes
and quality mean nothing. Speed is at its best: inference mode, integer tables built, of ELIC's two
variants and two memory formats the fastest on this picture. A peer runs where its picture is; on a
GPU the networks run there, with TF32 in convolutions, and rANS on the CPU, as CompressAI has it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _device import synchronize
from compressai.models import Cheng2020Anchor
from compressai.models.sensetime import Elic2022Chandelier, Elic2022Official
from torch import Tensor, nn

__all__ = ["CompressaiPeer", "Kind", "calibrated", "cheng2020_peer", "elic_peer", "make_peer"]

_SIGMA = 0.45
_STRIDE = 64  # of z: pictures are padded to it, as CompressAI's own evaluation does
_CALIBRATION = 256  # pixels along a side


class Kind(NamedTuple):
    """A model and where its parts are."""

    model: Any
    codings: list[Any]  # last layers of the networks that predict means and scales
    scales_first: bool
    last: Any  # the last convolution of g_a


class CompressaiPeer:
    """A calibrated CompressAI codec that codes one picture.

    Stages of a call: ``transform`` is g_a or g_s, ``entropy`` all the rest (hyper transforms,
    context model and rANS, which CompressAI's interface does not tell apart), ``total`` the call.
    """

    def __init__(
        self,
        model: Any,
        variant: str,
        x: Tensor,  # [1, 3, H, W] in 0..1
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.model = copy.deepcopy(model).to(device=x.device, memory_format=memory_format)
        self.variant = variant
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % _STRIDE, 0, -height % _STRIDE))
        self.x = padded.contiguous(memory_format=memory_format)
        self._pixels = height * width
        self._coded: dict[str, Any] = {}
        self._latents: dict[str, Tensor] = {}
        self._seconds = 0.0

    def encode(self) -> dict[str, float]:
        """Codes the picture; milliseconds by stage."""
        return self._timed(self._encode)

    def decode(self) -> dict[str, float]:
        """Decodes what `encode` coded; milliseconds by stage."""
        return self._timed(self._decode)

    def verify(self) -> dict[str, float]:
        """Round trip. Returns the rates; ValueError if the decoded latent is not the encoder's.

        CompressAI rounds y - mean and adds the mean again, so that every decoded value lies within
        half a step of the encoder's y; a decoder that has lost its way does not stay there.
        """
        self.encode()
        with self._recording("y", self.model.g_a, output=True):
            self._encode()
        with self._recording("y_hat", self.model.g_s, output=False):
            self._decode()
        y, y_hat = self._latents["y"], self._latents["y_hat"]
        error = float((y - y_hat).abs().max())
        if not error <= 0.5 + 1e-4:
            raise ValueError(
                f"compressai {self.variant} does not decode what it coded: a latent is off by "
                f"{error:.3g}, allowed is half a step"
            )
        size = sum(len(s) for strings in self._coded["strings"] for s in strings)
        return {
            "bytes": size,
            "bpp": 8 * size / self._pixels,
            "bits_per_symbol": 8 * size / y.numel(),
        }

    def _encode(self) -> None:
        self._coded = self.model.compress(self.x)

    def _decode(self) -> None:
        self.model.decompress(self._coded["strings"], self._coded["shape"])

    @torch.inference_mode()
    def _timed(self, call: Any) -> dict[str, float]:
        with self._clocked(self.model.g_a), self._clocked(self.model.g_s):
            self._seconds = 0.0
            start = self._now()
            call()
            total = self._now() - start
        transform = self._seconds
        return {
            "transform": 1e3 * transform,
            "entropy": 1e3 * (total - transform),
            "total": 1e3 * total,
        }

    def _now(self) -> float:
        """Seconds, when all that was asked of the GPU has been done."""
        synchronize(self.x.device)
        return time.perf_counter()

    @contextmanager
    def _clocked(self, module: nn.Module) -> Iterator[None]:
        """Adds the time inside a module to ``_seconds``."""
        started = 0.0

        def before(*_: object) -> None:
            nonlocal started
            started = self._now()

        def after(*_: object) -> None:
            self._seconds += self._now() - started

        hooks = (module.register_forward_pre_hook(before), module.register_forward_hook(after))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _recording(self, name: str, module: nn.Module, output: bool) -> Iterator[None]:
        """Keeps a module's output, or its input."""

        def record(_: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
            # cloned: cheng2020's encoder and ELIC's decoder write into what they are given
            self._latents[name] = (out if output else inputs[0]).clone()

        hook = module.register_forward_hook(record)
        try:
            with torch.inference_mode():
                yield
        finally:
            hook.remove()


def make_peer(system: str, x: Tensor) -> tuple[CompressaiPeer, dict[str, float]]:
    """The peer of that name, verified, and its rates.

    Raises
    ------
    ValueError
        If there is no such peer, or it does not decode what it coded.
    """
    makers = {"compressai-elic": elic_peer, "compressai-cheng2020": cheng2020_peer}
    if system not in makers:
        raise ValueError(f"system must be one of {', '.join(makers)}, got {system!r}")
    peer = makers[system](x)
    return peer, peer.verify()


def elic_peer(x: Tensor) -> CompressaiPeer:
    """ELIC (arXiv 2203.10886), N = 192, M = 320, in the variant that is fastest here."""
    peers = []
    for kind in (Elic2022Official, Elic2022Chandelier):
        model = kind()
        codings = [
            codec.entropy_parameters[-1] for codec in model.latent_codec["y"].latent_codec.values()
        ]
        ready = calibrated(Kind(model, codings, kind is Elic2022Official, model.g_a[-2]), x)
        peers += _formats(ready, kind.__name__, x)
    return _fastest(peers)


def cheng2020_peer(x: Tensor) -> CompressaiPeer:
    """Cheng 2020 anchor (arXiv 2001.01568), N = 192, whose context model decodes pixel by pixel."""
    model = Cheng2020Anchor(N=192)
    kind = Kind(model, [model.entropy_parameters[-1]], True, model.g_a[-1])
    # Its time is the loop over pixels, which the memory format does not touch.
    return CompressaiPeer(calibrated(kind, x), "Cheng2020Anchor", x)


def _formats(model: Any, name: str, x: Tensor) -> list[CompressaiPeer]:
    return [
        CompressaiPeer(model, f"{name}, {str(layout).removeprefix('torch.')}", x, layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    ]


def _fastest(peers: list[CompressaiPeer]) -> CompressaiPeer:
    """The peer whose second encode and decode together take least."""

    def milliseconds(peer: CompressaiPeer) -> float:
        peer.encode()
        peer.decode()
        return peer.encode()["total"] + peer.decode()["total"]

    return min(peers, key=milliseconds)


@torch.no_grad()
def calibrated(kind: Kind, x: Tensor) -> Any:
    """The model, its latent at sigma 0.45 and its predicted scales around that."""
    torch.manual_seed(0)
    model = kind.model.eval()
    crop = x[..., :_CALIBRATION, :_CALIBRATION].cpu()
    crop = F.pad(crop, (0, -crop.shape[3] % _STRIDE, 0, -crop.shape[2] % _STRIDE))
    # An attention block may follow, which is not linear: repeat until the channels have settled.
    for _ in range(4):
        values = model.g_a(crop).transpose(0, 1).flatten(1)  # [M, positions]
        scale = _SIGMA / values.std(1).clamp(min=1e-6)
        kind.last.weight.mul_(scale[:, None, None, None])
        kind.last.bias.sub_(values.mean(1)).mul_(scale)
    for coding in kind.codings:
        outputs, inputs = coding.weight.shape[:2]
        half = outputs // 2
        scales = slice(half) if kind.scales_first else slice(half, None)
        # The inputs of the last layer are of unknown size: correct it by what comes out.
        coding.weight.normal_(0, inputs**-0.5)
        coding.bias.zero_()
        found: list[Tensor] = []
        hook = coding.register_forward_hook(lambda m, i, out, found=found: found.append(out))
        model(crop)
        hook.remove()
        values = torch.cat([out.transpose(0, 1).flatten(1) for out in found], 1)
        # sigma spreads by a factor of about 2 either way, means by a tenth of a step
        wanted = torch.full((outputs,), 0.1)
        wanted[scales] = _SIGMA * math.log(2) / 2
        factor = wanted / values.std(1).clamp(min=1e-6)
        coding.weight.mul_(factor[:, None, None, None])
        coding.bias.copy_(-values.mean(1) * factor)
        coding.bias[scales] += _SIGMA
    model.update(force=True)
    return model
