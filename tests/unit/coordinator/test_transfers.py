"""Transfers by a service: noted before they begin, known again after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from hansa.coordinator.books import Books
from hansa.coordinator.core import Coordinator
from hansa.coordinator.plan import Plan, Stop
from hansa.coordinator.replay import replay
from hansa.coordinator.runtime import Interrupted, Runtime
from hansa.coordinator.transfers import JournaledTransfers
from hansa.core import events as ev
from hansa.core.errors import HansaError, JournalError
from hansa.journal import Journal, Lease, read
from hansa.mover.base import Ended, Submission
from hansa.store.versions import Store
from hansa.strategy.base import StrategyContext
from hansa.strategy.fedavg import FedAvg

NAMES = ("a", "b")
STARTED = ev.RunStarted(at=0.0, run="r", plan="", seed=0, facilities=NAMES, started=0.0)
PUT = Submission(ticket="t-1", direction="put", places=("r/versions/0",))
GET = Submission(ticket="t-2", direction="get", places=("r/updates/u", "r/updates/v"))


def fresh_core() -> Coordinator:
    context = StrategyContext(
        facilities=NAMES,
        steps=dict.fromkeys(NAMES, 1),
        walltimes=dict.fromkeys(NAMES, 60.0),
    )
    plan = Plan(facilities=NAMES, stop=Stop(rounds=1), evaluators=NAMES)
    return Coordinator(plan, FedAvg(FedAvg.Options(), context))


class Farewell:
    """Stands for a lane; does something when it is closed."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work

    async def close(self, *, cancel_jobs: bool) -> None:
        assert not cancel_jobs
        await self._work()


class Place:
    """A run without work, whose transfers can be noted."""

    def __init__(self, root: Path) -> None:
        self.root, self.core = root, fresh_core()
        self.journal = root / "journal.jsonl"

    def carry_out(
        self,
        work: Callable[[Runtime], Coroutine[Any, Any, None]],
        farewell: Callable[[Runtime], Coroutine[Any, Any, None]] | None = None,
        end: type[HansaError] = Interrupted,
    ) -> None:
        """Do `work` while the run goes on, and `farewell` as it shuts down."""
        asyncio.run(self._carry_out(work, farewell, end))

    async def _carry_out(
        self,
        work: Callable[[Runtime], Coroutine[Any, Any, None]],
        farewell: Callable[[Runtime], Coroutine[Any, Any, None]] | None,
        end: type[HansaError],
    ) -> None:
        store = Store(self.root, "float32")
        with (
            Lease.acquire(self.root / "lease", 0.0) as lease,
            Journal.open(self.journal, lease) as journal,
        ):
            runtime = Runtime(self.core, journal, store, clock=lambda: 1.0)
            lanes = {"a": Farewell(lambda: farewell(runtime))} if farewell else {}
            run = asyncio.create_task(runtime.run(lanes, [STARTED]))
            with pytest.raises(end):
                async with asyncio.timeout(30):
                    await asyncio.gather(run, work(runtime))

    def log(self, runtime: Runtime, facility: str = "a") -> JournaledTransfers:
        return JournaledTransfers(facility, self.core, runtime.noted)

    def events(self) -> list[ev.Event]:
        return [record.event for record in read(self.journal)]

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_note_is_on_the_disk_before_the_service_is_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    append = Journal.append

    def spied(self: Journal, *args: Any) -> None:
        append(self, *args)  # returns when the line is on the disk
        synced.append(place.journal.read_bytes())

    monkeypatch.setattr(Journal, "append", spied)

    async def work(runtime: Runtime) -> None:
        log = place.log(runtime)
        await log.submitted(PUT)
        assert b'"t-1"' in synced[-1]
        assert log.open() == (PUT,)
        runtime.interrupt()

    place.carry_out(work)
    (event,) = [e for e in place.events() if isinstance(e, ev.TransferSubmitted)]
    assert event == ev.TransferSubmitted(
        at=1.0, facility="a", ticket="t-1", direction="put", places=PUT.places
    )


