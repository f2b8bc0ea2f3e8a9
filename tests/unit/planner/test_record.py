"""Records of throughput: what is read out of them, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.planner.record import Measurement, ThroughputRecord, read_record


def measured(nodes: int, samples_per_s: float, **more: Any) -> Measurement:
    """Return a measurement of weak scaling: 8 examples and 4 ranks a node."""
    batch = 8 * nodes
    words: dict[str, Any] = {
        "nodes": nodes,
        "ranks": 4 * nodes,
        "batch": batch,
        "steps": 20,
        "step_s": batch / samples_per_s,
        **more,
    }
    return Measurement(**words)


def record(*found: Measurement) -> ThroughputRecord:
    made = ThroughputRecord(facility="polaris", federation="smol")
    return made.with_(found)


def test_of_several_measurements_the_one_in_the_middle_counts() -> None:
    each = [
        measured(1, speed, repeat=number)
        for number, speed in enumerate((30.0, 10.0, 20.0), start=1)
    ]
    found = record(measured(2, 36.0), *each)
    assert found.nodes == (1, 2)
    assert found.of(1).samples_per_s == pytest.approx(20.0)
    assert found.efficiency(2) == pytest.approx(36.0 / 2 / 20.0)
    with pytest.raises(KeyError):
        found.of(4)


def test_a_later_measurement_takes_the_place_of_an_earlier_one() -> None:
    found = record(measured(1, 10.0)).with_([measured(1, 12.0), measured(2, 20.0)])
    assert [round(m.samples_per_s) for m in found.measurements] == [12, 20]


def test_what_computing_takes_is_the_rest_of_a_step() -> None:
    one = measured(1, 8.0, data_s=0.1, communication_s=0.25)
    assert one.compute_s == pytest.approx(1.0 - 0.35)
    assert measured(1, 8.0, data_s=0.1).compute_s is None


def test_a_step_between_two_measurements_and_beyond_them() -> None:
    """Speed grows as nodes^0.5 from 1 to 4: doubled nodes do sqrt(2) as much."""
    found = record(measured(1, 10.0), measured(4, 20.0))
    assert found.exponent == pytest.approx(0.5)
    assert found.seconds_per_step(1, 30) == pytest.approx(3.0)
    assert found.seconds_per_step(2, 30) == pytest.approx(3.0 / 2**0.5)
    assert found.seconds_per_step(16, 30) == pytest.approx(3.0 / 4.0)
    alone = record(measured(2, 10.0))
    assert alone.exponent == 1.0
    assert alone.seconds_per_step(4, 30) == pytest.approx(1.5)


def test_the_exponent_stays_where_the_simulator_can_take_it() -> None:
    assert record(measured(1, 10.0), measured(2, 30.0)).exponent == 1.0
    assert record(measured(1, 10.0), measured(2, 9.0)).exponent == 0.0


def test_a_record_reads_back_as_it_was_written() -> None:
    found = record(measured(1, 10.0, startup_s=4.0), measured(2, 19.0, startup_s=6.0))
    again = read_record(found.text(), "smol.json")
    assert again == found
    assert again.startup_s == 5.0
    newer = {**json.loads(found.text()), "of_a_newer_hansa": 1}
    assert read_record(json.dumps(newer), "smol.json") == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "smol.json is no JSON"),
        ('{"schema": 2}', "has schema 2; this Hansa reads up to 1"),
        ("[]", "has schema None"),
        (
            '{"schema": 1, "facility": "a", "federation": "b", '
            '"measurements": [{"nodes": 0}]}',
            "measurements.0.nodes",
        ),
    ],
)
def test_what_is_no_record_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        read_record(text, "smol.json")
    assert "hansa bench throughput" in (caught.value.hint or "")
