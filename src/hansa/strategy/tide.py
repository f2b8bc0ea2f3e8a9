"""Tide: nobody waits for a queue, and those who wait in one are spoken for. Ours.

Facilities come and go as their queues let them. Tide makes the best of who is there:

* **No barriers.** Every update makes a version at once; those that come while one is
  being made are in the next. Then its facility gets the next order, so an allocation
  never idles for others, and nobody waits for a queue.
* **Memory by control variates.** An order adds ``sum_j p_j (g_j - g_k)`` to every
  gradient of its local steps: what the others want and k does not. So a facility steps
  towards the optimum of all, not its own, even while it is alone for hours. Many local
  steps do no harm, and the fixed point is the optimum of the sum, whoever is absent.
* **Differences are remembered, not gradients.** g_j and g_k are mean gradients of
  updates that belong together: the last two when one of them came while the other was
  there. While j is away its pair with k stays as it is, although g_k goes on: as long
  as curvatures are alike the difference of gradients does not change with x. An old
  gradient beside a new one would drive k beyond the optimum.
* **Models are mixed, not differences added.** With the local model
  ``x_k = x_base + d_k`` and q_k, the weight of k among those who are at work or have
  come in since x_base::

      x <- (1 - sum_k q_k) x + sum_k q_k x_k

  All local models estimate the same step, so the mean counts, not the sum; and a mean
  can't overshoot, however stale a base is. When all come together, it is FedAvg's.
* **Weights by data.** ``p_k`` is in proportion to the training examples of a facility
  where they are told (``examples`` among the metrics of its update), else equal: how
  fast a facility is, or how long its queue, decides nothing.

With an update d_k of steps whose rates sum up to L_k, taken under the control u_k,
``g_k = -d_k / L_k - u_k``: two terms. Stored are, as states of a version,
``gradient-NAME`` = g_k of those who came and ``correction-NAME``, the sum above, of
those who have no order. Only plain SGD reports L_k (as ``lr_sum``). A facility with
another optimizer is mixed in all the same; it gets no control, and is not remembered.

The control variates are SCAFFOLD's (Karimireddy et al., arXiv 1910.06378, algorithm 1,
option II), remembered as in SAGA (Defazio et al., arXiv 1407.0202) and MIFA (Gu et al.,
arXiv 2106.04159); that differences stay as they are is what SVRG and DANE build on
(Shamir et al., arXiv 1312.7853). The mixing is FedAsync's (Xie et al., arXiv
1903.03934, algorithm 1) without its discount. Their union, the pairs and the weights
q_k are ours; docs/tide.md has what each is worth.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from pydantic import Field

from hansa.core.commands import Aggregate, StateSum, Term
from hansa.core.events import UpdateArrived
from hansa.core.ids import state_ref, update_ref
from hansa.strategy.arrivals import ArrivalOptions, Arrivals, Work
from hansa.strategy.base import StrategyContext
from hansa.strategy.mixing import mixed
from hansa.strategy.scaffold import LEAST_RATE, correction

EXAMPLES = "examples"

Sum = dict[str, float]
"""Coefficients by reference."""

Pairs = dict[tuple[str, str], dict[str, str]]
"""By two facilities in order of their names: references of their gradients."""


class TideOptions(ArrivalOptions):
    """Keys of `strategy: {name: tide}`; none needs tuning."""

    control: bool = Field(
        True,
        description="correct local steps by what the others, absent ones too, were "
        "last seen to want; costs a second transfer of the model's size each order",
    )


@dataclass(slots=True)
class _Seen:
    """What is stored of the facilities.

    Attributes:
        gradients: References of their last mean gradients.
        pairs: Gradients that belong together.
        corrections: References of what their next orders are corrected by.
    """

    gradients: dict[str, str] = field(default_factory=dict)
    pairs: Pairs = field(default_factory=dict)
    corrections: dict[str, str] = field(default_factory=dict)

    def learn(self, news: _Seen) -> None:
        """Take in what is newer."""
        self.gradients |= news.gradients
        self.pairs |= news.pairs
        self.corrections |= news.corrections

    def references(self) -> set[str]:
        """Return all that must stay in the store."""
        paired = {ref for refs in self.pairs.values() for ref in refs.values()}
        return paired | {*self.gradients.values(), *self.corrections.values()}


class Tide(Arrivals):
    """The Tide state machine; see the module's text."""

    Options = TideOptions
    name = "tide"

    def __init__(self, options: TideOptions, context: StrategyContext) -> None:
        super().__init__(options, context, names_bases=True)
        self._options = options
        self._batch: list[UpdateArrived] = []
        self._examples: dict[str, float] = {}
        self._seen = _Seen()
        self._coming = _Seen()
        self._given: dict[str, str] = {}
        self._controls: dict[str, str] = {}
        self._entered: dict[str, int] = {}

    # When a version is made.

    def take(self, update: UpdateArrived) -> None:
        """See `Arrivals.take`: a version at once, or as soon as the last is out."""
        if (told := update.metrics.get(EXAMPLES, 0.0)) > 0:
            self._examples[update.facility] = told
        if control := self._given.pop(update.facility, ""):
            self._controls[update.assignment] = control
        self._batch.append(update)
        if self.upcoming == self.newest:
            self._close()

    def begin(self, at: float) -> None:
        """See `Arrivals.begin`: what was made with the version may be used."""
        self._seen.learn(self._coming)
        self._coming = _Seen()
        self._controls = self.still_held(self._controls)
        self._close()

    def _close(self) -> None:
        batch, self._batch = self._batch, []
        self.release(batch)

    # What it is made of.

    def aggregate(self, updates: Sequence[UpdateArrived]) -> Aggregate:
        """See `Arrivals.aggregate`."""
        weights = self._weights()
        self._entered |= {update.facility: self.newest + 1 for update in updates}
        whole = self._whole(weights, min(update.base for update in updates))
        shares = [weights[update.facility] / whole for update in updates]
        return Aggregate(
            version=self.newest + 1,
            terms=mixed(self.newest, updates, shares),
            states=self._states(updates, weights) if self._options.control else (),
        )

    def _whole(self, weights: Mapping[str, float], base: int) -> float:
        """Return the weight of all who have a say in a version."""
        return fsum(weights[name] for name in self.places if self._is_in(name, base))

    def _is_in(self, facility: str, base: int) -> bool:
        """Tell whether a facility is at work, or came in since a version."""
        place = self.places[facility]
        is_at_work = place.open is not None and place.began is not None
        return is_at_work or self._entered.get(facility, 0) > base

    def _weights(self) -> dict[str, float]:
        """Return p_k, up to a factor; who has told nothing counts as the mean."""
        told = self._examples
        mean = fsum(told.values()) / len(told) if told else 1.0
        return {name: told.get(name, mean) for name in self.places}

    def _states(
        self, updates: Sequence[UpdateArrived], weights: Mapping[str, float]
    ) -> tuple[StateSum, ...]:
        """Return the new gradients, and corrections for those who have no order."""
        fresh = self._gradients(updates)
        version = self.newest + 1
        coming = self._coming = _Seen(
            gradients={name: state_ref(_gradient(name), version) for name in fresh}
        )
        known = self._seen.gradients | coming.gradients
        for update in updates:
            if update.facility in fresh:
                coming.pairs |= self._pairs(update, known)
        pairs = self._seen.pairs | coming.pairs
        new = {ref: fresh[name] for name, ref in coming.gradients.items()}
        states = [_state(_gradient(name), total) for name, total in fresh.items()]
        for name in known if len(known) > 1 else ():
            if self.places[name].open is None:
                coming.corrections[name] = state_ref(correction(name), version)
                total = _difference(name, pairs, new, {n: weights[n] for n in known})
                states.append(_state(correction(name), total))
        return tuple(states)

    def _gradients(self, updates: Sequence[UpdateArrived]) -> dict[str, Sum]:
        """Return the mean gradients of those who came, as sums."""
        found = {}
        for update in updates:
            rate = update.metrics.get("lr_sum", 0.0)
            control = self._controls.pop(update.assignment, "")
            if rate >= LEAST_RATE:
                found[update.facility] = {update_ref(update.assignment): -1.0 / rate}
                if control:
                    found[update.facility][control] = -1.0
        return found

    def _pairs(self, update: UpdateArrived, known: Mapping[str, str]) -> Pairs:
        """Return the new pairs with those who were there while it was made."""
        own, base = update.facility, update.base
        return {
            (own, name) if own < name else (name, own): {own: known[own], name: ref}
            for name, ref in known.items()
            if name != own
            and (self._is_in(name, base) or not self._has_pair(own, name))
        }

    def _has_pair(self, one: str, other: str) -> bool:
        return (min(one, other), max(one, other)) in self._seen.pairs

    # Orders.

    def plan(self, facility: str, at: float) -> Work:
        """See `Arrivals.plan`."""
        self._given[facility] = self._seen.corrections.get(facility, "")
        return Work(control=self._given[facility])

    # What is kept.

    def holds(self) -> Collection[str]:
        """Return also the newest gradients and corrections, and what was used."""
        return {
            *super().holds(),
            *self._seen.references(),
            *self._controls.values(),
            *filter(None, self._given.values()),
        }

    def rest(self) -> Collection[UpdateArrived]:
        """See `Arrivals.rest`."""
        return tuple(self._batch)

    def drop_rest(self) -> None:
        """See `Arrivals.drop_rest`."""
        self._batch = []

    def counted(self) -> Mapping[str, Any]:
        """See `Arrivals.counted`."""
        return {
            "remembered": dict(sorted(self._seen.gradients.items())),
            "weights": self._weights(),
        }


def _difference(
    facility: str,
    pairs: Pairs,
    new: Mapping[str, Sum],
    weights: Mapping[str, float],
) -> Sum:
    """Return ``sum_j p_j (g_j - g_k)`` over all that are known.

    Args:
        facility: Who is k.
        pairs: References of the gradients that belong together.
        new: What those are made of that are not stored yet.
        weights: p_j up to a factor, of all that are known.
    """
    whole = fsum(weights.values())
    total: Sum = {}
    for pair, refs in pairs.items():
        if facility in pair:
            for name, ref in refs.items():
                other = pair[pair[0] == facility]
                share = weights[other] / whole * (1.0 if name == other else -1.0)
                for part, factor in new.get(ref, {ref: 1.0}).items():
                    total[part] = total.get(part, 0.0) + share * factor
    return total


def _gradient(facility: str) -> str:
    return f"gradient-{facility}"


def _state(name: str, total: Sum) -> StateSum:
    terms = tuple(Term(ref=ref, coefficient=factor) for ref, factor in total.items())
    return StateSum(name=name, terms=terms)
