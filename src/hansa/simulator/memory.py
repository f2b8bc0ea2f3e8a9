"""The store of a simulation: versions, updates and states as vectors in memory.

What an aggregation means is what `hansa.core.recipes` says; `hansa.store` is the same
for files. Numbers are fp64 here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256
from math import floor, fsum
from typing import Final

import numpy as np

from hansa.core.commands import Aggregate, Term
from hansa.core.errors import StoreError, UpdateRejected
from hansa.core.ids import state_ref, update_ref, version_ref
from hansa.core.recipes import (
    LINEAR,
    PLAIN,
    ClippedMean,
    Krum,
    Linear,
    Median,
    Plain,
    Reducer,
    TrimmedMean,
)
from hansa.simulator.training.base import Vector
from hansa.store.optimizers import rule

_LARGEST: Final = float(np.finfo(np.float32).max) ** 2
"""A version whose squared length is above this has a number that fp32 can't hold."""


class MemoryStore:
    """All versions, updates and states that a run still needs.

    Vectors that it takes in or gives out must not be changed.

    Args:
        initial: Version 0; None: nothing is trained, and all vectors are None.
    """

    __slots__ = ("_made_of", "_states", "_updates", "_values", "newest")

    def __init__(self, initial: Vector | None) -> None:
        self.newest = 0
        self._values: dict[str, Vector] = {}
        if initial is not None:
            self._values[version_ref(0)] = initial
        self._made_of: dict[int, tuple[str, ...]] = {0: ()}
        self._updates: dict[str, str] = {}
        self._states: dict[str, int] = {}

    def version(self, number: int) -> Vector | None:
        """Return a version; None where nothing is trained.

        Raises:
            StoreError: It was never there, or was removed.
        """
        return self._value(version_ref(number)) if self._values else None

    def state(self, ref: str) -> Vector | None:
        """Return a state; zeros if `ref` is empty, None where nothing is trained.

        Raises:
            StoreError: It was never there, or was removed.
        """
        if not self._values:
            return None
        if not ref:
            return np.zeros_like(self._values[version_ref(0)])
        return self._value(ref)

    def references(self) -> tuple[str, ...]:
        """Return all that is there, as references of versions, updates and states."""
        return tuple(self._values)

    def updates(self) -> tuple[str, ...]:
        """Return the assignments whose updates are there."""
        return tuple(self._updates.values())

    def put_update(self, assignment: str, delta: Vector | None) -> None:
        """Take in the update that an assignment delivered."""
        if delta is not None:
            ref = update_ref(assignment)
            self._values[ref] = delta
            self._updates[ref] = assignment

    def aggregate(self, command: Aggregate) -> str:
        """Make a version and its states.

        Returns:
            The sha256 of the version's bytes, in hex; empty where nothing is trained.

        Raises:
            StoreError: A reference is unknown or was removed, no term is a version, or
                there are too few updates for the reducer.
            UpdateRejected: A number of the result is not finite in fp32.
        """
        number = command.version
        if not self._values:
            self.newest = number
            return ""
        base = _base(command)
        states = {
            state_ref(total.name, number): self._sum(total.terms)
            for total in command.states
        }
        if command.reducer == LINEAR and command.optimizer == PLAIN:
            made = self._sum(command.terms)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                made = self._optimised(command, base, states)
        _check_finite(number, made)
        if states:
            self._values |= states
            self._states |= dict.fromkeys(states, number)
        self._values[version_ref(number)] = made
        self._made_of[number] = _updates(command)
        self.newest = number
        return sha256(made.data).hexdigest()

    def collect(
        self,
        needed: Collection[int],
        held: Collection[str],
        spent: Collection[str],
        newest: int = 1,
    ) -> None:
        """Forget what no later sum will read; see `Store.collect_garbage`.

        Args:
            needed: Versions that stay, as those that running jobs train from.
            held: References that stay: a strategy may still name them.
            spent: Assignments whose updates no sum will name again.
            newest: How many of the newest versions stay.
        """
        made_of = self._made_of
        last = self.newest - newest
        gone = [
            number
            for number in made_of
            if number <= last
            and number not in needed
            and version_ref(number) not in held
        ]
        loose = {ref for number in gone for ref in made_of[number]}
        for number in gone:
            if number:
                del made_of[number]
                del self._values[version_ref(number)]
        if self._updates:
            self._forget_updates(loose, held, spent)
        for ref in [r for r, n in self._states.items() if n not in made_of]:
            if ref not in held:
                del self._values[ref], self._states[ref]

    def sha256(self, number: int) -> str:
        """Return the hash of a version's bytes, in hex; empty where nothing is trained.

        Raises:
            StoreError: It was never there, or was removed.
        """
        made = self.version(number)
        return "" if made is None else sha256(made.data).hexdigest()

    def _forget_updates(
        self, loose: Collection[str], held: Collection[str], spent: Collection[str]
    ) -> None:
        used = {ref for refs in self._made_of.values() for ref in refs}
        doomed = [
            ref
            for ref, assignment in self._updates.items()
            if (assignment in spent or ref in loose)
            and ref not in used
            and ref not in held
        ]
        for ref in doomed:
            del self._updates[ref], self._values[ref]

    def _value(self, ref: str) -> Vector:
        try:
            return self._values[ref]
        except KeyError:
            raise StoreError(
                f"There is no {ref} in the simulation's store, or not any more.",
                hint="A strategy must hold what it may still name.",
            ) from None

    def _sum(self, terms: Sequence[Term]) -> Vector:
        total: Vector | None = None
        for term in terms:
            part, factor = self._value(term.ref), term.coefficient
            if factor != 1.0:
                part = factor * part
            total = part if total is None else total + part
        if total is None:
            return np.zeros_like(self._values[version_ref(0)])
        return total

    def _optimised(
        self, command: Aggregate, base: str, states: dict[str, Vector]
    ) -> Vector:
        """Return the new version, and add the optimizer's moments to the states."""
        updates = [t for t in command.terms if t.ref.startswith("update/")]
        fixed = [t for t in command.terms if not t.ref.startswith("update/")]
        made, delta = self._sum(fixed), self._reduced(command.reducer, updates)
        if isinstance(command.optimizer, Plain):
            return made + delta
        arithmetic, made, delta = rule(command.optimizer), made.copy(), delta.copy()
        moments, number = [], base.removeprefix("version/")
        for name, begin in arithmetic.begin.items():
            old = self._values.get(state_ref(name, int(number)))
            moment = np.full_like(made, begin) if old is None else old.copy()
            states[state_ref(name, command.version)] = moment
            moments.append(moment)
        arithmetic.step(made, delta, moments, np.empty_like(made))
        return made

    def _reduced(self, reducer: Reducer, terms: Sequence[Term]) -> Vector:
        if isinstance(reducer, Linear):
            return self._sum(terms)
        if not terms:
            raise StoreError("There is no update to take a median or a mean of.")
        factors = np.array([term.coefficient for term in terms])
        updates = np.stack([self._value(term.ref) for term in terms])
        if isinstance(reducer, ClippedMean):
            cut: Vector = factors * _shortening(updates, reducer.norm) @ updates
            return cut
        return fsum(factors) * _mean_of_some(updates, reducer)


