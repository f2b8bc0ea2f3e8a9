"""A lane: one facility's pipeline, from an order to an update or a failure.

``stage -> submit -> watch -> collect``. Every step may be repeated without harm: a
version that is there is not sent again, a job that exists is found by its name, an
update that was pulled is verified where it lies. So after a crash a lane simply
carries out the same order again, told by the journal how far it had come.

An order has a batch job of its own, or the site agent hands it to a job whose
allocation is open (`Job.host`). Batch jobs that go on without an order of ours are
followed in the background (`follow`), so that their cost is journaled too.

Faults of the line are mended by `Contact`, faults of a job by a new job that resumes
from the worker's checkpoint, as the policy says (`trouble`). What can't be mended
becomes `AssignmentFailed` or `FacilityLost`; a lane never ends a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, suppress

from hansa.coordinator.ahead import Ahead
from hansa.coordinator.books import BatchJob
from hansa.coordinator.chores import Chores
from hansa.coordinator.contact import Contact, FacilityGone
from hansa.coordinator.delivery import Delivery
from hansa.coordinator.failure import Autopsy, failure
from hansa.coordinator.follow import Followers
from hansa.coordinator.job import Job, Work
from hansa.coordinator.partings import Partings
from hansa.coordinator.plan import Progress
from hansa.coordinator.poller import Poller
from hansa.coordinator.reports import JobReport
from hansa.coordinator.settings import LaneSettings
from hansa.coordinator.steps import InVain, Steps
from hansa.coordinator.tidying import Tidying
from hansa.coordinator.trouble import Next, Trouble, next_step, trouble_of
from hansa.coordinator.view import FacilityView
from hansa.core.commands import WorkOrder
from hansa.core.errors import (
    FacilityError,
    HansaError,
    LoginError,
    StorageFull,
    WorkerError,
)
from hansa.core.events import Event, FacilityLost, FacilityReady, ModelStaged
from hansa.core.ids import is_ahead
from hansa.scheduler.base import JobState
from hansa.site import rpc

log = logging.getLogger(__name__)

_OVER = frozenset({"failed", "cancelled", "refused"})
"""Phases in which an order in another job's allocation is over without a result."""

