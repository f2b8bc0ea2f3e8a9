"""No training: times and costs only."""

from __future__ import annotations

from collections.abc import Mapping

from hansa.simulator.training.base import LocalWork, Trained, Vector
from hansa.simulator.training.work import batch_of
from hansa.spec.federation import FederationSpec


class Untrained:
    """The `Training` of a federation whose model nobody looks at.

    Args:
        spec: The federation.
        size: Bytes of a version.
        update_size: Bytes of an update; None: as many.

    Raises:
        SpecError: A facility's `work` has no batch.
    """

    def __init__(
        self, spec: FederationSpec, size: int, update_size: int | None = None
    ) -> None:
        self.version_bytes = size
        self.update_bytes = size if update_size is None else update_size
        self._batches = {name: batch_of(spec, name) for name in spec.facilities}

    def initial(self) -> Vector | None:
        """Return None."""
        return None

    def train(self, facility: str, base: Vector | None, work: LocalWork) -> Trained:
        """Count the samples; some strategies also divide by the sum of the rates."""
        del base
        return Trained(
            delta=None,
            samples=work.steps * self._batches[facility],
            metrics={"lr_sum": work.steps * work.lr_scale},
        )

    def losses(self, weights: Vector | None) -> Mapping[str, float]:
        """Return nothing."""
        del weights
        return {}
