"""The books of a run: assignments and batch jobs, as the journal tells of them.

A batch job may carry an order, or take orders on in its allocation (it hosts them), or
be queued ahead without any. Whatever it carries, its node-hours are charged once, when
the scheduler ends it (and when it takes it back into the queue). Pure, like the core.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from hansa.coordinator.plan import Progress
from hansa.core.commands import Assign, Begin, Evaluate
from hansa.core.events import (
    JobEnded,
    JobQueued,
    JobRequeued,
    JobStarted,
    JobWaiting,
    ModelStaged,
    OperatorAsked,
    TransferEnded,
    TransferSubmitted,
)
from hansa.core.ids import ASSIGNMENT, is_ahead, job_key

JobEvent = JobQueued | JobWaiting | JobRequeued | JobStarted | JobEnded

SPARED = frozenset({"PREEMPTED", "NODE_FAIL", "TIMEOUT"})
"""Ends after which the next job is no retry, where a journal does not say it itself."""


@dataclass(slots=True)
class BatchJob:
    """One job in a facility's queue.

    Attributes:
        assignment: Its order, or its name if it was queued ahead.
        number: Which job of the assignment.
        job: The scheduler's id.
        newest: The newest version when it was submitted.
        started: Whether it was seen to run, since the last requeue.
        requeues: How often the scheduler has put it back into the queue.
        ended: Whether it left the scheduler.
        served: Whether a training order of its guests has begun.
        guests: Orders that its allocation took on, assignment and number, as the keys
            of a dictionary: each once, in their order.
    """

    facility: str
    assignment: str
    number: int
    job: str = ""
    newest: int | None = None
    started: bool = False
    requeues: int = 0
    ended: bool = False
    served: bool = False
    guests: dict[tuple[str, int], None] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Id of the job, as ``train-0003-polaris-1.2``."""
        return job_key(self.assignment, self.number)


