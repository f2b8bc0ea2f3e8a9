"""A softmax regression on drawn classes, trained step by step in numpy.

Class c is a Gaussian cloud around a mean of its own; facilities differ in how much
they have of each class. The objective, which is also what the reported loss measures,
is over all training examples of all facilities: the mean cross-entropy plus
``L2 / 2 |W|^2``. It is strictly convex, and its minimum is found once for each
problem, by Newton's method with conjugate gradients (Nocedal and Wright, "Numerical
Optimization", 2nd edition, algorithm 7.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

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

L2: Final = 1e-3

EXAMPLES: Final = 500
"""Training examples of a facility in the mean; those that have more data than others
have more of these."""

APART: Final = 0.5
"""Standard deviation of the classes' means around their centre, by input.

That of the centre is 1, as it is within a class. An input whose mean is not zero is
what local steps lower the scores of absent classes by, as in real data.
"""

_NEWTON_STEPS: Final = 50
_PRECISION: Final = 1e-10  # of the gradient's length at the minimum
_LEAST: Final = 1e-300  # of a probability whose logarithm is taken


@dataclass(frozen=True, slots=True)
class Data:
    """Examples.

    Attributes:
        inputs: [examples, dimensions].
        labels: One-hot [classes, examples].
    """

    inputs: Vector
    labels: Vector


@dataclass(frozen=True, slots=True)
class _Question:
    """All that a problem is drawn from.

    Attributes:
        kinds: Name, share of all examples, and shares of the classes, by facility.
        dimensions: Inputs.
        condition: Largest over smallest variance of an input.
        seed: Of the draw.
    """

    kinds: tuple[tuple[str, float, tuple[float, ...]], ...]
    dimensions: int
    condition: float
    seed: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A drawn problem.

    Attributes:
        parts: Each facility's examples.
        together: All of them.
        optimum: The weights [classes, dimensions] that minimise the objective.
        lowest: The objective there.
    """

    parts: Mapping[str, Data]
    together: Data
    optimum: Vector
    lowest: float


class SoftmaxRegression:
    """The `Training` of a softmax regression; version 0 is zero.

    Args:
        spec: The federation.
        problem: What to draw.
        seed: Seed of the data.

    Raises:
        SpecError: A facility's `work` has no batch or no learning rate.
    """

    def __init__(
        self, spec: FederationSpec, problem: SurrogateTraining, seed: int
    ) -> None:
        self.version_bytes = self.update_bytes = problem.bytes
        sizes, kinds = shares(spec), mixtures(spec, problem, seed)
        self.problem = _drawn(
            _Question(
                kinds=tuple(
                    (name, sizes[name], tuple(kinds[name].tolist())) for name in kinds
                ),
                dimensions=problem.dimensions,
                condition=problem.condition,
                seed=seed,
            )
        )
        self._shape = (problem.classes, problem.dimensions)
        zero = np.zeros(self._shape)
        self._first = objective(self.problem.together, zero) - self.problem.lowest
        self._streams = {
            name: _Stream(self.problem.parts[name], batch_of(spec, name))
            for name in spec.facilities
        }
        self._rates = {name: rate_of(spec, name) for name in spec.facilities}
        self._examples = examples(spec)

    def initial(self) -> Vector:
        """Return zeros."""
        return np.zeros(self._shape).reshape(-1)

    def train(self, facility: str, base: Vector | None, work: LocalWork) -> Trained:
        """Do the steps of minibatch SGD, on from where the facility's stream is.

        Raises:
            WorkerError: They diverge.
        """
        if base is None:
            raise TypeError("a softmax regression needs a vector")
        stream, rate = self._streams[facility], self._rates[facility] * work.lr_scale
        start = base.reshape(self._shape)
        with np.errstate(over="ignore", invalid="ignore"):
            weights, loss = _descend(start, stream, work, rate)
            delta = weights - start
        if not float(np.abs(delta).max()) < LARGEST:
            raise diverged(float("inf"))
        return Trained(
            delta=delta.reshape(-1),
            samples=work.steps * stream.batch,
            metrics={
                "train_loss": loss,
                "lr_sum": rate * work.steps,
                "examples": self._examples[facility],
            },
        )

    def losses(self, weights: Vector | None) -> Mapping[str, float]:
        """Return the normalised objective."""
        if weights is None:
            raise TypeError("a softmax regression needs a vector")
        found = objective(self.problem.together, weights.reshape(self._shape))
        return {TASK: (found - self.problem.lowest) / self._first}


class _Stream:
    """A facility's batches, round and round through its examples."""

    __slots__ = ("_inputs", "_labels", "_size", "batch")

    def __init__(self, data: Data, batch: int) -> None:
        self._size, self.batch = len(data.inputs), batch
        around = np.arange(self._size + batch) % self._size
        # Repeated at the end, so that every batch is one slice.
        self._inputs, self._labels = data.inputs[around], data.labels[:, around]

    def at(self, seen: int) -> tuple[Vector, Vector]:
        """Return inputs and labels of the step after so many samples."""
        start = seen % self._size
        part = slice(start, start + self.batch)
        return self._inputs[part], self._labels[:, part]


