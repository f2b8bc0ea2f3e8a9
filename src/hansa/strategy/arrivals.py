"""The common machine of asynchronous work: nobody waits for the slowest.

Every facility has at most one open order. Its updates form batches, as the strategy
says; batches become versions one after the other, so the terms of an `Aggregate`
always name the newest version. A facility gets its next order when its update is in a
published version, or at once if the strategy frees it.

What goes wrong is dealt with here: a failed order is given again after a back-off that
doubles; a lost facility is forgotten until it is back; updates that are late, doubled
or too stale are counted and dropped. Nobody waits for a facility that is gone: when no
one has been at work for `patience`, the run fails. Nor does it go on when all fail: it
ends when every facility that is there has failed so many times in a row that the
back-offs between come to `patience`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from hansa.core.commands import (
    Aggregate,
    Assign,
    ClearTimer,
    Command,
    Finish,
    SetTimer,
    WorkOrder,
)
from hansa.core.errors import StrategyError
from hansa.core.events import (
    AggregateFailed,
    AssignmentFailed,
    BudgetReached,
    Event,
    FacilityLost,
    FacilityReady,
    JobEnded,
    JobQueued,
    JobStarted,
    ModelStaged,
    TimerFired,
    UpdateArrived,
    VersionPublished,
)
from hansa.core.ids import assignment_id, update_ref, version_ref
from hansa.core.units import Seconds
from hansa.strategy.base import StrategyContext
from hansa.strategy.estimates import FacilityEstimates
from hansa.strategy.options import StrategyOptions

_OF_JOBS = (JobQueued, JobStarted, JobEnded, ModelStaged)

PATIENCE = "patience"
AGAIN = "again-"

Note = TypeVar("Note")


class ArrivalOptions(StrategyOptions):
    """Keys of all asynchronous strategies."""

    max_staleness: int | None = Field(
        None,
        ge=0,
        strict=True,
        description="drop updates whose base is more than this many versions old; "
        "without it none is too old",
    )
    retry: Seconds = Field(
        60.0,
        gt=0,
        description="wait before a facility whose work failed gets a new order; "
        "doubles with each failure in a row",
    )
    retry_longest: Seconds = Field(3600.0, gt=0, description="longest such wait")
    patience: Seconds = Field(
        3600.0,
        description="how long nobody may be at work before the run fails; and how long "
        "the waits between failures in a row may be in all, when all fail",
    )

    @model_validator(mode="after")
    def _waits_grow(self) -> Self:
        if self.retry_longest < self.retry:
            raise ValueError(
                f"'retry_longest' ({self.retry_longest:g} s) is shorter than 'retry' "
                f"({self.retry:g} s)"
            )
        return self

    def back_off(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return min(self.retry * 2.0 ** min(failures - 1, 30), self.retry_longest)

    def most_failures(self) -> int:
        """Return the failures in a row with waits between that come to `patience`."""
        failures, left = 1, self.patience
        while left > 0 and self.back_off(failures) < self.back_off(failures + 1):
            left -= self.back_off(failures)
            failures += 1
        return failures + max(0, ceil(left / self.back_off(failures)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What an order says beside its name; see `WorkOrder`."""

    steps: int | None = None
    lr_scale: float = 1.0
    proximal: float = 0.0
    control: str = ""


_NOTHING_SPECIAL = Work()


@dataclass(slots=True)
class Place:
    """What the machine knows of one facility.

    Attributes:
        able: Not lost.
        resting: Its last order failed, and the back-off is not over.
        waiting: The assignment whose update must be in a version before it goes on.
        open: Its open order; None: it has nothing to do.
        given: The newest version when that order was given.
        waited: Seconds that the order's jobs waited in the queue.
        began: When a job of the order was last seen to start; None: not yet.
        number: Number of the order, from 1; one that brought nothing is given again.
        attempt: Attempts at it so far.
        first: Steps that the facility's delivered updates are made of.
        failures: Failures in a row.
        late: Updates that were not asked for, or no more.
        stale: Updates that were too stale.
        estimates: Of its queue, speed and transfers.
    """

    able: bool = True
    resting: bool = False
    waiting: str = ""
    open: WorkOrder | None = None
    given: int = 0
    waited: float = 0.0
    began: float | None = None
    number: int = 1
    attempt: int = 0
    first: int = 0
    failures: int = 0
    late: int = 0
    stale: int = 0
    estimates: FacilityEstimates = field(default_factory=FacilityEstimates)

    @property
    def is_idle(self) -> bool:
        """Whether it should get an order."""
        return self.able and not (self.resting or self.waiting or self.open)


