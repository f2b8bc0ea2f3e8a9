"""Drawn waits against the closed forms; all bounds are four standard errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.simulator.heap import Heap
from hansa.simulator.queues import Entry, make_queue
from hansa.simulator.queues.lognormal import LognormalQueue
from hansa.spec.simulation import LognormalQueue as LognormalSpec

Waits = Callable[..., list[float]]
HOUR, DAY = 3600.0, 86400.0
MANY = 10_000


def queue(
    spec: LognormalSpec,
    heap: Heap,
    facility: str = "polaris",
    seed: int = 7,
    start_hour: float = 0.0,
) -> LognormalQueue:
    return LognormalQueue(
        spec, heap, facility=facility, seed=seed, start_hour=start_hour
    )


spec = partial(LognormalSpec, type="lognormal")


def logs_of(waits: Waits, of: LognormalSpec, times: list[float]) -> np.ndarray:
    heap = Heap()
    return np.log(waits(queue(of, heap), heap, times))


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_median_and_spread_are_those_of_the_lognormal(
    waits: Waits, memory: float
) -> None:
    # One job a day: with memory 0.6 two of them correlate by 0.6^12.5 = 0.002.
    # Standard errors: of a normal median 1.2533 sigma / sqrt(n) = 0.019, of its
    # standard deviation sigma / sqrt(2 n) = 0.0106.
    of = spec(median=500.0, sigma=1.5, memory=memory)
    logs = logs_of(waits, of, [day * DAY for day in range(MANY)])
    assert np.median(logs) == pytest.approx(log(500.0), abs=0.076)
    assert logs.std() == pytest.approx(1.5, abs=0.043)
    # Normal: 84.13% lie below one standard deviation; error sqrt(0.134 / n) = 0.0037.
    assert np.mean(logs < log(500.0) + 1.5) == pytest.approx(0.8413, abs=0.015)


@pytest.mark.parametrize(
    ("memory", "hours", "correlation"),
    [
        (0.5, 0.0, 0.7071),  # 0.5^0.5: the load's share
        (0.5, 1.0, 0.5),  # the memory itself
        (0.5, 3.0, 0.25),  # 0.5^2
        (0.9, 1.0, 0.9),
        (0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
    ],
)
def test_busy_stays_busy(
    waits: Waits, memory: float, hours: float, correlation: float
) -> None:
    # Pairs ten days apart (0.9^120 = 3e-6). The error of a correlation r is
    # (1 - r^2) / sqrt(n) <= 0.01.
    times = [
        pair * 10 * DAY + later for pair in range(MANY) for later in (0, hours * HOUR)
    ]
    logs = logs_of(waits, spec(median=100.0, memory=memory), times)
    found = np.corrcoef(logs[::2], logs[1::2])[0, 1]
    assert found == pytest.approx(correlation, abs=0.04 * (1 - correlation**2))


def test_jobs_of_one_moment_see_the_same_load(waits: Waits) -> None:
    # Nearly all of the spread is the load's: 1 - sqrt(0.9999) = 5e-5 is each job's own.
    of = spec(median=100.0, sigma=1.0, memory=0.9999)
    together = logs_of(waits, of, [0.0] * 500)
    assert together.std() == pytest.approx(sqrt(5e-5), rel=0.13)
    assert abs(together.mean() - log(100.0)) > 10 * together.std()


def test_the_tail_is_a_pareto_law(waits: Waits) -> None:
    # Without spread, what is not in the tail waits exactly the median. The Hill
    # estimate over all of the tail is its maximum likelihood: 1 / mean(log(x)), with
    # error index / sqrt(k); the share's is sqrt(0.2 0.8 / n) = 0.004.
    of = spec(median=100.0, sigma=0.0, tail=0.2, tail_index=1.5)
    logs = logs_of(waits, of, [0.0] * MANY) - log(100.0)
    tail = logs[logs > 1e-9]
    assert logs.min() >= -1e-9
    assert tail.size / MANY == pytest.approx(0.2, abs=0.016)
    assert 1 / tail.mean() == pytest.approx(1.5, abs=4 * 1.5 / sqrt(tail.size))
    # Twice the median is exceeded with probability 2^-1.5 = 0.354.
    assert np.mean(tail > log(2.0)) == pytest.approx(0.354, abs=0.045)


def test_the_load_does_not_move_the_tail(waits: Waits) -> None:
    found = []
    for memory in (0.0, 0.99):
        heap = Heap()
        drawn = queue(spec(median=100.0, tail=1.0, memory=memory), heap)
        found.append(waits(drawn, heap, [0.0] * 100))
    assert found[0] == found[1]


def test_size_walltime_hour_and_drift_scale_the_wait(waits: Waits) -> None:
    # Size: (8 / 2)^0.5 = 2, walltime: (7200 / 3600)^1 = 2, so 100 becomes 400.
    # It begins at 8; 6 hours before the peak the cosine is 0, at 14 it is 1, at 2 -1.
    of = spec(
        median=100.0,
        sigma=0.0,
        reference_nodes=2,
        nodes_exponent=0.5,
        time_exponent=1.0,
        day_swing=0.5,
    )
    heap = Heap()
    found = waits(
        queue(of, heap, start_hour=8.0),
        heap,
        [0.0, 6 * HOUR, 18 * HOUR],
        nodes=8,
        walltime=7200.0,
    )
    assert found == pytest.approx([400.0, 600.0, 200.0])
    heap = Heap()
    drifting = queue(spec(median=100.0, sigma=0.0, drift_per_day=4.0), heap)
    assert waits(drifting, heap, [0.0, DAY / 2, DAY]) == pytest.approx(
        [100.0, 200.0, 400.0]
    )


def test_the_kth_job_has_the_kth_draw(waits: Waits) -> None:
    heap, other = Heap(), Heap()
    now = waits(queue(spec(median=100.0), heap), heap, [0.0] * 600)
    later = waits(
        queue(spec(median=300.0), other), other, [7.0 * k for k in range(600)]
    )
    assert later == pytest.approx([3 * wait for wait in now])


def test_facilities_and_seeds_have_draws_of_their_own(waits: Waits) -> None:
    found = []
    for facility, seed in [("a", 1), ("b", 1), ("a", 2), ("a", 1)]:
        heap = Heap()
        drawn = queue(spec(median=100.0), heap, facility, seed)
        found.append(waits(drawn, heap, [0.0] * 5))
    assert found[0] == found[3]
    assert found[0] != found[1]
    assert found[0] != found[2]


def test_a_job_never_starts_before_it_is_submitted() -> None:
    heap = Heap()
    started: list[float] = []
    jobs = queue(spec(median=0.0), heap)
    entry = Entry("job", 1, 60.0, 0.0, lambda: started.append(heap.now))
    jobs.submit(entry)
    assert entry.started is None
    assert started == []
    while heap.step():
        pass
    assert started == [0.0]
    assert entry.started == 0.0


def test_a_job_that_leaves_never_starts_and_may_leave_twice() -> None:
    heap = Heap()
    started: list[str] = []
    jobs = queue(spec(median=100.0), heap)
    first = Entry("first", 1, 60.0, 0.0, lambda: started.append("first"))
    second = Entry("second", 1, 60.0, 0.0, lambda: started.append("second"))
    jobs.submit(first)
    jobs.submit(second)
    jobs.leave(first)
    jobs.leave(first)
    while heap.step():
        pass
    jobs.leave(second)
    assert started == ["second"]


@given(
    st.builds(
        LognormalSpec,
        type=st.just("lognormal"),
        median=st.floats(0, 1e7),
        sigma=st.floats(0, 4),
        nodes_exponent=st.floats(-2, 2),
        time_exponent=st.floats(-2, 2),
        day_swing=st.floats(0, 1),
        drift_per_day=st.floats(0.01, 100.0),
        memory=st.floats(0, 1, exclude_max=True),
        tail=st.floats(0, 1),
        tail_index=st.floats(0.001, 10.0),
    ),
    st.lists(st.floats(0, 1e9), min_size=1, max_size=10).map(sorted),
)
def test_waits_are_finite_and_never_negative(
    of: LognormalSpec, times: list[float]
) -> None:
    heap = Heap()
    made = make_queue(of, heap, facility="a", seed=1, start_hour=0.0)
    for time in times:
        entry = Entry("job", 1000, 1e6, time, lambda: None)
        heap.at(time, partial(made.submit, entry))
    last = 0.0
    while heap.step():
        assert heap.now >= last
        last = heap.now
    assert last <= 1e9 + 1e10
