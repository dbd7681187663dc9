# SPDX-License-Identifier: MIT
"""The training loop: one model for all rates, a schedule that ends when the time is up.

READ ME FIRST
- Every random number of a step follows from the seed, the process and the step. A run by steps that
  is killed and resumed therefore ends with the same weights as one that was not.
- All processes must take the same branches: time is the first process's, norms are those of
  averaged gradients.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import LAMBDAS, get_config
from ..container import QUALITY_STEPS
from ..entropy import dead_zone
from ..export import Weights, export_weights, save_weights
from ..model import GroupedMixer
from ..output_files import check_target
from ..zoo import load_model
from .checkpoint import Position, load_checkpoint, save_checkpoint
from .data import CropSequence, crop_loader, find_pictures, is_small
from .loss import rate_distortion_loss
from .optimization import initialise_entropy_model, make_average, make_optimizer
from .report import Report
from .schedule import done_fraction, learning_rate_scale
from .settings import SMALLEST_MS_SSIM_SIDE, Settings
from .trained_model import TrainedModel
from .validation import validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["train"]

# Steps before the running mean of the gradient norm says enough to clip by it.
_UNCLIPPED = 20

# A new entropy model starts at the spectrum that these have. Two or four are often unlike the rest.
_CROPS_TO_START = 16
_PIXELS_TO_START = 256  # at most, on a side: they are seen at once

# Gradients in a row that are not finite, after which a run is lost.
_PATIENCE = 100

# Problems with data that are printed one by one.
_SHOWN = 20


def train(settings: Settings) -> Weights:
    """Trains a model and writes the moving average of its weights to ``settings.output``.

    Under a launcher such as torchrun every process calls it, and the first one writes.

    Raises
    ------
    ImportError
        If Lightning Fabric or, where it is asked for, TensorBoard is not installed.
    FileExistsError
        If the output exists, or the checkpoint does and the settings do not say to resume.
    OSError
        If a file cannot be read or written.
    ValueError
        If data, weights or checkpoint do not fit the settings.
    FloatingPointError
        If 100 gradients in a row are not finite.
    """
    check_paths(settings)
    fabric = _launch(settings)
    model = _model(settings)
    crops = _crops(settings, fabric)
    pictures = _validation_pictures(settings) if fabric.is_global_zero else []
    run = _Run(settings, fabric, model, crops, pictures)
    with _fast_arithmetic(settings.threads):
        run.steps()
    fabric.barrier()  # nobody leaves while another one may still need it
    trained = run.average.module
    assert isinstance(trained, GroupedMixer)
    if fabric.is_global_zero:
        weights = save_weights(trained, settings.output, settings.output.stem)
        run.report.line(f"wrote {settings.output}, fingerprint {weights.fingerprint.hex()}")
        run.report.close()
        return weights
    return export_weights(trained, settings.output.stem)


def draw_qualities(batch: int) -> Tensor:  # [batch] int64, quality * 256 as files store it
    """Random qualities, one from each of ``batch`` equal parts of the range, in random order.

    Each is uniform over the whole range. Losses and gradients differ far more between qualities
    than between pictures, and this way no step sees only one end.
    """
    fields = (len(LAMBDAS) - 1) * QUALITY_STEPS + 1
    drawn = (torch.randperm(batch) + torch.rand(batch)) * (fields / batch)
    return drawn.long().clamp(max=fields - 1)  # float32 may have rounded up to the end


def check_paths(settings: Settings) -> None:
    """Refuses, before any work, what would be overwritten or is missing; makes the folders.

    Raises
    ------
    FileExistsError, FileNotFoundError
        As `train` says.
    """
    checkpoint = settings.checkpoint_path
    for path in (settings.output, checkpoint):
        path.parent.mkdir(parents=True, exist_ok=True)
    check_target(settings.output, force=settings.force)
    if settings.resume is None and checkpoint.exists():
        raise FileExistsError(
            f"the checkpoint {checkpoint} exists: --resume auto goes on from it; remove it to "
            "start anew"
        )
    if settings.resume not in (None, "auto") and not Path(settings.resume or "").is_file():
        raise FileNotFoundError(f"resume must be 'auto' or a checkpoint, got {settings.resume}")


def _launch(settings: Settings) -> Fabric:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise ImportError(
            "training needs Lightning Fabric: pip install 'groupedmixer[train]'"
        ) from error
    on_gpu = settings.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    precision = settings.precision
    if precision is None:
        # CPUs without matrix units for bfloat16 are slower with it.
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    if precision == "16-mixed" and not on_gpu:
        raise ValueError("precision must be 32-true or bf16-mixed without a GPU, got 16-mixed")
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=precision,  # type: ignore[arg-type]  # checked against the same names
        )
    except (RuntimeError, TypeError, ValueError) as error:  # Fabric's own are of all three
        raise ValueError(
            "accelerator, devices and nodes must fit this machine, got "
            f"{settings.accelerator}, {settings.devices} and {settings.nodes}: {error}"
        ) from error
    fabric.launch()
    return fabric


@contextmanager
def _fast_arithmetic(threads: int | None) -> Iterator[None]:
    """Sets what is the whole process's, and sets it back: coding in it must not see a trace."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # likelihood tails are denormal, and those are slow on CPUs
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def _model(settings: Settings) -> GroupedMixer:
    torch.manual_seed(settings.seed)
    if settings.warm_start is None:
        model = GroupedMixer(get_config(settings.config or "rt"))
    else:
        model = load_model(settings.warm_start)
        if settings.config is not None and model.config != get_config(settings.config):
            raise ValueError(
                f"warm_start must be weights of the configuration {settings.config} as it is now, "
                f"got {settings.warm_start} of {model.config}; without config, that of the weights "
                "is kept"
            )
        # Stored tables belong to the weights as they were. Training would clear them at its first
        # step, when the moving average has buffers of their shape already. The dead zone belongs to
        # the tables that will be built.
        model.latent_codec.y_tables.clear()
        model.latent_codec.z_tables.clear()
        model.latent_codec.dead_zone.copy_(dead_zone())
    model.train().requires_grad_(True)
    # Set by bisection when tables are built; no gradient reaches them.
    model.latent_codec.entropy_bottleneck.quantiles.requires_grad_(False)
    return model


