"""`hansa demo`, `hansa init`: the first steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hansa.cli.options import FOLDER
from hansa.cli.output import say
from hansa.core.errors import JournalLocked

if TYPE_CHECKING:
    from hansa.coordinator.folder import RunFolder


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(demo)
    app.command()(init)


def demo(
    name: str = typer.Option("chemistry", help="Which example to run."),
    runs: Path = FOLDER,
) -> None:
    """Train a language model over four chemistry facilities, all on this machine."""
    from hansa.cli.files import copy_example
    from hansa.cli.run import execute
    from hansa.coordinator.folder import RunFolder
    from hansa.spec import load_federation

    folder = RunFolder.of("demo", runs)
    if folder.path.exists():
        _refuse_if_running(folder)
        kept = _keep_old(folder.path)
        say(f"An older demo is kept as {kept}.")
    file = copy_example(name, folder.path / "plan")
    code = execute(load_federation(file), folder)
    raise typer.Exit(code)


def init(
    folder: Path = typer.Argument(
        Path("federation"), help="Where to write the files; made if missing."
    ),
    example: str = typer.Option("digits", help="Which example to begin with."),
) -> None:
    """Write a commented federation file and its site files, to begin from."""
    from hansa.cli.files import copy_example

    file = copy_example(example, folder)
    print(file)
    say(f"Next: hansa check {file}, then hansa run {file}")


def _refuse_if_running(folder: RunFolder) -> None:
    import time

    from hansa.journal import holder

    who = holder(folder.lease)
    if who is not None and who.is_alive(time.time()):
        raise JournalLocked(
            f"A demo runs in process {who.pid} on {who.host}.",
            hint=f"Stop it with `hansa stop {folder.path}`, or use another --runs DIR.",
        )


def _keep_old(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.rename(path.with_name(f"{path.name}.{number}"))
