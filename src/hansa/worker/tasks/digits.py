"""Handwritten digits, 8 x 8: the small task of tests and of the first demo.

The data ships inside scikit-learn (1797 samples). A fixed fifth of it is the test
split, shared by all; the rest is divided into groups ``part-0``, ``part-1``, ... by a
Dirichlet draw over the labels, the usual model of unequal facilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import SpecError
from hansa.core.rng import uniform
from hansa.core.words import nearest
from hansa.worker.base import Example
from hansa.worker.options import DigitsOptions

TEST_SHARE = 5
"""One of so many samples is in the test split."""


class Digits:
    """The digits as a `Task`; `source` and `cache` are not needed.

    Inputs are float32[64] in 0 to 1, outputs the digit.
    """

    def __init__(
        self, source: Path | None, cache: Path, options: DigitsOptions
    ) -> None:
        del source, cache
        self._options = options

    def groups(self) -> Sequence[str]:
        """Return ``part-0`` to ``part-<parts - 1>``."""
        return [f"part-{index}" for index in range(self._options.parts)]

    def load(self, split: str, groups: Sequence[str] | None) -> Sequence[Example]:
        """Return the examples of a split, ordered by their place in the data set.

        Args:
            split: "train", or "test", which is the same for every group.
            groups: Only these groups; None means all.

        Raises:
            SpecError: No such split or group, or the groups have no example.
        """
        for group in groups or ():
            self._check(group)
        if split == "test":
            chosen = self._test
        elif split == "train":
            names = self.groups() if groups is None else set(groups)
            chosen = sorted(i for name in names for i in self._parts[name])
        else:
            raise SpecError(f"Digits have the splits 'train', 'test'; not {split!r}.")
        if not chosen:
            raise SpecError(
                f"The digits in {', '.join(groups or ())} have no {split} example.",
                hint="Raise `alpha` of the task's options, or lower `parts`.",
            )
        inputs, labels = self._data
        return [Example("digits", inputs[i], int(labels[i])) for i in chosen]

    def _check(self, group: str) -> None:
        known = self.groups()
        if group not in known:
            guess = nearest(group, known)
            raise SpecError(
                f"The digits have no group {group!r}.",
                hint=(f"Did you mean {guess!r}? " if guess else "")
                + f"Known: {', '.join(known)}.",
            )

    @cached_property
    def _data(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        table = np.loadtxt(_file(), delimiter=",", dtype=np.float32)
        return table[:, :-1] / np.float32(16), table[:, -1].astype(np.int64)

    @cached_property
    def _test(self) -> list[int]:
        # By hash and not by index: the labels of neighbours follow a pattern.
        size = len(self._data[1])
        ranked = sorted(range(size), key=lambda i: uniform("digits", "test", i))
        return sorted(ranked[: size // TEST_SHARE])

    @cached_property
    def _parts(self) -> dict[str, list[int]]:
        generator = np.random.default_rng(self._options.seed)
        labels = self._data[1].copy()
        labels[self._test] = -1
        parts: dict[str, list[int]] = {name: [] for name in self.groups()}
        alphas = np.full(self._options.parts, self._options.alpha)
        for label in range(10):
            indices = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(alphas)
            cuts = np.rint(np.cumsum(shares)[:-1] * len(indices)).astype(np.int64)
            for part, chosen in zip(
                parts.values(), np.split(indices, cuts), strict=True
            ):
                part.extend(int(index) for index in chosen)
        return parts


def _file() -> Path:
    """Find the file without importing scikit-learn, which takes a second."""
    spec = find_spec("sklearn")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise SpecError(
        "The task 'digits' needs the data that scikit-learn ships; it is not "
        "installed here.",
        hint="Run `pip install scikit-learn` in the facility's environment.",
    )