def _descend(
    start: Vector, stream: _Stream, work: LocalWork, rate: float
) -> tuple[Vector, float]:
    """Return the weights after the steps, and the batches' mean loss."""
    # w - lr (g + L2 w + mu (w - w_0) + c)  =  keep w - lr g + push
    keep, scale = 1 - rate * (L2 + work.proximal), rate / stream.batch
    push = rate * work.proximal * start
    if work.control is not None:
        push = push - rate * work.control.reshape(start.shape)
    weights, gradient = start.copy(), np.empty_like(start)
    hits = np.empty((work.steps, stream.batch))
    error, corrected = np.empty((len(start), stream.batch)), bool(push.any())
    for step in range(work.steps):
        inputs, labels = stream.at(work.seen + step * stream.batch)
        np.dot(weights, inputs.T, out=error)
        error -= np.maximum.reduce(error, axis=0)
        np.exp(error, out=error)
        error /= np.add.reduce(error, axis=0)
        np.add.reduce(error * labels, axis=0, out=hits[step])
        error -= labels
        np.dot(error, inputs, out=gradient)
        gradient *= scale
        weights *= keep
        weights -= gradient
        if corrected:
            weights += push
    return weights, -float(np.log(np.maximum(hits, _LEAST)).mean())


def objective(data: Data, weights: Vector) -> float:
    """Return mean cross-entropy plus ``L2 / 2 |W|^2`` of weights [classes, inputs]."""
    scores = np.dot(weights, data.inputs.T)
    scores -= scores.max(axis=0)
    own = float(np.vdot(scores, data.labels))
    total = float(np.log(np.exp(scores).sum(axis=0)).sum())
    entropy = (total - own) / len(data.inputs)
    return entropy + L2 / 2 * float(np.vdot(weights, weights))


@lru_cache(maxsize=16)
def _drawn(question: _Question) -> Problem:
    """Draw the data and find the optimum."""
    size, seed, kinds = question.dimensions, question.seed, question.kinds
    classes = len(kinds[0][2])
    scale = question.condition ** (-0.5 * np.linspace(0, 1, size))
    draw = generator(seed, "softmax")
    means = APART * draw.standard_normal((classes, size)) + draw.standard_normal(size)
    parts = {}
    for name, share, mixture in kinds:
        draw = generator(seed, "examples", name)
        count = max(1, round(share * EXAMPLES * len(kinds)))
        labels = draw.choice(classes, count, p=mixture)
        inputs = scale * (means[labels] + draw.standard_normal((count, size)))
        parts[name] = Data(inputs, np.eye(classes)[:, labels])
    together = Data(
        np.concatenate([part.inputs for part in parts.values()]),
        np.concatenate([part.labels for part in parts.values()], axis=1),
    )
    optimum = minimum(together)
    return Problem(parts, together, optimum, objective(together, optimum))


def minimum(data: Data) -> Vector:
    """Return the weights [classes, dimensions] that minimise the objective."""
    weights = np.zeros((len(data.labels), data.inputs.shape[1]))
    for _ in range(_NEWTON_STEPS):
        shares = np.dot(weights, data.inputs.T)
        shares = np.exp(shares - shares.max(axis=0))
        shares /= shares.sum(axis=0)
        slope = np.dot(shares - data.labels, data.inputs) / len(data.inputs)
        slope += L2 * weights
        length = float(np.linalg.norm(slope))
        if length < _PRECISION:
            break
        step = _newton_step(data.inputs, shares, slope, min(0.1, length) * length)
        weights = _along(data, weights, step, float(np.vdot(slope, step)))
    return weights


def _newton_step(
    inputs: Vector, shares: Vector, slope: Vector, precision: float
) -> Vector:
    """Solve ``H step = -slope`` by conjugate gradients."""
    step = np.zeros_like(slope)
    rest, way = -slope, -slope
    left = float(np.vdot(rest, rest))
    for _ in range(2 * slope.size):
        moved = shares * np.dot(way, inputs.T)
        moved -= shares * moved.sum(axis=0)
        curved = np.dot(moved, inputs) / len(inputs) + L2 * way
        length = left / float(np.vdot(way, curved))
        step = step + length * way
        rest = rest - length * curved
        before, left = left, float(np.vdot(rest, rest))
        if left <= precision**2:
            break
        way = rest + left / before * way
    return step


def _along(data: Data, weights: Vector, step: Vector, slope: float) -> Vector:
    """Return the weights after as much of a step as lowers the objective."""
    before, part = objective(data, weights), 1.0
    while part > 1e-6:
        tried: Vector = weights + part * step
        # Close to the minimum rounding hides what is won.
        if objective(data, tried) <= before + 1e-4 * part * slope + 1e-14:
            return tried
        part /= 2
    return weights
