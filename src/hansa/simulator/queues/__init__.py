"""Batch queues of simulated facilities, one file a model; `make_queue` chooses."""

from __future__ import annotations

from hansa.simulator.heap import Heap
from hansa.simulator.queues.base import Entry, Queue
from hansa.simulator.queues.lognormal import LognormalQueue
from hansa.simulator.queues.replay import ReplayQueue
from hansa.spec import simulation as spec_of

__all__ = ["Entry", "Queue", "make_queue"]


def make_queue(
    spec: spec_of.LognormalQueue | spec_of.BackfillQueue | spec_of.ReplayQueue,
    heap: Heap,
    *,
    facility: str,
    seed: int,
    start_hour: float,
) -> Queue:
    """Return one facility's batch queue.

    Args:
        spec: Which model, and its numbers.
        heap: The clock.
        facility: The facility's name.
        seed: Seed of the run.
        start_hour: Hour of the day at which the run begins.

    Raises:
        SimulationError: A file that it reads can't be used.
    """
    if isinstance(spec, spec_of.LognormalQueue):
        return LognormalQueue(
            spec, heap, facility=facility, seed=seed, start_hour=start_hour
        )
    if isinstance(spec, spec_of.ReplayQueue):
        return ReplayQueue(spec, heap, facility=facility, seed=seed)
    # Workload files and what reads them are for those who simulate a scheduler.
    from hansa.simulator.queues.backfill import BackfillQueue  # noqa: PLC0415

    return BackfillQueue(
        spec, heap, facility=facility, seed=seed, start_hour=start_hour
    )