def _crops(settings: Settings, fabric: Fabric) -> CropSequence:
    files = find_pictures(settings.data, settings.exclude)
    stream = not is_small(files) if settings.stream is None else settings.stream
    start = time.monotonic()
    crops = CropSequence(files, settings.crop, settings.seed, stream)
    if fabric.is_global_zero:
        for problem in crops.problems[:_SHOWN]:
            print(f"skipped {problem}", file=sys.stderr)
        if len(crops.problems) > _SHOWN:
            print(f"skipped {len(crops.problems) - _SHOWN} further files", file=sys.stderr)
        where = "read when needed" if stream else "in memory"
        print(f"{crops.pictures} pictures {where}, {time.monotonic() - start:.0f} s", flush=True)
    return crops


def _validation_pictures(settings: Settings) -> list[npt.NDArray[np.uint8]]:
    if settings.validation is None:
        return []
    smallest = SMALLEST_MS_SSIM_SIDE if settings.metric == "ms-ssim" else 1
    return [file.decode(smallest) for file in find_pictures([settings.validation])]


@dataclass
class _Sums:
    """Means over the steps since the last line."""

    totals: Tensor  # [3] loss, bpp, log10 of the MSE
    steps: int
    since: float  # time.monotonic()


class _Run:
    """A run between its first and its last step: what `train` sets up, and the steps."""

    def __init__(
        self,
        settings: Settings,
        fabric: Fabric,
        model: GroupedMixer,
        crops: CropSequence,
        pictures: list[npt.NDArray[np.uint8]],
    ) -> None:
        self._settings, self._fabric, self._model = settings, fabric, model
        self._crops, self._pictures = crops, pictures
        path = settings.checkpoint_path if settings.resume == "auto" else settings.resume
        resumed = path is not None and Path(path).exists()
        if not resumed and settings.warm_start is None:
            first = torch.stack([crops[number] for number in range(_CROPS_TO_START)])
            first = first[..., :_PIXELS_TO_START, :_PIXELS_TO_START]
            initialise_entropy_model(model, first.float() / 255)
        model.to(fabric.device)
        self.average = make_average(model, settings.ema)
        optimizer = make_optimizer(model, settings)
        self._position, scaler = Position(), None
        if resumed:
            self._position, scaler = load_checkpoint(
                Path(str(path)), model, self.average, optimizer
            )
        self._module, self._optimizer = fabric.setup(TrainedModel(model), optimizer)
        if scaler:
            fabric.strategy.precision.load_state_dict(scaler)
        self._raw_optimizer = optimizer
        self.report = Report(
            fabric.is_global_zero, settings.progress, settings.log, self._position.step
        )
        if resumed:
            at = self._position
            self.report.line(f"resumed at step {at.step}, {at.elapsed / 60:.1f} min")

    def steps(self) -> None:
        """Takes the steps that are left."""
        settings, fabric, at = self._settings, self._fabric, self._position
        batches = self._batches()
        begin = time.monotonic() - at.elapsed
        saved_at = validated_at = at.elapsed
        sums = _Sums(torch.zeros(3), 0, time.monotonic())
        bad = 0
        while (done := done_fraction(settings, at.step, at.elapsed)) < 1:
            scale = learning_rate_scale(done, settings.warmup)
            for group in self._raw_optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            if done >= 1 - settings.final and not at.as_coded:
                self._model.latent_codec.refresh_medians()
                at.as_coded = True
                self.report.line(f"step {at.step}: latents are quantised as in coding from here on")
            figures, finite = self._step(next(batches))
            bad = 0 if finite else bad + 1
            if bad == _PATIENCE:
                raise FloatingPointError(f"{_PATIENCE} gradients in a row were not finite")
            at.step += 1
            at.crops += settings.batch * fabric.world_size
            at.elapsed = float(fabric.broadcast(time.monotonic() - begin))
            sums.totals += figures
            sums.steps += 1
            if at.step % settings.log_every == 0:
                self._log(sums, scale)
                sums = _Sums(torch.zeros(3), 0, time.monotonic())
            over = done_fraction(settings, at.step, at.elapsed) >= 1
            if over or at.elapsed - saved_at >= 60 * settings.checkpoint_every:
                saved_at = at.elapsed
                self._save()
            if over or at.elapsed - validated_at >= 60 * settings.validate_every:
                validated_at = at.elapsed
                self._validate()
        self.report.line(f"done: {at.step} steps, {at.elapsed / 60:.1f} min")

    def _batches(self) -> Iterator[Tensor]:
        settings, fabric = self._settings, self._fabric
        loader = crop_loader(
            self._crops,
            settings.batch,
            settings.workers,
            self._position.crops,
            fabric.global_rank,
            fabric.world_size,
        )
        # The loader's numbers are this process's share already.
        prepared: Any = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        return iter(prepared)

    def _step(
        self,
        pixels: Tensor,  # [B, 3, H, W] uint8
    ) -> tuple[Tensor, bool]:  # [3] loss, bpp, log10 of the MSE; whether the gradient was finite
        settings, fabric, at = self._settings, self._fabric, self._position
        # 32 bits, as some generators take no more; neighbouring steps share nothing.
        sequence = np.random.SeedSequence([settings.seed, fabric.global_rank, at.step])
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        field = draw_qualities(pixels.shape[0]).to(pixels.device)
        out = self._module(pixels, field, at.as_coded)
        loss, bpp, mse = rate_distortion_loss(
            pixels.float() / 255, out, field.float() / QUALITY_STEPS, settings.metric
        )
        self._optimizer.zero_grad()
        fabric.backward(loss)
        clipped = at.step >= _UNCLIPPED and at.mean_norm > 0
        norm_or_none = fabric.clip_gradients(
            self._module,
            self._optimizer,
            max_norm=settings.clip * at.mean_norm if clipped else math.inf,
            error_if_nonfinite=False,
        )
        assert norm_or_none is not None
        norm = norm_or_none.item()
        finite = math.isfinite(norm)
        if finite:
            kept = min(norm, 4 * at.mean_norm)
            at.mean_norm = 0.98 * at.mean_norm + 0.02 * kept if at.mean_norm else norm
        if finite or self._scaler_state():  # a scaler skips bad steps itself, and learns from them
            self._optimizer.step()
        if finite:
            self.average.update_parameters(self._model)
        figures = torch.stack([loss.detach(), bpp.detach().mean(), mse.detach().log10().mean()])
        return figures.cpu(), finite

    def _scaler_state(self) -> dict[str, Any]:
        return self._fabric.strategy.precision.state_dict()

    def _log(self, sums: _Sums, scale: float) -> None:
        at, settings = self._position, self._settings
        images = sums.steps * settings.batch * self._fabric.world_size
        totals = self._fabric.all_reduce(sums.totals.to(self._fabric.device), reduce_op="mean")
        assert isinstance(totals, Tensor)
        loss, bpp, log_mse = (totals / sums.steps).tolist()
        self.report.training(
            at.step,
            done_fraction(settings, at.step, at.elapsed),
            at.elapsed,
            {
                "loss": loss,
                "bpp": bpp,
                "psnr": 10 * (2 * math.log10(255) - log_mse),
                "images/s": images / (time.monotonic() - sums.since),
                "learning_rate": scale * settings.learning_rate,
                "gradient_norm": at.mean_norm,
            },
        )

    def _save(self) -> None:
        if self._fabric.is_global_zero:
            save_checkpoint(
                self._settings.checkpoint_path,
                self._model,
                self.average,
                self._raw_optimizer,
                self._position,
                self._scaler_state(),
            )

    def _validate(self) -> None:
        if self._pictures:
            settings = self._settings
            trained = self.average.module
            assert isinstance(trained, GroupedMixer)
            qualities = settings.validation_qualities
            self.report.validation(
                self._position.step,
                validate(trained, self._pictures, qualities, settings.metric),
            )
