"""What a strategy does, tried out before anything is spent.

A strategy is a pure state machine, so it can be shown a made-up run: all facilities
work, but one is always the last, time passes it by, and in the end it is lost. What the
strategy would aggregate tells whether a run can keep a promise that sums may break.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hansa.core import plugins
from hansa.core.commands import (
    Aggregate,
    Assign,
    ClearTimer,
    Command,
    Finish,
    SetTimer,
    Withdraw,
)
from hansa.core.errors import SpecError, StoreError
from hansa.core.events import (
    Event,
    FacilityLost,
    JobStarted,
    TimerFired,
    UpdateArrived,
    VersionPublished,
)
from hansa.core.ids import update_ref
from hansa.spec.federation import FederationSpec
from hansa.store.adapters import check_exact
from hansa.strategy.base import Strategy

_VERSIONS, _EVENTS = 6, 400  # where a rehearsal ends
_LOST = 3  # the version from which on the last facility delivers nothing more
_STEP_S = 60.0


def check_adapters(spec: FederationSpec, strategy: Strategy) -> None:
    """Refuse a strategy whose sums allow no exact aggregation of adapters.

    The store refuses such a sum, too, but then work has been done for it.

    Args:
        spec: The federation.
        strategy: A fresh one of it; not to be used afterwards.

    Raises:
        SpecError: `aggregation.adapters` is not `average`, and the strategy may use
            stale updates, a reducer or an optimizer on the server.
    """
    if spec.aggregation.adapters == "average":
        return
    rehearsal = Rehearsal(strategy, tuple(spec.facilities))
    for command in rehearsal.sums():
        bases = {ref: rehearsal.bases[ref] for ref in _updates(command, rehearsal)}
        try:
            check_exact(command.terms, command.reducer, command.optimizer, bases)
        except StoreError as error:
            raise SpecError(
                f"aggregation.adapters: {spec.aggregation.adapters} does not go with "
                f"the strategy {spec.strategy.name}. {error.message}",
                hint=error.hint,
            ) from error


def check_control(spec: FederationSpec, strategy: Strategy) -> None:
    """Refuse a strategy that needs plain SGD if a facility does none.

    One needs it that sends such a facility a control variate, or that gives the run up
    for want of its `lr_sum`. The job refuses it, too, but then it waited in a queue.

    Args:
        spec: The federation.
        strategy: A fresh one of it; not to be used afterwards.

    Raises:
        SpecError: A facility's `work` chooses another optimizer.
    """
    plugin = plugins.find(plugins.TRAINERS, spec.model.trainer)
    if plugin.impure is None:
        return
    remedies = {}
    for name, facility in spec.facilities.items():
        work = plugin.work_options.model_validate(facility.work.options)
        if (remedy := plugin.impure(work)) is not None:
            remedies[name] = remedy
    rehearsal = Rehearsal(strategy, tuple(spec.facilities), impure=frozenset(remedies))
    for _ in rehearsal.sums():
        pass
    for name, remedy in remedies.items():
        if rehearsal.gave_up or name in rehearsal.controls:
            raise SpecError(
                f"The strategy {spec.strategy.name} needs plain SGD, but {name} trains "
                "with another optimizer.",
                hint=f"{remedy}, or choose another strategy.",
            )


def _updates(command: Aggregate, rehearsal: Rehearsal) -> list[str]:
    return [term.ref for term in command.terms if term.ref in rehearsal.bases]


@dataclass(slots=True)
class _Job:
    facility: str
    assignment: str
    steps: int
    base: int


@dataclass(slots=True)
class Rehearsal:
    """A made-up run of one strategy.

    Jobs begin as soon as there is an order, and end in the order in which they began;
    but the last facility's end only after a version without them, or when nothing else
    can happen any more, timers included. After a few versions that facility is lost.

    Attributes:
        strategy: A fresh strategy.
        facilities: Their names.
        bases: The version that each update was trained from, by its reference.
        impure: Facilities whose updates come without `lr_sum`.
        controls: Facilities that were sent a control variate.
        gave_up: The strategy ended the run before its first version.
    """

    strategy: Strategy
    facilities: tuple[str, ...]
    bases: dict[str, int] = field(default_factory=dict)
    impure: frozenset[str] = frozenset()
    controls: set[str] = field(default_factory=set)
    gave_up: bool = False
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _timers: dict[str, float] = field(default_factory=dict)
    _sums: list[Aggregate] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)
    _newest: int = 0
    _over: bool = False
    _at: float = 0.0

    def sums(self) -> Iterator[Aggregate]:
        """Yield what the strategy aggregates, as it does."""
        self._publish(0)
        for _ in range(_EVENTS):
            event = self._next()
            if event is None:
                return
            for command in self.strategy.handle(event):
                self._take(command)
            while self._sums:
                yield self._sums.pop(0)

    def _next(self) -> Event | None:
        """Return what happens next; None at the end."""
        if self._over or self._newest > _VERSIONS:
            return None
        if self._events:
            return self._events.pop(0)
        slow = self.facilities[-1]
        for job in self._jobs.values():
            if job.facility != slow or job.base < self._newest:
                return self._arrival(job)
        if self._timers:
            return self._fired()
        if not self._jobs:
            return None
        job = next(iter(self._jobs.values()))
        return self._lost(job) if self._newest >= _LOST else self._arrival(job)

    def _fired(self) -> TimerFired:
        timer = min(self._timers, key=lambda name: self._timers[name])
        self._at = max(self._at, self._timers.pop(timer))
        return TimerFired(at=self._later(), timer=timer)

    def _lost(self, job: _Job) -> FacilityLost:
        del self._jobs[job.assignment]
        return FacilityLost(
            at=self._later(), facility=job.facility, code="GATEWAY", reason="rehearsal"
        )

    def _take(self, command: Command) -> None:
        match command:
            case Assign():
                self._begin(command)
            case Withdraw():
                self._jobs.pop(command.assignment, None)
            case Aggregate():
                self._sums.append(command)
                self._publish(command.version)
            case SetTimer():
                self._timers[command.timer] = self._at + command.after
            case ClearTimer():
                self._timers.pop(command.timer, None)
            case Finish():
                self._over = True
                self.gave_up = self._newest == 0

    def _begin(self, command: Assign) -> None:
        order = command.order
        if order.control:
            self.controls.add(command.facility)
        job = _Job(command.facility, order.assignment, order.steps or 1, self._newest)
        self._jobs[order.assignment] = job
        self._events.append(
            JobStarted(
                at=self._later(),
                facility=job.facility,
                assignment=job.assignment,
                number=1,
                job=job.assignment,
                base=job.base,
                queue_wait=_STEP_S,
            )
        )

    def _arrival(self, job: _Job) -> UpdateArrived:
        del self._jobs[job.assignment]
        self.bases[update_ref(job.assignment)] = job.base
        metrics = {"train_loss": 1.0, "eval_loss": 1.0}
        if job.facility not in self.impure:
            metrics["lr_sum"] = 0.01 * job.steps
        return UpdateArrived(
            at=self._later(),
            facility=job.facility,
            assignment=job.assignment,
            base=job.base,
            steps=job.steps,
            samples=job.steps,
            partial=False,
            bytes=1,
            metrics=metrics,
            timings={"train_s": _STEP_S, "startup_s": 1.0, "transfer_s": 1.0},
        )

    def _publish(self, version: int) -> None:
        self._newest = version
        self._events.append(
            VersionPublished(
                at=self._later(),
                version=version,
                sha256="",
                bytes=1,
                seconds=1.0,
                terms=(),
            )
        )

    def _later(self) -> float:
        self._at += _STEP_S
        return self._at
