"""Windows, by hand and against counting every second."""

from __future__ import annotations

from itertools import count
from math import nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import SimulationError
from hansa.simulator.calendar import Calendar
from hansa.spec.simulation import Window

HOUR, DAY = 3600.0, 86400.0


def window(at: float, lasts: float, every: float | None = None) -> Window:
    return Window(at=at, lasts=lasts, every=every)


def test_without_windows_everything_is_free() -> None:
    calendar = Calendar([])
    assert calendar.inside(5.0) is None
    assert calendar.begins_after(5.0) is None
    assert calendar.next_free(5.0, 1e9) == 5.0


def test_one_window() -> None:
    calendar = Calendar([window(100.0, 20.0)])
    assert calendar.inside(99.9) is None
    assert calendar.inside(100.0) == 120.0
    assert calendar.inside(119.9) == 120.0
    assert calendar.inside(120.0) is None
    assert calendar.begins_after(99.9) == 100.0
    assert calendar.begins_after(100.0) is None
    assert calendar.next_free(0.0, 100.0) == 0.0  # it ends when the window begins
    assert calendar.next_free(0.0, 101.0) == 120.0
    assert calendar.next_free(110.0, 5.0) == 120.0


def test_a_window_each_week() -> None:
    # Each week on day 3 for 12 hours: a job of 6 days fits between two, from 3.5 on.
    calendar = Calendar([window(3 * DAY, DAY / 2, 7 * DAY)])
    assert calendar.next_free(0.0, 6 * DAY) == 3.5 * DAY
    assert calendar.next_free(4 * DAY, 6 * DAY) == 4 * DAY
    assert calendar.next_free(4.1 * DAY, 6 * DAY) == 10.5 * DAY
    assert calendar.inside(1000 * 7 * DAY + 3.2 * DAY) == 1000 * 7 * DAY + 3.5 * DAY
    assert calendar.begins_after(3 * DAY) == 10 * DAY


def test_windows_that_overlap_are_one() -> None:
    calendar = Calendar([window(0.0, 10.0), window(8.0, 4.0), window(12.0, 3.0)])
    assert calendar.inside(1.0) == 15.0
    assert calendar.begins_after(1.0) == 8.0


def test_a_job_longer_than_every_gap_is_refused() -> None:
    calendar = Calendar([window(7 * DAY, 2 * HOUR, DAY)])
    assert calendar.next_free(0.0, 23 * HOUR) == 0.0  # before the first of them
    with pytest.raises(SimulationError, match="23:00:00 can never start") as caught:
        calendar.next_free(6.5 * DAY, 23 * HOUR)
    assert "`job.time`" in str(caught.value.hint)


def test_windows_that_leave_no_gap_together_are_refused() -> None:
    # Each alone leaves 4 hours of 10, both together none.
    calendar = Calendar(
        [window(0.0, 6 * HOUR, 10 * HOUR), window(5 * HOUR, 6 * HOUR, 10 * HOUR)]
    )
    with pytest.raises(SimulationError, match="0:30:00 can never start: no gap"):
        calendar.next_free(0.0, 1800.0)
    with pytest.raises(SimulationError, match="follow each other without end"):
        calendar.inside(0.0)


EVERY = (4, 6, 8, 12)  # all begin again together after 24
WINDOWS = st.lists(
    st.one_of(
        st.builds(window, st.integers(0, 20), st.integers(1, 9)),
        st.sampled_from(EVERY).flatmap(
            lambda every: st.builds(
                window, st.integers(0, 20), st.integers(1, every - 1), st.just(every)
            )
        ),
    ),
    max_size=4,
)
LATEST = 160


def closed(windows: list[Window]) -> set[int]:
    """Return all seconds that lie in a window, up to a time that is late enough."""
    found: set[int] = set()
    for one in windows:
        for times in count():
            begin = one.at + times * (one.every or 0)
            found.update(range(int(begin), int(begin + one.lasts)))
            if one.every is None or begin > LATEST:
                break
    return found


@given(WINDOWS, st.integers(0, 60), st.integers(0, 12))
def test_next_free_is_what_counting_finds(
    windows: list[Window], at: int, walltime: int
) -> None:
    taken = closed(windows)
    fits = (
        start
        for start in range(at, 60 + 30 + 2 * 24)  # by then it all has come again
        if taken.isdisjoint(range(start, start + max(1, walltime)))
    )
    expected = next(fits, None)
    calendar = Calendar(windows)
    if expected is None:
        with pytest.raises(SimulationError):
            calendar.next_free(at, walltime)
    else:
        assert calendar.next_free(at, walltime) == expected


@given(WINDOWS, st.integers(0, 60))
def test_begins_after_is_what_counting_finds(windows: list[Window], at: int) -> None:
    begins = [
        one.at + times * (one.every or 0)
        for one in windows
        for times in (range(40) if one.every else range(1))
    ]
    expected = min((begin for begin in begins if begin > at), default=None)
    assert Calendar(windows).begins_after(at) == expected


def test_rounding_never_begins_a_window_too_early() -> None:
    # Just before the 19th beginning the quotient by 0.3 is rounded up to 19.
    begin = 19 * 0.3
    before = nextafter(begin, 0.0)
    assert int(before / 0.3) == 19
    calendar = Calendar([window(0.0, 0.1, 0.3)])
    assert calendar.begins_after(before) == begin
    assert calendar.inside(before) is None


@given(
    st.floats(0, 1e6),
    st.floats(0.1, 1e4),
    st.floats(0.01, 0.99),
    st.integers(0, 10**6),
)
def test_rounding_never_loses_a_window(
    at: float, every: float, share: float, times: int
) -> None:
    # Asked at the very beginning of the k-th window, it is that one, not a neighbour.
    calendar = Calendar([window(at, share * every, every)])
    begin = at + times * every
    assert calendar.inside(begin) == pytest.approx(begin + share * every)
    later = calendar.begins_after(begin)
    assert later == at + (times + 1) * every
    assert calendar.next_free(begin, 0.0) > begin
