"""What `hansa status`, `watch` and `run` say of batch jobs, in words."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.cli.display import LiveNews, _cells, sentence
from hansa.cli.inspect import facility_line
from hansa.cli.output import say, show_table
from hansa.coordinator.view import FacilityView
from hansa.core import events as ev
from hansa.mover.base import Progress
from hansa.report import summarise
from hansa.report.tables import Table

STARTED = ev.RunStarted(
    at=0.0, run="r", plan="", seed=0, facilities=("a", "b"), started=0.0
)


def words(assignment: str = "train-0003-a-1", number: int = 1) -> dict[str, Any]:
    return {
        "at": 9.0,
        "facility": "a",
        "assignment": assignment,
        "number": number,
        "job": "4711",
    }


def queued(newest: int, **more: Any) -> ev.JobQueued:
    return ev.JobQueued(newest=newest, **{**words(), **more})


def started(base: int, **more: Any) -> ev.JobStarted:
    return ev.JobStarted(base=base, queue_wait=3700.0, **{**words(), **more})


def test_late_binding_is_shown_for_each_facility() -> None:
    summary = summarise([STARTED, queued(2), started(5)])
    assert facility_line(summary, "a") == (
        "bound v5, was v2 at submission (+3 while waiting)"
    )
    assert facility_line(summary, "b") == ""


def test_a_job_that_bound_what_was_there_at_submission() -> None:
    summary = summarise([STARTED, queued(2), started(2)])
    assert facility_line(summary, "a") == "bound v2, was v2 at submission"


def test_a_job_without_an_order_binds_nothing() -> None:
    ahead = words("ahead-0001-a-1")
    events = [STARTED, queued(2, **ahead), started(-1, **ahead)]
    assert facility_line(summarise(events), "a") == ""


def test_why_a_job_waits_and_until_when() -> None:
    view = {
        "state": "held",
        "detail": "An administrator holds the job.",
        "expected": 1_767_268_800.0,
        "ahead": "4712",
        "step": 3,
        "steps": 30,
    }
    assert facility_line(summarise([STARTED]), "a", view) == (
        "held — An administrator holds the job., expected to start at "
        "01 Jan 12:00 UTC, job 4712 queued ahead"
    )


def test_steps_are_shown_while_it_trains() -> None:
    view = {"state": "training", "detail": "", "step": 3, "steps": 30}
    summary = summarise([STARTED, queued(0), started(1)])
    assert facility_line(summary, "a", view).startswith("training 3/30; bound v1")


def test_a_transfer_under_way_is_shown_with_what_holds_it_up() -> None:
    view = {**FacilityView("a", state="staging", detail="again").to_json()}
    summary = summarise([STARTED])
    assert facility_line(summary, "a", view) == "staging — again"
    view |= {"moved": 1_234_000_000, "to_move": 2_000_000_000, "rate": 3.4e8}
    assert facility_line(summary, "a", view) == (
        "staging 61% of 2.0 GB at 340 MB/s — again"
    )
    view |= {"faults": 2, "rate": 0.0, "line": "PERMISSION_DENIED"}
    assert facility_line(summary, "a", view) == (
        "staging 61% of 2.0 GB, 2 faults mended, held up: PERMISSION_DENIED — again"
    )


def test_the_live_table_shows_a_transfer_in_place_of_the_last_problem() -> None:
    view = FacilityView("a", state="staging", detail="An older problem")
    assert str(_cells(view)[1]) == "staging (An older problem)"
    view.show_transfer(Progress(bytes=50, total=200, rate=25.0, faults=1))
    assert str(_cells(view)[1]) == "staging 25% of 200 B at 25 B/s, 1 fault mended"
    view.show_transfer(Progress(bytes=200, total=200))
    assert str(_cells(view)[1]) == "staging (An older problem)"


def test_watch_tells_of_long_transfers_now_and_then_and_of_trouble_at_once() -> None:
    def seen(now: float, **view: Any) -> list[str]:
        moving = {"moved": 10, "to_move": 100, **view}
        return list(news.of({"a": moving, "b": {"state": "idle"}}, now))

    news = LiveNews()
    assert seen(0.0) == []  # most are over in a moment
    assert seen(9.5) == []
    assert seen(10.0) == ["a: 10% of 100 B"]
    assert seen(10.5, line="GRIDFTP_TIMEOUT") == [
        "a: 10% of 100 B, held up: GRIDFTP_TIMEOUT"
    ]
    assert seen(11.0, line="GRIDFTP_TIMEOUT") == []
    assert seen(11.5, faults=1) == ["a: 10% of 100 B, 1 fault mended"]
    assert seen(20.0, faults=1) == []
    assert seen(21.0, to_move=0) == []  # it is over
    assert seen(40.0) == []  # the next one


def test_what_a_person_must_do_is_told_once_and_at_once() -> None:
    view = FacilityView("a", state="training", todo="Run `hansa login`.").to_json()
    news = LiveNews()
    told = [list(news.of({"a": view}, now)) for now in (0.0, 1.0, 500.0)]
    assert told == [["a: Run `hansa login`."], [], []]
    assert list(news.of({"a": {**view, "todo": ""}}, 501.0)) == []
    assert list(news.of({"a": view}, 502.0)) == ["a: Run `hansa login`."]
    line = facility_line(summarise([STARTED]), "a", view)
    assert line == "training — Run `hansa login`."


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            ev.TransferEnded(
                at=1.0, facility="a", ticket="t", outcome="failed", reason="No space"
            ),
            "a: a transfer failed: No space",
        ),
        (
            ev.TransferEnded(at=1.0, facility="a", ticket="t", outcome="cancelled"),
            "a: a transfer was cancelled",
        ),
        (ev.TransferEnded(at=1.0, facility="a", ticket="t", outcome="done"), ""),
        (
            ev.TransferSubmitted(
                at=1.0, facility="a", ticket="t", direction="put", places=("x",)
            ),
            "",
        ),
        (queued(2), "a: job 4711 queued for train-0003-a-1"),
        (
            queued(2, host="train-0001-a-1.1"),
            "a: job 4711 takes on train-0003-a-1 in its allocation",
        ),
        (queued(2, assignment="ahead-0001-a-1"), "a: job 4711 queued ahead"),
        (started(5), "a: job 4711 runs from version 5 after 1h01 queued"),
        (
            started(-1, assignment="ahead-0001-a-1"),
            "a: job 4711, queued ahead, waits for an order after 1h01 queued",
        ),
        (
            ev.JobWaiting(queue_wait=60.0, **words()),
            "a: job 4711 waits for the others after 1m00 queued",
        ),
        (
            ev.JobRequeued(reason="Preempted", run_s=50, node_hours=1, **words()),
            "a: job 4711 is back in the queue (Preempted) after 50s of work",
        ),
        (
            ev.JobEnded(
                state="TIMEOUT",
                reason="TimeLimit",
                queue_wait=0,
                run_s=1,
                node_hours=1,
                **words(),
            ),
            "a: job 4711 ended as TIMEOUT (TimeLimit)",
        ),
        (
            ev.JobEnded(
                state="DONE", reason="", queue_wait=0, run_s=1, node_hours=1, **words()
            ),
            "",
        ),
    ],
)
def test_events_in_words(event: ev.Event, expected: str) -> None:
    assert sentence(event) == expected


def test_words_of_strangers_are_shown_and_not_obeyed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither markup of rich nor a terminal's control characters."""
    table = Table(title="[/t]", columns=("[/c]",), rows=(("[/b] \x1b[2J",),))
    show_table(table)
    say("[red]lost\x1b]0;title\x07\n\tbecause")
    shown = capsys.readouterr()
    for text in ("[/t]", "[/c]", r"[/b] \x1b[2J"):
        assert text in shown.out
    assert shown.err == "[red]lost\\x1b]0;title\\x07\n\tbecause\n"


def test_the_log_does_not_obey_them_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    log = logging.getLogger("hansa.far_away")

    def load(*_: object) -> None:
        log.info("lost\x1b]0;title\x07")

    monkeypatch.setattr("hansa.spec.load_federation", load)
    try:
        shown = CliRunner().invoke(app, ["-v", "plan", "federation.yaml"])
    finally:
        logging.root.setLevel(level)
    assert "INFO hansa.far_away: lost\\x1b]0;title\\x07\n" in shown.stderr
