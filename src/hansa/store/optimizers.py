"""Optimizers on the server: a step from the base version, with moments on disk.

The delta that a reducer gives is a pseudo-gradient (Reddi et al., arXiv 2003.00295,
algorithm 2); `hansa.core.recipes` has the formulas. All is fp32, in place, by pieces
that stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from hansa.core.errors import UpdateRejected
from hansa.core.recipes import Adagrad, Adam, Momentum, Optimizer, Plain, Reducer, Yogi
from hansa.store.dtypes import BLOCK, Array
from hansa.store.folder import TensorFolder, reader
from hansa.store.reducers import delta, reduced
from hansa.store.sums import Terms, WeightedSum, check_fits
from hansa.store.tensorfile import TensorInfo
from hansa.store.values import BlockMaker, Values

FIRST: Final = "optimizer-first"
"""State of the first moment, m."""

SECOND: Final = "optimizer-second"
"""State of the second moment, v."""

_PIECE: Final = 32 * 1024  # numbers; five pieces of fp32 fit a core's cache


def optimised(
    fixed: Terms,
    updates: Terms,
    reducer: Reducer,
    optimizer: Optimizer,
    moments: Mapping[str, Path],
    base: Path,
) -> Values:
    """Return the fixed part plus the optimizer's step; the moments are its states.

    Args:
        fixed: Coefficients and directories of versions and states.
        updates: Coefficients and directories of updates.
        reducer: How the updates become one delta.
        optimizer: Makes the step.
        moments: Directories of the base version's moments by name of the state;
            those that are left out begin anew.
        base: Directory of the version that gives names and shapes.

    Raises:
        StoreError: There are too few updates for the reducer, or a coefficient is not
            finite in fp32.
        IntegrityError: A term or a moment does not fit the base, or a file is
            damaged.
    """
    if isinstance(optimizer, Plain):
        return reduced(fixed, updates, reducer, base)
    weights, step = WeightedSum(fixed, base), delta(updates, reducer, base)
    return _Optimised(weights, step, rule(optimizer), moments, base)


class Rule(Protocol):
    """The arithmetic of one optimizer, in place.

    Attributes:
        begin: The states' names in order, and the number that each begins with.
    """

    begin: Mapping[str, float]

    def step(
        self, weights: Array, delta: Array, moments: Sequence[Array], spare: Array
    ) -> None:
        """Move weights and moments on; `delta` and `spare` are left with anything."""
        ...


class _Momentum:
    """See `hansa.core.recipes.Momentum`."""

    begin: Mapping[str, float] = {FIRST: 0.0}

    def __init__(self, optimizer: Momentum) -> None:
        self._optimizer = optimizer

    def step(
        self, weights: Array, delta: Array, moments: Sequence[Array], spare: Array
    ) -> None:
        (first,) = moments
        first *= self._optimizer.momentum
        first += delta
        if self._optimizer.nesterov:
            np.multiply(first, self._optimizer.momentum, out=spare)
            spare += delta
            spare *= self._optimizer.lr
        else:
            np.multiply(first, self._optimizer.lr, out=spare)
        weights += spare


class _Adaptive:
    """See `hansa.core.recipes.Adagrad`, `Adam` and `Yogi`: they differ in v."""

    def __init__(self, optimizer: Adagrad | Adam | Yogi) -> None:
        self._optimizer = optimizer
        self.begin: Mapping[str, float] = {FIRST: 0.0, SECOND: optimizer.tau**2}

    def step(
        self, weights: Array, delta: Array, moments: Sequence[Array], spare: Array
    ) -> None:
        first, second = moments
        first *= self._optimizer.beta1
        np.multiply(delta, 1 - self._optimizer.beta1, out=spare)
        first += spare
        np.square(delta, out=delta)
        self._square(second, delta, spare)
        if not isfinite(second.max(initial=0.0)):
            # The step would be 0, now and for ever, and nobody would see it.
            raise UpdateRejected(
                "The optimizer's second moment is not finite: the square of a delta "
                "is too large for fp32.",
                hint="Look at the updates' losses: one of them has probably diverged; "
                "leave it out, or lower its learning rate.",
            )
        np.sqrt(second, out=spare)
        spare += self._optimizer.tau
        np.divide(first, spare, out=spare)
        spare *= self._optimizer.lr
        weights += spare

    def _square(self, second: Array, square: Array, spare: Array) -> None:
        """Take D^2 into v."""
        match self._optimizer:
            case Adagrad():
                second += square
            case Adam(beta2=beta2):
                second *= beta2
                square *= 1 - beta2
                second += square
            case Yogi(beta2=beta2):
                np.subtract(second, square, out=spare)
                np.sign(spare, out=spare)
                square *= 1 - beta2
                spare *= square
                second -= spare


def rule(optimizer: Momentum | Adagrad | Adam | Yogi) -> Rule:
    """Return the arithmetic of an optimizer; all dtypes of floats will do."""
    if isinstance(optimizer, Momentum):
        return _Momentum(optimizer)
    return _Adaptive(optimizer)


class _Optimised:
    """The numbers of a version and of its moments."""

    def __init__(
        self,
        weights: Values,
        step: Values,
        rule: Rule,
        moments: Mapping[str, Path],
        base: Path,
    ) -> None:
        self.base = weights.base
        self.states = tuple(rule.begin)
        self._weights, self._step, self._rule = weights, step, rule
        self._moments = {name: moments[name] for name in self.states if name in moments}
        self._names = frozenset(check_fits(list(self._moments.values()), base))

    def maker(self) -> BlockMaker:
        """Return a new maker, for one thread."""
        folders = {name: reader(path) for name, path in self._moments.items()}
        return _OptimisedMaker(
            self._weights.maker(), self._step.maker(), self._rule, folders, self._names
        )


class _OptimisedMaker:
    def __init__(
        self,
        weights: BlockMaker,
        delta: BlockMaker,
        rule: Rule,
        folders: Mapping[str, TensorFolder],
        names: frozenset[str],
    ) -> None:
        self._weights, self._delta = weights, delta
        self._rule, self._folders, self._names = rule, folders, names
        self._moments = {name: np.empty(BLOCK, np.float32) for name in rule.begin}
        self._spare = np.empty(_PIECE, np.float32)

    def make(self, info: TensorInfo, start: int, count: int) -> Sequence[Array]:
        """Return the new weights and moments; see `BlockMaker`."""
        weights = self._weights.make(info, start, count)[0]
        if info.name not in self._names:  # Nobody trains it, so it has no moments.
            return [weights, *(moment[:count] for moment in self._moments.values())]
        delta = self._delta.make(info, start, count)[0]
        moments = [
            self._moment(name, info.name, start, count) for name in self._moments
        ]
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, count, _PIECE):
                piece = slice(first, min(first + _PIECE, count))
                self._rule.step(
                    weights[piece],
                    delta[piece],
                    [moment[piece] for moment in moments],
                    self._spare[: piece.stop - piece.start],
                )
        return [weights, *moments]

    def _moment(self, state: str, name: str, start: int, count: int) -> Array:
        block = self._moments[state][:count]
        folder = self._folders.get(state)
        if folder is None:
            block.fill(self._rule.begin[state])
        else:
            folder.read_floats(name, start, block)
        return block
