# SPDX-License-Identifier: MIT
"""What a command tells of many files: a line each, a bar, a summary, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .printable import printable

if TYPE_CHECKING:
    from .file_coding import Done

__all__ = ["BatchReport", "Outcome", "failure"]


@dataclass(frozen=True)
class Outcome:
    """What became of one file: it is done, it failed, or (neither) there was nothing to do."""

    source: Path
    target: Path | None = None  # None where nothing was to be written
    seconds: float = 0.0
    done: Done | None = None
    error: str | None = None
    warnings: Sequence[str] = ()

    @property
    def status(self) -> str:
        """done, failed or up to date."""
        if self.error is not None:
            return "failed"
        return "up to date" if self.done is None else "done"


class BatchReport:
    """Collects outcomes, tells of them as they come, and sums up.

    Lines of files that are done go to stdout, those of failures and warnings to stderr. With
    `as_json` stdout carries one object and nothing else.

    Args:
        total: files there are.
        quiet: nothing but failures.
        as_json: print `as_object` at the end, in place of all other output but failures.
        progress: a bar on stderr, of files or, for one file, of its tiles; None: on a terminal, if
            not `quiet`.
        sum_up: print a summary; None: where there are several files.
    """

    def __init__(
        self,
        total: int,
        *,
        quiet: bool,
        as_json: bool,
        progress: bool | None,
        sum_up: bool | None = None,
    ) -> None:
        if progress is None:
            progress = not quiet and sys.stderr.isatty()
        self.outcomes: list[Outcome] = []
        self._total = total
        self._quiet = quiet or as_json
        self._as_json = as_json
        self._sum_up = total > 1 if sum_up is None else sum_up
        self._bar: Any = None
        self._shows_tiles = progress and total == 1
        if progress and total > 1:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="file", file=sys.stderr)

    @property
    def failed(self) -> bool:
        """Whether any file failed."""
        return any(outcome.error is not None for outcome in self.outcomes)

    def tiles(self, done: int, total: int) -> None:
        """How far a picture is. Shown where it is the only one; small ones are done too soon."""
        if not self._shows_tiles or total == 1:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(unit="tile", file=sys.stderr, leave=False)
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()

    def add(self, outcome: Outcome) -> None:
        """One more file is dealt with."""
        self.outcomes.append(outcome)
        for text in outcome.warnings:
            self._print(failure(outcome.source, f"warning: {text}"), sys.stderr)
        if outcome.error is not None:
            self._print(failure(outcome.source, outcome.error), sys.stderr)
        elif not self._quiet:
            self._print(_line(outcome), sys.stdout)
        if self._bar is not None and not self._shows_tiles:
            self._bar.update()

    def close(
        self, seconds: float, passed_over: Sequence[tuple[Path, str]], *, interrupted: bool = False
    ) -> None:
        """Prints the summary or the object. `passed_over`: files left out, and why."""
        if self._bar is not None:
            self._bar.close()
        if self._as_json:
            print(json.dumps(self.as_object(seconds, passed_over, interrupted), indent=2))
        elif self._sum_up and not self._quiet:
            print(self._summary(seconds, passed_over))

    def as_object(
        self, seconds: float, passed_over: Sequence[tuple[Path, str]], interrupted: bool
    ) -> dict[str, Any]:
        """The whole report; docs/command-line.md lists its fields."""
        return {
            "files": [_as_object(outcome) for outcome in self.outcomes],
            "passed_over": [{"path": str(path), "reason": why} for path, why in passed_over],
            "interrupted": interrupted,
            "summary": {
                "done": self._count("done"),
                "up_to_date": self._count("up to date"),
                "failed": self._count("failed"),
                "left": self._total - len(self.outcomes),
                "passed_over": len(passed_over),
                **self._sums(),
                "seconds": round(seconds, 3),
            },
        }

    def _count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    def _sums(self) -> dict[str, Any]:
        """Over the files that are done."""
        done = [outcome.done for outcome in self.outcomes if outcome.done is not None]
        pixels = sum(one.width * one.height for one in done)
        return {
            "bytes_in": sum(one.bytes_in for one in done),
            "bytes_out": sum(one.bytes_out or 0 for one in done),
            "bpp": 8 * sum(one.gmx_bytes for one in done) / pixels if pixels else None,
        }

    def _summary(self, seconds: float, passed_over: Sequence[tuple[Path, str]]) -> str:
        counts = [f"{self._count('done')} done"]
        counts += [
            f"{self._count(status)} {status}"
            for status in ("up to date", "failed")
            if self._count(status)
        ]
        if left := self._total - len(self.outcomes):
            counts.append(f"{left} left")
        if passed_over:
            counts.append(f"{len(passed_over)} passed over ({_reasons(passed_over)})")
        sums = self._sums()
        files = "1 file" if self._total == 1 else f"{self._total} files"
        text = f"{files}: {', '.join(counts)}"
        if sums["bpp"] is not None:
            made = f" -> {sums['bytes_out']}" if sums["bytes_out"] else ""
            text += f"; {sums['bytes_in']}{made} bytes, {sums['bpp']:.4f} bpp"
        lines = [f"{text}; {seconds:.2f} s"]
        lines += [
            f"failed: {printable(outcome.source)}: {outcome.error}"
            for outcome in self.outcomes
            if outcome.error is not None
        ]
        return "\n".join(lines)

    def _print(self, line: str, stream: TextIO) -> None:
        if self._bar is None:
            print(line, file=stream, flush=True)
        else:
            self._bar.write(line, file=stream)


def failure(subject: str | Path, error: str | BaseException) -> str:
    """The line that tells why something failed."""
    return f"groupedmixer: {printable(subject)}: {reason(subject, error)}"


def reason(subject: str | Path, error: str | BaseException) -> str:
    """An expected error in words; `subject` is not named again."""
    if isinstance(error, OSError) and error.strerror:
        named = "" if error.filename in (None, str(subject)) else f" ({printable(error.filename)})"
        return error.strerror + named
    if isinstance(error, MemoryError):
        return "not enough memory"
    return str(error)


def _line(outcome: Outcome) -> str:
    paths = printable(outcome.source)
    if outcome.target is not None:
        paths += f" -> {printable(outcome.target)}"
    done = outcome.done
    if done is None:
        return f"{paths}: up to date"
    facts = [f"{done.gmx_bytes} bytes", f"{done.bpp:.4f} bpp"]
    if done.psnr is not None:
        facts.append(f"{done.psnr:.2f} dB")
    facts.append(f"quality {done.quality:.8g}")
    return f"{paths}: {', '.join(facts)}, {outcome.seconds:.2f} s"


def _reasons(passed_over: Sequence[tuple[Path, str]]) -> str:
    reasons = [why for _, why in passed_over]
    return ", ".join(f"{reasons.count(why)} {why}" for why in dict.fromkeys(reasons))


def _as_object(outcome: Outcome) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "source": str(outcome.source),
        "target": None if outcome.target is None else str(outcome.target),
        "status": outcome.status.replace(" ", "_"),
    }
    if outcome.done is not None:
        facts |= asdict(outcome.done)
        facts["bpp"] = outcome.done.bpp
        facts["seconds"] = round(outcome.seconds, 3)
    if outcome.error is not None:
        facts["error"] = outcome.error
    if outcome.warnings:
        facts["warnings"] = list(outcome.warnings)
    return facts
