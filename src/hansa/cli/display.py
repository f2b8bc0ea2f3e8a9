"""Showing a run as it goes: live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hansa.cli.output import console, plain, say
from hansa.core.events import (
    AggregateFailed,
    AssignmentFailed,
    EvaluationReported,
    Event,
    FacilityLost,
    FacilityReady,
    JobEnded,
    JobQueued,
    JobRequeued,
    JobStarted,
    JobWaiting,
    ModelStaged,
    OperatorAsked,
    RunFinished,
    RunResumed,
    RunStarted,
    TransferEnded,
    UpdateArrived,
    VersionPublished,
)
from hansa.core.ids import is_ahead
from hansa.core.units import format_size, short_duration

JobEvent = JobQueued | JobWaiting | JobStarted | JobRequeued | JobEnded

if TYPE_CHECKING:
    from hansa.coordinator.launch import Running
    from hansa.coordinator.view import FacilityView
    from hansa.spec.federation import FederationSpec

STYLES = {
    "training": "green",
    "evaluating": "green",
    "queued": "yellow",
    "held": "red",
    "waiting": "yellow",
    "lingering": "cyan",
    "lost": "red",
    "failed": "red",
    "retrying": "red",
}

NEWS_S = 10.0
"""Seconds between two lines about a transfer that goes well."""


class Display(Protocol):
    """Something that shows a run; a context manager, told of lanes and events."""

    def attach(self, running: Running) -> None:
        """Take the running parts to show."""
        ...

    def on_event(self, event: Event) -> None:
        """See an event."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def make_display(spec: FederationSpec, *, quiet: bool = False) -> Display:
    """Return the display that fits where stderr goes."""
    if quiet:
        return SilentDisplay()
    if sys.stderr.isatty():
        return LiveDisplay(spec.name, spec.stop.rounds)
    return PlainDisplay()


class SilentDisplay:
    """Shows nothing."""

    def attach(self, running: Running) -> None:
        """See `Display`."""

    def on_event(self, event: Event) -> None:
        """See `Display`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `Display`."""


class PlainDisplay(SilentDisplay):
    """One line an event that people care about."""

    def on_event(self, event: Event) -> None:
        """See `Display`."""
        words = sentence(event)
        if words:
            say(f"[{event.at:8.1f}s] {words}")


class LiveDisplay(SilentDisplay):
    """A table that is redrawn: one line a facility, the versions' losses above."""

    def __init__(self, name: str, rounds: int | None) -> None:
        self._name = name
        self._rounds = rounds
        self._running: Running | None = None
        self._losses: list[str] = []
        self._news = ""
        self._live = Live(
            get_renderable=self._draw,
            console=console(stderr=True),
            refresh_per_second=5,
            transient=False,
        )

    def attach(self, running: Running) -> None:
        """See `Display`."""
        self._running = running

    def on_event(self, event: Event) -> None:
        """See `Display`."""
        if isinstance(event, EvaluationReported):
            self._losses.append(f"v{event.version} {event.loss:.3f}")
        if isinstance(event, VersionPublished | AssignmentFailed | FacilityLost):
            self._news = sentence(event)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def _draw(self) -> Group:
        running = self._running
        if running is None:
            return Group(Text(f"{self._name}: making the first version …"))
        version = max(running.core.newest, 0)
        clock = short_duration(running.clock())
        head = Table.grid(padding=(0, 2))
        goal = f" of {self._rounds}" if self._rounds else ""
        bar = ProgressBar(total=self._rounds or 1, completed=version, width=30)
        head.add_row(Text(self._name, style="bold"), f"version {version}{goal}", bar)
        losses = " → ".join(self._losses[-6:])
        head.add_row("", clock, f"test loss {losses}" if losses else "")
        parts = [head, self._facilities(running)]
        views = [lane.view for lane in running.lanes.values()]
        todo = next((f"{view.name}: {view.todo}" for view in views if view.todo), "")
        news = plain(todo or self._news)
        return Group(*parts, Text(news, style="red" if todo else "dim"))

    def _facilities(self, running: Running) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        names = "facility", "state", "step", "loss", "samples/s", "sent", "received"
        for name in (*names, "queue wait", "version"):
            table.add_column(name, justify="left" if name in names[:2] else "right")
        for lane in running.lanes.values():
            table.add_row(*_cells(lane.view))
        return table


def _cells(view: FacilityView) -> list[str | Text]:
    detail = f" ({view.detail[:40]})" if view.detail else ""
    moving = transfer_words(view.to_json())
    detail = f" {moving}" if moving else detail
    at_work = view.steps and view.state in {"training", "evaluating", "saving"}
    return [
        view.name,
        Text(plain(view.state + detail), style=STYLES.get(view.state, "")),
        f"{view.step}/{view.steps}" if at_work else "",
        f"{view.loss:.3f}" if view.loss is not None else "",
        f"{view.samples_per_s:.0f}" if view.samples_per_s else "",
        format_size(view.bytes_sent) if view.bytes_sent else "",
        format_size(view.bytes_received) if view.bytes_received else "",
        short_duration(view.queue_wait) if view.queue_wait is not None else "",
        "" if view.version is None else str(view.version),
    ]


