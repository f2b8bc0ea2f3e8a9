"""A lane: one facility's pipeline, from an order to an update or a failure.

``stage -> submit -> watch -> collect``. Every step may be repeated without harm: a
version that is there is not sent again, a job that exists is found by its name, an
update that was pulled is verified where it lies. So after a crash a lane simply
carries out the same order again, told by the journal how far it had come.

Faults of the line are mended by `Contact`, faults of a job by a new job that resumes
from the worker's checkpoint. What can't be mended becomes `AssignmentFailed` or
`FacilityLost`; a lane never ends a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from hansa.coordinator.contact import Contact, FacilityGone
from hansa.coordinator.delivery import Delivery
from hansa.coordinator.job import Job, how_it_ended, waited
from hansa.coordinator.plan import Progress
from hansa.coordinator.poller import JobReport, Pace, Poller
from hansa.coordinator.view import FacilityView
from hansa.core.commands import WorkOrder
from hansa.core.errors import (
    FacilityError,
    HansaError,
    IntegrityError,
    PolicyError,
    StorageFull,
    WorkerError,
)
from hansa.core.errors import from_json as error_from_json
from hansa.core.events import (
    AssignmentFailed,
    Event,
    FacilityLost,
    FacilityReady,
)
from hansa.core.retry import RetryPolicy
from hansa.scheduler.base import JobState, JobStatus
from hansa.site import rpc

log = logging.getLogger(__name__)

VANISHED_S = 60.0
"""Seconds in which the scheduler may not know a job before it counts as vanished."""

FAREWELL_S = 60.0
"""Seconds that cancelled jobs get to end when this process does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneSettings:
    """What a lane needs to know of its facility.

    Attributes:
        run: Id of the run.
        facility: Name of the facility.
        order: Turns a strategy's order into what the site agent is sent.
        job: `nodes`, `time` (seconds), `queue`, `account` of every batch job.
        retries: Batch jobs that one assignment may use.
        patience: Seconds of silence after which the facility counts as lost.
        retry: Waits between tries of a submission, a transfer or a job.
        pace: How often to poll.
    """

    run: str
    facility: str
    order: Callable[[WorkOrder], dict[str, Any]]
    job: dict[str, Any]
    retries: int = 3
    patience: float = 3600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    pace: Pace = field(default_factory=Pace)


