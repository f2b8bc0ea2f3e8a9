"""How busy a machine is by the time of day, and how that drifts from day to day."""

from __future__ import annotations

from math import cos, exp, log, pi

_DAY = 86400.0
_MOST = 700.0  # e to the power of it is still a float


class Level:
    """A factor on waits or times: a cosine over the day, times a drift.

    ``level(t) = (1 + swing cos(2 pi (hour(t) - peak_hour) / 24))
    drift_per_day^(t / day)``

    The arithmetic mean of the cosine's part over a day is 1.

    Args:
        swing: Share by which it rises and falls, 0 to 1.
        peak_hour: Hour of the day at which it is highest.
        drift_per_day: Factor by which it grows with each day.
        start_hour: Hour of the day at which the run begins.
    """

    __slots__ = ("_growth", "_offset", "_swing")

    def __init__(
        self,
        *,
        swing: float,
        peak_hour: float,
        drift_per_day: float,
        start_hour: float,
    ) -> None:
        self._swing = swing
        self._offset = (start_hour - peak_hour) * 3600.0
        self._growth = log(drift_per_day) / _DAY

    def __call__(self, at: float) -> float:
        """Return the factor at a time, in seconds since the run began."""
        level = 1.0
        if self._swing:
            level += self._swing * cos(2.0 * pi / _DAY * (at + self._offset))
        if self._growth:
            level *= exp(min(_MOST, self._growth * at))
        return level
