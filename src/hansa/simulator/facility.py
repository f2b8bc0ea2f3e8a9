"""A simulated facility: what a lane and a site do, on the heap.

``stage -> submit -> queue -> bind -> train -> collect`` as in
`hansa.coordinator.lane`, with the same rules for what follows a job without a result
(`coordinator.trouble`), for jobs queued ahead (the core's), for walltimes and for
lingering (the worker's). What the server hears of, it hears `notice` seconds after it
happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hansa.coordinator.trouble import Next, Trouble, When, next_step
from hansa.core.commands import WorkOrder
from hansa.core.errors import HansaError
from hansa.core.events import (
    AssignmentFailed,
    FacilityLost,
    FacilityReady,
    JobEnded,
    JobQueued,
    JobStarted,
    JobWaiting,
    UpdateArrived,
)
from hansa.core.ids import assignment_id, is_ahead
from hansa.core.retry import RetryPolicy
from hansa.scheduler.base import JobState
from hansa.simulator.accounts import Accounts
from hansa.simulator.allocation import Allocation, Ask
from hansa.simulator.machine import Machine
from hansa.simulator.order import Order
from hansa.simulator.queues.base import Queue
from hansa.simulator.staging import Staging
from hansa.simulator.training.base import LocalWork
from hansa.simulator.weather import Weather
from hansa.simulator.world import World, evaluation
from hansa.spec.federation import FacilitySpec
from hansa.spec.simulation import FacilitySimulation

_TROUBLES = {
    JobState.PREEMPTED: Trouble.PREEMPTED,
    JobState.NODE_FAIL: Trouble.NODE_FAIL,
    JobState.TIMEOUT: Trouble.TIMEOUT,
    JobState.CANCELLED: Trouble.ASKED,
}
_RETRY = RetryPolicy()


class SimulatedFacility:
    """One facility; see the module's text.

    Args:
        name: Its name.
        plan: The facility, as the federation file has it.
        simulation: How it is simulated.
        world: What all facilities share.
        queue: Its batch queue.
        machine: Its speed.
        weather: What goes wrong there.
    """

    def __init__(
        self,
        name: str,
        plan: FacilitySpec,
        simulation: FacilitySimulation,
        world: World,
        queue: Queue,
        machine: Machine,
        weather: Weather,
    ) -> None:
        self.name, self.world, self.heap = name, world, world.heap
        self.speed, self.machine = simulation.speed, machine
        self.accounts = Accounts()
        self._plan, self._simulation = plan, simulation
        self.queue, self._weather = queue, weather
        self._when = When(**plan.when.model_dump())
        self._staging = Staging(name, world)
        self._orders: dict[str, Order] = {}
        self._jobs: dict[str, Allocation] = {}
        self._blocked: deque[Order] = deque()
        self._submitted = self._trained = 0
        self._unheard: dict[str, JobEnded] = {}
        weather.begin(self)

    # What the runtime asks for.

    def assign(self, what: WorkOrder) -> None:
        """Begin an order; one that is known is let be."""
        if what.assignment in self._orders:
            return
        trains, steps = what.kind == "train", 0
        if trains:
            steps = self._plan.work.steps if what.steps is None else what.steps
        order = self._orders[what.assignment] = Order(what, steps, trains)
        self._reachable(lambda: self._stage_for(order))

    def withdraw(self, assignment: str) -> None:
        """Give an order up and cancel its job; harmless if it is over."""
        order = self._orders.pop(assignment, None)
        if order is None:
            return
        order.over = order.asked = True
        job = self._job_of(order)
        if job is not None:
            job.give_up(order)

    def begin(self, assignment: str) -> None:
        """Tell an order that waits for the others to begin."""
        order = self._orders.get(assignment)
        job = None if order is None else self._job_of(order)
        if job is not None and job.at_work is order:
            job.word_to_begin()

    def version_published(self) -> None:
        """Send the newest version ahead if an order that waits could still bind it."""
        if (
            self.world.late_binding
            and any(o.base is None and o.trains for o in self._orders.values())
            and self._weather.back(self.heap.now) is None
        ):
            self._staging.send_ahead()

    def bound(self) -> set[int]:
        """Return the versions that orders train from, or may yet bind."""
        bases = {o.base for o in self._orders.values() if o.base is not None}
        return bases | self._staging.bindable()

    def queue_ahead(self) -> None:
        """Queue the next job ahead if it is time to, and none waits already."""
        if self._plan.queue_ahead > 0:
            self._reachable(self._place_ahead)

    def _place_ahead(self) -> None:
        core = self.world.core
        if not (core.calls_ahead(self.name) and core.more_to_come):
            return
        waiting = any(
            is_ahead(job.assignment) and job.ran_at is None
            for job in self._jobs.values()
        )
        if waiting or self._is_full():
            return
        number = core.last_ahead(self.name) + 1
        name = assignment_id("ahead", number, self.name)
        self._enter(name, 1, ahead=self._plan.queue_ahead)

    def settle(self) -> None:
        """Let all jobs leave, as the run ends."""
        for job in list(self._jobs.values()):
            job.leave()
            if not job.state.final:
                job.end(JobState.CANCELLED)
        # A real run waits for the ends of its jobs: their cost is in its books.
        for key, ended in list(self._unheard.items()):
            self._unheard[key] = replace(ended, at=self.heap.now)
            self._hear(key)

    # Staging.

    def _stage_for(self, order: Order) -> None:
        self._staging.stage(order, lambda: self._submit(order))

    # Submitting.

    def _submit(self, order: Order) -> None:
        if order.over:
            return
        hosts = [job for job in self._jobs.values() if job.takes(order, self._nodes)]
        if not hosts and self._is_full():
            self._blocked.append(order)
            return
        if not self.world.late_binding and order.trains and order.base is None:
            order.base, order.weights = self._staging.newest, self._staging.weights
        if hosts:  # the rule of `site.handover.choose`
            host = min(hosts, key=lambda job: (job.ran_at is None, job.pending))
            self._emit_queued(order.what.assignment, order, host)
            host.give(order)
        else:
            self._enter(order.what.assignment, order.number, order)

    def _unblock(self) -> None:
        """Submit orders that the full queue has kept waiting, while there is room."""
        while self._blocked and not self._is_full():
            order = self._blocked.popleft()
            if not order.over:
                self._reachable(partial(self._submit, order))

    def _enter(
        self,
        assignment: str,
        number: int,
        order: Order | None = None,
        ahead: float | None = None,
    ) -> None:
        self._submitted += 1
        job = Allocation(
            self,
            self.queue,
            assignment,
            number,
            Ask(
                nodes=self._nodes,
                walltime=self._plan.job.time,
                linger=self._plan.linger,
                ahead=ahead,
            ),
            str(self._submitted),
        )
        self._jobs[job.key] = job
        if order is not None:
            job.orders.append(order)
        self._emit_queued(assignment, order, job)
        job.submit()

    def _emit_queued(
        self, assignment: str, order: Order | None, job: Allocation
    ) -> None:
        number = job.number if order is None else order.number
        own = order is None or order.key == job.key
        self.world.emit(
            JobQueued(
                at=self.heap.now,
                facility=self.name,
                assignment=assignment,
                number=number,
                job=job.id,
                newest=self.world.core.newest,
                host="" if own else job.key,
                spared=0 if order is None else order.spared,
            )
        )

    @property
    def _nodes(self) -> int:
        return self._plan.job.nodes

    def _is_full(self) -> bool:
        most = self._simulation.jobs_in_queue
        return most is not None and len(self._jobs) >= most

    def _job_of(self, order: Order) -> Allocation | None:
        for job in self._jobs.values():
            if order is job.at_work or order in job.orders:
                return job
        return None

    # What jobs tell (`allocation.Owner`).

    def may_start(self, job: Allocation) -> float:
        """See `Owner.may_start`."""
        return self._weather.next_free(self.heap.now, job.ask.walltime)

    def started(self, job: Allocation) -> None:
        """See `Owner.started`."""
        self.accounts.running[job.key] = job
        job.failures = self._weather.failures(job)
        if is_ahead(job.assignment):
            self._emit_started(job, job.assignment, job.number, -1)

    def waits(self, job: Allocation, order: Order) -> float:
        """See `Owner.waits`; tell the server that it does."""
        hold = self.world.hold if order.trains and not order.serial else 0.0
        if hold:
            self._soon(
                JobWaiting(
                    at=self.heap.now + self._simulation.notice,
                    facility=self.name,
                    assignment=order.what.assignment,
                    number=order.number,
                    job=job.id,
                    queue_wait=job.queue_wait if order.key == job.key else 0.0,
                )
            )
        return hold

    def bind(self, job: Allocation, order: Order) -> None:
        """See `Owner.bind`."""
        if order.base is None and order.what.version is not None:
            order.base = order.what.version
        elif order.base is None:
            order.base, order.weights = self._staging.newest, self._staging.weights
        if order.trains and not order.serial:
            self._trained += 1
            order.serial = self._trained
        self._emit_started(job, order.what.assignment, order.number, order.base or 0)

    def _emit_started(
        self, job: Allocation, assignment: str, number: int, base: int
    ) -> None:
        own = assignment == job.assignment
        self._soon(
            JobStarted(
                at=self.heap.now + self._simulation.notice,
                facility=self.name,
                assignment=assignment,
                number=number,
                job=job.id,
                base=base,
                queue_wait=job.queue_wait if own else 0.0,
            )
        )

    def delivered(self, order: Order, steps: int) -> None:
        """See `Owner.delivered`: the server collects what is there."""
        order.over = True
        if order.trains:
            self._once_heard(lambda: self._send_up(order, steps))
        else:
            self._once_heard(lambda: self._report(order))

    def _send_up(self, order: Order, steps: int) -> None:
        if order.asked:
            return
        self.world.network.send(
            self.name,
            self.world.training.update_bytes,
            lambda seconds: self._collected(order, steps, seconds),
        )

    def _collected(self, order: Order, steps: int, transfer_s: float) -> None:
        what, world = order.what, self.world
        if order.asked:
            return
        self._orders.pop(what.assignment, None)
        progress = world.core.progress(what.assignment)
        is_partial = steps < order.steps
        control = world.store.state(what.control) if what.control else None
        try:
            made = world.training.train(
                self.name,
                order.weights,
                LocalWork(
                    assignment=what.assignment,
                    round=what.round,
                    steps=steps,
                    seen=0 if progress is None else progress.seen,
                    lr_scale=what.lr_scale,
                    proximal=what.proximal,
                    control=control,
                ),
            )
        except HansaError as error:
            self._fail(order, error.code, error.message, transient=error.transient)
            return
        if made.delta is not None:
            world.store.put_update(what.assignment, made.delta)
        world.emit(
            UpdateArrived(
                at=self.heap.now,
                facility=self.name,
                assignment=what.assignment,
                base=order.base or 0,
                steps=steps,
                samples=made.samples,
                partial=is_partial,
                bytes=world.training.update_bytes,
                metrics=made.metrics,
                timings={
                    "train_s": order.train_s,
                    "startup_s": order.startup_s,
                    "transfer_s": transfer_s,
                    "write_s": self.speed.save,
                    "eval_s": 0.0 if is_partial else order.eval_s,
                    "hold_s": order.hold_s,
                },
            )
        )

    def _report(self, order: Order) -> None:
        if order.asked:
            return
        self._orders.pop(order.what.assignment, None)
        self.world.emit(evaluation(self.world, self.name, order.what, order.base or 0))

    def ended(self, job: Allocation, order: Order | None, behind: list[Order]) -> None:
        """See `Owner.ended`: charge it, and find other jobs for its orders."""
        self._jobs.pop(job.key, None)
        heard = self.heap.now + self._simulation.notice
        self._unheard[job.key] = self.accounts.close(job, self.name, heard)
        self._once_heard(lambda: self._hear(job.key))
        if order is not None and not order.over:
            self._again(order, _TROUBLES.get(job.state, Trouble.BROKEN))
        for guest in behind:
            if not guest.over:
                self._again(guest, _TROUBLES.get(job.state, Trouble.REFUSED))
        self._unblock()

    def _hear(self, key: str) -> None:
        """Tell the server, once, that a job has ended."""
        ended = self._unheard.pop(key, None)
        if ended is not None:
            late = self.heap.now > ended.at
            self.world.emit(replace(ended, at=self.heap.now) if late else ended)

    # Troubles.

    def _again(self, order: Order, trouble: Trouble) -> None:
        step = next_step(
            trouble,
            self._when,
            transient=True,
            progressed=order.done > order.best,
            tries=order.number - order.spared,
            jobs=order.number,
            retries=self.world.retries,
        )
        if step is Next.GIVE_UP:
            order.over = True
            words = f"Job {order.key} at {self.name} left no result ({trouble})."
            self._once_heard(lambda: self._fail(order, "WORKER", words, transient=True))
            return
        wait = _RETRY.delay(order.number, order.key)
        order.spared += step is Next.RESUME
        order.best = max(order.best, order.done)
        order.number += 1
        if not order.done:  # without a checkpoint the next job binds anew
            order.base = order.weights = None
        notice = self._simulation.notice
        self.heap.after(
            notice + wait, lambda: self._reachable(lambda: self._stage_for(order))
        )

    def _fail(self, order: Order, code: str, reason: str, *, transient: bool) -> None:
        if order.asked:
            return
        order.over = True
        self._orders.pop(order.what.assignment, None)
        self.world.emit(
            AssignmentFailed(
                at=self.heap.now,
                facility=self.name,
                assignment=order.what.assignment,
                code=code,
                reason=reason,
                transient=transient,
            )
        )

    def _reachable(self, call: Callable[[], None]) -> None:
        """Do something that needs the facility's answer, once it answers."""
        back = self._weather.back(self.heap.now)
        if back is None:
            call()
        else:
            self.heap.at(back, call)

    def _once_heard(self, call: Callable[[], None]) -> None:
        """Do what follows from something once the server has heard of it."""
        self.heap.after(self._simulation.notice, lambda: self._reachable(call))

    def outage(self, until: float) -> None:
        """Lose all running jobs, and everybody's patience if it lasts."""
        for job in list(self.accounts.running.values()):
            job.break_off(JobState.NODE_FAIL, warned=False)
        if until - self.heap.now > self.world.patience:
            self.heap.after(self.world.patience, self._lose)
            self.heap.at(until, self._regain)

    def _lose(self) -> None:
        for assignment in list(self._orders):
            self.withdraw(assignment)
        self.world.emit(
            FacilityLost(
                at=self.heap.now,
                facility=self.name,
                code="GATEWAY",
                reason=f"{self.name} has not answered for {self.world.patience:.0f} s.",
            )
        )

    def _regain(self) -> None:
        self.world.emit(FacilityReady(at=self.heap.now, facility=self.name))
        self.queue_ahead()

    def _soon(self, event: JobStarted | JobWaiting) -> None:
        """Tell the server of something when it hears of it."""
        if event.at > self.heap.now:
            self.heap.at(event.at, lambda: self._soon(event))
            return
        back = self._weather.back(self.heap.now)
        if back is None:
            self.world.emit(event)
        else:
            self._soon(replace(event, at=back))
