"""Spans of time in which a facility is not to be had."""

from __future__ import annotations

from collections.abc import Iterable

from hansa.core.errors import SimulationError
from hansa.core.units import format_duration
from hansa.spec.simulation import Window

_MOST_SKIPPED = 10_000
_HINT = (
    "Ask for less time (`job.time`), or make the windows of `simulation.failures` "
    "shorter or rarer."
)


class _Span:
    """A window, as ``[begin + k every, begin + k every + lasts)`` for k = 0, 1, ..."""

    __slots__ = ("begin", "every", "lasts")

    def __init__(self, window: Window) -> None:
        self.begin = window.at
        self.lasts = window.lasts
        self.every = window.every

    def _begun(self, at: float) -> int:
        """Return how often it has begun by a time, that moment included."""
        if at < self.begin:
            return 0
        if self.every is None:
            return 1
        times = int((at - self.begin) / self.every)
        # The quotient is rounded and may be one off.
        if self.begin + times * self.every > at:
            return times
        return times + (2 if self.begin + (times + 1) * self.every <= at else 1)

    def next_begin(self, at: float) -> float | None:
        """Return its first beginning after a time."""
        begun = self._begun(at)
        if begun == 0:
            return self.begin
        return None if self.every is None else self.begin + begun * self.every

    def blocks(self, at: float, walltime: float) -> float | None:
        """Return the end of what a job runs into, or None.

        No moment from `at` to that end is free for the job: it would still be running
        when this window begins, and the window ends later.

        Raises:
            SimulationError: The windows come again too soon for such a job.
        """
        end = at + walltime
        if self.every is not None and end > self.begin:
            self._check(walltime, self.every)
        begun = self._begun(end)
        if begun == 0:
            return None
        begin = self.begin + (begun - 1) * (self.every or 0.0)
        meets = begin < end or begin <= at
        return begin + self.lasts if meets and begin + self.lasts > at else None

    def _check(self, walltime: float, every: float) -> None:
        if walltime > every - self.lasts:
            raise SimulationError(
                f"A job of {format_duration(walltime)} can never start: there is a "
                f"window of {format_duration(self.lasts)} every "
                f"{format_duration(every)} that it would run into.",
                hint=_HINT,
            )


class Calendar:
    """Windows in which no job may run, as maintenance, or nothing answers, as outages.

    Args:
        windows: The windows; they may overlap.
    """

    __slots__ = ("_spans",)

    def __init__(self, windows: Iterable[Window]) -> None:
        self._spans = [_Span(window) for window in windows]

    def inside(self, at: float) -> float | None:
        """Return when the windows around a time are all over; None outside of any.

        Windows that overlap or follow at once are one.

        Raises:
            SimulationError: They are never over.
        """
        if not self._spans:
            return None
        free = self._free(at, 0.0)
        if free is None:
            raise SimulationError(
                "Maintenance or outages of a facility follow each other without end: "
                f"after {format_duration(at)} it is never to be had again.",
                hint=_HINT,
            )
        return free if free > at else None

    def begins_after(self, at: float) -> float | None:
        """Return the beginning of the next window, later than `at`; None: no more."""
        begins = (span.next_begin(at) for span in self._spans)
        return min((begin for begin in begins if begin is not None), default=None)

    def next_free(self, at: float, walltime: float) -> float:
        """Return the first time from `at` on when a job runs into no window.

        A job may start when a window ends and end when one begins.

        Args:
            at: Seconds since the run began.
            walltime: Seconds that the job asks for.

        Raises:
            SimulationError: There is none before ten thousand windows are over.
        """
        free = self._free(at, walltime)
        if free is None:
            raise SimulationError(
                f"A job of {format_duration(walltime)} can never start: no gap between "
                "the windows of this facility, which come again and again, is long "
                "enough.",
                hint=_HINT,
            )
        return free

    def _free(self, at: float, walltime: float) -> float | None:
        for _ in range(_MOST_SKIPPED):
            ends = [span.blocks(at, walltime) for span in self._spans]
            later = max((end for end in ends if end is not None), default=None)
            if later is None:
                return at
            at = later
        return None
