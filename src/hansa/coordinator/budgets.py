"""When a run is over: rounds, time, node-hours and targets. Pure, like the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hansa.coordinator.books import Books
from hansa.coordinator.plan import Stop
from hansa.core.events import (
    AssignmentFailed,
    EvaluationReported,
    Event,
    JobEnded,
    JobRequeued,
    TimerFired,
    UpdateArrived,
    VersionPublished,
)
from hansa.core.ids import is_ahead

WALL_CLOCK = "budget-wall-clock"
"""Name of the timer that ends a run."""

Spent = tuple[str, str] | None
"""Name and detail of a budget that is used up."""


def spent_budget(stop: Stop, books: Books, event: Event) -> Spent:
    """Return name and detail of the budget that an event has used up, or None.

    Args:
        stop: When the run is over.
        books: Assignments, jobs and costs, the event included.
        event: What happened.
    """
    spends = _SPENDING.get(type(event))
    return None if spends is None else spends(stop, books, event)


def _version(stop: Stop, _: Books, event: VersionPublished) -> Spent:
    if stop.rounds is None or event.version < stop.rounds:
        return None
    return "rounds", f"{event.version} rounds are done."


def _timer(stop: Stop, _: Books, event: TimerFired) -> Spent:
    if event.timer != WALL_CLOCK:
        return None
    return "wall_clock", f"{stop.wall_clock:.0f} s of wall clock are over."


def _job(stop: Stop, books: Books, event: JobEnded) -> Spent:
    if event.state == "DONE" and _owed(books, event.assignment):
        return None  # its result is on the way and is paid for
    return _hours(stop, books, event)


def _update(stop: Stop, books: Books, event: UpdateArrived) -> Spent:
    if stop.updates is not None and books.delivered >= stop.updates:
        return "updates", f"{books.delivered} updates have come."
    return _hours(stop, books, event)


def _measured(stop: Stop, books: Books, event: EvaluationReported) -> Spent:
    return _target_met(stop, event) or _hours(stop, books, event)


def _hours(stop: Stop, books: Books, _: Event) -> Spent:
    if stop.node_hours is None or books.node_hours < stop.node_hours:
        return None
    return "node_hours", f"{books.node_hours:.2f} node-hours are spent."


def _owed(books: Books, assignment: str) -> bool:
    """Tell whether a job that ended well may still have a result to bring."""
    work = books.work.get(assignment)
    if work is None:
        return not is_ahead(assignment)
    return work.closed not in {"done", "failed"}


def _target_met(stop: Stop, event: EvaluationReported) -> Spent:
    name, below = stop.target_metric, stop.target_below
    value = event.loss if name == "eval_loss" else event.metrics.get(name)
    if below is None or value is None or not value < below:
        return None
    return "target", f"{name} {value:.4g} is below {below:.4g}."


_SPENDING: Mapping[type[Event], Callable[[Stop, Books, Any], Spent]] = {
    VersionPublished: _version,
    TimerFired: _timer,
    JobEnded: _job,
    JobRequeued: _hours,
    UpdateArrived: _update,
    AssignmentFailed: _hours,
    EvaluationReported: _measured,
}
