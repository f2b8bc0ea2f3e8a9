"""The queue of one direction, against a service of which nothing is real."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import JournalError, LoginError, StorageFull, TransferError
from hansa.mover.base import Damaged, Ended, Submission
from hansa.mover.globus_queue import EVERY_S, FAREWELL_S, GRACE_S, Queue, Wish
from hansa.mover.globus_service import Accepted, Item
from hansa.mover.globus_words import TaskView
from hansa.testing import virtual_time


class Log:
    """A log that tells when it was written to; it outlives the queues."""

    closed = False

    def __init__(self, service: Fake) -> None:
        self.noted: dict[str, Submission] = {}
        self.over: dict[str, Ended] = {}
        self.broken = False
        self.first = asyncio.Event()
        self._service = service

    def open(self):
        return tuple(s for t, s in self.noted.items() if t not in self.over)

    async def submitted(self, submission):
        await asyncio.sleep(0.01)
        if self.broken:
            raise JournalError("The disk is full.")
        assert submission.ticket not in self._service.tickets
        self.noted[submission.ticket] = submission
        self.first.set()

    async def ended(self, ended):
        await asyncio.sleep(0.01)
        assert ended.ticket in self.noted
        assert ended.ticket not in self.over
        self.over[ended.ticket] = ended


class Fake:
    """A service whose tasks take `takes` seconds; keeps what it was asked."""

    direction = "put"

    def __init__(self, takes: float = 30.0) -> None:
        self.takes = takes
        self.numbers = itertools.count(1)
        self.tickets: dict[str, str] = {}
        self.items: dict[str, tuple[Item, ...]] = {}
        self.began: dict[str, float] = {}
        self.cancelled: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.troubles: list[Exception] = []
        self.lost_answers = 0
        self.looks = 0

    async def _line(self):
        await asyncio.sleep(0.05)
        if self.troubles:
            raise self.troubles.pop(0)

    async def ticket(self):
        await self._line()
        return f"ticket-{next(self.numbers)}"

    async def submit(self, ticket, items):
        await self._line()
        again = ticket in self.tickets
        task = self.tickets.setdefault(ticket, f"task-of-{ticket}")
        if not again:
            self.items[task] = items
            self.began[task] = asyncio.get_running_loop().time()
        if self.lost_answers:
            self.lost_answers -= 1
            raise TransferError("The line broke.")
        return Accepted(task=task, again=again)

    async def look(self, task):
        await self._line()
        self.looks += 1
        now = asyncio.get_running_loop().time()
        if task in self.cancelled:
            return TaskView(status="FAILED", fatal="CANCELED")
        if now - self.began[task] < self.takes:
            return TaskView(status="ACTIVE", nice="OK", bytes=1)
        if task in self.failing:
            return TaskView(status="FAILED", fatal="WHY")
        size = sum(item.bytes for item in self.items[task])
        return TaskView(status="SUCCEEDED", bytes=size, seconds=self.takes)

    async def sent(self, task):
        return {item.target: item.bytes for item in self.items[task]}

    async def failure(self, task, view, places):
        return self.failing.get(task) or TransferError("It was cancelled.")

    async def cancel(self, task):
        await self._line()
        self.cancelled.append(task)

    async def find(self, ticket):
        await self._line()
        return self.tickets.get(ticket)


def wish(place: str, size: int = 10) -> Wish:
    return Wish(place=place, items=(Item(origin="o", target=f"t/{place}", bytes=size),))


class Bench:
    def __init__(self, **fake) -> None:
        self.service = Fake(**fake)
        self.log = Log(self.service)
        self.seen = []
        self.renew()

    def renew(self):
        """Be the next process, which knows the log only."""
        self.queue = Queue(self.service, self.log, self.seen.append)

    async def carry(self, place: str, error: Exception | None = None) -> int:
        async with self.queue.carried(wish(place)) as size:
            if error is not None:
                raise error
            return size

    def start(self, place: str):
        return asyncio.create_task(self.carry(place))

    async def crash(self, *callers):
        """End without a word to the service or the log, as kill -9 does."""
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await self.queue.close(forget=False)
        self.renew()

    @property
    def places(self):
        """Return what each task of the service brings."""
        return [
            sorted(i.target[2:] for i in items) for items in self.service.items.values()
        ]


def run(work, **fake):
    bench = Bench(**fake)

    async def main():
        await work(bench)
        await bench.queue.close(forget=False)

    virtual_time.run(main())
    return bench


def test_what_comes_while_a_task_is_under_way_goes_together():
    async def work(b):
        first = b.start("a")
        await asyncio.sleep(5)
        rest = [b.start(place) for place in "bcd"]
        assert await asyncio.gather(first, *rest) == [10, 10, 10, 10]

    bench = run(work)
    assert bench.places == [["a"], ["b", "c", "d"]]
    assert [s.places for s in bench.log.noted.values()] == [("a",), ("b", "c", "d")]
    assert [one.outcome for one in bench.log.over.values()] == ["done", "done"]
    assert not bench.log.open()
    assert bench.seen[-1] is None


def test_a_task_is_asked_after_politely():
    bench = run(lambda b: b.carry("a"), takes=3600.0)
    assert 3600 / EVERY_S < bench.service.looks < 3600 / EVERY_S + 10


def test_a_cancelled_caller_finds_its_task_again():
    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        assert await b.carry("a") == 10

    bench = run(work)
    assert bench.places == [["a"]]
    assert bench.service.cancelled == []


def test_others_do_not_wait_for_what_nobody_waits_for():
    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        caller.cancel()
        began = asyncio.get_running_loop().time()
        await b.carry("b")
        assert asyncio.get_running_loop().time() - began < 60

    bench = run(work, takes=40.0)
    assert bench.places == [["a"], ["b"]]


def test_what_nobody_comes_back_for_makes_room():
    async def work(b):
        caller = b.start("old")
        await asyncio.sleep(5)
        await b.crash(caller)
        await b.carry("new")

    bench = run(work, takes=GRACE_S * 2)
    assert bench.service.cancelled == ["task-of-ticket-1"]
    assert bench.log.over["ticket-1"].outcome == "cancelled"
    assert bench.log.over["ticket-2"].outcome == "done"


def test_what_somebody_waits_for_need_not_make_room():
    """Two tasks of an earlier process are wanted: each is waited for in its turn."""

    async def work(b):
        for place in "ab":
            caller = b.start(place)
            await asyncio.sleep(15)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
        await b.crash()
        assert await asyncio.gather(b.start("a"), b.start("b")) == [10, 10]

    bench = run(work, takes=GRACE_S * 4)
    assert bench.places == [["a"], ["b"]]
    assert bench.service.cancelled == []
    assert not bench.log.open()


def test_what_the_service_never_heard_of_is_forgotten():
    async def work(b):
        b.log.noted["lost"] = Submission(ticket="lost", direction="put", places=("x",))
        await b.carry("new")

    bench = run(work, takes=GRACE_S * 2)
    assert bench.service.cancelled == []
    assert bench.log.over["lost"].outcome == "cancelled"


def test_the_other_direction_is_left_alone():
    async def work(b):
        b.log.noted["x"] = Submission(ticket="x", direction="get", places=("a",))
        await b.carry("a")

    bench = run(work, takes=GRACE_S * 2)
    assert list(bench.service.tickets) == ["ticket-1"]
    assert "x" not in bench.log.over


def test_a_ticket_that_the_service_never_got_is_used_by_the_next_process():
    async def work(b):
        b.log.noted["t"] = Submission(ticket="t", direction="put", places=("a", "b"))
        assert await b.carry("a") == 10
        assert await b.carry("b") == 10

    bench = run(work)
    assert list(bench.service.tickets) == ["t", "ticket-1"]
    assert bench.places == [["a"], ["b"]]  # it can't know what b's files were
    assert not bench.log.open()


@pytest.mark.parametrize("call", ["submit", "look"])
def test_a_ticket_that_the_service_has_forgotten_is_followed_by_a_new_one(call):
    """As when a run is resumed after months, or with another identity."""

    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        await b.crash(caller)
        real = getattr(b.service, call)

        async def forgetful(what, *more):
            if what.endswith("ticket-1"):
                raise TransferError("not found", transient=False)
            return await real(what, *more)

        setattr(b.service, call, forgetful)
        assert await b.carry("a") == 10

    bench = run(work)
    ended = [(one.outcome, one.reason) for one in bench.log.over.values()]
    assert ended == [("failed", "not found"), ("done", "")]


def test_what_failed_for_an_earlier_process_is_tried_by_this_one():
    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        await b.crash(caller)
        b.service.failing["task-of-ticket-1"] = StorageFull("The disk was full.")
        await asyncio.sleep(60)
        assert await b.carry("a") == 10

    bench = run(work)
    assert bench.log.over["ticket-1"].reason == "The disk was full."
    assert bench.log.over["ticket-2"].outcome == "done"


def test_a_login_that_is_missing_for_good_leaves_the_ticket_alone():
    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        await b.crash(caller)
        b.service.troubles = [LoginError("half a client app", transient=False)]
        with pytest.raises(LoginError):
            await b.carry("a")
        b.renew()
        assert await b.carry("a") == 10

    bench = run(work)
    assert list(bench.log.noted) == ["ticket-1"]


@pytest.mark.parametrize("after", [0.055, 5.0])
def test_who_leaves_a_task_takes_nothing_from_the_others(after):
    async def work(b):
        leaving, staying = b.start("a"), b.start("b")
        await asyncio.sleep(after)
        leaving.cancel()
        assert await staying == 10
        await b.crash(leaving)
        assert await b.carry("a") == 10
        await b.queue.close(forget=True)

    bench = run(work)
    assert bench.places == [["a", "b"]]
    assert [one.outcome for one in bench.log.over.values()] == ["done"]


def test_a_noted_task_serves_all_its_places():
    async def work(b):
        callers = [b.start("a"), b.start("b")]
        await asyncio.sleep(5)
        await b.crash(*callers)
        assert await b.carry("b") == 10
        assert await b.carry("a") == 10

    bench = run(work)
    assert bench.places == [["a", "b"]]
    assert [one.outcome for one in bench.log.over.values()] == ["done"]


def test_a_lost_answer_does_not_submit_twice():
    async def work(b):
        b.service.lost_answers = 1
        with pytest.raises(TransferError, match="line broke"):
            await b.carry("a")
        assert await b.carry("a") == 10

    bench = run(work)
    assert list(bench.service.tickets) == ["ticket-1"]


def test_an_outage_leaves_the_task_going():
    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        b.service.troubles = [TransferError("Globus can't be reached.")] * 2
        with pytest.raises(TransferError, match="can't be reached"):
            await caller
        with pytest.raises(TransferError, match="can't be reached"):
            await b.carry("a")
        assert await b.carry("a") == 10

    bench = run(work)
    assert bench.places == [["a"]]


def test_a_missing_consent_keeps_the_ticket():
    async def work(b):
        caller = b.start("a")
        await b.log.first.wait()
        b.service.troubles = [LoginError("no consent")]
        with pytest.raises(LoginError):
            await caller
        await b.carry("a")

    bench = run(work)
    assert list(bench.log.noted) == ["ticket-1"]


def test_a_refused_submission_is_over():
    async def work(b):
        caller = b.start("a")
        await b.log.first.wait()
        b.service.troubles = [TransferError("no such collection", transient=False)]
        with pytest.raises(TransferError, match="no such collection"):
            await caller

    bench = run(work)
    assert bench.log.over["ticket-1"].outcome == "failed"
    assert not bench.service.tickets


def test_a_failed_task_is_told_to_all_and_made_anew():
    async def work(b):
        b.service.failing["task-of-ticket-1"] = Damaged("The checksum differs.")
        callers = [b.start("a"), b.start("b")]
        for caller in callers:
            with pytest.raises(Damaged):
                await caller
        assert await b.carry("a") == 10

    bench = run(work)
    ended = bench.log.over["ticket-1"]
    assert (ended.outcome, ended.reason) == ("failed", "The checksum differs.")
    assert bench.places == [["a", "b"], ["a"]]


def test_what_is_damaged_on_arrival_is_brought_anew():
    async def work(b):
        with pytest.raises(Damaged):
            await b.carry("a", Damaged("differs"))
        await b.carry("a")

    assert run(work).places == [["a"], ["a"]]


def test_a_rename_that_failed_for_now_needs_no_second_task():
    async def work(b):
        with pytest.raises(TransferError):
            await b.carry("a", TransferError("The service is away."))
        assert b.log.open()
        await b.carry("a")

    bench = run(work)
    assert bench.places == [["a"]]
    assert not bench.log.open()


def test_nothing_is_submitted_that_could_not_be_noted():
    async def work(b):
        b.log.broken = True
        with pytest.raises(JournalError):
            await b.carry("a")
        b.log.broken = False
        await b.carry("a")

    bench = run(work)
    assert list(bench.service.tickets) == ["ticket-2"]


def test_a_broken_driver_leaves_nobody_waiting():
    async def work(b):
        b.service.troubles = [ZeroDivisionError("a bug")]
        with pytest.raises(ZeroDivisionError):
            await b.carry("a")

    run(work)


def test_without_a_log_a_task_ends_with_its_queue():
    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await b.queue.close(forget=True)

    assert run(work).service.cancelled == ["task-of-ticket-1"]


def test_at_the_end_of_a_run_what_nobody_wants_is_cancelled():
    """That of an earlier process, too, though this one had nothing to move."""

    async def work(b):
        for place in "ab":
            caller = b.start(place)
            await asyncio.sleep(15)
            await b.crash(caller)
        await asyncio.sleep(5)
        await b.queue.close(forget=True)

    bench = run(work)
    assert bench.service.cancelled == ["task-of-ticket-2"]
    outcomes = [one.outcome for one in bench.log.over.values()]
    assert outcomes == ["done", "cancelled"]


def test_a_service_that_is_away_does_not_hold_up_the_end_of_a_run():
    async def work(b):
        caller = b.start("a")
        await asyncio.sleep(5)
        await b.crash(caller)
        b.service.find = lambda ticket: asyncio.sleep(3600)
        began = asyncio.get_running_loop().time()
        await b.queue.close(forget=True)
        assert asyncio.get_running_loop().time() - began <= FAREWELL_S

    assert run(work).log.open()


def test_progress_is_of_all_files_and_tells_what_ails():
    async def work(b):
        ailing = TaskView(status="ACTIVE", nice="PERMISSION_DENIED", bytes=3, faults=2)
        real, b.service.look = b.service.look, None

        async def look(task):
            now = asyncio.get_running_loop().time()
            return ailing if now < 10 else await real(task)

        b.service.look = look
        await asyncio.gather(b.carry("a"), b.carry("b"))

    bench = run(work)
    first = bench.seen[0]
    assert (first.bytes, first.total, first.faults) == (3, 20, 2)
    assert first.status.startswith("PERMISSION_DENIED (")


STEP = st.tuples(
    st.sampled_from(["call", "call", "call", "cancel", "crash", "away", "lose"]),
    st.sampled_from("abcde"),
    st.floats(0, 40),
)


class Callers:
    """Insist, as lanes do, through deaths of their process."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.landed: set[str] = set()
        self.tasks: dict[str, asyncio.Task] = {}

    async def _insist(self, place: str) -> None:
        while place not in self.landed:  # as the target's being there tells
            try:
                async with self.bench.queue.carried(wish(place)):
                    await asyncio.sleep(0.1)
                    self.landed.add(place)
            except TransferError:
                await asyncio.sleep(1)

    def call(self, place: str) -> None:
        if place not in self.tasks:
            self.tasks[place] = asyncio.create_task(self._insist(place))

    async def cancel(self, place: str) -> None:
        if (task := self.tasks.pop(place, None)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.call(place)

    async def crash(self, place: str) -> None:
        before, self.tasks = self.tasks, {}
        await self.bench.crash(*before.values())
        for one in before:
            self.call(one)

    def away(self, place: str) -> None:
        self.bench.service.troubles.append(TransferError("away"))

    def lose(self, place: str) -> None:
        self.bench.service.lost_answers += 1


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=25), takes=st.floats(0.1, 60))
def test_whatever_happens_all_arrives_and_nothing_is_sent_twice(steps, takes):
    """Processes die, callers change their mind, the line breaks."""

    async def work(bench):
        callers = Callers(bench)
        for what, place, pause in steps:
            done = getattr(callers, what)(place)
            if done is not None:
                await done
            await asyncio.sleep(pause)
        await asyncio.gather(*callers.tasks.values())
        assert callers.landed == set(callers.tasks)
        sent = Counter(place for places in bench.places for place in places)
        assert sent == dict.fromkeys(callers.tasks, 1)
        assert set(bench.service.tickets) <= set(bench.log.noted)

    run(work, takes=takes)
