"""A batch job that takes more orders than its own, one after the other.

It works on its own order, if it has one, then on the handovers 1, 2, ... in turn. In
between it lingers; when it has waited long enough, or its walltime would not do for
another order, it closes the next number and leaves. Which orders it has is written in
its state folder alone, so a job that the scheduler starts again goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hansa.core.errors import HansaError, IntegrityError, WorkerError
from hansa.mailbox import handover
from hansa.mailbox.files import read_json
from hansa.mailbox.handover import Closed, Handover
from hansa.mailbox.links import refuse_links
from hansa.mailbox.paths import MANIFEST, JobDir, Mailbox
from hansa.mailbox.state import JobNotes
from hansa.worker.job import SHORTEST_LOOK_S, AnyJob, Job, read_file
from hansa.worker.logs import also_to
from hansa.worker.patience import Patience
from hansa.worker.session import Session
from hansa.worker.signals import Stop
from hansa.worker.status import Status
from hansa.worker.team.crew import Crew
from hansa.worker.waiting import Clock, there
from hansa.worker.walltime import Walltime

log = logging.getLogger(__name__)

LOOK_GROWTH = 1.1
"""Between two looks for an order the pause grows so: an order that comes soon is soon
seen, and a late one is late by a tenth of the waiting at most."""

_OVER = ("failed", "refused", "cancelled")


class Allocation:
    """One batch job with its nodes.

    Args:
        job: What the batch job is told.
        stop: Says when to stop early.
        started: When the process began, by the clock.
        walltime: When the batch job ends.
        clock: The time of all that is waited for.
        crew: The ranks of the launch, all of which work on each order; None: there is
            no other.
    """

    def __init__(
        self,
        job: AnyJob,
        stop: Stop,
        started: float,
        walltime: Walltime | None = None,
        clock: Clock | None = None,
        crew: Crew | None = None,
    ) -> None:
        self._crew = crew
        self._job = job
        self._stop = stop
        self._started = started
        self._walltime = walltime or Walltime()
        self._clock = clock or Clock()
        self._notes = JobNotes(job.state_dir)
        self._mailbox = Mailbox(job.mailbox.parent, job.mailbox.name)
        self._status = Status(JobDir(job.job_dir).status, None, job.heartbeat_s)
        self._patience = Patience(job.linger_s, job.ahead_s, self._walltime)

    def run(self) -> None:
        """Do all orders, then close.

        Raises:
            HansaError: An order failed. Its status says so; those behind it have
                failed, too, and may be tried elsewhere.
        """
        number = 1
        try:
            if isinstance(self._job, Job):
                own = self._session(self._job, self._started, hosted=False)
                self._status = own.status
                self._timed(partial(self._do, own))
            while (order := self._next(number)) is not None:
                number += 1
                if why := self._no_time():
                    self._refuse(order, why)
                    self._close(number, why)
                    break
                if not self._job.linger_s:
                    self._shut(number)
                self._timed(partial(self._host, order))
        except Exception:
            self._close(number, "an order before it failed")
            raise
        self._status.enter("done")

    def _timed(self, work: Callable[[], None]) -> None:
        began = self._clock.now()
        self._stop.deadline = self._walltime.deadline(self._patience.save_s)
        work()
        self._patience.finished(self._clock.now() - began)

    def _no_time(self) -> str | None:
        """Return why no order can be begun any more, or None."""
        if self._crew is not None and self._crew.watch.loss is not None:
            return self._crew.watch.loss.message
        if self._stop.reason is not None:
            return self._stop.reason
        if not self._patience.fits(self._clock.now()):
            return f"it may need {self._patience.need_s:.0f} s, and fewer are left"
        return None

    # --- waiting ----------------------------------------------------------------------

    def _next(self, number: int) -> Handover | None:
        """Return the order of that number; None once the allocation is closed."""
        entry = handover.read(self._notes, number) or self._linger(number)
        if entry is None:
            log.info("No order came; this job leaves.")
            entry = self._shut(number)
        return entry if isinstance(entry, Handover) else None

    def _shut(self, number: int) -> Handover | Closed:
        """Take no order from `number` on; return the order that was quicker."""
        if handover.take(self._notes, number, Closed()):
            return Closed()
        entry = handover.read(self._notes, number)
        if entry is None:
            raise IntegrityError(
                f"{self._notes.handover(number)} was there and is not."
            )
        return entry

    def _linger(self, number: int) -> Handover | Closed | None:
        """Wait for the order of that number; None when it is time to leave."""
        idle, word = self._clock.now(), self._notes.leave
        until = self._patience.until(idle)
        path = self._notes.handover(number)
        self._status.enter("lingering")
        pause = SHORTEST_LOOK_S
        while self._clock.now() < until and self._stop.reason is None:
            if there(path):
                return handover.read(self._notes, number)
            if there(word):
                log.info("This job was told to leave.")
                return None
            if self._crew is not None and self._crew.broken:
                return None
            self._status.beat()
            self._clock.sleep(pause)
            pause = min(pause * LOOK_GROWTH, self._job.pause_s)
        return None

    # --- one order --------------------------------------------------------------------

    def _host(self, order: Handover) -> None:
        """Work on an order; not again on one that came to an end before."""
        files = self._files(order)
        if _phase(files.status) in _OVER:
            log.info("%s was over before.", order.job)
            return
        self._status.enter("hosting")
        try:
            self._work(order, files)
        finally:
            # What becomes of that order stands in its own status.
            self._status.enter("done")

    def _work(self, order: Handover, files: JobDir) -> None:
        job = self._read(order, files)
        with also_to(files.log):
            log.info("%s is done in the allocation of %s.", order.job, self._job.key)
            self._do(self._session(job, self._clock.now(), hosted=True))

    def _session(self, job: Job, started: float, *, hosted: bool) -> Session:
        return Session(
            job,
            self._stop,
            started,
            self._walltime,
            hosted=hosted,
            clock=self._clock,
            save_s=self._patience.save_s,
            crew=self._crew,
        )

    def _do(self, session: Session) -> None:
        session.run()
        self._patience.save_s = session.save_s

    def _read(self, order: Handover, files: JobDir) -> Job:
        try:
            refuse_links(files.path)
            return read_file(order.path, Job, order.sha256)
        except HansaError as error:
            Status(files.status, None, 0.0).fail(error)
            raise

    def _files(self, order: Handover) -> JobDir:
        assignment, _, number = order.job.rpartition(".")
        if not number.isdecimal():
            raise IntegrityError(f"A handover names {order.job!r}, which is no job.")
        return self._mailbox.job(assignment, int(number))

    # --- leaving ----------------------------------------------------------------------

    def _close(self, number: int, why: str) -> None:
        """Take no more orders from `number` on, and refuse those that are there."""
        while isinstance(entry := self._shut(number), Handover):
            self._refuse(entry, why)
            number += 1

    def _refuse(self, order: Handover, why: str) -> None:
        """Say of an order that it is not done here; another job may do it."""
        files = self._files(order)
        assignment = order.job.rpartition(".")[0]
        if (self._mailbox.update(assignment) / MANIFEST).is_file():
            return
        status = Status(files.status, None, 0.0)
        if there(JobNotes(order.path.parent).leave):
            status.enter("cancelled")
            return
        log.warning("%s is not done in this allocation: %s.", order.job, why)
        status.refuse(
            WorkerError(
                f"The job {self._job.key} could not take on {order.job}: {why}.",
                hint="It is tried again in another job.",
                transient=True,
            )
        )


def _phase(status: Path) -> object:
    try:
        return (read_json(status) or {}).get("phase")
    except IntegrityError as error:
        log.warning("%s is ignored: %s", status, error)
        return None
