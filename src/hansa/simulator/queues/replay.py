"""Measured waits, replayed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import log
from operator import attrgetter
from statistics import median

import numpy as np

from hansa.core.errors import SimulationError
from hansa.core.rng import derive_seed
from hansa.simulator.heap import Heap
from hansa.simulator.queues.base import Entry
from hansa.simulator.queues.measured import Measurement, read_measurements
from hansa.simulator.queues.starts import Starts
from hansa.spec.simulation import ReplayQueue as ReplaySpec

_BLOCK = 256
_ALIKE = log(2.0)
_LONG = 10.0
"""Times the median span between two measurements: longer is a gap."""


class ReplayQueue:
    """A queue in which the waits of measured jobs come again.

    A job takes the wait of a measurement, by the order of the `spec`:

    * ``sequence``: the k-th job takes the k-th, and after the last the first again;
    * ``drawn``: any of them, with equal chance; the k-th job has the k-th draw;
    * ``time``: the next one in time, where the run begins with the first measurement
      and begins anew after the last. A job that falls into a gap, ten times as long as
      the median span between measurements or longer, takes the one before the gap.

    Where nodes or walltimes are known, only measurements of like jobs count: those
    within a factor of two in both, or if there are none, the nearest.

    Args:
        spec: The waits, or their file, and the order.
        heap: The clock.
        facility: The facility's name.
        seed: Seed of the run.

    Attributes:
        gaps_hit: Jobs that fell into a gap.

    Raises:
        SimulationError: The file can't be used, or the order needs what it lacks.
    """

    __slots__ = (
        "_groups",
        "_heap",
        "_like",
        "_luck",
        "_measured",
        "_order",
        "_period",
        "_starts",
        "gaps_hit",
    )

    def __init__(
        self, spec: ReplaySpec, heap: Heap, *, facility: str, seed: int
    ) -> None:
        self._heap = heap
        self._starts = Starts(heap)
        self._order = spec.order
        self._measured = _measurements(spec)
        self._period = _period(self._measured)
        self._luck = _draw(derive_seed("queue", seed, facility))
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._like: dict[tuple[int, float], _Group] = {}
        self.gaps_hit = 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What should be said about the measurements, in sentences."""
        if not self.gaps_hit:
            return ()
        return (
            f"{self.gaps_hit} jobs were submitted in gaps of the measured waits; each "
            "took the one measured last before it.",
        )

    def submit(self, entry: Entry) -> None:
        """Take a job in and look its wait up."""
        self._starts.after(self._wait(entry.nodes, entry.walltime), entry)

    def leave(self, entry: Entry) -> None:
        """Forget a job; if it waits, it never starts."""
        self._starts.leave(entry)

    def _wait(self, nodes: int, walltime: float) -> float:
        group = self._like.get((nodes, walltime))
        if group is None:
            group = self._like[nodes, walltime] = self._group(nodes, walltime)
        if self._order == "sequence":
            return group.following()
        if self._order == "drawn":
            return group.waits[int(next(self._luck) * len(group.waits))]
        wait, is_gap = group.next_in_time(self._heap.now % self._period)
        self.gaps_hit += is_gap
        return wait

    def _group(self, nodes: int, walltime: float) -> _Group:
        """Return the measurements of like jobs; jobs with the same share a group."""
        apart = [_distance(one, nodes, walltime) for one in self._measured]
        bound = max(_ALIKE, min(apart))
        near = tuple(number for number, far in enumerate(apart) if far <= bound)
        if near not in self._groups:
            members = [self._measured[number] for number in near]
            self._groups[near] = _Group(members, self._period)
        return self._groups[near]


class _Group:
    """Measurements that a job may take, and where their replay stands."""

    __slots__ = ("_long", "_next", "_period", "_times", "waits")

    def __init__(self, members: Sequence[Measurement], period: float) -> None:
        self._next = 0
        self.waits = [one.wait for one in members]
        self._times = _times(members)
        self._long = _LONG * _usual_span(self._times)
        self._period = period

    def following(self) -> float:
        """Return the next wait of the list."""
        wait = self.waits[self._next]
        self._next = (self._next + 1) % len(self.waits)
        return wait

    def next_in_time(self, at: float) -> tuple[float, bool]:
        """Return the wait measured next, and whether the time lies in a gap."""
        times, waits = self._times, self.waits
        after = bisect_left(times, at)
        if 0 < after < len(times):
            is_gap = times[after] - times[after - 1] > self._long and times[after] > at
            return waits[after - 1 if is_gap else after], is_gap
        # Between the last measurement and the first of the next round.
        is_gap = times[0] + self._period - times[-1] > self._long and times[0] != at
        return waits[-1 if is_gap and after else 0], is_gap


def _times(measured: Sequence[Measurement]) -> list[float]:
    return [one.submitted for one in measured if one.submitted is not None]


def _usual_span(times: Sequence[float]) -> float:
    """Return the median time between two measurements that were not made at once."""
    spans = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    return median(spans) if spans else 1.0


def _period(measured: Sequence[Measurement]) -> float:
    """Return when the trace begins anew: a usual span after its last measurement."""
    times = _times(measured)
    return times[-1] + _usual_span(times) if times else 0.0


def _distance(one: Measurement, nodes: int, walltime: float) -> float:
    """Return how unlike a job is, as the logarithm of a factor; 0 if not known."""
    by_nodes = 0.0 if one.nodes is None else abs(log(nodes / one.nodes))
    by_time = 0.0 if one.walltime is None else abs(log(walltime / one.walltime))
    return max(by_nodes, by_time)


def _measurements(spec: ReplaySpec) -> list[Measurement]:
    """Return what there is; for the order `time` sorted, with the first at 0."""
    if spec.file is None:
        return [Measurement(wait) for wait in spec.waits]
    measured = read_measurements(spec.file)
    if spec.order != "time":
        return measured
    times = _times(measured)
    if not times:
        raise SimulationError(
            f"{spec.file}:1: the waits can't be replayed by their time: there is no "
            "column `submitted_s`.",
            hint="Add when each job was submitted, or choose another `order`.",
        )
    first = min(times)
    moved = [
        replace(one, submitted=time - first)
        for one, time in zip(measured, times, strict=True)
    ]
    return sorted(moved, key=attrgetter("submitted"))


def _draw(seed: int) -> Iterator[float]:
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.random(_BLOCK).tolist()
