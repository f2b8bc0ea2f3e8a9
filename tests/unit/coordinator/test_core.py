"""The pure core: budgets, evaluation, ending, what is pending after a crash."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hansa.coordinator.budgets import WALL_CLOCK
from hansa.coordinator.core import Coordinator
from hansa.coordinator.plan import Plan, Stop
from hansa.core.commands import (
    Aggregate,
    Assign,
    Begin,
    Command,
    Evaluate,
    Finish,
    SetTimer,
    Term,
    Withdraw,
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
    OperatorAsked,
    RunFinished,
    RunResumed,
    RunStarted,
    TimerFired,
    UpdateArrived,
    VersionPublished,
)
from hansa.strategy.base import StrategyContext
from hansa.strategy.fedavg import FedAvg, FedAvgOptions

STARTED = RunStarted(
    at=0.0, run="r", plan="p", seed=0, facilities=("a", "b"), started=1e9
)


def make(
    every: int = 1, stop: Stop | None = None, evaluators: tuple[str, ...] = ("a", "b")
) -> Coordinator:
    names = ("a", "b")
    plan = Plan(
        facilities=names,
        stop=stop or Stop(rounds=2),
        evaluators=evaluators,
        evaluate_every=every,
    )
    strategy = FedAvg(FedAvgOptions(), StrategyContext(facilities=names))
    return Coordinator(plan, strategy)


def feed(core: Coordinator, *events: Event) -> list[Command]:
    return [command for event in events for command in core.handle(event)]


def published(version: int, at: float = 0.0) -> VersionPublished:
    return VersionPublished(
        at=at, version=version, sha256=f"s{version}", bytes=9, seconds=0.1, terms=()
    )


def update(facility: str, round_: int) -> UpdateArrived:
    return UpdateArrived(
        at=0.0,
        facility=facility,
        assignment=f"train-{round_:04d}-{facility}-1",
        base=round_ - 1,
        steps=1,
        samples=1,
        partial=False,
        bytes=1,
    )


def evaluated(version: int, facility: str = "a") -> Event:
    return EvaluationReported(
        at=0.0,
        facility=facility,
        assignment=f"evaluate-{version:04d}-{facility}-1",
        version=version,
        loss=1.0 / (version + 1),
        metrics={"accuracy": 0.5},
    )


def failed(assignment: str, facility: str) -> Event:
    return AssignmentFailed(
        at=0.0,
        facility=facility,
        assignment=assignment,
        code="WORKER",
        reason="It broke.",
        transient=False,
    )


def lost(facility: str) -> Event:
    return FacilityLost(at=0.0, facility=facility, code="X", reason="Silence.")


def ended(
    assignment: str,
    facility: str,
    node_hours: float,
    state: str = "DONE",
    number: int = 1,
) -> Event:
    return JobEnded(
        at=0.0,
        facility=facility,
        assignment=assignment,
        number=number,
        job="1",
        state=state,
        reason="",
        queue_wait=1.0,
        run_s=1.0,
        node_hours=node_hours,
    )


def kinds(commands: list[Command]) -> list[type]:
    return [type(command) for command in commands]


def test_a_whole_run_of_two_rounds() -> None:
    core = make()
    assert feed(core, STARTED) == []
    assert kinds(feed(core, published(0))) == [Assign, Assign, Evaluate]
    assert feed(core, evaluated(0), update("a", 1)) == []
    assert kinds(feed(core, update("b", 1))) == [Aggregate]
    assert kinds(feed(core, published(1))) == [Assign, Assign, Evaluate]
    feed(core, update("a", 2), evaluated(1))
    assert kinds(feed(core, update("b", 2))) == [Aggregate]
    assert kinds(feed(core, published(2))) == [Evaluate]
    (finish,) = feed(core, evaluated(2))
    assert finish == Finish(outcome="done", reason="2 rounds are done.")
    assert core.pending() == [finish]
    feed(core, RunFinished(at=9.0, outcome="done", reason="2 rounds are done."))
    assert (core.outcome, core.newest, core.pending()) == ("done", 2, [])


def test_versions_are_evaluated_every_so_often_and_the_last_always() -> None:
    core = make(every=5, stop=Stop(rounds=1))
    assert Evaluate in kinds(feed(core, STARTED, published(0)))
    feed(core, update("a", 1), update("b", 1))
    assert kinds(feed(core, published(1))) == [Evaluate]


def test_the_wall_clock_is_a_timer_of_the_core() -> None:
    core = make(stop=Stop(wall_clock=50.0))
    assert feed(core, STARTED) == [SetTimer(timer=WALL_CLOCK, after=50.0)]
    feed(core, published(0), evaluated(0), update("a", 1))
    commands = feed(core, TimerFired(at=50.0, timer=WALL_CLOCK))
    assert kinds(commands) == [Withdraw, Aggregate]
    assert kinds(feed(core, published(1))) == [Evaluate]
    (finish,) = feed(core, evaluated(1))
    assert finish == Finish(outcome="done", reason="50 s of wall clock are over.")


def test_node_hours_add_up_and_end_the_run() -> None:
    core = make(stop=Stop(node_hours=1.0))
    feed(core, STARTED, published(0), evaluated(0))
    queued = JobQueued(
        at=0.0, facility="a", assignment="train-0001-a-1", number=1, job="1", newest=0
    )
    feed(core, queued, ended("train-0001-a-1", "a", 0.6))
    assert feed(core, ended("train-0001-a-1", "a", 0.6)) == []
    assert core.snapshot()["node_hours"] == 0.6
    # A job that did its work is paid for: the budget waits for its update.
    assert feed(core, ended("train-0001-b-1", "b", 0.4)) == []
    assert kinds(feed(core, update("b", 1))) == [Withdraw, Aggregate]
    assert kinds(feed(core, published(1))) == [Evaluate]
    (finish,) = feed(core, evaluated(1))
    assert finish == Finish(outcome="done", reason="1.00 node-hours are spent.")


def test_updates_end_the_run_and_the_last_one_still_counts() -> None:
    core = make(stop=Stop(updates=3))
    feed(core, STARTED, published(0), evaluated(0), update("a", 1))
    assert kinds(feed(core, update("a", 1))) == []  # told twice, counted once
    feed(core, update("b", 1), published(1), evaluated(1))
    assert kinds(feed(core, update("a", 2))) == [Withdraw, Aggregate]
    assert kinds(feed(core, published(2))) == [Evaluate]
    (finish,) = feed(core, evaluated(2))
    assert finish == Finish(outcome="done", reason="3 updates have come.")


@pytest.mark.parametrize(
    ("metric", "below", "ends"),
    [("eval_loss", 0.6, True), ("eval_loss", 0.5, False), ("accuracy", 0.6, True)],
)
def test_a_target_ends_the_run(metric: str, below: float, ends: bool) -> None:
    core = make(stop=Stop(rounds=9, target_metric=metric, target_below=below))
    feed(core, STARTED, published(0), update("a", 1), update("b", 1), published(1))
    commands = feed(core, evaluated(1))
    assert (Withdraw in kinds(commands)) is ends
    if ends:
        # The evaluation of version 0 is still out; the run waits for it.
        assert Finish in kinds(feed(core, evaluated(0)))


def test_the_model_that_met_the_target_is_the_last_one() -> None:
    """What has come for version 2 would make one by the quorum; it may be worse."""
    core = make(stop=Stop(rounds=9, target_below=0.6))
    feed(core, STARTED, published(0), evaluated(0))
    feed(core, update("a", 1), update("b", 1), published(1), update("a", 2))
    assert kinds(feed(core, evaluated(1))) == [Withdraw, Finish]


def test_a_failed_evaluation_goes_to_the_next_facility_then_is_given_up() -> None:
    core = make(stop=Stop(rounds=1))
    feed(core, STARTED, published(0))
    (again,) = feed(core, failed("evaluate-0000-a-1", "a"))
    assert isinstance(again, Evaluate)
    assert (again.facility, again.order.assignment) == ("b", "evaluate-0000-b-2")
    assert feed(core, failed("evaluate-0000-b-2", "b")) == []
    feed(core, update("a", 1), update("b", 1), published(1))
    feed(core, failed("evaluate-0001-a-1", "a"))
    (finish,) = feed(core, failed("evaluate-0001-b-2", "b"))
    assert finish == Finish(outcome="done", reason="1 rounds are done.")


def test_a_lost_evaluator_is_replaced() -> None:
    core = make()
    feed(core, STARTED, published(0))
    (again,) = feed(core, lost("a"))
    assert isinstance(again, Evaluate)
    assert again.facility == "b"


def test_losing_a_facility_makes_the_outcome_partial() -> None:
    core = make(stop=Stop(rounds=1))
    feed(core, STARTED, published(0), evaluated(0), lost("b"))
    assert core.lost == ("b",)
    assert kinds(feed(core, update("a", 1))) == [Aggregate]
    feed(core, published(1))
    (finish,) = feed(core, evaluated(1))
    assert isinstance(finish, Finish)
    assert finish.outcome == "partial"


def test_a_facility_that_failed_last_makes_the_outcome_partial() -> None:
    core = make(stop=Stop(rounds=1))
    feed(core, STARTED, published(0), evaluated(0), update("a", 1))
    feed(core, failed("train-0001-b-1", "b"), published(1))
    (finish,) = feed(core, evaluated(1))
    assert isinstance(finish, Finish)
    assert finish.outcome == "partial"
    assert core.snapshot()["failing"] == {"b": "It broke."}


def test_the_strategy_giving_up_withdraws_everything() -> None:
    core = make()
    feed(core, STARTED, published(0))
    feed(core, failed("train-0001-a-1", "a"), failed("train-0001-b-1", "b"))
    feed(core, failed("train-0001-a-2", "a"))  # both were asked once more
    commands = feed(core, failed("train-0001-b-2", "b"))
    assert kinds(commands) == [Finish, Withdraw]
    # Its evaluation may be in a queue by now; it is withdrawn again on resume.
    assert kinds(core.pending()) == [Withdraw, Finish]


def test_duplicates_change_nothing() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), update("a", 1))
    before = core.snapshot()
    assert feed(core, update("a", 1), evaluated(0), published(0)) == []
    assert feed(core, failed("train-0001-a-1", "a")) == []
    assert core.snapshot() == before


def test_results_of_unknown_assignments_are_ignored() -> None:
    core = make()
    feed(core, STARTED, published(0))
    before = core.snapshot()
    assert feed(core, update("a", 7), failed("train-0007-b-1", "b")) == []
    assert core.snapshot() == before


def test_what_is_pending_after_a_crash() -> None:
    core = make(stop=Stop(rounds=2, wall_clock=100.0))
    feed(core, STARTED, published(0), evaluated(0))
    feed(
        core,
        JobQueued(
            at=3.0,
            facility="a",
            assignment="train-0001-a-1",
            number=1,
            job="17",
            newest=0,
        ),
        JobStarted(
            at=4.0,
            facility="a",
            assignment="train-0001-a-1",
            number=1,
            job="17",
            base=0,
            queue_wait=1.0,
        ),
    )
    feed(core, RunResumed(at=40.0))
    assigns = [c for c in core.pending() if isinstance(c, Assign)]
    assert [c.order.assignment for c in assigns] == ["train-0001-a-1", "train-0001-b-1"]
    assert SetTimer(timer=WALL_CLOCK, after=60.0) in core.pending()
    progress = core.progress("train-0001-a-1")
    assert progress is not None
    assert (progress.number, progress.job, progress.base) == (1, "17", 0)
    assert core.needed_versions() == {0}
    feed(core, update("a", 1), update("b", 1))
    assert isinstance(core.pending()[0], Aggregate)
    assert core.needed_versions() == {0}


def test_withdrawn_jobs_that_did_not_end_are_withdrawn_again() -> None:
    core = make(stop=Stop(wall_clock=50.0))
    feed(core, STARTED, published(0), evaluated(0))
    name = "train-0001-a-1"
    feed(
        core,
        JobQueued(at=1.0, facility="a", assignment=name, number=1, job="1", newest=0),
        update("b", 1),
        TimerFired(at=50.0, timer=WALL_CLOCK),
    )
    again = [c for c in core.pending() if isinstance(c, Withdraw)]
    assert [command.assignment for command in again] == [name]
    feed(core, ended(name, "a", 0.1))
    assert not [c for c in core.pending() if isinstance(c, Withdraw)]


def test_a_second_job_of_an_assignment_binds_anew() -> None:
    core = make()
    feed(core, STARTED, published(0))
    name = "train-0001-a-1"
    for number in (1, 2):
        feed(
            core,
            JobQueued(
                at=1.0,
                facility="a",
                assignment=name,
                number=number,
                job=str(number),
                newest=0,
            ),
        )
    progress = core.progress(name)
    assert progress is not None
    assert (progress.number, progress.job, progress.base) == (2, "2", None)


def test_stale_timers_are_not_passed_on() -> None:
    core = make()
    feed(core, STARTED, published(0))
    digest = core.digest
    assert feed(core, TimerFired(at=1.0, timer="patience-0001")) == []
    assert core.digest == digest


def test_a_lost_facility_that_is_back_works_again() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), lost("b"))
    (assign,) = feed(core, FacilityReady(at=5.0, facility="b"))
    assert isinstance(assign, Assign)
    assert assign.order.assignment == "train-0001-b-2"
    assert core.lost == ()


def test_the_digest_follows_every_decision() -> None:
    one, two = make(), make()
    for core in (one, two):
        feed(core, STARTED, published(0))
    assert one.digest == two.digest != ""
    feed(one, evaluated(0), update("a", 1), update("b", 1))
    feed(two, update("b", 1), evaluated(0), update("a", 1))
    assert one.digest == two.digest
    feed(one, published(1))
    assert one.digest != two.digest


def test_the_order_of_arrival_does_not_change_the_terms() -> None:
    sums = []
    for order in (("a", "b"), ("b", "a")):
        core = make()
        feed(core, STARTED, published(0))
        sums.append(feed(core, *(update(name, 1) for name in order))[-1])
    assert sums[0] == sums[1]


def test_the_last_version_is_evaluated_however_the_run_ends() -> None:
    core = make(every=5, stop=Stop(wall_clock=50.0))
    feed(core, STARTED, published(0), evaluated(0))
    feed(core, update("a", 1), update("b", 1), published(1))
    commands = feed(core, TimerFired(at=50.0, timer=WALL_CLOCK))
    assert kinds(commands) == [Withdraw, Withdraw, Evaluate]
    assert kinds(feed(core, evaluated(1))) == [Finish]


def test_a_version_that_cannot_be_made_fails_the_run() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), update("a", 1), update("b", 1))
    failure = AggregateFailed(at=1.0, version=1, code="X", reason="It overflows.")
    (finish,) = feed(core, failure)
    assert finish == Finish(outcome="failed", reason="It overflows.")
    assert core.pending() == [finish]


def test_settled_are_the_assignments_that_are_over() -> None:
    core = make()
    feed(core, STARTED, published(0), update("a", 1))
    assert core.settled("a") == []
    feed(core, ended("train-0001-a-1", "a", 0.1))
    assert core.settled("a") == ["train-0001-a-1"]
    assert core.settled("b") == []


# Jobs: hosted, queued ahead, requeued, waiting for each other.


def words(assignment: str, facility: str, number: int = 1) -> dict:
    names = {"facility": facility, "assignment": assignment, "number": number}
    return {"at": 0.0, "job": "7", **names}


def queued(assignment: str, facility: str, number: int = 1, host: str = "") -> Event:
    return JobQueued(newest=0, host=host, **words(assignment, facility, number))


def waiting(assignment: str, facility: str) -> Event:
    return JobWaiting(queue_wait=1.0, **words(assignment, facility))


def requeued(assignment: str, facility: str, node_hours: float) -> Event:
    return JobRequeued(
        reason="Preempted",
        run_s=9.0,
        node_hours=node_hours,
        **words(assignment, facility),
    )


def started(assignment: str, facility: str, base: int = 0) -> Event:
    return JobStarted(base=base, queue_wait=1.0, **words(assignment, facility))


A1, B1 = "train-0001-a-1", "train-0001-b-1"


def test_all_begin_when_the_last_one_waits() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), queued(A1, "a"), queued(B1, "b"))
    assert feed(core, waiting(A1, "a")) == []
    begin = feed(core, waiting(B1, "b"))
    assert begin == [
        Begin(facility="a", assignment=A1), Begin(facility="b", assignment=B1),
    ]  # fmt: skip
    assert feed(core, waiting(B1, "b")) == []
    feed(core, started(A1, "a"))
    assert [c for c in core.pending() if isinstance(c, Begin)] == begin[1:]


def test_a_job_that_began_by_itself_is_not_waited_for() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), queued(A1, "a"), queued(B1, "b"))
    feed(core, waiting(A1, "a"), started(A1, "a"))
    assert feed(core, waiting(B1, "b")) == [Begin(facility="b", assignment=B1)]


@pytest.mark.parametrize("event", [lost("b"), failed(B1, "b"), update("b", 1)])
def test_one_that_is_out_is_not_waited_for(event: Event) -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), queued(A1, "a"), waiting(A1, "a"))
    assert Begin(facility="a", assignment=A1) in feed(core, event)


def test_a_job_that_waits_and_is_requeued_waits_again() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), queued(A1, "a"), waiting(A1, "a"))
    feed(core, requeued(A1, "a", 0.1))
    assert feed(core, waiting(B1, "b")) == []
    assert len(feed(core, waiting(A1, "a"))) == 2


def test_a_second_job_has_to_wait_and_is_told_again() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), queued(A1, "a"), queued(B1, "b"))
    feed(core, waiting(A1, "a"), waiting(B1, "b"), queued(A1, "a", 2))
    again = JobWaiting(queue_wait=1.0, **words(A1, "a", 2))
    assert feed(core, again) == [Begin(facility="a", assignment=A1)]


def test_the_books_follow_jobs_that_no_order_looks_after() -> None:
    core = make()
    feed(core, STARTED, published(0), evaluated(0), queued(A1, "a"))
    assert core.followed("a") == []
    ahead = "ahead-0003-a-1"
    feed(core, queued(ahead, "a"), update("a", 1))
    assert [job.key for job in core.followed("a")] == [f"{A1}.1", f"{ahead}.1"]
    assert (core.last_ahead("a"), core.last_ahead("b")) == (3, 0)
    feed(core, ended(A1, "a", 0.1), ended(ahead, "a", 0.2))
    assert core.followed("a") == []
    assert core.snapshot()["node_hours"] == pytest.approx(0.3)


def test_a_host_that_was_never_journaled_is_followed_too() -> None:
    core = make()
    feed(core, STARTED, published(0))
    feed(core, queued(A1, "a", host="ahead-0001-a-1.1"))
    (job,) = core.followed("a")
    assert (job.assignment, job.number, job.job) == ("ahead-0001-a-1", 1, "7")
    assert core.settled("a") == []
    feed(core, update("a", 1), ended("ahead-0001-a-1", "a", 0.5))
    assert core.settled("a") == [A1, "ahead-0001-a-1"]


def test_runs_that_were_broken_off_count_for_the_budget() -> None:
    core = make(stop=Stop(node_hours=1.0))
    feed(core, STARTED, published(0), evaluated(0), queued(A1, "a"))
    assert Withdraw in kinds(feed(core, requeued(A1, "a", 1.2)))


def test_a_job_without_an_order_counts_for_the_budget_at_once() -> None:
    core = make(stop=Stop(node_hours=1.0))
    feed(core, STARTED, published(0), evaluated(0), queued("ahead-0001-a-1", "a"))
    assert Withdraw in kinds(feed(core, ended("ahead-0001-a-1", "a", 1.0)))


def test_more_is_to_come_until_the_last_version_is_in_the_making() -> None:
    core = make()
    feed(core, STARTED, published(0))
    assert core.more_to_come
    feed(core, update("a", 1), update("b", 1), published(1))
    assert not core.more_to_come


def test_what_our_own_operator_cancels_is_known_after_a_restart() -> None:
    core = make()
    feed(core, STARTED, published(0), queued(A1, "a"))
    feed(core, OperatorAsked(at=1.0, request="stop"))
    assert not core.progress(A1).asked  # type: ignore[union-attr]
    feed(core, OperatorAsked(at=1.0, request="cancel"))
    assert core.progress(A1).asked  # type: ignore[union-attr]
    feed(core, queued(A1, "a", 2))
    progress = core.progress(A1)
    assert progress is not None
    assert (progress.asked, progress.spared) == (False, 1)


def test_the_end_of_an_older_job_is_not_the_end_of_the_one_at_hand() -> None:
    core = make()
    feed(core, STARTED, published(0), queued(A1, "a"), queued(A1, "a", 2))
    feed(core, ended(A1, "a", 0.5))
    progress = core.progress(A1)
    assert progress is not None
    assert (progress.number, progress.ended) == (2, False)
    assert core.snapshot()["node_hours"] == 0.5


def test_the_base_of_a_checkpoint_is_needed_by_the_next_job() -> None:
    core = make(stop=Stop(rounds=9))
    feed(
        core,
        STARTED,
        published(0),
        evaluated(0),
        queued(A1, "a"),
        started(A1, "a", base=0),
    )
    feed(core, update("b", 1), published(1), published(2))
    assert 0 in core.needed_versions()
    feed(core, ended(A1, "a", 0.1), queued(A1, "a", 2))
    assert 0 in core.needed_versions()
    feed(core, update("a", 1))
    assert 0 not in core.needed_versions()


def test_what_counts_as_a_try_stands_in_the_journal() -> None:
    core = make()
    feed(core, STARTED, published(0), queued(A1, "a"), ended(A1, "a", 0.1, "TIMEOUT"))
    feed(core, JobQueued(newest=0, spared=0, **words(A1, "a", 2)))
    progress = core.progress(A1)
    assert progress is not None
    assert progress.spared == 0
    feed(core, ended(A1, "a", 0.1, "DONE", 2))
    feed(core, JobQueued(newest=0, spared=1, **words(A1, "a", 3)))
    assert progress.spared == 1


def test_an_older_journal_that_does_not_say_it_is_read_as_before() -> None:
    core = make()
    feed(core, STARTED, published(0), queued(A1, "a"), ended(A1, "a", 0.1, "TIMEOUT"))
    feed(core, queued(A1, "a", 2))
    progress = core.progress(A1)
    assert progress is not None
    assert progress.spared == 1


@pytest.mark.parametrize(("told", "known"), [(0, 1), (3, 3)])
def test_restarts_are_counted_as_the_event_says(told: int, known: int) -> None:
    core = make()
    feed(core, STARTED, published(0), queued(A1, "a"))
    again = JobRequeued(
        reason="", run_s=1.0, node_hours=0.1, restarts=told, **words(A1, "a")
    )
    feed(core, again)
    progress = core.progress(A1)
    assert progress is not None
    assert progress.requeues == known
    feed(core, update("a", 1))
    (job,) = core.followed("a")
    assert job.requeues == known


# When it is time to queue a job ahead.


def test_the_start_of_work_calls_for_a_job_ahead_once() -> None:
    core = make(stop=Stop(rounds=9))
    feed(core, STARTED, published(0), queued(A1, "a"))
    assert not core.calls_ahead("a")
    feed(core, started(A1, "a"))
    assert core.calls_ahead("a")
    assert not core.calls_ahead("b")
    feed(core, queued("ahead-0001-a-1", "a"))
    assert not core.calls_ahead("a")


def test_a_job_queued_ahead_calls_with_the_first_of_its_orders_only() -> None:
    core = make(stop=Stop(rounds=9))
    ahead, second = "ahead-0001-a-1", "train-0002-a-1"
    feed(core, STARTED, published(0), queued(ahead, "a"))
    feed(core, started(ahead, "a", base=-1))
    assert not core.calls_ahead("a")
    feed(core, queued(A1, "a", host=f"{ahead}.1"), started(A1, "a"))
    assert core.calls_ahead("a")
    feed(core, queued("ahead-0002-a-1", "a"))
    feed(core, update("a", 1), update("b", 1), published(1))
    feed(core, queued(second, "a", host=f"{ahead}.1"))
    feed(core, ended("ahead-0002-a-1", "a", 0.1), started(second, "a", base=1))
    assert not core.calls_ahead("a")


def test_a_job_that_waits_already_is_enough() -> None:
    core = make(stop=Stop(rounds=9))
    feed(core, STARTED, published(0), queued("ahead-0001-a-1", "a"), queued(A1, "a"))
    feed(core, started(A1, "a"))
    assert not core.calls_ahead("a")


def test_what_is_spent_can_be_asked_of_a_few() -> None:
    core = make()
    feed(core, STARTED, published(0), update("a", 1), update("b", 1))
    terms = tuple(Term(ref=f"update/{name}", coefficient=0.5) for name in (A1, B1))
    feed(core, replace(published(1), terms=terms), evaluated(0))
    everything = core.spent()
    assert {A1, B1} < everything
    assert core.spent([A1, "train-0002-a-1"]) == {A1}
    assert core.spent([]) == set()


def test_a_facilitys_stream_goes_on_after_what_it_has_delivered() -> None:
    """Not after what was asked: rounds that it missed or cut short skip nothing."""
    strategy = FedAvg(
        FedAvgOptions(quorum=1, deadline=60.0), StrategyContext(facilities=("a", "b"))
    )
    core = Coordinator(make(stop=Stop(rounds=9)).plan, strategy)
    feed(core, STARTED, published(0))

    def seen(assignment: str) -> int:
        work = core.progress(assignment)
        assert work is not None
        return work.seen

    cut_short = replace(update("a", 1), samples=30, partial=True)
    feed(core, cut_short, cut_short)  # told twice, counted once
    feed(core, TimerFired(at=60.0, timer="deadline-0001"), published(1, at=61.0))
    assert seen("train-0002-a-1") == 30
    assert seen("train-0002-b-1") == 0  # its order was withdrawn
    feed(core, replace(update("b", 1), samples=80))  # too late: its samples come again
    feed(core, replace(update("b", 2), samples=50), replace(update("a", 2), samples=40))
    feed(core, published(2, at=62.0))
    assert seen("train-0003-a-1") == 70
    assert seen("train-0003-b-1") == 50
    feed(core, failed("train-0003-a-1", "a"), failed("train-0003-b-1", "b"))
    assert seen("train-0003-a-2") == 70
