"""What only the facility writes: the site agent's notes, and its words to jobs.

::

    <state>/<run>/jobs/<assignment>.<number>/
        script.sh          the batch script
        job.json           what the worker is told; the script names its sha256
        submitted.json     the scheduler's id, or the job that took the order on
        begin.json         the word to begin, for a job that waits for the others
        leave.json         the word to leave: linger no more; an order: give it up
        refuse.json        cancelled before it came: until when it is refused
        handover/<n>.json  orders for the allocation of this job: 1, 2, ...

The mailbox beside it is written by server and facility; nothing that runs may lie
there. A handover's number is taken by whoever makes the file first (`os.link`): the
site agent with an order, or the worker with ``{"closed": true}`` when it leaves. So an
order is either taken on by a job or gets a batch job of its own, never both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hansa.core.ids import check_run, job_key
from hansa.mailbox.paths import check_assignment, check_whole


@dataclass(frozen=True, slots=True)
class JobNotes:
    """The facility's own directory of one job, and the files in it."""

    path: Path

    @property
    def script(self) -> Path:
        """The batch script."""
        return self.path / "script.sh"

    @property
    def job(self) -> Path:
        """What the worker is told (JSON)."""
        return self.path / "job.json"

    @property
    def submitted(self) -> Path:
        """The scheduler's id of the job (JSON, written once)."""
        return self.path / "submitted.json"

    @property
    def begin(self) -> Path:
        """The word to begin."""
        return self.path / "begin.json"

    @property
    def leave(self) -> Path:
        """The word to leave."""
        return self.path / "leave.json"

    @property
    def refuse(self) -> Path:
        """Until when a submission is refused, as the cancelling went before it."""
        return self.path / "refuse.json"

    def handover(self, number: int) -> Path:
        """Return the file of the allocation's handover `number` (1, 2, ...)."""
        return self.path / "handover" / f"{number}.json"


@dataclass(frozen=True, slots=True)
class State:
    """The facility's own directory of one run.

    Args:
        root: `state` of site.yaml, shared by all runs.
        run: Id of the run.

    Raises:
        SpecError: The run id is not safe as a directory name.
    """

    root: Path
    run: str

    def __post_init__(self) -> None:
        check_run(self.run)

    @property
    def path(self) -> Path:
        """The run's own directory."""
        return self.root / self.run

    @property
    def jobs(self) -> Path:
        """Directory of the jobs' directories."""
        return self.path / "jobs"

    def job(self, assignment: str, number: int) -> JobNotes:
        """Return the directory of an assignment's job `number` (1, 2, ...)."""
        key = job_key(check_assignment(assignment), check_whole(number, 1, "job"))
        return JobNotes(self.jobs / key)

    def lock(self, assignment: str) -> Path:
        """Return the file that keeps two site agents from submitting at once."""
        return self.path / f".{check_assignment(assignment)}.lock"
