from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from hansa.simulator.machine import Machine
from hansa.spec.simulation import SpeedSpec

HOUR, DAY = 3600.0, 86400.0
speed = partial(SpeedSpec)


def machine(
    spec: SpeedSpec, facility: str = "aurora", seed: int = 1, start_hour: float = 8.0
) -> Machine:
    return Machine(spec, facility, seed, start_hour)


def test_more_nodes_are_faster_by_their_exponent() -> None:
    made = machine(
        SpeedSpec(seconds_per_step=6.0, reference_nodes=4, nodes_exponent=0.5)
    )
    # (4 / 16)^0.5 = 1/2, (4 / 1)^0.5 = 2.
    assert made.step_seconds(0.0, 4, 1) == 6.0
    assert made.step_seconds(0.0, 16, 2) == 3.0
    assert made.step_seconds(0.0, 1, 3) == 12.0


def test_drift_and_day_multiply() -> None:
    made = machine(SpeedSpec(seconds_per_step=2.0, drift_per_day=4.0, day_swing=0.25))
    # It begins at 8: at 14 the cosine is 1, a quarter of a day on: 2 1.25 4^0.25.
    assert made.step_seconds(0.0, 1, 1) == pytest.approx(2.0)
    assert made.step_seconds(6 * HOUR, 1, 2) == pytest.approx(2.5 * 2**0.5)
    # Half a day later it is -1: 2 0.75 4^0.75.
    assert made.step_seconds(18 * HOUR, 1, 3) == pytest.approx(1.5 * 8**0.5)
    assert made.step_seconds(DAY, 1, 4) == pytest.approx(8.0)


def test_noise_is_lognormal_and_keeps_the_mean() -> None:
    # Bounds are four errors: of the logarithms' spread 0.3 / sqrt(2 n) = 0.0021, of
    # the mean sqrt(exp(0.09) - 1) / sqrt(n) = 0.0031.
    made = machine(SpeedSpec(seconds_per_step=5.0, noise=0.3))
    steps = np.array([made.step_seconds(0.0, 1, order) for order in range(10_000)])
    assert np.log(steps).std() == pytest.approx(0.3, abs=0.0085)
    assert steps.mean() / 5.0 == pytest.approx(1.0, abs=0.0123)


def test_an_order_has_its_noise_whenever_it_is_asked_for() -> None:
    one, other = (machine(SpeedSpec(noise=0.3)) for _ in range(2))
    forward = [one.step_seconds(0.0, 1, order) for order in range(600)]
    backward = [other.step_seconds(0.0, 1, order) for order in reversed(range(600))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 600
    elsewhere = machine(SpeedSpec(noise=0.3), facility="polaris")
    assert elsewhere.step_seconds(0.0, 1, 0) != forward[0]
    assert machine(SpeedSpec(noise=0.3), seed=2).step_seconds(0.0, 1, 0) != forward[0]
