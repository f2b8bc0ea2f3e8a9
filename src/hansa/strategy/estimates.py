"""What a facility's queue, speed, start-up and transfers are like, learned online.

Each quantity is estimated from its own records only: the queue wait by the facility's
scheduler, steps and start-up by the clock of its jobs, transfers by the mover. They
are never inferred from one another: a long queue does not make a machine slow.
The first observation is the estimate; nothing is guessed before it. A speed that was
measured before the run (`hansa bench throughput`) is such an observation.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import isfinite
from typing import Self

from hansa.core.events import Event, JobStarted, UpdateArrived

DECAY = 0.9
WINDOW = 64
FASTEST = 1e-9
LONGEST = 1e9
"""Seconds that a step takes at least, and anything at most.

What a facility says beyond that is not believed: times are divided by one another, and
the quotient must be a number of steps.
"""


class Estimate:
    """Median and quantiles of a stream of numbers, recent ones counting more.

    An observation's weight falls by `decay` with each later one; the last 64 are
    kept. A quantile is the smallest observation with at least that share of the
    weight at or below it, so it always is a value that was seen.

    Args:
        decay: Weight of an observation relative to the next one, in (0, 1].
    """

    __slots__ = ("_known", "_seen", "_weights")

    def __init__(self, decay: float = DECAY) -> None:
        if not 0.0 < decay <= 1.0:
            raise ValueError(f"a decay of {decay} is not in (0, 1]")
        self._seen: deque[float] = deque(maxlen=WINDOW)
        self._weights = [decay**age for age in range(WINDOW)]
        self._known: dict[float, float | None] = {}

    def see(self, value: float) -> None:
        """Take an observation in; what is no finite number is not one."""
        if isfinite(value):
            self._seen.append(value)
            self._known.clear()

    @property
    def median(self) -> float | None:
        """The weighted median; None before the first observation."""
        return self.quantile(0.5)

    def quantile(self, q: float) -> float | None:
        """Return the weighted quantile for `q` in 0 to 1; None if nothing was seen."""
        if q not in self._known:
            self._known[q] = self._quantile(q)
        return self._known[q]

    def _quantile(self, q: float) -> float | None:
        weighed = sorted(zip(reversed(self._seen), self._weights, strict=False))
        rest = q * sum(weight for _, weight in weighed)
        for value, weight in weighed:
            rest -= weight
            if rest <= 1e-12:
                return value
        return weighed[-1][0] if weighed else None


@dataclass(slots=True)
class FacilityEstimates:
    """One facility's estimates, in seconds.

    Attributes:
        queue_wait: What training orders waited for a job of theirs to start, by the
            scheduler's records. An order that a running allocation took on waited for
            nothing and counts so; jobs queued ahead and evaluations don't count.
        seconds_per_step: Time in steps over steps done, by the job's clock.
        startup: From the start of the job's process to its first step.
        transfer: From mailbox to server, by the mover.
    """

    queue_wait: Estimate = field(default_factory=Estimate)
    seconds_per_step: Estimate = field(default_factory=Estimate)
    startup: Estimate = field(default_factory=Estimate)
    transfer: Estimate = field(default_factory=Estimate)

    @classmethod
    def known(cls, seconds_per_step: float | None) -> Self:
        """Return estimates that begin with what was measured before the run.

        It counts like an observation, so the run's own soon outweigh it.

        Args:
            seconds_per_step: Of the plan's jobs; None: nothing was measured.
        """
        made = cls()
        if seconds_per_step is not None:
            _see(made.seconds_per_step, seconds_per_step)
        return made

    def see(self, event: Event) -> None:
        """Learn from an event of this facility; most have nothing to tell."""
        match event:
            case JobStarted() if event.assignment.startswith("train-"):
                _see(self.queue_wait, event.queue_wait)
            case UpdateArrived():
                self._see_update(event)
            case _:
                pass

    def _see_update(self, event: UpdateArrived) -> None:
        timings = event.timings
        pace = timings.get("train_s", 0.0) / max(event.steps, 1)
        if event.steps > 0 and pace >= FASTEST:
            _see(self.seconds_per_step, pace)
        if "startup_s" in timings:
            _see(self.startup, timings["startup_s"])
        if "transfer_s" in timings:
            _see(self.transfer, timings["transfer_s"])


def _see(estimate: Estimate, seconds: float) -> None:
    if 0.0 <= seconds <= LONGEST:
        estimate.see(seconds)
