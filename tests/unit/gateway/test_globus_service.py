"""The service as all gateways of a process share it, over a pretended connection."""

import asyncio
from dataclasses import dataclass, field

import pytest

from hansa.core.errors import GatewayError, LoginError
from hansa.gateway import globus_service
from hansa.gateway.globus_rest import Busy, Outcome, Submitted
from hansa.gateway.globus_service import REQUESTS, SPAN_S, Limiter, Service
from hansa.testing import virtual_time

RUNNING = Outcome("running")


def done(result):
    return Outcome("success", over=True, result=result)


@dataclass
class FakeRest:
    """The service's side of all connections; `ends` says how tasks are."""

    ends: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    sent: list = field(default_factory=list)
    fails: list = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    word: str = "online"

    def connect(self):
        self.opened += 1
        return self

    def _maybe_fail(self):
        if self.fails:
            raise self.fails.pop(0)

    def submit(self, endpoint, function, arguments, group, resources=None):
        self._maybe_fail()
        self.sent.append((endpoint, function, arguments, group, resources))
        return Submitted(f"task-{len(self.sent)}", "the-group")

    def outcomes(self, tasks):
        self.asked.append(sorted(tasks))
        self._maybe_fail()
        return {task: self.ends.get(task, RUNNING) for task in tasks}

    def status(self, endpoint):
        self._maybe_fail()
        return self.word

    def close(self):
        self.closed += 1


@pytest.fixture
def rest():
    return FakeRest()


def run(rest, work):
    """Run `work(service)` on a clock that nobody waits for."""

    async def whole():
        service = Service(rest.connect).use()
        try:
            return await work(service)
        finally:
            await service.leave()

    return virtual_time.run(whole())


def now():
    return asyncio.get_running_loop().time()


# --- the limiter ----------------------------------------------------------------------


def test_no_more_requests_begin_than_the_service_allows():
    async def work():
        limiter, times = Limiter(), []

        async def one():
            await limiter.turn()
            times.append(now())

        await asyncio.gather(*(one() for _ in range(3 * REQUESTS)))
        return times

    times = virtual_time.run(work())
    for first in times:
        assert sum(first <= one < first + SPAN_S for one in times) <= REQUESTS
    assert times[-1] == 2 * SPAN_S


def test_when_the_service_asks_for_patience_all_have_it(rest):
    rest.fails = [Busy(7.0)]

    async def work(service):
        first = asyncio.create_task(service.ask(lambda one: one.status("e")))
        await asyncio.sleep(1)
        await asyncio.gather(first, service.ask(lambda one: one.status("e")))
        return now()

    assert run(rest, work) == 7.0


# --- polling --------------------------------------------------------------------------


def test_all_open_tasks_are_asked_for_in_one_request(rest):
    async def work(service):
        waiting = [asyncio.create_task(service.outcome(name)) for name in "abc"]
        await asyncio.sleep(2)
        rest.ends = {name: done(name) for name in "abc"}
        return [one.result for one in await asyncio.gather(*waiting)]

    assert run(rest, work) == ["a", "b", "c"]
    assert all(one == ["a", "b", "c"] for one in rest.asked)


def test_polls_become_rare_and_are_quick_again_for_a_new_task(rest):
    async def work(service):
        times = []
        rest.outcomes = lambda tasks: times.append(now_of_loop()) or {}
        loop = asyncio.get_running_loop()

        def now_of_loop():
            return loop.time()

        old = asyncio.create_task(service.outcome("old"))
        await asyncio.sleep(60)
        rare = times[-1] - times[-2]
        begun = now()
        new = asyncio.create_task(service.outcome("new"))
        await asyncio.sleep(1)
        soon = [one for one in times if one >= begun]
        old.cancel()
        new.cancel()
        return times[0], rare, soon[0] - begun

    first, rare, soon = run(rest, work)
    assert (first, rare) == (0.5, 5.0)
    assert soon <= 0.5


def test_a_slow_service_is_not_asked_for_what_it_has_told(rest):
    """When a request takes longer than the pause, the next poll is due at once."""

    class Slow(Service):
        async def ask(self, question):
            answer = await super().ask(question)
            await asyncio.sleep(7)
            return answer

    rest.ends = {"a": done(1)}

    async def work():
        service = Slow(rest.connect).use()
        await service.outcome("a")
        await asyncio.sleep(60)
        await service.leave()

    virtual_time.run(work())
    assert rest.asked == [["a"]]


