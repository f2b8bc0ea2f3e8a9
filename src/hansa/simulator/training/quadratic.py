"""A non-IID quadratic problem, many SGD steps at once in closed form.

Class c has the loss ``f_c(w) = 1/2 (w - b_c)' A_c (w - b_c)`` with a diagonal A_c of
its own, so facility k has ``f_k = sum_c p_kc f_c``: again a quadratic, with curvature
``h_k = sum_c p_kc A_c`` and optimum ``b_k = sum_c p_kc A_c b_c / h_k``. Curvatures
differ, so many local steps lead FedAvg to another point than the optimum of the sum, as
they do with real non-IID data (Li et al., arXiv 1907.02189, theorem 4).

A step is ``w <- w - lr (h (w - b) + mu (w - w_0) + c + s z)`` with z standard normal, a
linear recursion in each coordinate: with ``q = h + mu`` and ``r = 1 - lr q``, K steps
from w_0 move it by ::

    -lr (1 + r + ... + r^(K-1)) (h (w_0 - b) + c)
    + lr s sqrt(1 + r^2 + ... + r^2(K-1)) z

One example's gradient is off by `noise` over all coordinates together, so with d of
them ``s = noise / sqrt(batch d)``. The optima are ``b_c = (m + z_c / sqrt(A_c)) /
sqrt(d)`` with m and z_c standard normal: what a class lacks at version 0 does not
depend on d, and where a class is flat its optimum lies far away. So a facility alone
ends, with alpha 0.1, at a loss near that of version 0, and above it if the condition is
large, as real facilities do that lack most classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np

from hansa.core.rng import derive_seed
from hansa.simulator.training.base import LocalWork, Trained, Vector
from hansa.simulator.training.surrogate import (
    TASK,
    examples,
    generator,
    mixtures,
    shares,
)
from hansa.simulator.training.work import LARGEST, batch_of, diverged, rate_of
from hansa.spec.federation import FederationSpec
from hansa.spec.simulation import SurrogateTraining

_NORMALS: Final = 1 << 16  # numbers that the noise of all orders is cut from
_PLANS: Final = 4096  # kinds of work whose factors are remembered


@dataclass(frozen=True, slots=True)
class Facility:
    """One facility's part of the problem.

    Attributes:
        curvature: h_k [dimensions].
        optimum: b_k [dimensions].
        rate: Learning rate.
        batch: Samples of a step.
    """

    curvature: Vector
    optimum: Vector
    rate: float
    batch: int


@dataclass(frozen=True, slots=True)
class _Steps:
    """What K steps from w_0 do, by coordinate.

    Attributes:
        move: Times the gradient at w_0 it is the way of the mean.
        spread: Standard deviation of the noise of all steps together.
        inverse: ``1 / q``.
        first: Mean of r^t over the steps t = 0 ... K - 1.
        second: Mean of r^2t.
        own: ``h * second``, for steps without a proximal term.
        rates: Sum of the learning rates.
    """

    move: Vector
    spread: Vector
    inverse: Vector
    first: Vector
    second: Vector
    own: Vector
    rates: float


class Quadratic:
    """The `Training` of a quadratic problem.

    Args:
        spec: The federation.
        problem: What to draw.
        seed: Seed of the problem and of the noise.

    Raises:
        SpecError: A facility's `work` has no batch or no learning rate.
    """

    def __init__(
        self, spec: FederationSpec, problem: SurrogateTraining, seed: int
    ) -> None:
        self.version_bytes = self.update_bytes = problem.bytes
        self.facilities = _facilities(spec, problem, seed)
        self._size, self._noise, self._seed = problem.dimensions, problem.noise, seed
        self.curvature, self.optimum = _together(self.facilities, shares(spec))
        self._examples = examples(spec)
        excess = 0.5 * float((self.curvature * self.optimum**2).sum())
        self._per_excess = 1 / excess
        self._weights = 0.5 / excess * self.curvature
        normals = generator(seed, "noise").standard_normal(_NORMALS + self._size)
        self._normals: Vector = normals
        self._plans: dict[tuple[str, int, float, float], _Steps] = {}

    def initial(self) -> Vector:
        """Return zeros."""
        return np.zeros(self._size)

    def train(self, facility: str, base: Vector | None, work: LocalWork) -> Trained:
        """Do all steps at once.

        The training loss that is reported is the facility's own, in the unit of the
        common one, and the mean over the steps without their noise.

        Raises:
            WorkerError: They diverge.
        """
        if base is None:
            raise TypeError("a quadratic problem needs a vector")
        part, plan = self.facilities[facility], self._plan(facility, work)
        start = base - part.optimum
        gradient = part.curvature * start
        if work.control is not None:
            gradient = gradient + work.control
        if work.control is None and not work.proximal:
            squares = plan.own * start * start
        else:
            squares = part.curvature * _mean_square(start, gradient, plan)
        loss = 0.5 * float(np.add.reduce(squares)) * self._per_excess
        if not loss < LARGEST:
            raise diverged(loss)
        place = derive_seed(self._seed, work.assignment) % _NORMALS
        noise = self._normals[place : place + self._size]
        return Trained(
            delta=plan.move * gradient + plan.spread * noise,
            samples=work.steps * part.batch,
            metrics={
                "train_loss": loss,
                "lr_sum": plan.rates,
                "examples": self._examples[facility],
            },
        )

    def losses(self, weights: Vector | None) -> Mapping[str, float]:
        """Return the loss of all facilities together."""
        if weights is None:
            raise TypeError("a quadratic problem needs a vector")
        off = weights - self.optimum
        return {TASK: float(np.add.reduce(self._weights * off * off))}

    def _plan(self, facility: str, work: LocalWork) -> _Steps:
        key = (facility, work.steps, work.lr_scale, work.proximal)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = _steps(self.facilities[facility], work, self._noise)
            self._plans[key] = plan
        return plan


def _together(
    facilities: Mapping[str, Facility], weights: Mapping[str, float]
) -> tuple[Vector, Vector]:
    """Return curvature and optimum of the weighted sum of the facilities' losses."""
    parts = [(weights[name], one) for name, one in facilities.items()]
    curvature = np.sum([share * one.curvature for share, one in parts], axis=0)
    pulls = [share * one.curvature * one.optimum for share, one in parts]
    return curvature, np.sum(pulls, axis=0) / curvature


