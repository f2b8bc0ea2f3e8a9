"""Any order of events, any loss, any duplicate: what must hold for every strategy run.

A state machine plays the facilities' side against the pure core and checks the core's
promises after each step.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hansa.coordinator.core import Coordinator
from hansa.coordinator.plan import Plan, Stop
from hansa.coordinator.replay import replay
from hansa.core.commands import (
    Aggregate,
    Assign,
    ClearTimer,
    Command,
    Evaluate,
    Finish,
    SetTimer,
    Withdraw,
)
from hansa.core.events import (
    AssignmentFailed,
    EvaluationReported,
    Event,
    FacilityLost,
    FacilityReady,
    RunFinished,
    RunResumed,
    RunStarted,
    TimerFired,
    UpdateArrived,
    VersionPublished,
)
from hansa.journal.line import Record
from hansa.strategy.base import StrategyContext
from hansa.strategy.fedavg import FedAvg, FedAvgOptions

NAMES = ("a", "b", "c")


def fresh(options: FedAvgOptions) -> Coordinator:
    plan = Plan(facilities=NAMES, stop=Stop(rounds=3), evaluators=NAMES)
    return Coordinator(plan, FedAvg(options, StrategyContext(facilities=NAMES)))


class Federation(RuleBasedStateMachine):
    """Facilities that deliver, fail, vanish, come back and repeat themselves."""

    @initialize(quorum=st.integers(1, 3), deadline=st.sampled_from([None, 60.0]))
    def begin(self, quorum: int, deadline: float | None) -> None:
        self.options = FedAvgOptions(quorum=quorum, deadline=deadline)
        self.core = fresh(self.options)
        self.records: list[Record] = []
        self.orders: dict[str, str] = {}
        self.evaluations: dict[str, Evaluate] = {}
        self.timers: set[str] = set()
        self.sums: list[Aggregate] = []
        self.lost: set[str] = set()
        self.used: list[str] = []
        self.last_update: UpdateArrived | None = None
        self.finish: Finish | None = None
        self.tell(
            RunStarted(at=0.0, run="r", plan="", seed=0, facilities=NAMES, started=0.0)
        )
        self.publish(0, None)

    def tell(self, event: Event) -> None:
        self.records.append(Record(len(self.records) + 1, self.core.digest, event))
        for command in self.core.handle(event):
            self.note(command)

    def note(self, command: Command) -> None:
        match command:
            case Assign(facility=facility, order=order):
                assert facility not in self.lost, "work for a facility that is gone"
                assert order.assignment not in self.orders, "an order was given twice"
                self.orders[order.assignment] = facility
            case Evaluate(order=order):
                self.evaluations[order.assignment] = command
            case Withdraw(assignment=name):
                self.orders.pop(name, None)
                self.evaluations.pop(name, None)
            case Aggregate():
                self.sums.append(command)
            case SetTimer(timer=timer):
                self.timers.add(timer)
            case ClearTimer(timer=timer):
                self.timers.discard(timer)
            case Finish():
                assert self.finish is None, "the run ended twice"
                self.finish = command

    def publish(self, version: int, made: Aggregate | None) -> None:
        self.tell(
            VersionPublished(
                at=0.0,
                version=version,
                sha256=str(version),
                bytes=1,
                seconds=0.0,
                terms=made.terms if made else (),
            )
        )

    @property
    def going_on(self) -> bool:
        return self.finish is None

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), samples=st.integers(1, 1000))
    def deliver(self, data: st.DataObject, samples: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.orders)))
        self.last_update = UpdateArrived(
            at=0.0,
            facility=self.orders.pop(name),
            assignment=name,
            base=0,
            steps=1,
            samples=samples,
            partial=False,
            bytes=1,
        )
        self.tell(self.last_update)

    @precondition(lambda self: self.last_update)
    @rule()
    def deliver_again(self) -> None:
        assert self.last_update is not None
        self.tell(self.last_update)

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.orders)))
        facility = self.orders.pop(name)
        self.tell(
            AssignmentFailed(
                at=0.0,
                facility=facility,
                assignment=name,
                code="X",
                reason="",
                transient=False,
            )
        )

    @rule(facility=st.sampled_from(NAMES))
    def lose(self, facility: str) -> None:
        self.lost.add(facility)
        self.orders = {n: f for n, f in self.orders.items() if f != facility}
        gone = [n for n, e in self.evaluations.items() if e.facility == facility]
        for name in gone:
            del self.evaluations[name]
        self.tell(FacilityLost(at=0.0, facility=facility, code="X", reason=""))

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def regain(self, data: st.DataObject) -> None:
        facility = data.draw(st.sampled_from(sorted(self.lost)))
        self.lost.discard(facility)
        self.tell(FacilityReady(at=0.0, facility=facility))

    @precondition(lambda self: self.evaluations)
    @rule(data=st.data())
    def evaluate(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.evaluations)))
        asked = self.evaluations.pop(name)
        self.tell(
            EvaluationReported(
                at=0.0,
                facility=asked.facility,
                assignment=name,
                version=asked.order.version or 0,
                loss=1.0,
            )
        )

    @precondition(lambda self: self.sums)
    @rule()
    def aggregate(self) -> None:
        made = self.sums.pop(0)
        updates = [term for term in made.terms if term.ref.startswith("update/")]
        assert len(updates) >= self.options.quorum
        assert abs(sum(term.coefficient for term in updates) - 1.0) < 1e-9
        self.used += [term.ref for term in updates]
        assert made.version == self.core.newest + 1
        self.publish(made.version, made)

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def fire(self, data: st.DataObject) -> None:
        timer = data.draw(st.sampled_from(sorted(self.timers)))
        self.timers.discard(timer)
        self.tell(TimerFired(at=0.0, timer=timer))

    @rule()
    def crash_and_resume(self) -> None:
        core = fresh(self.options)
        replay(self.records, core)
        assert core.snapshot() == self.core.snapshot()
        assert core.pending() == self.core.pending()
        self.core = core
        self.tell(RunResumed(at=0.0))

    @precondition(lambda self: self.finish)
    @rule()
    def end(self) -> None:
        assert self.finish is not None
        outcome, reason = self.finish.outcome, self.finish.reason
        self.tell(RunFinished(at=0.0, outcome=outcome, reason=reason))
        assert self.core.pending() == []

    @invariant()
    def every_update_is_used_at_most_once(self) -> None:
        assert len(self.used) == len(set(self.used))

    @invariant()
    def the_run_can_always_go_on(self) -> None:
        """Somebody is working, something is due, or the run is over."""
        due = self.orders or self.evaluations or self.timers or self.sums
        assert due or self.finish is not None

    @invariant()
    def what_is_pending_is_what_was_asked_for(self) -> None:
        if self.finish is not None or self.core.outcome:
            return
        pending = self.core.pending()
        assigned = {c.order.assignment for c in pending if isinstance(c, Assign)}
        assert assigned == set(self.orders)
        assert {c.timer for c in pending if isinstance(c, SetTimer)} == self.timers
        asked = {c.order.assignment for c in pending if isinstance(c, Evaluate)}
        assert asked == set(self.evaluations)


Federation.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestFederation = Federation.TestCase
