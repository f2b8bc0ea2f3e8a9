"""`hansa compare`: strategies against each other, simulated."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import typer

from hansa.cli.options import CHANGES, JSON
from hansa.cli.output import console, progress_bar, say, show_json, show_table
from hansa.core.errors import UsageError

if TYPE_CHECKING:
    from hansa.report.comparison import Comparison
    from hansa.report.tables import Table
    from hansa.simulator.compare.score import Score
    from hansa.simulator.compare.study import Configuration

STUDIES = Path("studies")


def register(app: typer.Typer) -> None:
    """Add this file's verb."""
    app.command()(compare)


def compare(
    file: Path = typer.Argument(help="federation.yaml"),
    overrides: list[str] | None = CHANGES,
    strategies: str = typer.Option("", help="Names, with commas between them."),
    scenarios: str = typer.Option("", help="Names of simulation.scenarios; all."),
    modes: str = typer.Option("", help="published, late or both."),
    seeds: int | None = typer.Option(None, min=1, help="Runs of each."),
    target: float | None = typer.Option(None, help="Loss whose time is measured."),
    jobs: int | None = typer.Option(
        None, min=1, help="Processes; as many as there are cores."
    ),
    out: Path | None = typer.Option(None, help="Folder; studies/NAME."),
    json_: bool = JSON,
) -> None:
    """Simulate strategies in scenarios and compare them: tables, pictures, one page.

    What is not told here stands in the file, under simulation.compare.
    """
    from hansa.simulator.compare.contest import compare as carry_out
    from hansa.simulator.compare.study import Wishes, plan_study

    wishes = Wishes(
        strategies=_names(strategies),
        scenarios=_names(scenarios),
        modes=_names(modes),
        seeds=seeds,
        target=target,
    )
    study = plan_study(file, tuple(overrides or ()), wishes)
    folder = out or STUDIES / study.spec.name
    _make(folder)
    with progress() as tell:
        found, runs = carry_out(study, jobs=jobs or _cores(), tell=tell)
    tables = _tables(found)
    code = 1 if found.failed else 0
    try:
        page = _write(found, runs, tables, folder)
    except OSError as error:  # hours may lie in what was found
        say(
            f"{folder} can't be written: {error.strerror}. What was found is here only."
        )
        page, code = None, 1
    if json_:
        show_json({**found.to_json(), "folder": str(folder)}, code)
    else:
        _show(found, tables, page)
    raise typer.Exit(code)


def _make(folder: Path) -> None:
    """Make the folder of a study that may take hours, before it begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"The folder {folder} can't be written: {error.strerror}.",
            hint="Choose another one with --out.",
        ) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show how far a study is: a bar on a terminal, a line each tenth elsewhere."""
    if console(stderr=True).is_terminal:
        with progress_bar() as tell:
            yield tell
        return
    tenth = 0

    def line(what: str, done: int, of: int) -> None:
        nonlocal tenth
        if 10 * done // of > tenth:
            tenth = 10 * done // of
            say(f"[{100 * done // of:3d}%] {done} of {of} runs, {what}")

    yield line


def _tables(found: Comparison) -> list[Table]:
    from hansa.simulator.compare.tables import (
        mishaps_table,
        overall_table,
        participation_table,
        scenario_table,
    )

    several = len(found.scenarios) > 1 and found.target is not None
    return [
        *([overall_table(found)] if several else []),
        *(scenario_table(found, one) for one in found.scenarios),
        *(participation_table(one, found.facilities) for one in found.scenarios),
        mishaps_table("Could not be run", found.refused),
        mishaps_table("Failed", found.failed),
    ]


def _show(found: Comparison, tables: Sequence[Table], page: Path | None) -> None:
    from hansa.simulator.compare.words import headline, notes

    for table in tables:
        if table.rows:
            show_table(table)
    print(headline(found))
    for note in notes(found):
        print(note)
    if page is not None:
        print(f"Page: {page}")


def _write(
    found: Comparison,
    runs: Sequence[tuple[Configuration, Score]],
    tables: Sequence[Table],
    folder: Path,
) -> Path | None:
    """Write the study's files; return the page, None where it can't be drawn."""
    from hansa.core.errors import PluginError
    from hansa.report.write import extra_needed, write_files
    from hansa.simulator.compare.tables import ratios_table, results_csv, runs_csv
    from hansa.simulator.compare.words import headline, notes

    results = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
    files = {
        "results.json": f"{results}\n".encode(),
        "results.csv": results_csv(found).encode(),
        "runs.csv": runs_csv(runs).encode(),
    }
    command = shlex.join(["hansa", *sys.argv[1:]])
    try:
        with extra_needed("hansa compare --json"):
            from hansa.report.comparison_page import comparison_files
    except PluginError as error:
        say(f"No pictures were drawn: {error.message} {error.hint or ''}")
        write_files(files, folder)
        return None
    words = headline(found), notes(found)
    drawn = comparison_files(found, [*tables, ratios_table(found)], words, command)
    return write_files({**files, **drawn}, folder)[0]
