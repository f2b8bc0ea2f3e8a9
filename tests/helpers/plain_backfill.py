"""Conservative backfilling once more, written to be plainly right and for nothing else.

A plan is a list of spans, each with a set of nodes; what is free is seen by looking at
all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

Span = tuple[float, float, frozenset[int]]
"""From when to when, and on which nodes."""


@dataclass(eq=False)
class Task:
    """A job: when it comes, what it asks for, how long it runs, when and where."""

    submitted: float
    nodes: int
    walltime: float
    runs: float
    started: float = inf
    where: frozenset[int] = frozenset()

    @property
    def ended(self) -> float:
        return self.started + self.runs

    def runs_at(self, moment: float) -> bool:
        return self.started <= moment < self.ended


def plan(
    now: float, running: Sequence[Task], queue: Sequence[Task], total: int
) -> list[Span]:
    """Return when and where each waiting job is to run, after those before it."""
    spans = [(now, task.started + task.walltime, task.where) for task in running]
    planned = []
    for task in queue:
        for start in sorted({now} | {end for _, end, _ in spans}):
            end = start + task.walltime
            taken = {n for b, e, where in spans if b < end and start < e for n in where}
            free = set(range(total)) - taken
            if len(free) >= task.nodes:
                break
        there = [span for span in spans if span[0] == now]
        leaves = {n: max([e for _, e, where in there if n in where], default=now)
                  for n in free}  # fmt: skip
        latest = sorted(leaves.values())[task.nodes - 1]
        where = choose({n for n in free if leaves[n] <= latest}, task.nodes)
        planned.append((start, end, where))
        spans.append(planned[-1])
    return planned


def choose(free: set[int], count: int) -> frozenset[int]:
    """Take nodes from the shortest row that is long enough, or else the longest."""
    chosen: list[int] = []
    while len(chosen) < count:
        left = sorted(free - set(chosen))
        rows: list[list[int]] = []
        for node in left:
            if rows and rows[-1][-1] == node - 1:
                rows[-1].append(node)
            else:
                rows.append([node])
        lacks = count - len(chosen)
        enough = [row for row in rows if len(row) >= lacks]
        row = min(enough, key=len) if enough else max(rows, key=len)
        chosen += row[:lacks]
    return frozenset(chosen)


def run(tasks: Sequence[Task], total: int) -> None:
    """Set when and where each job runs: plans at each submission and each end."""
    moments = {task.submitted for task in tasks}
    while moments:
        now = min(moments)
        moments.discard(now)
        running = [task for task in tasks if task.runs_at(now)]
        queue = [t for t in tasks if t.submitted <= now and t.started == inf]
        for task, span in zip(queue, plan(now, running, queue, total), strict=True):
            if span[0] == now:
                task.started, task.where = now, span[2]
                moments.add(task.ended)
