"""Jobs for a block of nodes that a second endpoint of a facility holds.

Where nobody may submit from a login node, a job waits in a queue of files
(`hansa.scheduler.block`) until something in the block runs it. That something is a task
of Globus Compute: for each job that waits, the gateway asks the block's endpoint once
to ``work`` on it, by the same one function. The batch system's queue is then that of
the endpoint's engine.

Nothing rests on a task: what becomes of a job is told by polls, and a job that was
handed over twice is run once. So a job is handed over again when it still waits and its
task is over, and now and then when nothing is heard of it, as a task dies with the
process that had taken it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from hansa.core.errors import HansaError, PolicyError
from hansa.core.units import Seconds, format_duration
from hansa.gateway import globus_words
from hansa.gateway.globus_function import LONGEST_S
from hansa.gateway.globus_rest import Outcome
from hansa.gateway.globus_service import Service
from hansa.scheduler.base import JobState, JobStatus
from hansa.site import rpc
from hansa.site.records import is_key

log = logging.getLogger(__name__)

MPI: Final = "GlobusMPIEngine"

LOOK_S: Final = 30.0
"""A task of a job that waits is asked for so often."""

RETRY_S, LONGEST_RETRY_S = 10.0, 600.0
"""Seconds between two tries to hand a job over; doubled from try to try."""

_SHARE_S: Final = 15.0
"""So long may a request hold up the answer that it follows."""


class BlockOptions(BaseModel):
    """Options of a block of nodes.

    Attributes:
        endpoint: Id of the endpoint that holds it.
        nodes: Nodes of the block; no job that asks for more is sent to it.
        engine: The endpoint's engine. A GlobusMPIEngine is told the job's nodes and
            says in `PARSL_MPI_NODELIST` which ones they are.
        again: A job of which nothing is heard is handed over again after so long; then
            after twice as long, and so on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: UUID
    nodes: Annotated[int, Field(ge=1)] = 1
    engine: Literal["GlobusComputeEngine", "GlobusMPIEngine"] = "GlobusComputeEngine"
    again: Annotated[Seconds, Field(gt=0)] = 1800.0


@dataclass(slots=True)
class _Handed:
    """A job that was handed over, or was tried to.

    Attributes:
        task: Its task, as long as that is open.
        at: Time of the last try.
        tries: How many there were.
        looked: When the task was last asked for.
        known: What the service last said of it.
        trouble: What went wrong last; empty: nothing.
    """

    task: str | None = None
    at: float = float("-inf")
    tries: int = 0
    looked: float = float("-inf")
    known: str = ""
    trouble: str = ""


