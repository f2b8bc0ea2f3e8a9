"""The stream of batches: permutations, continued over rounds, free of state."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import WorkerError
from hansa.worker.base import Example
from hansa.worker.data import Batches


def numbers(size: int) -> list[Example]:
    return [Example("count", index, index) for index in range(size)]


def stream(batches: Batches, steps: int) -> list[int]:
    return [example.input for step in range(steps) for example in batches[step]]


@given(
    size=st.integers(1, 40),
    batch=st.integers(1, 12),
    steps=st.integers(1, 12),
    rounds=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_rounds_walk_on_through_permutations(
    size: int, batch: int, steps: int, rounds: int, seed: int
) -> None:
    examples = numbers(size)
    seen: list[int] = []
    for round_ in range(rounds):
        batches = Batches(
            examples, batch, seed=seed, facility="a", first=round_ * steps
        )
        seen += stream(batches, steps)
    assert len(seen) == rounds * steps * batch
    for start in range(0, len(seen) - size + 1, size):
        assert sorted(seen[start : start + size]) == list(range(size))


def test_first_rounds_are_disjoint_until_all_data_is_seen() -> None:
    examples = numbers(60)
    rounds = [
        set(stream(Batches(examples, 5, seed=1, facility="a", first=first), 4))
        for first in (0, 4, 8)
    ]
    assert set.union(*rounds) == set(range(60))
    assert sum(map(len, rounds)) == 60


def test_a_step_needs_no_earlier_step() -> None:
    one = Batches(numbers(17), 4, seed=3, facility="a")
    other = Batches(numbers(17), 4, seed=3, facility="a")
    assert [other[step] for step in (9, 2, 5)] == [one[step] for step in (9, 2, 5)]


@pytest.mark.parametrize(("seed", "facility"), [(2, "a"), (1, "b")])
def test_seed_and_facility_change_the_order(seed: int, facility: str) -> None:
    base = stream(Batches(numbers(50), 10, seed=1, facility="a"), 5)
    other = stream(Batches(numbers(50), 10, seed=seed, facility=facility), 5)
    assert other != base
    assert sorted(other) == sorted(base)


def test_next_pass_has_another_order() -> None:
    seen = stream(Batches(numbers(50), 10, seed=1, facility="a"), 10)
    assert seen[:50] != seen[50:]


def test_no_example_is_an_error_that_names_the_facility() -> None:
    with pytest.raises(WorkerError, match="'polaris' has no training example") as info:
        Batches([], 4, seed=1, facility="polaris")
    assert not info.value.transient
