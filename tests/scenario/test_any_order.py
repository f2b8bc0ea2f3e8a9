"""Any order of events, any loss, any duplicate: what must hold for every strategy run.

A state machine plays the facilities' side, and the store's, against the pure core and
checks the core's promises after each step. `strategy_rules` says what each strategy
promises of its sums. When hypothesis has done its worst, the facilities that are left
do their work, and the run must come to an end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from paper_store import PaperStore
from strategy_rules import NAMES, RULES, STEPS, Rules, whole

from hansa.coordinator.core import Coordinator
from hansa.coordinator.plan import Plan, Stop
from hansa.coordinator.replay import replay
from hansa.core import plugins
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
    EvaluationReported,
    Event,
    FacilityLost,
    FacilityReady,
    JobEnded,
    JobQueued,
    JobRequeued,
    JobStarted,
    JobWaiting,
    RunFinished,
    RunResumed,
    RunStarted,
    TimerFired,
    UpdateArrived,
    VersionPublished,
)
from hansa.core.ids import update_ref, version_ref
from hansa.journal.line import Record
from hansa.strategy.base import StrategyContext

ROUNDS = 4
LONG = 600
"""Far more steps than the rest of any run needs."""


def fresh(name: str, options: dict[str, Any]) -> Coordinator:
    plan = Plan(facilities=NAMES, stop=Stop(rounds=ROUNDS), evaluators=NAMES)
    kind = plugins.find(plugins.STRATEGIES, name)
    context = StrategyContext(
        facilities=NAMES,
        steps=dict.fromkeys(NAMES, STEPS),
        walltimes=dict.fromkeys(NAMES, 3600.0),
    )
    return Coordinator(plan, kind(kind.Options.model_validate(options), context))


@dataclass
class BatchJob:
    """One job in a facility's queue, as the state machine plays it."""

    facility: str
    assignment: str
    number: int
    ended: bool = False

    @property
    def key(self) -> str:
        return f"{self.assignment}.{self.number}"

    @property
    def words(self) -> dict[str, Any]:
        return {
            "facility": self.facility,
            "assignment": self.assignment,
            "number": self.number,
            "job": self.key,
        }


@dataclass
class Order:
    """A training order that a facility has, or had: its result may still come."""

    facility: str
    order: WorkOrder
    newest: int
    base: int | None = None


