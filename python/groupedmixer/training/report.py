# SPDX-License-Identifier: MIT
"""What a run says of itself: lines or a progress bar, and TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .validation import ValidationPoint

__all__ = ["Report"]


class Report:
    """Lines on stdout, a bar on stderr, scalars for TensorBoard; of the first process only.

    Parameters
    ----------
    active
        False makes every method do nothing: further processes have the same figures.
    progress
        A bar in place of a line every few steps. None: if stderr is a terminal.
    log
        Folder for TensorBoard.
    step
        Of a resumed run: what TensorBoard has of later ones is hidden.

    Raises
    ------
    ImportError
        If ``log`` is given and TensorBoard is not installed.
    """

    def __init__(
        self, active: bool, progress: bool | None = None, log: Path | None = None, step: int = 0
    ) -> None:
        self._active = active
        self._bar: Any = None
        self._board: Any = None
        if not active:
            return
        if log is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "log needs TensorBoard: pip install 'groupedmixer[train]'"
                ) from error
            self._board = SummaryWriter(str(log), purge_step=step)
        if sys.stderr.isatty() if progress is None else progress:
            from tqdm import tqdm

            self._bar = tqdm(
                total=100.0,
                unit="%",
                file=sys.stderr,
                bar_format="{percentage:5.1f}%|{bar:20}| {elapsed}{postfix}",
            )

    def line(self, text: str) -> None:
        """A line of its own."""
        if not self._active:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    def training(self, step: int, done: float, elapsed: float, scalars: dict[str, float]) -> None:
        """Means since the last call: loss, bpp, psnr, images/s, learning_rate, gradient_norm."""
        if not self._active:
            return
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(f"train/{name}", value, step)
        text = (
            f"loss {scalars['loss']:.4f} bpp {scalars['bpp']:.3f} psnr {scalars['psnr']:.2f} "
            f"{scalars['images/s']:.1f} images/s"
        )
        if self._bar is None:
            print(
                f"step {step} {elapsed / 60:.1f} min {text} lr {scalars['learning_rate']:.1e} "
                f"norm {scalars['gradient_norm']:.2f}",
                flush=True,
            )
        else:
            self._bar.n = 100 * done
            self._bar.set_postfix_str(f"step {step} {text}")

    def validation(self, step: int, points: Sequence[ValidationPoint]) -> None:
        """A line for every quality."""
        for point in points:
            self.line(
                f"validation step {step} quality {point.quality:g} loss {point.loss:.4f} "
                f"bpp {point.bpp:.4f} psnr {point.psnr:.3f}"
            )
            if self._board is not None:
                for name in ("loss", "bpp", "psnr"):
                    tag = f"validation/{name}/{point.quality:g}"
                    self._board.add_scalar(tag, getattr(point, name), step)

    def close(self) -> None:
        """Ends the bar and writes what TensorBoard has not yet."""
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()
