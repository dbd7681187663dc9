# SPDX-License-Identifier: MIT
"""Work on many files: several at once, in order, and to a clean end whatever happens.

READ ME FIRST
- The work runs on threads, not processes: coding leaves Python's lock to the others, the weights
  are there once, and a process would import PyTorch anew.
- It never runs on the main thread, even where there is one job at a time. Python delivers Ctrl-C
  there alone, so no write and no clean-up of a job is ever cut in two.
- After Ctrl-C or SIGTERM, `run_batch` waits for the jobs that have begun to write and for no
  others: coding a large picture takes a while. Those left behind end at their next `Stop.check`,
  write nothing, and keep the interpreter from ending by itself.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

__all__ = ["Stop", "Stopped", "Terminated", "run_batch"]

J = TypeVar("J")
R = TypeVar("R")


class Stopped(BaseException):
    """Raised in a job that is to end early. No Exception: a job must not take it for a failure."""


class Terminated(KeyboardInterrupt):
    """Raised on the main thread by a signal other than Ctrl-C's.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """Asks the jobs in work to end, and knows those that must not be left half done.

    Args:
        on_progress: what `progress` passes on to.
    """

    def __init__(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        self._asked = False
        self._on_progress = on_progress
        self._committed: set[int] = set()  # threads
        self._changed = threading.Condition()

    def check(self) -> None:
        """Raises `Stopped` once `ask` was called. Jobs call it now and then."""
        if self._asked:
            raise Stopped

    def progress(self, done: int, total: int) -> None:
        """For a codec to call now and then, with the tiles done: as `check`, and says how far."""
        self.check()
        if self._on_progress is not None:
            self._on_progress(done, total)

    def commit(self) -> None:
        """As `check`, and from here to its end the job is waited for. Call it before writing."""
        with self._changed:
            self.check()
            self._committed.add(threading.get_ident())

    def ask(self) -> None:
        """From now on, `check` raises. Waits for the jobs that have called `commit` have ended."""
        with self._changed:
            self._asked = True
            self._changed.wait_for(lambda: not self._committed)

    def job_ended(self) -> None:
        """The job of this thread has ended, whether it had called `commit` or not."""
        with self._changed:
            self._committed.discard(threading.get_ident())
            self._changed.notify_all()


def run_batch(
    jobs: Sequence[J],
    work: Callable[[J, Stop], R],
    on_result: Callable[[R], None],
    *,
    parallel: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Calls ``on_result(work(job, stop))`` for every job: the work on threads, the rest here.

    Results are handed on in the order of the jobs. When it is interrupted, or a job or `on_result`
    raises, no job is started any more, those in work are asked to end, and the exception goes on
    its way; an interruption first hands on the results of those that had finished.

    Args:
        jobs: each is given to `work` once.
        work: returns a result. What it raises but `Stopped` comes out here.
        on_result: called on this thread.
        parallel: jobs at once, from 1 up.
        on_progress: called on the threads of the jobs, with the tiles of a picture that are done.

    Raises:
        KeyboardInterrupt, Terminated: Ctrl-C; SIGTERM or SIGHUP, where this is the main thread.
    """
    stop = Stop(on_progress)
    results: dict[int, R] = {}

    def run(index: int, job: J) -> None:
        try:
            stop.check()
            results[index] = work(job, stop)
        finally:
            stop.job_ended()

    pool = ThreadPoolExecutor(parallel, "groupedmixer")
    with _signals_raise():
        try:
            futures = [pool.submit(run, index, job) for index, job in enumerate(jobs)]
            for index, future in enumerate(futures):
                future.result()
                on_result(results.pop(index))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            stop.ask()
            if isinstance(error, KeyboardInterrupt):
                for index in sorted(results):
                    on_result(results.pop(index))
            raise
    pool.shutdown()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end a batch as Ctrl-C does, unless somebody else handles them."""
    numbers = []
    if threading.current_thread() is threading.main_thread():
        known = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))  # Windows has one
        numbers = [
            number
            for number in known
            if number is not None and signal.getsignal(number) == signal.SIG_DFL
        ]
    for number in numbers:
        signal.signal(number, _raise_terminated)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)
