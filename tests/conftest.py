# SPDX-License-Identifier: MIT
"""What tests share: a small model with random weights whose every part speaks, and devices."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from PIL import Image

import groupedmixer

# A shell starts background jobs with Ctrl-C ignored, which programs under test would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def random_model(config: groupedmixer.Config, seed: int = 0) -> groupedmixer.GroupedMixer:
    """Random weights with no zeros or ones left, so that nothing is silent or goes unnoticed."""
    torch.manual_seed(seed)
    model = groupedmixer.GroupedMixer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
            elif "gain" in name or (parameter == 1).all():
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
        model.latent_codec.context.start.normal_()
    return model


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB image with smooth and rough parts."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = random.integers(-20, 21, (height, width, 3)) * (np.arange(width) % 64 > 31)[:, None]
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def tiny_model() -> groupedmixer.GroupedMixer:
    return random_model(groupedmixer.get_config("tiny"))


@pytest.fixture(scope="session")
def tiny_codec(tiny_model: groupedmixer.GroupedMixer) -> groupedmixer.Codec:
    return groupedmixer.Codec(groupedmixer.export_weights(tiny_model, "tiny-test"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)
