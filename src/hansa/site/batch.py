"""Runs what a scheduler driver says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hansa.core.errors import SchedulerError
from hansa.scheduler.base import JobStatus, Scheduler

TIMEOUT_S = 30.0
"""A batch system's command that takes longer counts as failed."""

_LATER = (
    "timed out",
    "temporarily",
    "try again",
    "unable to contact",
    "connection refused",
    "connection reset",
    "no permission to contact",
    "server busy",
    "resource busy",
    "queue limit",
    "job submit limit",
)
"""Words, in lower case, by which batch systems say that later it may work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[[Sequence[str], float], Answer]
"""Runs an argument list for at most some seconds."""


def run_command(command: Sequence[str], timeout: float) -> Answer:
    """Run an argument list, without a shell and with English messages.

    Args:
        command: Program and arguments.
        timeout: Seconds after which it is killed.

    Raises:
        SchedulerError: It can't be started (lasting) or takes too long (transient).
    """
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(
            f"`{command[0]}` has not answered within {timeout:g} s.", transient=True
        ) from error
    except OSError as error:
        raise SchedulerError(
            f"`{command[0]}` can't be started: {error.strerror}.",
            hint="Is the batch system's software on the PATH of the site agent?",
        ) from error
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return Answer(done.returncode, out, err)


class Batch:
    """A facility's batch system.

    Args:
        scheduler: Its driver.
        run: Runs commands; another one for tests.
    """

    def __init__(self, scheduler: Scheduler, run: Run = run_command) -> None:
        self._scheduler = scheduler
        self._run = run

    def jobs(self, names: Iterable[str] | None = None) -> dict[str, JobStatus]:
        """Return the jobs that the scheduler knows, by id.

        Args:
            names: Job names that matter; None means all.

        Raises:
            SchedulerError: It does not answer.
        """
        command = self._scheduler.status_command(None if names is None else list(names))
        answer = self._run(command, TIMEOUT_S)
        return self._scheduler.parse_status(
            answer.returncode, answer.stdout, answer.stderr
        )

    def submit(self, script: Path) -> str:
        """Submit a script and return the job's id.

        Raises:
            SchedulerError: The scheduler refuses; transient if it says so.
        """
        command = self._scheduler.submit_command(script)
        answer = self._run(command, TIMEOUT_S)
        if answer.returncode != 0:
            raise _failed("submit a job", answer)
        return self._scheduler.parse_submit(answer.stdout)

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs.

        Raises:
            SchedulerError: The scheduler refuses.
        """
        if not ids:
            return
        answer = self._run(self._scheduler.cancel_command(ids), TIMEOUT_S)
        if answer.returncode != 0:
            raise _failed("cancel jobs", answer)


def _failed(what: str, answer: Answer) -> SchedulerError:
    words = (answer.stderr.strip() or answer.stdout.strip())[-500:]
    return SchedulerError(
        f"The scheduler refuses to {what} (exit code {answer.returncode}): "
        f"{words or 'it gives no reason'}",
        transient=any(text in words.lower() for text in _LATER),
    )
