from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hansa.simulator.heap import Heap
from hansa.simulator.queues import Entry, Queue

Waits = Callable[..., list[float]]


def _waits(
    queue: Queue,
    heap: Heap,
    times: Sequence[float],
    *,
    nodes: int = 1,
    walltime: float = 3600.0,
) -> list[float]:
    entries: list[Entry] = []

    def submit() -> None:
        entry = Entry(f"job-{len(entries)}", nodes, walltime, heap.now, lambda: None)
        entries.append(entry)
        queue.submit(entry)

    for time in times:
        heap.at(time, submit)
    while heap.step():
        pass
    return [
        entry.started - entry.submitted
        for entry in entries
        if entry.started is not None
    ]


@pytest.fixture
def waits() -> Waits:
    """Submit one job at each of some times and return how long each waited."""
    return _waits
