"""What holds for any federation, under any strategy, whatever goes wrong there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.coordinator.core import Coordinator
from hansa.coordinator.replay import replay
from hansa.core.events import (
    Event,
    FacilityLost,
    FacilityReady,
    JobEnded,
    JobQueued,
    ModelStaged,
    RunFinished,
)
from hansa.journal.line import Record
from hansa.simulator.scenario import prepare
from hansa.spec.load import federation_from_text
from hansa.spec.yaml import dump

STRATEGIES = [
    "diloco",
    "fedasync",
    "fedavg",
    "fedbuff",
    "fedcompass",
    "fedqueue",
    "fedvarp",
    "mifa",
    "scaffold",
    "semisync",
]
WALLTIME = 900
one_of = st.sampled_from

QUEUES = st.fixed_dictionaries(
    {
        "type": st.just("lognormal"),
        "median": one_of([0, 60, 1200]),
        "sigma": one_of([0, 1]),
    }
)
OUTAGES = one_of(
    [
        [],
        [{"at": 148, "lasts": 52}],
        [{"at": 1000, "lasts": 900, "every": 4000}],
        [{"at": 1000, "lasts": 3000}, {"at": 2000, "lasts": 9000}],
    ]
)
FACILITIES = st.fixed_dictionaries(
    {
        "linger": one_of([0, 100, 2000]),
        "queue_ahead": one_of([0, 50, 1000]),
        "simulation": st.fixed_dictionaries(
            {
                "queue": QUEUES,
                "speed": st.fixed_dictionaries(
                    {
                        "seconds_per_step": one_of([0.1, 5, 40]),
                        "startup": one_of([0, 30]),
                        "save": one_of([0, 40]),
                        "checkpoint": one_of([6, 600]),
                        "evaluate_local": one_of([0, 300]),
                    }
                ),
                "link": st.fixed_dictionaries({"bandwidth": one_of([40, 10**6])}),
                "failures": st.fixed_dictionaries(
                    {
                        "preemptions_per_hour": one_of([0, 3]),
                        "grace": one_of([0, 30]),
                        "node_failures_per_hour": one_of([0, 2]),
                        "outages": OUTAGES,
                    }
                ),
                "notice": one_of([0, 60]),
                "jobs_in_queue": one_of([None, 1, 2]),
            }
        ),
    }
)
HOW = st.fixed_dictionaries(
    {
        "training": st.just({"type": "surrogate", "bytes": 4000}),
        "evaluation": one_of(["server", "facility"]),
        "binding": one_of(["start", "submission"]),
        "server_bandwidth": one_of([None, 60]),
    }
)


def simulated(plan: dict[str, Any]) -> tuple[list[Event], float]:
    """Return a run's journal and what its facilities have charged; it replays."""
    records: list[Record] = []

    def record(event: Event, core: Coordinator) -> None:
        records.append(Record(len(records) + 1, core.digest, event))

    spec = federation_from_text(dump(plan))
    one = prepare(spec, 7, record=record)
    core, fresh = one.run(), prepare(spec, 7).core
    replay(records, fresh)
    assert fresh.snapshot() == core.snapshot()
    return [record.event for record in records], one.node_hours()


def jobs(events: list[Event], kind: type) -> Counter[tuple[str, int]]:
    """Return how often each batch job is in events of a kind."""
    return Counter(
        (event.assignment, event.number)
        for event in events
        if isinstance(event, JobQueued | JobEnded)
        and isinstance(event, kind)
        and not getattr(event, "host", "")
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(
    facilities=st.lists(FACILITIES, min_size=1, max_size=3),
    how=HOW,
    hold=one_of([None, 600]),
)
@settings(max_examples=8, deadline=None)
def test_every_run_ends_with_its_books_in_order(
    strategy: str,
    facilities: list[dict[str, Any]],
    how: dict[str, Any],
    hold: float | None,
) -> None:
    plan = {
        "name": "odd",
        "model": {"trainer": "softmax", "source": "zeros", "dtype": "float32"},
        "task": "digits",
        "strategy": strategy,
        "stop": {"rounds": 6, "wall_clock": 40_000},
        "patience": 600,
        "start_together": hold,
        "defaults": {
            "gateway": "simulated",
            "mover": "simulated",
            "job": {"time": WALLTIME},
            "work": {"steps": 10, "batch": 8, "lr": 0.1},
        },
        "facilities": {f"f{n}": one for n, one in enumerate(facilities)},
        "simulation": how,
    }
    events, node_hours = simulated(plan)
    assert isinstance(events[-1], RunFinished)
    times = [event.at for event in events]
    assert times == sorted(times)
    ended = [event for event in events if isinstance(event, JobEnded)]
    assert sum(event.node_hours for event in ended) == pytest.approx(node_hours)
    assert jobs(events, JobQueued) == jobs(events, JobEnded)
    assert set(jobs(events, JobEnded).values()) <= {1}
    assert all(event.run_s <= WALLTIME + 1e-6 for event in ended)
    _check_once(events)


def _check_once(events: list[Event]) -> None:
    """Nothing is sent twice to a facility, and none is lost that is lost already."""
    sent: set[tuple[str, str]] = set()
    lost: set[str] = set()
    for event in events:
        match event:
            case ModelStaged():
                assert (event.facility, event.what) not in sent
                sent.add((event.facility, event.what))
            case FacilityLost():
                assert event.facility not in lost
                lost.add(event.facility)
            case FacilityReady():
                lost.remove(event.facility)
            case _:
                pass
