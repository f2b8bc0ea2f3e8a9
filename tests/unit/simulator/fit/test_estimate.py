"""From measurements to keys, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.simulator.fit.estimate import (
    MANY,
    NODES_EXPONENT,
    Asked,
    Estimate,
    completed,
    estimate,
    line,
    section,
)
from hansa.simulator.fit.measure import Delay, Observed, Wait
from hansa.spec.simulation import LognormalQueue, ReplayQueue

ASKED = Asked(nodes=2, time=3600.0, patience=60.0)


def delay(
    rest: float, startup: float, *, hosted: bool = False, whole: bool = True
) -> Delay:
    return Delay(hosted=hosted, rest=rest, startup=startup, whole=whole)


def waits(*seconds: float) -> tuple[Wait, ...]:
    return tuple(Wait(float(i), one, started=True) for i, one in enumerate(seconds))


def test_speed_is_the_mean_over_steps_and_the_spread_of_logarithms() -> None:
    found = estimate(Observed(speeds=((10, 10.0), (10, 20.0), (20, 80.0))))
    assert found.step is not None
    mean, noise = found.step
    assert mean == pytest.approx(110 / 40)
    # logarithms of 1, 2 and 4: ln 2 apart from each other
    assert noise == pytest.approx(math.log(2))
    assert estimate(Observed(speeds=((10, 10.0), (10, 20.0)))).step == (1.5, 0.0)


def test_whole_jobs_tell_start_up_and_notice_apart() -> None:
    found = estimate(Observed(delays=(delay(24, 20), delay(29, 24), delay(60, 22))))
    assert found.startup == pytest.approx(22.0)
    assert found.notice == 5.0  # the median of 4, 5 and 38
    assert found.handover is None


def test_in_allocations_the_notice_comes_from_orders_that_were_handed_over() -> None:
    own = delay(24, 15, whole=False)
    guests = (
        delay(9, 2, hosted=True, whole=False),
        delay(5, 2, hosted=True, whole=False),
    )
    found = estimate(Observed(delays=(own, *guests)))
    assert found.notice == 5.0  # the median of 7 and 3
    assert found.startup == 19.0  # what is left of 24
    assert found.handover == 2.0


def test_without_any_of_these_the_worker_has_to_be_believed() -> None:
    found = estimate(Observed(delays=(delay(24, 15, whole=False),)))
    assert (found.startup, found.notice) == (15.0, 9.0)


def test_no_negative_times() -> None:
    found = estimate(Observed(delays=(delay(18, 20),)))
    assert (found.startup, found.notice) == (20.0, 0.0)


@pytest.mark.parametrize(
    ("observed", "seconds"),
    [
        (Observed(evaluation_runs=(50.0, 60.0), local_evaluations=(1.0,)), 35.0),
        (Observed(local_evaluations=(4.0, 6.0), evaluation_rests=(90.0,)), 5.0),
        (Observed(evaluation_rests=(90.0, 20.0, 30.0)), 26.0),
        (Observed(), None),
    ],
)
def test_evaluation_by_the_best_source(
    observed: Observed, seconds: float | None
) -> None:
    """Jobs alone: less start-up (20 s). Allocations: less notice (4 s), no handover."""
    known = Observed(
        **{
            name: getattr(observed, name)
            for name in ("evaluation_runs", "local_evaluations", "evaluation_rests")
        },
        delays=(delay(24, 20),),
    )
    assert estimate(known).evaluate == seconds


def test_a_line_of_two_sizes() -> None:
    # 2 s, and a byte in a microsecond
    moved = [(1_000_000, 3.0), (5_000_000, 7.0), (1_000_000, 3.0)]
    assert line(moved) == (pytest.approx(2.0), pytest.approx(1e6))


def test_a_line_whose_latency_can_not_be_told() -> None:
    assert line([(1000, 2.0), (1200, 4.0)]) == (0.0, pytest.approx(1100 / 3))
    assert line([(1000, 5.0), (9000, 1.0)]) == (0.0, pytest.approx(5000 / 3))
    assert line([]) is None


@given(
    latency=st.floats(0.001, 10),
    bandwidth=st.floats(1e3, 1e9),
    sizes=st.lists(st.integers(1000, 10**9), min_size=2, max_size=8),
)
def test_a_line_without_noise_is_found_again(
    latency: float, bandwidth: float, sizes: list[int]
) -> None:
    moved = [(size, latency + size / bandwidth) for size in sizes]
    found = line(moved)
    assert found is not None
    for size, seconds in moved if max(sizes) >= 1.5 * min(sizes) else []:
        assert found[0] + size / found[1] == pytest.approx(seconds, rel=1e-3)


def replayed(found: Estimate, *, exact: bool) -> Any:
    return section(found, Observed(), ASKED, exact=exact).queue


def test_few_waits_are_replayed_and_many_become_a_law() -> None:
    few = Estimate(waits=(30.0, 10.0, 20.0))
    assert replayed(few, exact=False) == ReplayQueue(
        type="replay", waits=(30.0, 10.0, 20.0)
    )
    drawn = np.random.default_rng(1).lognormal(math.log(600), 0.8, size=400)
    law = replayed(Estimate(waits=tuple(drawn.tolist())), exact=False)
    assert isinstance(law, LognormalQueue)
    assert law.median == pytest.approx(600, rel=0.1)
    assert law.sigma == pytest.approx(0.8, rel=0.1)
    assert (law.reference_nodes, law.reference_time) == (2, 3600.0)
    assert isinstance(replayed(Estimate(waits=tuple(drawn)), exact=True), ReplayQueue)


def test_waits_of_no_time_are_no_lognormal_law() -> None:
    found = Estimate(waits=(0.0, *[100.0] * MANY))
    assert isinstance(replayed(found, exact=False), ReplayQueue)


def test_speed_holds_for_the_nodes_that_were_asked_for() -> None:
    found = Estimate(
        step=(2.0, 0.3), startup=1.0, save=0.5, evaluate=3.0, evaluate_local=0.0
    )
    speed = section(found, Observed(), ASKED, exact=False).speed
    assert (speed.seconds_per_step, speed.noise, speed.reference_nodes) == (2.0, 0.3, 2)
    assert speed.nodes_exponent == NODES_EXPONENT
    assert speed.handover == 1.0  # not seen: no slower than a new job
    assert (speed.save, speed.evaluate, speed.evaluate_local) == (0.5, 3.0, 0.0)
    assert section(found, Observed(), ASKED, exact=True).speed.noise == 0.0


def test_rates_of_trouble() -> None:
    seen = Observed(run_s=7200.0, node_hours=4.0, preemptions=3, node_failures=1)
    failures = section(Estimate(), seen, ASKED, exact=False).failures
    assert failures.preemptions_per_hour == 1.5
    assert failures.node_failures_per_hour == 0.25


def test_an_outage_began_when_patience_did() -> None:
    seen = Observed(outages=((100.0, 250.0), (30.0, 70.0)))
    first, second = section(Estimate(), seen, ASKED, exact=False).failures.outages
    assert (first.at, first.lasts) == (40.0, 210.0)
    assert (second.at, second.lasts) == (0.0, 70.0)


def test_what_a_facility_never_showed_is_the_median_of_the_others() -> None:
    known = {
        name: Estimate(
            waits=(wait, wait + 2), step=(wait / 10, 0.0), startup=wait, notice=1.0
        )
        for name, wait in (("a", 10.0), ("b", 20.0), ("c", 90.0))
    }
    filled, borrowed = completed({**known, "d": Estimate(startup=5.0, waited=15.0)})
    assert borrowed == {"a": (), "b": (), "c": (), "d": ("waits", "step", "notice")}
    assert filled["d"].waits == (21.0,)
    assert filled["d"].step == (2.0, 0.0)
    assert filled["d"].startup == 5.0
    assert filled["a"] == known["a"]


def test_a_queue_is_no_shorter_than_somebody_has_waited_in_it() -> None:
    filled, _ = completed({"a": Estimate(waits=(10.0,)), "b": Estimate(waited=500.0)})
    assert filled["b"].waits == (500.0,)


def test_jobs_that_all_wait_still_are_no_measured_queue() -> None:
    seen = Observed(waits=(Wait(at=0.0, seconds=70.0, started=False),))
    found = estimate(seen)
    assert (found.waits, found.waited) == ((), 70.0)
    assert estimate(Observed(waits=waits(3.0, 4.0))).waits == (3.0, 4.0)
