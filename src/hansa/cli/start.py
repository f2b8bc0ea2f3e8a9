"""`hansa demo`, `hansa init`: the first steps."""

from __future__ import annotations

from pathlib import Path

import typer

from hansa.cli.output import say
from hansa.cli.run import RUNS


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(demo)
    app.command()(init)


def demo(
    name: str = typer.Option("chemistry", help="Which example to run."),
    runs: Path = typer.Option(RUNS, help="Folder of all runs."),
) -> None:
    """Train a language model over four chemistry facilities, all on this machine."""
    from hansa.cli.files import copy_example
    from hansa.cli.run import execute
    from hansa.coordinator.folder import RunFolder
    from hansa.spec import load_federation

    folder = RunFolder.of("demo", runs)
    if folder.path.exists():
        kept = _keep_old(folder.path)
        say(f"An older demo is kept as {kept}.")
    file = copy_example(name, folder.path / "plan")
    code = execute(load_federation(file), folder)
    raise typer.Exit(code)


def init(
    folder: Path = typer.Argument(Path(), help="Where to write the files."),
    example: str = typer.Option("digits", help="Which example to begin with."),
) -> None:
    """Write a commented federation file and its site files, to begin from."""
    from hansa.cli.files import copy_example

    file = copy_example(example, folder)
    print(file)
    say(f"Next: hansa check {file}, then hansa run {file}")


def _keep_old(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.rename(path.with_name(f"{path.name}.{number}"))
