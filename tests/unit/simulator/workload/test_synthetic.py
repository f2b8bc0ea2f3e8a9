from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from hansa.simulator.workload import TraceJob
from hansa.simulator.workload.synthetic import draw_jobs, node_counts
from hansa.spec.simulation import SyntheticWorkload

COUNT = 20_000


def drawn(count: int = COUNT, seed: int = 5, **keys: Any) -> list[TraceJob]:
    spec = SyntheticWorkload.model_validate(keys)
    return list(islice(draw_jobs(spec, 100, seed, 8.0, -1000.0), count))


def test_they_come_in_order_and_ask_for_what_they_need() -> None:
    jobs = drawn(largest=0.32)
    times = [job.submitted for job in jobs]
    assert times == sorted(times)
    assert times[0] > -1000.0
    for job in jobs:
        assert 1 <= job.nodes <= 32
        assert 0 < job.runs <= job.walltime
        assert job.walltime % 900.0 == 0


def test_the_same_seed_draws_the_same_jobs() -> None:
    assert drawn(1000) == drawn(1000)
    assert drawn(1000) != drawn(1000, seed=6)


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_the_machine_is_offered_its_load(load: float) -> None:
    # Without a swing: the work of n jobs over n mean spans. The work of one is size x
    # time, independent. With sigma 0.5 the mean square of a time is exp(0.25) = 1.28 of
    # its mean squared; sizes up to 50 have the mean 12.3 and the mean square 311 (see
    # below). So the relative variance of a work is 1.28 x 311 / 12.3^2 - 1 = 1.6, that
    # of a span 1: an error of sqrt(2.6 / 20000) = 0.0115. Four of these are 5 %.
    jobs = drawn(load=load, sigma=0.5, day_swing=0.0)
    work = sum(job.nodes * job.runs for job in jobs)
    offered = work / (jobs[-1].submitted + 1000.0) / 100
    assert offered == pytest.approx(load, rel=0.05)


def test_times_and_walltimes_have_the_means_that_were_asked_for() -> None:
    # So long that a quarter of an hour does not count. The error of the mean time is
    # 0.53 / sqrt(20000) = 0.4 %, that of the ratio, 1 + 1.5 e, 1.5 / 141 = 0.011.
    jobs = drawn(mean_time=1e7, sigma=0.5, overestimate=2.5)
    runs = np.array([job.runs for job in jobs])
    asked = np.array([job.walltime for job in jobs])
    assert runs.mean() == pytest.approx(1e7, rel=0.016)
    assert np.log(runs).std() == pytest.approx(0.5, rel=0.02)
    assert (asked / runs).mean() == pytest.approx(2.5, abs=0.044)


@pytest.mark.parametrize("swing", [0.0, 0.3, 1.0])
def test_more_come_by_day(swing: float) -> None:
    # From 8 to 20 o'clock lies the upper half of the cosine: 1/2 + swing / pi of all.
    # The error of a share is 0.5 / sqrt(20000) = 0.0035.
    hours = [(8.0 + job.submitted / 3600.0) % 24.0 for job in drawn(day_swing=swing)]
    share = sum(8.0 <= hour < 20.0 for hour in hours) / COUNT
    assert share == pytest.approx(0.5 + swing / np.pi, abs=0.014)


def test_sizes_are_mostly_powers_of_two() -> None:
    # 1, 2 and 4 three times as often as 3: tenths.
    assert node_counts(5) == {1: 0.3, 2: 0.3, 3: 0.1, 4: 0.3}
    assert node_counts(1) == {1: 1.0}
    sizes = node_counts(50)
    assert list(sizes) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    # Powers: 3 (1 + 2 + 4 + 8 + 16 + 32) = 189; between: 3 + 6 + 12 + 24 + 48 = 93; in
    # all 6 x 3 + 5 = 23. Squares: 3 x 1365 + 3069 = 7164.
    assert sum(size * share for size, share in sizes.items()) == pytest.approx(282 / 23)
    assert sum(size**2 * share for size, share in sizes.items()) == pytest.approx(
        7164 / 23
    )
    seen = np.bincount([job.nodes for job in drawn()], minlength=49) / COUNT
    for size in range(49):
        assert seen[size] == pytest.approx(sizes.get(size, 0.0), abs=0.01)
