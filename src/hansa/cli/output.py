"""What the command line prints: data on stdout, words on stderr, one JSON envelope."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hansa.core.errors import HansaError

if TYPE_CHECKING:
    from rich.console import Console

    from hansa.report.tables import Table

SCHEMA_VERSION = 1


def say(text: str) -> None:
    """Print words for a person, on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """Return a stranger's text with what a terminal would obey or hide written out."""
    return "".join(
        one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text
    )


def show_json(data: object, exit_code: int = 0) -> None:
    """Print the envelope around `data` on stdout."""
    _print(
        {
            "schema_version": SCHEMA_VERSION,
            "status": "ok" if exit_code == 0 else "failed",
            "exit_code": exit_code,
            "data": data,
        }
    )


def show_error(error: HansaError, *, as_json: bool) -> int:
    """Print an error and return the exit code that goes with it."""
    if as_json:
        _print(
            {
                "schema_version": SCHEMA_VERSION,
                "status": "error",
                "exit_code": error.exit_code,
                "error": error.to_json(),
            }
        )
    else:
        say(f"error: {error.message}")
        if error.hint:
            say(f"  help: {error.hint}")
        say(f"  code: {error.code}")
    return error.exit_code


def console(*, stderr: bool = False) -> Console:
    """Return a rich console; wide and plain when it is no terminal."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=160)
    return made


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show on a terminal how far something long is; elsewhere show nothing.

    Yields:
        To be called with what is being done, how many steps are, and of how many.
    """
    shown = console(stderr=True)
    if not shown.is_terminal:
        yield lambda *_: None
        return
    from rich.progress import Progress

    with Progress(console=shown, transient=True) as bar:
        line = bar.add_task("", total=None)
        yield lambda what, done, of: bar.update(
            line, description=what, completed=done, total=of
        )


def show_table(table: Table) -> None:
    """Print a table of the report on stdout."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable
    from rich.text import Text

    title = escape(table.title)
    made = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, heading in enumerate(table.columns):
        made.add_column(
            Text(plain(heading)), justify="left" if table.is_left(index) else "right"
        )
    for row in table.rows:  # words of facilities are no markup of rich
        made.add_row(*(Text(plain(cell)) for cell in row))
    console().print(made)


def _print(envelope: Mapping[str, Any]) -> None:
    print(json.dumps(envelope, indent=2, ensure_ascii=False))
