"""One task at a time, with all files that wait: how a direction is shared.

A trip is one submission to the service, a seat is one caller in it. A trip is in the
log before the service hears of it and leaves the log when all that it brought has got
its place; a crash anywhere between finds it there, and the same ticket finds the same
task:

=========================================  =============================================
a crash                                    the next process
=========================================  =============================================
before the note                            knows of nothing and submits
between the note and the submission        submits under the noted ticket
between the submission and its end         is told "again", and waits for that task
between its end and the rename             is told "again": it is over; only renames
between the rename and the caller's word   finds the place taken, and the task over
=========================================  =============================================

If that task has failed meanwhile, or the service does not know it any more, the ticket
is over, and what is still wanted goes under a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from hansa.core.errors import HansaError, LoginError
from hansa.mover.base import Damaged, Ended, Progress, Submission, TransferLog
from hansa.mover.globus_service import Accepted, Item
from hansa.mover.globus_words import TaskView, ailing

log = logging.getLogger(__name__)

FIRST_S, SLOWER, EVERY_S = 0.5, 1.6, 10.0
"""Seconds before a task is looked after again: at first, times that, at most."""

GRACE_S = 120.0
"""Seconds that nobody may wait for a task before it has to make room for others."""

FAREWELL_S = 30.0
"""Seconds for cancelling what no later process will want."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What one caller wants moved.

    Attributes:
        place: The directory in the mailbox; nobody else wishes it meanwhile.
        items: Its files.
    """

    place: str
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.bytes for item in self.items)


class Route(Protocol):
    """A service's tasks in one direction."""

    direction: str

    async def ticket(self) -> str:
        """Return a new ticket."""
        ...

    async def submit(self, ticket: str, items: tuple[Item, ...]) -> Accepted:
        """Submit; a second time under the same ticket changes nothing."""
        ...

    async def look(self, task: str) -> TaskView:
        """Tell how a task stands."""
        ...

    async def sent(self, task: str) -> dict[str, int]:
        """Return the sizes of the files that a task sent, by their target."""
        ...

    async def failure(
        self, task: str, view: TaskView, places: Collection[str]
    ) -> HansaError:
        """Return what it means that a task failed."""
        ...

    async def cancel(self, task: str) -> None:
        """Cancel a task; one that is over stays as it is."""
        ...

    async def find(self, ticket: str) -> str | None:
        """Return the task that was submitted under a ticket, if there is one."""
        ...


@dataclass(eq=False, slots=True)
class _Seat:
    """A caller; `arrived` is resolved with the bytes that its files took."""

    wish: Wish
    arrived: asyncio.Future[int]
    trip: _Trip | None = None


@dataclass(eq=False, slots=True)
class _Trip:
    """A submission that is in the log.

    Attributes:
        ticket: Its ticket.
        due: Places whose files have not got their final names yet.
        items: What was submitted for a place; nothing: an earlier process knew.
        task: The service's id; None: it may not have heard of it yet.
        seats: Who waits for it.
        since: When the last of them left, by the loop's clock.
        view: Its end.
        noted: Whether it is in the log already.
    """

    ticket: str
    due: set[str]
    since: float
    items: dict[str, tuple[Item, ...]] = field(default_factory=dict)
    task: str | None = None
    seats: list[_Seat] = field(default_factory=list)
    view: TaskView | None = None
    noted: bool = True

    def brings(self, wish: Wish) -> bool:
        """Tell whether it carries, or may carry, just these files."""
        known = self.items.get(wish.place, wish.items)
        return wish.place in self.due and known == wish.items


