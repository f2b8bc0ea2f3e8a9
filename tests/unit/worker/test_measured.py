"""What is read out of a profile, and what becomes of numbers over ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.worker.measured import exposed, over_ranks
from hansa.worker.team import SOLO


@pytest.mark.parametrize(
    ("collectives", "computing", "expected"),
    [
        ([(0, 10)], [], 10),
        ([(0, 10)], [(0, 10)], 0),
        ([(0, 10)], [(2, 5)], 7),
        ([(0, 10)], [(-5, 2), (8, 20)], 6),
        ([(0, 10), (5, 15)], [(12, 13)], 14),  # two at once are one wait
        ([(0, 4), (6, 10)], [(3, 7)], 6),  # an operator over the end of one
        ([], [(0, 10)], 0),
        ([(0, 10)], [(1, 3), (2, 4), (9, 9)], 7),
    ],
)
def test_only_what_nothing_hides_counts(
    collectives: list[tuple[float, float]],
    computing: list[tuple[float, float]],
    expected: float,
) -> None:
    assert exposed(collectives, computing) == pytest.approx(expected)


Spans = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(
        lambda both: (min(both), max(both))
    ),
    max_size=6,
)


@given(Spans, Spans)
def test_it_is_what_counting_each_second_gives(
    collectives: list[tuple[int, int]], computing: list[tuple[int, int]]
) -> None:
    def covers(spans: list[tuple[int, int]], at: int) -> bool:
        return any(begin <= at < end for begin, end in spans)

    seconds = [
        at for at in range(31) if covers(collectives, at) and not covers(computing, at)
    ]
    assert exposed(collectives, computing) == len(seconds)


def test_a_rank_alone_has_its_own_numbers() -> None:
    assert over_ranks({"tokens": 3.0}, SOLO) == {"tokens": 3.0, "ranks": 1.0}
