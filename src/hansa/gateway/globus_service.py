"""The Globus Compute service as all gateways of a process share it.

The service lets a user make 20 requests in 10 s, and nobody tells it to call back. So
one limiter counts all requests of the process, and one poller asks for all open tasks
in one request: soon after a task was submitted, then less and less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from hansa.core.errors import HansaError, LoginError
from hansa.gateway.globus_rest import Busy, GlobusRest, Outcome, Rest

T = TypeVar("T")

REQUESTS: Final = 20
SPAN_S: Final = 10.0
"""What the service allows a user: so many requests in so many seconds."""

FIRST_S: Final = 0.5
LONGEST_S: Final = 5.0
_FACTOR: Final = 1.5
_THREADS: Final = 4

log = logging.getLogger(__name__)


class Limiter:
    """Lets at most `count` requests begin in any `span` seconds.

    Args:
        count: How many.
        span: Seconds.
    """

    def __init__(self, count: int = REQUESTS, span: float = SPAN_S) -> None:
        self._began: deque[float] = deque(maxlen=count)
        self._span = span
        self._closed_until = 0.0
        self._queue = asyncio.Lock()

    async def turn(self) -> None:
        """Return when the next request may begin; first come, first served."""
        loop = asyncio.get_running_loop()
        async with self._queue:
            while True:  # `hold` may prolong the wait meanwhile
                wait = self._wait(loop.time())
                if wait <= 0:
                    break
                await asyncio.sleep(wait)
            self._began.append(loop.time())

    def hold(self, seconds: float) -> None:
        """Let no request begin for so long."""
        until = asyncio.get_running_loop().time() + seconds
        self._closed_until = max(self._closed_until, until)

    def _wait(self, now: float) -> float:
        full = len(self._began) == self._began.maxlen
        free = self._began[0] + self._span if full else now
        return max(free, self._closed_until) - now


class Service:
    """One user's requests to the service, from one event loop.

    Args:
        connect: Makes a connection, on a thread; called again after an error. None:
            a real one.

    Attributes:
        trouble: Why the poller can't ask at present, or None.
        offline_since: When an endpoint was first seen offline, by the loop's clock;
            until it is seen online again.
    """

    def __init__(self, connect: Callable[[], Rest] | None = None) -> None:
        self._connect = connect or GlobusRest
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hansa-globus")
        self._idle: deque[Rest] = deque()
        self._limiter = Limiter()
        self._open: dict[str, asyncio.Future[Outcome]] = {}
        self._fresh = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._group: str | None = None
        self._users = 0
        self._ended = False
        self._pause = FIRST_S
        self.trouble: HansaError | None = None
        self.offline_since: dict[str, float] = {}

    async def ask(self, question: Callable[[Rest], T]) -> T:
        """Return the answer to one request, made when the limit allows it.

        Raises:
            HansaError: Whatever the request raised.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._limiter.turn()
            try:
                return await loop.run_in_executor(self._threads, self._do, question)
            except Busy as busy:
                log.info("Globus Compute is busy; waiting for %g s", busy.wait)
                self._limiter.hold(busy.wait)

    async def submit(
        self,
        endpoint: str,
        function: str,
        arguments: Mapping[str, object],
        resources: Mapping[str, int] | None = None,
    ) -> str:
        """Have a function called at an endpoint; return the task's id.

        Args:
            endpoint: Where.
            function: Which one.
            arguments: By name; JSON.
            resources: What the task needs of the endpoint's own block, if it has one.
        """
        group = self._group
        done = await self.ask(
            lambda rest: rest.submit(endpoint, function, arguments, group, resources)
        )
        self._group = done.group
        return done.task

    async def outcome(self, task: str) -> Outcome:
        """Return how a task ended, when it has; if cancelled, it is forgotten.

        Raises:
            LoginError: Somebody must log in before anything can be asked for.
            HansaError: The service refuses to tell.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._open[task] = future
        self._pause = FIRST_S
        self._fresh.set()
        if self._poller is None or self._poller.done():
            self.trouble = None
            self._poller = asyncio.create_task(self._poll())
        try:
            return await future
        finally:
            self._open.pop(task, None)

    async def online(self, endpoint: str) -> bool:
        """Tell whether the service counts an endpoint as online; note if it does not.

        Raises:
            HansaError: The service can't be asked, or knows no such endpoint.
        """
        status = await self.ask(lambda rest: rest.status(endpoint))
        if status == "online":
            self.offline_since.pop(endpoint, None)
            return True
        now = asyncio.get_running_loop().time()
        self.offline_since.setdefault(endpoint, now)
        return False

    def use(self) -> Service:
        """Count one more user; return the service."""
        self._users += 1
        return self

    async def leave(self) -> bool:
        """Count one user less; tell whether it was the last one, and end all then."""
        self._users -= 1
        if self._users > 0:
            return False
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller
        self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._hang_up()
        return True

    def _do(self, question: Callable[[Rest], T]) -> T:
        """Ask over a connection that nobody uses; one that failed is not used again."""
        try:
            rest = self._idle.pop()
        except IndexError:
            rest = self._connect()
        try:
            answer = question(rest)
        except BaseException:
            rest.close()
            raise
        self._idle.append(rest)
        if self._ended:
            self._hang_up()
        return answer

    def _hang_up(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    async def _poll(self) -> None:
        """Ask for all open tasks until there are none."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while self._open:
            wait = asked + self._pause - loop.time()
            if wait > 0:
                await self._rest(wait)
                continue
            settled = await self._ask_for(list(self._open))
            asked = loop.time()
            self._pause = FIRST_S if settled else min(self._pause * _FACTOR, LONGEST_S)

    async def _rest(self, wait: float) -> None:
        """Wait, but no longer than until there is a new task."""
        self._fresh.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._fresh.wait()

    async def _ask_for(self, tasks: list[str]) -> bool:
        """Ask for tasks; tell whether one of them is over."""
        try:
            found = await self.ask(lambda rest: rest.outcomes(tasks))
        except HansaError as error:
            self._note(error)
            return False
        except Exception as error:  # a fault of ours must not leave them waiting
            self._end(tasks, error)
            return False
        self.trouble = None
        over = {task: one for task, one in found.items() if one.over}
        for task, outcome in over.items():
            future = self._open.pop(task, None)
            if future is not None and not future.done():
                future.set_result(outcome)
        return bool(over)

    def _note(self, error: HansaError) -> None:
        """Keep what may pass for whoever runs out of time; tell the rest at once."""
        self.trouble = error
        log.info("Globus Compute can't be polled: %s", error)
        if isinstance(error, LoginError) or not error.transient:
            self._end(list(self._open), error)

    def _end(self, tasks: list[str], error: Exception) -> None:
        for task in tasks:
            future = self._open.pop(task, None)
            if future is not None and not future.done():
                future.set_exception(error)


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, Service] = WeakKeyDictionary()


def join() -> Service:
    """Return the service that this loop's gateways share; `part` from it when done."""
    loop = asyncio.get_running_loop()
    found = _shared.get(loop)
    if found is None:
        found = _shared[loop] = Service()
    return found.use()


async def part(service: Service) -> None:
    """Let go of what `join` returned."""
    loop = asyncio.get_running_loop()
    if await service.leave() and _shared.get(loop) is service:
        del _shared[loop]
