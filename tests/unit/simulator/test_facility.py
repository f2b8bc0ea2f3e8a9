"""One simulated facility, its times worked out by hand.

An order of 10 steps of 2 s trains 20 s. A batch job waits 100 s and starts up in 30 s,
an order that a running job takes on in 3 s; saving takes 1 s. The line takes 5 s for a
version of 400 bytes (1 s of latency, 100 bytes in a second), and the server hears of
anything after 7 s. So alone, from an order to its update::

    staged 5, queued, started 105, trains 135 to 155, saved 156, heard 163, here 168
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hansa.core.commands import WorkOrder
from hansa.core.errors import SimulationError, SpecError
from hansa.core.events import (
    AssignmentFailed,
    EvaluationReported,
    Event,
    FacilityLost,
    FacilityReady,
    JobEnded,
    JobQueued,
    JobStarted,
    ModelStaged,
    RunFinished,
    UpdateArrived,
    VersionPublished,
)
from hansa.simulator.scenario import prepare
from hansa.simulator.simulate import simulate
from hansa.spec.load import federation_from_text
from hansa.spec.yaml import dump

SPEED = {
    "seconds_per_step": 2,
    "startup": 30,
    "handover": 3,
    "save": 1,
    "checkpoint": 6,
}


def plan(**more: Any) -> dict[str, Any]:
    """Return a federation of one facility; `simulation` and others may be replaced."""
    simulation = {
        "queue": {"type": "replay", "waits": [100]},
        "speed": {**SPEED, **more.pop("speed", {})},
        "link": {"latency": 1, "bandwidth": 100},
        "notice": 7,
        **more.pop("simulation", {}),
    }
    whole = more.pop("whole", {})
    facility = {
        "gateway": {"type": "local", "site": "site.yaml"},
        "mover": "posix",
        "job": {"time": 600},
        "work": {"steps": 10, "batch": 4},
        "simulation": simulation,
        **more,
    }
    return {
        "name": "alone",
        "model": {"trainer": "softmax", "source": "zeros", "dtype": "float32"},
        "task": "digits",
        "strategy": "fedavg",
        "stop": {"rounds": 2},
        "evaluation": {"every": 1000},
        "facilities": {"a": facility},
        "simulation": {"training": {"type": "none", "bytes": 400}, "aggregate": 2},
        **whole,
    }


def run(**more: Any) -> list[Event]:
    found: list[Event] = []
    spec = federation_from_text(dump(plan(**more)))
    prepare(spec, 0, record=lambda event, core: found.append(event)).run()
    return found


def at(events: list[Event], kind: type) -> list[float]:
    return [event.at for event in events if isinstance(event, kind)]


def of(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_two_rounds_alone() -> None:
    """Version 1 is out at 168 + 2 = 170, and all comes again; the job ends unheard."""
    events = run()
    assert at(events, ModelStaged) == [5, 175]
    assert at(events, JobQueued) == [5, 175]
    assert at(events, JobStarted) == [135 + 7, 305 + 7]
    assert at(events, UpdateArrived) == [168, 338]
    assert at(events, VersionPublished) == [0, 170, 340]
    assert at(events, JobEnded) == [156 + 7, 326 + 7]
    first = of(events, UpdateArrived)[0]
    assert (first.steps, first.samples, first.base, first.partial) == (10, 40, 0, False)
    assert first.timings["train_s"] == 20
    assert first.timings["startup_s"] == 30
    assert first.timings["transfer_s"] == 5
    ended = of(events, JobEnded)[0]
    assert (ended.queue_wait, ended.run_s, ended.state) == (100, 51, "DONE")
    assert ended.node_hours == pytest.approx(51 / 3600)


def test_a_lingering_job_takes_the_next_order_on() -> None:
    """It is handed over at 175: 3 s later it trains, so the update is here at 211.

    175 + 3 + 20 + 1 + 7 + 5 = 211; the run ends at 213 and with it the job, which began
    at 105.
    """
    events = run(linger=100)
    assert at(events, UpdateArrived) == [168, 211]
    assert [event.host for event in of(events, JobQueued)] == ["", "train-0001-a-1.1"]
    (ended,) = of(events, JobEnded)
    assert ended.run_s == 213 - 105


def test_lingering_ends_when_nothing_comes() -> None:
    """After 4 s at 160; the next order needs a job of its own."""
    events = run(linger=4)
    assert at(events, UpdateArrived) == [168, 338]
    assert [event.run_s for event in of(events, JobEnded)] == [55, 55]


def test_a_job_queued_ahead_starts_before_its_order_comes() -> None:
    """It is queued when the server hears of the start, at 142, and runs from 242.

    The order of round 2 finds it in the queue at 175; it trains from 272, and its
    update is here at 272 + 20 + 1 + 7 + 5.
    """
    events = run(queue_ahead=50)
    ahead = [e for e in of(events, JobQueued) if e.assignment.startswith("ahead")]
    assert [event.at for event in ahead] == [142]
    assert at(events, UpdateArrived) == [168, 305]
    second = of(events, UpdateArrived)[1]
    queued = next(e for e in of(events, JobQueued) if e.assignment == second.assignment)
    assert (queued.at, queued.host) == (175, "ahead-0001-a-1.1")


def test_a_late_bound_job_trains_from_the_version_of_its_start() -> None:
    """b is done at 30: versions 1 to 3 come while a waits. a binds what is staged."""
    b = plan(simulation={"queue": {"type": "replay", "waits": [0]}}, linger=500)
    facilities = {**plan()["facilities"], "b": b["facilities"]["a"]}
    whole = {
        "facilities": facilities,
        "strategy": {"name": "fedasync"},
        "stop": {"rounds": 6},
    }
    events = run(whole=whole)
    starts = [e for e in of(events, JobStarted) if e.facility == "a"]
    published = [e.at for e in of(events, VersionPublished)]
    newest_then = sum(moment + 5 <= 135 for moment in published) - 1
    assert newest_then >= 2
    assert starts[0].base == newest_then


def test_binding_at_submission_is_stale_by_the_queue() -> None:
    b = plan(simulation={"queue": {"type": "replay", "waits": [0]}}, linger=500)
    whole = {
        "facilities": {**plan()["facilities"], "b": b["facilities"]["a"]},
        "strategy": {"name": "fedasync"},
        "stop": {"rounds": 6},
        "simulation": {**plan()["simulation"], "binding": "submission"},
    }
    events = run(whole=whole)
    starts = [e for e in of(events, JobStarted) if e.facility == "a"]
    assert starts[0].base == 0


def test_a_job_delivers_what_it_has_before_its_walltime_is_over() -> None:
    """Walltime 60 keeps a fifth for the end: it trains from 30 to 48, so 9 steps."""
    events = run(job={"time": 60})
    first = of(events, UpdateArrived)[0]
    assert (first.steps, first.partial, first.samples) == (9, True, 36)
    assert first.timings["train_s"] == 18
    assert of(events, JobEnded)[0].state == "DONE"


def test_a_walltime_for_no_step_fails_the_order_after_its_retries() -> None:
    """Walltime 32 leaves nothing: 30 s of start-up, 6.4 s are kept."""
    whole = {"retries": 2, "strategy": {"name": "fedavg", "patience": 0}}
    events = run(job={"time": 32}, whole=whole)
    assert len(of(events, JobEnded)) >= 2
    assert {event.state for event in of(events, JobEnded)} == {"FAILED"}
    assert of(events, AssignmentFailed)
    assert of(events, RunFinished)[0].outcome == "failed"


def test_a_job_waits_for_the_end_of_maintenance() -> None:
    """It could start at 105, but its 600 s would run into the window 300 to 1000."""
    failures = {"maintenance": [{"at": 300, "lasts": 700}]}
    events = run(simulation={"failures": failures}, whole={"stop": {"rounds": 1}})
    assert of(events, JobEnded)[0].queue_wait == 1000 - 5
    assert at(events, UpdateArrived) == [1000 + 63]


def test_a_short_outage_costs_the_steps_since_the_checkpoint() -> None:
    """It strikes at 148, after 13 s of training: 6 steps, of them 6 in checkpoints.

    Checkpoints are made every 6 s, so at 12 s there are 6 steps. The next job is
    submitted when the facility answers again, at 200, waits 100 s, and does 4 steps.
    """
    failures = {"outages": [{"at": 148, "lasts": 52}]}
    events = run(simulation={"failures": failures}, whole={"stop": {"rounds": 1}})
    states = [(event.number, event.state) for event in of(events, JobEnded)]
    assert states == [(1, "NODE_FAIL"), (2, "DONE")]
    (update,) = of(events, UpdateArrived)
    assert (update.steps, update.timings["train_s"]) == (10, 20)
    assert update.at == 200 + 100 + 30 + 8 + 1 + 7 + 5
    assert not of(events, FacilityLost)


def test_a_long_outage_loses_the_facility_until_it_is_over() -> None:
    failures = {"outages": [{"at": 148, "lasts": 5000}]}
    whole = {"patience": 600, "strategy": {"name": "fedavg", "patience": 9000}}
    events = run(simulation={"failures": failures}, whole=whole)
    assert at(events, FacilityLost) == [748]
    assert at(events, FacilityReady) == [5148]
    assert of(events, RunFinished)[0].outcome == "done"


def test_a_warned_job_delivers_what_it_has_when_it_is_preempted() -> None:
    """Of many seeds, in all that are preempted: whole steps up to that moment."""
    failures = {"preemptions_per_hour": 40, "grace": 30}
    found = 0
    for seed in range(12):
        events: list[Event] = []
        spec = federation_from_text(dump(plan(simulation={"failures": failures})))
        prepare(spec, seed, record=lambda e, core, to=events: to.append(e)).run()
        for update in of(events, UpdateArrived):
            if update.partial:
                found += 1
                ran = update.timings["train_s"]
                assert update.steps == int(ran / 2)
    assert found > 3


def test_no_more_jobs_are_queued_than_the_facility_allows() -> None:
    """One job at a time: the next is not queued ahead."""
    events = run(simulation={"jobs_in_queue": 1}, queue_ahead=50)
    live = 0
    for event in events:
        live += isinstance(event, JobQueued) and not event.host
        assert live <= 1
        live -= isinstance(event, JobEnded)


@pytest.mark.parametrize(
    ("job", "limits", "words"),
    [
        ({"nodes": 3}, {"most_nodes": 2}, "3 nodes"),
        ({"time": 7200}, {"longest": 3600}, "2:00:00"),
    ],
)
def test_a_job_that_no_queue_allows_is_refused_at_once(
    job: dict[str, Any], limits: dict[str, Any], words: str
) -> None:
    spec = federation_from_text(dump(plan(job=job, simulation=limits)))
    with pytest.raises(SpecError, match=words):
        prepare(spec, 0)


def test_what_a_trace_lacks_is_said(tmp_path: Path) -> None:
    """Waits measured every 10 s, but none from 100 to 2000; later jobs come then."""
    times = [*range(0, 100, 10), *range(2000, 2100, 10)]
    rows = "".join(f"{time},{time % 7}\n" for time in times)
    (tmp_path / "waits.csv").write_text(f"submitted_s,wait_s\n{rows}")
    queue = {"type": "replay", "file": str(tmp_path / "waits.csv"), "order": "time"}
    whole = {"stop": {"rounds": 5}}
    spec = federation_from_text(dump(plan(simulation={"queue": queue}, whole=whole)))
    (remark,) = simulate(spec).remarks
    assert remark.startswith("a: ")
    assert "gaps" in remark


def test_a_job_is_ended_by_its_walltime() -> None:
    """Its start-up alone takes 30 s of 20; the order has two tries, as has the next.

    The server hears of the failure when it hears of the second job's end, not before.
    """
    events = run(job={"time": 20}, whole={"retries": 2})
    ended = of(events, JobEnded)
    assert {(event.state, event.run_s) for event in ended} == {("TIMEOUT", 20)}
    assert [event.number for event in ended] == [1, 2, 1, 2]
    failed = of(events, AssignmentFailed)
    assert [event.at for event in failed] == [ended[1].at, ended[3].at]
    assert events.index(failed[0]) > events.index(ended[1])
    assert of(events, RunFinished)[0].outcome == "failed"


def test_measuring_its_own_model_ends_in_time_for_the_delivery() -> None:
    """Walltime 100 keeps 20: trained and saved after 51 s, there are 29 s for it."""
    events = run(job={"time": 100}, speed={"evaluate_local": 70})
    (update, _) = of(events, UpdateArrived)
    assert (update.partial, update.timings["eval_s"]) == (False, 29)
    assert of(events, JobEnded)[0].run_s == 80


def test_the_time_in_steps_counts_once_when_the_measuring_is_broken_off() -> None:
    """All 10 steps are in a checkpoint by 160, when the outage strikes.

    Training ends at 155, measuring would at 186. The next job starts up and has nothing
    left to do but to save and to measure: 200 + 100 + 30 + 1 + 30 + 7 + 5.
    """
    failures = {"outages": [{"at": 160, "lasts": 40}]}
    events = run(
        simulation={"failures": failures},
        speed={"evaluate_local": 30, "checkpoint": 4},
        whole={"stop": {"rounds": 1}},
    )
    (update,) = of(events, UpdateArrived)
    assert (update.steps, update.timings["train_s"]) == (10, 20)
    assert update.at == 200 + 173


def test_a_job_without_time_for_more_delivers_what_a_checkpoint_holds() -> None:
    """A step takes a little more than 2 s, so the checkpoint of 12 s holds 5 of them.

    The next job waits for two days. By then steps take 10,000 times as long, and not
    one fits.
    """
    failures = {"outages": [{"at": 148, "lasts": 52}]}
    queue = {"type": "replay", "waits": [100, 2 * 86_400]}
    events = run(
        simulation={"failures": failures, "queue": queue},
        speed={"drift_per_day": 100},
        whole={"stop": {"rounds": 1}},
    )
    assert [event.state for event in of(events, JobEnded)] == ["NODE_FAIL", "DONE"]
    (update,) = of(events, UpdateArrived)
    assert (update.steps, update.partial) == (5, True)
    assert update.timings["train_s"] == pytest.approx(10, rel=0.02)


def test_without_a_checkpoint_the_next_job_binds_anew() -> None:
    """a is broken off at 140, with two steps; b makes versions all the while."""
    failures = {"outages": [{"at": 140, "lasts": 60}]}
    b = plan(simulation={"queue": {"type": "replay", "waits": [0]}}, linger=500)
    a = plan(simulation={"failures": failures})
    whole = {
        "facilities": {**a["facilities"], "b": b["facilities"]["a"]},
        "strategy": {"name": "fedasync"},
        "stop": {"rounds": 12},
    }
    events = run(whole=whole)
    first, second = [
        event
        for event in of(events, JobStarted)
        if event.assignment == "train-0001-a-1"
    ]
    assert (first.number, second.number) == (1, 2)
    assert second.base > first.base
    staged = [e for e in of(events, ModelStaged) if e.facility == "a"]
    bindable = [e.version for e in staged if e.at <= second.at - 7]
    assert second.base == max(bindable)


def test_what_happens_in_an_outage_is_heard_when_it_is_over() -> None:
    """The job delivers at 156, the server would hear it at 163; the outage is longer.

    So the transfer of 5 s begins at 400.
    """
    failures = {"outages": [{"at": 158, "lasts": 242}]}
    events = run(simulation={"failures": failures}, whole={"stop": {"rounds": 1}})
    assert at(events, JobEnded) == [400]
    assert at(events, UpdateArrived) == [405]


def test_a_facility_that_is_lost_delivers_nothing() -> None:
    """Its update lies there at 156, and nobody can fetch it before it is lost at 758.

    When it is back, the order is given again, and 168 s later the update is here.
    """
    failures = {"outages": [{"at": 158, "lasts": 2000}]}
    whole = {
        "patience": 600,
        "strategy": {"name": "fedavg", "patience": 9000},
        "stop": {"rounds": 1},
    }
    events = run(simulation={"failures": failures}, whole=whole)
    assert at(events, FacilityLost) == [758]
    (update,) = of(events, UpdateArrived)
    assert update.assignment == "train-0001-a-2"
    assert update.at == 2158 + 163  # the version lies there already


def test_what_is_on_its_way_from_a_facility_that_is_lost_never_comes() -> None:
    """A transfer takes 1004 s here, so the update is at the facility at 1155.

    It is heard of at 1162 and would be here at 2166; the facility is lost at 1770.
    """
    events = run(
        simulation={
            "link": {"latency": 1000, "bandwidth": 100},
            "failures": {"outages": [{"at": 1170, "lasts": 5000}]},
        },
        whole={
            "patience": 600,
            "strategy": {"name": "fedavg", "patience": 9000},
            "stop": {"rounds": 1},
        },
    )
    assert at(events, FacilityLost) == [1770]
    (update,) = of(events, UpdateArrived)
    assert update.assignment == "train-0001-a-2"


def test_jobs_that_wait_for_room_in_the_queue_all_get_their_turn() -> None:
    """One job at a time, and two orders: the version's measuring and the training.

    Each round, one of them is blocked until the other's job has ended.
    """
    whole = {
        "evaluation": {"every": 1},
        "stop": {"rounds": 3},
        "simulation": {**plan()["simulation"], "evaluation": "facility"},
    }
    events = run(simulation={"jobs_in_queue": 1}, whole=whole)
    ends = [event.at - 7 for event in of(events, JobEnded)]
    begins = at(events, JobQueued)
    assert begins == sorted(begins)
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
    assert [event.version for event in of(events, VersionPublished)] == [0, 1, 2, 3]
    assert len(of(events, EvaluationReported)) == 4


def test_an_order_that_is_given_up_while_it_is_blocked_blocks_nobody() -> None:
    """Training has the one place in the queue; measuring waits for it, then another.

    The first to wait is given up at 50: the other has its turn when the job ends. What
    the server asked for to be measured never is, so this run has no end.
    """
    whole = {
        "evaluation": {"every": 1},
        "stop": {"rounds": 1},
        "simulation": {**plan()["simulation"], "evaluation": "facility"},
    }
    spec = federation_from_text(
        dump(plan(simulation={"jobs_in_queue": 1}, whole=whole))
    )
    events: list[Event] = []
    one = prepare(spec, 0, record=lambda event, core: events.append(event))
    facility, heap = one.facilities["a"], one.world.heap
    other = WorkOrder(
        assignment="evaluate-0000-a-2", kind="evaluate", round=0, version=0
    )
    heap.at(20, lambda: facility.assign(other))
    heap.at(50, lambda: facility.withdraw("evaluate-0000-a-1"))
    with pytest.raises(SimulationError, match="Nothing will happen"):
        one.run()
    queued = [(e.assignment, e.at) for e in of(events, JobQueued)]
    assert queued[:2] == [("train-0001-a-1", 5), ("evaluate-0000-a-2", 156)]


def test_a_running_job_takes_an_order_on_before_one_that_waits() -> None:
    """At 175, its own job lingers, and the one queued ahead waits until 242."""
    events = run(linger=100, queue_ahead=50)
    second = next(e for e in of(events, JobQueued) if e.assignment == "train-0002-a-1")
    assert second.host == "train-0001-a-1.1"


def test_the_end_of_a_run_is_no_failure_of_its_orders() -> None:
    """Version 2 is the last, at 113; the slower one's job has had its nodes for 8 s."""
    b = plan(simulation={"queue": {"type": "replay", "waits": [0]}}, linger=500)
    whole = {
        "facilities": {**plan()["facilities"], "b": b["facilities"]["a"]},
        "strategy": {"name": "fedasync"},
        "stop": {"rounds": 2},
    }
    events = run(whole=whole)
    assert not of(events, AssignmentFailed)
    ends = {e.facility: (e.state, e.run_s) for e in of(events, JobEnded)}
    assert ends["a"] == ("CANCELLED", 113 - 105)


def test_versions_that_are_soon_replaced_are_never_sent() -> None:
    """a's line needs 200 s for a version, b makes one about every 41 s."""
    a = plan(simulation={"link": {"latency": 0, "bandwidth": 2}})
    b = plan(simulation={"queue": {"type": "replay", "waits": [0]}}, linger=500)
    facilities = {**a["facilities"], "b": b["facilities"]["a"]}
    facilities["a"]["simulation"]["queue"]["waits"] = [2000]
    whole = {
        "facilities": facilities,
        "strategy": {"name": "fedasync"},
        "stop": {"rounds": 30},
    }
    events = run(whole=whole)
    staged = [e for e in of(events, ModelStaged) if e.facility == "a"]
    assert len(staged) > 3
    assert {event.seconds for event in staged} == {200}
    for earlier, later in pairwise(staged):
        assert later.at - earlier.at >= 200
        assert later.version - earlier.version >= 4
