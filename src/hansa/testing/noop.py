"""A trainer that hardly trains, on no data: what is left is what Hansa costs.

It reads a version, changes one number of each tensor a step, and delivers an update, as
every trainer does. `hansa bench round` measures with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hansa.core.errors import SpecError
from hansa.worker.arrays import read_arrays, write_arrays
from hansa.worker.base import (
    Array,
    Correction,
    Example,
    Report,
    TaskPlugin,
    TensorReader,
    TrainerContext,
    TrainerPlugin,
)

_STATE: Final = "state.safetensors"
_STEP: Final = 2.0**-10  # A power of two: exact in every floating format.

Count = Annotated[int, Field(ge=1)]


class NoopModelOptions(BaseModel):
    """The size of the model.

    Attributes:
        parameters: Numbers of all tensors together.
        largest: Most numbers of one tensor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: Count = 1000
    largest: Count = 1_000_000


class NoopWorkOptions(BaseModel):
    """What every trainer has to have.

    Attributes:
        batch: Samples per step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: Count = 1


class NoopTaskOptions(BaseModel):
    """There are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoopTask:
    """One example, for training and for tests; the `Task`."""

    def __init__(
        self, source: Path | None, cache: Path, options: NoopTaskOptions
    ) -> None:
        del source, cache, options

    def groups(self) -> Sequence[str]:
        """Return the only group."""
        return ["all"]

    def load(self, split: str, groups: Sequence[str] | None) -> Sequence[Example]:
        """Return the only example."""
        del split, groups
        return [Example("noop", 0, 0)]


class Noop:
    """The `Trainer`: tensors ``layer.0000`` and so on, of zeros at first."""

    def __init__(self, context: TrainerContext) -> None:
        if not isinstance(context.model_options, NoopModelOptions):
            raise TypeError("model_options must be NoopModelOptions")
        self._meter = context.meter
        sizes = _sizes(context.model_options)
        fresh = context.assets is None
        self._tensors: dict[str, Array] = {
            name: np.zeros(size if fresh else 0, np.float32)
            for name, size in sizes.items()
        }

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield all tensors, in the dtype that they were read in."""
        yield from sorted(self._tensors.items())

    def load(self, read: TensorReader) -> None:
        """Take all tensors as they are read."""
        self._tensors = {name: read(name) for name in self._tensors}

    def correct(self, correction: Correction) -> None:
        """Refuse corrections: there is no gradient.

        Raises:
            SpecError: There is one.
        """
        if correction != Correction():
            raise SpecError("The trainer 'noop' has no gradient that can be corrected.")

    def step(self, batch: Sequence[Example], of: int | None = None) -> float:
        """Add a little to the first number of each tensor; the loss is always 1."""
        del of
        with self._meter.step():
            for tensor in self._tensors.values():
                first: NDArray[Any] = tensor[:1]
                first += tensor.dtype.type(_STEP)
            self._meter.count(samples=len(batch))
        return 1.0

    def evaluate(self, examples: Iterable[Example]) -> Mapping[str, float]:
        """Return a loss of 1 for the only task."""
        return {example.task: 1.0 for example in examples}

    def report(self) -> Report:
        """Return what was measured, if the order asks for that."""
        words = {"device": "cpu"}
        return Report(words=words, numbers=self._meter.numbers())

    def save(self, directory: Path) -> None:
        """Write all tensors into one file."""
        write_arrays(directory / _STATE, self._tensors.items)

    def restore(self, directory: Path) -> None:
        """Read what `save` wrote."""
        self._tensors = dict(read_arrays(directory / _STATE))


def _sizes(options: NoopModelOptions) -> dict[str, int]:
    """Return names and sizes of tensors that have so many numbers together."""
    count = -(-options.parameters // options.largest)
    whole, rest = divmod(options.parameters, count)
    return {f"layer.{i:04d}": whole + (i < rest) for i in range(count)}


TRAINER = TrainerPlugin(
    model_options=NoopModelOptions,
    work_options=NoopWorkOptions,
    target="hansa.testing.noop:Noop",
)
TASK = TaskPlugin(options=NoopTaskOptions, target="hansa.testing.noop:NoopTask")