class Lane:
    """One facility's pipeline; see the module's text.

    Args:
        settings: The facility, as the plan has it.
        contact: The line to its site agent.
        delivery: Moves versions there and updates back.
        emit: Takes events; the runtime stamps and journals them.
        fail: Takes an error that only the server's owner can mend (a full disk).
    """

    def __init__(
        self,
        settings: LaneSettings,
        contact: Contact,
        delivery: Delivery,
        *,
        emit: Callable[[Event], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.view = FacilityView(settings.facility)
        self._settings = settings
        self._contact = contact
        self._delivery = delivery
        self._emit = emit
        self._fail = fail
        self._poller = Poller(
            contact,
            settings.run,
            self._lose,
            pace=settings.pace,
            patience=settings.patience,
        )
        self._work: dict[str, asyncio.Task[None]] = {}
        self._orders: dict[str, Job] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._orphans: list[Job] = []
        self._tidied: set[str] = set()
        self._regaining: asyncio.Task[None] | None = None
        self._lost = False

    # What the runtime asks for.

    def assign(self, order: WorkOrder, progress: Progress | None = None) -> None:
        """Begin (or, told the `progress`, take up again) an order."""
        if order.assignment in self._work:
            return
        job = Job.resumed(order, progress)
        self._orders[order.assignment] = job
        task = asyncio.create_task(self._carry_out(job), name=order.assignment)
        self._work[order.assignment] = task
        task.add_done_callback(lambda done: self._over(order.assignment, done))

    def withdraw(self, assignment: str, progress: Progress | None = None) -> None:
        """Give an order up and cancel its job; harmless if it is over."""
        task, job = self._work.get(assignment), self._orders.get(assignment)
        if task is not None:
            task.cancel()
        if job is None and progress is not None:
            job = Job.resumed(progress.order, progress)
        if job is not None and self._lost:
            self._orphans.append(job)
        elif job is not None:
            self._chore(self._see_off(job))

    def version_published(self) -> None:
        """Send the newest version ahead if a job that waits could still bind it."""
        waiting = any(
            job.order.kind == "train" and job.base is None
            for job in self._orders.values()
        )
        if waiting and not self._lost:
            self._chore(self._send_ahead())

    def stay_lost(self) -> None:
        """Take up, after a restart, the waiting for a facility that was lost."""
        self._lost = True
        self._show("lost")
        self._regaining = asyncio.create_task(self._regain())

    async def settle(self, seconds: float) -> None:
        """Wait for cancelled jobs to end, at most this long."""
        if self._chores:
            await asyncio.wait(self._chores, timeout=seconds)

    async def close(self, *, cancel_jobs: bool = False) -> None:
        """End all tasks; jobs at the facility go on unless `cancel_jobs`."""
        if cancel_jobs:
            for assignment in list(self._work):
                self.withdraw(assignment)
            await self.settle(FAREWELL_S)
        tasks = [*self._work.values(), *self._chores]
        if self._regaining is not None:
            tasks.append(self._regaining)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._poller.close()
        await self._contact.close()
        await self._delivery.close()

    # The pipeline.

    async def _carry_out(self, job: Job) -> None:
        while True:
            try:
                await self._one_job(job)
            except FacilityGone as error:
                self._lose(error)
                return
            except StorageFull as error:
                self._fail(error)
                return
            except HansaError as error:
                if not await self._mended(job, error):
                    return
            except Exception as error:
                # A bad facility must not end a run, not even with a surprise.
                log.exception("%s: the lane was surprised", job.key)
                surprise = FacilityError(f"Unexpected: {error!r}. This is a bug.")
                self._emit(self._failure(job, surprise))
                return
            else:
                self._show("idle", job=job)
                return

    async def _mended(self, job: Job, error: HansaError) -> bool:
        """Turn to the assignment's next job if that may help; else report failure."""
        again = error.transient and job.number < self._settings.retries
        log.warning("%s: %s", job.key, error)
        self._show("retrying" if again else "failed", error.message, job)
        if not again:
            self._emit(self._failure(job, error))
            return False
        await asyncio.sleep(self._settings.retry.delay(job.number, job.key))
        if not job.ended and not await self._cancelled(job):
            return False
        job.next_number()
        return True

    async def _cancelled(self, job: Job) -> bool:
        """Cancel a job that may still be somewhere; False if the facility is gone."""
        try:
            await self._contact.call(rpc.cancel(self._settings.run, [job.key]))
        except FacilityGone as error:
            self._lose(error)
            return False
        except HansaError as error:
            log.warning("%s: could not be cancelled: %s", job.key, error)
        return True

    async def _one_job(self, job: Job) -> None:
        """Carry one batch job through; returns when its result was delivered."""
        self._show("staging", job=job)
        await self._retried(job, lambda: self._stage(job))
        self._show("submitting", job=job)
        await self._retried(job, lambda: self._submit(job))
        self._show("queued", job=job)
        report = await self._watch(job)
        if report.update is None:
            raise await self._why(job, report)
        self._show("collecting", job=job)
        await self._retried(job, lambda: self._collect(job, report))

    async def _retried(
        self, job: Job, step: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Repeat a step that is safe to repeat while its faults are transient."""
        tries = waits = 0
        while True:
            try:
                return await step()
            except FacilityGone:
                raise
            except FacilityError as error:
                # A full queue (the site's own limit) is waited for, however long.
                tries += not isinstance(error, PolicyError)
                waits += 1
                if not error.transient or not self._settings.retry.allows(tries):
                    raise
                log.warning("%s: %s; trying again", job.key, error)
                self._show(self.view.state, error.message, job)
                await asyncio.sleep(self._settings.retry.delay(waits, job.key))

    async def _stage(self, job: Job) -> None:
        staged = await self._delivery.stage(job.order.version)
        if staged is not None:
            self.view.bytes_sent += staged.bytes
            self._emit(staged)

    async def _submit(self, job: Job) -> None:
        if job.queued:
            return
        newest = self._delivery.newest()
        order = self._settings.order(job.order)
        reply = await self._contact.call(
            rpc.submit(self._settings.run, order, job.number, self._settings.job)
        )
        if not reply.get("job"):
            raise FacilityError("A submission was answered without a job's id.")
        job.id, job.queued = str(reply["job"]), True
        self.view.job, self.view.newest_at_submit = job.id, newest
        self._emit(job.queued_event(self._settings.facility, newest))

    async def _watch(self, job: Job) -> JobReport:
        """Follow a job until it is over; tell what happens on the way."""
        clock = asyncio.get_running_loop().time
        seen = clock()
        async with aclosing(self._poller.reports(job.key)) as reports:
            async for report in reports:
                self._note(job, report)
                if report.scheduler is None:
                    if report.update is not None or clock() - seen > VANISHED_S:
                        return report
                    continue
                seen = clock()
                if report.scheduler.state.final:
                    self._note_end(job, report.scheduler)
                    return report
        raise WorkerError(f"Nobody watches job {job.key} any more.", transient=True)

    async def _collect(self, job: Job, report: JobReport) -> None:
        if report.update is None:
            raise WorkerError(f"Job {job.key} left no result.", transient=True)
        event = await self._delivery.collect(job.order, job.base, report.update)
        self.view.bytes_received += getattr(event, "bytes", 0)
        self._emit(event)
        self._chore(self._tidy())

    async def _tidy(self) -> None:
        keep = sorted(self._delivery.keep())
        settled = sorted(set(self._delivery.settled()) - self._tidied)
        try:
            request = rpc.tidy(self._settings.run, keep, collected=settled)
            reply = await self._contact.call_once(request)
            self._tidied.update(map(str, reply.get("collected", ())))
        except HansaError as error:
            log.info("%s: tidying failed: %s", self._settings.facility, error)

    async def _send_ahead(self) -> None:
        try:
            staged = await self._delivery.stage(None)
        except HansaError as error:
            # The orders' own staging will tell, with retries.
            log.warning("%s: sending ahead failed: %s", self._settings.facility, error)
            return
        if staged is not None:
            self.view.bytes_sent += staged.bytes
            self._emit(staged)

    # What a job tells.

    def _note(self, job: Job, report: JobReport) -> None:
        record = report.scheduler
        if self._in_view(job):
            self._note_in_view(report)
        if record is None or record.started is None or report.bound is None:
            return
        if job.base is None:
            job.base = int(report.bound["base"])
            self._emit(job.started_event(self._settings.facility, record))

    def _note_in_view(self, report: JobReport) -> None:
        view, status, record = self.view, report.status or {}, report.scheduler
        if record is not None and record.state is JobState.RUNNING:
            self._show(str(status.get("phase") or "starting"))
        if report.bound is not None and record is not None:
            view.version, view.queue_wait = int(report.bound["base"]), waited(record)
        view.step = int(status.get("step") or 0)
        view.steps = int(status.get("steps") or 0)
        view.loss = status.get("loss")
        view.samples_per_s = status.get("samples_per_s")

    def _note_end(self, job: Job, record: JobStatus) -> None:
        if job.ended:
            return
        job.ended = True
        self._emit(job.ended_event(self._settings.facility, record))

    async def _why(self, job: Job, report: JobReport) -> HansaError:
        """Return why a job that is over left no result, with the end of its log."""
        told = (report.status or {}).get("error")
        if told:
            error = error_from_json(told)
            damaged = isinstance(error, IntegrityError)
            if damaged:
                self._delivery.check_again()
            return WorkerError(
                f"Job {job.key} at {self._settings.facility}: {error.message}",
                hint=error.hint,
                transient=error.transient or damaged,
            )
        record = report.scheduler
        how = "vanished from the queue" if record is None else how_it_ended(record)
        tail = await self._log_tail(job)
        return WorkerError(
            f"Job {job.key} at {self._settings.facility} {how} without a result."
            + (f" Its log ends: {tail}" if tail else ""),
            hint=f"See jobs/{job.key}/log.txt in the facility's mailbox.",
            transient=True,
        )

    async def _log_tail(self, job: Job) -> str:
        path = f"jobs/{job.key}/log.txt"
        try:
            data = await self._contact.call_once(
                rpc.read(self._settings.run, path, 2048)
            )
        except HansaError as error:
            return f"(unreadable: {error})"
        return " | ".join(str(data.get("text", "")).strip().splitlines()[-3:])

    def _failure(self, job: Job, error: HansaError) -> AssignmentFailed:
        return AssignmentFailed(
            at=0.0,
            facility=self._settings.facility,
            assignment=job.order.assignment,
            code=error.code,
            reason=error.message + (f" {error.hint}" if error.hint else ""),
            transient=error.transient,
        )

    # Losing and regaining the facility; cancelling.

    def _lose(self, error: HansaError) -> None:
        if self._lost:
            return
        self._lost = True
        self._show("lost", error.message)
        self._orphans += self._orders.values()
        for task in self._work.values():
            task.cancel()
        self._emit(
            FacilityLost(
                at=0.0,
                facility=self._settings.facility,
                code=error.code,
                reason=error.message,
            )
        )
        self._regaining = asyncio.create_task(self._regain())

    async def _regain(self) -> None:
        await self._contact.back_again()
        self._lost = False
        self._show("idle")
        orphans, self._orphans = self._orphans, []
        for job in orphans:
            self._chore(self._see_off(job))
        self._emit(FacilityReady(at=0.0, facility=self._settings.facility))

    async def _see_off(self, job: Job) -> None:
        """Cancel a job and wait for its end, for the accounts."""
        if job.ended:
            return
        try:
            request = rpc.cancel(self._settings.run, [job.key])
            reply = await self._contact.call(request)
            if job.queued or job.key in reply.get("cancelled", ()):
                await self._watch(job)
        except FacilityGone as error:
            self._orphans.append(job)
            self._lose(error)
        except HansaError as error:
            log.warning("%s: could not be cancelled: %s", job.key, error)

    # Small things.

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chore_done)

    def _chore_done(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: a chore broke", self._settings.facility, exc_info=error)

    def _over(self, assignment: str, task: asyncio.Task[None]) -> None:
        self._work.pop(assignment, None)
        self._orders.pop(assignment, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _in_view(self, job: Job) -> bool:
        """Tell whether people should see this job: training goes before the rest."""
        return job.order.kind == "train" or not any(
            other.order.kind == "train" for other in self._orders.values()
        )

    def _show(self, state: str, detail: str = "", job: Job | None = None) -> None:
        if job is None or self._in_view(job):
            self.view.state, self.view.detail = state, detail
