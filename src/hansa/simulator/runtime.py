"""The core's commands carried out in virtual time; the heap's twin of asyncio's.

As in `hansa.coordinator.runtime`, one loop takes events in order: an event is recorded
before the core sees it, and each command becomes a facility's work, a sum, or a call at
a later time, which answer with events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from hansa.coordinator.core import Coordinator
from hansa.core.commands import (
    Aggregate,
    Assign,
    Begin,
    ClearTimer,
    Command,
    Evaluate,
    Finish,
    SetTimer,
    Withdraw,
)
from hansa.core.errors import SimulationError, StoreError
from hansa.core.events import (
    AggregateFailed,
    Event,
    JobStarted,
    RunFinished,
    TimerFired,
    VersionPublished,
)
from hansa.simulator.facility import SimulatedFacility
from hansa.simulator.heap import Due
from hansa.simulator.world import World, evaluation

COLLECT_EVERY = 8
"""Versions between two collections of what nobody may name any more."""


class VirtualRuntime:
    """Runs a coordinator on the heap until the run is over.

    Args:
        core: The core, fresh.
        record: Takes each event, with the core's digest before it.
        watchers: Told of every event after the core has handled it.
        aggregate_s: Seconds that making a version takes.
        at_server: Whether versions are measured at once, by nobody's job.

    Attributes:
        emit: Takes an event, to be handled after those that came before.
    """

    def __init__(
        self,
        core: Coordinator,
        record: Callable[[Event, Coordinator], None] | None = None,
        watchers: Iterable[Callable[[Event], None]] = (),
        *,
        aggregate_s: float = 1.0,
        at_server: bool = True,
    ) -> None:
        self._core = core
        self._record = record
        self._watchers = tuple(watchers)
        self._aggregate_s = aggregate_s
        self._at_server = at_server
        self._inbox: deque[Event] = deque()
        self.emit: Callable[[Event], None] = self._inbox.append
        self._timers: dict[str, Due] = {}
        self._facilities: Mapping[str, SimulatedFacility] = {}
        self._world: World

    def run(
        self,
        world: World,
        facilities: Mapping[str, SimulatedFacility],
        opening: Iterable[Event],
    ) -> str:
        """Carry the run to its end and return the outcome.

        Raises:
            SimulationError: Nothing will ever happen any more.
        """
        self._world, self._facilities = world, facilities
        self._inbox.extend(opening)
        core, inbox, step = self._core, self._inbox, world.heap.step
        while True:
            while inbox:
                event = inbox.popleft()
                self._take(event)
                if isinstance(event, RunFinished):
                    return core.outcome
            if not step():
                raise SimulationError(
                    "Nothing will happen any more, and the run is not over.",
                    hint="This is a bug in Hansa; please report it with the file.",
                )

    def _take(self, event: Event) -> None:
        core = self._core
        if self._record is not None:
            self._record(event, core)
        for command in core.handle(event):
            self._carry_out(command)
        if isinstance(event, VersionPublished):
            self._new_version(event.version)
        elif isinstance(event, JobStarted):
            self._facilities[event.facility].queue_ahead()
        for watch in self._watchers:
            watch(event)

    def _new_version(self, version: int) -> None:
        for facility in self._facilities.values():
            facility.version_published()
        if version % COLLECT_EVERY == 0:
            core, store = self._core, self._world.store
            bound = (facility.bound() for facility in self._facilities.values())
            needed = core.needed_versions().union(*bound)
            store.collect(needed, core.held(), core.spent(store.updates()))

    def _carry_out(self, command: Command) -> None:
        match command:
            case Assign():
                self._facilities[command.facility].assign(command.order)
            case Evaluate():
                self._evaluate(command)
            case Aggregate():
                self._world.heap.after(
                    self._aggregate_s, lambda: self._aggregate(command)
                )
            case SetTimer():
                self._set_timer(command)
            case ClearTimer():
                if timer := self._timers.pop(command.timer, None):
                    timer.cancel()
            case Withdraw():
                self._facilities[command.facility].withdraw(command.assignment)
            case Begin():
                self._facilities[command.facility].begin(command.assignment)
            case Finish():  # after what else was asked for in the same breath
                self._world.heap.after(0.0, lambda: self._finish(command))

    def _evaluate(self, command: Evaluate) -> None:
        if not self._at_server:
            self._facilities[command.facility].assign(command.order)
            return
        version = command.order.version or 0
        self.emit(evaluation(self._world, command.facility, command.order, version))

    def _set_timer(self, command: SetTimer) -> None:
        name, heap = command.timer, self._world.heap
        if old := self._timers.pop(name, None):
            old.cancel()
        self._timers[name] = heap.after(
            command.after, lambda: self.emit(TimerFired(at=heap.now, timer=name))
        )

    def _aggregate(self, command: Aggregate) -> None:
        world = self._world
        try:
            sha256 = world.store.aggregate(command)
        except StoreError as error:
            self.emit(
                AggregateFailed(
                    at=world.heap.now,
                    version=command.version,
                    code=error.code,
                    reason=f"Version {command.version} can't be made: {error.message}",
                )
            )
            return
        self.emit(
            VersionPublished(
                at=world.heap.now,
                version=command.version,
                sha256=sha256,
                bytes=world.training.version_bytes,
                seconds=self._aggregate_s,
                terms=command.terms,
            )
        )

    def _finish(self, command: Finish) -> None:
        for facility in self._facilities.values():
            facility.settle()
        self.emit(
            RunFinished(
                at=self._world.heap.now,
                outcome=command.outcome,
                reason=command.reason,
            )
        )
