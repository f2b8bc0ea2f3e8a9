"""From what a file says of each job to a workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hansa.core.errors import SimulationError
from hansa.simulator.workload.base import TraceJob, Workload
from hansa.simulator.workload.gaps import find_gaps

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """What a file says of a job; None: nothing.

    Attributes:
        submitted: When it was submitted, in seconds since any moment.
        nodes: Nodes that it used.
        runs: Seconds that it ran; None also if it never did, or still does.
        walltime: Seconds that it asked for; None also if there was no limit.
        waited: Seconds that it waited.
    """

    submitted: float | None
    nodes: int | None
    runs: float | None
    walltime: float | None
    waited: float | None


def gather(
    path: Path, items: Iterable[tuple[int, T]], read: Callable[[T], Record | None]
) -> Workload:
    """Read a file's jobs; what can't be read is set aside.

    Args:
        path: The file, for errors.
        items: The number of a line, and what stands there.
        read: Makes a record of it; None if it is no job. A `ValueError` says why it
            can't be read.

    Raises:
        SimulationError: There is no job in it that can be simulated.
    """
    records: list[Record] = []
    unreadable: list[tuple[int, str]] = []
    for number, item in items:
        try:
            record = read(item)
            if record is not None:
                records.append(_checked(record))
        except ValueError as error:
            unreadable.append((number, str(error)))
    jobs = [job for record in records if (job := _job(record)) is not None]
    if not jobs:
        raise _nothing(path, unreadable, len(records))
    jobs.sort(key=lambda job: job.submitted)
    first = jobs[0].submitted
    since = tuple(
        TraceJob(job.submitted - first, job.nodes, job.runs, job.walltime, job.waited)
        for job in jobs
    )
    return Workload(
        jobs=since,
        unreadable=tuple(unreadable),
        left_out=len(records) - len(jobs),
        gaps=find_gaps([job.submitted for job in since]),
    )


def _checked(record: Record) -> Record:
    for what, value in (
        ("submit time", record.submitted),
        ("number of nodes", record.nodes),
        ("run time", record.runs),
        ("walltime", record.walltime),
        ("wait", record.waited),
    ):
        if value is not None and value < 0:
            raise ValueError(f"its {what} is negative, {value:g}")
    return record


def _job(record: Record) -> TraceJob | None:
    if record.submitted is None or not record.nodes or not record.runs:
        return None
    walltime = record.walltime or record.runs
    runs = min(record.runs, walltime)
    return TraceJob(record.submitted, record.nodes, runs, walltime, record.waited)


def _nothing(
    path: Path, unreadable: list[tuple[int, str]], left_out: int
) -> SimulationError:
    hint = (
        "A workload is a file in Standard Workload Format, or the output of `sacct "
        "--parsable2` (with its first line) or of `qstat -x -f -F json`."
    )
    if left_out:
        return SimulationError(
            f"{path}: none of its {left_out} jobs has a time of submission, a size and "
            "a run time.",
            hint="Jobs that still wait or run do not count. " + hint,
        )
    if unreadable:
        number, words = unreadable[0]
        return SimulationError(
            f"{path}, line {number}: {words}. None of {len(unreadable)} lines can be "
            "read.",
            hint=hint,
        )
    return SimulationError(f"{path}, line 1: there is no job in it.", hint=hint)
