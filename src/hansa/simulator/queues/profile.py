"""A backfill scheduler as pure arithmetic: who starts now, given who runs and waits.

Jobs ask for whole nodes of one kind and wait in the order of their submission. At each
look the waiting jobs are planned one after the other: each takes the earliest time from
which on enough nodes are free for all of its walltime, and holds these nodes for that
time. Those whose time is now start. A job may so start before one that stands further
up in the queue, but never on nodes that this one is to have by then.

That is conservative backfilling (A. W. Mu'alem and D. G. Feitelson, IEEE Transactions
on Parallel and Distributed Systems 12(6), 2001), planned anew at each look and onto
certain nodes. It is what Slurm's ``sched/backfill`` does as it comes, with
``bf_job_part_count_reserve=0``: every pending job that it tests holds its place.
Slurm's main loop starts jobs in strict order until one does not fit; that is how each
of these plans begins.

Which nodes a job holds matters for those behind it. Were nodes only counted, many more
jobs could overtake than do in a real Slurm.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import accumulate, islice
from math import inf

DEPTH = 500
"""Waiting jobs that are planned, from the front: Slurm's ``bf_max_job_test``."""

OVERDUE = 1.0
"""Seconds after which a job that has outlived its walltime is expected to be gone."""

Nodes = int
"""A set of nodes: a number whose k-th bit stands for the k-th node."""

End = tuple[float, int, Nodes]
"""When a running job's walltime is over, which start it was, and where it runs."""

WAITS: End = (inf, 0, 0)
"""The end of a job that has not begun."""


class Job:
    """A batch job.

    Attributes:
        nodes: How many nodes it asks for.
        walltime: Seconds that it asks for.
        end: What is planned for its end; `WAITS` while it waits.
    """

    __slots__ = ("end", "nodes", "walltime")

    def __init__(self, nodes: int, walltime: float) -> None:
        self.nodes = nodes
        self.walltime = walltime
        self.end = WAITS


class Steps:
    """What is free from when on.

    Attributes:
        times: When that changes, in order; the first is now.
        free: What is free from then on, up to the next time.
    """

    __slots__ = ("free", "times")

    def __init__(self, times: list[float], free: list[Nodes]) -> None:
        self.times = times
        self.free = free

    def find(self, nodes: int, seconds: float) -> tuple[int, int, Nodes]:
        """Find so many nodes for some time, as early as they are free.

        Returns:
            The step at which to begin, the first one after the end, and all nodes that
            are free for so long.
        """
        times, free = self.times, self.free
        count = len(times)
        first = 0
        while True:
            both = free[first]
            while both.bit_count() < nodes:  # at the end of all plans all are free
                first += 1
                both = free[first]
            end = times[first] + seconds
            after = first + 1
            while after < count and times[after] < end:
                both &= free[after]
                if both.bit_count() < nodes:
                    break
                after += 1
            else:
                return first, after, both
            # A step at which there are too few at all is in the way of every window.
            first = first + 1 if free[after].bit_count() >= nodes else after + 1

    def take(self, first: int, after: int, end: float, nodes: Nodes) -> None:
        """Take nodes from one step to an end, which lies not after the step `after`."""
        if after == len(self.times) or self.times[after] > end:
            self.times.insert(after, end)
            self.free.insert(after, self.free[after - 1])
        for step in range(first, after):
            self.free[step] &= ~nodes


class Profile:
    """A plan: which nodes are free from now on.

    Args:
        now: The time.
        free: Nodes on which nothing runs.
        ends: The ends of the running jobs, in order.

    Attributes:
        steps: What nobody runs on or is to run on.
    """

    __slots__ = ("_running", "steps")

    def __init__(self, now: float, free: Nodes, ends: list[End]) -> None:
        times, steps = [now], [free]
        if ends and ends[0][0] <= now:
            ends = sorted((max(end[0], now + OVERDUE), *end[1:]) for end in ends)
        for at, _, nodes in ends:
            free |= nodes
            if at == times[-1]:
                steps[-1] = free
            else:
                times.append(at)
                steps.append(free)
        self.steps = Steps(times, steps)
        self._running = Steps(times.copy(), steps.copy())

    @property
    def free(self) -> int:
        """How many nodes are free now, and not held for anyone who is to come soon."""
        return self.steps.free[0].bit_count()

    def goes_on(self, now: float) -> bool:
        """Make it a later time's plan, if it still holds; tell whether it does."""
        times = self.steps.times
        if len(times) > 1 and now >= times[1]:
            return False
        times[0] = self._running.times[0] = now
        return True

    def place(self, nodes: int, seconds: float) -> tuple[float, Nodes]:
        """Plan a job.

        Returns:
            When it starts, and where: on those of the nodes that are free for so long
            which running jobs leave first, and of these on `pick`'s.
        """
        first, after, free = self.steps.find(nodes, seconds)
        for left in self._running.free:
            if (free & left).bit_count() >= nodes:
                free &= left
                break
        taken = pick(free, nodes)
        start = self.steps.times[first]
        self.steps.take(first, after, start + seconds, taken)
        if first == 0:  # it runs from now on, and others have to wait for its end
            end = start + seconds
            self._running.take(0, bisect_left(self._running.times, end), end, taken)
        return start, taken


