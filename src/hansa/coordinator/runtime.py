"""The asyncio shell around the core: journal an event, handle it, carry out commands.

One loop takes events from an inbox, in order. An event is appended and fsynced
before the core sees it; each command becomes a lane's work, a store task on a thread,
or a wake-up, and each of those answers with events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hansa.coordinator.core import Coordinator, at_time
from hansa.coordinator.lane import Lane
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
from hansa.core.errors import HansaError, StorageFull, StoreError
from hansa.core.events import (
    AggregateFailed,
    Event,
    JobStarted,
    OperatorAsked,
    RunFinished,
    RunResumed,
    TimerFired,
    VersionPublished,
)
from hansa.journal.journal import Journal
from hansa.store.versions import Published, Store

log = logging.getLogger(__name__)

SETTLE_S = 60.0
"""Seconds that cancelled jobs get at the end of a run to report their cost."""


class Interrupted(HansaError):
    """The run was stopped and can be resumed."""

    code = "INTERRUPTED"
    exit_code = 130


@dataclass(frozen=True, slots=True)
class _Noted:
    """An event whose sender waits until it is in the journal."""

    event: Event
    done: asyncio.Future[None]


class Watcher(Protocol):
    """Somebody who looks on: a display, a test."""

    def on_event(self, event: Event) -> None:
        """See an event that was journaled and handled."""
        ...


class Runtime:
    """Runs a coordinator on asyncio until the run is over or interrupted.

    Args:
        coordinator: The core, fresh or rebuilt from the journal.
        journal: The open journal.
        store: Versions and updates on this server.
        clock: Returns the seconds since the run began.
        keep: Versions to keep in the store.
        watchers: Told of every event.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        journal: Journal,
        store: Store,
        *,
        clock: Callable[[], float],
        keep: int = 3,
        watchers: tuple[Watcher, ...] = (),
    ) -> None:
        self._core = coordinator
        self._journal = journal
        self._store = store
        self._clock = clock
        self._keep = keep
        self._watchers = watchers
        self._inbox: asyncio.Queue[Event | _Noted | BaseException] = asyncio.Queue()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes: Mapping[str, Lane] = {}
        self._cancel_jobs = False
        self._closing = False

    # What lanes and people call.

    def emit(self, event: Event) -> None:
        """Take an event; it is stamped, journaled and handled in its turn."""
        self._inbox.put_nowait(event)

    async def noted(self, event: Event) -> None:
        """Emit an event; return when it is in the journal and on the disk."""
        done = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait(_Noted(event, done))
        if self._closing:  # nobody else looks into the inbox until all is closed
            self._journal_rest()
        await done

    def fail(self, error: BaseException) -> None:
        """End the run with an error that only a person can mend; it stays resumable."""
        self._inbox.put_nowait(error)

    def interrupt(self, *, cancel_jobs: bool = False) -> None:
        """Stop; jobs in flight go on, to be adopted on resume, unless cancelled."""
        self._cancel_jobs = cancel_jobs
        request = "cancel" if cancel_jobs else "stop"
        self.emit(OperatorAsked(at=0.0, request=request))

    # The loop.

    async def run(self, lanes: Mapping[str, Lane], opening: list[Event]) -> str:
        """Carry the run to its end.

        Args:
            lanes: One lane for each facility, emitting to this runtime.
            opening: Events to begin with: the run's start, or its resumption.

        Returns:
            The outcome: `done`, `partial` or `failed`.

        Raises:
            Interrupted: Somebody asked to stop.
            StorageFull: The server's disk is full.
            HansaError: Whatever else only a person can mend; all are resumable.
        """
        self._lanes = lanes
        for name in self._core.lost:
            lanes[name].stay_lost()
        try:
            self._begin(opening)
            while not self._core.outcome:
                item = await self._inbox.get()
                if isinstance(item, BaseException):
                    raise item
                self._take(item)
                if isinstance(item, OperatorAsked):
                    raise Interrupted(f"The run was asked to {item.request}.")
            return self._core.outcome
        finally:
            await self._shut_down()

    def _begin(self, opening: list[Event]) -> None:
        """Take the opening; after a resumption, first issue what is still open."""
        first, *rest = opening
        self._take(first)
        if isinstance(first, RunResumed):
            for name, lane in self._lanes.items():
                lane.take_up(self._core.followed(name))
            for command in self._core.pending():
                self._carry_out(command)
        for event in rest:
            self._take(event)

    def _take(self, item: Event | _Noted) -> None:
        stamped, commands = self._journaled(item)
        log.debug("%s -> %s", stamped, commands)
        for command in commands:
            self._carry_out(command)
        if isinstance(stamped, VersionPublished):
            self._new_version()
        if isinstance(stamped, JobStarted):
            self._lanes[stamped.facility].queue_ahead()
        for watcher in self._watchers:
            watcher.on_event(stamped)

    def _journaled(self, item: Event | _Noted) -> tuple[Event, list[Command]]:
        """Journal an event and have it handled; return it stamped, and what follows."""
        event = item.event if isinstance(item, _Noted) else item
        stamped = at_time(event, max(self._clock(), self._core.at))
        self._journal.append(stamped, self._core.digest)
        if isinstance(item, _Noted) and not item.done.done():
            item.done.set_result(None)
        return stamped, self._core.handle(stamped)

    async def _shut_down(self) -> None:
        self._closing = True
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(
                lane.close(cancel_jobs=self._cancel_jobs)
                for lane in self._lanes.values()
            )
        )
        self._journal_rest()

    def _journal_rest(self) -> None:
        """Journal what came in while shutting down: above all the ends of jobs."""
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if not isinstance(item, BaseException):
                self._journaled(item)

    # Commands.

    def _carry_out(self, command: Command) -> None:
        match command:
            case Assign() | Evaluate():
                progress = self._core.progress(command.order.assignment)
                self._lanes[command.facility].assign(command.order, progress)
            case Withdraw():
                progress = self._core.progress(command.assignment)
                self._lanes[command.facility].withdraw(command.assignment, progress)
            case Begin():
                self._lanes[command.facility].begin(command.assignment)
            case Aggregate():
                self._start(lambda: self._aggregate(command))
            case SetTimer():
                self._set_timer(command)
            case ClearTimer():
                if timer := self._timers.pop(command.timer, None):
                    timer.cancel()
            case Finish():
                self._start(lambda: self._finish(command))

    def _set_timer(self, command: SetTimer) -> None:
        if old := self._timers.pop(command.timer, None):
            old.cancel()
        event = TimerFired(at=0.0, timer=command.timer)
        loop = asyncio.get_running_loop()
        self._timers[command.timer] = loop.call_later(command.after, self.emit, event)

    async def _aggregate(self, command: Aggregate) -> None:
        try:
            made = await asyncio.to_thread(
                self._store.aggregate,
                command.version,
                command.terms,
                command.reducer,
                command.optimizer,
                command.states,
            )
        except StoreError as error:
            if isinstance(error, StorageFull) or error.transient:
                raise
            self.emit(aggregate_failed(error, command))
        else:
            self.emit(published(made, command))

    async def _finish(self, command: Finish) -> None:
        await asyncio.gather(*(lane.settle(SETTLE_S) for lane in self._lanes.values()))
        reason, outcome = command.reason, command.outcome
        self.emit(RunFinished(at=0.0, outcome=outcome, reason=reason))

    def _new_version(self) -> None:
        for lane in self._lanes.values():
            lane.version_published()
        # What a later command may name is known now: it can't become more but by
        # what arrives later, and nothing of that is collected here.
        core = self._core
        needed, held, spent = core.needed_versions(), core.held(), core.spent()
        needed = needed.union(*(lane.bindable() for lane in self._lanes.values()))
        self._start(lambda: self._tidy(needed, held, spent))

    async def _tidy(self, needed: set[int], held: set[str], spent: set[str]) -> None:
        try:
            await asyncio.to_thread(
                self._store.collect_garbage, self._keep, needed, held, spent
            )
        except (StoreError, OSError) as error:
            log.warning("Old versions could not be removed: %s", error)

    def _start(self, work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # ends the run, in `run`
            self.fail(error)


def aggregate_failed(error: StoreError, command: Aggregate) -> AggregateFailed:
    """Return the event that a version can't be made, today or any other day.

    An update that overflows the sum, a term that was removed or damaged: doing the
    same again would fail in the same way, so the strategy is told.
    """
    reason = f"Version {command.version} can't be made: {error.message}"
    return AggregateFailed(
        at=0.0,
        version=command.version,
        code=error.code,
        reason=f"{reason} {error.hint}" if error.hint else reason,
    )


def published(made: Published, command: Aggregate) -> VersionPublished:
    """Return the event that a version was made by a command."""
    return VersionPublished(
        at=0.0,
        version=made.version,
        sha256=made.sha256,
        bytes=made.bytes,
        seconds=made.seconds,
        terms=command.terms,
    )
