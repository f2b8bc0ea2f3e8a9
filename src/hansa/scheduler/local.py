"""The driver of the small queue that Hansa brings along (`local_queue`).

For one host without a batch system: a laptop, a workstation, CI. Its jobs are real
processes with walltimes and signals; `wait` adds waiting times like those of a busy
machine, the same ones in every repetition.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hansa.core.errors import SchedulerError
from hansa.core.rng import uniform
from hansa.core.units import Seconds
from hansa.scheduler.base import JobSpec, JobStatus

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUEUE = Path(__file__).with_name("local_queue.py")

# A plain `cat` (2 ms), unless a daemon left its pid file behind and is gone.
_STATUS = """\
if pid=$(cat "$1/daemon.pid" 2>/dev/null) &&
   ! tr '\\0' '\\n' 2>/dev/null </proc/"$pid"/cmdline | grep -qxF -e "$1"
then dir=$1; shift; exec "$@" list --dir "$dir"
fi
[ ! -e "$1/state.json" ] || exec cat "$1/state.json"
"""


class Wait(BaseModel):
    """Synthetic waiting times, log-normal; each is fixed by the job's name.

    Attributes:
        mean: Mean in seconds.
        sigma: Standard deviation of the logarithm; 0 makes all waits the mean.
        seed: Another seed, other waits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Seconds
    sigma: float = Field(default=0.5, ge=0, le=5)
    seed: int = 0

    def of(self, name: str) -> float:
        """Return the wait of the job `name`, in seconds."""
        if self.mean == 0 or self.sigma == 0:
            return self.mean
        first = 1.0 - uniform("queue-wait", self.seed, name, 1)  # never 0
        second = uniform("queue-wait", self.seed, name, 2)
        normal = math.sqrt(-2.0 * math.log(first)) * math.cos(2.0 * math.pi * second)
        return self.mean * math.exp(self.sigma * normal - self.sigma**2 / 2.0)


class LocalOptions(BaseModel):
    """Options of the local queue.

    Attributes:
        directory: Where the queue keeps its files; default ``<mailbox>/.queue``.
            Sites that name the same directory share one queue.
        slots: How many "nodes" there are. In a shared queue the last submission's
            word holds, but never below what a job that waits or runs there takes.
        wait: Synthetic waiting times; None starts a job when slots are free.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path | None = None
    slots: int = Field(default=1, ge=1)
    wait: Wait | None = None


class LocalScheduler:
    """Submits to the embedded queue.

    Args:
        options: Its options.
        mailbox: The facility's mailbox root.
    """

    Options: ClassVar[type[BaseModel]] = LocalOptions

    def __init__(self, options: LocalOptions, mailbox: Path) -> None:
        self._options = options
        self._directory = (options.directory or mailbox / ".queue").absolute()

    def render(self, job: JobSpec) -> str:
        """Return a shell script with ``#HANSA key=value`` lines.

        Raises:
            SchedulerError: It asks for more nodes than there are slots, or a name
                would break its line.
        """
        if job.nodes > self._options.slots:
            raise SchedulerError(
                f"{job.name} asks for {job.nodes} nodes; this queue has "
                f"{self._options.slots} slots.",
                hint="Ask for fewer nodes, or raise scheduler.slots in site.yaml.",
            )
        lines = [*self._directives(job), *job.setup, *_exports(job.variables)]
        start = " ".join(("exec", *job.launch.split(), shlex.join(job.command)))
        return "\n".join(("#!/bin/sh", *lines, start, ""))

    def _directives(self, job: JobSpec) -> list[str]:
        wait = self._options.wait
        said = {
            "name": job.name,
            "nodes": job.nodes,
            "time": f"{job.time_s:g}",
            "warning": f"{job.warning_s:g}",
            "log": job.log,
            "directory": job.directory,
        }
        if wait is not None:
            said["wait"] = f"{wait.of(job.name):.3f}"
        lines = [f"{key}={value}" for key, value in said.items()]
        lines += job.directives
        for line in lines:
            if not line.isprintable():
                raise SchedulerError(f"{line!r} can't stand in one line of a script.")
        return [f"#HANSA {line}" for line in lines]

    def submit_command(self, script: Path) -> list[str]:
        """Return the command that submits a rendered script."""
        slots = str(self._options.slots)
        return [*self._queue("submit"), "--slots", slots, str(script)]

    def parse_submit(self, output: str) -> str:
        """Return the id that the queue printed.

        Raises:
            SchedulerError: It printed something else.
        """
        text = output.strip()
        if text.isascii() and text.isdecimal():
            return text
        raise SchedulerError(f"The local queue answered {text[:200]!r}, not a job id.")

    def status_command(self, names: Iterable[str] | None) -> list[str]:
        """Return a command that prints the queue's state; it revives a dead daemon."""
        del names  # the whole state is one small file
        return ["/bin/sh", "-c", _STATUS, "sh", str(self._directory), *_PYTHON]

    def parse_status(
        self, returncode: int, stdout: str, stderr: str
    ) -> dict[str, JobStatus]:
        """Return all jobs of the queue, by id; no output is an empty queue.

        Raises:
            SchedulerError: The command failed or printed no state.
        """
        if returncode != 0:
            raise SchedulerError(
                f"The local queue does not answer: {stderr.strip()[:500]}",
                hint=f"Look into {self._directory}.",
            )
        if not stdout.strip():
            return {}
        try:
            jobs = [JobStatus.from_json(job) for job in json.loads(stdout)["jobs"]]
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise SchedulerError(
                f"The state of the local queue can't be read: {error!r}.",
                hint=f"Look into {self._directory / 'state.json'}.",
            ) from error
        return {job.id: job for job in jobs}

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """Return the command that cancels jobs."""
        return [*self._queue("cancel"), "--", *ids]

    def _queue(self, verb: str) -> list[str]:
        return [*_PYTHON, verb, "--dir", str(self._directory)]


# Isolated and without site-packages: it starts in a third of the time.
_PYTHON = (sys.executable, "-I", "-S", str(_QUEUE))


def _exports(variables: Mapping[str, str]) -> list[str]:
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            raise SchedulerError(f"{name!r} can't be the name of a variable.")
    return [f"export {name}={shlex.quote(text)}" for name, text in variables.items()]
