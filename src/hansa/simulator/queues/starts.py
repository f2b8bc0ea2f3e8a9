"""Jobs whose wait is known when they are submitted."""

from __future__ import annotations

from functools import partial

from hansa.simulator.heap import Due, Heap
from hansa.simulator.queues.base import Entry


class Starts:
    """The coming starts of waiting jobs."""

    __slots__ = ("_due", "_heap")

    def __init__(self, heap: Heap) -> None:
        self._heap = heap
        self._due: dict[Entry, Due] = {}

    def after(self, wait: float, entry: Entry) -> None:
        """Start a job after so many seconds, and never at once."""
        self._due[entry] = self._heap.after(wait, partial(self._start, entry))

    def leave(self, entry: Entry) -> None:
        """Take the start of a waiting job back; harmless for any other."""
        due = self._due.pop(entry, None)
        if due is not None:
            due.cancel()

    def _start(self, entry: Entry) -> None:
        del self._due[entry]
        entry.started = self._heap.now
        entry.on_start()
