"""`hansa status`, `watch`, `report`, `replay`: looking at a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hansa.cli.options import FOLDER, JSON, RUN
from hansa.cli.output import plain, say, show_json, show_table

if TYPE_CHECKING:
    from hansa.coordinator.folder import RunFolder
    from hansa.report.model import RunSummary


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(status)
    app.command()(watch)
    app.command()(report)
    app.command()(replay)


def status(run: str = RUN, runs: Path = FOLDER, json_: bool = JSON) -> None:
    """Show how a run stands, from its journal; works while it runs, too."""
    from hansa.coordinator.folder import RunFolder
    from hansa.report.tables import (
        allocations_table,
        facilities_table,
        versions_table,
    )

    folder = RunFolder.existing(run, runs)
    summary, live = summary_of(folder), _live(folder)
    if json_:
        show_json({**summary.to_json(), "running": bool(live), "live": live})
        return
    who = (
        f"runs in process {live['pid']} on {live['host']}" if live else "is not running"
    )
    print(f"{folder.run} {who}; outcome: {summary.outcome or 'open'}")
    views = live.get("facilities") or {}
    for name in summary.facilities:
        line = plain(facility_line(summary, name, views.get(name)))
        print(f"  {name:14} {line}".rstrip())
    show_table(versions_table(summary))
    show_table(facilities_table(summary))
    show_table(allocations_table(summary))


def watch(run: str = RUN, runs: Path = FOLDER) -> None:
    """Follow a run line by line until it is over; Ctrl-C only ends the watching."""
    import time

    from hansa.cli.display import LiveNews, sentence
    from hansa.coordinator.folder import RunFolder
    from hansa.core.events import RunFinished

    folder, seen, news = RunFolder.existing(run, runs), 0, LiveNews()
    while True:
        for record in folder.records():
            if record.seq > seen:
                seen = record.seq
                if words := sentence(record.event):
                    print(plain(f"[{record.event.at:8.1f}s] {words}"), flush=True)
                if isinstance(record.event, RunFinished):
                    return
        live = _live(folder)
        if not live:
            say(
                f"{folder.run} is not running; `hansa run --resume {run}` continues it."
            )
            return
        for words in news.of(live.get("facilities") or {}, time.monotonic()):
            print(plain(f"{'':11} {words}"), flush=True)
        time.sleep(0.5)


def report(run: str = RUN, runs: Path = FOLDER, json_: bool = JSON) -> None:
    """Write the report: one HTML file, pictures, and the figures as JSON."""
    from hansa.coordinator.folder import RunFolder

    folder = RunFolder.existing(run, runs)
    summary = summary_of(folder)
    paths = write(folder, summary)
    if json_:
        show_json(summary.to_json())
        return
    for path in paths:
        print(path)


def replay(run: str = RUN, runs: Path = FOLDER, json_: bool = JSON) -> None:
    """Rebuild the run's state from its journal and compare it with what is on disk."""
    from hansa.coordinator.folder import RunFolder
    from hansa.coordinator.replay import replay as rebuild
    from hansa.coordinator.setup import make_coordinator
    from hansa.core.errors import IntegrityError
    from hansa.store.versions import Store

    folder = RunFolder.existing(run, runs)
    spec = folder.spec()
    core = make_coordinator(spec)
    count = rebuild(folder.records(), core)
    state = core.snapshot()
    kept = (folder.path / "versions").is_dir()  # a simulation keeps no models
    checked = core.newest >= 0 and kept
    if checked:
        manifest = Store(folder.path, spec.model.dtype).verify_version(core.newest)
        if manifest.sha256 != state["model_sha256"]:
            raise IntegrityError(
                f"Version {core.newest} on disk has sha256 {manifest.sha256}; the "
                f"journal published {state['model_sha256']}.",
                hint="The version was replaced after it was made.",
            )
    if json_:
        show_json({"events": count, "same": True, "state": state})
        return
    print(f"{count} events replayed; every decision is the same as in the run.")
    print(f"State digest {core.digest or 'none'}, outcome {core.outcome or 'open'}.")
    if checked:
        print(f"Version {core.newest} on disk is the one published, byte for byte.")
    elif not kept:
        print("There is no model to compare: a simulated run keeps none.")


def summary_of(folder: RunFolder) -> RunSummary:
    """Return the figures of a run, folded from its journal."""
    from hansa.report import ReportContext, summarise

    spec = folder.spec()
    context = ReportContext(
        strategy=spec.strategy.name,
        model=f"{spec.model.trainer} {spec.model.source}",
        task=spec.task.name,
    )
    return summarise((record.event for record in folder.records()), context)


def write(folder: RunFolder, summary: RunSummary) -> list[Path]:
    """Write the report's files and return their paths."""
    from hansa.report import write_report

    events = [record.event for record in folder.records()]
    lock = folder.lock.read_text(encoding="utf-8")
    return write_report(summary, events, lock, folder.report)


def conclusion(folder: RunFolder, *, quiet: bool) -> None:
    """Print the tables of a finished run and write its report."""
    from hansa.core.errors import PluginError
    from hansa.report.headline import headline
    from hansa.report.tables import (
        allocations_table,
        facilities_table,
        versions_table,
    )

    summary = summary_of(folder)
    if not quiet:
        show_table(versions_table(summary))
        show_table(facilities_table(summary))
        show_table(allocations_table(summary))
    try:
        paths = write(folder, summary)
    except PluginError as error:
        say(f"No report was written: {error.message} {error.hint or ''}")
        return
    if not quiet:
        print(f"{folder.run}: {summary.outcome}. {headline(summary)}")
        print(f"Report: {paths[0]}")


def _live(folder: RunFolder) -> dict[str, Any]:
    """Return the live view if the coordinator is alive; empty otherwise."""
    import time

    from hansa.journal import holder

    who = holder(folder.lease)
    if who is None or not who.is_alive(time.time()):
        return {}
    return {"pid": who.pid, "host": who.host, **folder.live_view()}


def facility_line(
    summary: RunSummary, name: str, view: dict[str, Any] | None = None
) -> str:
    """Return what a facility does, and which version its last training has bound.

    Args:
        summary: The journal's side.
        name: The facility.
        view: The live view of it; None when the run is not running.
    """
    parts = [_view_words(view)] if view else []
    bound = _bound(summary, name)
    return "; ".join(part for part in [*parts, bound] if part)


def _view_words(view: dict[str, Any]) -> str:
    from hansa.cli.display import transfer_words

    text = str(view.get("state", ""))
    if view.get("steps") and view.get("state") in {"training", "evaluating", "saving"}:
        text += f" {view['step']}/{view['steps']}"
    if moving := transfer_words(view):
        text += f" {moving}"
    if view.get("detail"):
        text += f" — {view['detail']}"
    if view.get("todo"):
        text += f" — {view['todo']}"
    if view.get("expected") is not None:
        text += f", expected to start at {_clock_time(view['expected'])}"
    if view.get("ahead"):
        text += f", job {view['ahead']} queued ahead"
    return text


def _bound(summary: RunSummary, name: str) -> str:
    """Return what late binding gave the facility's last training that started."""
    started = [
        job
        for job in summary.jobs
        if job.facility == name
        and job.base is not None
        and job.assignment.startswith("train-")
    ]
    if not started:
        return ""
    last = started[-1]
    words = f"bound v{last.base}"
    if last.newest is not None and last.newest >= 0:
        words += f", was v{last.newest} at submission"
        gained = (last.base or 0) - last.newest
        words += f" (+{gained} while waiting)" if gained > 0 else ""
    return words


def _clock_time(unix: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(unix, UTC):%d %b %H:%M} UTC"
