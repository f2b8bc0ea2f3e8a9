"""One live line for each facility."""

from __future__ import annotations

from typing import Any

from hansa.coordinator.job import Job
from hansa.coordinator.reports import JobReport
from hansa.coordinator.view import FacilityView
from hansa.core.errors import LoginError
from hansa.mover.base import Progress
from hansa.scheduler.base import JobState, JobStatus


def report(state: JobState, phase: str = "", **more: Any) -> JobReport:
    base = more.pop("base", None)
    return JobReport(
        scheduler=JobStatus(id="7", name="x", state=state, **more),
        status={"phase": phase, "step": 3, "steps": 9},
        bound=None if base is None else {"base": base},
    )


def job(**more: Any) -> Job:
    words = {"facility": "a", "assignment": "train-0001-a-1", "id": "7", **more}
    return Job(queued=True, newest=2, **words)


def test_a_job_that_waits_says_why_and_until_when() -> None:
    view = FacilityView("a")
    why = "Others have a higher priority."
    view.show(job(), report(JobState.QUEUED, why=why, expected=99.0))
    assert (view.state, view.detail, view.expected) == ("queued", why, 99.0)
    view.show(job(), report(JobState.HELD, reason="JobHeldUser"))
    assert (view.state, view.detail) == ("held", "JobHeldUser")


def test_a_job_that_runs_shows_what_it_bound_and_what_there_was() -> None:
    view = FacilityView("a", state="queued", detail="Resources", expected=9.0)
    running = report(JobState.RUNNING, "training", base=5, submitted=1.0, started=4.0)
    view.show(job(), running)
    assert (view.state, view.detail, view.expected) == ("training", "", None)
    assert (view.version, view.newest_at_submit, view.queue_wait) == (5, 2, 3.0)
    assert (view.step, view.steps) == (3, 9)


def test_lingering_is_shown_only_when_nothing_else_goes_on() -> None:
    view = FacilityView("a", state="training")
    lingering = report(JobState.RUNNING, "lingering")
    view.show_followed(job(), lingering, idle=False)
    assert view.state == "training"
    view.show_followed(job(), lingering, idle=True)
    assert (view.state, view.detail) == ("lingering", "job 7")
    view.show_followed(job(ended=True), report(JobState.DONE), idle=True)
    assert view.state == "idle"


def test_a_job_that_is_queued_ahead_is_shown_until_it_runs() -> None:
    view, ahead = FacilityView("a"), job(assignment="ahead-0001-a-1", id="8")
    view.show_followed(ahead, report(JobState.QUEUED), idle=False)
    assert view.ahead == "8"
    ahead.ran = True
    view.show_followed(ahead, report(JobState.RUNNING), idle=False)
    assert view.ahead == ""


def test_a_transfer_that_is_held_up_is_shown_though_all_has_gone_over() -> None:
    view = FacilityView("a")
    view.show_transfer(Progress(bytes=120, total=100, status="CHECKSUM"))
    assert (view.moved, view.to_move, view.line) == (100, 100, "CHECKSUM")
    view.show_transfer(Progress(bytes=120, total=100))
    assert (view.moved, view.to_move, view.line) == (0, 0, "")


def test_a_login_is_shown_with_the_command_until_it_is_there() -> None:
    view = FacilityView("a")
    view.show_login(LoginError("It has ended.", hint="Run `hansa login`."))
    assert view.todo == "It has ended. Run `hansa login`."
    view.show_login(None)
    assert view.todo == ""