@dataclass(slots=True)
class Books:
    """All assignments by name, all batch jobs by key, and what they have cost.

    `staged` are the versions that were sent to each facility, `delivered` counts the
    updates that have come, `seen` the samples that each facility's updates in time
    were made of, `holding` are the orders that wait for the word to begin, and
    `transfers` is what a service may still be moving, by its ticket.
    What is asked at every event (open orders, live jobs, the evaluations of a
    version) is kept apart from what is over, which only grows.
    """

    work: dict[str, Progress] = field(default_factory=dict)
    jobs: dict[str, BatchJob] = field(default_factory=dict)
    staged: dict[str, set[int]] = field(default_factory=dict)
    node_hours: float = 0.0
    holding: set[str] = field(default_factory=set)
    delivered: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    transfers: dict[str, TransferSubmitted] = field(default_factory=dict)
    _open: dict[str, Progress] = field(default_factory=dict)
    _live: dict[str, BatchJob] = field(default_factory=dict)
    _evaluations: dict[int | None, list[Progress]] = field(default_factory=dict)
    _ahead: dict[str, int] = field(default_factory=dict)
    _calling: set[str] = field(default_factory=set)

    # What may be asked.

    def open(self) -> list[Progress]:
        """Return the assignments that are not over, in the order that they came in."""
        return list(self._open.values())

    def live(self) -> Collection[BatchJob]:
        """Return the jobs that have not left their schedulers."""
        return self._live.values()

    def evaluations_of(self, version: int) -> Collection[Progress]:
        """Return the orders to evaluate a version, those that are over too."""
        return self._evaluations.get(version, ())

    def settled(self, facility: str) -> list[str]:
        """Return what has files there that nobody will ask for again.

        Those are assignments, and jobs that were queued ahead.
        """
        orders = [
            work.order.assignment
            for work in self.work.values()
            if work.facility == facility and work.closed and work.ended
        ]
        return orders + [
            job.assignment
            for job in self.jobs.values()
            if job.facility == facility and job.ended and is_ahead(job.assignment)
        ]

    def followed(self, facility: str) -> list[BatchJob]:
        """Return the facility's batch jobs that go on without an open order."""
        return [
            job
            for job in self._live.values()
            if job.facility == facility and not self._in_hand(job)
        ]

    def last_ahead(self, facility: str) -> int:
        """Return the number of the facility's last job that was queued ahead."""
        return self._ahead.get(facility, 0)

    def calls_ahead(self, facility: str) -> bool:
        """Tell whether work has begun since a job was last queued ahead there."""
        return facility in self._calling

    def beginnings(self) -> list[Begin]:
        """Return the word for those that wait, once all can begin."""
        self.holding &= {work.order.assignment for work in self._training()}
        if not all(_ready(work) for work in self._training()):
            return []
        return [
            Begin(facility=work.facility, assignment=work.order.assignment)
            for work in self._training()
            if work.order.assignment in self.holding
        ]

    def begun(self) -> list[Begin]:
        """Return the words that were given and not yet followed."""
        return [
            Begin(facility=work.facility, assignment=work.order.assignment)
            for work in self._training()
            if work.begun and work.base is None
        ]

    def _training(self) -> Iterable[Progress]:
        return (work for work in self._open.values() if work.order.kind == "train")

    def _in_hand(self, job: BatchJob) -> bool:
        """Tell whether an open order, or a withdrawal, looks after the job."""
        work = self.work.get(job.assignment)
        if work is None or work.number != job.number:
            return False
        return work.closed in {"", "withdrawn", "lost"}

    # What happens.

    def add(self, command: Assign | Evaluate) -> None:
        """Open an assignment; one that is known stays as it is."""
        order = command.order
        if order.assignment in self.work:
            return
        seen = self.seen.get(command.facility, 0)
        work = Progress(command.facility, order, seen=seen)
        self.work[order.assignment] = self._open[order.assignment] = work
        if order.kind == "evaluate":
            self._evaluations.setdefault(order.version, []).append(work)

    def close(self, work: Progress, how: str) -> None:
        """Note that an assignment is over: `done`, `failed`, `withdrawn` or `lost`."""
        work.closed = how
        self._open.pop(work.order.assignment, None)
        if how == "done" and work.order.kind == "train":
            self.delivered += 1

    def count(self, work: Progress, samples: int) -> None:
        """Note the samples of an update; the facility's next order goes on there."""
        before = self.seen.get(work.facility, 0)
        self.seen[work.facility] = max(before, work.seen + samples)

    def begin(self, command: Begin) -> None:
        """Note that the word to begin was given."""
        self.holding.discard(command.assignment)
        work = self.work.get(command.assignment)
        if work is not None:
            work.begun = True

    def asked(self, event: OperatorAsked) -> None:
        """Note that a person wants all jobs cancelled, if that was the request."""
        for work in self._open.values():
            work.asked = work.asked or event.request == "cancel"

    def sent(self, event: ModelStaged) -> None:
        """Note that a version was sent to a facility."""
        if not event.state:
            self.staged.setdefault(event.facility, set()).add(event.version)

    def submitted(self, event: TransferSubmitted) -> bool:
        """Note that a service is about to be asked to move files; nobody decides."""
        self.transfers[event.ticket] = event
        return False

    def transferred(self, event: TransferEnded) -> bool:
        """Note that a service has nothing more to move for a ticket."""
        self.transfers.pop(event.ticket, None)
        return False

    # What happens to a job; what is told twice counts once.

    def _work_of(self, event: JobEvent) -> Progress | None:
        """Return the order of a job, which this may be a new job of; None if not its.

        An older job of an assignment is not its order's any more: that has gone on.
        """
        work = self.work.get(event.assignment)
        if work is None or event.number < work.number:
            return None
        if event.number > work.number:
            if work.number or work.asked:
                self._turn_to(work)
            work.number = event.number
        work.job = event.job
        return work

    def _turn_to(self, work: Progress) -> None:
        """Forget what was the last job's."""
        if work.how in SPARED or work.asked:
            work.spared += 1
        self.holding.discard(work.order.assignment)
        work.job, work.host, work.newest = "", "", None
        work.waiting = work.begun = work.started = False
        work.base, work.requeues = None, 0
        work.ended, work.how, work.asked = False, "", False

    def queued(self, event: JobQueued) -> None:
        """Enter a job, or an order that a job took on."""
        work = self._work_of(event)
        if is_ahead(event.assignment):
            self._queued_ahead(event)
        if work is not None:
            work.host, work.newest = event.host, event.newest
            work.spared = event.spared if event.spared >= 0 else work.spared
        if not event.host:
            job = self._batch_job(event, event.assignment, event.number)
            job.newest = event.newest
            return
        assignment, _, number = event.host.rpartition(".")
        host = self._batch_job(event, assignment, int(number))
        host.guests[event.assignment, event.number] = None

    def _queued_ahead(self, event: JobQueued) -> None:
        match = ASSIGNMENT.fullmatch(event.assignment)
        if match is not None:
            known = self._ahead.get(event.facility, 0)
            self._ahead[event.facility] = max(known, int(match[2]))
            self._calling.discard(event.facility)

    def _batch_job(self, event: JobEvent, assignment: str, number: int) -> BatchJob:
        key = job_key(assignment, number)
        job = self.jobs.get(key)
        if job is None:
            job = BatchJob(event.facility, assignment, number, event.job)
            self.jobs[key] = self._live[key] = job
        return job

    def waiting(self, event: JobWaiting) -> None:
        """Note that a job holds until all can begin."""
        work = self._work_of(event)
        if work is not None:
            work.waiting = True
            if not work.begun:
                self.holding.add(event.assignment)

    def started(self, event: JobStarted) -> None:
        """Note that a job runs, and what its order has bound."""
        work = self._work_of(event)
        if work is not None:
            work.base, work.started = event.base, True
            work.bases.add(event.base)
            self.holding.discard(event.assignment)
            if work.order.kind == "train":
                self._call_for_another(work)
        if job := self.jobs.get(job_key(event.assignment, event.number)):
            job.started = True

    def _call_for_another(self, work: Progress) -> None:
        """Note that it is time to queue the next job ahead, unless one waits already.

        A job that was queued ahead makes it time only with the first of its orders.
        """
        host = self.jobs.get(work.host)
        if host is not None:
            first = is_ahead(host.assignment) and not host.served
            host.served = True
            if not first:
                return
        waits = any(
            job.facility == work.facility and is_ahead(job.assignment)
            for job in self._live.values()
            if not job.started
        )
        if not waits:
            self._calling.add(work.facility)

    def requeued(self, event: JobRequeued) -> None:
        """Note that a job is back in the queue, and what it has cost so far."""
        work = self._work_of(event)
        self.node_hours += event.node_hours
        if job := self.jobs.get(job_key(event.assignment, event.number)):
            job.started = False
            job.requeues = event.restarts or job.requeues + 1
        if work is not None:
            # It stays with the version that it bound first.
            work.started = work.waiting = False
            work.requeues = event.restarts or work.requeues + 1
            self.holding.discard(event.assignment)

    def ended(self, event: JobEnded) -> None:
        """Note that a job is over, with the orders in it, and what it has cost."""
        work = self._work_of(event)
        job = self._batch_job(event, event.assignment, event.number)
        if job.ended:
            return
        job.ended = True
        key = job.key
        self._live.pop(key, None)
        self.node_hours += event.node_hours
        if work is not None:
            work.ended, work.how = True, event.state
        ours = work is not None and (work.asked or work.closed in {"withdrawn", "lost"})
        for assignment, number in job.guests:
            guest = self.work.get(assignment)
            if guest is not None and guest.number == number and guest.host == key:
                guest.ended, guest.how = True, event.state
                guest.asked = guest.asked or ours


def _ready(work: Progress) -> bool:
    return work.waiting or work.begun or work.base is not None
