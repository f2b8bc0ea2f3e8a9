"""The stream of batches: permutations, continued over rounds, free of state."""

from __future__ import annotations

from collections import Counter

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


def of_all_ranks(batches: Batches, step: int, world: int) -> list[int]:
    """Return what the ranks of a team take, one rank after the other."""
    parts = [batches.part(step, rank, world) for rank in range(world)]
    sizes = [len(part) for part, _ in parts]
    assert max(sizes) - min(sizes) <= 1
    assert {of for _, of in parts} == {sum(sizes)}
    return [example.input for part, _ in parts for example in part]


@given(
    size=st.integers(1, 40),
    orders=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9)),
        min_size=1,
        max_size=5,
    ),
    worlds=st.lists(st.integers(1, 17), min_size=1, max_size=6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=100, deadline=None)
def test_each_pass_has_each_sample_once_whoever_takes_it(
    size: int, orders: list[tuple[int, int, int]], worlds: list[int], seed: int
) -> None:
    """Orders of other steps, batches and ranks, jobs that end early: no gap, no twin.

    Each order has a batch, steps, and how many of them were done when it was cut
    short; the job is restarted before every step, each time on other ranks.
    """
    seen: list[int] = []
    for batch, steps, done in orders:
        for step in range(min(steps, done)):
            restarted = Batches(
                numbers(size),
                batch,
                seed=seed,
                facility="a",
                seen=len(seen) - step * batch,
            )
            seen += of_all_ranks(restarted, step, worlds[step % len(worlds)])
    for start in range(0, len(seen), size):
        counts = Counter(seen[start : start + size])
        assert set(counts.values()) == {1}
    whole = Batches(numbers(size), 1, seed=seed, facility="a")
    assert seen == stream(whole, len(seen))  # it is the one stream, in its order


def test_ranks_without_a_sample_have_an_empty_part() -> None:
    batches = Batches(numbers(9), 2, seed=1, facility="a")
    parts = [batches.part(0, rank, 4) for rank in range(4)]
    assert [len(part) for part, _ in parts] == [0, 1, 0, 1]
    assert {of for _, of in parts} == {2}


def test_first_rounds_are_disjoint_until_all_data_is_seen() -> None:
    examples = numbers(60)
    rounds = [
        set(stream(Batches(examples, 5, seed=1, facility="a", seen=seen), 4))
        for seen in (0, 20, 40)
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
