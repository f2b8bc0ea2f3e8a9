"""Batch jobs that exist only in time: queue, allocation, orders one after another.

An `Allocation` is moved on to the present whenever somebody looks; what happens in it
happened at exact times in between. Only the version that an order binds is taken from
the mailbox as it is at that look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hansa.core.errors import HansaError, WorkerError
from hansa.scheduler.base import JobState, JobStatus

ORDERS_AHEAD = 4
"""Orders that may wait in one allocation, as the real site agent has it."""


class Results(Protocol):
    """Where the orders of an allocation come to."""

    def bind(self, order: Mapping[str, Any]) -> int:
        """Return the version that an order binds now."""
        ...

    def deliver(self, task: Task) -> None:
        """Write the result of an order."""
        ...

    def broken_off(self, task: Task) -> None:
        """Keep what is left of an order for the next job of it."""
        ...


@dataclass
class Task:
    """One order in an allocation.

    Attributes:
        key: Id of its job, as ``train-0001-a-1.1``.
        order: The order, as the server sent it.
        given: When the allocation got it.
        hold_s: How long it waits for the word to begin.
        train_s: Seconds of work that are left of it.
        whole_s: Seconds of work in all.
        how: What becomes of it; see `Script.ends`.
        begun: When the word to begin was given.
        base: The version that it bound.
        bound_at: When its work began, since the last requeue.
        over: When it was over.
    """

    key: str
    order: dict[str, Any]
    given: float
    hold_s: float
    train_s: float
    whole_s: float
    how: str = "deliver"
    begun: float | None = None
    began_waiting: float | None = None
    base: int | None = None
    bound_at: float | None = None
    over: float | None = None
    phase: str = "starting"
    error: HansaError | None = None
    held_s: float = 0.0

    def step(self, now: float) -> int:
        """Return the steps done, those of earlier jobs included."""
        done = self.whole_s - self.train_s
        if self.bound_at is not None and self.over is None:
            done += max(0.0, now - self.bound_at) * (self.how != "stuck")
        share = 1.0 if self.whole_s == 0 else min(1.0, done / self.whole_s)
        return int(share * int(self.order.get("steps") or 0))


@dataclass
class Allocation:
    """One batch job.

    Attributes:
        request: Nodes, time, linger, ... as the server asked for.
        wait_s: Seconds that it waits in the queue.
        ahead_s: Seconds that it waits for a first order; None: it came with one.
    """

    key: str
    id: str
    request: dict[str, Any]
    submitted: float
    wait_s: float
    results: Results
    ahead_s: float | None = None
    held_until: float = 0.0
    state: JobState = JobState.QUEUED
    started: float | None = None
    ended: float | None = None
    restarts: int = 0
    leave_at: float | None = None
    tasks: list[Task] = field(default_factory=list)
    cursor: float = 0.0
    longest: float = 0.0

    @property
    def linger_s(self) -> float:
        """Seconds that it waits for the next order."""
        return float(self.request.get("linger") or 0.0)

    def takes(self, kind: str, request: Mapping[str, Any]) -> bool:
        """Tell whether an order may be handed to it."""
        same = ("nodes", "ranks_per_node", "queue", "account", "reservation")
        if self.state.final or self.leave_at is not None:
            return False
        if any(self.request.get(key) != request.get(key) for key in same):
            return False
        if self._pending > ORDERS_AHEAD:
            return False
        first = self.ahead_s is not None and not self.tasks and kind == "train"
        return self.linger_s > 0 or first

    @property
    def rank(self) -> tuple[bool, int]:
        """The job with the least takes an order on, as in `hansa.site.handover`."""
        return self.state is not JobState.RUNNING, self._pending

    @property
    def _pending(self) -> int:
        return sum(task.over is None for task in self.tasks)

    def advance(self, now: float) -> None:
        """Let everything happen that is due."""
        while self._start(now) or self._run(now):
            pass

    def end(self, state: JobState, at: float) -> None:
        """End the job, whatever it does."""
        self.state, self.ended = state, at

    def record(self, now: float) -> JobStatus:
        """Return what the scheduler says."""
        held = self.state is JobState.QUEUED and now < self.held_until
        return JobStatus(
            id=self.id,
            name=f"hansa.{self.key}",
            state=JobState.HELD if held else self.state,
            submitted=self.submitted,
            started=self.started,
            ended=self.ended,
            nodes=int(self.request.get("nodes") or 1),
            restarts=self.restarts,
            reason="JobHeldAdmin" if held else "",
            why="An administrator holds the job." if held else "",
        )

    def status(self, now: float) -> dict[str, Any]:
        """Return the status of a job without an order of its own."""
        lingering = self.state is JobState.RUNNING
        return {"phase": "lingering" if lingering else "starting", "at": now}

    # What happens in it; each returns whether something did.

    def _start(self, now: float) -> bool:
        due = max(self.submitted, self.held_until) + self.wait_s
        if self.state is not JobState.QUEUED or now < due:
            return False
        self.state, self.started, self.cursor = JobState.RUNNING, due, due
        return True

    def _run(self, now: float) -> bool:
        if self.state is not JobState.RUNNING:
            return False
        task = next((task for task in self.tasks if task.over is None), None)
        return self._idle(now) if task is None else self._work(task, now)

    @property
    def _limit(self) -> float:
        return (self.started or 0.0) + float(self.request["time"])

    def _idle(self, now: float) -> bool:
        wait = self.linger_s if self.tasks else (self.ahead_s or 0.0)
        until = min(self.cursor + wait, self._limit)
        if self.leave_at is not None:
            until = min(until, max(self.cursor, self.leave_at))
        if now >= until:
            self.end(JobState.DONE, until)
        return now >= until

    def _work(self, task: Task, now: float) -> bool:
        if task.bound_at is None and not self._begin(task, now):
            return False
        if task.over is not None or task.bound_at is None:
            return True
        done = task.bound_at + task.train_s
        if task.how in _BREAKS:
            return self._break_off(task, task.bound_at + task.train_s / 2, now)
        if task.how == "stuck" or done > self._limit:
            return self._time_out(task, now)
        if now < done:
            return False
        self._finish(task, done)
        return True

    def _begin(self, task: Task, now: float) -> bool:
        """Bind a version once the order may begin; False while it waits."""
        at = max(self.cursor, task.given)
        if self.longest and self._limit - at < 1.2 * self.longest:
            self._refuse("too little walltime is left", at)
            self.end(JobState.DONE, at)
            return True
        begins = at + task.hold_s
        if task.begun is not None:
            begins = min(begins, max(at, task.begun))
        task.phase, task.began_waiting = "waiting" if task.hold_s else "starting", at
        if now < begins:
            return False
        if task.base is None:
            task.base = self.results.bind(task.order)
        task.bound_at, task.phase, task.held_s = begins, "training", begins - at
        return True

    def _finish(self, task: Task, at: float) -> None:
        self.longest = max(self.longest, task.train_s)
        self.cursor = task.over = at
        if task.how in {"crash", "refuse"}:
            if task.how == "refuse":
                task.phase = "failed"
                task.error = WorkerError("The loss is NaN at step 3.")
            self._refuse("an order before it failed", at)
            self.end(JobState.FAILED, at)
            return
        task.phase = "done"
        self.results.deliver(task)

    def _refuse(self, why: str, at: float) -> None:
        """Take none of the orders on that are left."""
        for task in self.tasks:
            if task.over is None:
                task.error = WorkerError(f"Not taken on: {why}.", transient=True)
                task.phase, task.over = "refused", at

    def _time_out(self, task: Task, now: float) -> bool:
        if now < self._limit or task.bound_at is None:
            return False
        if task.how != "stuck":
            task.train_s -= self._limit - task.bound_at
        task.over = self._limit
        self.results.broken_off(task)
        self.end(JobState.TIMEOUT, self._limit)
        return True

    def _break_off(self, task: Task, at: float, now: float) -> bool:
        if now < at or task.bound_at is None:
            return False
        task.train_s -= at - task.bound_at
        if task.how == "requeue":
            task.how, task.bound_at, task.phase = "deliver", None, "starting"
            self.state, self.submitted, self.started = JobState.QUEUED, at, None
            self.restarts += 1
            return True
        task.over = at
        self.results.broken_off(task)
        self.end(_BREAKS[task.how], at)
        return True


_BREAKS = {
    "preempt": JobState.PREEMPTED,
    "node_fail": JobState.NODE_FAIL,
    "delete": JobState.CANCELLED,
    "requeue": JobState.QUEUED,
}
