"""A clock that jumps: calls ordered by their time, then by when they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Call = Callable[[], None]


class Due:
    """A call that is due at some time and may be taken back."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call: Call | None = call

    def cancel(self) -> None:
        """Take the call back; harmless when it is over."""
        self.call = None


class Heap:
    """The time of a simulation, in seconds since the run began, and what is due."""

    __slots__ = ("_asked", "_calls", "now")

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._calls: list[tuple[float, int, Due]] = []
        self._asked = 0

    def at(self, time: float, call: Call) -> Due:
        """Ask for a call at a time; one that is over means now."""
        time = time if time > self.now else self.now
        due = Due(call)
        self._asked += 1
        heappush(self._calls, (time, self._asked, due))
        return due

    def after(self, seconds: float, call: Call) -> Due:
        """Ask for a call after some seconds."""
        return self.at(self.now + seconds, call)

    def step(self) -> bool:
        """Make the next call, with its time as the present; False if none is left."""
        while self._calls:
            at, _, due = heappop(self._calls)
            if due.call is not None:
                self.now = at
                call, due.call = due.call, None
                call()
                return True
        return False