class Queue:
    """The way in one direction.

    A caller that is cancelled leaves its task going: if it comes again, in this
    process or the next, it finds the same task. What nobody comes back for makes room
    after `GRACE_S`, once something else is to be moved.

    Args:
        route: The service.
        transfers: Where submissions are noted.
        watch: Told how the task at hand goes; None: there is none.
    """

    def __init__(
        self,
        route: Route,
        transfers: TransferLog,
        watch: Callable[[Progress | None], None],
    ) -> None:
        self._route = route
        self._log = transfers
        self._watch = watch
        self._waiting: list[_Seat] = []
        self._trips: list[_Trip] | None = None
        self._driver: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def carried(self, wish: Wish) -> AsyncIterator[int]:
        """Have files brought; what was brought gets its place in the block.

        The submission counts as ended when the block is left, unless it is left with
        an error that may pass: the same files then need no second task.

        Yields:
            Bytes that they took.

        Raises:
            HansaError: What the service told of its failure.
        """
        seat = _Seat(wish, asyncio.get_running_loop().create_future())
        self._open()
        self._waiting.append(seat)
        self._drive()
        try:
            yield await seat.arrived
        except HansaError as error:
            again = error.transient and not isinstance(error, Damaged)
            if seat.trip is not None and not again:
                await self._settle(seat.trip, wish.place)
            raise
        else:
            if seat.trip is not None:
                await self._settle(seat.trip, wish.place)
        finally:
            self._leave(seat)

    async def close(self, *, forget: bool) -> None:
        """Stop looking after tasks.

        Args:
            forget: Cancel them, too: no later process will know of them.
        """
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        if forget:
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    for trip in list(self._open()):
                        await self._dismiss(trip)

    # --- who sits where ---------------------------------------------------------------

    def _open(self) -> list[_Trip]:
        """Return the open trips, the oldest first; at first those of the log."""
        if self._trips is None:
            now = asyncio.get_running_loop().time()
            self._trips = [
                _Trip(one.ticket, set(one.places), now)
                for one in self._log.open()
                if one.direction == self._route.direction
            ]
        return self._trips

    def _leave(self, seat: _Seat) -> None:
        if seat in self._waiting:
            self._waiting.remove(seat)
        if seat.trip is not None and seat in seat.trip.seats:
            seat.trip.seats.remove(seat)
            seat.trip.since = asyncio.get_running_loop().time()

    def _board(self, trip: _Trip, seats: list[_Seat]) -> None:
        for seat in seats:
            self._waiting.remove(seat)
            seat.trip = trip
            trip.seats.append(seat)

    def _awaited(self, trip: _Trip) -> bool:
        """Tell whether somebody waits who would board it."""
        return any(trip.brings(seat.wish) for seat in self._waiting)

    def _board_who_fits(self, trip: _Trip) -> None:
        self._board(trip, [one for one in self._waiting if trip.brings(one.wish)])

    # --- the driver -------------------------------------------------------------------

    def _drive(self) -> None:
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._go_on())
            self._driver.add_done_callback(self._stopped)

    def _stopped(self, driver: asyncio.Task[None]) -> None:
        """Leave nobody waiting for a driver that broke."""
        if driver.cancelled() or (error := driver.exception()) is None:
            return
        seats = [seat for trip in self._open() for seat in trip.seats]
        for seat in (*self._waiting, *seats):
            _fail(seat, error)

    async def _go_on(self) -> None:
        while self._waiting:
            trip = next((one for one in self._open() if self._awaited(one)), None)
            taken = list(self._waiting)
            try:
                trip = trip or await self._new_trip()
                await self._travel(trip)
            except HansaError as error:
                # A trip that the service may know of stays: they come again and join.
                for seat in trip.seats if trip else taken:
                    _fail(seat, error)
                if trip is None:
                    self._waiting = [one for one in self._waiting if one not in taken]
            finally:
                self._watch(None)

    async def _new_trip(self) -> _Trip:
        ticket = await self._route.ticket()
        seats = list(self._waiting)
        trip = _Trip(
            ticket,
            {seat.wish.place for seat in seats},
            asyncio.get_running_loop().time(),
            items={seat.wish.place: seat.wish.items for seat in seats},
            noted=False,
        )
        self._open().append(trip)
        self._board(trip, seats)
        return trip

    async def _travel(self, trip: _Trip) -> None:
        """Bring a trip to its end, or leave it when nobody waits for it any more."""
        self._board_who_fits(trip)
        if not trip.noted:
            await self._note(trip)
        try:
            why = await self._failure(trip)
        except HansaError as error:
            if error.transient or isinstance(error, LoginError):
                raise
            why = error
        if why is None:
            return
        ours = bool(trip.items)
        view = trip.view or TaskView(status="FAILED")
        await self._end(trip, "failed", view, why.message)
        if ours:
            raise why
        # What went wrong for an earlier process may go well for this one.
        self._waiting += trip.seats
        trip.seats.clear()

    async def _failure(self, trip: _Trip) -> HansaError | None:
        """Carry a trip out; return why it failed, if it did."""
        task = trip.task or await self._submit(trip)
        trip.view = view = trip.view or await self._end_of(trip, task)
        if view is None:
            return None
        if view.status == "FAILED":
            return await self._route.failure(task, view, trip.due)
        sent = await self._route.sent(task) if view.skipped else None
        self._board_who_fits(trip)
        for seat in trip.seats:
            if not seat.arrived.done():
                seat.arrived.set_result(_share(seat.wish, sent))
        return None

    async def _note(self, trip: _Trip) -> None:
        direction, places = self._route.direction, tuple(sorted(trip.due))
        note = Submission(ticket=trip.ticket, direction=direction, places=places)
        try:
            await self._log.submitted(note)
        except HansaError:
            self._open().remove(trip)  # the service never hears of it
            raise
        trip.noted = True

    async def _submit(self, trip: _Trip) -> str:
        wishes = {seat.wish.place: seat.wish.items for seat in trip.seats}
        wishes = {**trip.items, **wishes}
        items = tuple(item for one in wishes.values() for item in one)
        answer = await self._route.submit(trip.ticket, items)
        trip.task = answer.task
        if not answer.again:
            # The service had not heard of it: it brings what it was told now.
            trip.due, trip.items = set(wishes), wishes
        return answer.task

    async def _end_of(self, trip: _Trip, task: str) -> TaskView | None:
        wait, ailed = FIRST_S, ""
        while trip.seats:
            view = await self._route.look(task)
            if view.over:
                return view
            line = ailing(view) if view.ails else ""
            if line and line != ailed:
                log.warning("%s: %s %s", _named(trip), line, view.details)
            ailed = line
            self._show(trip, view, line)
            await self._make_room(trip)
            await asyncio.sleep(wait)
            wait = min(wait * SLOWER, EVERY_S)
            self._board_who_fits(trip)
        return None

    def _show(self, trip: _Trip, view: TaskView, line: str) -> None:
        wishes = {seat.wish.place: seat.wish.items for seat in trip.seats}
        known = {**trip.items, **wishes}
        progress = Progress(
            bytes=view.bytes,
            total=sum(item.bytes for items in known.values() for item in items),
            rate=view.rate,
            faults=view.faults,
            status=line,
        )
        self._watch(progress)

    # --- the log ----------------------------------------------------------------------

    async def _settle(self, trip: _Trip, place: str) -> None:
        """Note that a place has got what was brought for it."""
        trip.due.discard(place)
        if not trip.due and trip.view is not None:
            await self._end(trip, "done", trip.view)

    async def _end(
        self, trip: _Trip, outcome: str, view: TaskView, reason: str = ""
    ) -> None:
        if trip not in self._open():
            return
        self._open().remove(trip)
        await self._log.ended(
            Ended(
                ticket=trip.ticket,
                outcome=outcome,
                reason=reason,
                bytes=view.bytes,
                seconds=view.seconds,
                faults=view.faults,
            )
        )

    async def _make_room(self, current: _Trip) -> None:
        """Have what nobody came back for cancelled."""
        now = asyncio.get_running_loop().time()
        for trip in list(self._open()):
            lonely = trip is not current and not trip.seats
            if lonely and now - trip.since >= GRACE_S and not self._awaited(trip):
                trip.since = now
                await self._dismiss(trip)

    async def _dismiss(self, trip: _Trip) -> None:
        """Have a trip cancelled if it is under way; it stays if that can't be done."""
        try:
            view = await self._stopped_task(trip)
        except HansaError as error:
            if error.transient or isinstance(error, LoginError):
                log.warning("%s is still open: %s", _named(trip), error)
                return
            view = TaskView(status="FAILED", fatal=error.message)
        if view.status == "SUCCEEDED":
            await self._end(trip, "done", view)
        else:
            why = view.fatal or "Nobody wanted it any more."
            outcome = "failed" if view.fatal else "cancelled"
            await self._end(trip, outcome, view, why)

    async def _stopped_task(self, trip: _Trip) -> TaskView:
        """Return how a trip's task stood when it was told to stop."""
        trip.task = trip.task or await self._route.find(trip.ticket)
        if trip.task is None:
            return TaskView(status="FAILED")
        view = trip.view or await self._route.look(trip.task)
        if not view.over:
            await self._route.cancel(trip.task)
        return view


def _named(trip: _Trip) -> str:
    return f"Globus task {trip.task} ({', '.join(sorted(trip.due))})"


def _fail(seat: _Seat, error: BaseException) -> None:
    if not seat.arrived.done():
        seat.arrived.set_exception(error)


def _share(wish: Wish, sent: dict[str, int] | None) -> int:
    """Return the bytes that the files of one wish took."""
    if sent is None:
        return wish.size
    return sum(sent.get(item.target, 0) for item in wish.items)
