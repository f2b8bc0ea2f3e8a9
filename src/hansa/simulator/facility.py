"""A simulated facility: what a lane and a site do, on the heap.

``stage -> submit -> queue -> bind -> train -> collect`` as in
`hansa.coordinator.lane`, with the same rules for what follows a job without a result
(`coordinator.trouble`), for jobs queued ahead (the core's), for walltimes and for
lingering (the worker's). What the server hears of, it hears `notice` seconds after it
happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hansa.coordinator.trouble import Next, Trouble, When, next_step
from hansa.core.commands import WorkOrder
from hansa.core.errors import HansaError
from hansa.core.events import (
    AssignmentFailed,
    Event,
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
    JobState.CANCELLED: Trouble.DELETED,
}
_RETRY = RetryPolicy()


@dataclass(slots=True)
class Accounts:
    """What the facility's jobs have cost, in node-seconds, and who still runs."""

    ended: float = 0.0
    running: dict[str, Allocation] = field(default_factory=dict)

    def node_hours(self) -> float:
        """Return the node-hours used up to now, jobs that run included."""
        live = sum(job.ask.nodes * job.run_s for job in self.running.values())
        return (self.ended + live) / 3600.0


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
        self._queue, self._weather = queue, weather
        self._when = When(**plan.when.model_dump())
        self._staging = Staging(name, world)
        self._orders: dict[str, Order] = {}
        self._jobs: dict[str, Allocation] = {}
        self._blocked: list[Callable[[], None]] = []
        self._submitted = self._trained = 0
        self._unheard: dict[str, JobEnded] = {}
        weather.begin(self)

    # What the runtime asks for.

    def assign(self, what: WorkOrder) -> None:
        """Begin an order; one that is known is let be."""
        if what.assignment in self._orders:
            return
        steps = 0
        if what.kind == "train":
            steps = self._plan.work.steps if what.steps is None else what.steps
        order = self._orders[what.assignment] = Order(what, steps)
        self._reachable(lambda: self._stage_for(order))

    def withdraw(self, assignment: str) -> None:
        """Give an order up and cancel its job; harmless if it is over."""
        order = self._orders.pop(assignment, None)
        if order is None or order.over:
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
        if self.world.late_binding and any(
            order.base is None and order.trains for order in self._orders.values()
        ):
            self._staging.version(self.world.core.newest, lambda: None)

    def bound(self) -> set[int]:
        """Return the versions that orders train from, or may yet bind."""
        bases = {o.base for o in self._orders.values() if o.base is not None}
        return bases | self._staging.bindable()

    def queue_ahead(self) -> None:
        """Queue the next job ahead if it is time to, and none waits already."""
        core, wait = self.world.core, self._plan.queue_ahead
        if wait <= 0 or not (core.calls_ahead(self.name) and core.more_to_come):
            return
        waiting = any(
            is_ahead(job.assignment) and job.ran_at is None
            for job in self._jobs.values()
        )
        if waiting or self._is_full():
            return
        number = core.last_ahead(self.name) + 1
        self._enter(assignment_id("ahead", number, self.name), 1, ahead=wait)

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
        version = self.world.core.newest
        if order.what.version is not None:
            version = order.what.version
        self._staging.version(version, lambda: self._stage_control(order))

    def _stage_control(self, order: Order) -> None:
        control = order.what.control
        if control:
            self._staging.state(control, lambda: self._submit(order))
        else:
            self._submit(order)

    # Submitting.

    def _submit(self, order: Order) -> None:
        if order.over:
            return
        host = next(
            (job for job in self._jobs.values() if job.takes(order, self._nodes)), None
        )
        if not self.world.late_binding and order.trains and order.base is None:
            order.base, order.weights = self._staging.newest, self._staging.weights
        if host is not None:
            self._emit_queued(order.what.assignment, order, host)
            host.give(order)
        elif self._is_full():
            self._blocked.append(lambda: self._submit(order))
        else:
            self._enter(order.what.assignment, order.number, order)

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
            self._queue,
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
            self.heap.after(
                self._simulation.notice, lambda: self._send_up(order, steps)
            )
        else:
            self.heap.after(self._simulation.notice, lambda: self._report(order))

    def _send_up(self, order: Order, steps: int) -> None:
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
        first = what.first
        if first is None:
            first = (what.round - 1) * order.steps
        control = world.store.state(what.control) if what.control else None
        try:
            made = world.training.train(
                self.name,
                order.weights,
                LocalWork(
                    assignment=what.assignment,
                    round=what.round,
                    steps=steps,
                    first=first,
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
                partial=steps < order.steps,
                bytes=world.training.update_bytes,
                metrics=made.metrics,
                timings={
                    "train_s": order.train_s,
                    "startup_s": order.startup_s,
                    "transfer_s": transfer_s,
                    "write_s": self.speed.save,
                    "hold_s": order.hold_s,
                },
            )
        )

    def _report(self, order: Order) -> None:
        self._orders.pop(order.what.assignment, None)
        self.world.emit(evaluation(self.world, self.name, order.what, order.base or 0))

    def ended(self, job: Allocation, left: list[Order]) -> None:
        """See `Owner.ended`: charge it, and find other jobs for its orders."""
        self._jobs.pop(job.key, None)
        ran = job.run_s if job.key in self.accounts.running else 0.0
        self.accounts.running.pop(job.key, None)
        self.accounts.ended += job.ask.nodes * ran
        notice = self._simulation.notice
        self._unheard[job.key] = JobEnded(
            at=self.heap.now + notice,
            facility=self.name,
            assignment=job.assignment,
            number=job.number,
            job=job.id,
            state=job.state.value,
            reason="",
            queue_wait=job.queue_wait,
            run_s=ran,
            node_hours=job.ask.nodes * ran / 3600.0,
        )
        self.heap.after(notice, lambda: self._hear(job.key))
        for order in left:
            if not order.over:
                broke = _TROUBLES.get(job.state, Trouble.BROKEN)
                begun = order.began is not None
                self._again(order, broke if begun else Trouble.REFUSED)
        if self._blocked:
            self._reachable(self._blocked.pop(0))

    def _hear(self, key: str) -> None:
        """Tell the server, once, that a job has ended."""
        ended = self._unheard.pop(key, None)
        if ended is not None:
            self.world.emit(ended)

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
            words = f"Job {order.key} at {self.name} left no result ({trouble})."
            self._fail(order, "WORKER", words, transient=True)
            return
        wait = _RETRY.delay(order.number, order.key)
        order.spared += step is Next.RESUME
        order.best = max(order.best, order.done)
        order.number += 1
        order.began = None
        notice = self._simulation.notice
        self.heap.after(
            notice + wait, lambda: self._reachable(lambda: self._stage_for(order))
        )

    def _fail(self, order: Order, code: str, reason: str, *, transient: bool) -> None:
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

    def _soon(self, event: Event) -> None:
        """Tell the server of something when it hears of it."""
        if event.at > self.heap.now:
            self.heap.at(event.at, lambda: self.world.emit(event))
        else:
            self.world.emit(event)
