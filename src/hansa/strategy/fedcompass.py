"""FedCompass: facilities get as many steps as let them arrive together.

Li et al., "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client
Devices using a Computing Power Aware Scheduler" (arXiv 2309.14675). What is followed
rule by rule is the code that its authors published with it, APPFL/FedCompass
(`compass_scheduler`, `fedcompass_aggregator`); no equation of the text is cited.
Facilities are put into arrival groups. With S_k the seconds per step of facility k:

* *Join*: for a group that is expected at T_a the facility would do
  ``floor((T_a - now) / S_k)`` steps. Of the groups for which that lies in
  [`min_steps`, `max_steps`] it joins the one with the most steps.
* *Create*: else it founds a group, to arrive when the fastest of a group that is not
  over will have done `max_steps` once more, at ``T_max + S_f * max_steps``. Of the
  groups for which that takes at most `max_steps`, the one with the most steps counts
  (at least `min_steps`); without any it does `max_steps`. Then
  ``T_a = now + Q * S_k`` and ``T_max = now + latest_factor * Q * S_k``.
* A group is aggregated when all have come, or at T_max with those that have. Then its
  members get their orders, the fastest first. Who comes later gets an order at once;
  its update waits for the next version that a group makes.

With the weights ``p_k = 1/N`` of N facilities, a group's version is

    ``w <- w + alpha sum_k p_k s(tau_k) d_k``.

A facility's first update, and any other that is in no group, makes a version by itself.
Defaults as in the authors' example: 20 and 100 steps, a latest arrival factor of 1.5,
alpha 0.9, polynomial s with a = 0.5 (there the exponent lacks its minus sign).

Other than the authors' code: the first order has `min_steps`, as its speed is unknown
(theirs begins with `max_steps`). tau_k counts versions since the base, which the job
binds when it starts (theirs: when the order is given). S_k is the median of time in
steps over steps, with decay (theirs: a moving average of all the time between order and
answer, with 0.9 for the newest), so a queue does not make a machine slow. The queue has
an estimate of its own: an arrival is expected at
``now + queue wait + start-up + Q * S_k + transfer``, where the wait is the
`queue_quantile` of those seen. ``queue_aware: false`` leaves all but ``Q * S_k`` out.
Members that are lost or fail leave their group, and a group that ends with nobody there
still takes in what had come late, so nothing waits for ever.

``compat: appfl`` is APPFL 1.12's merge, ``x <- (1 - sum_k a_k) x + sum_k a_k x_k`` of
local models with ``a_k = alpha s(tau_k) / N``; tau_k counts from the version that was
newest when the order was given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, inf
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hansa.core.commands import Aggregate
from hansa.core.events import UpdateArrived
from hansa.strategy.arrivals import Arrivals, Work
from hansa.strategy.base import StrategyContext
from hansa.strategy.mixing import added, mixed
from hansa.strategy.staleness import DiscountOptions


class FedCompassOptions(DiscountOptions):
    """Keys of `strategy: {name: fedcompass}`."""

    min_steps: int = Field(
        20, ge=1, strict=True, description="fewest local steps of an order"
    )
    max_steps: int = Field(
        100, ge=1, strict=True, description="most local steps of an order"
    )
    latest_factor: float = Field(
        1.5,
        ge=1,
        description="a group is closed after this multiple of the time in which it is "
        "expected",
    )
    alpha: float = Field(0.9, gt=0, le=1, description="what all facilities count")
    queue_aware: bool = Field(
        True, description="expect arrivals after queue wait, start-up and transfer too"
    )
    queue_quantile: float = Field(
        0.5, gt=0, lt=1, description="share of the queue waits seen that is planned for"
    )
    compat: Literal["appfl"] | None = Field(
        None, description="`appfl`: merge as APPFL 1.12 does, not as described here"
    )

    @model_validator(mode="after")
    def _steps_are_in_order(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"'min_steps' ({self.min_steps}) is larger than 'max_steps' "
                f"({self.max_steps})"
            )
        return self


@dataclass(slots=True)
class Group:
    """Facilities that are to arrive together.

    Attributes:
        expected: When they should be there, T_a.
        latest: When those that are not there are late, T_max.
        coming: Those who are still expected.
        arrived: Updates that have come in time.
    """

    expected: float
    latest: float
    coming: set[str] = field(default_factory=set)
    arrived: list[UpdateArrived] = field(default_factory=list)

    @property
    def members(self) -> list[str]:
        """Who is expected or has come."""
        return sorted({*self.coming, *(update.facility for update in self.arrived)})


class FedCompass(Arrivals):
    """The FedCompass state machine; see the module's text."""

    Options = FedCompassOptions
    name = "fedcompass"

    def __init__(self, options: FedCompassOptions, context: StrategyContext) -> None:
        super().__init__(options, context, names_bases=options.compat is not None)
        self._options = options
        self._groups: dict[int, Group] = {}
        self._group_of: dict[str, int] = {}
        self._founded = 0
        self._overdue: list[UpdateArrived] = []
        self._given: dict[str, int] = {}

    # Arrivals.

    def take(self, update: UpdateArrived) -> None:
        """See `Arrivals.take`."""
        self._given[update.assignment] = self.places[update.facility].given
        number = self._group_of.pop(update.facility, None)
        if number is None:
            self.release([update])
            return
        group = self._groups.get(number)
        if group is None or update.at > group.latest:
            self._overdue.append(update)
            self.free(update.facility)
        else:
            group.arrived.append(update)
        self._leave(number, update.facility)

    def begin(self, at: float) -> None:
        """See `Arrivals.begin`; what was dropped as too stale needs no note."""
        self._given = self.still_held(self._given)

    def gone(self, facility: str, at: float) -> None:
        """See `Arrivals.gone`."""
        number = self._group_of.pop(facility, None)
        if number is not None:
            self._leave(number, facility)

    def fired(self, timer: str, at: float) -> None:
        """See `Arrivals.fired`: a group is at its latest time."""
        for number in [n for n in self._groups if _timer(n) == timer]:
            self._close(number)

    def _leave(self, number: int, facility: str) -> None:
        group = self._groups.get(number)
        if group is None:
            return
        group.coming.discard(facility)
        if not group.coming:
            self._close(number)

    def _close(self, number: int) -> None:
        """End a group; those who still come will find it gone, and so are late."""
        group = self._groups.pop(number)
        self.clear_timer(_timer(number))
        self.release([*self._overdue, *group.arrived])
        self._overdue = []

    # Versions.

    def aggregate(self, updates: Sequence[UpdateArrived]) -> Aggregate:
        """See `Arrivals.aggregate`."""
        options = self._options
        whole = options.alpha / len(self.places)
        shares = [whole * options.discount(self._tau(update)) for update in updates]
        merge = added if options.compat is None else mixed
        terms = merge(self.newest, updates, shares)
        return Aggregate(version=self.newest + 1, terms=terms)

    def _tau(self, update: UpdateArrived) -> int:
        given = self._given.pop(update.assignment, self.newest)
        if self._options.compat is None:
            return self.staleness(update)
        return self.newest - given

    # Orders.

    def ranked(self, facilities: list[str]) -> list[str]:
        """See `Arrivals.ranked`: the fastest first, so that others can join it."""
        return sorted(facilities, key=lambda name: (self._speed(name) or 0.0, name))

    def plan(self, facility: str, at: float) -> Work:
        """See `Arrivals.plan`."""
        speed = self._speed(facility)
        if speed is None:
            return Work(steps=self._options.min_steps)
        before = self._overhead(facility)
        number, steps = self._join(at + before, speed)
        if number is None:
            steps = self._steps_of_founder(at, before, speed)
            number = self._found(at, before + steps * speed)
        group = self._groups[number]
        group.coming.add(facility)
        self._group_of[facility] = number
        return Work(steps=steps)

    def _join(self, start: float, speed: float) -> tuple[int | None, int]:
        """Return the group for which most steps can be done from `start`, and those."""
        best, most = None, self._options.min_steps
        for number, group in self._groups.items():
            steps = floor((group.expected - start) / speed)
            if most <= steps <= self._options.max_steps:
                best, most = number, steps
        return best, most

    def _steps_of_founder(self, at: float, before: float, speed: float) -> int:
        """Return the steps that bring a founder in when others arrive once more."""
        options, found = self._options, -inf
        for group in self._groups.values():
            if at >= group.latest:
                continue
            again = min(
                self._overhead(name) + options.max_steps * pace
                for name in group.members
                if (pace := self._speed(name)) is not None
            )
            steps = floor((group.latest + again - at - before) / speed)
            if steps <= options.max_steps:
                found = max(found, steps)
        return (
            options.max_steps if found == -inf else max(options.min_steps, int(found))
        )

    def _found(self, at: float, takes: float) -> int:
        self._founded += 1
        latest = takes * self._options.latest_factor
        self._groups[self._founded] = Group(expected=at + takes, latest=at + latest)
        self.set_timer(_timer(self._founded), latest)
        return self._founded

    def _speed(self, facility: str) -> float | None:
        """Return seconds per step; None before the first update."""
        return self.places[facility].estimates.seconds_per_step.median

    def _overhead(self, facility: str) -> float:
        """Return the seconds of an order that are not steps, as far as is known."""
        if not self._options.queue_aware:
            return 0.0
        seen = self.places[facility].estimates
        wait = seen.queue_wait.quantile(self._options.queue_quantile)
        return (
            (wait or 0.0) + (seen.startup.median or 0.0) + (seen.transfer.median or 0.0)
        )

    # What is kept.

    def rest(self) -> Collection[UpdateArrived]:
        """See `Arrivals.rest`."""
        arrived = [u for group in self._groups.values() for u in group.arrived]
        return [*self._overdue, *arrived]

    def drop_rest(self) -> None:
        """See `Arrivals.drop_rest`."""
        self._overdue = []
        self._groups.clear()

    def counted(self) -> Mapping[str, Any]:
        """See `Arrivals.counted`."""
        return {
            "groups": {
                str(number): {
                    "expected": group.expected,
                    "latest": group.latest,
                    "coming": sorted(group.coming),
                }
                for number, group in self._groups.items()
            },
            "overdue": [update.assignment for update in self._overdue],
        }


def _timer(group: int) -> str:
    return f"group-{group:04d}"