class Federation(RuleBasedStateMachine):
    """Facilities that deliver, fail, vanish, come back and repeat themselves."""

    strategy: ClassVar[str]
    promises: ClassVar[Rules]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.options = data.draw(self.promises.options, label="options")
        self.core = fresh(self.strategy, self.options)
        self.store = PaperStore()
        self.records: list[Record] = []
        self.now = 0.0
        self.orders: dict[str, Order] = {}
        self.given_up: dict[str, Order] = {}
        self.known: set[str] = set()
        self.evaluations: dict[str, Evaluate] = {}
        self.timers: dict[str, float] = {}
        self.sums: list[Aggregate] = []
        self.lost: set[str] = set()
        self.used: list[str] = []
        self.last_update: UpdateArrived | None = None
        self.finish: Finish | None = None
        self.jobs: list[BatchJob] = []
        self.at_work: dict[str, BatchJob] = {}
        self.waiting: set[str] = set()
        self.begun: set[str] = set()
        self.bound: set[str] = set()
        self.node_hours = 0.0
        self.tell(RunStarted, run="r", plan="", seed=0, facilities=NAMES, started=0.0)
        self.publish(0, None)

    def tell(self, kind: Callable[..., Event], **fields: Any) -> None:
        event = kind(at=self.now, **fields)
        self.records.append(Record(len(self.records) + 1, self.core.digest, event))
        for command in self.core.handle(event):
            self.note(command)
        if self.finish is None:
            self.tidy_up()

    def note(self, command: Command) -> None:
        match command:
            case Assign(facility=facility, order=order):
                self.note_order(facility, order)
            case Begin(assignment=name):
                assert name in self.waiting, "nobody waits for this word"
                assert set(self.orders) <= self.waiting | self.begun | self.bound
                self.begun.add(name)
            case Evaluate(order=order):
                self.evaluations[order.assignment] = command
            case Withdraw(assignment=name):
                self.evaluations.pop(name, None)
                if name in self.orders:
                    self.given_up[name] = self.orders.pop(name)
            case Aggregate():
                self.note_sum(command)
            case SetTimer(timer=timer, after=after):
                assert 0 <= after < float("inf")
                self.timers[timer] = self.now + after
            case ClearTimer(timer=timer):
                self.timers.pop(timer, None)
            case Finish():
                assert self.finish is None, "the run ended twice"
                self.finish = command

    def note_order(self, facility: str, order: WorkOrder) -> None:
        name = order.assignment
        assert facility not in self.lost, "work for a facility that is gone"
        assert name not in self.known, "an order was given twice"
        busy = {one.facility for one in self.orders.values()}
        assert facility not in busy, "a second order for a facility at work"
        assert order.steps is None or order.steps >= 1
        assert order.lr_scale > 0
        assert not order.control or order.control in self.store
        self.known.add(name)
        self.orders[name] = Order(facility, order, self.core.newest)

    def note_sum(self, command: Aggregate) -> None:
        assert not self.sums, "two versions in the making"
        assert command.version == self.core.newest + 1
        for ref in _references(command):
            assert ref in self.store, f"{ref} was never made, or is removed"
        whole(command, self.store.updates, self.options)
        self.promises.check(command, self.options, self.store.updates)
        updates = [t.ref for t in command.terms if t.ref.startswith("update/")]
        facilities = [self.store.updates[ref].facility for ref in updates]
        assert len(facilities) == len(set(facilities)) or self.promises.several
        assert len(updates) == len(set(updates))
        if not self.promises.remembers:
            assert not set(updates) & set(self.used), "an update is used twice"
        self.used += updates
        self.sums.append(command)

    def tidy_up(self) -> None:
        """What nobody holds may go at any time, not only after a version."""
        core = self.core
        if core.newest >= 0:
            held, spent = core.held(), core.spent()
            assert not held & {update_ref(name) for name in spent}
            self.store.collect_garbage(core.needed_versions(), held, spent)

    def publish(self, version: int, made: Aggregate | None) -> None:
        self.store.make(version, made)
        self.tell(
            VersionPublished,
            version=version,
            sha256=str(version),
            bytes=1,
            seconds=0.0,
            terms=made.terms if made else (),
        )

    @rule(seconds=st.sampled_from([0.5, 10.0, 100.0, 4000.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    # Results.

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), samples=st.integers(1, 1000))
    def deliver(self, data: st.DataObject, samples: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.orders)))
        self.bring(name, self.orders.pop(name), samples, data)

    @precondition(lambda self: self.orders and self.finish is None)
    @rule(data=st.data(), seconds=st.sampled_from([1.0, 50.0]))
    def deliver_all(self, data: st.DataObject, seconds: float) -> None:
        """Whoever is at work brings a result, one after the other."""
        for name in data.draw(st.permutations(sorted(self.orders))):
            self.now += seconds
            if name in self.orders:  # else it was withdrawn meanwhile
                self.bring(name, self.orders.pop(name), 10, data)
        if self.sums:
            self.aggregate()

    @precondition(lambda self: self.given_up)
    @rule(data=st.data())
    def deliver_late(self, data: st.DataObject) -> None:
        """What was under way when its order was given up."""
        name = data.draw(st.sampled_from(sorted(self.given_up)))
        one = self.given_up.pop(name)
        if one.base is None or version_ref(one.base) in self.store:
            self.bring(name, one, 10, data)  # else its lane refuses it

    def bring(
        self, name: str, one: Order, samples: int, data: st.DataObject | None = None
    ) -> None:
        self.bind(one, data)
        ordered = one.order.steps or STEPS
        steps = data.draw(st.integers(1, ordered)) if data else ordered
        fields = {
            "facility": one.facility,
            "assignment": name,
            "base": one.base,
            "steps": steps,
            "samples": samples,
            "partial": steps < ordered,
            "bytes": 1,
            "metrics": {"train_loss": 1.0, "lr_sum": 0.1 * steps * one.order.lr_scale},
            "timings": {"train_s": 2.0 * steps, "startup_s": 1.0, "transfer_s": 1.0},
        }
        self.last_update = UpdateArrived(at=0.0, **fields)
        self.store.updates[update_ref(name)] = self.last_update
        self.tell(UpdateArrived, **fields)

    def bind(self, one: Order, data: st.DataObject | None) -> None:
        """Let a job take the newest version that is in its mailbox.

        Nobody may hear of it before its update comes; lanes see to it that the store
        keeps what a job may have bound unseen.
        """
        if one.base is None:
            there = [v for v in sorted(self.store.versions) if v >= one.newest]
            one.base = data.draw(st.sampled_from(there)) if data else there[-1]
        assert version_ref(one.base) in self.store, "a job's base is removed"

    @precondition(lambda self: self.last_update)
    @rule()
    def deliver_again(self) -> None:
        assert self.last_update is not None
        fields = {n: getattr(self.last_update, n) for n in UpdateArrived.__slots__}
        del fields["at"]
        self.tell(UpdateArrived, **fields)

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), transient=st.booleans())
    def fail(self, data: st.DataObject, transient: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.orders)))
        facility = self.orders.pop(name).facility
        self.tell(
            AssignmentFailed,
            facility=facility,
            assignment=name,
            code="X",
            reason="",
            transient=transient,
        )

    @rule(facility=st.sampled_from(NAMES))
    def lose(self, facility: str) -> None:
        self.lost.add(facility)
        gone = [n for n, one in self.orders.items() if one.facility == facility]
        for name in gone:
            self.given_up[name] = self.orders.pop(name)
        gone = [n for n, e in self.evaluations.items() if e.facility == facility]
        for name in gone:
            del self.evaluations[name]
        self.tell(FacilityLost, facility=facility, code="X", reason="")

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def regain(self, data: st.DataObject) -> None:
        facility = data.draw(st.sampled_from(sorted(self.lost)))
        self.lost.discard(facility)
        self.tell(FacilityReady, facility=facility)

    @precondition(lambda self: self.evaluations)
    @rule(data=st.data())
    def evaluate(self, data: st.DataObject) -> None:
        self.report(data.draw(st.sampled_from(sorted(self.evaluations))))

    def report(self, name: str) -> None:
        asked = self.evaluations.pop(name)
        version = asked.order.version or 0
        self.tell(
            EvaluationReported,
            facility=asked.facility,
            assignment=name,
            version=version,
            loss=1.0,
        )

    # Jobs: of an order, hosted by another one's allocation, or without any order.

    @rule(data=st.data())
    def job(self, data: st.DataObject) -> None:
        """Something happens in a queue."""
        steps = {
            self.queue: bool(self.orders or self.evaluations),
            self.queue_ahead: True,
            self.wait: bool(self.at_work),
            self.start: bool(self.at_work),
            self.requeue: bool(self.live()),
            self.end_job: bool(self.jobs),
        }
        able = [step for step, can in steps.items() if can]
        data.draw(st.sampled_from(able), label="step")(data)

    def queue(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({*self.orders, *self.evaluations})))
        asked = self.evaluations.get(name)
        facility = self.orders[name].facility if asked is None else asked.facility
        earlier = self.at_work.get(name)
        number = 1 if earlier is None else earlier.number + 1
        job = BatchJob(facility, name, number)
        hosts = [h.key for h in self.live() if h.facility == facility]
        host = data.draw(st.sampled_from(["", *hosts]))
        self.at_work[name] = job
        for names in (self.waiting, self.begun, self.bound):
            names.discard(name)
        if not host:
            self.jobs.append(job)
        self.tell(JobQueued, newest=0, host=host, **job.words)

    def queue_ahead(self, data: st.DataObject) -> None:
        facility = data.draw(st.sampled_from(NAMES))
        number = data.draw(st.integers(1, 3))
        job = BatchJob(facility, f"ahead-{number:04d}-{facility}-1", 1)
        if all(job.key != other.key for other in self.jobs):
            self.jobs.append(job)
            self.tell(JobQueued, newest=0, **job.words)
            assert self.core.last_ahead(facility) >= number

    def wait(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.at_work)))
        if name in self.orders and name not in self.bound:
            self.waiting.add(name)
            self.tell(JobWaiting, queue_wait=7.0, **self.at_work[name].words)

    def start(self, data: st.DataObject) -> None:
        queue_wait = data.draw(st.sampled_from([0.0, 30.0, 5000.0]))
        name = data.draw(st.sampled_from(sorted(self.at_work)))
        self.waiting.discard(name)
        self.bound.add(name)
        base = 0
        one = self.orders.get(name)
        if one is not None:
            self.bind(one, data)
            base = one.base or 0
        job = self.at_work[name]
        self.tell(JobStarted, base=base, queue_wait=queue_wait, **job.words)

    def requeue(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.live()))
        self.node_hours += 0.5
        if self.at_work.get(job.assignment) is job:
            self.waiting.discard(job.assignment)
        self.tell(JobRequeued, reason="", run_s=9.0, node_hours=0.5, **job.words)

    def end_job(self, data: st.DataObject) -> None:
        """A job may end at any time, and its end may be told again."""
        job = data.draw(st.sampled_from(self.jobs))
        self.node_hours += 0.0 if job.ended else 1.0
        job.ended = True
        state = data.draw(st.sampled_from(["DONE", "PREEMPTED", "CANCELLED"]))
        self.tell(
            JobEnded,
            state=state,
            reason="",
            queue_wait=0.0,
            run_s=9.0,
            node_hours=1.0,
            **job.words,
        )

    def live(self) -> list[BatchJob]:
        return [job for job in self.jobs if not job.ended]

    # Sums, timers, the process.

    @precondition(lambda self: self.sums)
    @rule()
    def aggregate(self) -> None:
        made = self.sums.pop(0)
        for ref in _references(made):
            assert ref in self.store, f"{ref} was removed before it was summed"
        self.publish(made.version, made)

    @precondition(lambda self: self.sums and self.core.newest > 1)
    @rule()
    def fail_to_aggregate(self) -> None:
        made = self.sums.pop(0)
        self.tell(AggregateFailed, version=made.version, code="X", reason="It is NaN.")
        assert self.finish is not None
        assert self.finish.outcome == "failed"

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def fire(self, data: st.DataObject) -> None:
        self.go_off(data.draw(st.sampled_from(sorted(self.timers))))

    def go_off(self, timer: str) -> None:
        self.now = max(self.now, self.timers.pop(timer))
        self.tell(TimerFired, timer=timer)

    @rule()
    def crash_and_resume(self) -> None:
        core = fresh(self.strategy, self.options)
        replay(self.records, core)
        assert core.snapshot() == self.core.snapshot()
        assert core.pending() == self.core.pending()
        assert core.held() == self.core.held()
        assert core.spent() == self.core.spent()
        assert core.needed_versions() == self.core.needed_versions()
        self.core = core
        self.tell(RunResumed)

    @precondition(lambda self: self.finish)
    @rule()
    def end(self) -> None:
        assert self.finish is not None
        outcome, reason = self.finish.outcome, self.finish.reason
        self.tell(RunFinished, outcome=outcome, reason=reason)
        assert self.core.pending() == []

    def teardown(self) -> None:
        """Whoever is left does his work: the run ends, whoever is gone."""
        if not hasattr(self, "core"):
            return
        for _ in range(LONG):
            if self.finish is not None:
                return
            self.the_run_can_always_go_on()
            if self.sums:
                self.aggregate()
            elif self.orders:
                name = min(self.orders)
                self.bring(name, self.orders.pop(name), 10)
            elif self.evaluations:
                self.report(min(self.evaluations))
            else:
                self.go_off(min(self.timers, key=self.timers.__getitem__))
        raise AssertionError(f"The run does not end: {self.core.snapshot()}")

    # What must always hold.

    @invariant()
    def every_job_is_charged_once(self) -> None:
        assert self.core.snapshot()["node_hours"] == self.node_hours

    @invariant()
    def every_live_job_is_in_somebodys_hands(self) -> None:
        """An open order, a withdrawal, or the list of those that are followed."""
        followed = {j.key for name in NAMES for j in self.core.followed(name)}
        live = {job.key for job in self.live()}
        assert followed <= live
        for job in self.live():
            if job.key in followed:
                continue
            progress = self.core.progress(job.assignment)
            assert progress is not None
            assert progress.closed in {"", "withdrawn", "lost"}

    @invariant()
    def nobody_waits_for_a_word_that_was_due(self) -> None:
        if self.finish is not None or self.core.outcome:
            return
        open_ = set(self.orders)
        if open_ <= self.waiting | self.begun | self.bound:
            assert open_ & self.waiting <= self.begun

    @invariant()
    def the_run_can_always_go_on(self) -> None:
        """Somebody is working, something is due, or the run is over."""
        due = self.orders or self.evaluations or self.timers or self.sums
        assert due or self.finish is not None

    @invariant()
    def what_is_held_is_there(self) -> None:
        if self.finish is None:
            missing = {ref for ref in self.core.held() if ref not in self.store}
            assert not missing

    @invariant()
    def what_is_pending_is_what_was_asked_for(self) -> None:
        if self.finish is not None or self.core.outcome:
            return
        pending = self.core.pending()
        assigned = {c.order.assignment for c in pending if isinstance(c, Assign)}
        assert assigned == set(self.orders)
        timers = {c.timer for c in pending if isinstance(c, SetTimer)}
        assert timers == set(self.timers)
        asked = {c.order.assignment for c in pending if isinstance(c, Evaluate)}
        assert asked == set(self.evaluations)
        assert [c for c in pending if isinstance(c, Aggregate)] == self.sums

    @invariant()
    def the_state_can_be_shown(self) -> None:
        json.dumps(self.core.snapshot())


def _references(command: Aggregate) -> list[str]:
    sums = (command.terms, *(state.terms for state in command.states))
    return [term.ref for terms in sums for term in terms]


STRATEGIES = plugins.names(plugins.STRATEGIES)


def test_every_strategy_says_what_it_promises() -> None:
    assert set(STRATEGIES) <= set(RULES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_order(name: str) -> None:
    rules = RULES[name]
    machine = type(name, (Federation,), {"strategy": name, "promises": rules})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=25, stateful_step_count=50)
    )
