"""The machine of synchronous rounds: who is asked, who is waited for, when it ends.

Round r makes version r. Every facility that is able gets one order when version
``r - 1`` is out. The round ends when nobody is left to wait for, or at its deadline as
soon as the quorum has come; then it is for the algorithm to say what the version is
made of. Facilities that fail are out for the round, lost ones until they are back.
When nobody is at work and the quorum is missed, those that failed once in this round
get one more order. If that does not help, the run fails: after `patience` if lost ones
may still come back, else at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel

from hansa.core.commands import (
    Aggregate,
    Assign,
    ClearTimer,
    Command,
    Finish,
    SetTimer,
    Withdraw,
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
from hansa.core.ids import assignment_id, update_ref
from hansa.strategy.base import StrategyContext
from hansa.strategy.options import RoundOptions, least_updates

_OF_JOBS = (JobQueued, JobStarted, JobEnded, ModelStaged)


@dataclass(slots=True)
class Round:
    """One round.

    Attributes:
        number: The version that it makes.
        live: Assignment that each facility works on.
        arrived: Updates by facility that are in no sum yet.
        attempts: Orders that each facility got.
        failures: Orders of each facility that failed; not those that it was lost with.
        overdue: The deadline is over.
        starving: Too few are left, and `patience` runs.
        closed: Its version is asked for, or the run ends.
    """

    number: int
    live: dict[str, str] = field(default_factory=dict)
    arrived: dict[str, UpdateArrived] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    overdue: bool = False
    starving: bool = False
    closed: bool = False


class Rounds(ABC):
    """Base of the synchronous algorithms; see the module's text.

    An algorithm says what a version is made of (`combine`). It may say more: what is
    asked of a facility (`order`), which update makes the whole run pointless
    (`fault`), what becomes of one that comes too late (`late`), and whether a round
    with its quorum still waits (`ripe`, `linger`).

    Args:
        options: When rounds end.
        context: The federation.

    Raises:
        SpecError: The quorum is larger than the federation.
    """

    Options: ClassVar[type[BaseModel]]
    name: ClassVar[str]

    def __init__(self, options: RoundOptions, context: StrategyContext) -> None:
        self.facilities = tuple(sorted(context.facilities))
        self._quorum = least_updates(options.quorum, context)
        self._deadline = options.deadline
        self._patience = options.patience
        self._able = dict.fromkeys(self.facilities, True)
        self._round = Round(0, closed=True)
        self._late: dict[str, int] = {}
        self._over = False

    # What an algorithm says.

    @abstractmethod
    def combine(self, version: int, updates: Sequence[UpdateArrived]) -> Aggregate:
        """Return what `version` is made of.

        Args:
            version: The number of the new version; its base is the one before.
            updates: What has arrived, at least the quorum, ordered by facility, so
                that the bytes of a version do not depend on who came first.
        """

    def order(self, facility: str, order: WorkOrder) -> WorkOrder:
        """Return the order with all that the algorithm asks of the local steps."""
        return order

    def fault(self, update: UpdateArrived) -> str:
        """Return why the run can't go on with such updates, or nothing."""
        return ""

    def late(self, update: UpdateArrived) -> None:
        """Take note of an update of an order that had been given up."""
        self._late[update.facility] = self._late.get(update.facility, 0) + 1

    def ripe(self) -> bool:
        """Tell whether the round, which has its quorum, ends without the missing."""
        return self._round.overdue

    def linger(self) -> list[Command]:
        """Return what is to be done while a round with its quorum waits for more."""
        return []

    def next_round(self, number: int) -> Round:
        """Return a new round, with what it takes over from the one before."""
        return Round(number, closed=self._over)

    def leave(self, reason: str) -> list[Command]:
        """Return what becomes of the orders that a round ends without."""
        live, self._round.live = self._round.live, {}
        return [
            Withdraw(facility=facility, assignment=assignment, reason=reason)
            for facility, assignment in sorted(live.items())
        ]

    # What the coordinator asks.

    def handle(self, event: Event) -> list[Command]:
        """See `hansa.strategy.base.Strategy.handle`."""
        if isinstance(event, _OF_JOBS):
            return []
        match event:  # the most frequent first
            case UpdateArrived():
                return self._arrived(event)
            case VersionPublished():
                return self._open(event.version + 1)
            case AssignmentFailed():
                return self._failed(event)
            case FacilityLost():
                return self._lost(event.facility)
            case FacilityReady():
                return self._regained(event.facility)
            case TimerFired():
                return self._fired(event.timer)
            case AggregateFailed():
                return [Finish(outcome="failed", reason=event.reason)]
            case BudgetReached():
                return self._budget()
            case _:
                return []

    def holds(self) -> Collection[str]:
        """See `hansa.strategy.base.Strategy.holds`."""
        return held(self._round.arrived.values())

    def describe(self) -> Mapping[str, Any]:
        """See `hansa.strategy.base.Strategy.describe`."""
        return {
            "strategy": self.name,
            "round": self._round.number,
            "waiting_for": sorted(self._round.live),
            "arrived": sorted(self._round.arrived),
            "lost": sorted(name for name, able in self._able.items() if not able),
            "late": dict(sorted(self._late.items())),
        }

    # The round.

    def _open(self, number: int) -> list[Command]:
        commands: list[Command] = self._clear_timers()
        self._round = self.next_round(number)
        if self._over:
            return commands
        if self._deadline is not None:
            commands.append(SetTimer(timer=self._timer(), after=self._deadline))
        for facility, able in self._able.items():
            if able and not self._busy(facility):
                commands.append(self._assign(facility))
        return commands + self._settle()

    def _busy(self, facility: str) -> bool:
        return facility in self._round.live or facility in self._round.arrived

    def _assign(self, facility: str) -> Assign:
        current = self._round
        attempt = current.attempts.get(facility, 0) + 1
        current.attempts[facility] = attempt
        name = assignment_id("train", current.number, facility, attempt)
        current.live[facility] = name
        order = WorkOrder(assignment=name, kind="train", round=current.number)
        return Assign(facility=facility, order=self.order(facility, order))

    def _arrived(self, event: UpdateArrived) -> list[Command]:
        if self._round.live.get(event.facility) != event.assignment:
            self.late(event)
            return []
        del self._round.live[event.facility]
        self._round.arrived[event.facility] = event
        fault = self.fault(event)
        if fault:
            return [Finish(outcome="failed", reason=fault)]
        return self._settle()

    def _failed(self, event: AssignmentFailed) -> list[Command]:
        current = self._round
        if current.live.get(event.facility) != event.assignment:
            return []
        del current.live[event.facility]
        current.failures[event.facility] += 1
        return self._settle()

    def _lost(self, facility: str) -> list[Command]:
        self._check(facility)
        self._able[facility] = False
        return self._settle() if self._round.live.pop(facility, None) else []

    def _regained(self, facility: str) -> list[Command]:
        self._check(facility)
        was_able, self._able[facility] = self._able[facility], True
        current = self._round
        if was_able or self._busy(facility) or current.closed or self._over:
            return []
        commands: list[Command] = []
        if current.starving:
            current.starving = False
            commands.append(ClearTimer(timer=self._timer("patience")))
        return [*commands, self._assign(facility)]

    def _check(self, facility: str) -> None:
        if facility not in self._able:
            raise StrategyError(f"{facility} is no facility of this run.")

    def _fired(self, timer: str) -> list[Command]:
        if self._round.closed:
            return []
        if timer == self._timer("patience"):
            return [Finish(outcome="failed", reason=self._shortage())]
        if timer != self._timer() or self._deadline is None:
            return []
        self._round.overdue = True
        again = SetTimer(timer=timer, after=self._deadline)
        return self._settle() or [again]

    def _budget(self) -> list[Command]:
        self._over = True
        current = self._round
        if not current.closed and self._has_quorum():
            return self._close()
        timers = [] if current.closed else self._clear_timers()
        current.closed = True
        current.arrived = {}
        return [*timers, *self.leave("the run's budget is spent")]

    def _has_quorum(self) -> bool:
        return len(self._round.arrived) >= self._quorum

    def _settle(self) -> list[Command]:
        """Close the round if it is complete, or see what can still come."""
        current = self._round
        if current.closed:
            return []
        if self._has_quorum():
            ends = not current.live or self.ripe()
            return self._close() if ends else self.linger()
        if current.live or current.starving:
            return []
        again = self._once_more()
        if again:
            return again
        if all(self._able.values()):
            return [Finish(outcome="failed", reason=self._shortage())]
        current.starving = True
        return [SetTimer(timer=self._timer("patience"), after=self._patience)]

    def _once_more(self) -> list[Command]:
        """Ask those again that failed once in this round, and are there."""
        return [
            self._assign(facility)
            for facility, able in self._able.items()
            if able and self._round.failures[facility] == 1 and not self._busy(facility)
        ]

    def _close(self) -> list[Command]:
        current = self._round
        current.closed = True
        arrived, current.arrived = current.arrived, {}
        updates = [arrived[name] for name in sorted(arrived)]
        return [
            *self._clear_timers(),
            *self.leave("the round ended without it"),
            self.combine(current.number, updates),
        ]

    # Timers and words.

    def _clear_timers(self) -> list[Command]:
        commands: list[Command] = []
        if self._deadline is not None and self._round.number:
            commands.append(ClearTimer(timer=self._timer()))
        if self._round.starving:
            commands.append(ClearTimer(timer=self._timer("patience")))
        return commands

    def _timer(self, what: str = "deadline") -> str:
        return f"{what}-{self._round.number:04d}"

    def _shortage(self) -> str:
        return (
            f"Round {self._round.number} has {len(self._round.arrived)} of the "
            f"{self._quorum} updates that it needs, and no facility is left that "
            "could bring more."
        )


def held(updates: Collection[UpdateArrived]) -> set[str]:
    """Return the references of updates.

    The versions that they were trained from are not among them: rounds add differences
    to the newest version, and no other is in their sums.
    """
    return {update_ref(update.assignment) for update in updates}