def pick(free: Nodes, nodes: int) -> Nodes:
    """Choose some of the free nodes: side by side if that can be.

    They come from the shortest row of neighbours that has enough; if none has, the
    longest row is taken whole, and the rest is chosen in the same way. Slurm's topology
    guide calls that best fit on a one-dimensional array.

    Args:
        free: At least as many nodes as are to be chosen.
        nodes: How many.
    """
    if free.bit_count() == nodes:
        return free
    taken = 0
    while True:
        place, length = _best_row(free, nodes)
        if length >= nodes:
            return taken | ((1 << nodes) - 1) << place
        row = ((1 << length) - 1) << place
        taken |= row
        free ^= row
        nodes -= length


def _best_row(free: Nodes, nodes: int) -> tuple[int, int]:
    best, best_length = 0, 0
    place = 0
    while free:
        gap = (free & -free).bit_length() - 1
        free >>= gap
        place += gap
        length = (~free & (free + 1)).bit_length() - 1
        if nodes <= length < best_length or best_length < min(nodes, length):
            best, best_length = place, length
        free >>= length
        place += length
    return best, best_length


class Scheduler:
    """The jobs of one machine, waiting and running.

    Args:
        nodes: Nodes of the machine; no job may ask for more.

    Attributes:
        free: Nodes on which nothing runs.
        waiting: Jobs in the queue, in order.
    """

    __slots__ = ("_ends", "_plan", "_planned", "_starts", "free", "waiting")

    def __init__(self, nodes: int) -> None:
        self.free: Nodes = (1 << nodes) - 1
        self.waiting: list[Job] = []
        self._ends: list[End] = []
        self._starts = 0
        self._plan: Profile | None = None
        self._planned = 0

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        self.waiting.append(job)

    def withdraw(self, job: Job) -> None:
        """Take a waiting job out of the queue."""
        self.waiting.remove(job)
        self._plan = None

    def finish(self, job: Job) -> None:
        """Free the nodes of a running job."""
        del self._ends[bisect_left(self._ends, job.end)]
        self.free |= job.end[2]
        self._plan = None

    def start(self, now: float) -> list[Job]:
        """Start whatever can start now; return it, in the order of the queue."""
        due = self._due(now)
        for job, nodes in due:
            self._starts += 1
            job.end = (now + job.walltime, self._starts, nodes)
            insort(self._ends, job.end)
            self.free &= ~nodes
        if due:
            self.waiting = [job for job in self.waiting if job.end is WAITS]
            self._planned -= len(due)
        return [job for job, _ in due]

    def _due(self, now: float) -> list[tuple[Job, Nodes]]:
        profile = self._profile(now)
        asked = list(islice(self.waiting, self._planned, DEPTH))
        # The fewest nodes asked for from each place of the queue to its end: where that
        # is more than what is free now, the rest of the plan starts nobody.
        fewest = list(accumulate((job.nodes for job in reversed(asked)), min))
        due = []
        for job, least in zip(asked, reversed(fewest), strict=True):
            if least > profile.free:
                break
            at, nodes = profile.place(job.nodes, job.walltime)
            self._planned += 1
            if at == now:
                due.append((job, nodes))
        return due

    def _profile(self, now: float) -> Profile:
        """Return the last plan, or a new one if a job left or should have.

        Without that a plan holds: until its next step nobody comes who was not known,
        except at the end of the queue.
        """
        if self._plan is None or not self._plan.goes_on(now):
            self._plan = Profile(now, self.free, self._ends)
            self._planned = 0
        return self._plan
