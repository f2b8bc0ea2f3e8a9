"""What goes wrong at a simulated facility, when."""

from __future__ import annotations

from typing import Any

import pytest

from hansa.core.errors import SimulationError
from hansa.simulator.heap import Heap
from hansa.simulator.weather import Weather
from hansa.spec.simulation import FailureSpec

HOUR = 3600.0


def weather(**spec: Any) -> Weather:
    return Weather(FailureSpec.model_validate(spec), "a", 1)


class Town:
    """A facility that notes when it is struck, and until when."""

    def __init__(self) -> None:
        self.heap = Heap()
        self.struck: list[tuple[float, float]] = []

    def outage(self, until: float) -> None:
        self.struck.append((self.heap.now, until))


def test_every_outage_strikes_one_that_begins_with_the_run_too() -> None:
    windows = [{"at": 0, "lasts": 100}, {"at": 500, "lasts": 50, "every": 1000}]
    town = Town()
    weather(outages=windows).begin(town)
    while town.heap.now < 2000 and town.heap.step():
        pass
    assert town.struck == [(0, 100), (500, 550), (1500, 1550), (2500, 2550)]


def test_windows_that_overlap_are_one_outage() -> None:
    town = Town()
    weather(outages=[{"at": 10, "lasts": 50}, {"at": 40, "lasts": 60}]).begin(town)
    while town.heap.step():
        pass
    assert town.struck == [(10, 100)]


def test_a_job_starts_neither_in_an_outage_nor_into_maintenance() -> None:
    """Free is 100 to 300 and from 400 on; a job of 250 s fits only then."""
    closed = weather(
        outages=[{"at": 0, "lasts": 100}], maintenance=[{"at": 300, "lasts": 100}]
    )
    assert closed.next_free(50, 200) == 100
    assert closed.next_free(50, 250) == 400
    assert closed.next_free(450, 250) == 450
    assert (closed.back(50), closed.back(100), closed.back(350)) == (100, None, None)


def test_windows_that_leave_no_room_are_told() -> None:
    """Of each 10 minutes 5 are an outage, and the rest is too short for an hour."""
    closed = weather(
        outages=[{"at": 0, "lasts": 300, "every": 600}],
        maintenance=[{"at": 600, "lasts": 60, "every": 3600}],
    )
    with pytest.raises(SimulationError, match="never start"):
        closed.next_free(0, HOUR)
