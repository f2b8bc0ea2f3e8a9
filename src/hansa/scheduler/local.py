"""The driver of the small queue that Hansa brings along (`local_queue`).

For one host without a batch system: a laptop, a workstation, CI. Its jobs are real
processes with walltimes and signals; `wait` adds waiting times like those of a busy
machine, the same ones in every repetition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hansa.core.errors import SchedulerError
from hansa.core.rng import uniform
from hansa.core.units import Seconds
from hansa.scheduler.base import JobSpec, JobState, JobStatus, Steps
from hansa.scheduler.own_queue import OwnQueue, directives
from hansa.scheduler.script import batch_script

_QUEUE = Path(__file__).with_name("local_queue.py")

# A plain `cat`, unless a daemon left its pid file behind and is gone: a daemon works in
# the queue's directory. The shell does the rest itself, as a program costs a
# millisecond of CPU to start and this is asked ten times a second.
_STATUS = """\
pid=
{ read -r pid <"$1/daemon.pid"; } 2>/dev/null
if [ -n "$pid" ] && ! [ "/proc/$pid/cwd" -ef "$1" ]
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
        directory: Where the queue keeps its files; default ``<state>/queue``.
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
        state: The folder that only the facility writes.
    """

    Options: ClassVar[type[BaseModel]] = LocalOptions

    def __init__(self, options: LocalOptions, state: Path) -> None:
        self._options = options
        self._queue = OwnQueue(
            name="The local queue",
            program=_QUEUE,
            directory=(options.directory or state / "queue").absolute(),
        )

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
        return batch_script(self._directives(job), "#HANSA", job, interpreter="/bin/sh")

    def _directives(self, job: JobSpec) -> list[str]:
        wait = self._options.wait
        waits = [] if wait is None else [f"wait={wait.of(job.name):.3f}"]
        return [*directives(job), *waits]

    def submit(self, script: Path) -> Steps[str]:
        """Submit a rendered script; return the job's number in the queue.

        Raises:
            SchedulerError: The queue refuses, or answers something else.
        """
        slots = str(self._options.slots)
        answer = yield self._queue.ask("submit", "--slots", slots, str(script))
        return self._queue.submitted(answer)

    def accepts(self, script: Path) -> Steps[str]:
        """Ask the queue whether it is well; `render` has checked the rest.

        Raises:
            SchedulerError: The queue does not answer.
        """
        del script
        jobs = yield from self.jobs()
        busy = sum(not job.state.final for job in jobs.values())
        slots = self._options.slots
        return f"The local queue answers: {slots} slots, {busy} jobs wait or run."

    def jobs(self, ids: Iterable[str] = ()) -> Steps[dict[str, JobStatus]]:
        """Return all jobs of the queue, by id; reviving its daemon if that died.

        Raises:
            SchedulerError: The command failed or printed no state.
        """
        del ids  # the whole state is one small file
        queue = self._queue
        shell = ["/bin/sh", "-c", _STATUS, "sh", str(queue.directory)]
        answer = yield [*shell, *queue.python]
        return queue.jobs(answer, _status)

    def cancel(self, ids: Sequence[str]) -> Steps[None]:
        """Cancel jobs.

        Raises:
            SchedulerError: The queue can't be changed.
        """
        answer = yield self._queue.ask("cancel", "--", *ids)
        self._queue.answered(answer, "refuses to cancel jobs")


def _status(job: Mapping[str, Any]) -> JobStatus:
    """Read one job. Its synthetic wait is a wait for its turn, as in a real queue."""
    waits = job.get("state") == "QUEUED"
    said = {
        **job,
        "eligible": job.get("submitted"),
        "expected": job.get("eligible") if waits else None,
        "limit_s": job.get("time_s"),
    }
    status = JobStatus.from_json(said)
    return replace(status, why=_why(status))


def _why(status: JobStatus) -> str:
    if status.state is JobState.QUEUED:
        return "It waits for its turn in the local queue."
    return f"It ended: {status.reason}." if status.reason else ""