def _base(command: Aggregate) -> str:
    """Return the reference of the first version among the terms."""
    for term in command.terms:
        if term.ref.startswith("version/"):
            return term.ref
    raise StoreError(
        f"No term of version {command.version} is a version; updates are deltas."
    )


def _updates(command: Aggregate) -> tuple[str, ...]:
    """Return the updates that a version and its states are made of."""
    terms = command.terms
    for total in command.states:
        terms += total.terms
    return tuple(term.ref for term in terms if term.ref.startswith("update/"))


def _shortening(updates: Vector, norm: float) -> Vector:
    """Return the factors that cut updates [K, dimensions] to a length."""
    lengths = np.sqrt(np.square(updates).sum(axis=1))
    factors: Vector = np.minimum(1.0, norm / np.where(lengths > 0, lengths, norm))
    return factors


def _mean_of_some(updates: Vector, reducer: Median | TrimmedMean | Krum) -> Vector:
    """Return the mean of those of [K, dimensions] that a reducer keeps."""
    count = len(updates)
    match reducer:
        case Median():
            kept = np.sort(updates, axis=0)[(count - 1) // 2 : count // 2 + 1]
        case TrimmedMean(trim=trim):
            off = floor(trim * count + 1e-9)  # 0.29 * 100 is a little less than 29.
            kept = np.sort(updates, axis=0)[off : count - off]
        case Krum():
            kept = updates[_closest(updates, reducer)]
    if not len(kept):
        raise StoreError(
            f"A {reducer.name} leaves nothing of {count} updates.",
            hint="Set `trim` to less than 0.5.",
        )
    mean: Vector = kept.mean(axis=0)
    return mean


def _closest(updates: Vector, krum: Krum) -> list[int]:
    """Return which updates Krum averages; of equals the first."""
    count, least = len(updates), max(2 * krum.byzantine + 3, krum.keep)
    if count < least:
        raise StoreError(
            f"Krum against {krum.byzantine} arbitrary updates that keeps {krum.keep} "
            f"needs {least} updates; there are {count}.",
            hint="Lower `byzantine` or `keep`, or wait for more updates (`quorum`).",
        )
    products = updates @ updates.T
    squares = np.diagonal(products)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, np.inf)  # Nobody is a neighbour of itself.
    nearest = np.sort(distances, axis=1)[:, : count - krum.byzantine - 2]
    order = np.argsort(nearest.sum(axis=1), kind="stable")
    return sorted(int(index) for index in order[: krum.keep])


def _check_finite(number: int, made: Vector) -> None:
    if not made.dot(made) < _LARGEST:
        raise UpdateRejected(
            f"Version {number} has numbers that are not finite in fp32.",
            hint="Look at the updates' losses: one of them has probably diverged; "
            "lower its learning rate.",
        )
