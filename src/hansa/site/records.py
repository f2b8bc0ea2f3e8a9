"""What the mailbox and the scheduler together know of a run's jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hansa.core.errors import IntegrityError
from hansa.core.ids import job_name
from hansa.mailbox.paths import MANIFEST, Mailbox
from hansa.scheduler.base import JobStatus
from hansa.site.reach import small_json
from hansa.site.rpc import split_job


class Records:
    """One look at the jobs of a run.

    Args:
        mailbox: The run's mailbox.
        jobs: All jobs that the scheduler knows, by id.
    """

    def __init__(self, mailbox: Mailbox, jobs: Mapping[str, JobStatus]) -> None:
        self._mailbox = mailbox
        self._jobs = jobs

    def names_alive(self) -> list[str]:
        """Return the names of all jobs that wait or run, of whatever run."""
        return [job.name for job in self._jobs.values() if not job.state.final]

    def submitted(self, key: str) -> str | None:
        """Return the scheduler's id of a job that was submitted before, or None.

        It is known by its name, or, when the scheduler has forgotten it, by the note
        that was written after its submission.
        """
        status = self.status(key)
        return self._noted_id(key) if status is None else status.id

    def status(self, key: str) -> JobStatus | None:
        """Return what the scheduler knows of a job, or None when it knows nothing."""
        name = job_name(self._mailbox.run, *split_job(key))
        named = [job for job in self._jobs.values() if job.name == name]
        if named:
            return min(named, key=lambda job: job.state.final)
        return self._jobs.get(self._noted_id(key) or "")

    def report(self, key: str) -> dict[str, Any]:
        """Return all there is to a job, as the answer to a poll."""
        assignment, number = split_job(key)
        files = self._mailbox.job(assignment, number)
        manifest = self._mailbox.update(assignment) / MANIFEST
        paths = {"status": files.status, "bound": files.bound, "update": manifest}
        status = self.status(key)
        report: dict[str, Any] = {"scheduler": status.to_json() if status else None}
        for what, path in paths.items():
            try:
                report[what] = small_json(self._mailbox.path, path)
            except IntegrityError as error:  # one bad file must not hide the others
                report[what] = None
                report.setdefault("problems", []).append(error.message)
        return report

    def assignments_alive(self) -> set[str]:
        """Return the run's assignments with a job that waits or runs."""
        return {split_job(key)[0] for key in self._keys_alive()}

    def versions_in_use(self) -> set[int]:
        """Return the versions that waiting and running jobs have bound or will."""
        versions: set[int] = set()
        for key in self._keys_alive():
            assignment, number = split_job(key)
            bound = self._mailbox.job(assignment, number).bound
            order = self._mailbox.order(assignment)
            for path, field in ((bound, "base"), (order, "version")):
                version = (small_json(self._mailbox.path, path) or {}).get(field)
                versions |= {version} if isinstance(version, int) else set()
        return versions

    def _keys_alive(self) -> list[str]:
        prefix = f"hansa.{self._mailbox.run}."
        names = (name for name in self.names_alive() if name.startswith(prefix))
        return [
            key for key in (name.removeprefix(prefix) for name in names) if _is(key)
        ]

    def _noted_id(self, key: str) -> str | None:
        path = self._mailbox.job(*split_job(key)).submitted
        noted = small_json(self._mailbox.path, path)
        return None if noted is None else str(noted.get("job"))


def _is(key: str) -> bool:
    try:
        split_job(key)
    except ValueError:
        return False
    return True
