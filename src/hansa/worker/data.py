"""The endless stream of training batches, a pure function of the step's index.

Sample number p of the stream (p = 0, 1, ...) is the (p mod n)-th of the (p div n)-th
permutation of the n examples. Step s of an order takes the samples from
``seen + s * batch`` on, where `seen` counts the samples that the facility's updates up
to then were made of. So the rounds of a facility walk on through its data whatever
their steps are and whichever it misses, and a job that is restarted, also on another
number of ranks, needs no saved state to see the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
        seen: Samples of the stream that come before the order's.

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
        seen: int = 0,
    ) -> None:
        if not examples:
            raise WorkerError(
                f"Facility {facility!r} has no training example for this order.",
                hint="Look at `data` of the facility and at `tasks` in its site.yaml.",
            )
        self._examples = examples
        self._batch = batch
        self._seed = derive_seed("batches", seed, facility)
        self._seen = seen
        self._permutation = lru_cache(maxsize=2)(self._draw)

    @property
    def examples(self) -> int:
        """How many different examples there are."""
        return len(self._examples)

    def __getitem__(self, step: int) -> list[Example]:
        """Return the examples of a step of this order, 0 for the first."""
        return self.part(step, 0, 1)[0]

    def part(self, step: int, rank: int, world: int) -> tuple[list[Example], int]:
        """Return one rank's examples of a step, and how many all ranks have.

        The parts follow each other in the order of the ranks and differ by at most one
        example, so put together they are the same for any number of ranks. With more
        ranks than samples in a step some parts are empty.

        Args:
            step: Step of this order, 0 for the first.
            rank: Whose part, 0 to `world` - 1.
            world: How many ranks share the step.
        """
        where = self.indices(step, rank, world)
        return [placed(self._examples[at], at) for at in where], self._batch

    def indices(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Return which of the examples `part` returns, as they were given."""
        start = self._seen + step * self._batch
        begin, end = (self._batch * which // world for which in (rank, rank + 1))
        return [self._at(position) for position in range(start + begin, start + end)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self._examples))
        return int(self._permutation(epoch)[place])

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.default_rng(derive_seed(self._seed, epoch))
        return generator.permutation(len(self._examples))


def placed(example: Example, index: int) -> Example:
    """Return an example that says which it is, by its index if by nothing better."""
    return example if example.place else replace(example, place=f"number {index}")
