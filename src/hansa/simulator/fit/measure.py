"""What a run's journal tells of each facility: waits, speeds, lines, troubles.

Waits and run times are those of the schedulers' own records, times of work those that
the workers measured. What is left between an order and its result, all of it by the
server's clock, is what submitting, starting and polling cost.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hansa.core import events as ev
from hansa.core.ids import is_ahead
from hansa.report.ledger import Job, Ledger, read
from hansa.scheduler.base import JobState

Transfer = tuple[int, float]
"""Bytes and seconds."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One stay in a batch queue.

    Attributes:
        at: When it began, in seconds since the run began.
        seconds: How long it was.
        started: Whether the job then ran; if not, it would have waited longer.
    """

    at: float
    seconds: float
    started: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Delay:
    """What an order took beside all that its worker names, in seconds.

    Attributes:
        hosted: Whether an allocation that stood idle took it on.
        rest: From the order to its result, without queue, transfers, and work.
        startup: The part of `rest` that is known to be the job's: from the scheduler's
            record of its run, or else as far as the worker knows.
        whole: Whether `startup` is all of that part.
    """

    hosted: bool
    rest: float
    startup: float
    whole: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One facility, as the journal shows it. Times in seconds.

    Attributes:
        waits: Stays in the queue, in the order of submission.
        speeds: Steps and training seconds of each update.
        delays: Of training orders that one job carried through.
        saves: Writing checkpoints and the update, by update.
        local_evaluations: Measuring a local model, by update that did.
        evaluation_runs: Run times of jobs that only measured a version.
        evaluation_rests: As `Delay.rest`, of versions measured in idle allocations.
        transfers: Versions and states out, updates back.
        run_s: Time that batch jobs ran.
        node_hours: What they were charged.
        preemptions: How often a job lost its nodes to another.
        node_failures: How often a node failed.
        failures: Orders that ended without a result.
        outages: From when to when the facility was lost, as the server saw it.
    """

    waits: tuple[Wait, ...] = ()
    speeds: tuple[tuple[int, float], ...] = ()
    delays: tuple[Delay, ...] = ()
    saves: tuple[float, ...] = ()
    local_evaluations: tuple[float, ...] = ()
    evaluation_runs: tuple[float, ...] = ()
    evaluation_rests: tuple[float, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    run_s: float = 0.0
    node_hours: float = 0.0
    preemptions: int = 0
    node_failures: int = 0
    failures: int = 0
    outages: tuple[tuple[float, float], ...] = ()

    @property
    def started(self) -> int:
        """How many batch jobs (and restarts of them) began to run."""
        return sum(wait.started for wait in self.waits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A whole run.

    Attributes:
        run: Its id.
        finished: Whether it came to its end, and did not fail.
        end: Seconds from its start to its end, or to the last event so far.
        silent: Seconds in which no coordinator ran.
        at_server: Whether versions were measured, but by no job.
        aggregations: Seconds of making each version.
        version_bytes: Sizes of the versions that were moved.
        update_bytes: Sizes of the updates.
        published: When each version was published, by its number.
        facilities: By name.
    """

    run: str
    finished: bool
    end: float
    silent: float
    at_server: bool
    aggregations: tuple[float, ...]
    version_bytes: tuple[int, ...]
    update_bytes: tuple[int, ...]
    published: Mapping[int, float]
    facilities: Mapping[str, Observed]


def measure(events: Iterable[ev.Event], lingering: Mapping[str, bool]) -> Measured:
    """Return what a journal tells.

    Args:
        events: The journal's events, in order.
        lingering: By facility of the plan, whether its jobs may wait for more orders;
            then the run time of a job is not that of its order.

    Raises:
        JournalError: The events don't begin with the start of a run.
    """
    events = list(events)
    ledger = read(events)
    prompts = _prompts(events)
    return Measured(
        run=ledger.start.run,
        finished=ledger.finish is not None and ledger.finish.outcome != "failed",
        end=ledger.end,
        silent=sum(silent for _, silent in ledger.resumes),
        at_server=bool(ledger.evaluations)
        and not any(name in ledger.evaluations for name, _ in ledger.jobs),
        aggregations=tuple(
            one.seconds for number, one in sorted(ledger.versions.items()) if number
        ),
        version_bytes=tuple(one.bytes for one in ledger.staged if not one.state),
        update_bytes=tuple(one.bytes for one in ledger.updates.values()),
        published={n: one.at for n, one in sorted(ledger.versions.items())},
        facilities={
            name: _Facility(ledger, name, prompts.get(name, []), lingers).observed()
            for name, lingers in lingering.items()
        },
    )


def _prompts(events: Iterable[ev.Event]) -> dict[str, list[float]]:
    """Return, by facility, when something happened that an order may have followed."""
    found: dict[str, list[float]] = {}
    names: tuple[str, ...] = ()
    for event in events:
        match event:
            case ev.RunStarted():
                names = event.facilities
                found.update({name: [event.at] for name in names})
            case ev.VersionPublished() | ev.TimerFired() | ev.RunResumed():
                for name in names:
                    found[name].append(event.at)
            case ev.UpdateArrived() | ev.AssignmentFailed() | ev.FacilityReady():
                found.setdefault(event.facility, []).append(event.at)
            case _:
                pass
    return found


@dataclass(slots=True)
class _Facility:
    """Puts the facts of one facility together."""

    ledger: Ledger
    name: str
    prompts: list[float]
    lingers: bool
    jobs: list[Job] = field(init=False)
    guests: dict[str, list[Job]] = field(init=False)
    staged: list[ev.ModelStaged] = field(init=False)

    def __post_init__(self) -> None:
        self.staged = [one for one in self.ledger.staged if one.facility == self.name]
        self.jobs = self.ledger.batch_jobs(self.name)
        self.guests = self.ledger.guests(self.name)

    def observed(self) -> Observed:
        updates = [u for u in self.ledger.updates.values() if u.facility == self.name]
        jobs = self._undivided()
        preemptions, node_failures = self._troubles()
        delays = [
            self._delay(jobs[u.assignment], u) for u in updates if u.assignment in jobs
        ]
        return Observed(
            waits=self._waits(),
            speeds=tuple(
                (u.steps, u.timings["train_s"])
                for u in updates
                if u.steps and u.timings.get("train_s", 0.0) > 0
            ),
            delays=tuple(delay for delay in delays if delay is not None),
            saves=_timed(updates, "write_s"),
            local_evaluations=tuple(s for s in _timed(updates, "eval_s") if s > 0),
            evaluation_runs=self._evaluation_runs(),
            evaluation_rests=self._evaluation_rests(),
            transfers=self._transfers(updates),
            run_s=sum(job.run_s or 0.0 for job in self.jobs),
            node_hours=sum(job.node_hours or 0.0 for job in self.jobs),
            preemptions=preemptions,
            node_failures=node_failures,
            failures=sum(
                one.facility == self.name for one in self.ledger.failures.values()
            ),
            outages=self._outages(),
        )

    def _waits(self) -> tuple[Wait, ...]:
        """Return the stays in the queue; a job that was put back has several."""
        found = []
        for job in self.jobs:
            if job.queued is None:
                continue
            begins = [job.queued.at, *(event.at for event in job.requeued)]
            ran = job.ended is not None and job.ended.run_s > 0
            for index, begin in enumerate(begins):
                if index < len(job.waits):
                    started = ran or index < len(job.runs)
                    found.append(Wait(begin, job.waits[index], started))
                elif self._waits_still(job):
                    found.append(Wait(begin, self.ledger.end - begin, started=False))
        return tuple(sorted(found, key=lambda wait: wait.at))

    def _waits_still(self, job: Job) -> bool:
        """Tell whether a job was in the queue when the journal ends."""
        is_over = job.assignment in self.ledger.over or self.ledger.finish is not None
        return job.ended is None and not is_over

    def _undivided(self) -> dict[str, Job]:
        """Return, by assignment, its job where one carried it through at one go."""
        return {
            job.assignment: job
            for job in self.ledger.jobs.values()
            if job.facility == self.name
            and (job.assignment, 2) not in self.ledger.jobs
            and job.number == 1
            and not job.requeued
        }

    def _delay(self, job: Job, update: ev.UpdateArrived) -> Delay | None:
        timings = update.timings
        work = sum(timings.get(name, 0.0) for name in _WORK)
        back = timings.get("transfer_s", 0.0)
        rest = self._rest(job, update.at - back - work)
        if rest is None:
            return None
        startup, whole = timings.get("startup_s", 0.0), False
        if self._is_alone(job) and job.run_s is not None:
            startup, whole = max(0.0, job.run_s - work), True
        return Delay(hosted=bool(job.host), rest=rest, startup=startup, whole=whole)

    def _rest(self, job: Job, over: float) -> float | None:
        """Return the seconds from the order to `over`, without queue and staging.

        Returns:
            None when the order also waited for something else.
        """
        if job.queued is None or not (self._found_idle(job) if job.host else job.waits):
            return None
        queued = job.queued.at
        index = bisect_right(self.prompts, queued)
        ordered = self.prompts[index - 1] if index else 0.0
        if any(ordered <= at <= over + silent for at, silent in self.ledger.resumes):
            return None  # nobody listened for a while
        staging = sum(
            staged.seconds for staged in self.staged if ordered <= staged.at <= queued
        )
        wait = 0.0 if job.host else sum(job.waits)
        return over - ordered - min(staging, queued - ordered) - wait

    def _found_idle(self, job: Job) -> bool:
        """Tell whether the allocation that took an order on had nothing to do."""
        if job.queued is None:
            return False
        at, host = job.queued.at, job.host
        own = next((one for one in self.jobs if one.key == host), None)
        if own is None or not own.runs or own.runs[-1].begin > at:
            return False
        # The first order of a job that was queued ahead finds it idle, but not warm.
        earlier = [
            one.assignment
            for one in (own, *self.guests.get(host, ()))
            if one.queued is not None
            and one.queued.at < at
            and not is_ahead(one.assignment)
        ]
        over = self.ledger.over
        return bool(earlier) and all(over.get(one, math.inf) <= at for one in earlier)

    def _is_alone(self, job: Job) -> bool:
        """Tell whether a job did nothing but its own order."""
        done = job.ended is not None and job.ended.state == JobState.DONE
        return done and not (self.lingers or job.host or self.guests.get(job.key))

    def _evaluations(self) -> list[Job]:
        return [
            job
            for job in self._undivided().values()
            if self.ledger.evaluations.get(job.assignment) == self.name
        ]

    def _evaluation_runs(self) -> tuple[float, ...]:
        jobs = [job for job in self._evaluations() if self._is_alone(job)]
        return tuple(job.run_s for job in jobs if job.run_s)

    def _evaluation_rests(self) -> tuple[float, ...]:
        jobs = [job for job in self._evaluations() if job.host]
        found = [self._rest(job, self.ledger.over[job.assignment]) for job in jobs]
        return tuple(rest for rest in found if rest is not None)

    def _transfers(self, updates: Iterable[ev.UpdateArrived]) -> tuple[Transfer, ...]:
        moved = [(staged.bytes, staged.seconds) for staged in self.staged]
        moved += [(u.bytes, u.timings.get("transfer_s", 0.0)) for u in updates]
        return tuple(pair for pair in moved if pair[0] > 0 and pair[1] > 0)

    def _troubles(self) -> tuple[int, int]:
        """Count jobs that lost their nodes: to others, and because one failed."""
        preemptions = node_failures = 0
        for job in self.jobs:
            broken = sum("fail" in one.reason.lower() for one in job.requeued)
            node_failures += broken
            preemptions += len(job.requeued) - broken
            if job.ended is not None:
                node_failures += job.ended.state == JobState.NODE_FAIL
                preemptions += job.ended.state == JobState.PREEMPTED
        return preemptions, node_failures

    def _outages(self) -> tuple[tuple[float, float], ...]:
        return tuple(
            (one.event.at, self.ledger.end if one.until is None else one.until)
            for one in self.ledger.outages
            if one.event.facility == self.name
        )


_WORK = ("hold_s", "train_s", "eval_s", "write_s")
"""What a worker names of its order's time, start-up left out."""


def _timed(updates: Iterable[ev.UpdateArrived], name: str) -> tuple[float, ...]:
    return tuple(u.timings[name] for u in updates if name in u.timings)
