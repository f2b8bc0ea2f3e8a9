"""`hansa bench round` is a real federation; how fast it is, is not asked here."""

from __future__ import annotations

import pytest
from runs import Bench

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.mark.parametrize("linger", [True, False])
def test_rounds_are_measured_and_nothing_is_left(bench: Bench, linger: bool) -> None:
    place = bench.root / "place"
    place.mkdir()
    found = bench.data(
        *("bench", "round", "--megabytes", "1", "--rounds", "2"),
        *("--linger" if linger else "--no-linger", "--directory", str(place)),
    )
    assert (found["facilities"], found["rounds"]) == (2, 2)
    assert (found["parameters"], found["linger"]) == (250_000, linger)
    # Two versions of 1 MB and two updates of half a MB, and their headers.
    assert found["bytes"] == pytest.approx(3e6, rel=0.05)
    assert found["seconds_median"] == pytest.approx(sum(found["seconds"]) / 2)
    assert found["parts"].keys() >= {"stage", "submit", "wait", "verify", "aggregate"}
    assert all(seconds >= 0 for seconds in found["parts"].values())
    assert found["parts"]["write"] > 0
    assert list(place.iterdir()) == []
