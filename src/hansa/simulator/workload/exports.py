"""What Slurm's `sacct` and PBS's `qstat` tell of jobs that are over.

Their local times are read as they stand, as if no clock was ever set for summer: what
one file means must not depend on where it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from hansa.core.errors import SimulationError
from hansa.scheduler.pbs_text import Attributes, jobs_of_json
from hansa.scheduler.times import duration_seconds
from hansa.simulator.workload.base import Workload
from hansa.simulator.workload.gather import Record, gather

SACCT = (
    "sacct --allusers --starttime=2026-01-01 --parsable2 "
    "--format=JobID,Submit,Start,End,Elapsed,Timelimit,AllocNodes,State"
)
"""A command whose output can be read here."""

_FORMS = ("%Y-%m-%dT%H:%M:%S", "%a %b %d %H:%M:%S %Y")
_UNIX = re.compile(r"\d{1,12}(\.\d+)?", re.ASCII)
_NO_TIME = frozenset({"", "Unknown", "None", "N/A", "0"})
_NO_LIMIT = frozenset({"", "UNLIMITED", "Partition_Limit", "INVALID"})
_STILL_THERE = frozenset(
    {
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "REQUEUED",
        "RESIZING",
        "COMPLETING",
        "CONFIGURING",
        "STOPPED",
    }
)
_NODES = ("AllocNodes", "NNodes", "ReqNodes")
_PROCESSORS = ("AllocCPUS", "NCPUS", "ReqCPUS")
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([KM]?)", re.ASCII)
_POWERS = {"": 1, "K": 1024, "M": 1024**2}
_JOB = re.compile(r'"(\d+(?:\[\d*\])?(?:\.[\w.-]+)?)"\s*:\s*\{')


# --- sacct ---------------------------------------------------------------------------


def read_sacct(path: Path, text: str, node_cores: int) -> Workload:
    """Read the output of `sacct --parsable2`, whose first line names the fields.

    Job steps are left. The jobs' time zone does not matter.

    Args:
        path: The file, for errors.
        text: What stands in it.
        node_cores: Processors that are one node, where only processors are told.

    Raises:
        SimulationError: Fields are missing, or no job in it can be simulated.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line]
    number, header = lines[0]
    names = header.split("|")
    _check_names(path, number, set(names))
    return gather(path, lines[1:], lambda line: _sacct_record(line, names, node_cores))


def _check_names(path: Path, number: int, names: set[str]) -> None:
    missing = [
        " or ".join(" with ".join(kind) for kind in kinds)
        for kinds in (
            [("JobID",), ("JobIDRaw",)],
            [("Submit",)],
            [("Elapsed",), ("ElapsedRaw",), ("Start", "End")],
            [(name,) for name in _NODES + _PROCESSORS],
        )
        if not any(names.issuperset(kind) for kind in kinds)
    ]
    if missing:
        raise SimulationError(
            f"{path}, line {number}: there is no field {missing[0]}.",
            hint=f"Write it with `{SACCT}`.",
        )


def _sacct_record(line: str, names: list[str], node_cores: int) -> Record | None:
    words = line.split("|")
    if len(words) != len(names):
        raise ValueError(f"it has {len(words)} fields, not {len(names)}: {line[:60]!r}")
    row = dict(zip(names, words, strict=True))
    if "." in (row.get("JobID") or row["JobIDRaw"]):
        return None
    submitted, started = _time(row["Submit"]), _time(row.get("Start", ""))
    is_over = row.get("State", "").split(" ")[0] not in _STILL_THERE
    waited = None if started is None or submitted is None else started - submitted
    return Record(
        submitted=submitted,
        nodes=_sacct_nodes(row, node_cores),
        runs=_sacct_runs(row) if is_over else None,
        walltime=_sacct_limit(row),
        waited=waited,
    )


def _sacct_nodes(row: Mapping[str, str], node_cores: int) -> int | None:
    for names, size in ((_NODES, 1), (_PROCESSORS, node_cores)):
        for name in names:
            if count := _count(row.get(name, "")):
                return ceil(count / size)
    return None


def _sacct_runs(row: Mapping[str, str]) -> float | None:
    if word := row.get("ElapsedRaw"):
        return _seconds(word)
    if word := row.get("Elapsed"):
        return _seconds(word)
    started, ended = _time(row.get("Start", "")), _time(row.get("End", ""))
    return None if started is None or ended is None else ended - started


def _sacct_limit(row: Mapping[str, str]) -> float | None:
    if (word := row.get("TimelimitRaw", "")) not in _NO_LIMIT:
        return _seconds(word) * 60.0
    word = row.get("Timelimit", "")
    return None if word in _NO_LIMIT else _seconds(word)


# --- qstat ---------------------------------------------------------------------------


def read_qstat(path: Path, text: str, node_cores: int) -> Workload:
    """Read the output of `qstat -x -f -F json`.

    Args:
        path: The file, for errors.
        text: What stands in it.
        node_cores: Processors that are one node, where only processors are told.

    Raises:
        SimulationError: It is something else, or no job in it can be simulated.
    """
    jobs = jobs_of_json(text)
    if jobs is None:
        raise SimulationError(
            f"{path}, line 1: it is JSON, but not that of `qstat`.",
            hint="Write it with `qstat -x -f -F json`.",
        )
    places = dict(_places(text))
    items = ((places.get(key, 1), job) for key, job in jobs.items())
    return gather(path, items, lambda job: _qstat_record(job, node_cores))


def _places(text: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(text.splitlines(), 1):
        for match in _JOB.finditer(line):
            yield match[1], number


def _qstat_record(job: Attributes, node_cores: int) -> Record:
    submitted = _time(job.get("ctime", "")) or _time(job.get("qtime", ""))
    started = _time(job.get("stime", ""))
    asked, used = _map(job.get("Resource_List")), _map(job.get("resources_used"))
    limit, runs = asked.get("walltime"), used.get("walltime")
    is_over = job.get("job_state") in ("F", "X") and started is not None
    return Record(
        submitted=submitted,
        nodes=_qstat_nodes(asked, node_cores),
        runs=_seconds(runs) if is_over and runs is not None else None,
        walltime=None if limit is None else _seconds(limit),
        waited=None if started is None or submitted is None else started - submitted,
    )


def _qstat_nodes(asked: Mapping[str, Any], node_cores: int) -> int | None:
    if count := _count(asked.get("nodect", "")):
        return ceil(count)
    count = _count(asked.get("ncpus", ""))
    return None if count is None else ceil(count / node_cores)


# --- words ---------------------------------------------------------------------------


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _time(word: object) -> float | None:
    text = " ".join(str(word).split())
    if text in _NO_TIME:
        return None
    if _UNIX.fullmatch(text):
        return float(text)
    for form in _FORMS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    raise ValueError(f"{text[:40]!r} is no time")


def _seconds(word: object) -> float:
    seconds = duration_seconds(word)
    if seconds is None:
        raise ValueError(f"{str(word)[:40]!r} is no duration")
    return seconds


def _count(word: object) -> float | None:
    match = _COUNT.fullmatch(str(word))
    if match is None:
        if word == "":
            return None
        raise ValueError(f"{str(word)[:40]!r} is no number")
    return float(match[1]) * _POWERS[match[2]]
