"""What people see of a facility while a run goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hansa.coordinator.job import Job, waited
from hansa.coordinator.reports import JobReport
from hansa.core.errors import LoginError
from hansa.mover.base import Progress
from hansa.scheduler.base import JobState


@dataclass(slots=True)
class FacilityView:
    """One live line: written by a lane, read by `run`, `watch` and `status`.

    Attributes:
        state: ``idle``, ``staging``, ``queued``, ``held``, ``waiting``, ``training``,
            ``lingering``, ``collecting``, ...
        detail: A few words more: why a job waits, or the last problem.
        job: The scheduler's id of the job at hand.
        host: Key of the job whose allocation it uses; empty: its own.
        expected: When the scheduler expects the job to start, in unix seconds by its
            own clock; None: it does not say.
        step: Optimizer steps done of `steps` in the job at hand.
        loss: Last training loss.
        samples_per_s: Training speed.
        bytes_sent: Bytes moved to the facility in this process's time.
        bytes_received: Bytes moved from it.
        queue_wait: Seconds that the last started job waited, by its scheduler.
        version: The version that the job at hand has bound.
        newest_at_submit: The newest version when that job was submitted.
        ahead: The scheduler's id of a job that is queued ahead; empty: none.
        moved: Bytes that the transfer under way has moved, of `to_move`; both 0: none
            is under way.
        rate: Its bytes per second.
        faults: Troubles that its service mended by itself.
        line: The service's word for what holds it up; empty: nothing does.
        todo: What a person must do before all goes on, with the command; empty:
            nothing.
    """

    name: str
    state: str = "idle"
    detail: str = ""
    job: str = ""
    host: str = ""
    expected: float | None = None
    step: int = 0
    steps: int = 0
    loss: float | None = None
    samples_per_s: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    queue_wait: float | None = None
    version: int | None = None
    newest_at_submit: int | None = None
    ahead: str = ""
    moved: int = 0
    to_move: int = 0
    rate: float = 0.0
    faults: int = 0
    line: str = ""
    todo: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the view as plain JSON data."""
        return asdict(self)

    def show(self, job: Job, report: JobReport) -> None:
        """Take in what a poll tells of the job at hand."""
        status, record = report.status or {}, report.scheduler
        self.job, self.host, self.newest_at_submit = job.id, job.host, job.newest
        if record is not None:
            self.expected = None if report.runs else record.expected
            if report.runs:
                self.state, self.detail = report.phase or "starting", ""
            elif not record.state.final:
                held = record.state is JobState.HELD
                self.state = "held" if held else "queued"
                self.detail = record.why or record.reason
        if report.bound is not None and record is not None:
            self.version = int(report.bound["base"])
            self.queue_wait = 0.0 if job.host else waited(record)
        else:
            self.version = None
        self.step = report.step
        self.steps = int(status.get("steps") or 0)
        self.loss = status.get("loss")
        self.samples_per_s = status.get("samples_per_s")

    def show_transfer(self, progress: Progress) -> None:
        """Take in how a transfer goes; one that is complete is not shown any more.

        One that is held up is shown even if all bytes have gone over: some are to be
        sent again.
        """
        under_way = progress.bytes < progress.total or bool(progress.status)
        self.moved = min(progress.bytes, progress.total) if under_way else 0
        self.to_move = progress.total if under_way else 0
        self.rate = progress.rate if under_way else 0.0
        self.faults = progress.faults if under_way else 0
        self.line = progress.status if under_way else ""

    def show_login(self, error: LoginError | None) -> None:
        """Take in that a login is missing, or (None) that it is there again."""
        self.todo = "" if error is None else f"{error} {error.hint or ''}".rstrip()

    def show_followed(self, job: Job, report: JobReport, *, idle: bool) -> None:
        """Take in what a poll tells of a job in the background."""
        if job.is_ahead and not job.ran and not job.ended:
            self.ahead = job.id
        elif self.ahead == job.id:
            self.ahead = ""
        if not idle:
            return
        if report.runs and (report.phase == "lingering" or job.is_ahead):
            self.state, self.detail = "lingering", f"job {job.id}"
        elif job.ended and self.state == "lingering":
            self.state, self.detail = "idle", ""