def transfer_words(view: Mapping[str, Any]) -> str:
    """Return how the transfer under way goes; empty if there is none.

    Args:
        view: A `FacilityView` as JSON data; an older one may lack fields.
    """
    size = int(view.get("to_move") or 0)
    if not size:
        return ""
    moved, rate = int(view.get("moved") or 0), float(view.get("rate") or 0.0)
    words = f"{100 * moved // size}% of {format_size(size)}"
    words += f" at {format_size(rate)}/s" if rate else ""
    faults = int(view.get("faults") or 0)
    words += f", {faults} fault{'s' if faults > 1 else ''} mended" if faults else ""
    return words + (f", held up: {view['line']}" if view.get("line") else "")


class LiveNews:
    """Says how transfers go, now and then; what somebody must see to, at once."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, object]] = {}

    def of(self, views: Mapping[str, Mapping[str, Any]], now: float) -> Iterator[str]:
        """Yield what is new.

        Args:
            views: All facilities' views, as JSON data.
            now: Seconds by any clock.
        """
        for name, view in views.items():
            todo = view.get("todo") or ""
            words = todo or transfer_words(view)
            if not words:
                self._said.pop(name, None)
                continue
            trouble = todo, view.get("line") or "", view.get("faults") or 0
            since, known = self._said.get(name, (now, ("", "", 0)))
            if trouble != known or (now - since >= NEWS_S and not todo):
                yield f"{name}: {words}"
                since = now
            self._said[name] = since, trouble


def sentence(event: Event) -> str:
    """Return an event in words; empty for those that only machines care about."""
    match event:
        case RunStarted():
            return f"run {event.run} with {', '.join(event.facilities)}"
        case RunResumed():
            return "resumed"
        case VersionPublished(version=0):
            return f"first version made, {format_size(event.bytes)}"
        case VersionPublished():
            members = len(event.terms) - 1
            return f"version {event.version} from {members} updates"
        case EvaluationReported():
            return f"version {event.version}: test loss {event.loss:.4f}"
        case FacilityLost():
            return f"{event.facility} is lost: {event.reason}"
        case FacilityReady():
            return f"{event.facility} is back"
        case OperatorAsked():
            return f"asked to {event.request}"
        case RunFinished():
            return f"{event.outcome}: {event.reason}"
        case _:
            return _work_sentence(event)


def _work_sentence(event: Event) -> str:
    match event:
        case ModelStaged():
            size = format_size(event.bytes)
            return f"{event.facility}: {event.what} staged, {size}"
        case JobQueued() | JobWaiting() | JobStarted() | JobRequeued() | JobEnded():
            return _job_sentence(event)
        case TransferEnded() if event.outcome != "done":
            why = f": {event.reason}" if event.reason else ""
            how = "was cancelled" if event.outcome == "cancelled" else "failed"
            return f"{event.facility}: a transfer {how}{why}"
        case UpdateArrived():
            loss = event.metrics.get("eval_loss")
            own = "" if loss is None else f", own test loss {loss:.4f}"
            part = " (partial)" if event.partial else ""
            return f"{event.facility}: update of {event.steps} steps{part}{own}"
        case AssignmentFailed():
            return f"{event.facility}: {event.assignment} failed: {event.reason}"
        case AggregateFailed():
            return f"version {event.version} can't be made: {event.reason}"
        case _:
            return ""


def _job_sentence(event: JobEvent) -> str:
    job = f"{event.facility}: job {event.job}"
    match event:
        case JobQueued() if event.host:
            return f"{job} takes on {event.assignment} in its allocation"
        case JobQueued() if is_ahead(event.assignment):
            return f"{job} queued ahead"
        case JobQueued():
            return f"{job} queued for {event.assignment}"
        case JobWaiting():
            wait = short_duration(event.queue_wait)
            return f"{job} waits for the others after {wait} queued"
        case JobStarted(base=-1):
            wait = short_duration(event.queue_wait)
            return f"{job}, queued ahead, waits for an order after {wait} queued"
        case JobStarted():
            wait = short_duration(event.queue_wait)
            return f"{job} runs from version {event.base} after {wait} queued"
        case JobRequeued():
            why = f" ({event.reason})" if event.reason else ""
            ran = short_duration(event.run_s)
            return f"{job} is back in the queue{why} after {ran} of work"
        case JobEnded() if event.state != "DONE":
            why = f" ({event.reason})" if event.reason else ""
            return f"{job} ended as {event.state}{why}"
        case _:
            return ""
