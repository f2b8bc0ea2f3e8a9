"""What the surrogates read of a facility's `work`, and say when it diverges."""

from __future__ import annotations

from typing import Final

from hansa.core.errors import SpecError, WorkerError
from hansa.spec.federation import FederationSpec

LARGEST: Final = 3.4e38
"""What is above this is infinite to a real trainer, which works in fp32."""


def batch_of(spec: FederationSpec, facility: str) -> int:
    """Return the samples of one step at a facility.

    Raises:
        SpecError: `work` has no batch.
    """
    return int(_number(spec, facility, "batch"))


def rate_of(spec: FederationSpec, facility: str) -> float:
    """Return a facility's learning rate.

    Raises:
        SpecError: `work` has none.
    """
    return _number(spec, facility, "lr")


def _number(spec: FederationSpec, facility: str, key: str) -> float:
    value = spec.facilities[facility].work.options.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise SpecError(
        f"The simulated training needs a number in facilities.{facility}.work.{key}; "
        f"there is {value!r}.",
        hint=f"Set `work.{key}`, or choose `simulation.training: none` or `real`.",
    )


def diverged(loss: float) -> WorkerError:
    """Return the error of a job whose loss is no number any more."""
    return WorkerError(
        f"The training loss became {loss}.",
        hint="Lower the learning rate (`work.lr`) of this facility.",
    )
