# SPDX-License-Identifier: MIT
"""What a training run is made of, checked. Imports no torch: the command line reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..config import CONFIGS, NUM_LEVELS
from ..container import check_name

__all__ = ["METRICS", "PRECISIONS", "SMALLEST_MS_SSIM_SIDE", "Settings"]

METRICS = ("mse", "ms-ssim")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

# Five scales with windows of 11: (11 - 1) * 2**4 pixels are not enough.
SMALLEST_MS_SSIM_SIDE = 161


@dataclass(frozen=True)
class Settings:
    """A training run.

    Parameters
    ----------
    data
        Folders (searched recursively) and uncompressed tar files with pictures.
    output
        The weights file to write, ``NAME.safetensors``; coded files will know the weights by NAME.
    config
        Name of a configuration. None: that of ``warm_start``, else ``rt``.
    minutes, steps
        Length of the run, one of the two: wall time without the loading of data, or optimizer
        steps.
    exclude
        Names of picture files to leave out.
    stream
        True: pictures are read and decoded when they are needed. False: decoded once and kept in
        memory. None: streams what is larger than a gigabyte, encoded.
    workers
        Processes that prepare crops. None: none where pictures are in memory, else one a core, 8 at
        most.
    batch, crop
        Crops per step and process; side of a crop in pixels.
    metric
        The distortion: ``mse`` or ``ms-ssim``.
    learning_rate, linear_rate, weight_decay
        AdamW's; that of the linear block transforms is ``linear_rate`` times the root mean square
        of their weights times it.
    warmup, final
        Fractions of the run: learning rate rises; latents are quantised as in coding.
    clip
        Bound on the gradient norm in units of its running mean.
    ema
        Decay per step of the moving average of the weights, which is what is written.
    precision
        One of `PRECISIONS`. None: ``bf16-mixed`` on a GPU that has it, else ``32-true``.
    accelerator, devices, nodes
        As Lightning Fabric takes them.
    threads
        CPU threads of each process; None leaves PyTorch's choice.
    seed
        The same seed on the same machine gives the same run.
    checkpoint
        None: ``output`` with the suffix ``.checkpoint.safetensors``.
    checkpoint_every, validate_every
        Minutes.
    resume
        ``auto``: goes on from ``checkpoint`` if it exists. A path: goes on from that file, which
        must exist. None: starts anew, and refuses to if ``checkpoint`` exists.
    warm_start
        Name or path of weights to start from.
    validation
        A folder of pictures to measure on.
    validation_qualities
        Qualities 0..7 to measure at.
    log
        A folder for TensorBoard.
    log_every
        Steps between two lines.
    progress
        A progress bar in place of lines. None: on a terminal.
    force
        An existing ``output`` is replaced.

    Raises
    ------
    ValueError
        If a rule is broken; the message names the argument, the rule and the value.
    """

    data: tuple[Path, ...]
    output: Path
    config: str | None = None
    minutes: float | None = None
    steps: int | None = None
    exclude: frozenset[str] = frozenset()
    stream: bool | None = None
    workers: int | None = None
    batch: int = 4
    crop: int = 256
    metric: str = "mse"
    learning_rate: float = 1e-3
    linear_rate: float = 0.3
    weight_decay: float = 0.01
    warmup: float = 0.02
    final: float = 0.0
    clip: float = 2.0
    ema: float = 0.999
    precision: str | None = None
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    threads: int | None = None
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_every: float = 3.0
    resume: str | None = None
    warm_start: str | None = None
    validation: Path | None = None
    validation_qualities: tuple[float, ...] = (1.0, 3.5, 6.0)
    validate_every: float = 10.0
    log: Path | None = None
    log_every: int = 50
    progress: bool | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data must name at least one folder or tar file, got none")
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output must end in .safetensors, got {self.output}")
        check_name("output's name", self.output.stem)
        if self.config is not None and self.config not in CONFIGS:
            raise ValueError(f"config must be one of {', '.join(CONFIGS)}, got {self.config!r}")
        if (self.minutes is None) == (self.steps is None):
            raise ValueError(
                f"one of minutes and steps must be given, got {self.minutes} and {self.steps}"
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        counts = {"batch": self.batch, "nodes": self.nodes, "log_every": self.log_every}
        optional = {"steps": self.steps, "threads": self.threads}
        counts |= {name: value for name, value in optional.items() if value is not None}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        positive = {
            "minutes": self.minutes,
            "learning_rate": self.learning_rate,
            "clip": self.clip,
            "validate_every": self.validate_every,
        }
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.checkpoint_every < math.inf:
            raise ValueError(f"checkpoint_every must not be negative, got {self.checkpoint_every}")
        fractions = {"warmup": self.warmup, "final": self.final, "ema": self.ema}
        for name, value in fractions.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in 0..1, 1 not included, got {value}")
        smallest = SMALLEST_MS_SSIM_SIDE if self.metric == "ms-ssim" else 16
        if self.crop < smallest:
            raise ValueError(
                f"crop must be at least {smallest} for the metric {self.metric}, got {self.crop}"
            )
        if not self.validation_qualities:
            raise ValueError("validation_qualities must hold at least one quality, got none")
        for quality in self.validation_qualities:
            if not 0 <= quality <= NUM_LEVELS - 1:
                raise ValueError(
                    f"validation_qualities must be in 0..{NUM_LEVELS - 1}, got {quality}"
                )

    @property
    def checkpoint_path(self) -> Path:
        """Where the state of the run is kept."""
        return self.checkpoint or self.output.with_suffix(".checkpoint.safetensors")