FAREWELL_S = 60.0
"""Seconds that cancelled jobs get to end when this process does."""


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
        run, name = settings.run, settings.facility
        self.view = FacilityView(name)
        self._settings = settings
        self._contact = contact
        self._delivery = delivery
        self._emit = emit
        self._fail = fail
        self._poller = Poller(
            contact, run, self._lose, pace=settings.pace, patience=settings.patience
        )
        self._followers = Followers(
            run, contact, self._poller, emit=emit, show=self._show_followed
        )
        self._ahead = Ahead(
            run, name, settings.job, settings.ahead, contact, self._followers, emit
        )
        self._partings = Partings(run, name, contact, self._followers, self._lose)
        self._steps = Steps(settings.retry, settings.patience)
        self._autopsy = Autopsy(run, contact, delivery)
        self._tidying = Tidying(run, contact, delivery)
        self._work: dict[str, asyncio.Task[None]] = {}
        self._orders: dict[str, Work] = {}
        self._chores = Chores(name)
        self._regaining: asyncio.Task[None] | None = None
        self._lost = False

    # What the runtime asks for.

    def assign(self, order: WorkOrder, progress: Progress | None = None) -> None:
        """Begin (or, told the `progress`, take up again) an order."""
        if order.assignment in self._work:
            return
        work = Work.resumed(self._settings.facility, order, progress)
        self._followers.release(work.key)
        self._orders[order.assignment] = work
        task = asyncio.create_task(self._carry_out(work), name=order.assignment)
        self._work[order.assignment] = task
        task.add_done_callback(lambda done: self._over(order.assignment, done))

    def withdraw(self, assignment: str, progress: Progress | None = None) -> None:
        """Give an order up and cancel its job; harmless if it is over."""
        task, work = self._work.get(assignment), self._orders.get(assignment)
        if task is not None:
            task.cancel()
        if work is None and progress is not None:
            work = Work.resumed(self._settings.facility, progress.order, progress)
        if work is not None:
            self._partings.part(work)

    def begin(self, assignment: str) -> None:
        """Tell a job that waits for the others to begin; harmless if it did."""
        work = self._orders.get(assignment)
        if work is not None and not self._lost:
            self._chores.start(self._tell_to_begin(work))

    def take_up(self, jobs: Iterable[BatchJob]) -> None:
        """Follow, after a restart, the jobs that the journal left without an order."""
        for job in jobs:
            self._followers.follow(Job.followed(job))
        self.queue_ahead()

    def queue_ahead(self) -> None:
        """Queue the next job ahead if it is time to; harmless if it is not."""
        if not self._lost:
            self._chores.start(self._place_ahead())

    def version_published(self) -> None:
        """Send the newest version ahead if a job that waits could still bind it."""
        waiting = any(
            work.order.kind == "train" and work.job.base is None
            for work in self._orders.values()
        )
        if waiting and not self._lost:
            self._chores.start(self._send_ahead())

    def bindable(self) -> set[int]:
        """Return the versions that jobs here may train from without our knowing yet."""
        staged = self._delivery.staged()
        training = (w for w in self._orders.values() if w.order.kind == "train")
        return set().union(*(work.job.bindable(staged) for work in training))

    def stay_lost(self) -> None:
        """Take up, after a restart, the waiting for a facility that was lost."""
        self._lost = True
        self._partings.suspend(())
        self._followers.suspend()
        self._show("lost")
        self._regaining = asyncio.create_task(self._regain())

    async def settle(self, seconds: float) -> None:
        """Let all jobs leave and wait for their ends, at most this long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # A job leaves the queue only when its orders were given up before.
                await self._partings.done(seconds / 3)
                await self._leave()
                await self._chores.done(seconds / 3)
                await self._leave()  # those that a chore has left behind
                await self._followers.ended()

    async def _leave(self) -> None:
        await self._followers.leave()
        self._poller.sooner()

    async def close(self, *, cancel_jobs: bool = False) -> None:
        """End all tasks; jobs at the facility go on unless `cancel_jobs`."""
        if cancel_jobs:
            for assignment in list(self._work):
                self.withdraw(assignment)
            await self.settle(FAREWELL_S)
        tasks = [*self._work.values()]
        if self._regaining is not None:
            tasks.append(self._regaining)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._chores.close()
        await self._partings.close()
        await self._followers.close()
        await self._poller.close()
        await self._contact.close()
        await self._delivery.close()

    # The pipeline.

    async def _carry_out(self, work: Work) -> None:
        while True:
            try:
                await self._one_job(work)
            except FacilityGone as error:
                self._lose(error)
                return
            except StorageFull as error:
                self._fail(error)
                return
            except InVain as vain:
                self._give_up(work, vain.error)
                return
            except HansaError as error:
                if not await self._mended(work, error):
                    return
            except Exception as error:
                # A bad facility must not end a run, not even with a surprise.
                log.exception("%s: the lane was surprised", work.key)
                surprise = FacilityError(f"Unexpected: {error!r}. This is a bug.")
                self._emit(failure(work, surprise))
                return
            else:
                self._show("idle", work=work)
                return

    async def _mended(self, work: Work, error: HansaError) -> bool:
        """Turn to the assignment's next job if that may help; else report failure."""
        step = next_step(
            getattr(error, "trouble", Trouble.BROKEN),
            self._settings.when,
            transient=error.transient,
            progressed=work.progressed,
            tries=work.tries,
            jobs=work.number,
            retries=self._settings.retries,
        )
        if step is Next.GIVE_UP:
            self._give_up(work, error)
            return False
        log.warning("%s: %s", work.key, error)
        self._show("retrying", error.message, work)
        await asyncio.sleep(self._settings.retry.delay(work.number, work.key))
        if not await self._partings.cancel(work):
            return False
        work.spared += step is Next.RESUME
        work.next_number()
        return True

    def _give_up(self, work: Work, error: HansaError) -> None:
        log.warning("%s is given up: %s", work.key, error)
        self._show("failed", error.message, work)
        self._partings.part(work)
        self._emit(failure(work, error))

    async def _one_job(self, work: Work) -> None:
        """Carry one job through; returns when its result was delivered."""
        self._show("staging", work=work)
        await self._retried(work, lambda: self._stage(work))
        self._show("submitting", work=work)
        await self._retried(work, lambda: self._submit(work))
        self._show("queued", work=work)
        report = await self._watch(work)
        if report.update is None:
            asked = self._partings.asked_for(work)
            trouble = trouble_of(report.scheduler, report.phase, asked=asked)
            raise await self._autopsy.cause(work, report, trouble)
        if not work.host:
            self._followers.follow(work.job)
        if not self._settings.job.get("linger") and _is_back_with_result(work, report):
            self._partings.part(work)
        self._show("collecting", work=work)
        await self._retried(work, lambda: self._collect(work, report))

    async def _retried(self, work: Work, step: Callable[[], Awaitable[None]]) -> None:
        def show(error: FacilityError) -> None:
            self._show(self.view.state, error.message, work)
            if isinstance(error, LoginError):
                self.view.show_login(error)

        await self._steps.repeat(work.key, step, show)
        self.view.show_login(None)

    async def _stage(self, work: Work) -> None:
        self._tell_staged(await self._delivery.stage(work.order.version))
        if work.order.control:
            self._tell_staged(await self._delivery.stage_state(work.order.control))

    def _tell_staged(self, staged: ModelStaged | None) -> None:
        if staged is not None:
            self.view.bytes_sent += staged.bytes
            self._emit(staged)

    async def _submit(self, work: Work) -> None:
        job = work.job
        if job.queued:
            return
        job.newest = self._delivery.newest()
        # An earlier try may have been accepted, though no answer came.
        job.least = job.newest if job.least is None else job.least
        order = self._settings.order(work.order)
        request = {**self._settings.job, **self._settings.size(work.order)}
        if work.order.kind != "train":
            request.pop("hold", None)
        reply = await self._contact.call(
            rpc.submit(self._settings.run, order, job.number, request)
        )
        if not reply.get("job"):
            raise FacilityError("A submission was answered without a job's id.")
        job.id, job.queued = str(reply["job"]), True
        job.host = str(reply.get("host") or "")
        if job.host:
            self._meet_host(job)
        self._emit(job.queued_event(work.spared))

    def _meet_host(self, guest: Job) -> None:
        """See that the job that took an order on is followed by somebody."""
        assignment, _, number = guest.host.rpartition(".")
        order = self._orders.get(assignment)
        if guest.host in self._followers or (order and order.key == guest.host):
            return
        if is_ahead(assignment) and self._ahead.adopt(assignment, guest.id):
            return
        host = Job(
            facility=self._settings.facility,
            assignment=assignment,
            number=int(number),
            id=guest.id,
            queued=True,
        )
        self._followers.follow(host)

    async def _watch(self, work: Work) -> JobReport:
        """Follow a job until its order is over; tell what happens on the way."""
        clock = asyncio.get_running_loop().time
        async with aclosing(self._poller.reports(work.key)) as reports:
            async for report in reports:
                self._note(work, report)
                if report.scheduler is None:
                    over = report.update is not None or work.job.has_vanished(clock())
                else:
                    over = report.scheduler.state.final or self._is_done(work, report)
                if over:
                    return report
        raise WorkerError(f"Nobody watches job {work.key} any more.", transient=True)

    def _is_done(self, work: Work, report: JobReport) -> bool:
        """Tell whether an order is over although the batch job goes on."""
        held = report.scheduler and report.scheduler.state is JobState.HELD
        if held and self._settings.when.held == Next.GIVE_UP:
            return True
        if work.host:
            return report.update is not None or report.phase in _OVER
        if not self._settings.job.get("linger"):
            return _is_back_with_result(work, report)
        failed = report.phase == "failed" and report.runs and not report.is_stale
        return report.update is not None or failed

    async def _collect(self, work: Work, report: JobReport) -> None:
        if report.update is None:
            raise WorkerError(f"Job {work.key} left no result.", transient=True)
        event = await self._delivery.collect(work.order, work.job.base, report.update)
        self.view.bytes_received += getattr(event, "bytes", 0)
        self._emit(event)
        self._chores.start(self._tidying.tidy())

    def _note(self, work: Work, report: JobReport) -> None:
        """Tell what is new of a job, and what follows from it."""
        work.step = max(work.step, report.step)
        if report.bound is None and report.update is None:
            work.job.was_unbound(max(self._delivery.staged(), default=0))
        now = asyncio.get_running_loop().time()
        for event in work.job.news(report, now):
            self._emit(event)
        if self._in_view(work):
            self.view.show(work.job, report)

    # Chores beside the pipeline.

    async def _send_ahead(self) -> None:
        try:
            staged = await self._delivery.stage(None)
        except HansaError as error:
            # The orders' own staging will tell, with retries.
            log.warning("%s: sending ahead failed: %s", self._settings.facility, error)
            return
        self._tell_staged(staged)

    async def _place_ahead(self) -> None:
        try:
            await self._ahead.place()
        except FacilityGone as error:
            self._lose(error)

    async def _tell_to_begin(self, work: Work) -> None:
        try:
            request = rpc.tell(self._settings.run, [work.key], "begin")
            await self._contact.call(request)
        except FacilityGone as error:
            self._lose(error)
        except HansaError as error:
            # It begins by itself when its time is over.
            log.warning("%s: could not be told to begin: %s", work.key, error)

    # Losing and regaining the facility.

    def _lose(self, error: HansaError) -> None:
        if self._lost:
            return
        self._lost = True
        name = self._settings.facility
        self._show("lost", error.message)
        self._partings.suspend(self._orders.values())
        for task in self._work.values():
            task.cancel()
        self._followers.suspend()
        self._emit(
            FacilityLost(at=0.0, facility=name, code=error.code, reason=error.message)
        )
        self._regaining = asyncio.create_task(self._regain())

    async def _regain(self) -> None:
        await self._contact.back_again()
        self._lost = False
        self._show("idle")
        self._partings.resume()
        self._followers.resume()
        self.queue_ahead()
        self._emit(FacilityReady(at=0.0, facility=self._settings.facility))

    # Small things.

    def _over(self, assignment: str, task: asyncio.Task[None]) -> None:
        self._work.pop(assignment, None)
        self._orders.pop(assignment, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _in_view(self, work: Work) -> bool:
        """Tell whether people should see this job: training goes before the rest."""
        return work.order.kind == "train" or not any(
            other.order.kind == "train" for other in self._orders.values()
        )

    def _show(self, state: str, detail: str = "", work: Work | None = None) -> None:
        if work is None or self._in_view(work):
            self.view.state, self.view.detail = state, detail

    def _show_followed(self, job: Job, report: JobReport) -> None:
        self.view.show_followed(job, report, idle=not self._orders)


def _is_back_with_result(work: Work, report: JobReport) -> bool:
    """Tell whether a job that has delivered was put back into the queue.

    As after a preemption whose warning was used well: it would wait for nothing.
    """
    record = report.scheduler
    waits = record is not None and record.state in {JobState.QUEUED, JobState.HELD}
    return waits and report.update is not None and work.job.base is not None
