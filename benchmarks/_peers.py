# SPDX-License-Identifier: MIT
"""Everything `coding_speed.py` times beside the codec itself, verified and ready to be called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from _compressai_peers import make_peer
from _device import elapsed_ms, on_gpu
from _eager import (
    EagerUncached,
    Inputs,
    Variant,
    check_against_training_form,
    make_cached,
    prepare,
    tune,
)
from _models import Subject, to_tensor

from groupedmixer import GroupedMixer
from groupedmixer.images import Picture

__all__ = ["PEERS", "Contender", "interpolated_sum", "make_contenders"]

PEERS = ("eager-cached", "eager-uncached", "compressai-elic", "compressai-cheng2020")

# Of calls that take seconds.
_SLOW_REPEATS = 2
_UNCACHED_STEPS = 8

Call = Callable[[], dict[str, float]]  # milliseconds by stage


@dataclass(frozen=True)
class Contender:
    """A system that codes one picture, or several."""

    system: str
    encode: list[Call]  # one a picture
    decode: list[Call]
    repeats: int
    facts: dict[str, Any] = field(default_factory=dict)  # go into every run of the JSON
    warm_ups: int = 1  # calls that are not counted
    # Facts of a direction, asked for after its calls.
    report: Callable[[str], dict[str, Any]] = lambda direction: {}


def make_contenders(
    names: list[str],
    subject: Subject,
    picture: Picture,
    quality: float,
    tile: int,
    skip_below: int,
    repeats: int,
    with_compile: bool,
    device: str = "cpu",
) -> list[Contender]:
    """The peers of these names, in this order, on a device.

    Parameters
    ----------
    tile, skip_below
        As in the file that the codec writes.
    with_compile
        Whether "eager-cached" may use torch.compile, which takes minutes to try.

    Raises
    ------
    ValueError
        If a peer does not give what it should.
    """
    x = to_tensor(picture).to(device)
    model, tiles = subject.model, list[Inputs]()
    if any(name.startswith("eager-") for name in names):
        if device != "cpu":
            model = copy.deepcopy(model).to(device)
        tiles = prepare(model, x, quality, tile)
    made = []
    for name in names:
        if name == "eager-cached":
            made.append(_cached(model, tiles, quality, skip_below, repeats, with_compile))
        elif name == "eager-uncached":
            made.append(_uncached(model, tiles, quality, skip_below, repeats))
        else:
            peer, rates = make_peer(name, x)
            facts = {"config": peer.variant, "variant": peer.variant, **rates}
            slow = name == "compressai-cheng2020"
            count = min(repeats, _SLOW_REPEATS) if slow else repeats
            made.append(Contender(name, [peer.encode], [peer.decode], count, facts))
    return made


def _entropy_model(work: Callable[[], object], device: torch.device) -> Call:
    """The call that times ``work`` as one stage."""
    return lambda: {"entropy_model": elapsed_ms(work, device)}


def _cached(
    model: GroupedMixer,
    tiles: list[Inputs],
    quality: float,
    skip_below: int,
    repeats: int,
    with_compile: bool,
) -> Contender:
    context, thresholds = model.latent_codec.context, model.latent_codec.thresholds
    # Tuned on the first tile, which is the largest; the others may be cut by the picture's edge.
    tuned = tune(context, thresholds, skip_below, tiles[0], with_compile)
    variant = tuned.coder.variant
    coders = {(tiles[0].h, tiles[0].w): tuned.coder}
    symbols, errors = [], []
    for inputs in tiles:
        size = (inputs.h, inputs.w)
        if size not in coders:
            coders[size] = make_cached(context, thresholds, skip_below, *size, variant)
        coded = coders[size].code(inputs, inputs.y)
        errors.append(
            check_against_training_form(
                context, inputs, coded.y_hat, coded.means, quality, variant.precision
            )
        )
        decoded = coders[size].code(inputs, coded.symbols)
        slack = 1e-4 if variant.precision == "float32" else 1e-2
        if not torch.allclose(decoded.y_hat, coded.y_hat, atol=slack):
            raise ValueError("eager-cached does not decode what it encoded")
        symbols.append(coded.symbols)

    def encode() -> None:
        for inputs in tiles:
            coders[inputs.h, inputs.w].code(inputs, inputs.y)

    def decode() -> None:
        for inputs, given in zip(tiles, symbols, strict=True):
            coders[inputs.h, inputs.w].code(inputs, given)

    facts: dict[str, Any] = {
        "config": context.config.name,
        "variant": str(variant),
        "tried_ms": tuned.tried,  # best of two encodes of the first tile, in this run
        "error_of_means": max(errors),  # relative to 1 + |mean|
    }
    if tuned.failed:
        facts["failed"] = tuned.failed
    device = context.start.device
    calls = [_entropy_model(work, device) for work in (encode, decode)]
    return Contender("eager-cached", calls[:1], calls[1:], repeats, facts)


def _uncached(
    model: GroupedMixer, tiles: list[Inputs], quality: float, skip_below: int, repeats: int
) -> Contender:
    """Times some steps on the CPU and interpolates the others: all of them would take minutes."""
    context, thresholds = model.latent_codec.context, model.latent_codec.thresholds
    device, groups = context.start.device, context.config.num_groups
    precision = "tf32" if on_gpu(device) else "float32"
    count = groups if on_gpu(device) else min(_UNCACHED_STEPS, groups)
    steps = [round(i * (groups - 1) / max(count - 1, 1)) for i in range(count)]
    work, errors = [], []
    for inputs in tiles:
        size = (inputs.h, inputs.w)
        coder = EagerUncached(context, thresholds, skip_below, *size, precision)
        # What the timed steps start from is decoded with a cache, and then compared.
        cached = make_cached(context, thresholds, skip_below, *size, Variant("cells-plain", "sum"))
        coded = cached.code(inputs, inputs.y)
        means = torch.stack(
            [
                coder.step(step, inputs, coded.y_hat, inputs.y[step])[1]
                if step in steps
                else coded.means[step]
                for step in range(groups)
            ]
        )
        errors.append(
            check_against_training_form(context, inputs, coded.y_hat, means, quality, precision)
        )
        work.append((coder, inputs, coded))

    def timed(encoding: bool) -> Call:
        def call() -> dict[str, float]:
            total = 0.0
            for coder, inputs, coded in work:
                targets = inputs.y if encoding else coded.symbols
                found = []
                for step in steps:
                    one = partial(coder.step, step, inputs, coded.y_hat, targets[step])
                    found.append(elapsed_ms(one, device))
                total += interpolated_sum(steps, found)
            return {"entropy_model": total}

        return call

    variant = f"no cache, {precision}" if on_gpu(device) else "no cache"
    facts: dict[str, Any] = {"config": context.config.name, "variant": variant}
    facts |= {"error_of_means": max(errors)}
    if count < groups:
        facts |= {"interpolated_from_steps": steps, "steps": groups}
    return Contender(
        "eager-uncached", [timed(True)], [timed(False)], min(repeats, _SLOW_REPEATS), facts
    )


def interpolated_sum(steps: list[int], found: list[float]) -> float:
    """Sum over steps 0..steps[-1], straight lines between those that were measured.

    >>> interpolated_sum([0, 2, 3], [1.0, 3.0, 5.0])
    11.0
    """
    return float(np.interp(np.arange(steps[-1] + 1), steps, found).sum())
