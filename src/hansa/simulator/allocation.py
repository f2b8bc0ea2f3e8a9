"""A simulated batch job: it waits in the queue, works on orders, lingers and leaves.

What a real job does (`hansa.worker.allocation`, `hansa.worker.session`), on the heap:
it binds a version when an order begins, stops in time before its walltime and delivers
what it has, and takes no order on for which too little time is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf
from typing import Protocol

from hansa.core.ids import job_key
from hansa.scheduler.base import JobState
from hansa.simulator.heap import Call, Due, Heap
from hansa.simulator.machine import Machine
from hansa.simulator.order import Order
from hansa.simulator.queues.base import Entry, Queue
from hansa.site.handover import MOST_AHEAD
from hansa.spec.simulation import SpeedSpec
from hansa.worker.patience import Patience
from hansa.worker.walltime import Walltime


class Owner(Protocol):
    """The facility that an allocation tells what happens in it."""

    heap: Heap
    speed: SpeedSpec
    machine: Machine

    def may_start(self, job: Allocation) -> float:
        """Return from when on the job may run; it has its nodes already."""
        ...

    def started(self, job: Allocation) -> None:
        """See that the job has left the queue."""
        ...

    def bind(self, job: Allocation, order: Order) -> None:
        """Give the order the version that it trains from, if it has none yet."""
        ...

    def delivered(self, order: Order, steps: int) -> None:
        """Take an order's result in."""
        ...

    def ended(self, job: Allocation, order: Order | None, behind: list[Order]) -> None:
        """See that the job is over, with the order at work and those behind it."""
        ...

    def waits(self, job: Allocation, order: Order) -> float:
        """Return the seconds that an order waits for the word to begin."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a batch job asks for.

    Attributes:
        nodes: Nodes.
        walltime: Seconds that it may run.
        linger: Seconds that it waits for the next order.
        ahead: Seconds that it waits for a first order; None: it comes with one.
    """

    nodes: int
    walltime: float
    linger: float
    ahead: float | None = None


