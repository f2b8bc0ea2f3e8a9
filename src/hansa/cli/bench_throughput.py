"""`hansa bench throughput`: samples a second on one node, two, four, as measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hansa.cli.options import FOLDER, JSON
from hansa.cli.output import say, show_json, show_table

if TYPE_CHECKING:
    from hansa.coordinator.measurements import Failed
    from hansa.coordinator.throughput import Ask, Study
    from hansa.core.events import Event
    from hansa.planner.record import ThroughputRecord
    from hansa.spec.federation import FederationSpec


def throughput(
    file: Path | None = typer.Argument(
        None, help="federation.yaml; not needed with --show."
    ),
    facility: str | None = typer.Option(
        None, "--facility", metavar="NAME", help="Which one, if the file has several."
    ),
    nodes: str = typer.Option("1", help="Node counts, with commas between them."),
    steps: int = typer.Option(20, help="Steps that are timed.", min=1),
    warm_up: int = typer.Option(3, help="Steps before them.", min=0),
    repeat: int = typer.Option(1, help="Jobs of each size; the median counts.", min=1),
    batch: int | None = typer.Option(
        None, help="Examples of a step on each node; as in the file.", min=1
    ),
    strong: bool = typer.Option(
        False, "--strong", help="The batch of the file on any number of nodes."
    ),
    time: str | None = typer.Option(None, help="Walltime of a job; as in the file."),
    again: bool = typer.Option(
        False, "--again", help="Measure anew what has been measured before."
    ),
    cancel: bool = typer.Option(
        False, "--cancel", help="On Ctrl-C, cancel the jobs in flight."
    ),
    show: bool = typer.Option(
        False, "--show", help="Measure nothing: show what has been measured."
    ),
    runs: Path = FOLDER,
    out: Path | None = typer.Option(None, help="Folder of the picture; bench/NAME."),
    json_: bool = JSON,
) -> None:
    """Train on several numbers of nodes; measure speed, where time goes, and memory.

    Each number of nodes is a job of its own in the facility's queue, with the model,
    the data and the `work` of the federation. What comes out is kept in
    RUNS/throughput; what is there is not measured again.
    """
    from hansa.spec import load_federation

    failed: Failed = {}
    study = None
    if not show:
        study = _study(load_federation(_given(file)), facility, runs)
        ask = _ask(
            study,
            nodes,
            batch=batch,
            strong=strong,
            time=time,
            steps=steps,
            warm_up=warm_up,
            repeats=repeat,
        )
        failed = _measure(study, ask, again=again, cancel=cancel)
    spec = None if file is None else load_federation(file)
    records = _records(runs, spec, facility)
    code = 6 if failed else 0
    _show(records, study, failed, _folder(out, spec), json_=json_, code=code)
    raise typer.Exit(code)


def _given(file: Path | None) -> Path:
    from hansa.core.errors import UsageError

    if file is None:
        raise UsageError(
            "Name the federation's file: it says what is trained.",
            hint="hansa bench throughput federation.yaml --nodes 1,2,4",
        )
    return file


def _folder(out: Path | None, spec: FederationSpec | None) -> Path:
    return out or Path("bench") / (spec.name if spec else "throughput")


def _study(spec: FederationSpec, facility: str | None, runs: Path) -> Study:
    from hansa.coordinator.throughput import Study
    from hansa.core.errors import UsageError

    known = list(spec.facilities)
    if facility is None and len(known) == 1:
        facility = known[0]
    if facility not in known:
        what = "which facility?" if facility is None else f"there is no {facility!r}."
        raise UsageError(f"--facility: {what}", hint=f"There are {', '.join(known)}.")
    return Study(spec=spec, facility=facility, runs=runs)


def nodes_of(text: str) -> tuple[int, ...]:
    """Return node counts with commas between them, sorted, each once.

    Raises:
        UsageError: One is no whole number above 0.
    """
    from hansa.core.errors import UsageError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"--nodes: {text!r} is no list of node counts, as 1,2,4.")
    return tuple(sorted({int(word) for word in words}))


def _ask(
    study: Study,
    nodes: str,
    *,
    batch: int | None,
    strong: bool,
    time: str | None,
    steps: int,
    warm_up: int,
    repeats: int,
) -> Ask:
    from hansa.coordinator.throughput import Ask, batches
    from hansa.core.errors import UsageError
    from hansa.core.units import parse_duration

    if strong and batch is not None:
        raise UsageError("--strong keeps the file's batch: leave --batch out.")
    try:
        seconds = None if time is None else parse_duration(time)
    except ValueError as error:
        raise UsageError(f"--time: {error}.") from None
    counts = nodes_of(nodes)
    each = batches(study.spec, study.facility, counts, strong=strong, per_node=batch)
    return Ask(
        nodes=counts,
        batches=each,
        repeats=repeats,
        steps=steps,
        warm_up=warm_up,
        scaling="strong" if strong else "weak",
        time=seconds,
    )


def _measure(study: Study, ask: Ask, *, again: bool, cancel: bool) -> Failed:
    """Finish what was interrupted, then measure what is missing."""
    failed: Failed = {}
    if (old := study.unfinished()) is not None:
        folder, asked = old
        say(f"Going on with {folder.path}: {_words(asked.nodes)}.")
        failed |= _carry_out(study, asked, folder, cancel=cancel)
    wanted = ask if again else study.missing(ask)
    if wanted is not None and not failed:
        _preflight(study, wanted)
        failed |= _carry_out(study, wanted, study.new(wanted), cancel=cancel)
    return failed


def _preflight(study: Study, ask: Ask) -> None:
    from hansa.cli.run import preflight

    preflight(study.plan(ask), f"{study.spec.name}-throughput", keep_going=False)


def _carry_out(study: Study, ask: Ask, folder: Any, *, cancel: bool) -> Failed:
    from hansa.coordinator.runtime import Interrupted
    from hansa.coordinator.throughput import measure
    from hansa.core.errors import StorageFull

    try:
        found = measure(
            study,
            ask,
            folder,
            watchers=(_Teller(say),),
            cancel_on_interrupt=cancel,
        )
    except (Interrupted, StorageFull):
        say("Nothing is lost. To go on, give the same command again.")
        raise
    return found.failed


def _words(nodes: Sequence[int]) -> str:
    return f"{', '.join(map(str, nodes))} node{'s' if list(nodes) != [1] else ''}"


class _Teller:
    """Says in a line what becomes of each job."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def on_event(self, event: Event) -> None:
        from hansa.coordinator.scaling import nodes_and_repeat

        name = getattr(event, "assignment", "")
        words = _news(event)
        if name and words:
            nodes, repeat = nodes_and_repeat(name)
            again = f" ({repeat})" if repeat > 1 else ""
            self._tell(f"{_words([nodes])}{again}: {words}")


