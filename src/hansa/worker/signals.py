"""When a job has to stop early: a signal came, or its walltime is nearly over."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""Slurm warns with the first (`--signal`); Slurm and PBS end jobs with the second."""

SHORTEST_RESERVE, SAVES, RESERVE_SHARE = 60.0, 3.0, 0.2
"""The end of the walltime is kept for checkpoint and update: so many seconds, or so
many times what a checkpoint took, but never a larger share of it all."""


class Interrupted(Exception):
    """The job has to stop; raised out of an evaluation."""


class Stop:
    """Says whether and why to stop; asked after every step.

    Args:
        deadline: Time of `time.monotonic` from which on to stop, or None; may be
            moved.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._signal: str | None = None

    def request(self, number: int) -> None:
        """Ask to stop, because signal `number` came."""
        self._signal = signal.Signals(number).name

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._signal is not None:
            return f"signal {self._signal}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "walltime nearly over"
        return None

    def check(self) -> None:
        """Raise `Interrupted` if it is time to stop."""
        if reason := self.reason:
            raise Interrupted(reason)


def deadline(
    started: float, walltime: float | None, save_s: float = 0.0
) -> float | None:
    """Return when to stop a job, by `time.monotonic`; None if it has no walltime.

    Args:
        started: When it began.
        walltime: Seconds that it has, or None.
        save_s: Seconds that its last checkpoint took.
    """
    if walltime is None:
        return None
    reserve = max(SHORTEST_RESERVE, SAVES * save_s)
    return started + walltime - min(reserve, RESERVE_SHARE * walltime)


@contextmanager
def listening(stop: Stop, signals: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Let the signals set `stop` instead of ending the process."""

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        stop.request(number)

    older = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in older.items():
            signal.signal(number, handler)
