"""The endless stream of training batches, a pure function of the step's index.

Sample number p of the stream (p = 0, 1, ...) is the (p mod n)-th of the (p div n)-th
permutation of the n examples. Step s of an order takes the samples from
``(first + s) * batch`` on, where `first` is the order's own or ``(round - 1) * steps``.
So the rounds of a facility walk on through its data, and a restarted job needs no saved
state to see the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import WorkerError
from hansa.core.rng import derive_seed
from hansa.worker.base import Example


class Batches:
    """The batches of one order.

    Args:
        examples: All training examples, in a fixed order.
        batch: Samples per step.
        seed: The run's seed.
        facility: Two facilities permute differently.
        first: Index of the order's first step in the facility's stream.

    Raises:
        WorkerError: There is no example.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch: int,
        *,
        seed: int,
        facility: str,
        first: int = 0,
    ) -> None:
        if not examples:
            raise WorkerError(
                f"Facility {facility!r} has no training example for this order.",
                hint="Look at `data` of the facility and at `tasks` in its site.yaml.",
            )
        self._examples = examples
        self._batch = batch
        self._seed = derive_seed("batches", seed, facility)
        self._first = first
        self._permutation = lru_cache(maxsize=2)(self._draw)

    @property
    def examples(self) -> int:
        """How many different examples there are."""
        return len(self._examples)

    def __getitem__(self, step: int) -> list[Example]:
        """Return the examples of a step of this order, 0 for the first."""
        start = (self._first + step) * self._batch
        return [
            self._examples[self._at(position)]
            for position in range(start, start + self._batch)
        ]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self._examples))
        return int(self._permutation(epoch)[place])

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.default_rng(derive_seed(self._seed, epoch))
        return generator.permutation(len(self._examples))