def _facilities(
    spec: FederationSpec, problem: SurrogateTraining, seed: int
) -> dict[str, Facility]:
    classes, size = problem.classes, problem.dimensions
    draw = generator(seed, "quadratic")
    exponents = np.linspace(0, 1, size) if size > 1 else np.zeros(1)
    curvatures = np.stack(
        [problem.condition ** -draw.permutation(exponents) for _ in range(classes)]
    )
    apart = draw.standard_normal((classes, size)) / np.sqrt(curvatures)
    optima = (draw.standard_normal(size) + apart) / sqrt(size)
    found = {}
    for name, mixture in mixtures(spec, problem, seed).items():
        curvature = mixture @ curvatures
        found[name] = Facility(
            curvature=curvature,
            optimum=mixture @ (curvatures * optima) / curvature,
            rate=rate_of(spec, name),
            batch=batch_of(spec, name),
        )
    return found


def _steps(part: Facility, work: LocalWork, noise: float) -> _Steps:
    """Return what some steps at a facility do; raises WorkerError if they diverge."""
    rate, steps = part.rate * work.lr_scale, work.steps
    curvature = part.curvature + work.proximal
    ratio = 1 - rate * curvature
    with np.errstate(over="ignore", invalid="ignore"):
        first = _sum_of_powers(ratio, steps)
        second = _sum_of_powers(ratio * ratio, steps)
    if not float(second.max()) < LARGEST:
        raise diverged(float("inf"))
    return _Steps(
        move=-rate * first,
        spread=rate * noise * np.sqrt(second / (part.batch * second.size)),
        inverse=1 / curvature,
        first=first / steps,
        second=second / steps,
        own=part.curvature * second / steps,
        rates=rate * steps,
    )


def _sum_of_powers(ratio: Vector, count: int) -> Vector:
    """Return ``1 + r + ... + r^(count - 1)``, by doubling; exact for every r."""
    total, power = np.zeros_like(ratio), np.ones_like(ratio)
    for bit in f"{count:b}":
        total = total * (1 + power)
        power = power * power
        if bit == "1":
            total = total + power
            power = power * ratio
    return total


def _mean_square(start: Vector, gradient: Vector, plan: _Steps) -> Vector:
    """Return the mean of ``(w_t - b)^2`` over the steps, without their noise.

    ``w_t - b = u + r^t v`` with ``v = gradient / q`` and ``u = w_0 - b - v``.
    """
    falling = plan.inverse * gradient
    rest = start - falling
    mean: Vector = rest * (rest + 2 * plan.first * falling)
    return mean + plan.second * falling * falling
