"""What the mailbox, the facility's notes and the scheduler together know of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.core.errors import IntegrityError
from hansa.core.ids import job_name
from hansa.mailbox.files import read_json
from hansa.mailbox.paths import MANIFEST, JobDir, Mailbox
from hansa.mailbox.state import JobNotes, State
from hansa.scheduler.base import JobStatus
from hansa.site.order import split_job
from hansa.site.reach import small_json

log = logging.getLogger(__name__)

BROKEN = frozenset({"failed", "refused"})
"""Phases of an order after which its job takes no more of them."""

OVER = BROKEN | {"done", "cancelled", "lingering", "hosting"}
"""Phases of a job's status in which its own order is over."""


@dataclass(frozen=True, slots=True)
class Note:
    """What was noted when a job was submitted.

    Attributes:
        job: The scheduler's id.
        host: Key of the job whose allocation took the order on; "" if it has a batch
            job of its own.
        nonce: The run's word; another one is another run of the same id.
    """

    job: str
    host: str = ""
    nonce: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the note as it is written."""
        return {"schema": 1, "job": self.job, "host": self.host, "nonce": self.nonce}


class Files:
    """The files of a run's jobs, by the jobs' keys.

    Args:
        mailbox: The run's mailbox, which the server can write too.
        state: The facility's own notes.
    """

    def __init__(self, mailbox: Mailbox, state: State) -> None:
        self.mailbox = mailbox
        self.state = state

    def notes(self, key: str) -> JobNotes:
        """Return the facility's own directory of a job."""
        return self.state.job(*split_job(key))

    def box(self, key: str) -> JobDir:
        """Return a job's directory in the mailbox."""
        return self.mailbox.job(*split_job(key))

    def note(self, key: str) -> Note | None:
        """Return what was noted at the submission of a job, or None.

        Raises:
            IntegrityError: The note is damaged.
        """
        data = read_json(self.notes(key).submitted)
        if data is None:
            return None
        host, nonce = (str(data.get(name) or "") for name in ("host", "nonce"))
        return Note(str(data.get("job")), host, nonce)

    def noted(self, key: str) -> Note | None:
        """Return the same for looking around; a damaged note is logged, and none."""
        try:
            return self.note(key)
        except IntegrityError as error:
            log.warning("%s: %s", key, error)
            return None

    def told(self, key: str) -> dict[str, Any]:
        """Return what the worker was told; empty if it was told nothing.

        Raises:
            IntegrityError: The file is damaged.
        """
        return read_json(self.notes(key).job) or {}

    def phase(self, key: str) -> str:
        """Return the phase in a job's status; "" when it has said none yet."""
        try:
            status = small_json(self.mailbox.path, self.box(key).status)
        except IntegrityError:
            return ""
        return str((status or {}).get("phase") or "")

    def delivered(self, key: str) -> bool:
        """Tell whether the update of a job's order is there."""
        return (self.mailbox.update(split_job(key)[0]) / MANIFEST).is_file()

    def over(self, key: str) -> bool:
        """Tell whether a job works no more on its own order."""
        return self.phase(key) in OVER


class Records:
    """One look at the jobs of a run.

    Args:
        files: The run's files.
        jobs: All jobs that the scheduler knows, by id.
    """

    def __init__(self, files: Files, jobs: Mapping[str, JobStatus]) -> None:
        self.files = files
        self._jobs = jobs

    def names_alive(self) -> list[str]:
        """Return the names of all jobs that wait or run, of whatever run."""
        return [job.name for job in self._jobs.values() if not job.state.final]

    def named(self, key: str) -> JobStatus | None:
        """Return the job that has a key's name; one that waits or runs goes first."""
        name = job_name(self.files.mailbox.run, *split_job(key))
        named = [job for job in self._jobs.values() if job.name == name]
        return min(named, key=lambda job: job.state.final, default=None)

    def status(self, key: str) -> JobStatus | None:
        """Return what the scheduler knows of a job, or None when it knows nothing.

        Of an order that an allocation has taken on: of the allocation's job.
        """
        note = self.files.noted(key)
        noted = None if note is None else self._jobs.get(note.job)
        if note is None or noted is None:
            return self.named(key)
        # A scheduler that lost its memory gives the same ids to other jobs.
        name = job_name(self.files.mailbox.run, *split_job(note.host or key))
        return noted if noted.name == name else self.named(key)

    def alive(self, key: str) -> bool:
        """Tell whether the scheduler says that a job waits or runs."""
        job = self.status(key)
        return job is not None and not job.state.final

    def report(self, key: str) -> dict[str, Any]:
        """Return all there is to a job, as the answer to a poll."""
        mailbox, box = self.files.mailbox, self.files.box(key)
        manifest = mailbox.update(split_job(key)[0]) / MANIFEST
        paths = {"status": box.status, "bound": box.bound, "update": manifest}
        status = self.status(key)
        report: dict[str, Any] = {"scheduler": status.to_json() if status else None}
        for what, path in paths.items():
            try:
                report[what] = small_json(mailbox.path, path)
            except IntegrityError as error:  # one bad file must not hide the others
                report[what] = None
                report.setdefault("problems", []).append(error.message)
        return report

    def keys_alive(self) -> list[str]:
        """Return the keys of the run's batch jobs that wait or run."""
        prefix = f"hansa.{self.files.mailbox.run}."
        names = (name for name in self.names_alive() if name.startswith(prefix))
        keys = (name.removeprefix(prefix) for name in names)
        return [key for key in keys if is_key(key)]


def is_key(text: str) -> bool:
    """Tell whether a text is the key of a job."""
    try:
        split_job(text)
    except ValueError:
        return False
    return True
