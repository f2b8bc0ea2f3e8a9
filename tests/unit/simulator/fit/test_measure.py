"""What is read out of journals written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from hansa.core import events as ev
from hansa.core.errors import JournalError
from hansa.simulator.fit.measure import Delay, Measured, Observed, Wait, measure

NOBODY = {"a": False, "b": False}


def of(diary: Any, *, lingers: bool = False) -> Measured:
    return measure(diary.sorted(), {"a": lingers, "b": lingers})


def a_of(diary: Any, *, lingers: bool = False) -> Observed:
    return of(diary, lingers=lingers).facilities["a"]


def test_an_order_with_a_job_of_its_own(diary: Any) -> None:
    diary.order(0.0, "train-0001-a-1", "a")
    seen = a_of(diary)
    assert seen.waits == (Wait(at=5.0, seconds=100.0, started=True),)
    assert seen.speeds == ((10, 30.0),)
    assert seen.saves == (6.0,)
    assert seen.local_evaluations == (4.0,)
    assert seen.transfers == ((4000, 4.0), (1000, 1.0))
    # 60 s of job less 30 + 4 + 6 are its start-up; 169 s in all less 4 s and 1 s on the
    # line, 100 s in the queue and those 40 s leave 24: start-up, submission, notice.
    assert seen.delays == (Delay(hosted=False, rest=24.0, startup=20.0, whole=True),)
    assert (seen.run_s, seen.node_hours) == (60.0, pytest.approx(120 / 3600))


def test_a_job_that_may_linger_does_not_tell_its_start_up(diary: Any) -> None:
    diary.order(0.0, "train-0001-a-1", "a")
    assert a_of(diary, lingers=True).delays == (
        Delay(hosted=False, rest=24.0, startup=15.0, whole=False),
    )


def hosted(diary: Any, at: float, order: str, over: float) -> None:
    """An order in the first job's allocation: 1 s to submit, 2 s handover, 30 s."""
    diary.queued(at + 1, order, "a", host="train-0001-a-1.1")
    diary.started(at + 4, order, "a", 0.0)
    diary.arrived(over, order, "a", startup_s=2.0, train_s=30.0, transfer_s=1.0)


def test_an_order_that_an_idle_allocation_takes_on(diary: Any) -> None:
    over = diary.order(0.0, "train-0001-a-1", "a")
    diary.add(diary.version(over + 10, 1, "train-0001-a-1"))
    hosted(diary, over + 10, "train-0002-a-1", over + 50)
    second = a_of(diary, lingers=True).delays[1]
    # 40 s less 30 s of steps and 1 s on the line.
    assert second == Delay(hosted=True, rest=9.0, startup=2.0, whole=False)


def test_an_order_that_waits_for_the_one_before_it_tells_no_delay(diary: Any) -> None:
    over = diary.order(0.0, "train-0001-a-1", "a")
    hosted(diary, over - 30, "train-0002-a-1", over + 50)
    assert len(a_of(diary, lingers=True).delays) == 1


def test_the_first_order_of_a_job_queued_ahead_tells_no_delay(diary: Any) -> None:
    at = {"facility": "a", "assignment": "ahead-0001-a-1", "number": 1, "job": "9"}
    diary.add(
        ev.JobQueued(at=1.0, newest=0, **at),
        ev.JobStarted(at=50.0, base=-1, queue_wait=49.0, **at),
        ev.JobQueued(
            at=61.0, facility="a", assignment="train-0001-a-1", number=1, job="9",
            newest=0, host="ahead-0001-a-1.1",
        ),
    )  # fmt: skip
    diary.arrived(120.0, "train-0001-a-1", "a", startup_s=9.0, train_s=30.0)
    seen = a_of(diary, lingers=True)
    assert seen.delays == ()
    assert seen.waits == (Wait(at=1.0, seconds=49.0, started=True),)


def test_an_order_during_which_nobody_listened_tells_no_delay(diary: Any) -> None:
    over = diary.order(0.0, "train-0001-a-1", "a")
    diary.add(ev.RunResumed(at=over - 30.0))
    assert a_of(diary).delays == ()


