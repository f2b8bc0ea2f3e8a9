"""What goes wrong at a simulated facility: preemptions, failing nodes, closed doors."""

from __future__ import annotations

from math import log
from typing import Protocol

from hansa.core.errors import SimulationError
from hansa.core.rng import uniform
from hansa.core.units import format_duration
from hansa.scheduler.base import JobState
from hansa.simulator.allocation import Allocation
from hansa.simulator.calendar import Calendar
from hansa.simulator.heap import Due, Heap
from hansa.spec.simulation import FailureSpec

_TOO_LATE_S = 10 * 365 * 86_400.0
"""Ten years; a job that can't start before then never will."""


class Struck(Protocol):
    """The facility that an outage strikes."""

    heap: Heap

    def outage(self, until: float) -> None:
        """Lose what runs; nothing is answered until then."""
        ...


class Weather:
    """The troubles of one facility; the k-th job of it has the k-th draws.

    Args:
        spec: Rates and windows.
        facility: Its name.
        seed: Seed of everything that is drawn.
    """

    def __init__(self, spec: FailureSpec, facility: str, seed: int) -> None:
        self._spec = spec
        self._name, self._keys = facility, ("weather", seed, facility)
        self._away = Calendar(spec.outages)
        self._maintenance = Calendar(spec.maintenance)
        self._jobs = 0
        self._until = -1.0

    def begin(self, facility: Struck) -> None:
        """Ask the heap for the outages, one after the other."""
        self._await(facility, facility.heap.now - 1.0)  # one may begin just now

    def _await(self, facility: Struck, after: float) -> None:
        at = self._away.begins_after(after)
        if at is not None:
            facility.heap.at(at, lambda: self._strike(facility))

    def _strike(self, facility: Struck) -> None:
        now = facility.heap.now
        until = self._away.inside(now)
        if until is not None and until > self._until:  # windows may overlap
            self._until = until
            facility.outage(until)
        self._await(facility, now)

    def back(self, at: float) -> float | None:
        """Return when the facility answers again; None: it does."""
        return self._away.inside(at)

    def next_free(self, at: float, walltime: float) -> float:
        """Return when a job that could start at `at` may: never into maintenance."""
        free = self._maintenance.next_free(at, walltime)
        while (until := self._away.inside(free)) is not None:
            free = self._maintenance.next_free(until, walltime)
            if free - at > _TOO_LATE_S:
                raise SimulationError(
                    f"No job of {format_duration(walltime)} can start at {self._name}: "
                    "maintenance and outages leave no room for it.",
                    hint="Ask for less time, or see `failures` of this facility.",
                )
        return free

    def failures(self, job: Allocation) -> tuple[Due, ...]:
        """Ask the heap for the end of a job that starts now, if it is to fail."""
        self._jobs += 1
        spec, found = self._spec, []
        if spec.preemptions_per_hour:
            after = self._drawn("preempted", spec.preemptions_per_hour)
            if after < job.ask.walltime:
                found.append(
                    job.owner.heap.after(
                        after,
                        lambda: job.break_off(
                            JobState.PREEMPTED, warned=spec.grace > 0
                        ),
                    )
                )
        if spec.node_failures_per_hour:
            after = self._drawn("failed", spec.node_failures_per_hour * job.ask.nodes)
            if after < job.ask.walltime:
                found.append(
                    job.owner.heap.after(
                        after,
                        lambda: job.break_off(JobState.NODE_FAIL, warned=False),
                    )
                )
        return tuple(found)

    def _drawn(self, what: str, per_hour: float) -> float:
        """Return seconds from an exponential law."""
        return -log(1.0 - uniform(*self._keys, what, self._jobs)) * 3600.0 / per_hour
