"""The pure core of a run: bookkeeping, evaluation and ending around a strategy.

`Coordinator.handle(event)` is the only way in. It has no clock and does no I/O; what
it returns must be carried out by a runtime, whose results come back as events.
The core remembers what is still to be done (`pending`), so after a crash a journal
replayed through a fresh core tells exactly which commands to issue again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hansa.coordinator.books import BatchJob, Books
from hansa.coordinator.budgets import WALL_CLOCK, spent_budget
from hansa.coordinator.digest import Digest
from hansa.coordinator.keeping import (
    held_references,
    needed_versions,
    spent_assignments,
)
from hansa.coordinator.plan import Plan, Progress
from hansa.core.commands import (
    Aggregate,
    Assign,
    Begin,
    ClearTimer,
    Command,
    Evaluate,
    Finish,
    SetTimer,
    Withdraw,
    WorkOrder,
)
from hansa.core.events import (
    AggregateFailed,
    AssignmentFailed,
    BudgetReached,
    EvaluationReported,
    Event,
    FacilityLost,
    FacilityReady,
    JobEnded,
    JobQueued,
    JobRequeued,
    JobStarted,
    JobWaiting,
    ModelStaged,
    OperatorAsked,
    RunFinished,
    RunStarted,
    TimerFired,
    TransferEnded,
    TransferSubmitted,
    UpdateArrived,
    VersionPublished,
)
from hansa.core.ids import assignment_id
from hansa.strategy.base import Strategy

_COSTLESS = frozenset({ModelStaged, JobQueued, JobStarted})  # the most frequent ones
_MEASURED_AFTER = frozenset({VersionPublished, AssignmentFailed, FacilityLost})
"""Events after which a version may have to be evaluated, here or elsewhere."""


@dataclass(slots=True)
class _State:
    """Everything the core remembers beside the strategy's own state."""

    at: float = 0.0
    began: float | None = None
    newest: int = -1
    sha256: str = ""
    stopping: str = ""
    finish: Finish | None = None
    outcome: str = ""
    reason: str = ""
    lost: dict[str, str] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    applied: dict[str, int] = field(default_factory=dict)
    timers: dict[str, float] = field(default_factory=dict)
    aggregates: dict[int, Aggregate] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)


