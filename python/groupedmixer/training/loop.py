# SPDX-License-Identifier: MIT
"""The training loop: one model for all rates, a schedule that ends when the time is up."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import LAMBDAS
from ..model import GroupedMixer
from .data import CropSampler

__all__ = ["Settings", "initialise_entropy_model", "train"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    minutes: float  # wall time; the learning-rate schedule is spread over it
    learning_rate: float = 1e-3
    linear_rate: float = 0.1  # of the learning rate, for the linear block transforms
    weight_decay: float = 0.01
    warmup: float = 0.02  # fraction of the time
    clip: float = 2.0  # bound on the gradient norm, in units of its running mean
    ema: float = 0.999
    bfloat16: bool = False  # autocast; slower than float32 on CPUs without matrix units for it
    log_every: int = 50
    checkpoint: Path | None = None  # written every 3 minutes, read back when it exists


def rate_distortion_loss(
    x: Tensor,  # [B, 3, H, W]
    out: dict[str, object],
    quality: Tensor,  # [B]
) -> tuple[Tensor, Tensor, Tensor]:  # loss, bpp [B], mse [B] on 0..255
    """Mean over pictures of (bpp + lambda * MSE) / sqrt(lambda).

    Along a curve of constant slope both terms grow like sqrt(lambda), so the division makes every
    level count alike.
    """
    likelihoods = out["likelihoods"]
    x_hat = out["x_hat"]
    assert isinstance(likelihoods, dict) and isinstance(x_hat, Tensor)
    pixels = x.shape[-2] * x.shape[-1]
    bits = torch.stack([-torch.log2(p.float()).flatten(1).sum(1) for p in likelihoods.values()])
    bpp = bits.sum(0) / pixels
    mse = ((x - x_hat.float()) ** 2).flatten(1).mean(1) * 255**2
    log_lambda = torch.tensor(LAMBDAS, device=x.device).log()
    lower = quality.floor().clamp(max=len(LAMBDAS) - 2).long()
    lagrange = torch.lerp(log_lambda[lower], log_lambda[lower + 1], quality - lower).exp()
    loss = ((bpp + lagrange * mse) / lagrange.sqrt()).mean()
    return loss, bpp, mse


@torch.no_grad()
def initialise_entropy_model(
    model: GroupedMixer,
    x: Tensor,  # [B, 3, H, W] a few pictures
) -> None:
    """Starts the head at the mean and log deviation that each channel of the latent has.

    A head that starts at one scale for all needs hundreds of steps to find the spectrum of a
    block transform, which spans three orders of magnitude.
    """
    context = model.latent_codec.context
    y = model.g_a(model.pad(x)) * model.latent_codec.gain.mean(0)[:, None, None]
    channels = y.transpose(0, 1).flatten(1)  # [M, positions]
    mean = channels.mean(1).reshape(context.config.slices, -1)
    log_sigma = channels.std(1).clamp(min=0.15).log().reshape(context.config.slices, -1)
    context.head_bias.copy_(torch.cat([mean, log_sigma], dim=1))


def parameter_groups(model: GroupedMixer, settings: Settings) -> list[dict[str, object]]:
    """Weight decay for matrices only; the linear block transforms learn slowly."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name.endswith("quantiles"):
            continue  # set by bisection when tables are built
        linear = name.startswith(("g_a.linear.", "g_s.linear."))
        rate = settings.learning_rate * (settings.linear_rate if linear else 1.0)
        matrix = parameter.ndim >= 2 and "bottleneck" not in name and "gain" not in name
        decay = settings.weight_decay if matrix and not linear else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def train(model: GroupedMixer, data: CropSampler, settings: Settings) -> GroupedMixer:
    """Trains ``model`` for the given minutes and returns its moving average.

    A run that was cut off goes on from ``settings.checkpoint`` with the time it had left.
    """
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), betas=(0.9, 0.98))
    step, elapsed, saved_at, mean_norm = 0, 0.0, 0.0, 0.0
    if settings.checkpoint is not None and settings.checkpoint.exists():
        state = torch.load(settings.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed, mean_norm = state["step"], state["elapsed"], state["mean_norm"]
        saved_at = elapsed
        data.restore(state["data"])
        torch.set_rng_state(state["random"])
        print(f"resumed at step {step}, {elapsed / 60:.1f} min", flush=True)
    elif settings.checkpoint is not None:
        settings.checkpoint.parent.mkdir(parents=True, exist_ok=True)

    budget = settings.minutes * 60
    model.train()
    sums, counted, failures = torch.zeros(3), 0, 0
    last = time.monotonic()
    while elapsed < budget:
        done = elapsed / budget
        scale = min(1.0, done / settings.warmup) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * max(scale, 0.01)

        x = data.next_batch()
        quality = torch.rand(x.shape[0]) * (len(LAMBDAS) - 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.bfloat16):
            out = model(x, quality)
        loss, bpp, mse = rate_distortion_loss(x, out, quality)
        optimizer.zero_grad()
        loss.backward()
        bound = settings.clip * mean_norm if step >= 20 and mean_norm else math.inf
        norm = nn.utils.clip_grad_norm_(model.parameters(), bound).item()
        if math.isfinite(norm):
            mean_norm = 0.98 * mean_norm + 0.02 * min(norm, 4 * mean_norm) if mean_norm else norm
            optimizer.step()
            average.update_parameters(model)
            failures = 0
        else:
            failures += 1
            if failures == 100:
                raise FloatingPointError("100 gradients in a row were not finite: training stops")
        step += 1
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now

        sums += torch.tensor([loss.item(), bpp.mean().item(), mse.log10().mean().item()])
        counted += 1
        if step % settings.log_every == 0:
            mean = sums / counted
            psnr = 10 * (2 * math.log10(255) - mean[2].item())
            print(
                f"step {step} {elapsed / 60:.1f} min loss {mean[0]:.4f} bpp {mean[1]:.3f} "
                f"psnr {psnr:.2f} lr {scale * settings.learning_rate:.1e} norm {mean_norm:.2f}",
                flush=True,
            )
            sums.zero_()
            counted = 0
        if settings.checkpoint is not None and (elapsed - saved_at > 180 or elapsed >= budget):
            saved_at = elapsed
            partial = settings.checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "elapsed": elapsed,
                    "mean_norm": mean_norm,
                    "data": data.state(),
                    "random": torch.get_rng_state(),
                },
                partial,
            )
            partial.replace(settings.checkpoint)
    trained = average.module
    assert isinstance(trained, GroupedMixer)
    print(f"done: {step} steps, {elapsed / 60:.1f} min", flush=True)
    return trained.eval()
