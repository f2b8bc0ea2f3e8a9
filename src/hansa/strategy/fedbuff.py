"""FedBuff: K updates make a version; facilities never wait for it.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation"
(arXiv 2106.06639), algorithm 1: with the updates ``d_k`` in a buffer of size K, each
the difference to the client's own base,

    ``w <- w + (lr / K) sum_k s(tau_k) d_k``,  ``s(tau) = 1 / sqrt(1 + tau)``

(section 5: the polynomial with a = 0.5). The buffer is emptied when it holds K; tau_k
is counted then. Defaults: lr 1, K half of the facilities, rounded up (the paper has 10
of many clients). A facility goes on as soon as it has delivered, and its job binds the
newest version when it starts. When the budget is spent, a buffer that is not full is
taken in as well, with the same lr / K.

Beyond the paper: a `reducer` may take the place of the sum.

``compat: appfl`` is APPFL 1.12's arithmetic, another algorithm: every K uploads

    ``x <- x + sum_k alpha s(tau_k) w_k (x_k - x)``

against the *current* model, with w_k = 1/N or ``n_k / sum n``, and tau_k counted from
the facility's last upload (see `hansa.strategy.fedasync`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from hansa.core.commands import Aggregate
from hansa.core.errors import SpecError
from hansa.core.events import UpdateArrived
from hansa.core.recipes import Krum
from hansa.core.shortform import ShortForm
from hansa.strategy.arrivals import Arrivals
from hansa.strategy.base import StrategyContext
from hansa.strategy.fedasync import MixingOptions, Uploads
from hansa.strategy.mixing import added, mixed
from hansa.strategy.options import ReducerOptions, check_reducer

_ALPHA = 0.9


class FedBuffOptions(MixingOptions):
    """Keys of `strategy: {name: fedbuff}`."""

    k: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="number of updates that make a version",
        json_schema_extra={"x-default": "half of the facilities, rounded up"},
    )
    lr: float = Field(1.0, gt=0, description="the server's learning rate")
    alpha: float = Field(
        _ALPHA,
        gt=0,
        le=1,
        description="with `compat: appfl`: share of a fresh local model",
    )
    reducer: Annotated[ReducerOptions, ShortForm("name")] = Field(
        ReducerOptions(name="linear"),
        description="what takes the place of the weighted mean",
        json_schema_extra={"x-default": "`linear`"},
    )

    @model_validator(mode="after")
    def _steps_one_way(self) -> Self:
        if self.compat is None and self.alpha != _ALPHA:
            raise ValueError(
                "'alpha' has a meaning with 'compat: appfl' only; see 'lr'"
            )
        if self.compat is not None and self.lr != 1.0:
            raise ValueError("'lr' has no meaning with 'compat: appfl'; see 'alpha'")
        return self

    @model_validator(mode="after")
    def _reducer_fits(self) -> Self:
        if self.compat is not None and self.reducer.name != "linear":
            raise ValueError("'compat: appfl' has no other reducer than 'linear'")
        if self.max_staleness is not None and self.reducer.name == "krum":
            raise ValueError(
                "'krum' needs all K updates, but 'max_staleness' may drop some"
            )
        return self


class FedBuff(Arrivals):
    """The FedBuff state machine; see the module's text."""

    Options = FedBuffOptions
    name = "fedbuff"

    def __init__(self, options: FedBuffOptions, context: StrategyContext) -> None:
        super().__init__(options, context, names_bases=options.compat is not None)
        facilities = len(context.facilities)
        self._options = options
        self._k = (facilities + 1) // 2 if options.k is None else options.k
        if self._k > facilities:
            raise SpecError(
                f"A buffer of {self._k} updates is larger than the federation of "
                f"{facilities} facilities.",
                hint="Lower strategy.k or add facilities.",
            )
        self._reducer = options.reducer.recipe()
        check_reducer(self._reducer, self._k, self._k, key="k")
        self._buffer: list[UpdateArrived] = []
        self._uploads = Uploads(facilities, options.weights)
        self._shares: dict[str, float] = {}

    def take(self, update: UpdateArrived) -> None:
        """See `Arrivals.take`."""
        self._buffer.append(update)
        self.free(update.facility)
        is_full = len(self._buffer) >= self._k
        if self._options.compat is not None:
            self._note(update, is_full)
        if is_full:
            self.release(self._buffer)
            self._buffer = []

    def aggregate(self, updates: Sequence[UpdateArrived]) -> Aggregate:
        """See `Arrivals.aggregate`."""
        options = self._options
        if options.compat is None:
            step = options.lr / self._k
            shares = [step * options.discount(self.staleness(u)) for u in updates]
            terms = added(self.newest, updates, shares)
        else:
            shares = [self._shares.pop(update.assignment) for update in updates]
            terms = mixed(self.newest, updates, shares)
        version = self.newest + 1
        return Aggregate(version=version, terms=terms, reducer=self._reducer)

    def begin(self, at: float) -> None:
        """See `Arrivals.begin`; what was dropped as too stale needs no share."""
        self._shares = self.still_held(self._shares)

    def rest(self) -> Collection[UpdateArrived]:
        """See `Arrivals.rest`."""
        return tuple(self._buffer)

    def last(self) -> Collection[UpdateArrived]:
        """See `Arrivals.last`; Krum can't do with fewer than K."""
        return () if isinstance(self._reducer, Krum) else self.rest()

    def drop_rest(self) -> None:
        """See `Arrivals.drop_rest`."""
        self._buffer = []

    def counted(self) -> Mapping[str, Any]:
        """See `Arrivals.counted`."""
        return {"buffered": len(self._buffer), "k": self._k}

    def _note(self, update: UpdateArrived, is_full: bool) -> None:
        tau = self._uploads.staleness(update, self.upcoming)
        self._uploads.note(update, self.upcoming + is_full)
        share = self._options.alpha * self._options.discount(tau)
        self._shares[update.assignment] = share * self._uploads.factor(update)
