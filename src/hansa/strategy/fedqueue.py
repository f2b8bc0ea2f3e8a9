"""FedQueue: rounds of fixed length, with local work fitted to each facility's queue.

Li et al., "FedQueue: Queue-Aware Federated Learning for Cross-Facility HPC Training"
(arXiv 2605.02125): per-facility queue prediction, work budget, scaling of the learning
rate, admission and aggregation (section 4.1). The formulas are those of the authors'
code, as two versions of it in APPFL have them: `examples/QFL` ("the example") and
release 1.12 ("1.12"). Where they differ, what we took is said below; no equation of the
text is cited.

A round lasts `t_sync` seconds. For facility k with the expected queue wait q_k and c_k
seconds per step:

* *Budget*: ``J_k = t_sync - q_k - theta`` and ``E_k = floor(J_k / c_k)`` steps, at
  least `min_steps`. The learning rate is scaled by ``E_min / E_k``, within
  [`lr_clip_low`, `lr_clip_high`], so that all make about the same progress.
* *Admission*: an update is in time if its order waited at most
  ``q_k + alpha * t_sync`` in the queue. Others are carried over into the next round.
* *Aggregation* when all facilities at work have delivered, and at the latest after
  ``(1 + tolerance) * t_sync``; of those admitted and carried over, or, if there are
  none, of the late ones:

      ``x <- x + sum_k (phi(tau_k) p_k / sum_j phi(tau_j) p_j) d_k``

  where phi is constant, harmonic ``1 / (1 + beta tau)`` or exponential
  ``exp(-beta tau)``, and p_k are equal or the shares of samples.

Adding differences to the newest model, and clipping, are the example's (in 1.12's model
mode local models replace it, and it clips nothing). The timer, the use of late updates
when nobody was admitted, and a q_k from before the wait that is judged are 1.12's (in
the example all are waited for, and q_k has seen that wait). phi is 1.12's (the
example's harmonic one has beta 1). Defaults: t_sync 3600 s, theta 60 s, alpha 0.2,
tolerance 0.15 and 20 steps at least from 1.12, clip 0.25 to 4 from the example; phi is
harmonic with beta 0.5 (in 1.12 constant unless set).

What differs from both, and why:

* q_k is the median (`queue_quantile`) of the waits of orders, with decay, by the
  scheduler's records, and c_k the median of time in steps over steps (theirs: moving
  averages with 0.5 for the newest, q_k from a guess of 0 or 2 s, and the example's c_k
  from a warm-up run). There is no guess before the first observation: the first order
  has the facility's ``work.steps``, and its queue wait decides nothing. Known start-up
  and transfer times count as queue does.
* E_k is also held within what the facility's walltime allows (less start-up and theta).
* A facility whose queue alone leaves no room for `min_steps` gets `min_steps` and
  arrives late: its update is carried over, with staleness.
* Whoever was late goes on at once. An order that is given in the middle of a round is
  planned for the round's end if `min_steps` fit, else for the end of the next.
* tau_k counts versions since the base, which the job binds when it starts (theirs:
  rounds since the order's).
* A round without any update is prolonged by `t_sync`: its timer always runs. Nobody
  waits for a facility that is lost.

``compat: appfl`` is APPFL 1.12's aggregation: the local models replace the global one,
``x <- sum_k w_k x_k`` with the same weights; tau_k counts from the version that was
newest when the order was given, and learning rates are not clipped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import floor, fsum
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hansa.core.commands import Aggregate
from hansa.core.events import UpdateArrived
from hansa.core.units import Seconds
from hansa.strategy.arrivals import ArrivalOptions, Arrivals, Work
from hansa.strategy.base import StrategyContext
from hansa.strategy.mixing import added, mixed
from hansa.strategy.options import Weights
from hansa.strategy.staleness import Decline, decline


class FedQueueOptions(ArrivalOptions):
    """Keys of `strategy: {name: fedqueue}`."""

    t_sync: Seconds = Field(3600.0, gt=0, description="how long a round lasts")
    theta: Seconds = Field(
        60.0, description="part of a round that is left free, for what is not foreseen"
    )
    alpha: float = Field(
        0.2,
        ge=0,
        description="an update is late if it waited longer than expected by more than "
        "this share of t_sync",
    )
    tolerance: float = Field(
        0.15, ge=0, description="share of t_sync by which a round may last longer"
    )
    min_steps: int = Field(
        20, ge=1, strict=True, description="fewest local steps of an order"
    )
    lr_clip_low: float = Field(
        0.25, gt=0, le=1, description="smallest factor on a learning rate"
    )
    lr_clip_high: float = Field(
        4.0, ge=1, description="largest factor on a learning rate"
    )
    queue_quantile: float = Field(
        0.5, gt=0, lt=1, description="share of the queue waits seen that is planned for"
    )
    weights: Weights = Field(
        "equal", description="weigh updates all the same, or by samples seen"
    )
    staleness: Decline = Field(
        "harmonic",
        description="`constant`: 1; `harmonic`: 1 / (1 + beta tau); `exponential`: "
        "exp(-beta tau)",
    )
    beta: float = Field(0.5, ge=0, description="how fast old updates lose weight")
    compat: Literal["appfl"] | None = Field(
        None, description="`appfl`: aggregate as APPFL 1.12 does, not as described here"
    )

    @model_validator(mode="after")
    def _leaves_time_for_work(self) -> Self:
        if self.t_sync <= self.theta:
            raise ValueError(
                f"'t_sync' ({self.t_sync:g} s) must be longer than 'theta' "
                f"({self.theta:g} s)"
            )
        return self


class FedQueue(Arrivals):
    """The FedQueue state machine; see the module's text."""

    Options = FedQueueOptions
    name = "fedqueue"

    def __init__(self, options: FedQueueOptions, context: StrategyContext) -> None:
        super().__init__(options, context, names_bases=options.compat is not None)
        self._options = options
        self._round = 0
        self._is_open = False
        self._began = 0.0
        self._end = 0.0
        self._expected: set[str] = set()
        self._deadlines: dict[str, float | None] = {}
        self._given: dict[str, int] = {}
        self._admitted: list[UpdateArrived] = []
        self._late: list[tuple[int, UpdateArrived]] = []

    # Rounds.

    def begin(self, at: float) -> None:
        """See `Arrivals.begin`: a round begins; whoever is at work belongs to it."""
        options = self._options
        self._given = self.still_held(self._given)
        self._round += 1
        self._is_open = True
        self._began, self._end = at, at + options.t_sync
        self._expected = {name for name, place in self.places.items() if place.open}
        for facility in self.places:
            self.free(facility)
        longest = options.t_sync + options.tolerance * options.t_sync
        self.set_timer(self._timer, longest)

    def take(self, update: UpdateArrived) -> None:
        """See `Arrivals.take`."""
        place = self.places[update.facility]
        deadline = self._deadlines.get(update.facility)
        self._given[update.assignment] = place.given
        if deadline is None or place.waited <= deadline:
            self._admitted.append(update)
        else:
            self._late.append((self._round, update))
            self.free(update.facility)
        self._expect_no_more(update.facility)

    def gone(self, facility: str, at: float) -> None:
        """See `Arrivals.gone`."""
        self._expect_no_more(facility)

    def fired(self, timer: str, at: float) -> None:
        """See `Arrivals.fired`: the round is at its latest end."""
        if timer == self._timer and not self._close():
            self._end += self._options.t_sync
            self.set_timer(timer, self._options.t_sync)

    def _expect_no_more(self, facility: str) -> None:
        self._expected.discard(facility)
        if not self._expected:
            self._close()

    def _close(self) -> bool:
        """End the round with what there is; False if there is nothing."""
        chosen = [*self._carried(), *self._admitted] or self._late_ones()
        if not self._is_open or not chosen:
            return False
        self._is_open = False
        self._admitted = []
        self._late = [(n, u) for n, u in self._late if u not in chosen]
        self.clear_timer(self._timer)
        self.release(chosen)
        return True

    def _carried(self) -> list[UpdateArrived]:
        return [update for number, update in self._late if number < self._round]

    def _late_ones(self) -> list[UpdateArrived]:
        return [update for _, update in self._late]

    @property
    def _timer(self) -> str:
        return f"round-{self._round:04d}"

    # Versions.

    def aggregate(self, updates: Sequence[UpdateArrived]) -> Aggregate:
        """See `Arrivals.aggregate`."""
        weights = [self._weight(update) for update in updates]
        total = fsum(weights)
        shares = [w / total if total else 1 / len(weights) for w in weights]
        if self._options.compat is None:
            terms = added(self.newest, updates, shares)
        else:
            terms = mixed(self.newest, updates, shares, anchored=False)
        return Aggregate(version=self.newest + 1, terms=terms)

    def _weight(self, update: UpdateArrived) -> float:
        options = self._options
        given = self._given.pop(update.assignment, self.newest)
        tau = self.staleness(update) if options.compat is None else self.newest - given
        share = 1 if options.weights == "equal" else update.samples
        return share * decline(options.staleness, tau, options.beta)

    # Orders.

    def plan(self, facility: str, at: float) -> Work:
        """See `Arrivals.plan`."""
        options, wait = self._options, self._wait(facility)
        late = None if wait is None else wait + options.alpha * options.t_sync
        self._deadlines[facility] = late
        if self._speed(facility) is None:
            self._expected.add(facility)
            return Work(steps=self.context.steps.get(facility))
        fitting = self._fitting(facility, self._end - at)
        if at > self._began and fitting < options.min_steps:
            fitting = self._fitting(facility, self._end + options.t_sync - at)
        else:
            self._expected.add(facility)
        steps = self._bounded(facility, fitting)
        return Work(steps=steps, lr_scale=self._lr_scale(steps))

    def _lr_scale(self, steps: int) -> float:
        """Return ``E_min / E_k`` for an order of E_k steps, clipped."""
        options = self._options
        fewest = min(
            self._bounded(name, self._fitting(name, options.t_sync))
            for name in self.places
            if self._speed(name) is not None
        )
        scale = fewest / steps
        if options.compat is not None:
            return scale
        return min(max(scale, options.lr_clip_low), options.lr_clip_high)

    def _fitting(self, facility: str, time: float) -> int:
        """Return the steps that bring an update in within so many seconds."""
        seen = self.places[facility].estimates
        other = (seen.startup.median or 0.0) + (seen.transfer.median or 0.0)
        budget = time - (self._wait(facility) or 0.0) - other - self._options.theta
        return floor(budget / (self._speed(facility) or 1.0))

    def _bounded(self, facility: str, steps: int) -> int:
        """Return the steps, within what the walltime allows and `min_steps` asks."""
        walltime = self.context.walltimes.get(facility)
        if walltime is not None:
            startup = self.places[facility].estimates.startup.median or 0.0
            runs = walltime - startup - self._options.theta
            steps = min(steps, floor(runs / (self._speed(facility) or 1.0)))
        return max(steps, self._options.min_steps)

    def _wait(self, facility: str) -> float | None:
        """Return the expected queue wait; None before the first observation."""
        seen = self.places[facility].estimates.queue_wait
        return seen.quantile(self._options.queue_quantile)

    def _speed(self, facility: str) -> float | None:
        """Return seconds per step; None before the first update."""
        return self.places[facility].estimates.seconds_per_step.median

    # What is kept.

    def rest(self) -> Collection[UpdateArrived]:
        """See `Arrivals.rest`."""
        return [*self._late_ones(), *self._admitted]

    def drop_rest(self) -> None:
        """See `Arrivals.drop_rest`."""
        self._admitted, self._late = [], []

    def counted(self) -> Mapping[str, Any]:
        """See `Arrivals.counted`."""
        return {
            "round": self._round,
            "ends": self._end,
            "expected": sorted(self._expected),
            "admitted": [update.assignment for update in self._admitted],
            "carried": [update.assignment for update in self._late_ones()],
        }