def test_a_requeued_job_waits_twice_and_tells_no_delay(diary: Any) -> None:
    at = {"facility": "a", "assignment": "train-0001-a-1", "number": 1, "job": "7"}
    diary.queued(5.0, "train-0001-a-1", "a")
    diary.started(30.0, "train-0001-a-1", "a", 20.0)
    diary.add(
        ev.JobRequeued(at=50.0, reason="preempted", run_s=20.0, node_hours=0.1, **at)
    )
    diary.started(130.0, "train-0001-a-1", "a", 70.0)
    diary.ended(200.0, "train-0001-a-1", "a", 70.0, 60.0)
    diary.arrived(201.0, "train-0001-a-1", "a", train_s=30.0)
    seen = a_of(diary)
    assert [(one.at, one.seconds) for one in seen.waits] == [(5.0, 20.0), (50.0, 70.0)]
    assert (seen.preemptions, seen.node_failures) == (1, 0)
    assert seen.run_s == 80.0
    assert seen.delays == ()


@pytest.mark.parametrize(
    ("state", "counts"),
    [("NODE_FAIL", (0, 1)), ("PREEMPTED", (1, 0)), ("FAILED", (0, 0))],
)
def test_how_jobs_ended(diary: Any, state: str, counts: tuple[int, int]) -> None:
    diary.queued(5.0, "train-0001-a-1", "a")
    diary.ended(90.0, "train-0001-a-1", "a", 20.0, 60.0, state=state)
    seen = a_of(diary)
    assert (seen.preemptions, seen.node_failures) == counts
    # It ran, though nobody saw it start.
    assert seen.waits == (Wait(at=5.0, seconds=20.0, started=True),)


def test_jobs_that_never_started(diary: Any) -> None:
    diary.queued(5.0, "train-0001-a-1", "a")
    diary.ended(90.0, "train-0001-a-1", "a", 80.0, 0.0, state="CANCELLED")
    diary.queued(95.0, "train-0002-a-1", "a")
    diary.add(diary.version(100.0, 1))
    assert a_of(diary).waits == (
        Wait(at=5.0, seconds=80.0, started=False),
        Wait(at=95.0, seconds=5.0, started=False),
    )
    diary.finished(110.0)  # now nobody knows what became of the second
    assert [one.at for one in a_of(diary).waits] == [5.0]


def test_evaluations_by_jobs_of_their_own_and_in_allocations(diary: Any) -> None:
    over = diary.order(0.0, "train-0001-a-1", "a")

    def reported(at: float, order: str) -> None:
        diary.add(
            ev.EvaluationReported(
                at=at, facility="a", assignment=order, version=0, loss=1.0
            )
        )

    diary.queued(over + 1, "evaluate-0000-a-1", "a")
    diary.ended(over + 40, "evaluate-0000-a-1", "a", 10.0, 25.0)
    reported(over + 41, "evaluate-0000-a-1")
    diary.add(diary.version(over + 50, 1, "train-0001-a-1"))
    diary.queued(over + 51, "evaluate-0001-a-1", "a", host="train-0001-a-1.1")
    reported(over + 62, "evaluate-0001-a-1")
    assert a_of(diary).evaluation_runs == (25.0,)
    lingering = a_of(diary, lingers=True)
    assert lingering.evaluation_runs == ()
    assert lingering.evaluation_rests == (12.0,)
    assert not of(diary).at_server


def test_evaluations_that_no_job_made(diary: Any) -> None:
    diary.order(0.0, "train-0001-a-1", "a")
    diary.add(
        ev.EvaluationReported(
            at=1.0, facility="a", assignment="evaluate-0000-a-1", version=0, loss=1.0
        )
    )
    assert of(diary).at_server


def test_the_run_as_a_whole(diary: Any) -> None:
    over = diary.order(0.0, "train-0001-a-1", "a")
    diary.add(diary.version(over + 1, 1, "train-0001-a-1"))
    diary.add(ev.FacilityLost(at=over + 2, facility="b", code="GATEWAY", reason=""))
    diary.add(ev.RunResumed(at=over + 32))
    diary.add(ev.FacilityReady(at=over + 40, facility="b"))
    seen = of(diary)
    assert (seen.run, seen.finished, seen.end) == ("r", False, over + 40)
    assert seen.silent == 30.0
    assert seen.aggregations == (0.5,)
    assert (seen.version_bytes, seen.update_bytes) == ((4000,), (1000,))
    assert seen.published == {0: 0.0, 1: over + 1}
    assert seen.facilities["b"].outages == ((over + 2, over + 40),)


def test_a_run_that_failed_did_not_come_to_its_end(diary: Any) -> None:
    diary.finished(10.0, "failed")
    assert not of(diary).finished


def test_no_beginning() -> None:
    with pytest.raises(JournalError):
        measure([], NOBODY)
