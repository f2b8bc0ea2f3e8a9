"""What a batch scheduler is to the site agent. Drivers do no I/O.

A driver renders a script, says which command to run, and reads that command's output.
Whoever holds it runs the commands: the site agent on a login node, or a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from hansa.core.errors import SchedulerError


class JobState(StrEnum):
    """Where a batch job stands, in words that all schedulers share."""

    QUEUED = "QUEUED"
    HELD = "HELD"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    UNKNOWN = "UNKNOWN"

    @property
    def final(self) -> bool:
        """Whether the job will never run again."""
        return self in _FINAL

    @classmethod
    def of(cls, word: object) -> JobState:
        """Return the state of that name; any other word is UNKNOWN."""
        return cls.__members__.get(str(word), cls.UNKNOWN)


_FINAL = frozenset(
    {
        JobState.DONE,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.TIMEOUT,
        JobState.NODE_FAIL,
        JobState.PREEMPTED,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """One batch job, as the site agent wants it.

    Attributes:
        name: Name in the queue, as ``hansa.<run>.<assignment>.<number>``.
        nodes: Whole nodes.
        time_s: Walltime in seconds.
        command: What the job runs, word by word; quoted by the driver.
        directory: Working directory of the job.
        log: File for output and errors.
        queue: Queue or partition; None takes the scheduler's default.
        account: Whom to charge; None takes the scheduler's default.
        reservation: Reservation to run in.
        launch: The facility's own shell text before the command (``mpiexec -n 4``).
        setup: The facility's own shell lines at the top of the script.
        variables: Environment variables; quoted by the driver.
        directives: The facility's own extra scheduler directives, without prefix.
        warning_s: SIGUSR1 comes this many seconds before the walltime is over.
    """

    name: str
    nodes: int
    time_s: float
    command: Sequence[str]
    directory: Path
    log: Path
    queue: str | None = None
    account: str | None = None
    reservation: str | None = None
    launch: str = ""
    setup: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    directives: Sequence[str] = ()
    warning_s: float = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """One job as its scheduler sees it.

    Attributes:
        id: The scheduler's id.
        name: The name it was submitted under.
        state: Where it stands.
        submitted: Scheduler's unix seconds; None when it does not say.
        started: Likewise; None while it waits.
        ended: Likewise; None until it is over.
        nodes: Nodes asked for or given.
        exit_code: 0 to 255, or minus the signal that ended it; None until it is over.
        reason: Why it waits or ended, in the scheduler's words.
    """

    id: str
    name: str
    state: JobState
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    nodes: int = 1
    exit_code: int | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON data."""
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state.value,
            "submitted": self.submitted,
            "started": self.started,
            "ended": self.ended,
            "nodes": self.nodes,
            "exit_code": self.exit_code,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobStatus:
        """Rebuild a status; other keys are ignored, an unknown state is UNKNOWN.

        Raises:
            SchedulerError: The id is missing or a number is none.
        """
        try:
            return cls(
                id=str(data["id"]),
                name=str(data.get("name", "")),
                state=JobState.of(data.get("state")),
                submitted=_seconds(data.get("submitted")),
                started=_seconds(data.get("started")),
                ended=_seconds(data.get("ended")),
                nodes=int(data.get("nodes", 1)),
                exit_code=_whole(data.get("exit_code")),
                reason=str(data.get("reason") or ""),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SchedulerError(f"A job status can't be read: {error!r}.") from error


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


class Scheduler(Protocol):
    """One batch system. Built as ``cls(options, mailbox)``.

    `options` is an instance of the driver's `Options`; `mailbox` is the facility's
    mailbox root, beside which a driver may want to keep its own files.
    """

    Options: ClassVar[type[BaseModel]]

    def render(self, job: JobSpec) -> str:
        """Return the batch script of a job.

        Raises:
            SchedulerError: The job can't be said in this scheduler's words.
        """
        ...

    def submit_command(self, script: Path) -> list[str]:
        """Return the command that submits a rendered script."""
        ...

    def parse_submit(self, output: str) -> str:
        """Return the job's id from the output of a `submit_command` that succeeded.

        Raises:
            SchedulerError: There is no id in it.
        """
        ...

    def status_command(self, names: Iterable[str] | None) -> list[str]:
        """Return the command that lists jobs.

        Args:
            names: Job names that matter; a driver may list more. None means all.
        """
        ...

    def parse_status(
        self, returncode: int, stdout: str, stderr: str
    ) -> dict[str, JobStatus]:
        """Return all jobs in the output of `status_command`, by id.

        Raises:
            SchedulerError: The scheduler did not answer, or not in its format. A job
                in an unheard-of state is no error but `UNKNOWN`.
        """
        ...

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """Return the command that cancels jobs; over and unknown ones are ignored."""
        ...
