"""One batch job of an assignment, as a lane keeps it in mind."""

from __future__ import annotations

from dataclasses import dataclass

from hansa.coordinator.plan import Progress
from hansa.core.commands import WorkOrder
from hansa.core.events import JobEnded, JobQueued, JobStarted
from hansa.core.ids import job_key
from hansa.scheduler.base import JobState, JobStatus


@dataclass(slots=True)
class Job:
    """The batch job that an order is at, and what was already told of it."""

    order: WorkOrder
    number: int = 1
    id: str = ""
    queued: bool = False
    base: int | None = None
    ended: bool = False

    @classmethod
    def resumed(cls, order: WorkOrder, progress: Progress | None) -> Job:
        """Return the job that an order is at, as far as the journal knows."""
        if progress is None or progress.number == 0:
            return cls(order)
        return cls(
            order=order,
            number=progress.number,
            id=progress.job,
            queued=True,
            base=progress.base,
            ended=progress.ended,
        )

    def queued_event(self, facility: str, newest: int) -> JobQueued:
        """Return that the scheduler accepted the job."""
        return JobQueued(
            at=0.0,
            facility=facility,
            assignment=self.order.assignment,
            number=self.number,
            job=self.id,
            newest=newest,
        )

    def started_event(self, facility: str, record: JobStatus) -> JobStarted:
        """Return that the job runs and has bound the version `base`."""
        return JobStarted(
            at=0.0,
            facility=facility,
            assignment=self.order.assignment,
            number=self.number,
            job=self.id,
            base=-1 if self.base is None else self.base,
            queue_wait=waited(record),
        )

    def ended_event(self, facility: str, record: JobStatus) -> JobEnded:
        """Return that the job is over, with times and cost by its scheduler."""
        ran = 0.0
        if record.started is not None and record.ended is not None:
            ran = max(0.0, record.ended - record.started)
        return JobEnded(
            at=0.0,
            facility=facility,
            assignment=self.order.assignment,
            number=self.number,
            job=self.id or record.id,
            state=record.state.value,
            reason=record.reason,
            queue_wait=waited(record),
            run_s=ran,
            node_hours=record.nodes * ran / 3600.0,
        )

    @property
    def key(self) -> str:
        """Id of the job, as ``train-0003-polaris-1.2``."""
        return job_key(self.order.assignment, self.number)

    def next_number(self) -> None:
        """Turn to the assignment's next batch job."""
        self.number += 1
        self.id, self.queued, self.base, self.ended = "", False, None, False


def waited(record: JobStatus) -> float:
    """Seconds that a job waited, by the scheduler's own records."""
    if record.submitted is None:
        return 0.0
    until = record.started if record.started is not None else record.ended
    return max(0.0, (until or record.submitted) - record.submitted)


def how_it_ended(record: JobStatus) -> str:
    """Return words for the end of a job, to follow "The job ..."."""
    words = {
        JobState.TIMEOUT: "was ended by its walltime",
        JobState.CANCELLED: "was cancelled at the facility",
        JobState.NODE_FAIL: "lost its node",
        JobState.PREEMPTED: "was preempted",
        JobState.DONE: "ended by itself",
    }
    how = words.get(record.state, f"ended with exit code {record.exit_code}")
    return f"{how} ({record.reason})" if record.reason else how
