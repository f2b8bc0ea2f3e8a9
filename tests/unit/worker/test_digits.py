"""The digits: a shared test split, and disjoint unequal parts of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hansa.core.errors import SpecError
from hansa.worker.options import DigitsOptions
from hansa.worker.tasks import digits
from hansa.worker.tasks.digits import Digits


def task(parts: int = 4, alpha: float = 0.1, seed: int = 0) -> Digits:
    options = DigitsOptions(parts=parts, alpha=alpha, seed=seed)
    return Digits(None, Path("unused"), options)


def test_parts_divide_the_training_split() -> None:
    data = task()
    parts = [data.load("train", [group]) for group in data.groups()]
    together = data.load("train", None)
    test = data.load("test", None)
    assert len(together) == sum(map(len, parts)) == 1797 - 359
    assert len(test) == 359
    keys = [(e.input.tobytes(), e.output) for part in (*parts, test) for e in part]
    assert len(keys) == 1797
    assert len(set(keys)) == 1797  # no sample is twice in the data set


def test_samples_are_what_scikit_learn_has() -> None:
    inputs = np.stack([e.input for e in task().load("train", None)])
    assert inputs.dtype == np.float32
    assert inputs.shape == (1438, 64)
    assert (inputs.min(), inputs.max()) == (0, 1)
    labels = np.bincount([e.output for e in task().load("test", None)], minlength=10)
    assert labels.min() > 20


def test_small_alpha_is_skewed_and_large_alpha_is_even() -> None:
    def largest_share(alpha: float) -> float:
        data = task(alpha=alpha)
        shares = []
        for group in data.groups():
            counts = np.bincount([e.output for e in data.load("train", [group])])
            shares.append(counts.max() / counts.sum())
        return float(np.mean(shares))

    assert largest_share(0.1) > 0.25
    assert largest_share(1000.0) < 0.15


def test_test_split_is_the_same_for_all() -> None:
    one = task().load("test", ["part-0"])
    other = task(parts=2, alpha=5, seed=7).load("test", None)
    assert [e.input.tobytes() for e in one] == [e.input.tobytes() for e in other]


def test_division_depends_on_the_options_only() -> None:
    first, again, other = task(), task(), task(seed=1)
    sizes = [[len(d.load("train", [g])) for g in d.groups()] for d in (first, again)]
    assert sizes[0] == sizes[1]
    assert sizes[0] != [len(other.load("train", [g])) for g in other.groups()]


def test_a_group_that_is_named_twice_counts_once() -> None:
    once, twice = (len(task().load("train", ["part-1"] * n)) for n in (1, 2))
    assert once == twice


def test_unknown_group_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="no group 'part-9'") as info:
        task().load("train", ["part-9"])
    assert "part-0, part-1" in str(info.value.hint)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SpecError, match="not 'val'"):
        task().load("val", None)


def test_missing_scikit_learn_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(SpecError) as info:
        task().load("train", None)
    assert "pip install scikit-learn" in str(info.value.hint)
