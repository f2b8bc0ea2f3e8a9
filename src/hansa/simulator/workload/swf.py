"""Standard Workload Format: one job a line, eighteen numbers, -1 where one is unknown.

S. J. Chapin et al., "Benchmarks and standards for the evaluation of parallel job
schedulers", Job Scheduling Strategies for Parallel Processing 1999; version 2.2 of the
Parallel Workloads Archive. Lines that begin with a semicolon are comments.
"""

from __future__ import annotations

from math import ceil, isfinite
from pathlib import Path

from hansa.simulator.workload.base import Workload
from hansa.simulator.workload.gather import Record, gather

FIELDS = 18
_SUBMIT, _WAIT, _RUN, _ALLOCATED = 1, 2, 3, 4
_ASKED, _TIME, _STATUS = 7, 8, 10
_PARTS = (2, 3, 4)
"""Status of a line that tells of a part of a job; another line tells of all of it."""


def read_swf(path: Path, text: str, node_cores: int) -> Workload:
    """Read the jobs of a file in Standard Workload Format.

    A job has the processors that it was given, or if these are unknown those that it
    asked for; its walltime is the time that it asked for, or else its run time.

    Args:
        path: The file, for errors.
        text: What stands in it.
        node_cores: Processors that are one node.

    Raises:
        SimulationError: There is no job in it that can be simulated.
    """
    lines = enumerate(text.splitlines(), 1)
    return gather(path, lines, lambda line: _record(line, node_cores))


def _record(line: str, node_cores: int) -> Record | None:
    words = line.split()
    if not words or words[0].startswith(";"):
        return None
    if len(words) != FIELDS:
        raise ValueError(f"it has {len(words)} fields, not {FIELDS}: {line[:60]!r}")
    submitted, waited, runs = (_known(words[at]) for at in (_SUBMIT, _WAIT, _RUN))
    processors = _known(words[_ALLOCATED]) or _known(words[_ASKED])
    is_part = _known(words[_STATUS]) in _PARTS
    return Record(
        submitted=submitted,
        nodes=None if processors is None else ceil(processors / node_cores),
        runs=None if is_part else runs,
        walltime=_known(words[_TIME]),
        waited=waited,
    )


def _known(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise ValueError(f"{word[:40]!r} is no number")
    return None if number == -1 else number