def _news(event: Event) -> str:
    from hansa.core import events as e
    from hansa.core.units import short_duration

    match event:
        case e.JobQueued():
            return f"job {event.job} is in the queue"
        case e.JobStarted():
            return f"started after {short_duration(event.queue_wait)} in the queue"
        case e.JobRequeued():
            return f"back in the queue: {event.reason}"
        case e.UpdateArrived():
            return "done"
        case e.AssignmentFailed():
            return "failed"
        case _:
            return ""


def _records(
    runs: Path, spec: FederationSpec | None, facility: str | None
) -> list[ThroughputRecord]:
    """Return what has been measured: of a federation, or of all there are."""
    from hansa.coordinator.throughput import read_all

    found = read_all(runs, None if spec is None else spec.name)
    return [one for one in found if facility in (None, one.facility)]


def _show(
    records: Sequence[ThroughputRecord],
    study: Study | None,
    failed: Failed,
    folder: Path,
    *,
    json_: bool,
    code: int,
) -> None:
    from hansa.core.errors import UsageError
    from hansa.report.throughput import scaling_table

    if not records and not failed:
        raise UsageError(
            "Nothing has been measured yet.",
            hint="hansa bench throughput federation.yaml --nodes 1,2,4",
        )
    files = [str(path) for path in _draw(records, folder)] if records else []
    if json_:
        show_json(_data(records, failed, files), code)
    else:
        if records:
            show_table(scaling_table(records))
        for path in files:
            print(path)
    for (nodes, _), why in failed.items():
        say(f"{_words([nodes])}: {why}" if nodes else why)
    if study is not None and not json_:
        _advise(study, records)


def _data(
    records: Sequence[ThroughputRecord], failed: Failed, files: Sequence[str]
) -> dict[str, Any]:
    told = []
    for record in records:
        data = record.model_dump(mode="json", by_alias=True)
        for one, measured in zip(
            data["measurements"], record.measurements, strict=True
        ):
            one["samples_per_s"] = measured.samples_per_s
            one["compute_s"] = measured.compute_s
            one["efficiency"] = record.efficiency(measured.nodes)
        told.append({**data, "exponent": record.exponent})
    lost = [{"nodes": n, "repeat": r, "why": why} for (n, r), why in failed.items()]
    return {"records": told, "failed": lost, "files": list(files)}


def _draw(records: Sequence[ThroughputRecord], folder: Path) -> list[Path]:
    """Write the figure; say so where that can't be."""
    from hansa.core.errors import PluginError
    from hansa.report.write import extra_needed, write_files

    try:
        with extra_needed("hansa bench throughput --json"):
            from hansa.report.figures.scaling import scaling_picture
        drawn = scaling_picture(records)
    except PluginError as error:
        say(f"No picture was drawn: {error.message} {error.hint or ''}")
        return []
    files = {"throughput.png": drawn.png, "throughput.svg": drawn.svg}
    try:
        return write_files(files, folder)
    except OSError as error:
        say(f"{folder} can't be written: {error.strerror}.")
        return []


def _advise(study: Study, records: Sequence[ThroughputRecord]) -> None:
    """Say what a federation file can do with the numbers."""
    from hansa.report.throughput import lines_to_paste

    mine = study.record()
    if not mine.measurements or mine not in records:
        return
    one = study.spec.facilities[study.facility]
    batch = int(one.work.options["batch"])
    say("Strategies and the simulator can begin with this, in federation.yaml:")
    say(lines_to_paste(mine, one.job.nodes, batch))