class Allocation:
    """One batch job.

    Args:
        owner: The facility.
        queue: Its batch queue.
        assignment: The order's id, or the job's name if it is queued ahead.
        number: Which job of the assignment.
        ask: What it asks for.
        id_: The scheduler's id.

    Attributes:
        key: Id of the job, as ``train-0003-polaris-1.1``.
    """

    __slots__ = (
        "_due",
        "_last",
        "ask",
        "assignment",
        "at_work",
        "entry",
        "failures",
        "id",
        "idle",
        "key",
        "leaving",
        "number",
        "orders",
        "owner",
        "patience",
        "queue",
        "ran_at",
        "state",
        "submitted",
    )

    def __init__(
        self,
        owner: Owner,
        queue: Queue,
        assignment: str,
        number: int,
        ask: Ask,
        id_: str,
    ) -> None:
        self.owner = owner
        self.queue = queue
        self.assignment, self.number, self.id = assignment, number, id_
        self.key = job_key(assignment, number)
        self.ask = ask
        self.state = JobState.QUEUED
        self.orders: list[Order] = []
        self.at_work: Order | None = None
        self.leaving = self.idle = False
        self.submitted = owner.heap.now
        self.ran_at: float | None = None
        forever = Walltime(None, ask.walltime)
        self.patience = Patience(ask.linger, ask.ahead or 0.0, forever)
        self.patience.save_s = owner.speed.save
        self.failures: tuple[Due, ...] = ()
        self._due: Due | None = None
        self._last: Due | None = None
        self.entry = Entry(
            self.key, ask.nodes, ask.walltime, self.submitted, self._start
        )

    @property
    def queue_wait(self) -> float:
        """Seconds that it waited, or has waited so far."""
        until = self.owner.heap.now if self.ran_at is None else self.ran_at
        return until - self.submitted

    @property
    def run_s(self) -> float:
        """Seconds that it has run."""
        return 0.0 if self.ran_at is None else self.owner.heap.now - self.ran_at

    # Orders in.

    def takes(self, order: Order, nodes: int) -> bool:
        """Tell whether an order may be handed to it."""
        if self.state.final or self.leaving or nodes != self.ask.nodes:
            return False
        if self.ask.linger > 0:
            return self.pending <= MOST_AHEAD
        is_first = not (self.pending or self.patience.orders)
        return self.ask.ahead is not None and is_first and order.trains

    @property
    def pending(self) -> int:
        """How many of its orders are not over."""
        return len(self.orders) + (self.at_work is not None)

    def give(self, order: Order) -> None:
        """Hand an order over; it begins when its turn comes."""
        self.orders.append(order)
        if self.idle:
            self._in(self.owner.speed.handover, self._next)

    def submit(self) -> None:
        """Enter the queue."""
        self.queue.submit(self.entry)

    # Its life.

    def _start(self) -> None:
        owner, now = self.owner, self.owner.heap.now
        free = owner.may_start(self)
        if free > now:
            self._due = owner.heap.at(free, self._start)
            return
        self.state, self.ran_at = JobState.RUNNING, now
        self.patience.walltime = Walltime(now + self.ask.walltime, self.ask.walltime)
        self._in(owner.speed.startup, self._next)
        self._last = owner.heap.after(self.ask.walltime, self._time_out)
        owner.started(self)

    def _time_out(self) -> None:
        self.break_off(JobState.TIMEOUT, warned=False)

    def _in(self, seconds: float, call: Call) -> None:
        """Let only one thing come next: it replaces what was due."""
        if self._due is not None:
            self._due.cancel()
        self.idle = False
        self._due = self.owner.heap.after(seconds, call)

    def _next(self) -> None:
        """Begin the next order, linger, or leave."""
        owner, now = self.owner, self.owner.heap.now
        if not self.orders:
            self._wait(now)
            return
        own = self.orders[0].key == self.key
        if not own and not self.patience.fits(now):
            self.end(JobState.DONE)
            return
        order = self.at_work = self.orders.pop(0)
        speed = owner.speed
        order.startup_s = speed.startup if own else speed.handover
        order.taken, order.began = now, None
        hold = owner.waits(self, order)
        if hold > 0:
            self._in(hold, self._begin)
        else:
            self._begin()

    def word_to_begin(self) -> None:
        """Begin now, instead of waiting longer for the others."""
        if self.at_work is not None and self.at_work.began is None:
            self._in(0.0, self._begin)

    def _wait(self, now: float) -> None:
        if self.leaving:
            self.end(JobState.DONE)
        else:
            self._in(max(0.0, self.patience.until(now) - now), self._leave)
            self.idle = True

    def _leave(self) -> None:
        self.end(JobState.DONE)

    def leave(self) -> None:
        """Take no more orders; go at once if nothing is at work or waiting."""
        self.leaving = True
        if self.state is JobState.QUEUED and not self.orders:
            self.end(JobState.CANCELLED)
        elif self.at_work is None and not self.orders:
            self.end(JobState.DONE)

    # One order.

    def _begin(self) -> None:
        owner, order = self.owner, self.at_work
        if order is None:
            return
        now = owner.heap.now
        order.hold_s, order.began = now - order.taken, now
        owner.bind(self, order)
        if not order.trains:
            self._in(owner.speed.evaluate, self._finish)
            return
        steps = self._plan(order, now)
        if not order.planned:
            self.end(JobState.FAILED)  # there is no time for a single step
        else:
            self._in(steps * order.pace + owner.speed.save, self._finish)

    def _plan(self, order: Order, now: float) -> int:
        """Return how many steps are done before the walltime is over."""
        order.pace = self.owner.machine.step_seconds(now, self.ask.nodes, order.serial)
        deadline = self.patience.walltime.deadline(self.patience.save_s) or inf
        steps = order.steps - order.done
        if now + steps * order.pace > deadline:
            steps = max(0, floor((deadline - now) / order.pace))
        order.planned = order.done + steps
        return steps

    def _finish(self) -> None:
        owner, order = self.owner, self.at_work
        if order is None:
            return
        if not order.trains:
            self._deliver(order, 0)
            return
        local = owner.speed.evaluate_local
        if local and order.planned == order.steps:
            left = self.patience.walltime.deadline(self.patience.save_s) or inf
            order.eval_s = max(0.0, min(local, left - owner.heap.now))
            self._in(order.eval_s, lambda: self._deliver(order, order.planned))
        else:
            self._deliver(order, order.planned)

    def _deliver(self, order: Order, steps: int) -> None:
        """Hand the result over, and turn to what comes next."""
        self.at_work = None
        order.train_s += (steps - order.done) * order.pace
        self.patience.finished(self.owner.heap.now - order.taken)
        self.owner.delivered(order, steps)
        if steps < order.steps:
            self.end(JobState.DONE)
        elif self.orders:
            self._in(self.owner.speed.handover, self._next)
        else:
            self._next()

    # Its end.

    def give_up(self, order: Order) -> None:
        """Drop one order; its own job ends with it, another's goes on without it."""
        own = order.key == self.key
        if own:
            self.end(JobState.CANCELLED)
        elif order is self.at_work:
            self.at_work = None
            self.patience.finished(self.owner.heap.now - order.taken)
            self._in(self.owner.speed.handover, self._next)
        elif order in self.orders:
            self.orders.remove(order)
            self.patience.finished(0.0)

    def break_off(self, state: JobState, *, warned: bool) -> None:
        """Lose the nodes; a job that was warned delivers the steps that it has."""
        order = self.at_work
        if order is not None and order.trains and order.began is not None:
            ran = self.owner.heap.now - order.began
            steps = order.steps_after(ran)
            if warned and steps:
                order.train_s += (steps - order.done) * order.pace
                self.at_work = None
                self.owner.delivered(order, steps)
            else:
                kept = order.steps_after(ran - ran % self.owner.speed.checkpoint)
                order.train_s += (kept - order.done) * order.pace
                order.done = kept
        self.end(state)

    def end(self, state: JobState) -> None:
        """End in a state; what was not delivered is left to the facility."""
        if self.state.final:
            return
        self.state = state
        self.queue.leave(self.entry)
        if self._due is not None:
            self._due.cancel()
            self._due = None
        for failure in self.failures:
            failure.cancel()
        if self._last is not None:
            self._last.cancel()
        order, behind = self.at_work, self.orders
        self.at_work, self.orders = None, []
        self.owner.ended(self, order, behind)