class Coordinator:
    """Events in, commands out; see the module's text.

    Args:
        plan: The federation, reduced to what decides.
        strategy: A fresh strategy; the core owns it from now on.
    """

    def __init__(self, plan: Plan, strategy: Strategy) -> None:
        self.plan = plan
        self.strategy = strategy
        self._digest = Digest()
        self._state = _State()
        self._books = Books()
        self._notes = self._make_notes()

    # What others may ask.

    @property
    def digest(self) -> str:
        """A rolling hash of all commands so far; empty before the first."""
        return self._digest.text

    @property
    def newest(self) -> int:
        """Number of the newest published version; -1 before the first."""
        return self._state.newest

    @property
    def outcome(self) -> str:
        """How the run ended: `done`, `partial`, `failed`; empty while it goes on."""
        return self._state.outcome

    @property
    def reason(self) -> str:
        """Why the run ended, as a sentence."""
        return self._state.reason

    @property
    def at(self) -> float:
        """Time of the last event, in seconds since the run began."""
        return self._state.at

    def progress(self, assignment: str) -> Progress | None:
        """Return how far an assignment has come; None if it was never given."""
        return self._books.work.get(assignment)

    @property
    def began(self) -> float | None:
        """Unix time of the run's start, by the server; None before it."""
        return self._state.began

    @property
    def lost(self) -> tuple[str, ...]:
        """Facilities that are lost at present."""
        return tuple(self._state.lost)

    def settled(self, facility: str) -> list[str]:
        """Return what has files there that nobody will ask for again."""
        return self._books.settled(facility)

    def staged(self, facility: str) -> set[int]:
        """Return the versions that were sent to the facility."""
        return self._books.staged.get(facility, set())

    def followed(self, facility: str) -> list[BatchJob]:
        """Return the facility's batch jobs that go on without an open order."""
        return self._books.followed(facility)

    def last_ahead(self, facility: str) -> int:
        """Return the number of the facility's last job that was queued ahead."""
        return self._books.last_ahead(facility)

    def calls_ahead(self, facility: str) -> bool:
        """Tell whether it is time to queue the facility's next job ahead."""
        return self._books.calls_ahead(facility)

    @property
    def more_to_come(self) -> bool:
        """Whether another round of training may follow the one at hand."""
        state, rounds = self._state, self.plan.stop.rounds
        if state.stopping or state.finish or state.outcome:
            return False
        return rounds is None or state.newest + 1 < rounds

    def held(self) -> set[str]:
        """Return the references (versions, updates, states) that must stay."""
        sums = self._state.aggregates.values()
        return held_references(self.strategy.holds(), sums, self._open_work())

    def needed_versions(self) -> set[int]:
        """Return the versions that the strategy, sums or open work may still name."""
        return needed_versions(self.newest, self.held(), self._open_work())

    def spent(self, among: Iterable[str] | None = None) -> set[str]:
        """Return the assignments whose updates nobody will ask for any more.

        Args:
            among: Look at these alone; None: at all that there ever were.
        """
        work = self._books.work
        looked_at = work.values() if among is None else [work[name] for name in among]
        return spent_assignments(self.newest, self.held(), looked_at)

    def pending(self) -> list[Command]:
        """Return the commands whose effects have not been seen, in a fixed order."""
        state = self._state
        if state.outcome:
            return []
        if state.finish:
            return [*self._unfinished_withdrawals(), state.finish]
        commands: list[Command] = list(state.aggregates.values())
        for work in self._open_work():
            kind = Assign if work.order.kind == "train" else Evaluate
            commands.append(kind(facility=work.facility, order=work.order))
        commands += self._books.begun()
        for timer, due in state.timers.items():
            commands.append(SetTimer(timer=timer, after=max(0.0, due - state.at)))
        return commands + self._unfinished_withdrawals()

    def _unfinished_withdrawals(self) -> list[Command]:
        return [
            Withdraw(
                facility=work.facility,
                assignment=work.order.assignment,
                reason="it was withdrawn before the coordinator stopped",
            )
            for work in self._books.work.values()
            if work.closed in {"withdrawn", "lost"} and not work.ended
        ]

    def snapshot(self) -> Mapping[str, Any]:
        """Return the whole state as JSON data; equal states give equal snapshots."""
        state = self._state
        return {
            "at": state.at,
            "version": state.newest,
            "model_sha256": state.sha256,
            "outcome": state.outcome,
            "reason": state.reason,
            "node_hours": self._books.node_hours,
            "lost": dict(sorted(state.lost.items())),
            "failing": dict(sorted(state.failing.items())),
            "applied": dict(sorted(state.applied.items())),
            "open": sorted(work.order.assignment for work in self._open_work()),
            "live": sorted(job.key for job in self._books.live()),
            "losses": {str(v): loss for v, loss in sorted(state.losses.items())},
            "strategy": dict(self.strategy.describe()),
            "digest": self.digest,
        }

    # The one way in.

    def handle(self, event: Event) -> list[Command]:
        """Take an event in and return what is to be done because of it.

        Raises:
            StrategyError: The strategy can't have this event in its state.
        """
        state, kind = self._state, type(event)
        state.at = event.at if event.at > state.at else state.at
        note = self._notes.get(kind)
        if note is not None and note(event) is False:
            return []
        if state.finish or state.outcome:
            return []
        if kind in _COSTLESS:
            commands = [*self.strategy.handle(event)]
        else:
            commands = self._decide(event)
        if commands:
            self._register(commands)
        if kind in _MEASURED_AFTER:
            commands += self._register(self._evaluations(event))
        if self._books.holding:
            commands += self._register([*self._books.beginnings()])
        if state.stopping or state.finish:
            commands += self._register(self._ending())
        if commands:
            self._digest.extend(commands)
        return commands

    def _decide(self, event: Event) -> list[Command]:
        """Return what the strategy asks for, told of the event and of spent budgets."""
        match event:
            case VersionPublished():  # a last one must not open another round
                return [*self._stop_if_spent(event), *self.strategy.handle(event)]
            case EvaluationReported():
                return self._stop_if_spent(event)
            case UpdateArrived() | AssignmentFailed() if self._evaluates(event):
                return self._stop_if_spent(event)
            case RunStarted():
                return [*self._opening(), *self.strategy.handle(event)]
            case _:  # a last update must still count
                return [*self.strategy.handle(event), *self._stop_if_spent(event)]

    def transfers(self, facility: str) -> list[TransferSubmitted]:
        """Return what a service may still be moving from or to a facility."""
        open_ = self._books.transfers.values()
        return [event for event in open_ if event.facility == facility]

    # Bookkeeping.

    def _open_work(self) -> list[Progress]:
        return self._books.open()

    def _make_notes(self) -> dict[type[Event], Callable[[Any], bool | None]]:
        """Return what takes note of each kind of event.

        It returns False if the event is a duplicate or of no consequence any more.
        """
        books = self._books
        return {
            JobQueued: books.queued,
            JobWaiting: books.waiting,
            JobRequeued: books.requeued,
            JobStarted: books.started,
            JobEnded: books.ended,
            ModelStaged: books.sent,
            TransferSubmitted: books.submitted,
            TransferEnded: books.transferred,
            OperatorAsked: books.asked,
            UpdateArrived: self._absorb_result,
            AssignmentFailed: self._absorb_result,
            EvaluationReported: self._absorb_result,
            VersionPublished: self._absorb_version,
            AggregateFailed: self._absorb_no_version,
            TimerFired: self._absorb_timer,
            FacilityLost: self._absorb_loss,
            FacilityReady: self._absorb_return,
            RunStarted: self._absorb_start,
            RunFinished: self._absorb_end,
        }

    def _absorb_start(self, event: RunStarted) -> None:
        self._state.began = event.started

    def _absorb_end(self, event: RunFinished) -> bool:
        self._state.outcome, self._state.reason = event.outcome, event.reason
        return False

    def _absorb_timer(self, event: TimerFired) -> bool:
        return self._state.timers.pop(event.timer, None) is not None

    def _absorb_no_version(self, event: AggregateFailed) -> bool:
        return self._state.aggregates.pop(event.version, None) is not None

    def _absorb_return(self, event: FacilityReady) -> bool:
        return self._state.lost.pop(event.facility, None) is not None

    def _absorb_version(self, event: VersionPublished) -> bool:
        state = self._state
        if event.version <= state.newest:
            return False
        state.newest, state.sha256 = event.version, event.sha256
        state.aggregates.pop(event.version, None)
        for term in event.terms:
            work = self._books.work.get(term.ref.removeprefix("update/"))
            if work is not None and not work.applied:
                work.applied = True
                state.applied[work.facility] = state.applied.get(work.facility, 0) + 1
        return True

    def _absorb_loss(self, event: FacilityLost) -> bool:
        if event.facility in self._state.lost:
            return False
        self._state.lost[event.facility] = event.reason
        self._state.failing[event.facility] = event.reason  # until it delivers again
        for work in self._open_work():
            if work.facility == event.facility:
                self._give_up(work, "lost")
        return True

    def _give_up(self, work: Progress, how: str) -> None:
        self._books.close(work, how)
        work.given_up = self._state.newest

    def _absorb_result(
        self, event: UpdateArrived | AssignmentFailed | EvaluationReported
    ) -> bool:
        state = self._state
        work = self._books.work.get(event.assignment)
        if work is None or work.closed in {"done", "failed"}:
            return False
        late = bool(work.closed)
        failed = isinstance(event, AssignmentFailed)
        self._books.close(work, "failed" if failed else "done")
        if isinstance(event, EvaluationReported):
            state.losses[event.version] = event.loss
        elif work.order.kind == "train" and not late:
            state.failing.pop(event.facility, None)
            if isinstance(event, UpdateArrived):
                self._books.count(work, event.samples)
            else:
                state.failing[event.facility] = event.reason
        return not (failed and late)

    def _evaluates(self, event: UpdateArrived | AssignmentFailed) -> bool:
        work = self._books.work.get(event.assignment)
        return work is not None and work.order.kind == "evaluate"

    def _register(self, commands: list[Command]) -> list[Command]:
        """Note what will have to be seen done, and return the commands."""
        state = self._state
        for command in commands:
            match command:
                case Assign() | Evaluate():
                    self._books.add(command)
                case Aggregate():
                    state.aggregates[command.version] = command
                case Begin():
                    self._books.begin(command)
                case Withdraw():
                    work = self._books.work.get(command.assignment)
                    if work is not None and not work.closed:
                        self._give_up(work, "withdrawn")
                case SetTimer():
                    state.timers[command.timer] = state.at + command.after
                case ClearTimer():
                    state.timers.pop(command.timer, None)
                case Finish():
                    state.finish = command
        return commands

    # Evaluation, ending.

    def _opening(self) -> list[Command]:
        limit = self.plan.stop.wall_clock
        return [] if limit is None else [SetTimer(timer=WALL_CLOCK, after=limit)]

    def _stop_if_spent(self, event: Event) -> list[Command]:
        if self._state.stopping:
            return []
        found = spent_budget(self.plan.stop, self._books, event)
        if found is None:
            return []
        name, self._state.stopping = found
        commands = self.strategy.handle(
            BudgetReached(at=event.at, budget=name, detail=self._state.stopping)
        )
        if name == "target":  # the model that met it is the one to end with
            return [one for one in commands if not isinstance(one, Aggregate)]
        return commands

    def _evaluations(self, event: Event) -> list[Command]:
        match event:
            case VersionPublished(version=version):
                if version % self.plan.evaluate_every == 0:
                    return self._evaluate(version)
            case AssignmentFailed():
                work = self._books.work.get(event.assignment)
                if work is not None and work.order.kind == "evaluate":
                    return self._evaluate_elsewhere(work)
            case FacilityLost():
                return [
                    command
                    for work in list(self._books.work.values())
                    if work.facility == event.facility and self._cut_off(work)
                    for command in self._evaluate_elsewhere(work)
                ]
            case _:
                pass
        return []

    def _cut_off(self, work: Progress) -> bool:
        return work.order.kind == "evaluate" and work.closed == "lost"

    def _evaluate(self, version: int) -> list[Command]:
        """Ask the first able facility that has not tried yet; nobody if all have."""
        tried = [work.facility for work in self._books.evaluations_of(version)]
        out = {*tried, *self._state.lost}
        facility = next((n for n in self.plan.evaluators if n not in out), None)
        if facility is None:
            return []
        name = assignment_id("evaluate", version, facility, len(tried) + 1)
        order = WorkOrder(
            assignment=name, kind="evaluate", round=version, version=version
        )
        return [Evaluate(facility=facility, order=order)]

    def _evaluate_elsewhere(self, work: Progress) -> list[Command]:
        version = work.order.version
        if version is None or version in self._state.losses:
            return []
        return self._evaluate(version)

    def _ending(self) -> list[Command]:
        """Wind the run down: a budget is reached, or the strategy gives up."""
        state = self._state
        commands: list[Command] = [
            Withdraw(
                facility=work.facility,
                assignment=work.order.assignment,
                reason="the run ends",
            )
            for work in self._open_work()
            if work.order.kind == "train" or state.finish
        ]
        if state.finish or state.aggregates:
            return commands
        if not self._books.evaluations_of(state.newest):
            commands += self._register(self._evaluate(state.newest))
        if not self._evaluating():
            outcome = "partial" if state.lost or state.failing else "done"
            commands.append(Finish(outcome=outcome, reason=state.stopping))
        return commands

    def _evaluating(self) -> bool:
        return any(work.order.kind == "evaluate" for work in self._open_work())


def at_time(event: Event, at: float) -> Event:
    """Return the event stamped with a time in seconds since the run began."""
    return replace(event, at=at)
