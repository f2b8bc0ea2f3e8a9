"""One batched, polite query for all jobs of a facility."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from hansa.coordinator.contact import Contact, FacilityGone
from hansa.coordinator.reports import JobReport, entries_of, read_pace, read_report
from hansa.core.errors import FacilityError, HansaError
from hansa.site import rpc

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds between polls: `first` after news, then `growth` times longer each.

    With 1.25 an answer is late by at most a fifth of the time it was waited for. The
    facility's own `poll` in site.yaml, told in every reply, replaces first and longest.
    """

    first: float = 0.1
    growth: float = 1.25
    longest: float = 10.0

    def not_below(self, least: float) -> Pace:
        """Return the pace with no wait shorter than so many seconds."""
        if self.first >= least:
            return self
        return replace(self, first=least, longest=max(self.longest, least))


class Poller:
    """Asks the site agent about all watched jobs in one call an interval.

    Args:
        contact: The line to the facility.
        run: Id of the run.
        on_gone: Called once with the error when polling has to be given up.
        pace: How often to ask.
        patience: Seconds for which the agent's own errors are tolerated.
    """

    def __init__(
        self,
        contact: Contact,
        run: str,
        on_gone: Callable[[HansaError], None],
        *,
        pace: Pace,
        patience: float,
    ) -> None:
        self._contact = contact
        self._run = run
        self._on_gone = on_gone
        self._pace = pace
        self._patience = patience
        self._watched: dict[str, asyncio.Queue[JobReport]] = {}
        self._task: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()

    async def reports(self, key: str) -> AsyncGenerator[JobReport]:
        """Yield every poll's report of a job until the caller stops listening."""
        queue: asyncio.Queue[JobReport] = asyncio.Queue()
        self._watched[key] = queue
        self._sooner.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll(), name="poll")
        try:
            while True:
                yield await queue.get()
        finally:
            if self._watched.get(key) is queue:
                del self._watched[key]

    def sooner(self) -> None:
        """Ask again as soon as the facility's pace allows: something will change."""
        self._sooner.set()

    async def close(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        wait, last, heard = self._pace.first, None, loop.time()
        while self._watched:
            sooner = self._sooner.is_set()
            self._sooner.clear()
            asked = loop.time()
            try:
                seen: object = await self._ask()
                heard = loop.time()
            except FacilityGone as error:
                self._on_gone(error)
                return
            except HansaError as error:
                log.warning("A poll failed: %s", error)
                seen = last
                if loop.time() - heard > self._patience:
                    self._on_gone(error)
                    return
            except Exception as error:
                # A watcher must never wait for a poller that is no more.
                log.exception("Polling broke")
                self._on_gone(FacilityError(f"Polling broke: {error!r}."))
                return
            news = seen != last or sooner or self._sooner.is_set()
            wait = (
                self._pace.first
                if news
                else min(wait * self._pace.growth, self._pace.longest)
            )
            last = seen
            await self._pause(wait, asked + self._pace.first)

    async def _pause(self, seconds: float, earliest: float) -> None:
        """Wait; a new job to watch ends the wait, but never the facility's own pace."""
        try:
            async with asyncio.timeout(seconds):
                await self._sooner.wait()
        except TimeoutError:
            return
        await asyncio.sleep(max(0.0, earliest - asyncio.get_running_loop().time()))

    async def _ask(self) -> object:
        keys = sorted(self._watched)
        data = await self._contact.call(rpc.poll(self._run, keys))
        jobs = entries_of(data)
        if (pace := read_pace(data.get("pace"))) is not None:
            self._pace = replace(self._pace, first=pace[0], longest=pace[1])
        self._pace = self._pace.not_below(self._contact.every)
        reports = {key: read_report(jobs.get(key) or {}) for key in keys}
        for key, report in reports.items():
            if key in self._watched:
                self._watched[key].put_nowait(report)
        return {key: report.signature for key, report in reports.items()}
