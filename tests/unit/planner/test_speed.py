"""What a round costs, by measurements of the facility."""

from __future__ import annotations

import pytest

from hansa.planner.record import Measurement, ThroughputRecord
from hansa.planner.speed import pace


def record(*measured: Measurement) -> ThroughputRecord:
    return ThroughputRecord(
        schema=1, facility="here", federation="fed", measurements=measured
    )


def one(nodes: int, step_s: float) -> Measurement:
    return Measurement(
        nodes=nodes,
        ranks=4 * nodes,
        batch=32 * nodes,
        steps=20,
        step_s=step_s,
        sharding="fsdp",
        startup_s=60.0,
    )


def test_without_measurements_nothing_is_known() -> None:
    assert pace(record(), nodes=2, batch=64, steps=30) is None


def test_a_round_is_its_steps_and_its_start() -> None:
    found = pace(record(one(2, 4.0), one(4, 5.0)), nodes=2, batch=64, steps=30)
    assert found is not None
    assert (found.step_s, found.samples_per_s) == (4.0, 16.0)
    assert found.round_s == 60.0 + 30 * 4.0
    assert found.node_hours == pytest.approx(180.0 * 2 / 3600)
    assert (found.measured, found.sharding) == ((2, 4), "fsdp")


def test_a_larger_batch_takes_longer() -> None:
    found = pace(record(one(2, 4.0)), nodes=2, batch=128, steps=1)
    assert found is not None
    assert found.step_s == 8.0
