"""One simulated facility, its times worked out by hand.

An order of 10 steps of 2 s trains 20 s. A batch job waits 100 s and starts up in 30 s,
an order that a running job takes on in 3 s; saving takes 1 s. The line takes 5 s for a
version of 400 bytes (1 s of latency, 100 bytes in a second), and the server hears of
anything after 7 s. So alone, from an order to its update::

    staged 5, queued, started 105, trains 135 to 155, saved 156, heard 163, here 168
"""

from __future__ import annotations

from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.core.events import (
    AssignmentFailed,
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