class Arrivals(ABC):
    """The machine; a strategy says what becomes of an update.

    A subclass defines `take` and `aggregate`, and what else it needs of `plan`,
    `ranked`, `begin`, `gone`, `fired`, `rest`, `last`, `drop_rest` and `counted`.

    Args:
        options: The strategy's options.
        context: The federation.
        names_bases: Whether terms name the versions that updates were trained from.
    """

    Options: ClassVar[type[BaseModel]]
    name: ClassVar[str]

    def __init__(
        self, options: ArrivalOptions, context: StrategyContext, *, names_bases: bool
    ) -> None:
        self.common = options
        self.context = context
        paces = context.seconds_per_step
        self.places = {
            name: Place(estimates=FacilityEstimates.known(paces.get(name)))
            for name in sorted(context.facilities)
        }
        self.newest = -1
        self._names_bases = names_bases
        self._ready: list[list[UpdateArrived]] = []
        self._making: tuple[UpdateArrived, ...] = ()
        self._timers: set[str] = set()
        self._out: list[Command] = []
        self._over = False

    # What a strategy says.

    @abstractmethod
    def take(self, update: UpdateArrived) -> None:
        """Take an update that was asked for: `release` it, or keep it for later."""

    @abstractmethod
    def aggregate(self, updates: Sequence[UpdateArrived]) -> Aggregate:
        """Return how the next version is made of a batch and the newest version."""

    def plan(self, facility: str, at: float) -> Work:
        """Return what the next order of a facility asks for."""
        return _NOTHING_SPECIAL

    def ranked(self, facilities: list[str]) -> list[str]:
        """Return idle facilities in the order in which they get their orders."""
        return facilities

    def begin(self, at: float) -> None:
        """Note that a version was published, or that nothing came of a batch."""
        return

    def gone(self, facility: str, at: float) -> None:
        """Note that a facility's open order will bring nothing."""
        return

    def fired(self, timer: str, at: float) -> None:
        """Note that a timer of the strategy's own ran out."""
        return

    def rest(self) -> Collection[UpdateArrived]:
        """Return the updates that are kept and not released yet."""
        return ()

    def last(self) -> Collection[UpdateArrived]:
        """Return those that a last version is made of when the budget is spent."""
        return self.rest()

    def drop_rest(self) -> None:
        """Forget them; the run's budget is spent."""
        return

    def counted(self) -> Mapping[str, Any]:
        """Return what `describe` shows beside the machine's own state."""
        return {}

    # What a strategy asks of the machine.

    @property
    def upcoming(self) -> int:
        """The version that will be newest when all released batches are in one."""
        return self.newest + bool(self._making) + len(self._ready)

    def release(self, updates: Iterable[UpdateArrived]) -> None:
        """Make a version of these updates as soon as the ones before are made."""
        batch = sorted(updates, key=lambda u: (u.facility, u.assignment))
        if batch:
            self._ready.append(batch)

    def free(self, facility: str) -> None:
        """Let a facility go on although its update is in no version yet."""
        self.places[facility].waiting = ""

    def still_held(self, notes: Mapping[str, Note]) -> dict[str, Note]:
        """Return those notes on updates, by assignment, that may still be used."""
        held = self.holds() if notes else ()
        return {name: note for name, note in notes.items() if update_ref(name) in held}

    def staleness(self, update: UpdateArrived) -> int:
        """Return how many versions were published since the update's base."""
        return max(0, self.newest - update.base)

    def set_timer(self, timer: str, after: float) -> None:
        """Ask for `fired(timer)` after some seconds."""
        self._timers.add(timer)
        self._out.append(SetTimer(timer=timer, after=after))

    def clear_timer(self, timer: str) -> None:
        """Forget a timer; harmless when there is none."""
        if timer in self._timers:
            self._timers.discard(timer)
            self._out.append(ClearTimer(timer=timer))

    # The strategy protocol.

    def handle(self, event: Event) -> list[Command]:
        """See `hansa.strategy.base.Strategy.handle`."""
        if isinstance(event, _OF_JOBS):  # most are, and leave nothing to decide
            if isinstance(event, JobStarted):
                self._started(event)
            return []
        self._out = []
        self._absorb(event)
        if self.newest >= 0 and not self._over:
            self._make_next(event.at)
            for facility in self.ranked(
                [n for n, p in self.places.items() if p.is_idle]
            ):
                self._assign(facility, event.at)
            self._mind_patience()
        return self._out

    def holds(self) -> Collection[str]:
        """See `hansa.strategy.base.Strategy.holds`."""
        kept = [*self.rest(), *(update for batch in self._ready for update in batch)]
        held = {update_ref(update.assignment) for update in kept}
        if self._names_bases:
            held |= {version_ref(update.base) for update in kept}
        return held

    def describe(self) -> Mapping[str, Any]:
        """See `hansa.strategy.base.Strategy.describe`."""
        kept = [*(u for batch in self._ready for u in batch), *self.rest()]
        places = self.places.items()
        return {
            "strategy": self.name,
            "version": self.newest,
            "waiting_for": [name for name, place in places if place.open],
            "arrived": sorted(update.assignment for update in kept),
            "lost": [name for name, place in places if not place.able],
            "resting": [name for name, place in places if place.resting],
            "late": {name: place.late for name, place in places if place.late},
            "stale": {name: place.stale for name, place in places if place.stale},
            **self.counted(),
        }

    # Events.

    def _absorb(self, event: Event) -> None:
        match event:  # the most frequent first
            case UpdateArrived():
                self._arrived(event)
            case VersionPublished():
                self._published(event)
            case AssignmentFailed():
                self._failed(event)
            case FacilityLost():
                self._lost(event)
            case FacilityReady():
                self._regained(event.facility)
            case TimerFired() if event.timer in self._timers:
                self._timers.discard(event.timer)
                self._ran_out(event)
            case AggregateFailed():
                self._finish(event.reason)
            case BudgetReached():
                self._wind_up(event)
            case _:
                pass

    def _published(self, event: VersionPublished) -> None:
        self.newest = event.version
        made, self._making = self._making, ()
        for update in made:
            self._settle(update)
        if not self._over:
            self.begin(event.at)

    def _arrived(self, event: UpdateArrived) -> None:
        place = self._place(event.facility)
        if place.open is None or place.open.assignment != event.assignment:
            place.late += 1
            return
        place.estimates.see(event)
        place.open = None
        place.failures = place.attempt = 0
        place.number += 1
        place.first += event.steps
        if self._is_too_stale(event):
            place.stale += 1
            self.gone(event.facility, event.at)
        else:
            place.waiting = event.assignment
            self.take(event)

    def _started(self, event: JobStarted) -> None:
        place = self.places.get(event.facility)
        if place and place.open and place.open.assignment == event.assignment:
            place.waited += event.queue_wait
            place.began = event.at
            place.estimates.see(event)

    def _failed(self, event: AssignmentFailed) -> None:
        place = self._place(event.facility)
        if place.open is None or place.open.assignment != event.assignment:
            return
        place.open, place.resting = None, True
        place.failures += 1
        self.set_timer(AGAIN + event.facility, self.common.back_off(place.failures))
        self.gone(event.facility, event.at)
        self._mind_failures()

    def _lost(self, event: FacilityLost) -> None:
        place = self._place(event.facility)
        place.able = False
        if place.open is not None:
            place.open = None
            self.gone(event.facility, event.at)

    def _regained(self, facility: str) -> None:
        place = self._place(facility)
        place.able, place.resting = True, False
        self.clear_timer(AGAIN + facility)

    def _ran_out(self, event: TimerFired) -> None:
        if event.timer == PATIENCE:
            self._finish(
                f"No facility has been at work for {self.common.patience:.0f} s: "
                "all are lost, or fail."
            )
        elif event.timer.startswith(AGAIN):
            self._place(event.timer.removeprefix(AGAIN)).resting = False
        else:
            self.fired(event.timer, event.at)

    def _wind_up(self, event: BudgetReached) -> None:
        """Give no more work; one last version takes in what has arrived.

        If one is being made, that is the last: another could be one more than the plan
        asks for, which a strategy does not know.
        """
        for timer in sorted(self._timers):
            self.clear_timer(timer)
        for place in self.places.values():
            place.open = None  # the core withdraws them
        self.release(self.last())
        self._over = True
        self._make_next(event.at)
        self._ready.clear()
        self.drop_rest()

    # Versions, orders, patience.

    def _make_next(self, at: float) -> None:
        while self._ready and not self._making:
            batch = self._ready.pop(0)
            fresh = []
            for update in batch:
                if self._is_too_stale(update):
                    self.places[update.facility].stale += 1
                    self._settle(update)
                else:
                    fresh.append(update)
            if fresh:
                self._making = tuple(fresh)
                self._out.append(self.aggregate(fresh))
            elif not self._over:
                self.begin(at)

    def _settle(self, update: UpdateArrived) -> None:
        """Let a facility go on if this is the update that it waits for."""
        if self.places[update.facility].waiting == update.assignment:
            self.free(update.facility)

    def _is_too_stale(self, update: UpdateArrived) -> bool:
        bound = self.common.max_staleness
        return bound is not None and self.staleness(update) > bound

    def _assign(self, facility: str, at: float) -> None:
        place, work = self.places[facility], self.plan(facility, at)
        place.attempt += 1
        place.given, place.waited, place.began = self.newest, 0.0, None
        place.open = WorkOrder(
            assignment=assignment_id("train", place.number, facility, place.attempt),
            kind="train",
            round=place.number,
            steps=work.steps,
            first=None if work.steps is None else place.first,
            lr_scale=work.lr_scale,
            proximal=work.proximal,
            control=work.control,
        )
        self._out.append(Assign(facility=facility, order=place.open))

    def _mind_patience(self) -> None:
        """Let `patience` run while nobody is at work; it begins anew each time."""
        if self._making or any(place.open for place in self.places.values()):
            self.clear_timer(PATIENCE)
        elif PATIENCE not in self._timers:
            self.set_timer(PATIENCE, self.common.patience)

    def _mind_failures(self) -> None:
        most = self.common.most_failures()
        able = [place for place in self.places.values() if place.able]
        if able and all(place.failures >= most for place in able):
            self._finish(
                "Every facility that is not lost has failed at least "
                f"{most} times in a row."
            )

    def _finish(self, reason: str) -> None:
        self._over = True
        self._out.append(Finish(outcome="failed", reason=reason))

    def _place(self, facility: str) -> Place:
        if facility not in self.places:
            raise StrategyError(f"{facility} is no facility of this run.")
        return self.places[facility]
