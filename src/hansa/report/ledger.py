"""One pass over the events, sorted into what belongs together.

The ledger holds facts only (this job, that update, those versions); `summary` and
`timeline` draw their conclusions from it. Everything is keyed by its deterministic
id, so an event that was journaled again after a resume counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hansa.core import events as ev
from hansa.core.errors import JournalError
from hansa.core.ids import ASSIGNMENT, update_ref


@dataclass(slots=True)
class Job:
    """One batch job, as far as it got."""

    facility: str
    assignment: str
    number: int
    queued: ev.JobQueued | None = None
    started: ev.JobStarted | None = None
    ended: ev.JobEnded | None = None

    @property
    def queue_wait(self) -> float | None:
        """Seconds in the queue by the scheduler's records; None if not known yet."""
        if self.ended is not None:
            return self.ended.queue_wait
        return None if self.started is None else self.started.queue_wait


@dataclass(slots=True)
class Outage:
    """A time in which a facility was lost; `until` is None while it lasts."""

    event: ev.FacilityLost
    until: float | None = None


@dataclass(slots=True)
class Ledger:
    """All facts of a run.

    Attributes:
        start: The first event.
        end: Seconds from the start to the end, or to the last event so far.
        finish: The last event of a finished run.
        resumes: For every resume, when it was and how long the journal was silent.
        jobs: By assignment and number, in order of first mention.
        updates: By assignment, in order of arrival.
        newest_at: The newest published version when an update arrived, or None.
        versions: By number.
        reports: For every version, the last evaluation by facility.
    """

    start: ev.RunStarted
    end: float = 0.0
    finish: ev.RunFinished | None = None
    facilities: dict[str, None] = field(default_factory=dict)
    resumes: list[tuple[float, float]] = field(default_factory=list)
    jobs: dict[tuple[str, int], Job] = field(default_factory=dict)
    updates: dict[str, ev.UpdateArrived] = field(default_factory=dict)
    newest_at: dict[str, int | None] = field(default_factory=dict)
    failures: dict[str, ev.AssignmentFailed] = field(default_factory=dict)
    staged: list[ev.ModelStaged] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    versions: dict[int, ev.VersionPublished] = field(default_factory=dict)
    reports: dict[int, dict[str, ev.EvaluationReported]] = field(default_factory=dict)
    evaluations: dict[str, str] = field(default_factory=dict)
    asked: list[ev.OperatorAsked] = field(default_factory=list)

    def applied(self) -> dict[str, int]:
        """Return, by assignment, the first version that an update went into."""
        found: dict[str, int] = {}
        for version, event in sorted(self.versions.items()):
            refs = {term.ref for term in event.terms}
            for assignment in self.updates:
                if update_ref(assignment) in refs:
                    found.setdefault(assignment, version)
        return found

    def assignments(self, facility: str, kind: str) -> set[str]:
        """Return the assignments of a facility that left any trace."""
        seen = {
            job.assignment for job in self.jobs.values() if job.facility == facility
        }
        for events in (self.updates, self.failures):
            seen |= {key for key, event in events.items() if event.facility == facility}
        seen |= {key for key, owner in self.evaluations.items() if owner == facility}
        return {assignment for assignment in seen if parse(assignment)[0] == kind}


def parse(assignment: str) -> tuple[str, int | None]:
    """Return kind and round of an assignment id; an odd id is training of no round."""
    match = ASSIGNMENT.fullmatch(assignment)
    return (match[1], int(match[2])) if match else ("train", None)


def read(events: Iterable[ev.Event]) -> Ledger:
    """Sort the events of one run.

    Args:
        events: The journal's events, in order.

    Returns:
        The ledger.

    Raises:
        JournalError: There is no event, or the first one doesn't start a run.
    """
    stream = iter(events)
    first = next(stream, None)
    if not isinstance(first, ev.RunStarted):
        raise JournalError(
            "The journal does not begin with the start of a run"
            + (": it is empty." if first is None else f" but with {_name(first)}."),
            hint="Nothing can be reported of a run that never began; start it with "
            "`hansa run`.",
        )
    ledger = Ledger(start=first, end=first.at)
    ledger.facilities.update(dict.fromkeys(first.facilities))
    for event in stream:
        _enter(ledger, event)
        ledger.end = max(ledger.end, event.at)
    if ledger.finish is not None:
        ledger.end = ledger.finish.at
    return ledger


def _name(event: object) -> str:
    return type(event).__name__


def _enter(ledger: Ledger, event: ev.Event) -> None:
    match event:
        case ev.JobQueued() | ev.JobStarted() | ev.JobEnded():
            _enter_job(ledger, event)
        case ev.RunResumed():
            ledger.resumes.append((event.at, event.at - ledger.end))
        case ev.RunFinished():
            ledger.finish = event
        case ev.OperatorAsked():
            ledger.asked.append(event)
        case ev.VersionPublished():
            ledger.versions[event.version] = event
        case (
            ev.FacilityReady()
            | ev.FacilityLost()
            | ev.ModelStaged()
            | ev.UpdateArrived()
            | ev.AssignmentFailed()
            | ev.EvaluationReported()
        ):
            ledger.facilities.setdefault(event.facility)
            _enter_facility(ledger, event)
        case _:  # timers and budgets leave nothing to report
            pass


def _enter_job(
    ledger: Ledger, event: ev.JobQueued | ev.JobStarted | ev.JobEnded
) -> None:
    ledger.facilities.setdefault(event.facility)
    key = (event.assignment, event.number)
    job = ledger.jobs.setdefault(key, Job(event.facility, *key))
    match event:
        case ev.JobQueued():
            job.queued = job.queued or event
        case ev.JobStarted():
            job.started = job.started or event
        case ev.JobEnded():
            job.ended = event


def _enter_facility(ledger: Ledger, event: ev.Event) -> None:
    match event:
        case ev.ModelStaged():
            ledger.staged.append(event)
        case ev.UpdateArrived():
            ledger.updates.setdefault(event.assignment, event)
            newest = max(ledger.versions, default=None)
            ledger.newest_at.setdefault(event.assignment, newest)
        case ev.AssignmentFailed():
            ledger.failures[event.assignment] = event
        case ev.EvaluationReported():
            reports = ledger.reports.setdefault(event.version, {})
            reports[event.facility] = event
            ledger.evaluations[event.assignment] = event.facility
        case ev.FacilityLost():
            if _open_outage(ledger, event.facility) is None:
                ledger.outages.append(Outage(event))
        case ev.FacilityReady():
            outage = _open_outage(ledger, event.facility)
            if outage is not None:
                outage.until = event.at


def _open_outage(ledger: Ledger, facility: str) -> Outage | None:
    for outage in reversed(ledger.outages):
        if outage.event.facility == facility:
            return outage if outage.until is None else None
    return None
