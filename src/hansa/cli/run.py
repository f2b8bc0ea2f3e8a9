"""`hansa run`, `hansa stop`: carrying a federation out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hansa.cli.inspect import conclusion, summary_of
from hansa.cli.options import CHANGES, FOLDER, RUN, RUNS
from hansa.cli.output import say, show_json
from hansa.core.errors import PreflightError, StorageFull, UsageError

if TYPE_CHECKING:
    from hansa.coordinator.core import Coordinator
    from hansa.coordinator.folder import RunFolder
    from hansa.spec.federation import FederationSpec

EXIT_CODES = {"done": 0, "partial": 6, "failed": 1}


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(run)
    app.command()(stop)


def run(
    file: Path | None = typer.Argument(None, help="federation.yaml"),
    overrides: list[str] | None = CHANGES,
    resume: str | None = typer.Option(None, help="Take up this run again."),
    id_: str | None = typer.Option(None, "--id", help="Id of the run."),
    runs: Path = FOLDER,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print every job script and transfer; spend nothing."
    ),
    cancel: bool = typer.Option(
        False, "--cancel", help="On Ctrl-C, cancel the jobs in flight."
    ),
    keep_going: bool = typer.Option(
        False, "--keep-going", help="Begin even if some facilities are not ready."
    ),
    json_: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Run a federation to its end, or take one up where it stands."""
    from hansa.cli.plan import show_dry_run
    from hansa.coordinator.folder import RunFolder
    from hansa.spec import load_federation

    if (file is None) == (resume is None):
        raise UsageError(
            "Give either a federation file or --resume RUN.",
            hint="hansa run federation.yaml, or hansa run --resume RUN",
        )
    if resume is not None:
        folder = RunFolder.existing(resume, runs)
        spec = folder.spec()
    else:
        spec = load_federation(file or Path(), overrides or ())
        folder = RunFolder.of(id_ or free_id(spec.name, runs), runs)
    if dry_run:
        raise typer.Exit(show_dry_run(spec, folder.run, as_json=json_))
    code = execute(spec, folder, cancel=cancel, keep_going=keep_going, quiet=json_)
    if json_:
        show_json(summary_of(folder).to_json(), code)
    raise typer.Exit(code)


def stop(
    run: str = RUN,
    cancel: bool = typer.Option(
        False, "--cancel", help="Cancel the jobs in flight, too."
    ),
    runs: Path = FOLDER,
) -> None:
    """Ask a running coordinator to stop; the run can be resumed."""
    import time

    from hansa.coordinator.folder import RunFolder
    from hansa.journal import holder

    folder = RunFolder.existing(run, runs)
    who = holder(folder.lease)
    if who is None or not who.is_alive(time.time()):
        raise UsageError(
            f"Nobody runs {folder.run} at present.",
            hint=f"Continue it with `hansa run --resume {run}`.",
        )
    folder.ask("cancel" if cancel else "stop")
    say(f"Asked process {who.pid} on {who.host} to stop {folder.run}.")


def execute(
    spec: FederationSpec,
    folder: RunFolder,
    *,
    cancel: bool = False,
    keep_going: bool = False,
    quiet: bool = False,
) -> int:
    """Carry a run out with a display, write its report and return the exit code."""
    import asyncio

    from hansa.cli.display import make_display
    from hansa.coordinator.launch import carry_out
    from hansa.coordinator.runtime import Interrupted

    if not folder.journal.is_file():
        preflight(spec, folder.run, keep_going=keep_going)
    folder.claim(spec)
    try:
        with make_display(spec, quiet=quiet) as display:
            core = asyncio.run(
                carry_out(
                    spec,
                    folder,
                    watchers=(display,),
                    on_running=display.attach,
                    cancel_on_interrupt=cancel,
                )
            )
    except (Interrupted, StorageFull):
        say(f"Nothing is lost. To go on: hansa run --resume {_resume_name(folder)}")
        raise
    return _conclude(core, folder, quiet=quiet)


def preflight(spec: FederationSpec, run: str, *, keep_going: bool) -> None:
    """Ask all facilities; refuse to begin when one can't do its part.

    Raises:
        PreflightError: A facility has a problem and `keep_going` is not given, or
            all have.
    """
    import asyncio

    from hansa.coordinator.preflight import check_all
    from hansa.coordinator.setup import make_coordinator

    make_coordinator(spec)
    checks = asyncio.run(check_all(spec, run))
    bad = [check for check in checks if check.problems]
    for check in bad:
        for what, hint in check.problems:
            say(f"{check.facility}: {what} {hint}".rstrip())
    none_left = len(bad) == len(checks)
    if bad and (none_left or not keep_going):
        others = "" if none_left else ", or begin with the others: --keep-going"
        raise PreflightError(
            f"Facilities that are not ready: {len(bad)} of {len(checks)}. "
            f"{bad[0].facility}: {bad[0].problems[0][0]}",
            hint=f"Nothing was spent. Mend it{others}.",
        )


def _conclude(core: Coordinator, folder: RunFolder, *, quiet: bool) -> int:
    code = EXIT_CODES.get(core.outcome, 1)
    conclusion(folder, quiet=quiet)
    return code


def _resume_name(folder: RunFolder) -> str:
    return folder.run if folder.path.parent == RUNS.resolve() else str(folder.path)


def free_id(name: str, runs: Path) -> str:
    """Return the first id ``NAME-1``, ``NAME-2``, ... that no run has."""
    number = 1
    while (runs / f"{name}-{number}").exists():
        number += 1
    return f"{name}-{number}"
