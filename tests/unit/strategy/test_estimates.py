"""Online medians and quantiles, against weighted quantiles computed plainly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.events import JobStarted, UpdateArrived
from hansa.strategy.estimates import Estimate, FacilityEstimates

FLOATS = st.floats(-1e6, 1e6)


def after(values: list[float], decay: float = 0.9) -> Estimate:
    estimate = Estimate(decay)
    for value in values:
        estimate.see(value)
    return estimate


def test_nothing_is_guessed_before_the_first_observation() -> None:
    estimate = Estimate()
    assert estimate.median is None
    assert estimate.quantile(0.9) is None


def test_the_first_observation_is_the_estimate() -> None:
    estimate = after([3600.0])
    assert estimate.median == 3600.0
    assert estimate.quantile(0.05) == estimate.quantile(0.95) == 3600.0


def test_of_two_the_newer_one_counts_more() -> None:
    # Weights 0.9 and 1; half of 1.9 is 0.95. Up from the smaller value: 0.9 < 0.95
    # when it is the older, 1 >= 0.95 when it is the newer.
    assert after([10.0, 20.0]).median == 20.0
    assert after([20.0, 10.0]).median == 10.0


def test_a_median_by_hand() -> None:
    # Decay 0.5: weights 1/8 1/4 1/2 1 for 40, 10, 30, 20. In order of value:
    # 10: 1/4, 20: 5/4, which passes half of 15/8 = 15/16.
    estimate = after([40.0, 10.0, 30.0, 20.0], decay=0.5)
    assert estimate.median == 20.0
    # 0.9 * 15/8 = 1.6875: 10, 20, 30 have 1.75. 0.1 * 15/8 = 0.1875 <= 0.25.
    assert estimate.quantile(0.9) == 30.0
    assert estimate.quantile(0.1) == 10.0


def test_without_decay_it_is_the_plain_quantile() -> None:
    estimate = after([5.0, 1.0, 4.0, 2.0, 3.0], decay=1.0)
    assert estimate.median == 3.0
    assert estimate.quantile(0.2) == 1.0
    assert estimate.quantile(1.0) == 5.0


def test_one_outlier_moves_the_median_little() -> None:
    assert after([60.0] * 5 + [36000.0]).median == 60.0


def test_a_new_regime_is_learned() -> None:
    # Old weights sum to less than 0.9^7 / 0.1 = 4.8; the newest seven to 5.2.
    assert after([60.0] * 100 + [3600.0] * 7).median == 3600.0


def test_memory_is_bounded() -> None:
    estimate = after([1.0] * 500 + [2.0] * 64, decay=1.0)
    assert estimate.quantile(0.001) == 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_observation(value: float) -> None:
    assert after([5.0, value]).median == 5.0


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.1, math.nan])
def test_a_decay_is_a_share(decay: float) -> None:
    with pytest.raises(ValueError, match="is not in"):
        Estimate(decay)


@given(st.lists(FLOATS, min_size=1, max_size=80), st.floats(0.01, 0.99))
def test_at_least_that_weight_lies_at_or_below(values: list[float], q: float) -> None:
    found = after(values).quantile(q)
    assert found is not None
    kept = values[-64:]
    weights = [0.9 ** (len(kept) - 1 - i) for i in range(len(kept))]
    pairs = list(zip(kept, weights, strict=True))
    total = sum(weights)
    assert sum(w for v, w in pairs if v <= found) >= q * total - 1e-9
    assert sum(w for v, w in pairs if v < found) <= q * total + 1e-9


@given(st.lists(FLOATS, min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_do_not_cross(values: list[float], p: float, q: float) -> None:
    low, high = after(values).quantile(min(p, q)), after(values).quantile(max(p, q))
    assert low is not None
    assert high is not None
    assert low <= high


def started(assignment: str, wait: float) -> JobStarted:
    return JobStarted(
        at=1e9,
        facility="a",
        assignment=assignment,
        number=1,
        job="1",
        base=0,
        queue_wait=wait,
    )


def arrived(steps: int, **timings: float) -> UpdateArrived:
    return UpdateArrived(
        at=1e9,
        facility="a",
        assignment="train-0001-a-1",
        base=0,
        steps=steps,
        samples=1,
        partial=False,
        bytes=0,
        timings=timings,
    )


def test_each_quantity_comes_from_its_own_record() -> None:
    seen = FacilityEstimates()
    seen.see(started("train-0001-a-1", 7200.0))
    assert seen.queue_wait.median == 7200.0
    assert seen.seconds_per_step.median is None
    seen.see(arrived(20, train_s=10.0, startup_s=30.0, transfer_s=4.0))
    assert seen.seconds_per_step.median == 0.5
    assert seen.startup.median == 30.0
    assert seen.transfer.median == 4.0
    assert seen.queue_wait.median == 7200.0


def test_only_training_orders_tell_of_the_queue() -> None:
    seen = FacilityEstimates()
    for name in ("evaluate-0001-a-1", "ahead-0001-a-1", "trial-0001-a-1"):
        seen.see(started(name, 50.0))
    assert seen.queue_wait.median is None


def test_an_update_without_steps_or_timings_teaches_nothing() -> None:
    seen = FacilityEstimates()
    seen.see(arrived(0, train_s=10.0))
    seen.see(arrived(10))
    assert seen.seconds_per_step.median is None
    assert seen.startup.median is None
    assert seen.transfer.median is None


@pytest.mark.parametrize("lie", [-1.0, 5e-324, 1e300, math.nan, math.inf])
def test_times_that_can_not_be_are_not_believed(lie: float) -> None:
    # A pace of 5e-324 s would ask for 60 / 5e-324 = inf steps in a minute.
    seen = FacilityEstimates()
    seen.see(arrived(20, train_s=10.0, startup_s=30.0, transfer_s=4.0))
    seen.see(arrived(20, train_s=lie))
    assert seen.seconds_per_step.median == 0.5
    if lie != 5e-324:  # which is as good as no wait
        seen.see(started("train-0001-a-1", lie))
        seen.see(arrived(20, startup_s=lie, transfer_s=lie))
    assert seen.queue_wait.median is None
    assert (seen.startup.median, seen.transfer.median) == (30.0, 4.0)


def test_a_pace_measured_before_the_run_is_the_first_observation() -> None:
    known = FacilityEstimates.known(10.0)
    assert known.seconds_per_step.median == 10.0
    assert known.queue_wait.median is None
    assert FacilityEstimates.known(None).seconds_per_step.median is None
    # Of two the newer one counts more: the run's own word outweighs it at once.
    known.seconds_per_step.see(20.0)
    assert known.seconds_per_step.median == 20.0