def test_nobody_is_asked_for_nothing(rest):
    async def work(service):
        rest.ends = {"a": done(1)}
        await service.outcome("a")
        count = len(rest.asked)
        await asyncio.sleep(600)
        return len(rest.asked) - count

    assert run(rest, work) == 0


def test_an_abandoned_task_is_forgotten_and_its_late_answer_ignored(rest):
    async def work(service):
        other = asyncio.create_task(service.outcome("other"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await service.outcome("lost")
        rest.asked.clear()
        rest.ends = {"lost": done("late"), "other": done("here")}
        assert (await other).result == "here"
        return rest.asked

    assert run(rest, work) == [["other"]]


def test_an_outage_is_waited_out_and_kept_for_who_runs_out_of_time(rest):
    away = GatewayError("Globus can't be reached.")
    rest.fails = [away] * 8
    rest.ends = {"a": done(1)}

    async def work(service):
        task = asyncio.create_task(service.outcome("a"))
        await asyncio.sleep(2)
        during = service.trouble
        await task
        return during, service.trouble, now()

    during, after, took = run(rest, work)
    assert (during, after) == (away, None)
    assert took > 10


@pytest.mark.parametrize(
    "error",
    [LoginError("log in"), GatewayError("no", transient=False), ValueError("?")],
)
def test_what_will_not_pass_by_itself_is_told_at_once(rest, error):
    rest.fails = [error]

    async def work(service):
        calls = (service.outcome(name) for name in "ab")
        return await asyncio.gather(*calls, return_exceptions=True), now()

    told, when = run(rest, work)
    assert told == [error, error]
    assert when < 1


def test_a_task_that_the_service_does_not_know_is_waited_for(rest):
    rest.outcomes = lambda tasks: {}

    async def work(service):
        async with asyncio.timeout(30):
            await service.outcome("a")

    with pytest.raises(TimeoutError):
        run(rest, work)


# --- submitting -----------------------------------------------------------------------


def test_all_tasks_of_a_process_are_one_group_of_its_own(rest):
    async def work(service):
        first = await service.submit("e", "f", {"a": 1})
        second = await service.submit("e", "f", {"a": 2}, {"num_nodes": 2})
        return first, second

    assert run(rest, work) == ("task-1", "task-2")
    assert rest.sent == [
        ("e", "f", {"a": 1}, None, None),
        ("e", "f", {"a": 2}, "the-group", {"num_nodes": 2}),
    ]


def test_since_when_an_endpoint_is_offline_is_remembered(rest):
    async def work(service):
        rest.word = "offline"
        await asyncio.sleep(5)
        assert not await service.online("e")
        await asyncio.sleep(60)
        assert not await service.online("e")
        since = dict(service.offline_since)
        rest.word = "online"
        assert await service.online("e")
        return since, service.offline_since

    assert run(rest, work) == ({"e": 5.0}, {})


# --- connections ----------------------------------------------------------------------


def test_a_connection_is_kept_but_not_after_an_error(rest):
    async def work(service):
        for _ in range(5):
            await service.online("e")
        assert (rest.opened, rest.closed) == (1, 0)
        rest.fails = [LoginError("log in")]
        with pytest.raises(LoginError):
            await service.online("e")
        assert (rest.opened, rest.closed) == (1, 1)
        await service.online("e")
        return rest.opened

    assert run(rest, work) == 2
    assert rest.closed == 2


def test_gateways_of_a_loop_share_one_service_until_the_last_one_goes(
    rest, monkeypatch
):
    monkeypatch.setattr(globus_service, "GlobusRest", rest.connect)

    async def work():
        one, other = globus_service.join(), globus_service.join()
        assert one is other
        before = rest.closed
        await one.online("e")
        await globus_service.part(one)
        assert await other.online("e")
        assert rest.closed == before
        await globus_service.part(other)
        assert rest.closed == before + 1
        return one

    assert asyncio.run(work()) is not asyncio.run(work())
