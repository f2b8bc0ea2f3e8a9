"""The driver for sites that forbid submitting from a login node.

Somebody else holds a block of nodes (the engine of a Globus Compute endpoint), and the
jobs run in it. A submission writes a job into a queue of files (`block_queue`) in the
folder that login and compute nodes share; it waits there until a runner inside of the
block takes it (`block_run`, by the operation `work` of `hansa site rpc`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hansa.core.errors import SchedulerError
from hansa.core.units import Seconds
from hansa.scheduler.base import JobSpec, JobState, JobStatus, Steps
from hansa.scheduler.block_queue import STALE_S
from hansa.scheduler.own_queue import OwnQueue, directives
from hansa.scheduler.script import batch_script

_QUEUE = Path(__file__).with_name("block_queue.py")


class BlockOptions(BaseModel):
    """Options of the queue for a block.

    Attributes:
        nodes: Nodes of the block; a job that asks for more is refused.
        stale: A job whose runner has shown no sign of life for so long has lost its
            block.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int = Field(default=1, ge=1)
    stale: Seconds = Field(default=STALE_S, ge=1)


class BlockScheduler:
    """Puts jobs into the queue for a block.

    Args:
        options: Its options.
        state: The folder that only the facility writes.
    """

    Options: ClassVar[type[BaseModel]] = BlockOptions

    def __init__(self, options: BlockOptions, state: Path) -> None:
        self.options = options
        self.directory = (state / "block").absolute()
        self._queue = OwnQueue(
            name="The queue for the block", program=_QUEUE, directory=self.directory
        )

    def render(self, job: JobSpec) -> str:
        """Return a shell script with ``#HANSA key=value`` lines.

        Raises:
            SchedulerError: It asks for more nodes than the block has, or a name would
                break its line.
        """
        if job.nodes > self.options.nodes:
            raise SchedulerError(
                f"{job.name} asks for {job.nodes} nodes; the block has "
                f"{self.options.nodes}.",
                hint="Ask for fewer nodes, or let the endpoint hold a larger block and "
                "raise scheduler.nodes in site.yaml.",
            )
        return batch_script(directives(job), "#HANSA", job)

    def submit(self, script: Path) -> Steps[str]:
        """Put a rendered script into the queue; return the job's number in it.

        Raises:
            SchedulerError: The queue refuses, or answers something else.
        """
        answer = yield self._queue.ask("submit", str(script))
        return self._queue.submitted(answer)

    def accepts(self, script: Path) -> Steps[str]:
        """Ask the queue whether it is well; `render` has checked the rest.

        Raises:
            SchedulerError: The queue does not answer.
        """
        del script
        jobs = yield from self.jobs()
        busy = sum(not job.state.final for job in jobs.values())
        return (
            f"The queue for the block answers: {self.options.nodes} nodes, {busy} jobs "
            "wait or run."
        )

    def jobs(self, ids: Iterable[str] = ()) -> Steps[dict[str, JobStatus]]:
        """Return all jobs of the queue by id; those that lost their block have ended.

        Raises:
            SchedulerError: The queue can't be read.
        """
        del ids  # all of them are shown anyway
        answer = yield self._queue.ask("list", "--stale", f"{self.options.stale:g}")
        return self._queue.jobs(answer, _status)

    def cancel(self, ids: Sequence[str]) -> Steps[None]:
        """Cancel jobs: one that waits never runs, one that runs ends in seconds.

        Raises:
            SchedulerError: The queue can't be changed.
        """
        answer = yield self._queue.ask("cancel", "--", *ids)
        self._queue.answered(answer, "refuses to cancel jobs")


def _status(job: Mapping[str, Any]) -> JobStatus:
    status = JobStatus.from_json({**job, "eligible": job.get("submitted")})
    return replace(status, why=_why(status))


def _why(status: JobStatus) -> str:
    if status.state is JobState.QUEUED:
        return "It waits for a worker in the block."
    return f"It ended: {status.reason}." if status.reason else ""
