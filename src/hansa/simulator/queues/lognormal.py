"""Waits from a lognormal distribution, by size, time of day, load and chance."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, inf, log, sqrt

import numpy as np

from hansa.core.rng import derive_seed
from hansa.simulator.heap import Heap
from hansa.simulator.level import Level
from hansa.simulator.queues.base import Entry
from hansa.simulator.queues.starts import Starts
from hansa.spec.simulation import LognormalQueue as LognormalSpec

_HOUR = 3600.0
_BLOCK = 256
_LONGEST = 1e10
"""Seconds; three centuries. What waits longer never starts in any run."""


class LognormalQueue:
    """A queue whose waits are drawn.

    ``wait = median size level(t) exp(sigma (sqrt(s) x(t) + sqrt(1 - s) z))``

    ``size`` is ``(nodes / reference_nodes)^nodes_exponent
    (walltime / reference_time)^time_exponent``, ``level`` the time of day and the drift
    (`Level`). The load x is a stationary Ornstein-Uhlenbeck process with variance 1,
    the same for all jobs of a moment; z is each job's own. Both are standard normal, so
    the wait stays lognormal with `sigma` whatever the share s of the load.

    With ``s = sqrt(memory)``, both the share and the load's correlation over an hour,
    the logarithms of two waits submitted h hours apart have the correlation
    ``s s^h = memory^((1 + h) / 2)``: `memory` after an hour, and 0 without memory.

    A share `tail` of the jobs has ``exp(e / tail_index)`` in place of the last factor,
    with e standard exponential: a Pareto variable that is at least 1.

    The process is known at the submissions only: from one to the next, dt hours later,
    it is ``x' = s^dt x + sqrt(1 - s^(2 dt)) n`` exactly (Gillespie, "Exact numerical
    simulation of the Ornstein-Uhlenbeck process and its integral", Physical Review E
    54, 2084, 1996). The k-th job of a facility takes the k-th z, e and n, whatever the
    strategy.

    Args:
        spec: The distribution.
        heap: The clock.
        facility: The facility's name.
        seed: Seed of the run.
        start_hour: Hour of the day at which the run begins.
    """

    __slots__ = (
        "_asked",
        "_decay",
        "_draws",
        "_heap",
        "_level",
        "_load",
        "_sizes",
        "_spec",
        "_starts",
    )

    def __init__(
        self,
        spec: LognormalSpec,
        heap: Heap,
        *,
        facility: str,
        seed: int,
        start_hour: float,
    ) -> None:
        self._spec = spec
        self._heap = heap
        self._starts = Starts(heap)
        self._level = Level(
            swing=spec.day_swing,
            peak_hour=spec.peak_hour,
            drift_per_day=spec.drift_per_day,
            start_hour=start_hour,
        )
        self._draws = _draw(spec, derive_seed("queue", seed, facility))
        self._sizes: dict[tuple[int, float], float] = {}
        self._decay = log(spec.memory) / 2.0 / _HOUR if spec.memory else -inf
        self._load = 0.0
        self._asked = -inf

    @property
    def remarks(self) -> tuple[str, ...]:
        """Nothing: a law has no data."""
        return ()

    def submit(self, entry: Entry) -> None:
        """Take a job in and draw its wait."""
        self._starts.after(self._wait(entry.nodes, entry.walltime), entry)

    def leave(self, entry: Entry) -> None:
        """Forget a job; if it waits, it never starts."""
        self._starts.leave(entry)

    def _wait(self, nodes: int, walltime: float) -> float:
        own, of_load, fresh = next(self._draws)
        now = self._heap.now
        size = self._sizes.get((nodes, walltime))
        if size is None:
            size = self._sizes[nodes, walltime] = self._median(nodes, walltime)
        if of_load:
            kept = exp(self._decay * (now - self._asked))
            self._load = kept * self._load + sqrt(1.0 - kept * kept) * fresh
            self._asked = now
        wait = size * self._level(now) * exp(own + of_load * self._load)
        return wait if wait < _LONGEST else _LONGEST

    def _median(self, nodes: int, walltime: float) -> float:
        spec = self._spec
        by_nodes: float = (nodes / spec.reference_nodes) ** spec.nodes_exponent
        by_time: float = (walltime / spec.reference_time) ** spec.time_exponent
        return spec.median * by_nodes * by_time


def _draw(spec: LognormalSpec, seed: int) -> Iterator[tuple[float, float, float]]:
    """Yield for each job its own part, the weight of the load and the load's news.

    All draws are made in any case: a job's luck doesn't depend on the other settings.
    """
    generator = np.random.default_rng(seed)
    share = sqrt(spec.memory)
    own, of_load = spec.sigma * sqrt(1.0 - share), spec.sigma * sqrt(share)
    while True:
        z, fresh = generator.standard_normal((2, _BLOCK))
        excess = generator.standard_exponential(_BLOCK) / spec.tail_index
        heavy = generator.random(_BLOCK) < spec.tail
        yield from zip(
            np.where(heavy, np.minimum(excess, 100.0), own * z).tolist(),
            np.where(heavy, 0.0, of_load).tolist(),
            fresh.tolist(),
            strict=True,
        )
