"""What the surrogate problems share: who has how much of which data.

Facility k has a share n_k / n of all examples and a mixture p_k of the classes; what
all of them minimise together is the mean over all examples. The loss that is reported
is ``(F(w) - F*) / (F(w_0) - F*)``: 1 for version 0, 0 at the optimum.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np

from hansa.core.rng import derive_seed
from hansa.simulator.training.base import Vector
from hansa.spec.federation import FacilitySpec, FederationSpec
from hansa.spec.simulation import SurrogateTraining

TASK = "all"
"""Name of the one task whose loss is reported."""


def shares(spec: FederationSpec) -> dict[str, float]:
    """Return the share of all training examples that each facility has."""
    counts = examples(spec)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def examples(spec: FederationSpec) -> dict[str, float]:
    """Return how many training examples each facility has; 1 where nobody says.

    A facility whose `simulation.samples` is null has as many as the others have in
    the mean.
    """
    told = {
        name: facility.simulation.samples if facility.simulation else None
        for name, facility in spec.facilities.items()
    }
    mean = fmean([count for count in told.values() if count is not None] or [1])
    return {name: float(count or mean) for name, count in told.items()}


def mixtures(
    spec: FederationSpec, problem: SurrogateTraining, seed: int
) -> dict[str, Vector]:
    """Return the shares of the classes [classes] at each facility.

    What `simulation.classes` of a facility tells counts. All others are drawn from a
    Dirichlet distribution with the parameter `alpha` for each class (Hsu et al., arXiv
    1909.06335), each facility by its name: another facility in the file changes nothing
    for it. ``iid``: all classes alike.
    """
    return {
        name: _mixture(name, facility, problem, seed)
        for name, facility in spec.facilities.items()
    }


def _mixture(
    name: str, facility: FacilitySpec, problem: SurrogateTraining, seed: int
) -> Vector:
    classes = problem.classes
    told = facility.simulation.classes if facility.simulation else None
    if told is not None:
        mixture = np.zeros(classes)
        mixture[list(told)] = 1 / len(set(told))
        return mixture
    if problem.alpha == "iid":
        return np.full(classes, 1 / classes)
    draw = generator(seed, "mixture", name)
    return draw.dirichlet(np.full(classes, problem.alpha))


def generator(seed: int, *words: str) -> np.random.Generator:
    """Return a new generator for one purpose of a surrogate problem."""
    return np.random.default_rng(derive_seed("surrogate", seed, *words))