class Block:
    """Hands a facility's waiting jobs over to the endpoint that holds its block.

    Args:
        options: The block.
        function: Id of Hansa's function there.
        service: Gives the service.
        now: Seconds that only grow.
    """

    def __init__(
        self,
        options: BlockOptions,
        function: str,
        service: Callable[[], Service],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = str(options.endpoint)
        self._options = options
        self._function = function
        self._service = service
        self._now = now
        self._jobs: dict[tuple[str, str], _Handed] = {}
        self._alone = asyncio.Lock()

    def check(self, request: Mapping[str, Any]) -> None:
        """Refuse a job that is wider than the block, before anything is sent.

        Raises:
            PolicyError: It asks for more nodes.
        """
        if request.get("op") in ("submit", "place"):
            nodes = int(request["job"].get("nodes", 1))
            if nodes > self._options.nodes:
                raise PolicyError(
                    f"A job asks for {nodes} nodes; {self._called} has "
                    f"{self._options.nodes} (`gateway.block.nodes`).",
                    hint="Ask for fewer in `job.nodes` of the federation, or have the "
                    "facility's endpoint hold a larger block.",
                )

    async def follow(self, request: Mapping[str, Any], reply: dict[str, Any]) -> None:
        """Hand over what an answer shows to wait; say in it how that went.

        Args:
            request: What the facility was asked.
            reply: Its answer; what it says of why jobs wait is replaced.

        Raises:
            SchedulerError: The answer tells nonsense of a job.
        """
        op, job = request.get("op"), job_of(request)
        if op != "poll" and job is None:
            return
        async with self._alone:
            if job is None:
                await self._polled(str(request["run"]), reply)
            else:
                await self._submitted(request, job, reply)

    async def _submitted(
        self,
        request: Mapping[str, Any],
        job: tuple[str, str],
        reply: Mapping[str, Any],
    ) -> None:
        if reply.get("found") or reply.get("host"):
            return  # it may be running: a poll tells
        nodes = int(request["job"].get("nodes", 1))
        await self._hand_over(*job, nodes)

    async def _polled(self, run: str, reply: Mapping[str, Any]) -> None:
        jobs = reply.get("jobs")
        for asked, entry in (jobs if isinstance(jobs, dict) else {}).items():
            record = entry.get("scheduler") if isinstance(entry, dict) else None
            if not isinstance(record, dict):
                continue
            status = JobStatus.from_json(record)
            # Of an order that another job has taken on, it is that job's record.
            key = status.name.removeprefix(f"hansa.{run}.")
            if status.state is not JobState.QUEUED:
                self._jobs.pop((run, asked), None)
                self._jobs.pop((run, key), None)
            elif is_key(key):
                await self._waits(run, key, status.nodes)
                record["why"] = self._why(self._jobs[run, key])

    async def _waits(self, run: str, key: str, nodes: int) -> None:
        """See to a job that waits."""
        job = self._jobs.get((run, key))
        if job is not None and job.task is not None:
            await self._look(job)
        if job is None or self._is_due(job):
            await self._hand_over(run, key, nodes)

    def _is_due(self, job: _Handed) -> bool:
        return self._now() - job.at >= self._pause(job)

    def _pause(self, job: _Handed) -> float:
        """Return the seconds from the last try to the next one."""
        doubled = 2.0 ** min(job.tries - 1, 20)
        if job.task is not None:
            return self._options.again * doubled
        return min(RETRY_S * doubled, LONGEST_RETRY_S)

    async def _hand_over(self, run: str, key: str, nodes: int) -> None:
        job = self._jobs.setdefault((run, key), _Handed())
        job.at, job.tries = self._now(), job.tries + 1
        if nodes > self._options.nodes:
            most = self._options.nodes
            self._note(job, f"It asks for {nodes} nodes; {self._called} has {most}.")
            return
        arguments = {
            "request": rpc.work(run, key),
            "timeout": LONGEST_S,
            "expires": None,
        }
        service = self._service()
        try:
            async with asyncio.timeout(_SHARE_S):
                job.task = await service.submit(
                    self.endpoint, self._function, arguments, self._resources(nodes)
                )
            job.looked, job.known = self._now(), ""
        except TimeoutError:
            self._note(job, "Globus Compute does not answer.")
        except HansaError as error:
            self._note(job, _said(error))

    def _resources(self, nodes: int) -> dict[str, int] | None:
        # Without ranks its prefixes for launchers would have holes.
        mpi = self._options.engine == MPI
        return {"num_nodes": nodes, "ranks_per_node": 1} if mpi else None

    async def _look(self, job: _Handed) -> None:
        """Ask for the task of a job that waits; it should not be over."""
        if self._now() - job.looked < LOOK_S or job.task is None:
            return
        job.looked, task, service = self._now(), job.task, self._service()
        try:
            async with asyncio.timeout(_SHARE_S):
                found = await service.ask(lambda rest: rest.outcomes([task]))
                online = await service.online(self.endpoint)
        except TimeoutError:
            return  # other calls tell that the service is away
        except HansaError as error:
            self._note(job, _said(error))
            return
        job.trouble = "" if online else f"{self._called} is offline."
        outcome = found.get(task)
        if outcome is not None and not outcome.over:
            job.known = outcome.status
            return
        job.task, job.at = None, self._now()
        self._note(job, self._end_of(outcome))

    def _end_of(self, outcome: Outcome | None) -> str:
        """Return why a task is over though its job waits; empty: nobody says."""
        if outcome is None:
            return "Globus knows its task no more."
        endpoint, function = self.endpoint, self._function
        try:
            if outcome.failure:
                raise globus_words.failed(outcome.failure, endpoint, function)
            data = globus_words.answered(outcome.result, endpoint, function)
        except HansaError as error:
            return _said(error)
        return str(data.get("reason") or "")

    def _note(self, job: _Handed, trouble: str) -> None:
        job.trouble = trouble
        if trouble:
            log.warning("A job waits for %s: %s", self._called, trouble)

    def _why(self, job: _Handed) -> str:
        """Return how it stands with a job, the news first: tables are narrow."""
        if job.task is None:
            trouble = job.trouble or "Its task is over."
            wait = format_duration(self._pause(job))
            return f"Not handed over: {trouble} Tried again within {wait}."
        known = f" ({job.known})" if job.known else ""
        trouble = f" Last trouble: {job.trouble}" if job.trouble else ""
        return f"It waits for {self._called}{known}.{trouble}"

    @property
    def _called(self) -> str:
        return f"the block of the endpoint {self.endpoint}"


def job_of(request: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return run and key of the job that a request submits; None: it submits none."""
    if request.get("op") not in ("submit", "place") or request.get("dry_run"):
        return None
    order = request.get("order") or request
    return str(request["run"]), f"{order['assignment']}.{request['number']}"


def _said(error: HansaError) -> str:
    return f"{error.message} {error.hint or ''}".strip()
