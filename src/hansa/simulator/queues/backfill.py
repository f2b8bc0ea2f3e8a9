"""A batch queue in which our jobs wait among those of others, with backfill."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import ceil, inf
from pathlib import Path

from hansa.core.errors import SimulationError
from hansa.core.rng import derive_seed
from hansa.simulator.heap import Due, Heap
from hansa.simulator.queues.base import Entry
from hansa.simulator.queues.profile import WAITS, Job, Scheduler
from hansa.simulator.workload import TraceJob, read_workload, remarks, repeat
from hansa.simulator.workload.synthetic import draw_jobs
from hansa.spec.simulation import BackfillQueue as BackfillSpec

ROUNDING = 1e-9
"""What is later by less than this share of an interval still meets the look."""


class _Ours(Job):
    """A job of ours; it ends when `leave` says so."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.nodes, entry.walltime)
        self.entry = entry


class _Theirs(Job):
    """A job of somebody else; how long it will run is known to nobody but us."""

    __slots__ = ("runs",)

    def __init__(self, job: TraceJob) -> None:
        super().__init__(job.nodes, job.walltime)
        self.runs = min(job.runs, job.walltime)


class BackfillQueue:
    """A scheduler with backfill, and what others ask of it.

    The jobs of others begin `warm_up` seconds before the heap's time 0 on an empty
    machine and never end: those of a file begin anew after its last, drawn ones go on.
    They run for as long as they ran, at most for their walltime; ours until `leave`.
    How jobs are chosen is `Scheduler`'s affair.

    The machine has a time of its own. As long as no job of ours waits it stands still,
    and catches up when we ask something of it; only when one waits does the heap hear
    of it, once for each moment at which something happens.

    Args:
        spec: The machine, the others and how often the scheduler looks.
        heap: The clock.
        facility: The facility's name.
        seed: Seed of the run.
        start_hour: Hour of the day at which the run begins; for drawn jobs, those of a
            file have their own hours.

    Attributes:
        remarks: What should be said about the file, in sentences.

    Raises:
        SimulationError: The file can't be used, or has jobs that are too large.
    """

    __slots__ = (
        "_count",
        "_due",
        "_due_at",
        "_ends",
        "_heap",
        "_interval",
        "_look",
        "_name",
        "_next",
        "_nodes",
        "_others",
        "_ours",
        "_scheduler",
        "_started",
        "_waiting",
        "remarks",
    )

    def __init__(
        self,
        spec: BackfillSpec,
        heap: Heap,
        *,
        facility: str,
        seed: int,
        start_hour: float,
    ) -> None:
        self._heap = heap
        self._name = facility
        self._nodes = spec.nodes
        self._interval = spec.interval
        self._scheduler = Scheduler(spec.nodes)
        self._ours: dict[Entry, _Ours] = {}
        self._waiting = 0
        self._started: list[Entry] = []
        self._ends: list[tuple[float, int, Job]] = []
        self._count = 0
        self._look = inf
        self._due: Due | None = None
        self._due_at = 0.0
        self.remarks: tuple[str, ...] = ()
        if spec.workload is None:
            drawn = derive_seed("others", seed, facility)
            self._others = draw_jobs(
                spec.synthetic, spec.nodes, drawn, start_hour, -spec.warm_up
            )
        else:
            self._others = self._read(spec.workload, spec)
        self._next = next(self._others)

    def _read(self, path: Path, spec: BackfillSpec) -> Iterator[TraceJob]:
        workload = read_workload(path, spec.node_cores)
        largest = max(job.nodes for job in workload.jobs)
        if largest > spec.nodes:
            raise SimulationError(
                f"{path}: a job has {largest} nodes, {self._name} only {spec.nodes}.",
                hint=f"Set queue.nodes to {largest} or more; or queue.node_cores, if "
                "the file counts processors.",
            )
        self.remarks = remarks(path, workload)
        return repeat(workload, spec.nodes, -spec.warm_up)

    def submit(self, entry: Entry) -> None:
        """Take a job in.

        Raises:
            SimulationError: It asks for more nodes than there are, or for no time.
        """
        if entry.nodes > self._nodes:
            raise SimulationError(
                f"{entry.key} asks for {entry.nodes} nodes, but {self._name} has "
                f"{self._nodes}.",
                hint="Lower job.nodes, or raise queue.nodes in the simulation of "
                f"{self._name}.",
            )
        if entry.walltime <= 0:
            raise SimulationError(
                f"{entry.key} asks for no walltime at {self._name}.",
                hint="Set job.time.",
            )
        self._catch_up()
        job = self._ours[entry] = _Ours(entry)
        self._scheduler.submit(job)
        self._waiting += 1
        self._changed(self._heap.now)
        self._arm()

    def leave(self, entry: Entry) -> None:
        """Forget a job that was cancelled while it waited, or that has ended."""
        job = self._ours.pop(entry, None)
        if job is None:
            return
        self._catch_up()
        if job.end is WAITS:
            self._scheduler.withdraw(job)
            self._waiting -= 1
        else:
            self._scheduler.finish(job)
        self._changed(self._heap.now)
        self._arm()

    def _catch_up(self) -> None:
        """Let happen what lies before now; none of it starts a job of ours."""
        while (at := self._next_time()) < self._heap.now:
            self._happen(at)

    def _arm(self) -> None:
        """Have the heap call when something happens that may start a job of ours."""
        at = max(self._next_time(), self._heap.now)
        if self._due is not None:
            if self._waiting and self._due_at == at:
                return
            self._due.cancel()
        self._due_at = at
        self._due = self._heap.at(at, self._call) if self._waiting else None

    def _call(self) -> None:
        self._due = None
        while (at := self._next_time()) <= self._heap.now:
            self._happen(at)
        self._arm()
        started, self._started = self._started, []
        for entry in started:
            if entry in self._ours:  # not taken out by one that started before it
                entry.started = self._heap.now
                entry.on_start()

    def _next_time(self) -> float:
        end = self._ends[0][0] if self._ends else inf
        return min(self._next.submitted, end, self._look)

    def _changed(self, at: float) -> None:
        """Have the scheduler look, at once or when it does so the next time."""
        if self._interval:
            at = max(at, ceil(at / self._interval - ROUNDING) * self._interval)
        self._look = min(self._look, at)

    def _happen(self, at: float) -> None:
        """Let others' jobs end and come in, and the scheduler look, at one moment."""
        while self._ends and self._ends[0][0] <= at:
            self._scheduler.finish(heappop(self._ends)[2])
            self._changed(at)
        while self._next.submitted <= at:
            self._scheduler.submit(_Theirs(self._next))
            self._next = next(self._others)
            self._changed(at)
        if self._look <= at:
            self._look = inf
            for job in self._scheduler.start(at):
                self._begin(job, at)

    def _begin(self, job: Job, at: float) -> None:
        if isinstance(job, _Theirs):
            self._count += 1
            heappush(self._ends, (at + job.runs, self._count, job))
        elif isinstance(job, _Ours):
            self._waiting -= 1
            self._started.append(job.entry)
