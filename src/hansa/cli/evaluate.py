"""`hansa evaluate`: a run's model against what it should be better than."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hansa.cli.options import FOLDER, JSON, RUN
from hansa.cli.output import say, show_json, show_table

if TYPE_CHECKING:
    from hansa.report.evaluation import Evaluation


def register(app: typer.Typer) -> None:
    """Add this file's verb."""
    app.command()(evaluate)


def evaluate(
    run: str = RUN,
    against: str = typer.Option(
        "base,local,central", help="Models to compare with, with commas between them."
    ),
    limit: int | None = typer.Option(
        None,
        min=0,
        help="Generated answers of each task; 0: the test loss alone. 16, or 0 with "
        "trainers that generate none.",
    ),
    tokens: int = typer.Option(96, min=1, help="Most tokens of an answer."),
    runs: Path = FOLDER,
    json_: bool = JSON,
) -> None:
    """Measure a run's model on held-out examples, against others.

    base: version 0. local: each facility alone, with its steps of the run. central: one
    facility that may read all data, with the steps of all. Those two are trained first,
    as runs beside this one. Nothing is trained or measured twice.
    """
    import asyncio

    from hansa.coordinator.evaluate import Settings, answers_asked
    from hansa.coordinator.evaluate import evaluate as measure
    from hansa.coordinator.folder import RunFolder
    from hansa.coordinator.runtime import Interrupted
    from hansa.core.errors import StorageFull
    from hansa.report.evaluation import CENTRAL, tables, verdict

    folder = RunFolder.existing(run, runs)
    settings = Settings(
        against=kinds_of(against),
        tokens=tokens,
        limit=answers_asked(folder.spec(), limit),
    )
    try:
        found = asyncio.run(measure(folder, settings, say))
    except (Interrupted, StorageFull):
        say("Nothing is lost: the same command goes on where it was.")
        raise
    paths = _write(found, folder.path / "evaluation")
    # That nobody may read all data is as it should be.
    code = 6 if found.left_out.keys() - {CENTRAL} else 0
    if json_:
        show_json(found.to_json(), code)
        raise typer.Exit(code)
    for table in tables(found):
        show_table(table)
    for who, why in found.left_out.items():
        say(f"Not measured: {who}: {why}")
    print(verdict(found))
    for path in paths:
        print(path)
    raise typer.Exit(code)


def kinds_of(text: str) -> tuple[str, ...]:
    """Return kinds of models that are named with commas between them.

    Raises:
        UsageError: One is not known.
    """
    from hansa.core.errors import UsageError
    from hansa.report.evaluation import GLOBAL, KINDS

    known = [kind for kind in KINDS if kind != GLOBAL]
    found = tuple(filter(None, (part.strip() for part in text.split(","))))
    for kind in found:
        if kind not in known:
            raise UsageError(
                f"--against: there is no {kind!r}.",
                hint=f"Say some of {', '.join(known)}.",
            )
    return found


def _write(found: Evaluation, folder: Path) -> list[Path]:
    """Write figures, page and picture; say so where no picture can be drawn."""
    import json

    from hansa.core.errors import PluginError
    from hansa.report.evaluation import markdown
    from hansa.report.write import extra_needed, write_files

    text = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
    files = {
        "evaluation.json": f"{text}\n".encode(),
        "evaluation.md": markdown(found).encode(),
    }
    try:
        with extra_needed("hansa evaluate --json"):
            from hansa.report.figures.evaluation import evaluation_picture
        drawn = evaluation_picture(found)
        files |= {"evaluation.png": drawn.png, "evaluation.svg": drawn.svg}
    except PluginError as error:
        say(f"No picture was drawn: {error.message} {error.hint or ''}")
    return write_files(files, folder)
