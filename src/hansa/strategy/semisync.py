"""Semi-synchronous rounds: a quorum, a little grace, and nothing is thrown away.

Once the quorum has come a round waits `grace` longer, then it ends. Those that are
missing keep their orders and go on; what they bring counts in the round that is open
then, weighed by its staleness s_k, the number of versions that came out since the one
it was trained from: ``w <- w + sum_k p_k d_k``, where p_k is in proportion to
``n_k / (1 + s_k)^a`` and ``sum_k p_k = 1``. A facility gives at most one update to a
version, and gets its next order when that version is out. Work that has become staler
than `max_staleness` is withdrawn; an order whose job has not begun is not stale, as the
job binds the newest version when it starts.

With ``grace: adaptive`` a round lasts at most `factor` times as long as its quorum
took, and ends at once when none of the missing is expected by then. What is expected
comes from medians of queue waits (by the facility's scheduler), start-up, pace and
transfers, each learned from its own records (`hansa.strategy.estimates`). A facility
that has never delivered has the benefit of the doubt.

The quorum and the use of late updates follow SAFA (Wu et al., arXiv 1910.01355), the
weight by staleness FedAsync (Xie et al., arXiv 1903.03934, section 5.2, polynomial).
The grace is ours. When nobody is ever missing it is FedAvg.

Defaults: a quorum of more than half, so that no version is made of late updates alone;
``factor = 1.5``; ``a = 0.5`` as in FedAsync's experiments; ``max_staleness = 5``.
Beyond the papers: all of `hansa.strategy.fedavg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hansa.core.commands import Assign, ClearTimer, Command, SetTimer, Withdraw
from hansa.core.events import Event, JobStarted, UpdateArrived
from hansa.core.units import Seconds, parse_duration
from hansa.strategy.base import StrategyContext
from hansa.strategy.estimates import FacilityEstimates
from hansa.strategy.fedavg import FedAvg
from hansa.strategy.options import AveragingOptions
from hansa.strategy.rounds import Round
from hansa.strategy.terms import amounts, normalised

_FACTOR = 1.5


def _grace(value: Any) -> float | str:
    if value == "adaptive":
        return "adaptive"
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 'adaptive'") from error
    if not (seconds >= 0 and isfinite(seconds)):
        raise ValueError("a grace is a duration of 0 or more, or 'adaptive'")
    return seconds


class SemiSyncOptions(AveragingOptions):
    """Keys of `strategy: {name: semisync}`."""

    quorum: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="smallest number of updates that a version is made of; "
        "null: more than half of the facilities",
    )
    grace: Annotated[Literal["adaptive"] | Seconds, BeforeValidator(_grace)] = Field(
        "adaptive",
        description="how long a round waits once its quorum has come; `adaptive`: as "
        "long as somebody is expected within `factor`",
    )
    factor: float = Field(
        _FACTOR,
        ge=1,
        description="adaptive: the longest that a round may last, in the time that its "
        "quorum took",
    )
    a: float = Field(0.5, ge=0, description="late updates count 1 / (1 + staleness)^a")
    max_staleness: int = Field(
        5,
        ge=0,
        strict=True,
        description="updates that are staler, in versions, are not used",
    )

    @model_validator(mode="after")
    def _factor_is_of_use(self) -> Self:
        if self.grace != "adaptive" and self.factor != _FACTOR:
            raise ValueError("'factor' has a meaning with 'grace: adaptive' only")
        return self


@dataclass(slots=True)
class _Wait:
    """How long a round waits.

    Attributes:
        opened: When the round began.
        until: When it ends at the latest; None before the quorum has come.
        armed: The timer of the grace is set.
        over: It has fired.
    """

    opened: float = 0.0
    until: float | None = None
    armed: bool = False
    over: bool = False


class SemiSync(FedAvg):
    """The semi-synchronous state machine; see the module's text."""

    Options = SemiSyncOptions
    name = "semisync"

    def __init__(self, options: SemiSyncOptions, context: StrategyContext) -> None:
        super().__init__(options, context)
        self._grace = options.grace
        self._factor = options.factor
        self._a = options.a
        self._max_staleness = options.max_staleness
        self._steps = context.steps
        paces = context.seconds_per_step
        self._estimates = {
            name: FacilityEstimates.known(paces.get(name)) for name in self.facilities
        }
        self._given: dict[str, float] = {}
        self._started: dict[str, JobStarted] = {}
        self._now = 0.0
        self._wait = _Wait()

    def handle(self, event: Event) -> list[Command]:
        """Learn from the event, then go on as every round."""
        self._now = event.at
        if isinstance(event, JobStarted | UpdateArrived):
            self._estimates[event.facility].see(event)
        if isinstance(event, JobStarted):
            self._started[event.assignment] = event
        return super().handle(event)

    def describe(self) -> Mapping[str, Any]:
        """Tell also how stale the work is that goes on."""
        live = self._round.live
        known = {name: self._base(name) for name in sorted(live)}
        stale = {
            name: self._round.number - 1 - base
            for name, base in known.items()
            if base is not None
        }
        return {**super().describe(), "staleness": stale}

    def weigh(self, version: int, updates: Sequence[UpdateArrived]) -> list[float]:
        """Return weights p_k in proportion to ``n_k / (1 + s_k)^a``."""
        ages = [version - update.base for update in updates]  # which are 1 + s_k
        pairs = zip(amounts(updates, self._weights), ages, strict=True)
        freshest = min(ages)  # a ratio: no a makes all weights zero, or one too large
        return normalised([n * (freshest / age) ** self._a for n, age in pairs])

    # Orders are carried over.

    def next_round(self, number: int) -> Round:
        """Return a round that goes on with the missing of the one before."""
        fresh = super().next_round(number)
        fresh.live, fresh.arrived = self._round.live, self._round.arrived
        live = set(fresh.live.values())
        self._started = {n: e for n, e in self._started.items() if n in live}
        self._wait = _Wait(opened=self._now)
        return fresh

    def leave(self, reason: str) -> list[Command]:
        """Let the missing go on, unless the run ends."""
        return super().leave(reason) if self._over else []

    def _open(self, number: int) -> list[Command]:
        return [*self._withdraw_stale(number), *super()._open(number)]

    def _withdraw_stale(self, number: int) -> list[Command]:
        live = self._round.live
        stale = {
            name: live.pop(name)
            for name in sorted(live)
            if self._is_too_stale(self._base(name), number)
        }
        reason = f"its update would be staler than {self._max_staleness} versions"
        return [
            Withdraw(facility=name, assignment=assignment, reason=reason)
            for name, assignment in stale.items()
        ]

    def _base(self, facility: str) -> int | None:
        """Return the version that a facility works from; None if it has not begun."""
        started = self._started.get(self._round.live[facility])
        return None if started is None else started.base

    def _is_too_stale(self, base: int | None, number: int) -> bool:
        return base is not None and number - 1 - base > self._max_staleness

    def _arrived(self, event: UpdateArrived) -> list[Command]:
        current = self._round
        wanted = current.live.get(event.facility) == event.assignment
        number = current.number + 1 if current.closed else current.number
        if not wanted or not self._is_too_stale(event.base, number):
            return super()._arrived(event)
        del current.live[event.facility]
        self.late(event)
        return [] if current.closed else [self._assign(event.facility)]

    def _assign(self, facility: str) -> Assign:
        self._given[facility] = self._now
        return super()._assign(facility)

    # The grace.

    def ripe(self) -> bool:
        """Tell whether the grace is over, or nobody is expected within it."""
        wait, now = self._wait, self._now
        if super().ripe() or wait.over:
            return True
        if wait.until is None:
            wait.until = self._end_of_grace()
        until = wait.until
        return until <= now or not any(
            self._is_expected(name, until) for name in self._round.live
        )

    def linger(self) -> list[Command]:
        """Return the timer that ends the grace, once."""
        wait = self._wait
        if wait.armed or wait.until is None:
            return []
        wait.armed = True
        return [SetTimer(timer=self._timer("grace"), after=wait.until - self._now)]

    def _end_of_grace(self) -> float:
        if self._grace == "adaptive":
            opened = self._wait.opened
            return opened + self._factor * (self._now - opened)
        return self._now + self._grace

    def _is_expected(self, facility: str, until: float) -> bool:
        """Tell whether a missing update may come in time, as far as one can know."""
        known = self._estimates[facility]
        pace, steps = known.seconds_per_step.median, self._steps.get(facility)
        if self._grace != "adaptive" or pace is None or steps is None:
            return True
        startup, transfer = known.startup.median or 0.0, known.transfer.median or 0.0
        started = self._started.get(self._round.live[facility])
        if started is None:
            waits = known.queue_wait.median or 0.0
            begins = max(self._now, self._given[facility] + waits)
        else:
            begins = started.at
        return begins + startup + pace * steps + transfer <= until

    def _fired(self, timer: str) -> list[Command]:
        if timer != self._timer("grace"):
            return super()._fired(timer)
        self._wait.over = True
        return self._settle()

    def _clear_timers(self) -> list[Command]:
        armed = [ClearTimer(timer=self._timer("grace"))] if self._wait.armed else []
        return [*armed, *super()._clear_timers()]