def test_without_a_note_nothing_is_submitted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[asyncio.Task[None]] = []

    def full(*_: Any) -> None:
        monkeypatch.undo()
        raise JournalError("The disk is full.")

    async def work(runtime: Runtime) -> None:
        monkeypatch.setattr(Journal, "append", full)
        waiting.append(asyncio.create_task(place.log(runtime).submitted(PUT)))

    async def farewell(runtime: Runtime) -> None:
        (one,) = waiting
        assert not one.done()
        one.cancel()

    place.carry_out(work, farewell, JournalError)
    assert waiting[0].cancelled()
    assert place.kinds() == ["RunStarted"]
    assert place.core.transfers("a") == []


def test_what_is_open_is_known_after_a_crash(place: Place) -> None:
    async def work(runtime: Runtime) -> None:
        a, b = place.log(runtime), place.log(runtime, "b")
        await a.submitted(PUT)
        await a.submitted(GET)
        await b.submitted(Submission(ticket="t-3", direction="put", places=("r/x",)))
        await a.ended(Ended(ticket="t-1", outcome="failed", reason="No", faults=2))
        runtime.interrupt()

    place.carry_out(work)
    again = fresh_core()
    replay(read(place.journal), again)

    async def nobody(event: ev.Event) -> None:
        raise AssertionError(event)

    assert JournaledTransfers("a", again, nobody).open() == (GET,)
    assert [one.ticket for one in again.transfers("b")] == ["t-3"]
    (ended,) = [e for e in place.events() if isinstance(e, ev.TransferEnded)]
    assert (ended.ticket, ended.outcome, ended.reason) == ("t-1", "failed", "No")
    assert ended.faults == 2


def test_a_run_that_is_stopped_writes_the_note_that_waits(place: Place) -> None:
    async def work(runtime: Runtime) -> None:
        runtime.interrupt()  # it stands in the inbox before the note
        await place.log(runtime).submitted(PUT)

    place.carry_out(work)
    assert place.kinds()[-2:] == ["OperatorAsked", "TransferSubmitted"]


def test_who_is_cancelled_while_a_note_waits_harms_nobody(place: Place) -> None:
    async def work(runtime: Runtime) -> None:
        note = asyncio.create_task(place.log(runtime).submitted(PUT))
        await asyncio.sleep(0)  # it stands in the inbox now
        runtime.interrupt()
        note.cancel()
        with pytest.raises(asyncio.CancelledError):
            await note

    place.carry_out(work)
    assert place.kinds()[-2:] == ["TransferSubmitted", "OperatorAsked"]


def test_a_mover_may_note_while_it_is_closed(place: Place) -> None:
    """Nobody reads the inbox then: it would wait for ever."""

    async def work(runtime: Runtime) -> None:
        await place.log(runtime).submitted(PUT)
        runtime.interrupt()

    async def farewell(runtime: Runtime) -> None:
        await place.log(runtime).ended(Ended(ticket="t-1", outcome="cancelled"))

    place.carry_out(work, farewell)
    assert place.kinds()[-1] == "TransferEnded"
    assert place.core.transfers("a") == []


def test_no_later_process_comes_once_the_run_has_an_outcome(place: Place) -> None:
    async def nobody(event: ev.Event) -> None:
        raise AssertionError(event)

    log = JournaledTransfers("a", place.core, nobody)
    place.core.handle(STARTED)
    place.core.handle(ev.OperatorAsked(at=1.0, request="stop"))
    assert not log.closed
    place.core.handle(ev.RunFinished(at=2.0, outcome="partial", reason="x"))
    assert log.closed


def test_the_books_forget_a_ticket_once_and_for_all() -> None:
    books = Books()
    words: dict[str, Any] = {"at": 0.0, "facility": "a", "ticket": "t"}
    submitted = ev.TransferSubmitted(direction="put", places=("x",), **words)
    assert not books.submitted(submitted)
    assert not books.submitted(submitted)  # told again: still one
    assert books.transfers == {"t": submitted}
    ended = ev.TransferEnded(outcome="done", **words)
    assert not books.transferred(ended)
    assert not books.transferred(ended)
    assert books.transfers == {}
