"""What the drivers of Hansa's own queues share: to ask one, and to read its answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.core.errors import SchedulerError
from hansa.scheduler.base import Answer, JobSpec, JobStatus
from hansa.scheduler.script import warning_s


def directives(job: JobSpec) -> list[str]:
    """Return what such a queue must know of a job, as ``key=value``."""
    said = {
        "name": job.name,
        "nodes": job.nodes,
        "time": f"{job.time_s:g}",
        "warning": f"{warning_s(job) and job.warning_s:g}",
        "log": job.log,
        "directory": job.directory,
    }
    return [f"{key}={value}" for key, value in said.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnQueue:
    """A queue that is a program over a folder.

    Attributes:
        name: How a sentence about it begins, as ``The local queue``.
        program: The program, a file of Python without imports of ours.
        directory: The folder.
    """

    name: str
    program: Path
    directory: Path

    @property
    def python(self) -> list[str]:
        """The command that runs the program."""
        # Isolated and without site-packages: it starts in a third of the time.
        return [sys.executable, "-I", "-S", str(self.program)]

    def ask(self, verb: str, *words: str) -> list[str]:
        """Return the command for one question."""
        return [*self.python, verb, "--dir", str(self.directory), *words]

    def answered(self, answer: Answer, what: str) -> str:
        """Return what the queue printed.

        Raises:
            SchedulerError: It failed; `what` says at what, as ``does not answer``.
        """
        if answer.returncode == 0:
            return answer.stdout.strip()
        words = (answer.stderr.strip() or answer.stdout.strip())[-500:]
        raise self._wrong(f"{what}: {words or 'it gives no reason'}")

    def submitted(self, answer: Answer) -> str:
        """Return the number of the job that was submitted.

        Raises:
            SchedulerError: The queue refused, or answered something else.
        """
        text = self.answered(answer, "refuses to submit a job")
        if text.isascii() and text.isdecimal():
            return text
        raise self._wrong(f"answered {text[:200]!r}, not a job id.")

    def jobs(
        self, answer: Answer, read: Callable[[Mapping[str, Any]], JobStatus]
    ) -> dict[str, JobStatus]:
        """Return all jobs by id; none if there is no queue yet.

        Args:
            answer: The queue's state, as JSON.
            read: Reads one job.

        Raises:
            SchedulerError: The queue failed, or this is no state.
        """
        text = self.answered(answer, "does not answer")
        if not text:
            return {}
        try:
            jobs = [read(job) for job in json.loads(text)["jobs"]]
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise self._wrong(f"can't be read: {error!r}.") from error
        return {job.id: job for job in jobs}

    def _wrong(self, what: str) -> SchedulerError:
        return SchedulerError(
            f"{self.name} {what}", hint=f"Look into {self.directory}."
        )
