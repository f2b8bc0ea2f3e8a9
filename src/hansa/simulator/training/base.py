"""What training is to a simulation: vectors in, vectors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hansa.core.records import record

Vector = NDArray[np.float64]
"""All numbers of a model, one after the other."""


@record
class LocalWork:
    """What a facility's job does with the version that it has bound.

    Attributes:
        assignment: The order's id.
        round: Number of the strategy's round.
        steps: Optimizer steps done (fewer than ordered when it was cut short).
        seen: Samples of the facility's data stream that came before them.
        lr_scale: Factor on the facility's learning rate.
        proximal: mu of the proximal term.
        control: Added to every gradient; None: nothing.
    """

    assignment: str
    round: int
    steps: int
    seen: int = 0
    lr_scale: float = 1.0
    proximal: float = 0.0
    control: Vector | None = None


@record
class Trained:
    """What came of it.

    Attributes:
        delta: The update, ``w_local - w_base``; None where nothing is trained.
        samples: Training examples seen.
        metrics: Numbers by name, as a worker reports them: ``train_loss``, ``lr_sum``,
            ``examples``.
    """

    delta: Vector | None
    samples: int
    metrics: dict[str, float] = field(default_factory=dict)


class Training(Protocol):
    """Stands for the training of all facilities of one federation."""

    @property
    def version_bytes(self) -> int:
        """Bytes of a version on the line."""
        ...

    @property
    def update_bytes(self) -> int:
        """Bytes of an update on the line."""
        ...

    def initial(self) -> Vector | None:
        """Return version 0; None where nothing is trained."""
        ...

    def train(self, facility: str, base: Vector | None, work: LocalWork) -> Trained:
        """Return what some steps at a facility make of a version.

        Deterministic: equal arguments give equal bytes, whatever was trained before.
        """
        ...

    def losses(self, weights: Vector | None) -> Mapping[str, float]:
        """Return the test loss of a model by task; empty where nothing is trained."""
        ...
